//! Single flows.

use policies_ir::tables::{BuiltinRule, DecidedBy, Direction, Verdict};

use crate::{
    build::identity_of,
    judge::Judge,
    model::Model,
    packet::{Packet, Party, Place, Ruling},
    space::Point,
};

impl Model {
    /// Judges one flow at both ends, each a workload at one of its addresses or an address alone. Nothing if neither is
    /// a workload, nor an address that several claim: whoever that is may not use it.
    pub fn packet(&self, from: Place, to: Place, point: Point) -> Option<Packet> {
        let is_nobody = |place: Place| place.member.is_none() && self.contested.contains(&place.address);
        let judges = |place: Place| place.member.is_some() || is_nobody(place);
        if !judges(from) && !judges(to) {
            return None;
        }
        let ruling = |own: Place, direction, peer: Place| {
            if is_nobody(own) {
                return Some(Ruling {
                    allowed: false,
                    by: DecidedBy::Builtin(BuiltinRule::NoMatch).to_string(),
                });
            }
            own.member.filter(|member| !self.is_blind_to(*member, peer))?;
            let (verdict, by) = self.decide(own, direction, peer, point);
            Some(Ruling {
                allowed: verdict == Verdict::Allow,
                by: by.to_string(),
            })
        };
        let egress = ruling(from, Direction::Egress, to);
        let ingress = ruling(to, Direction::Ingress, from);
        let party = |place: Place| Party {
            workload: place.member.map(|member| self.name(member)),
            node: self.nodes.get(&place.address).cloned(),
            address: place.address,
            named: place.names.and_then(|names| self.names_text(names)),
        };
        Some(Packet {
            from: party(from),
            to: party(to),
            service: point.to_string(),
            protocol: point.protocol,
            source_port: point.source_port,
            port: point.port,
            allowed: egress.iter().chain(&ingress).all(|ruling| ruling.allowed),
            egress,
            ingress,
        })
    }

    /// Judges one flow at the interface of a workload.
    pub fn decide(
        &self,
        own: Place,
        direction: Direction,
        peer: Place,
        point: Point,
    ) -> (Verdict, DecidedBy) {
        match self.judge_at(own, direction, peer) {
            Some(judge) => {
                let entry = judge.decide(point);
                (entry.verdict, self.decided_by(entry.rule))
            }
            None => (Verdict::Deny, DecidedBy::Builtin(BuiltinRule::NoMatch)),
        }
    }

    /// What a workload says about who is at an address; nothing where it does not judge.
    pub(crate) fn judge_at(&self, own: Place, direction: Direction, peer: Place) -> Option<&Judge> {
        let member = own.member?;
        if self.is_blind_to(member, peer) {
            return None;
        }
        let Place {
            address: peer, names, ..
        } = peer;
        let class = self.class_of(member)?;
        let identities = match names {
            Some(names) => self.identities_if_named.get(names)?,
            None => &self.identities,
        };
        let identity = match self.owner(peer) {
            // To the first member of the class its own address is itself, so its siblings are told apart here.
            Some(owner) if self.class_of(owner) == Some(class) => {
                let known = self.classes.get(class)?;
                let place = self.places.get(owner)?.1;
                let slot = known
                    .addresses(place)
                    .iter()
                    .position(|address| *address == peer)?;
                let slot = known.slots.get(slot)?;
                if owner == member {
                    slot.identity
                } else {
                    slot.sibling
                }
            }
            _ => identity_of(identities, peer)?,
        };
        let own = identity_of(&self.identities, own.address);
        let row = self.rows.get(&(class, direction))?;
        let judge = row.judge(own, identity);
        let judge = match self.is_own_node(member, peer) {
            true => self.node_judges.of(judge, direction),
            false => judge,
        };
        self.judges.get(judge)
    }

    /// Whether a workload is a host endpoint that does not see what it and the pod at a place send each other.
    fn is_blind_to(&self, own: usize, peer: Place) -> bool {
        let peer = peer.member.and_then(|peer| self.member(peer));
        let pair = self.member(own).zip(peer);
        pair.is_some_and(|(own, peer)| own.is_node_of(peer))
    }
}
