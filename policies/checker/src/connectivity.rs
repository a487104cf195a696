//! Everything that may pass between workloads and the outside, in as few lines as say it exactly.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use policies_ir::policy::IpVersion;
use serde::Serialize;

use crate::{
    model::{End, FAMILIES, Model, SpaceId},
    naming,
    region::Region,
    space::ServiceText,
};

/// Name of the node that a pod is on, for each pod its own.
pub const OWN_NODE: &str = "own node";

/// Whether workloads stand together that may exchange the same with everyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// They do.
    Equal,
    /// Each stands alone.
    Expanded,
}

/// All allowed connections of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connectivity {
    /// Workloads that may exchange the same with everyone, group by group.
    pub workloads: Vec<WorkloadGroup>,
    /// Addresses that no workload has and that may exchange the same with everyone, group by group.
    pub outside: Vec<AddressGroup>,
    /// What may pass. Pairs that are not here may exchange nothing.
    pub connections: Vec<Connection>,
}

/// Workloads of one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadGroup {
    /// Its name in connections.
    pub name: String,
    /// The namespace, if they have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Names of the workloads.
    pub members: Vec<String>,
}

/// Addresses that no workload has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressGroup {
    /// Its name in connections.
    pub name: String,
    /// Networks.
    pub cidrs: Vec<IpNet>,
    /// Networks inside those that do not belong to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpNet>,
    /// Names that they are taken to have. What may pass to them may pass once a resolver has given one of these names
    /// for an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named: Option<String>,
}

/// What may pass from each of one group to each of another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Source.
    pub from: String,
    /// Destination.
    pub to: String,
    /// Family of addresses, where the other family is not the same: `IPv4` or `IPv6`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<&'static str>,
    /// The same in one line.
    pub text: String,
    /// What may pass.
    pub services: Vec<ServiceText>,
    /// Rules of the source that let it out.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub egress: BTreeSet<String>,
    /// Rules of the destination that let it in.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub ingress: BTreeSet<String>,
}

/// All connections that `model` allows. What passes always is not listed: a workload's traffic with itself, and what a node sends its
/// own pods.
pub fn connectivity(model: &Model, grouping: Grouping) -> Connectivity {
    let groups = Groups::new(model, grouping);
    let mut connections = Vec::new();
    for (from, from_name) in &groups.named {
        for (to, to_name) in &groups.named {
            let Some((source, destination)) = groups.example(model, *from, *to) else {
                continue;
            };
            for (family, space) in by_family(model, source, destination) {
                let spots = model.pairs(source, destination);
                let spots = spots.into_iter().filter(|(spot, _)| match family {
                    Some(version) => model.version(*spot) == Some(version),
                    None => true,
                });
                let (mut egress, mut ingress) = (BTreeSet::new(), BTreeSet::new());
                for (source, destination) in spots {
                    let (out, into) = model.deciders(source, destination, space);
                    egress.extend(out);
                    ingress.extend(into);
                }
                let space = model.space(space);
                connections.push(Connection {
                    from: from_name.clone(),
                    to: to_name.clone(),
                    family: family.map(family_name),
                    text: space.to_string(),
                    services: space.services(),
                    egress,
                    ingress,
                });
            }
        }
    }
    Connectivity {
        workloads: groups.workloads(model),
        outside: groups.addresses(model),
        connections,
    }
}

impl Connectivity {
    /// Lines of (from, to, services) for people: destinations that a source may send the same stand in one line, and
    /// so do addresses from which the same may come.
    pub fn lines(&self) -> Vec<[String; 3]> {
        let regions: BTreeMap<&str, Region> = self
            .outside
            .iter()
            .filter(|group| group.named.is_none())
            .map(|group| {
                let except = Region::of(group.except.iter().copied());
                let region = Region::of(group.cidrs.iter().copied()).subtract(&except);
                (group.name.as_str(), region)
            })
            .collect();
        let mut lines: Vec<(Side, Side, String)> = Vec::new();
        for connection in &self.connections {
            let text = match connection.family {
                Some(family) => format!("{} ({family})", connection.text),
                None => connection.text.clone(),
            };
            let (from, to) = (
                Side::of(&connection.from, &regions),
                Side::of(&connection.to, &regions),
            );
            match lines
                .iter_mut()
                .find(|(of, _, known)| *of == from && *known == text)
            {
                Some((_, known, _)) => known.add(to),
                None => lines.push((from, to, text)),
            }
        }
        let mut merged: Vec<(Side, Side, String)> = Vec::new();
        for (from, to, text) in lines {
            let fits = |(known, same, services): &&mut (Side, Side, String)| {
                known.workloads.is_empty() && from.workloads.is_empty() && *same == to && *services == text
            };
            match merged.iter_mut().find(fits) {
                Some((known, ..)) => known.add(from),
                None => merged.push((from, to, text)),
            }
        }
        merged
            .into_iter()
            .map(|(from, to, text)| [from.text(), to.text(), text])
            .collect()
    }
}

/// One side of a line.
#[derive(PartialEq, Eq)]
struct Side {
    workloads: Vec<String>,
    addresses: Region,
}

impl Side {
    fn of(name: &str, regions: &BTreeMap<&str, Region>) -> Self {
        match regions.get(name) {
            Some(region) => Self {
                workloads: Vec::new(),
                addresses: region.clone(),
            },
            None => Self {
                workloads: vec![name.to_owned()],
                addresses: Region::default(),
            },
        }
    }

    fn add(&mut self, other: Self) {
        self.workloads.extend(other.workloads);
        self.addresses = self.addresses.union(&other.addresses);
    }

    fn text(&self) -> String {
        let mut names = self.workloads.clone();
        if !self.addresses.is_empty() {
            names.push(naming::addresses(&self.addresses));
        }
        names.join(", ")
    }
}

/// What passes from one end to another: once where both families are alike, otherwise by family. Nothing is left out.
pub(crate) fn by_family(model: &Model, from: End, to: End) -> Vec<(Option<IpVersion>, SpaceId)> {
    let found: Vec<(IpVersion, SpaceId)> = FAMILIES
        .into_iter()
        .filter_map(|version| Some((version, model.allowed(from, to, version)?)))
        .collect();
    let alike = match found.as_slice() {
        [(_, one), (_, other)] if one == other => vec![(None, *one)],
        // The only family that the two have in common is not worth a word.
        [(_, only)] => vec![(None, *only)],
        _ => found
            .into_iter()
            .map(|(version, space)| (Some(version), space))
            .collect(),
    };
    let passes = |(_, space): &(Option<IpVersion>, SpaceId)| !model.space(*space).is_empty();
    alike.into_iter().filter(passes).collect()
}

pub(crate) fn family_name(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "IPv4",
        IpVersion::V6 => "IPv6",
    }
}

/// What both families allow from one end to another.
type Cell = [Option<SpaceId>; 2];

/// Ends that stand together.
struct Groups {
    /// Classes of each group of workloads; with [`Grouping::Expanded`] only some of a class's members.
    classes: Vec<(Vec<usize>, Vec<usize>)>,
    /// Regions of each group of addresses.
    regions: Vec<Vec<usize>>,
    /// Names, workloads first.
    named: Vec<(Group, String)>,
}

/// A group by position.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Workloads(usize),
    Addresses(usize),
    OwnNode,
}

impl Groups {
    fn new(model: &Model, grouping: Grouping) -> Self {
        let ends = model.ends();
        let matrix: Vec<Vec<Cell>> = ends
            .iter()
            .map(|from| ends.iter().map(|to| cell(model, *from, *to)).collect())
            .collect();
        let count = model.classes().len();
        let names = |end: usize| model.names_of(end - count);
        let region = |end: usize| model.outside().get(end - count).cloned().unwrap_or_default();
        let alike = |group: &[usize], end: usize| {
            let first = group.first().copied().unwrap_or(end);
            // Names that make no difference to these addresses say nothing about them.
            let as_they_are = || {
                let group = group.iter().filter(|end| names(**end).is_none());
                let all = group.fold(Region::default(), |all, end| all.union(&region(*end)));
                names(first).is_none() && region(end).subtract(&all).is_empty()
            };
            names(first) == names(end) || as_they_are()
        };
        let regions = merge(&matrix, count..count + model.outside().len(), alike);
        let members = |classes: &[usize]| {
            let mut members: Vec<usize> = classes
                .iter()
                .filter_map(|class| model.classes().get(*class))
                .flat_map(|class| class.members.clone())
                .collect();
            members.sort_by_key(|member| model.name(*member));
            members
        };
        let namespace = |class: usize| {
            let first = model.classes().get(class).and_then(|class| class.members.first());
            first.and_then(|member| naming::namespace_of(model, *member))
        };
        let classes: Vec<(Vec<usize>, Vec<usize>)> = match grouping {
            Grouping::Equal => merge(&matrix, 0..count, |group, end| {
                group.first().copied().and_then(namespace) == namespace(end)
            })
            .into_iter()
            .map(|classes| (members(&classes), classes))
            .collect(),
            Grouping::Expanded => {
                let alone = (0..count).flat_map(|class| {
                    members(&[class])
                        .into_iter()
                        .map(move |member| (vec![member], vec![class]))
                });
                alone.collect()
            }
        };
        let mut groups = Self {
            classes: Vec::new(),
            regions: regions
                .into_iter()
                .map(|group| group.into_iter().map(|end| end - count).collect())
                .collect(),
            named: Vec::new(),
        };
        groups.classes = classes
            .into_iter()
            .map(|(members, classes)| (classes, members))
            .collect();
        groups
            .classes
            .sort_by_key(|(_, members)| members.first().map(|member| model.name(*member)));
        groups.name(model);
        groups
    }

    fn name(&mut self, model: &Model) {
        let mut short: Vec<String> = self
            .classes
            .iter()
            .map(|(_, members)| naming::workloads(model, members))
            .collect();
        let mut uses: BTreeMap<String, usize> = BTreeMap::new();
        for name in &short {
            *uses.entry(name.clone()).or_default() += 1;
        }
        for (name, (_, members)) in short.iter_mut().zip(&self.classes) {
            if uses.get(name).is_some_and(|uses| *uses > 1) {
                *name = naming::all_workloads(model, members);
            }
        }
        let workloads = short
            .into_iter()
            .enumerate()
            .map(|(i, name)| (Group::Workloads(i), name));
        let mut used = BTreeSet::new();
        let addresses = (0..self.regions.len()).map(|i| {
            let region = self.shape(model, i);
            let named = self.names(model, i);
            let short = match &named {
                Some(names) => naming::named_addresses(names, &region),
                None => naming::addresses(&region),
            };
            // A name that was cut may be another's too.
            let name = if used.insert(short.clone()) {
                short
            } else {
                let names = named.into_iter().map(|names| format!("{names} in "));
                names.chain([region.to_string()]).collect()
            };
            (Group::Addresses(i), name)
        });
        let own_node = (Group::OwnNode, OWN_NODE.to_owned());
        self.named = workloads.chain(addresses).chain([own_node]).collect();
    }

    fn shape(&self, model: &Model, group: usize) -> Region {
        let regions = self.regions.get(group).map(Vec::as_slice).unwrap_or_default();
        let shapes = regions.iter().filter_map(|region| model.shape(*region));
        shapes.fold(Region::default(), |all, shape| all.union(shape))
    }

    /// Names that the addresses of a group are taken to have.
    fn names(&self, model: &Model, group: usize) -> Option<String> {
        model.named(*self.regions.get(group)?.first()?)
    }

    /// Two ends that stand for the groups; nothing if nothing is judged between them.
    fn example(&self, model: &Model, from: Group, to: Group) -> Option<(End, End)> {
        let ends = |group| -> Vec<End> {
            match group {
                Group::Workloads(i) => {
                    let classes = self.classes.get(i).map(|(classes, _)| classes.as_slice());
                    classes
                        .unwrap_or_default()
                        .iter()
                        .map(|class| End::Class(*class))
                        .collect()
                }
                Group::Addresses(i) => {
                    let regions = self.regions.get(i).map(Vec::as_slice).unwrap_or_default();
                    regions.iter().map(|region| End::Outside(*region)).collect()
                }
                Group::OwnNode => vec![End::OwnNode],
            }
        };
        if let (Group::Workloads(a), Group::Workloads(b)) = (from, to)
            && a == b
            && self.classes.get(a).is_none_or(|(_, members)| members.len() < 2)
        {
            return None;
        }
        let to = ends(to);
        let pairs = ends(from)
            .into_iter()
            .flat_map(|from| to.iter().map(move |to| (from, *to)));
        pairs.into_iter().find(|(from, to)| model.judges(*from, *to))
    }

    fn workloads(&self, model: &Model) -> Vec<WorkloadGroup> {
        let named = self.named.iter().filter_map(|(group, name)| match group {
            Group::Workloads(i) => Some((self.classes.get(*i)?, name)),
            Group::Addresses(_) | Group::OwnNode => None,
        });
        named
            .map(|((_, members), name)| WorkloadGroup {
                name: name.clone(),
                namespace: members
                    .first()
                    .and_then(|first| naming::namespace_of(model, *first)),
                members: members.iter().map(|member| model.name(*member)).collect(),
            })
            .collect()
    }

    fn addresses(&self, model: &Model) -> Vec<AddressGroup> {
        let named = self.named.iter().filter_map(|(group, name)| match group {
            Group::Addresses(i) => Some((*i, name)),
            Group::Workloads(_) | Group::OwnNode => None,
        });
        named
            .map(|(group, name)| {
                let (cidrs, except) = self.shape(model, group).nets_and_exceptions();
                AddressGroup {
                    name: name.clone(),
                    cidrs,
                    except,
                    named: self.names(model, group),
                }
            })
            .collect()
    }
}

/// Addresses are the same as sources, whatever their names, and what a node sends its pods is like what policy lets pass.
fn cell(model: &Model, from: End, to: End) -> Cell {
    let comes_in = matches!((from, to), (End::Outside(_), End::Class(_)));
    if from == End::OwnNode {
        return [None, None];
    }
    if to == End::OwnNode {
        // A pod that may send its node nothing is like one whose node is not known.
        let allowed = |version| model.allowed(from, to, version);
        return FAMILIES.map(|version| allowed(version).filter(|space| !model.space(*space).is_empty()));
    }
    match comes_in || model.comes_from_own_node(from, to) || model.judges(from, to) {
        true => FAMILIES.map(|version| model.allowed(from, to, version)),
        false => [None, None],
    }
}

/// Puts ends together that exchange the same with all others and with each other. Only those that `may` come to a group
/// do.
fn merge(
    matrix: &[Vec<Cell>],
    ends: std::ops::Range<usize>,
    may: impl Fn(&[usize], usize) -> bool,
) -> Vec<Vec<usize>> {
    let at = |from: usize, to: usize| {
        matrix
            .get(from)
            .and_then(|row| row.get(to))
            .copied()
            .unwrap_or_default()
    };
    let total = matrix.len();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for end in ends {
        let fits = |group: &&mut Vec<usize>| {
            let Some(first) = group.first().copied() else {
                return false;
            };
            if !may(group, end) {
                return false;
            }
            let mut others = (0..total).filter(|other| *other != end && !group.contains(other));
            if !others.all(|other| at(first, other) == at(end, other) && at(other, first) == at(other, end)) {
                return false;
            }
            // Among themselves all must be alike too; a class of one has no word to say about itself.
            let all: Vec<usize> = group.iter().copied().chain([end]).collect();
            let mut inner: BTreeSet<Cell> = BTreeSet::new();
            for from in &all {
                inner.extend(
                    all.iter()
                        .map(|to| at(*from, *to))
                        .filter(|cell| *cell != [None, None]),
                );
            }
            inner.len() <= 1
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(end),
            None => groups.push(vec![end]),
        }
    }
    groups
}
