//! What judges host endpoints of a node while the tables that are wanted for them cannot be written.

use std::{collections::BTreeMap, sync::Arc};

use policies_ir::{
    cluster::{Cluster, Member},
    policy::{Failsafe, PolicySet, Workload, WorkloadKind},
    tables::{EndpointTables, NodeTables},
};

use crate::{compile::compile_policies, view::HostEndpointIds};

/// Tables in which the node may use its failsafe ports and nothing else, and nothing passes through it. A few entries for
/// each, whatever else there is in the cluster.
pub fn closed_hosts(hosts: &BTreeMap<String, HostEndpointIds>, failsafe: &Arc<Failsafe>) -> NodeTables {
    let member = |(name, ids): (&String, &HostEndpointIds)| Member {
        workload: Workload {
            kind: WorkloadKind::HostEndpoint,
            name: name.clone(),
            ..Workload::default()
        },
        endpoint: Some(ids.local),
        ..Member::default()
    };
    let cluster = Cluster {
        members: hosts.iter().map(member).collect(),
        ..Cluster::default()
    };
    let policies = PolicySet {
        failsafe: Arc::clone(failsafe),
        ..PolicySet::default()
    };
    let mut tables = compile_policies(&cluster, &policies);
    let forwarded = hosts.values().map(|ids| ids.forwarded);
    tables
        .endpoints
        .extend(forwarded.map(|id| (id, Arc::new(EndpointTables::default()))));
    tables
}
