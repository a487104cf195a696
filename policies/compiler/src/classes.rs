//! From cells to identities: cells for which every program answers alike become one.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use ipnet::IpNet;
use policies_ir::tables::{Direction, EndpointId, IdentityId};

use crate::{
    cells::{Owner, Signature},
    program::{Answer, Program, Visible},
    sources::Sources,
};

/// The identities of a node and what each program answers for them.
pub(crate) struct Classes {
    /// Identity of each prefix; the longest prefix is right.
    pub(crate) identities: BTreeMap<IpNet, IdentityId>,
    numbering: Numbering,
}

impl Classes {
    /// Numbers are given in the order of the prefixes, from 1.
    pub(crate) fn new(cells: BTreeMap<IpNet, Signature>, mut numbering: Numbering) -> Self {
        numbering.learn(&cells);
        let mut classes = Self {
            identities: BTreeMap::new(),
            numbering,
        };
        classes.identities = classes.number(cells);
        classes
    }

    /// The identity of each prefix if these are the cells.
    pub(crate) fn number(&mut self, cells: BTreeMap<IpNet, Signature>) -> BTreeMap<IpNet, IdentityId> {
        let numbered: Vec<(IpNet, IdentityId)> = cells
            .into_iter()
            .map(|(cell, signature)| (cell, self.numbering.identity(signature)))
            .collect();
        without_redundant(numbered.into_iter()).collect()
    }

    pub(crate) fn programs(&self) -> &[Program] {
        &self.numbering.programs
    }

    pub(crate) fn sources(&self) -> &BTreeMap<EndpointId, Sources> {
        &self.numbering.sources
    }

    /// The number of the answer of the program in `position`, by identity.
    pub(crate) fn numbers(&self, position: usize) -> impl Iterator<Item = (IdentityId, usize)> {
        self.numbering
            .rows
            .iter()
            .filter_map(move |(identity, row)| Some((*identity, *row.get(position)?)))
    }

    /// The numbers of what each endpoint answers about each identity, ingress first.
    pub(crate) fn of_endpoints(&self) -> impl Iterator<Item = (EndpointId, IdentityId, [usize; 2])> {
        let mut positions: BTreeMap<EndpointId, [usize; 2]> = BTreeMap::new();
        for (position, program) in self.programs().iter().enumerate() {
            // Every endpoint has a program for each direction.
            let [ingress, egress] = positions.entry(program.endpoint).or_default();
            match program.direction {
                Direction::Ingress => *ingress = position,
                Direction::Egress => *egress = position,
            }
        }
        positions.into_iter().flat_map(|(endpoint, [ingress, egress])| {
            self.numbering.rows.iter().filter_map(move |(identity, row)| {
                let answers = [*row.get(ingress)?, *row.get(egress)?];
                Some((endpoint, *identity, answers))
            })
        })
    }

    /// The answer of this number.
    pub(crate) fn answer(&self, number: usize) -> Option<&Answer> {
        self.numbering.answers.get(number).map(Rc::as_ref)
    }

    /// The distinct answers by their numbers.
    pub(crate) fn into_answers(self) -> Vec<Answer> {
        let Numbering { answers, numbers, .. } = self.numbering;
        drop(numbers);
        answers.into_iter().map(Rc::unwrap_or_clone).collect()
    }
}

/// Numbers identities as signatures come, asking programs each question once.
pub(crate) struct Numbering {
    programs: Vec<Program>,
    sources: BTreeMap<EndpointId, Sources>,
    /// What each program was asked.
    seen: Vec<HashMap<Visible, usize>>,
    numbers: HashMap<Rc<Answer>, usize>,
    answers: Vec<Rc<Answer>>,
    by_signature: HashMap<Signature, IdentityId>,
    by_row: HashMap<Vec<usize>, IdentityId>,
    /// For each identity, the number of each program's answer.
    rows: BTreeMap<IdentityId, Vec<usize>>,
}

impl Numbering {
    pub(crate) fn new(programs: Vec<Program>, sources: BTreeMap<EndpointId, Sources>) -> Self {
        Self {
            seen: programs.iter().map(|_| HashMap::new()).collect(),
            programs,
            sources,
            numbers: HashMap::new(),
            answers: Vec::new(),
            by_signature: HashMap::new(),
            by_row: HashMap::new(),
            rows: BTreeMap::new(),
        }
    }

    /// The identity of addresses with this signature: a new one if a program answers otherwise than for all others.
    pub(crate) fn identity(&mut self, signature: Signature) -> IdentityId {
        if let Some(known) = self.by_signature.get(&signature) {
            return *known;
        }
        let row = self.row(&signature);
        let next = IdentityId(
            u32::try_from(self.rows.len())
                .unwrap_or(u32::MAX)
                .saturating_add(1),
        );
        let identity = *self.by_row.entry(row.clone()).or_insert(next);
        self.rows.entry(identity).or_insert(row);
        self.by_signature.insert(signature, identity);
        identity
    }

    /// Tells programs what there may be at their own end; nobody is sure who has an address that several claim.
    fn learn(&mut self, cells: &BTreeMap<IpNet, Signature>) {
        for program in &mut self.programs {
            let sure = |signature: &&Signature| signature.owner != Owner::Contested;
            program.learn(cells.values().filter(sure));
        }
    }

    fn row(&mut self, signature: &Signature) -> Vec<usize> {
        let Self {
            programs,
            sources,
            seen,
            numbers,
            answers,
            ..
        } = self;
        let mut number = |answer: Answer| {
            let answer = Rc::new(answer);
            *numbers.entry(Rc::clone(&answer)).or_insert_with(|| {
                answers.push(answer);
                answers.len() - 1
            })
        };
        let asked = programs.iter().zip(seen).map(|(program, seen)| {
            if signature.owner == Owner::Contested {
                return number(Answer::default());
            }
            let visible = program.visible(signature);
            if let Some(known) = seen.get(&visible) {
                return *known;
            }
            let sources = sources.get(&program.endpoint);
            let answer =
                number(sources.map_or_else(Answer::default, |sources| program.answer(&visible, sources)));
            seen.insert(visible, answer);
            answer
        });
        asked.collect()
    }
}

/// Leaves out prefixes whose next shorter prefix has the same identity, but never the default prefix of a
/// family: IPv4 stands inside IPv6 in the kernel and must not fall through to it.
pub(crate) fn without_redundant(
    numbered: impl Iterator<Item = (IpNet, IdentityId)>,
) -> impl Iterator<Item = (IpNet, IdentityId)> {
    let mut holders: Vec<(IpNet, IdentityId)> = Vec::new();
    numbered.filter(move |(prefix, identity)| {
        while holders.last().is_some_and(|(holder, _)| !holder.contains(prefix)) {
            holders.pop();
        }
        let counts = holders.last().is_none_or(|(_, holder)| holder != identity);
        holders.push((*prefix, *identity));
        counts
    })
}
