//! From cells to identities: cells for which every program answers alike become one.

use std::collections::{BTreeMap, HashMap};

use ipnet::IpNet;
use policies_ir::tables::{EndpointId, IdentityId};

use crate::{
    cells::{Owner, Signature},
    flatten::Entries,
    program::{Program, Visible},
    sources::Sources,
};

/// The identities of a node and what each program answers for them.
pub(crate) struct Classes {
    /// Identity of each prefix; the longest prefix is right.
    pub(crate) identities: BTreeMap<IpNet, IdentityId>,
    /// For each identity, the number of each program's answer.
    rows: BTreeMap<IdentityId, Vec<usize>>,
    /// The distinct answers.
    pub(crate) answers: Vec<Entries>,
}

impl Classes {
    /// Numbers are given in the order of the prefixes, from 1.
    pub(crate) fn new(
        cells: &BTreeMap<IpNet, Signature>,
        programs: &[Program<'_>],
        sources: &BTreeMap<EndpointId, Sources>,
    ) -> Self {
        let mut asked = Asked::new(programs, sources);
        let mut by_signature: BTreeMap<&Signature, IdentityId> = BTreeMap::new();
        let mut by_row: HashMap<Vec<usize>, IdentityId> = HashMap::new();
        let mut next = 1;
        let numbered = cells.iter().map(|(cell, signature)| {
            let identity = *by_signature.entry(signature).or_insert_with(|| {
                *by_row.entry(asked.row(signature)).or_insert_with(|| {
                    next += 1;
                    IdentityId(next - 1)
                })
            });
            (*cell, identity)
        });
        let identities = without_redundant(numbered);
        let rows = by_row
            .into_iter()
            .map(|(row, identity)| (identity, row))
            .collect();
        let mut answers: Vec<(Entries, usize)> = asked.numbers.into_iter().collect();
        answers.sort_unstable_by_key(|(_, number)| *number);
        Self {
            identities,
            rows,
            answers: answers.into_iter().map(|(entries, _)| entries).collect(),
        }
    }

    /// The number of the answer of the program in `position`, by identity.
    pub(crate) fn numbers(&self, position: usize) -> impl Iterator<Item = (IdentityId, usize)> {
        self.rows
            .iter()
            .filter_map(move |(identity, row)| Some((*identity, *row.get(position)?)))
    }

    /// The answers of the program in `position`, by identity.
    pub(crate) fn answers(&self, position: usize) -> impl Iterator<Item = (IdentityId, &Entries)> {
        self.rows
            .iter()
            .filter_map(move |(identity, row)| Some((*identity, self.answers.get(*row.get(position)?)?)))
    }
}

/// Asks programs, each question once, and numbers the answers.
struct Asked<'a> {
    programs: &'a [Program<'a>],
    sources: &'a BTreeMap<EndpointId, Sources>,
    seen: Vec<HashMap<Visible, usize>>,
    numbers: HashMap<Entries, usize>,
}

impl<'a> Asked<'a> {
    fn new(programs: &'a [Program<'a>], sources: &'a BTreeMap<EndpointId, Sources>) -> Self {
        let seen = programs.iter().map(|_| HashMap::new()).collect();
        Self {
            programs,
            sources,
            seen,
            numbers: HashMap::new(),
        }
    }

    fn row(&mut self, signature: &Signature) -> Vec<usize> {
        let (numbers, sources) = (&mut self.numbers, self.sources);
        let mut number = |entries: Entries| {
            let next = numbers.len();
            *numbers.entry(entries).or_insert(next)
        };
        let asked = self.programs.iter().zip(&mut self.seen).map(|(program, seen)| {
            if signature.owner == Owner::Contested {
                return number(Entries::new());
            }
            let visible = program.visible(signature);
            if let Some(known) = seen.get(&visible) {
                return *known;
            }
            // An endpoint that is not here has too many classes of sources, and is denied everything.
            let sources = sources.get(&program.endpoint);
            let answer =
                number(sources.map_or_else(Entries::new, |sources| program.entries(&visible, sources)));
            seen.insert(visible, answer);
            answer
        });
        asked.collect()
    }
}

/// Leaves out prefixes whose next shorter prefix has the same identity, but never the default prefix of a
/// family: IPv4 stands inside IPv6 in the kernel and must not fall through to it.
fn without_redundant(numbered: impl Iterator<Item = (IpNet, IdentityId)>) -> BTreeMap<IpNet, IdentityId> {
    let mut holders: Vec<(IpNet, IdentityId)> = Vec::new();
    let mut kept = BTreeMap::new();
    for (prefix, identity) in numbered {
        while holders
            .last()
            .is_some_and(|(holder, _)| !holder.contains(&prefix))
        {
            holders.pop();
        }
        if holders.last().is_none_or(|(_, holder)| *holder != identity) {
            kept.insert(prefix, identity);
        }
        holders.push((prefix, identity));
    }
    kept
}
