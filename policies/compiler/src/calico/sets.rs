//! NetworkSet and GlobalNetworkSet.

use std::sync::Arc;

use api::{calico, selector::Labels};
use policies_ir::{
    cluster::NetworkSet,
    policy::{Action, DomainMatch, PolicySet, ProfileRules, Rule, Workload, WorkloadKind, WorkloadMatch},
};

use crate::{
    calico::rules::deny_all,
    field::{Errors, Path, read_net, within_limit, wrong},
};

/// Names of one set. Calico has no limit; the resolver asks each answer whether it fits one of them.
const MAX_DOMAINS: usize = 4096;
/// Addresses of one set. Calico has no limit; this one keeps a set within what the kernel's table holds.
const MAX_NETS: usize = 65_536;

/// A set, as selectors find it. An address that cannot be understood is not in it; what then matches less is a
/// condition that wants the set, what matches more is one that excludes it: see [`close_over`].
pub(crate) fn read_network_set(
    kind: &'static str,
    object: &calico::NetworkSet,
    namespace_labels: Option<Labels>,
    errors: &mut Errors,
) -> NetworkSet {
    let labels = object.metadata.labels.clone().unwrap_or_default();
    if labels.contains_key(Workload::NAMESPACE_LABEL) {
        let problem = format!("label {} cannot be set by hand", Workload::NAMESPACE_LABEL);
        let path = Path::Root("metadata");
        wrong(
            errors,
            &path.field("labels"),
            problem,
            "leave it out; the set's namespace is its own",
        );
    }
    let nets_path = Path::SPEC.field("nets");
    within_limit(object.spec.nets.len(), MAX_NETS, "nets", &nets_path, errors);
    let mut nets = Vec::new();
    for (i, text) in object.spec.nets.iter().enumerate().take(MAX_NETS) {
        nets.extend(read_net(text, &nets_path.index(i), errors));
    }
    let domains_path = Path::SPEC.field("allowedEgressDomains");
    let wanted = &object.spec.allowed_egress_domains;
    within_limit(wanted.len(), MAX_DOMAINS, "names", &domains_path, errors);
    let mut domains = Vec::new();
    for (i, text) in wanted.iter().enumerate().take(MAX_DOMAINS) {
        domains.extend(read_domain(text, &domains_path.index(i), errors));
    }
    let namespace = match kind {
        "GlobalNetworkSet" => String::new(),
        _ => object.metadata.namespace.clone().unwrap_or_default(),
    };
    NetworkSet {
        workload: Workload {
            kind: WorkloadKind::NetworkSet,
            namespace,
            name: object.metadata.name.clone().unwrap_or_default(),
            labels,
            namespace_labels,
            ..Workload::default()
        },
        nets,
        domains,
    }
}

/// Closes the rules that depend on where `doubtful` are, of which not every address could be understood: any other
/// address may be theirs as well. Rules that allow what is surely theirs stay.
pub(crate) fn close_over(policies: &mut PolicySet, doubtful: &[Workload]) {
    if doubtful.is_empty() {
        return;
    }
    for policy in policies.tiers.iter_mut().flat_map(|tier| &mut tier.policies) {
        let policy = Arc::make_mut(policy);
        close_rules(&mut policy.ingress, doubtful);
        close_rules(&mut policy.egress, doubtful);
    }
    for profile in policies.profiles.values_mut() {
        if let ProfileRules::Own { ingress, egress } = &mut profile.rules {
            close_rules(ingress, doubtful);
            close_rules(egress, doubtful);
        }
    }
}

fn close_rules(rules: &mut Vec<Rule>, doubtful: &[Workload]) {
    let finds = |condition: &Option<WorkloadMatch>| {
        let finds = |condition: &WorkloadMatch| doubtful.iter().any(|workload| condition.matches(workload));
        condition.as_ref().is_some_and(finds)
    };
    let wants = |rule: &Rule| finds(&rule.own.workload) || finds(&rule.peer.workload);
    let excludes = |rule: &Rule| finds(&rule.own.not_workload) || finds(&rule.peer.not_workload);
    rules.retain(|rule| rule.action != Action::Allow || !excludes(rule));
    for rule in rules.iter_mut() {
        let closes = match rule.action {
            Action::Allow | Action::Log => false,
            Action::Deny => wants(rule),
            Action::Pass => wants(rule) || excludes(rule),
        };
        if closes {
            *rule = deny_all(rule.index);
        }
    }
}

pub(crate) fn read_domain(text: &str, path: &Path<'_>, errors: &mut Errors) -> Option<DomainMatch> {
    let domain = DomainMatch::parse(text);
    if domain.is_none() {
        let fix = "write it as example.com, or as *.example.com for every name below it";
        wrong(errors, path, no_domain(text), fix);
    }
    domain
}

/// Why it is not one. What is too long for DNS is not repeated as a whole.
fn no_domain(text: &str) -> String {
    const MAX: usize = DomainMatch::MAX_BYTES;
    const MAX_LABEL: usize = DomainMatch::MAX_LABEL_BYTES;
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.len() > MAX {
        let begin: String = name.chars().take(MAX_LABEL).collect();
        return format!(
            "\"{begin}...\" has {} bytes, and a name has at most {MAX}",
            name.len()
        );
    }
    match name.split('.').find(|label| label.len() > MAX_LABEL) {
        Some(label) => {
            let length = label.len();
            format!("the label {label:?} has {length} bytes, and one of a name has at most {MAX_LABEL}")
        }
        None => format!("{text:?} is not the name of a host"),
    }
}
