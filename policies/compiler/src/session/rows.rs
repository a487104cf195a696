//! What each program answers about each kind of address, and which addresses that makes alike.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use ipnet::IpNet;
use policies_ir::{
    align::align_identities,
    tables::{EndpointId, EndpointTables, IdentityId, Insides, NodeTables},
    verdicts::ClassVerdicts,
};

use super::places::SignatureId;
use crate::{
    cells::{Owner, Signature},
    classes::without_redundant,
    compile::{SharedVerdicts, insides},
    program::{Answer, Program, Visible},
    sources::Sources,
};

type Slot = usize;
type AnswerId = usize;
type Identity = usize;

/// The answer that denies everything, also that of a slot without a program.
const NOTHING: AnswerId = 0;

/// Programs, and what they answer.
pub(super) struct Rows {
    slots: Vec<Option<Asked>>,
    free: Vec<Slot>,
    /// Where each endpoint's programs are, ingress first.
    by_endpoint: BTreeMap<EndpointId, [Slot; 2]>,
    answers: Vec<Arc<Answer>>,
    answer_ids: HashMap<Arc<Answer>, AnswerId>,
    /// What is said about each identity.
    rows: Vec<Row>,
    /// Identities by the sums of their rows.
    by_sum: HashMap<u64, Vec<Identity>>,
    /// Identity of each signature.
    identities: Vec<Option<Identity>>,
    /// The number of each identity in the tables.
    outer: Vec<IdentityId>,
    next_outer: u32,
    shared: SharedVerdicts,
}

/// The answer of each slot about one identity.
#[derive(Clone, Default)]
struct Row {
    /// What is missing at the end is nothing.
    answers: Vec<AnswerId>,
    /// Over all answers but nothing. An answer that becomes another changes it without a look at the others.
    sum: u64,
}

struct Asked {
    program: Program,
    sources: Arc<Sources>,
    seen: HashMap<Visible, AnswerId>,
}

impl Default for Rows {
    fn default() -> Self {
        let nothing = Arc::new(Answer::default());
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_endpoint: BTreeMap::new(),
            answers: vec![Arc::clone(&nothing)],
            answer_ids: [(nothing, NOTHING)].into(),
            rows: Vec::new(),
            by_sum: HashMap::new(),
            identities: Vec::new(),
            outer: Vec::new(),
            next_outer: 1,
            shared: SharedVerdicts::default(),
        }
    }
}

impl Rows {
    pub(super) fn identities(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn endpoints(&self) -> impl Iterator<Item = EndpointId> {
        self.by_endpoint.keys().copied()
    }

    /// Most kinds of addresses that a program tells apart at its own end.
    pub(super) fn inside_kinds(&self) -> usize {
        let asked = self.slots.iter().flatten();
        asked.map(|asked| asked.program.inside_kinds()).max().unwrap_or(0)
    }

    /// How much there is of what never goes.
    pub(super) fn size(&self) -> usize {
        self.rows.len() + self.answers.len() + self.shared.len()
    }

    /// Number in the tables of an identity.
    pub(super) fn outer(&self, identity: Identity) -> IdentityId {
        // Every identity got one when it was made; 0 is nobody's.
        self.outer.get(identity).copied().unwrap_or(IdentityId(0))
    }

    /// Number in the tables of addresses with this signature.
    pub(super) fn of(&self, signature: SignatureId) -> Option<IdentityId> {
        let identity = self.identities.get(signature).copied().flatten()?;
        self.outer.get(identity).copied()
    }

    /// What each endpoint says about an identity, and what that is at its own end.
    pub(super) fn said(&mut self, identity: Identity) -> Vec<(EndpointId, Arc<ClassVerdicts>, Insides)> {
        let Self {
            by_endpoint,
            rows,
            answers,
            shared,
            ..
        } = self;
        let Some(row) = rows.get(identity) else {
            return Vec::new();
        };
        let answer = |answer: AnswerId| answers.get(answer).map(AsRef::as_ref);
        let of_endpoints = by_endpoint.iter().map(|(endpoint, slots)| {
            let own = slots.map(|slot| row.of(slot));
            (*endpoint, shared.of(own, answer), insides(own, answer))
        });
        of_endpoints.collect()
    }

    /// The tables of an endpoint, if it has programs.
    pub(super) fn table(&mut self, endpoint: EndpointId) -> Option<EndpointTables> {
        let Self {
            slots,
            by_endpoint,
            answers,
            rows,
            outer,
            shared,
            ..
        } = self;
        let own = *by_endpoint.get(&endpoint)?;
        let mut tables = EndpointTables::default();
        let asked = slots.get(own[0])?.as_ref()?;
        tables.sources = asked.sources.table();
        let answer = |answer: AnswerId| answers.get(answer).map(AsRef::as_ref);
        for (row, number) in rows.iter().zip(outer) {
            let own = own.map(|slot| row.of(slot));
            tables.verdicts.set_class(*number, shared.of(own, answer));
            let insides = insides(own, answer);
            if !insides.is_default() {
                tables.insides.insert(*number, insides);
            }
        }
        Some(tables)
    }

    /// Gives an endpoint new programs; [`Rows::answer_anew`] is to be called with the slots.
    pub(super) fn install(
        &mut self,
        endpoint: EndpointId,
        programs: [Program; 2],
        sources: Sources,
    ) -> Vec<Slot> {
        let slots = match self.by_endpoint.get(&endpoint) {
            Some(slots) => *slots,
            None => [self.slot(), self.slot()],
        };
        self.by_endpoint.insert(endpoint, slots);
        let sources = Arc::new(sources);
        for (program, slot) in programs.into_iter().zip(slots) {
            if let Some(place) = self.slots.get_mut(slot) {
                *place = Some(Asked {
                    program,
                    sources: Arc::clone(&sources),
                    seen: HashMap::new(),
                });
            }
        }
        slots.to_vec()
    }

    /// Takes an endpoint's programs away, likewise.
    pub(super) fn remove(&mut self, endpoint: EndpointId) -> Vec<Slot> {
        let slots = self.by_endpoint.remove(&endpoint);
        for slot in slots.into_iter().flatten() {
            if let Some(place) = self.slots.get_mut(slot) {
                *place = None;
            }
            self.free.push(slot);
        }
        slots.into_iter().flatten().collect()
    }

    /// Tells programs what there may be at their own end. Those to which some of it is new are to be asked anew.
    pub(super) fn learn(&mut self, signatures: &[Signature], live: &[bool]) -> Vec<(EndpointId, Slot)> {
        let mut learned = Vec::new();
        for (endpoint, slots) in &self.by_endpoint {
            for slot in slots {
                let Some(asked) = self.slots.get_mut(*slot).and_then(Option::as_mut) else {
                    continue;
                };
                // Nobody is sure who has an address that several claim.
                let sure = signatures
                    .iter()
                    .zip(live)
                    .filter(|(signature, live)| **live && signature.owner != Owner::Contested);
                if asked.program.learn(sure.map(|(signature, _)| signature)) {
                    asked.seen.clear();
                    learned.push((*endpoint, *slot));
                }
            }
        }
        learned
    }

    /// Takes signatures that were split off from others, whose identity they share until programs tell them apart.
    pub(super) fn split_off(&mut self, all: usize, origin: impl Fn(SignatureId) -> Option<SignatureId>) {
        for signature in self.identities.len()..all {
            let identity =
                origin(signature).and_then(|origin| self.identities.get(origin).copied().flatten());
            self.identities.push(identity);
        }
    }

    /// Asks the programs in `slots` about every signature that has an identity and is `live`. Whether a signature got
    /// another identity. Of those that are not live nothing is known from then on.
    pub(super) fn answer_anew(&mut self, slots: &[Slot], signatures: &[Signature], live: &[bool]) -> bool {
        for (identity, live) in self.identities.iter_mut().zip(live) {
            if !live {
                *identity = None;
            }
        }
        if slots.is_empty() {
            return false;
        }
        // The first of each identity keeps the number.
        let mut first: HashMap<Identity, Vec<AnswerId>> = HashMap::new();
        let mut apart: BTreeMap<(Identity, Vec<AnswerId>), Vec<SignatureId>> = BTreeMap::new();
        let known = self.identities.clone();
        for (signature, identity) in known.into_iter().enumerate() {
            let (Some(identity), Some(asked)) = (identity, signatures.get(signature)) else {
                continue;
            };
            let answers: Vec<AnswerId> = slots.iter().map(|slot| self.answer(*slot, asked)).collect();
            match first.entry(identity) {
                Entry::Vacant(place) => drop(place.insert(answers)),
                Entry::Occupied(first) if *first.get() == answers => {}
                Entry::Occupied(_) => apart.entry((identity, answers)).or_default().push(signature),
            }
        }
        for (identity, answers) in first {
            self.write_row(identity, slots, &answers);
        }
        let moved = !apart.is_empty();
        for ((identity, answers), members) in apart {
            let mut row = self.rows.get(identity).cloned().unwrap_or_default();
            row.set_all(slots, &answers);
            let identity = self.identity(row);
            for signature in members {
                if let Some(place) = self.identities.get_mut(signature) {
                    *place = Some(identity);
                }
            }
        }
        moved
    }

    /// Gives an identity to every signature that is `live` and has none.
    pub(super) fn number(&mut self, signatures: &[Signature], live: &[bool]) {
        self.identities.resize(signatures.len(), None);
        for (signature, asked) in signatures.iter().enumerate() {
            let is_live = live.get(signature).is_some_and(|live| *live);
            if !is_live || self.identities.get(signature) != Some(&None) {
                continue;
            }
            let slots = 0..self.slots.len();
            let mut row = Row::default();
            for slot in slots {
                row.set(slot, self.answer(slot, asked));
            }
            let identity = self.identity(row);
            if let Some(place) = self.identities.get_mut(signature) {
                *place = Some(identity);
            }
        }
    }

    /// The same at the start, in the numbers of `previous` as far as that goes.
    pub(super) fn number_all(
        &mut self,
        signatures: &[Signature],
        live: &[bool],
        previous: &NodeTables,
        cells: impl Iterator<Item = (IpNet, SignatureId)>,
    ) {
        self.number(signatures, live);
        let numbered = cells.filter_map(|(cell, signature)| Some((cell, self.of(signature)?)));
        let identities = without_redundant(numbered).collect();
        let aligned = align_identities(&identities, &previous.identities);
        let used = previous.identities.values().chain(aligned.values());
        self.next_outer = used.map(|id| id.0).max().unwrap_or(0).saturating_add(1);
        for number in &mut self.outer {
            *number = match aligned.get(number) {
                Some(aligned) => *aligned,
                // Nobody's now; it may be somebody's later.
                None => {
                    self.next_outer = self.next_outer.saturating_add(1);
                    IdentityId(self.next_outer - 1)
                }
            };
        }
    }

    fn slot(&mut self) -> Slot {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        })
    }

    fn answer(&mut self, slot: Slot, signature: &Signature) -> AnswerId {
        let Some(asked) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return NOTHING;
        };
        if signature.owner == Owner::Contested {
            return NOTHING;
        }
        let visible = asked.program.visible(signature);
        if let Some(known) = asked.seen.get(&visible) {
            return *known;
        }
        let said = Arc::new(asked.program.answer(&visible, &asked.sources));
        let answer = *self.answer_ids.entry(Arc::clone(&said)).or_insert_with(|| {
            self.answers.push(said);
            self.answers.len() - 1
        });
        asked.seen.insert(visible, answer);
        answer
    }

    /// From now on `slots` say this about an identity.
    fn write_row(&mut self, identity: Identity, slots: &[Slot], answers: &[AnswerId]) {
        let Some(row) = self.rows.get_mut(identity) else {
            return;
        };
        let before = row.sum;
        row.set_all(slots, answers);
        let now = row.sum;
        if before == now {
            return;
        }
        if let Entry::Occupied(mut alike) = self.by_sum.entry(before) {
            alike.get_mut().retain(|other| *other != identity);
            if alike.get().is_empty() {
                alike.remove();
            }
        }
        self.by_sum.entry(now).or_default().push(identity);
    }

    /// The identity about which everybody says this.
    fn identity(&mut self, row: Row) -> Identity {
        let alike = self.by_sum.get(&row.sum).into_iter().flatten();
        if let Some(known) = alike
            .copied()
            .find(|identity| self.rows.get(*identity).is_some_and(|other| other.is(&row)))
        {
            return known;
        }
        let identity = self.rows.len();
        self.by_sum.entry(row.sum).or_default().push(identity);
        self.rows.push(row);
        self.outer.push(IdentityId(self.next_outer));
        self.next_outer = self.next_outer.saturating_add(1);
        identity
    }
}

impl Row {
    fn of(&self, slot: Slot) -> AnswerId {
        self.answers.get(slot).copied().unwrap_or(NOTHING)
    }

    fn set(&mut self, slot: Slot, answer: AnswerId) {
        if self.answers.len() <= slot && answer != NOTHING {
            self.answers.resize(slot + 1, NOTHING);
        }
        if let Some(place) = self.answers.get_mut(slot) {
            self.sum = self.sum.wrapping_sub(summand(slot, *place));
            *place = answer;
            self.sum = self.sum.wrapping_add(summand(slot, answer));
        }
    }

    fn set_all(&mut self, slots: &[Slot], answers: &[AnswerId]) {
        for (slot, answer) in slots.iter().zip(answers) {
            self.set(*slot, *answer);
        }
    }

    /// Whether both say the same: they may differ in how many slots without an answer they end with.
    fn is(&self, other: &Self) -> bool {
        let (short, long) = match self.answers.len() <= other.answers.len() {
            true => (&self.answers, &other.answers),
            false => (&other.answers, &self.answers),
        };
        let (common, rest) = long.split_at(short.len());
        common == short && rest.iter().all(|answer| *answer == NOTHING)
    }
}

/// What an answer adds to the sum of its row.
fn summand(slot: Slot, answer: AnswerId) -> u64 {
    if answer == NOTHING {
        return 0;
    }
    let mixed = (slot as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (answer as u64);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 27)
}
