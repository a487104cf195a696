//! Which conditions hold at which address, kept up to date.
//!
//! Addresses are sorted three times. Those at which selectors see the same are of one *rest*, of which there are as
//! many as distinct sets of labels; a condition on labels alone is asked once of each. Those of one rest that also have
//! the same kind of owner, the same names and the same innermost prefix are of one *class*. Classes at which the same
//! conditions hold have one [`Signature`], which is all that verdicts depend on.
//!
//! Conditions, prefixes, rests, classes and signatures only ever come: what nobody uses any more splits more finely than
//! it need, which is never wrong. Whoever keeps this starts anew before that is too much.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use policies_ir::{
    cluster::{Cluster, Member, Translation},
    policy::{EndMatch, IpVersion, Workload, WorkloadKind},
};

use crate::cells::{
    ByName, Declares, Depends, MatcherId, Matchers, Owned, Owner, Place, Prefixes, Sets, Signature,
    attributes, holds_at, node_addresses, owner_at, selects,
};

/// Position of a signature; the same for as long as the [`Places`] last.
pub(super) type SignatureId = usize;
type ClassId = usize;
type RestId = usize;
type AttributesId = usize;

pub(super) struct Places {
    /// Sets, nodes and names, but no members: those are in `claims`.
    ground: Cluster,
    nodes: BTreeMap<IpAddr, usize>,
    sets: Sets,
    matchers: Matchers,
    /// How many of the matchers have been asked.
    asked: usize,
    /// Those of them that depend on the address.
    on_address: Vec<MatcherId>,
    port_names: BTreeSet<String>,
    fixed: Prefixes,
    claims: HashMap<IpAddr, Vec<Claim>>,
    attributes: HashMap<Attributed, AttributesId>,
    /// One of the members with these attributes.
    samples: Vec<Arc<Member>>,
    rests: Vec<Rest>,
    rest_ids: HashMap<RestKey, RestId>,
    classes: Vec<Class>,
    class_ids: HashMap<ClassKey, ClassId>,
    signatures: Vec<Signature>,
    /// The signature that each was split off from, if it was.
    origins: Vec<Option<SignatureId>>,
    signature_ids: HashMap<Signature, SignatureId>,
    cells: BTreeMap<IpNet, ClassId>,
    /// Prefixes whose cells may have another identity than before.
    moved: BTreeSet<IpNet>,
}

#[derive(Clone)]
struct Claim {
    member: Arc<Member>,
    attributes: AttributesId,
}

/// A member, as far as selectors can tell it from others.
struct Attributed(Arc<Member>);

#[derive(Clone, PartialEq, Eq, Hash)]
struct RestKey {
    workloads: Vec<AttributesId>,
    /// Positions of sets, by address and by name.
    sets: (Vec<usize>, Vec<usize>),
}

struct Rest {
    key: RestKey,
    /// Conditions on labels alone that hold, ascending.
    matchers: Vec<MatcherId>,
    /// What each workload declares of the ports that rules ask for.
    declares: Vec<Option<Declares>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ClassKey {
    family: IpVersion,
    owner: Owner,
    workloads: Vec<AttributesId>,
    names: Option<BTreeSet<String>>,
    innermost: IpNet,
}

struct Class {
    key: ClassKey,
    rest: RestId,
    /// Conditions on the address that hold, ascending.
    matchers: Vec<MatcherId>,
    signature: SignatureId,
}

impl Places {
    /// The places of a cluster, whose members come one by one.
    pub(super) fn new(ground: Cluster) -> Self {
        let of_sets = ground.sets.iter().flat_map(|set| &set.nets).map(IpNet::trunc);
        let groups = ground.host_groups.iter().map(IpNet::trunc);
        let fixed: BTreeSet<IpNet> = defaults().chain(of_sets).chain(groups).collect();
        Self {
            nodes: node_addresses(&ground),
            sets: Sets::new(&ground),
            matchers: Matchers::new(&ground),
            asked: 0,
            on_address: Vec::new(),
            port_names: BTreeSet::new(),
            fixed: Prefixes::new(&fixed),
            claims: HashMap::new(),
            attributes: HashMap::new(),
            samples: Vec::new(),
            rests: Vec::new(),
            rest_ids: HashMap::new(),
            classes: Vec::new(),
            class_ids: HashMap::new(),
            signatures: Vec::new(),
            origins: Vec::new(),
            signature_ids: HashMap::new(),
            cells: BTreeMap::new(),
            moved: defaults().collect(),
            ground,
        }
    }

    /// What is not a member.
    pub(super) fn ground(&self) -> &Cluster {
        &self.ground
    }

    /// From now on ports of the node lead to these. Whether to others than before.
    pub(super) fn translate(&mut self, translations: &[Translation]) -> bool {
        if self.ground.translations == translations {
            return false;
        }
        self.ground.translations = translations.to_vec();
        true
    }

    pub(super) fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Which signatures some class has.
    pub(super) fn live(&self) -> Vec<bool> {
        let mut live = vec![false; self.signatures.len()];
        for class in &self.classes {
            if let Some(place) = live.get_mut(class.signature) {
                *place = true;
            }
        }
        live
    }

    /// The signature that this one was split off from by conditions that came later.
    pub(super) fn origin(&self, signature: SignatureId) -> Option<SignatureId> {
        self.origins.get(signature).copied().flatten()
    }

    /// All cells with their signatures, prefixes before what they hold.
    pub(super) fn cells(&self) -> impl Iterator<Item = (IpNet, SignatureId)> {
        self.signed(self.cells.iter())
    }

    /// Those of them that lie in `prefix`.
    pub(super) fn cells_in(&self, prefix: IpNet) -> impl Iterator<Item = (IpNet, SignatureId)> {
        let from = self.cells.range(prefix..);
        self.signed(from.take_while(move |(cell, _)| prefix.contains(*cell)))
    }

    /// The innermost cell around `prefix`.
    pub(super) fn around(&self, prefix: IpNet) -> Option<(IpNet, SignatureId)> {
        let holders = self.fixed.that_hold(prefix.addr());
        let around = holders
            .iter()
            .rfind(|holder| holder.prefix_len() < prefix.prefix_len())?;
        self.signed(self.cells.get_key_value(around).into_iter()).next()
    }

    /// A cell anywhere may have another identity.
    pub(super) fn move_everywhere(&mut self) {
        self.moved.extend(defaults());
    }

    /// Prefixes whose cells may have another identity than when this was asked last; none holds another.
    pub(super) fn take_moved(&mut self) -> Vec<IpNet> {
        let mut outermost: Vec<IpNet> = Vec::new();
        for prefix in std::mem::take(&mut self.moved) {
            if !outermost.last().is_some_and(|holder| holder.contains(&prefix)) {
                outermost.push(prefix);
            }
        }
        outermost
    }

    /// What is not a member, and what numbers conditions.
    pub(super) fn parts(&mut self) -> (&Cluster, &mut Matchers) {
        (&self.ground, &mut self.matchers)
    }

    /// Members by address, for whoever looks for contradictions.
    pub(super) fn claims(&self, address: IpAddr) -> impl Iterator<Item = &Member> {
        self.claims
            .get(&address)
            .into_iter()
            .flatten()
            .map(|claim| &*claim.member)
    }

    /// How much there is of what never goes.
    pub(super) fn size(&self) -> usize {
        self.matchers.all().len() + self.rests.len() + self.classes.len() + self.signatures.len()
    }

    /// Takes a member's addresses from it, and gives the new one its own.
    pub(super) fn replace(&mut self, before: Option<&Arc<Member>>, now: Option<&Arc<Member>>) {
        if let Some(before) = before {
            for address in &before.addresses {
                if let Some(claims) = self.claims.get_mut(address) {
                    claims.retain(|claim| !Arc::ptr_eq(&claim.member, before));
                    if claims.is_empty() {
                        self.claims.remove(address);
                    }
                }
            }
        }
        if let Some(now) = now {
            self.claim(now);
        }
        let addresses =
            |member: Option<&Arc<Member>>| member.map(|m| m.addresses.clone()).unwrap_or_default();
        for address in addresses(before).union(&addresses(now)) {
            self.place(*address);
        }
    }

    /// Sets the names of addresses.
    pub(super) fn rename(&mut self, names: &BTreeMap<IpAddr, BTreeSet<String>>) {
        let before = std::mem::replace(&mut self.ground.names, names.clone());
        let all: BTreeSet<IpAddr> = before.keys().chain(names.keys()).copied().collect();
        for address in all {
            if before.get(&address) != names.get(&address) {
                self.place(address);
            }
        }
    }

    /// Cuts the address space into cells, once all members are there.
    pub(super) fn place_all(&mut self) {
        let of_nodes = self.nodes.keys().chain(&self.ground.host_addresses);
        let addresses = of_nodes.chain(self.claims.keys()).chain(self.ground.names.keys());
        let mut cells: BTreeSet<IpNet> = addresses.copied().map(IpNet::from).collect();
        cells.extend(self.fixed.all());
        let mut holders: Vec<IpNet> = Vec::new();
        for cell in cells {
            while holders.last().is_some_and(|holder| !holder.contains(&cell)) {
                holders.pop();
            }
            if self.fixed.contains(&cell) {
                holders.push(cell);
            }
            if let Some(innermost) = holders.last()
                && let Some(class) = self.class_at(cell, *innermost)
            {
                self.cells.insert(cell, class);
            }
        }
        self.move_everywhere();
    }

    /// Asks the conditions, and for the port names, that came since the last time.
    pub(super) fn ask<'n>(&mut self, port_names: impl Iterator<Item = &'n str>) {
        let new: Vec<&str> = port_names
            .filter(|name| !self.port_names.contains(*name))
            .collect();
        let declares_anew = !new.is_empty();
        self.port_names.extend(new.into_iter().map(str::to_owned));
        let fresh = self.asked..self.matchers.all().len();
        self.asked = fresh.end;
        let mut prefixes = BTreeSet::new();
        for (id, (matcher, _)) in self.matchers.all().iter().enumerate().skip(fresh.start) {
            prefixes.extend(matcher.nets.iter().chain(&matcher.not_nets).map(IpNet::trunc));
            if Depends::of(matcher) != Depends::Workloads {
                self.on_address.push(id);
            }
        }
        if !fresh.is_empty() || declares_anew {
            let rests = self.ask_rests(fresh.start, declares_anew);
            self.ask_classes(fresh.start, &rests);
        }
        prefixes.retain(|prefix| !self.fixed.contains(prefix));
        for prefix in prefixes {
            self.fix(prefix);
        }
    }

    /// Which rests are others now.
    fn ask_rests(&mut self, first: MatcherId, declares_anew: bool) -> Vec<bool> {
        let fresh = self.matchers.all().iter().enumerate().skip(first);
        let on_labels: Vec<_> = fresh
            .clone()
            .filter(|(_, (matcher, _))| Depends::of(matcher) == Depends::Workloads)
            .collect();
        let mut changed = vec![false; self.rests.len()];
        let mut rests = std::mem::take(&mut self.rests);
        for (rest, changed) in rests.iter_mut().zip(&mut changed) {
            let declares = rest.declares.iter().any(Option::is_some);
            if on_labels.is_empty() && !declares_anew && !declares {
                continue;
            }
            let place = self.place_at_rest(&rest.key);
            for (id, matcher) in &on_labels {
                if selects(matcher, &place, &self.ground.sets) {
                    rest.matchers.push(*id);
                    *changed = true;
                }
            }
            for (workload, declares) in place.workloads.iter().zip(&mut rest.declares) {
                if declares_anew {
                    let now = Declares::of(workload, &self.port_names, self.matchers.all());
                    *changed |= *declares != now;
                    *declares = now;
                } else if let Some(declares) = declares {
                    let found = fresh.clone().filter(|(_, (matcher, _))| finds(matcher, workload));
                    let before = declares.selected_by.len();
                    declares.selected_by.extend(found.map(|(id, _)| id));
                    *changed |= declares.selected_by.len() > before;
                }
            }
        }
        self.rests = rests;
        changed
    }

    fn ask_classes(&mut self, first: MatcherId, rests: &[bool]) {
        let fresh: Vec<MatcherId> = self
            .on_address
            .iter()
            .copied()
            .filter(|id| *id >= first)
            .collect();
        let mut classes = std::mem::take(&mut self.classes);
        for class in &mut classes {
            let found = self.on_address(&fresh, &class.key, class.rest);
            if found.is_empty() && !rests.get(class.rest).is_some_and(|changed| *changed) {
                continue;
            }
            class.matchers.extend(found);
            let signature = self.signature_of(class);
            let origin = class.signature;
            class.signature = self.signature_id(signature, Some(origin));
        }
        self.classes = classes;
    }

    /// From now on `prefix` has a cell of its own, and what lies in it lies in it first.
    fn fix(&mut self, prefix: IpNet) {
        self.fixed.insert(prefix);
        let inside: Vec<(IpNet, ClassId)> = self
            .cells
            .range(prefix..)
            .take_while(|(cell, _)| prefix.contains(*cell))
            .map(|(cell, class)| (*cell, *class))
            .collect();
        for (cell, class) in inside {
            let Some(key) = self.classes.get(class).map(|class| &class.key) else {
                continue;
            };
            if key.innermost.prefix_len() < prefix.prefix_len() {
                let key = ClassKey {
                    innermost: prefix,
                    ..key.clone()
                };
                let class = self.class(key);
                self.cells.insert(cell, class);
            }
        }
        if let Some(class) = self.class_at(prefix, prefix) {
            self.cells.insert(prefix, class);
        }
        self.moved.insert(prefix);
    }

    fn place(&mut self, address: IpAddr) {
        let cell = IpNet::from(address);
        self.moved.insert(cell);
        let innermost = self.fixed.that_hold(address).last().copied();
        match innermost.and_then(|innermost| self.class_at(cell, innermost)) {
            Some(class) => drop(self.cells.insert(cell, class)),
            None => drop(self.cells.remove(&cell)),
        }
    }

    /// The class of a cell; nothing if it need not be one.
    fn class_at(&mut self, cell: IpNet, innermost: IpNet) -> Option<ClassId> {
        let is_address = cell.prefix_len() == cell.max_prefix_len();
        let address = cell.addr();
        let claims = match self.claims.get(&address).filter(|_| is_address) {
            Some(claims) => claims.as_slice(),
            None => &[],
        };
        let own = is_address && self.ground.host_addresses.contains(&address);
        let node = self.nodes.get(&address).copied().filter(|_| is_address);
        let members: Vec<&Member> = claims.iter().map(|claim| &*claim.member).collect();
        let owner = Owned::of(&members, node, own).map(|owned| owned.owner);
        let names = self.ground.names.get(&address).filter(|_| is_address);
        if owner.is_none() && names.is_none() && cell != innermost {
            return None;
        }
        // The node's own addresses are the node's, whichever pod claims them.
        let counts = |claim: &&Claim| !own || claim.member.workload.kind == WorkloadKind::HostEndpoint;
        let key = ClassKey {
            family: family(address),
            owner: owner_at(&self.ground, &cell, owner),
            workloads: claims
                .iter()
                .filter(counts)
                .map(|claim| claim.attributes)
                .collect(),
            names: names.cloned(),
            innermost,
        };
        Some(self.class(key))
    }

    fn class(&mut self, key: ClassKey) -> ClassId {
        if let Some(known) = self.class_ids.get(&key) {
            return *known;
        }
        let rest = self.rest(&key);
        let mut class = Class {
            matchers: self.on_address(&self.on_address, &key, rest),
            rest,
            signature: 0,
            key: key.clone(),
        };
        let signature = self.signature_of(&class);
        class.signature = self.signature_id(signature, None);
        self.classes.push(class);
        self.class_ids.insert(key, self.classes.len() - 1);
        self.classes.len() - 1
    }

    fn rest(&mut self, class: &ClassKey) -> RestId {
        let address = class.innermost.addr();
        let mut holders = self.fixed.that_hold(address);
        holders.retain(|holder| holder.contains(&class.innermost));
        let sets = self.sets.at(&holders);
        let by_name = match &class.names {
            Some(names) => self.sets.named(names, &sets, &self.ground),
            None => Vec::new(),
        };
        let key = RestKey {
            workloads: class.workloads.clone(),
            sets: (sets, by_name),
        };
        if let Some(known) = self.rest_ids.get(&key) {
            return *known;
        }
        let place = self.place_at_rest(&key);
        let holds = |(id, matcher): (MatcherId, &(Arc<EndMatch>, ByName))| {
            let of_rest = Depends::of(&matcher.0) == Depends::Workloads;
            (of_rest && selects(matcher, &place, &self.ground.sets)).then_some(id)
        };
        let asked = self.matchers.all().iter().take(self.asked);
        let rest = Rest {
            matchers: asked.enumerate().filter_map(holds).collect(),
            declares: place
                .workloads
                .iter()
                .map(|workload| {
                    let asked = self.matchers.all().get(..self.asked).unwrap_or_default();
                    Declares::of(workload, &self.port_names, asked)
                })
                .collect(),
            key: key.clone(),
        };
        self.rests.push(rest);
        self.rest_ids.insert(key, self.rests.len() - 1);
        self.rests.len() - 1
    }

    /// Those of `ids`, which depend on the address, that hold.
    fn on_address(&self, ids: &[MatcherId], class: &ClassKey, rest: RestId) -> Vec<MatcherId> {
        let inside = ids.iter().filter_map(|id| {
            let matcher = self.matchers.all().get(*id)?;
            let nets = &matcher.0.nets;
            let is_inside = nets.is_empty() || nets.iter().any(|net| net.contains(&class.innermost));
            is_inside.then_some((*id, matcher))
        });
        let mut inside = inside.peekable();
        // Most classes are outside of all the CIDRs; what is there is put together only for the others.
        let (Some(_), Some(rest)) = (inside.peek(), self.rests.get(rest)) else {
            return Vec::new();
        };
        let place = Place {
            cell: class.innermost,
            owner: class.owner,
            names: class.names.as_ref().map(Cow::Borrowed),
            ..self.place_at_rest(&rest.key)
        };
        let holds = |(_, matcher): &(MatcherId, &(Arc<EndMatch>, ByName))| {
            holds_at(&matcher.0, &place) && selects(matcher, &place, &self.ground.sets)
        };
        inside.filter(holds).map(|(id, _)| id).collect()
    }

    fn place_at_rest(&self, key: &RestKey) -> Place<'_, 'static> {
        let sample = |id: &AttributesId| self.samples.get(*id).map(|member| &member.workload);
        Place {
            cell: IpNet::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            holders: &[],
            owner: Owner::Other,
            workloads: key.workloads.iter().filter_map(sample).collect(),
            sets: key.sets.0.clone(),
            sets_by_name: key.sets.1.clone(),
            names: None,
        }
    }

    fn signed<'a>(
        &'a self,
        cells: impl Iterator<Item = (&'a IpNet, &'a ClassId)>,
    ) -> impl Iterator<Item = (IpNet, SignatureId)> {
        cells.filter_map(|(cell, class)| Some((*cell, self.classes.get(*class)?.signature)))
    }

    fn signature_of(&self, class: &Class) -> Signature {
        let rest = self.rests.get(class.rest);
        let of_rest = rest.into_iter().flat_map(|rest| &rest.matchers);
        let mut matchers: Vec<MatcherId> = of_rest.chain(&class.matchers).copied().collect();
        matchers.sort_unstable();
        let declares = rest.into_iter().flat_map(|rest| rest.declares.iter().flatten());
        Signature {
            family: class.key.family,
            owner: class.key.owner,
            matchers,
            declares: declares.cloned().collect(),
        }
    }

    fn signature_id(&mut self, signature: Signature, origin: Option<SignatureId>) -> SignatureId {
        if let Some(known) = self.signature_ids.get(&signature) {
            return *known;
        }
        let id = self.signatures.len();
        self.signature_ids.insert(signature.clone(), id);
        self.signatures.push(signature);
        self.origins.push(origin);
        id
    }

    pub(super) fn claim(&mut self, member: &Arc<Member>) {
        let known = self.attributes.get(&Attributed(Arc::clone(member))).copied();
        let attributes = known.unwrap_or_else(|| {
            self.samples.push(Arc::clone(member));
            let id = self.samples.len() - 1;
            self.attributes.insert(Attributed(Arc::clone(member)), id);
            id
        });
        for address in &member.addresses {
            self.claims.entry(*address).or_default().push(Claim {
                member: Arc::clone(member),
                attributes,
            });
        }
    }
}

fn finds(matcher: &EndMatch, workload: &Workload) -> bool {
    matcher.workload.as_ref().is_none_or(|m| m.matches(workload))
}

/// The prefixes that hold every address.
fn defaults() -> impl Iterator<Item = IpNet> {
    [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())].into_iter()
}

fn family(address: IpAddr) -> IpVersion {
    match address {
        IpAddr::V4(_) => IpVersion::V4,
        IpAddr::V6(_) => IpVersion::V6,
    }
}

impl PartialEq for Attributed {
    fn eq(&self, other: &Self) -> bool {
        attributes(&self.0.workload) == attributes(&other.0.workload)
    }
}

impl Eq for Attributed {}

impl Hash for Attributed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        attributes(&self.0.workload).hash(state);
    }
}
