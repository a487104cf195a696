//! Which names flows rest on: those go on with the flow, so that a long download is not cut by a short TTL. A flow that somebody
//! else opened, or that another rule allows, rests on none, or whoever comes to have an address could hold on to its name.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use agent_resolver::InUse;
use agent_telemetry::Names;
use ebpf_loader::OpenedFlow;
use policies_compiler::NamedRules;
use policies_ir::{policy::DomainMatch, tables::DecidedBy};

/// What flows to `addresses` rest on. `wanted` are the names that any rule asks for.
pub(super) fn names_in_use(
    flows: &BTreeSet<OpenedFlow>,
    addresses: &BTreeSet<IpAddr>,
    names: &Names,
    (named, wanted): (&NamedRules, &BTreeSet<DomainMatch>),
) -> InUse {
    let mut in_use: InUse = BTreeMap::new();
    for flow in flows.iter().filter(|flow| addresses.contains(&flow.peer)) {
        let known = names.of(flow.endpoint, flow.epoch);
        let patterns: Vec<&DomainMatch> = match known.decided_by(flow.rule) {
            Some(DecidedBy::Rule(rule)) if known.is_exact => named.behind(&rule).collect(),
            Some(DecidedBy::Builtin(_)) => named.passing.iter().collect(),
            // It has been silent since tables that are long gone, and is judged anew with its next packet.
            Some(DecidedBy::Rule(_)) | None => wanted.iter().collect(),
        };
        if !patterns.is_empty() {
            in_use
                .entry(flow.peer)
                .or_default()
                .extend(patterns.into_iter().cloned());
        }
    }
    in_use
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use agent_telemetry::Snapshot;
    use policies_ir::tables::{BuiltinRule, EndpointId, NodeTables, RuleId, RuleName};

    use super::*;

    fn patterns(texts: &[&str]) -> BTreeSet<DomainMatch> {
        let read = texts.iter().map(|text| DomainMatch::parse(text).unwrap());
        read.collect()
    }

    #[test]
    fn a_flow_holds_the_names_of_the_rule_that_allowed_it_and_no_others() {
        let rule = |policy: &str| RuleName {
            tier: "default".to_owned(),
            policy: policy.to_owned(),
            rule: Some(0),
        };
        let names = Names::new();
        names.publish(Snapshot {
            tables: Arc::new(NodeTables {
                rules: vec![rule("by-name"), rule("by-net")],
                ..NodeTables::default()
            }),
            changes: [(EndpointId(7), 3)].into(),
            ..Snapshot::default()
        });
        let named = NamedRules {
            allowing: [(rule("by-name"), patterns(&["*.example.test"]))].into(),
            passing: BTreeSet::new(),
        };
        let wanted = patterns(&["*.example.test", "staged.test"]);
        let address: IpAddr = "203.0.113.9".parse().unwrap();
        let held = |named: &NamedRules, rule: RuleId, epoch: u32| {
            let flow = OpenedFlow {
                endpoint: EndpointId(7),
                peer: address,
                rule,
                epoch,
            };
            let in_use = |addresses| names_in_use(&[flow].into(), &addresses, &names, (named, &wanted));
            assert_eq!(in_use(BTreeSet::new()), InUse::new(), "of no interest");
            in_use([address].into()).remove(&address).unwrap_or_default()
        };
        assert_eq!(held(&named, RuleId(64), 3), patterns(&["*.example.test"]));
        assert_eq!(held(&named, RuleId(65), 3), BTreeSet::new());
        assert_eq!(held(&named, BuiltinRule::NoPolicy.id(), 3), BTreeSet::new());
        assert_eq!(held(&named, RuleId(65), 2), wanted, "nobody knows");
        // A rule by name let it pass on to the one that decided.
        let passed = NamedRules {
            passing: patterns(&["cdn.net"]),
            ..named
        };
        assert_eq!(held(&passed, RuleId(65), 3), patterns(&["cdn.net"]));
        assert_eq!(
            held(&passed, BuiltinRule::NoPolicy.id(), 3),
            patterns(&["cdn.net"])
        );
    }
}
