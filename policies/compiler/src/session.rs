//! The compiler that keeps its state: a pod of another node that comes, changes or goes costs what its own addresses
//! cost, not what the cluster costs.
//!
//! A session lasts as long as its [`Material`]: policies, namespaces, sets, nodes and the node's own pods. When one
//! of those changes, or when a change contradicts something, the caller begins a new session; [`Session::change`]
//! says so. Identities keep their numbers within a session, and no entry is ever taken back, so a datapath that
//! has the tables of before has little to write.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use policies_ir::{
    cluster::{Cluster, Member},
    policy::PolicySet,
    tables::{IdentityId, NodeTables},
};
use typed_arena::Arena;

use crate::{
    cells::{Index, KnownPlaces, Owned, Owner, Prefixes, node_addresses},
    classes::{Classes, Numbering},
    compile::{Diagnostic, conflicts, lay_out, verdicts, write_tables},
    view::{ClusterView, PodView},
};

/// Changes after which a new session is due: what they left behind is never freed within one.
const MAX_CHANGES: usize = 10_000;

/// What a session borrows.
pub struct Material {
    view: ClusterView,
    cluster: Cluster,
    policies: PolicySet,
    diagnostics: Vec<Diagnostic>,
    /// Members that came later.
    later: Arena<Member>,
}

/// Tables that follow the pods of other nodes.
pub struct Session<'a> {
    material: &'a Material,
    pods: HashMap<(&'a str, &'a str), &'a Member>,
    claims: HashMap<IpAddr, Vec<&'a Member>>,
    nodes: BTreeMap<IpAddr, usize>,
    index: Index<'a>,
    known: KnownPlaces<'a>,
    /// Cells that are there whoever has which address, and their identities.
    fixed: Prefixes,
    cells: BTreeMap<IpNet, IdentityId>,
    numbering: Numbering<'a>,
    tables: NodeTables,
    /// Whether what a pod declares can change more than what is known of its own addresses.
    declarations_matter: bool,
    changes: usize,
}

/// The change is one for a new session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartAnew;

impl Material {
    /// All of `view`.
    pub fn new(view: ClusterView) -> Self {
        let mut diagnostics = Vec::new();
        let mut report = |policy: &str, error| {
            diagnostics.push(Diagnostic::Policy {
                policy: policy.to_owned(),
                error,
            });
        };
        let policies = view.policy_set(&mut report).enforced;
        let cluster = view.read_cluster(&mut report);
        diagnostics.extend(conflicts(&cluster));
        Self {
            view,
            cluster,
            policies,
            diagnostics,
            later: Arena::new(),
        }
    }

    /// Everything that could not be honoured as written; the tables never allow more because of it.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }
}

impl<'a> Session<'a> {
    /// A session whose tables are those of [`crate::compile()`].
    pub fn new(material: &'a Material) -> Self {
        let cluster = &material.cluster;
        let (local, rules, mut numbering, index) = lay_out(cluster, &material.policies);
        let signatures = index.cells();
        let cells = signatures
            .iter()
            .map(|(cell, signature)| (*cell, numbering.identity(signature.clone())))
            .collect();
        let classes = Classes::new(signatures, numbering);
        let tables = write_tables(&local, rules, &classes);
        let numbering = classes.into_numbering();
        let mut pods = HashMap::new();
        let mut claims: HashMap<IpAddr, Vec<&Member>> = HashMap::new();
        for member in &cluster.members {
            let workload = &member.workload;
            pods.insert((workload.namespace.as_str(), workload.name.as_str()), member);
            for address in &member.addresses {
                claims.entry(*address).or_default().push(member);
            }
        }
        Self {
            material,
            pods,
            claims,
            nodes: node_addresses(cluster),
            fixed: Prefixes::new(&index.fixed_prefixes()),
            index,
            known: KnownPlaces::default(),
            cells,
            declarations_matter: numbering.asks_for_source_names(),
            numbering,
            tables,
            changes: 0,
        }
    }

    /// The tables.
    pub fn tables(&self) -> &NodeTables {
        &self.tables
    }

    /// Follows a pod that came or changed (`now` is what it is), or went (`now` is nothing). Whether the tables
    /// changed. After an error they are those of before.
    pub fn change(&mut self, namespace: &str, name: &str, now: Option<&PodView>) -> Result<bool, StartAnew> {
        let before = self.pods.get(&(namespace, name)).copied();
        let of_node = |member: &Member| member.endpoint.is_some();
        let known_namespace = |pod: &PodView| self.material.view.namespaces.contains_key(&pod.namespace);
        if self.changes >= MAX_CHANGES
            || self.declarations_matter
            || before.is_some_and(of_node)
            || now.is_some_and(|pod| pod.endpoint.is_some() || !known_namespace(pod))
        {
            return Err(StartAnew);
        }
        let now = now.map(|pod| self.material.view.member(pod));
        if before == now.as_ref() {
            return Ok(false);
        }
        let addresses = |member: Option<&Member>| member.map(|m| m.addresses.clone()).unwrap_or_default();
        let affected: BTreeSet<IpAddr> = &addresses(before) | &addresses(now.as_ref());
        let contradicted = |address: &IpAddr| {
            let mut others = self.claims.get(address).into_iter().flatten();
            self.nodes.contains_key(address)
                || self.material.cluster.host_addresses.contains(address)
                || others.any(|member| !before.is_some_and(|before| std::ptr::eq(before, *member)))
        };
        if affected.iter().any(contradicted) {
            return Err(StartAnew);
        }
        self.changes += 1;
        let now = now.map(|member| &*self.material.later.alloc(member));
        if let Some(before) = before {
            let workload = &before.workload;
            self.pods
                .remove(&(workload.namespace.as_str(), workload.name.as_str()));
        }
        if let Some(now) = now {
            let workload = &now.workload;
            self.pods
                .insert((workload.namespace.as_str(), workload.name.as_str()), now);
        }
        let mut changed = false;
        for address in affected {
            let claims: Vec<&Member> = now
                .into_iter()
                .filter(|now| now.addresses.contains(&address))
                .collect();
            changed |= self.set(address, &claims);
        }
        Ok(changed)
    }

    /// Gives `address` to whoever claims it, and says whether the tables changed.
    fn set(&mut self, address: IpAddr, claims: &[&'a Member]) -> bool {
        match claims {
            [] => drop(self.claims.remove(&address)),
            claims => drop(self.claims.insert(address, claims.to_vec())),
        }
        let owned = Owned::of(claims, None, false);
        let nobodys = owned.is_none();
        debug_assert!(owned.as_ref().is_none_or(|owned| owned.owner == Owner::Other));
        self.index.set_owner(address, owned);
        let cell = IpNet::from(address);
        let mut holders = self.fixed.that_hold(address);
        let is_fixed = holders.last() == Some(&cell);
        if is_fixed {
            holders.pop();
        }
        // The default prefix of each family holds everything else.
        let around = holders.last().and_then(|holder| self.cells.get(holder)).copied();
        if nobodys && !is_fixed {
            self.cells.remove(&cell);
            return self.tables.identities.remove(&cell).is_some();
        }
        holders.push(cell);
        let signature = self.index.signature(&holders, cell, &mut self.known);
        let known = self.numbering.identities();
        let identity = self.numbering.identity(signature);
        self.cells.insert(cell, identity);
        if self.numbering.identities() > known {
            for (program, entries) in self.numbering.of(identity) {
                let tables = self.tables.endpoints.entry(program.endpoint).or_default();
                tables
                    .verdicts
                    .extend(verdicts(program.direction, identity, entries));
            }
        }
        match Some(identity) == around {
            true => self.tables.identities.remove(&cell).is_some(),
            false => self.tables.identities.insert(cell, identity) != Some(identity),
        }
    }
}
