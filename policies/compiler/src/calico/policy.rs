//! NetworkPolicy, GlobalNetworkPolicy and their staged forms.

use api::calico::{Object, PolicySpec};
use policies_ir::{
    policy::{Directions, Kinds, NamespaceMatch, Phase, Policy, Selector, TieBreak, Workload, WorkloadMatch},
    selector::Expression,
};

use crate::{
    calico::{
        DEFAULT_TIER, read_plain_expression,
        rules::{RuleScope, Services, deny_all, namespaces_expression, read_rules},
        tier::{is_label, is_tier_name, read_order},
    },
    field::{Errors, Path, wrong},
};

/// Where a policy applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// In its own namespace.
    Namespace,
    /// Everywhere, host endpoints included.
    Cluster,
}

/// What a staged policy would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StagedAction {
    /// Take the place of the enforced policy of its name.
    Set,
    /// Remove the enforced policy of its name.
    Delete,
    /// Nothing.
    Nothing,
}

/// Tier and policy. `kind` is for its name, and says whether the policy is staged.
pub(crate) fn read_policy(
    kind: &str,
    scope: Scope,
    object: &Object<PolicySpec>,
    services: &Services,
    errors: &mut Errors,
) -> (String, Policy) {
    let spec = &object.spec;
    let staged = kind.starts_with("Staged");
    let found_before = errors.len();
    let namespace = match scope {
        Scope::Namespace => object.metadata.namespace.clone().unwrap_or_default(),
        Scope::Cluster => String::new(),
    };
    let name = object.metadata.name.clone().unwrap_or_default();
    check_name(scope, &name, errors);
    let tier = named_tier(spec).unwrap_or(DEFAULT_TIER).to_owned();
    if !is_tier_name(&tier) {
        let problem = format!("{tier:?} is not the name of a tier");
        let fix = "use at most 63 lower-case letters, digits and inner '-'";
        wrong(errors, &Path::SPEC.field("tier"), problem, fix);
    }
    if !staged && spec.staged_action.is_some() {
        let fix = "leave it out, or use the staged kind";
        let path = Path::SPEC.field("stagedAction");
        wrong(errors, &path, "only staged kinds have an action", fix);
    }
    let order = read_order(spec.order, &Path::SPEC.field("order"), errors);
    let phase = read_phase(scope, spec, errors);
    let directions = read_directions(spec, errors);
    let applies_to = read_applies_to(scope, &namespace, spec, errors);
    let whole = errors.len() == found_before;

    let rules = RuleScope {
        namespace: &namespace,
        services,
        stateless: phase == Phase::Untracked,
    };
    let ingress = read_rules(
        &spec.ingress,
        policies_ir::tables::Direction::Ingress,
        rules,
        errors,
    );
    let egress = read_rules(
        &spec.egress,
        policies_ir::tables::Direction::Egress,
        rules,
        errors,
    );
    let shown = shown_name(kind, &namespace, &name);
    let tie_break = TieBreak::new(&name, &namespace, kind);
    if !whole {
        // Nobody knows whom it protects, when, or against what: it takes everything from all it could mean. It
        // takes it by rules, because what it would have denied must not be left to a later policy or tier.
        let everywhere = WorkloadMatch {
            kinds: Kinds::All,
            namespace: match scope {
                Scope::Namespace => NamespaceMatch::Named(namespace),
                Scope::Cluster => NamespaceMatch::Any,
            },
            labels: Selector::everything(),
        };
        let policy = Policy {
            name: shown,
            tie_break,
            order,
            phase,
            applies_to: everywhere,
            directions: Directions {
                ingress: true,
                egress: true,
            },
            ingress: vec![deny_all(0)],
            egress: vec![deny_all(0)],
        };
        return (tier, policy);
    }
    let policy = Policy {
        name: shown,
        tie_break,
        order,
        phase,
        applies_to,
        directions,
        ingress,
        egress,
    };
    (tier, policy)
}

/// The tier that a policy names; an empty name is none.
pub(crate) fn named_tier(spec: &PolicySpec) -> Option<&str> {
    spec.tier.as_deref().filter(|tier| !tier.is_empty())
}

/// The name for people: Calico's NetworkPolicy must not be taken for that of Kubernetes.
pub(crate) fn shown_name(kind: &str, namespace: &str, name: &str) -> String {
    match (kind, namespace) {
        ("NetworkPolicy", _) => format!("NetworkPolicy.projectcalico.org {namespace}/{name}"),
        (_, "") => format!("{kind} {name}"),
        _ => format!("{kind} {namespace}/{name}"),
    }
}

/// What a staged policy would do; nothing if it does not say it clearly.
pub(crate) fn read_staged_action(action: Option<&str>, errors: &mut Errors) -> StagedAction {
    match action {
        None | Some("Set") => StagedAction::Set,
        Some("Delete") => StagedAction::Delete,
        Some("Learn" | "Ignore") => StagedAction::Nothing,
        Some(other) => {
            let path = Path::SPEC.field("stagedAction");
            let problem = format!("unknown action {other:?}");
            wrong(errors, &path, problem, "use Set, Delete, Learn or Ignore");
            StagedAction::Nothing
        }
    }
}

/// One label, or two with a dot between, the first of which is then mostly the tier's. Namespaced policies may
/// also have the names under which Calico shows those of Kubernetes and OpenStack.
fn check_name(scope: Scope, name: &str, errors: &mut Errors) {
    let labels: Vec<&str> = name.split('.').collect();
    let simple = labels.len() <= 2 && labels.iter().all(|label| is_label(label));
    let shown = ["knp.default.", "ossg.default."].iter().any(|prefix| {
        let rest = name.strip_prefix(prefix);
        scope == Scope::Namespace && rest.is_some_and(|rest| rest.split('.').all(is_label))
    });
    if name.len() > 253 || !(simple || shown) {
        let path = Path::Root("metadata");
        let fix = "use lower-case letters, digits and inner '-', with at most one dot";
        let problem = format!("{name:?} is not the name of a policy");
        wrong(errors, &path.field("name"), problem, fix);
    }
}

/// [`Phase::Unknown`] if the flags contradict each other.
fn read_phase(scope: Scope, spec: &PolicySpec, errors: &mut Errors) -> Phase {
    let found_before = errors.len();
    let set = |flag: Option<bool>| flag == Some(true);
    let flags = [
        ("doNotTrack", spec.do_not_track),
        ("preDNAT", spec.pre_dnat),
        ("applyOnForward", spec.apply_on_forward),
    ];
    if scope == Scope::Namespace {
        for (name, _) in flags.iter().filter(|(_, flag)| flag.is_some()) {
            let fix = "leave it out, or use GlobalNetworkPolicy";
            wrong(
                errors,
                &Path::SPEC.field(name),
                "only global policies have it",
                fix,
            );
        }
        return Phase::Local;
    }
    let (untracked, early) = (set(spec.do_not_track), set(spec.pre_dnat));
    let path = Path::SPEC.field("preDNAT");
    if untracked && early {
        wrong(
            errors,
            &path,
            "cannot be combined with doNotTrack",
            "leave one of them out",
        );
    }
    if (untracked || early) && !set(spec.apply_on_forward) {
        let path = Path::SPEC.field("applyOnForward");
        let fix = "set it to true: such a policy judges forwarded traffic as well";
        wrong(errors, &path, "must be true with doNotTrack or preDNAT", fix);
    }
    if early && (!spec.egress.is_empty() || spec.types.iter().any(|name| name == "Egress")) {
        let fix = "leave out egress: destinations are translated on the way in only";
        wrong(
            errors,
            &path,
            "cannot be combined with egress rules or type Egress",
            fix,
        );
    }
    if errors.len() != found_before {
        return Phase::Unknown;
    }
    match (untracked, early, set(spec.apply_on_forward)) {
        (true, ..) => Phase::Untracked,
        (_, true, _) => Phase::BeforeTranslation,
        (_, _, true) => Phase::LocalAndForwarded,
        _ => Phase::Local,
    }
}

/// Types of a policy that names none and has rules for ingress, for egress, or both: ingress unless there are egress rules
/// only, egress if there are egress rules.
pub fn default_types(ingress: bool, egress: bool) -> &'static [&'static str] {
    match (ingress, egress) {
        (_, false) => &["Ingress"],
        (false, true) => &["Egress"],
        (true, true) => &["Ingress", "Egress"],
    }
}

/// The server's default, applied here as well because objects from a file have not seen it.
fn read_directions(spec: &PolicySpec, errors: &mut Errors) -> Directions {
    if spec.types.is_empty() {
        let types = default_types(!spec.ingress.is_empty(), !spec.egress.is_empty());
        return Directions {
            ingress: types.contains(&"Ingress"),
            egress: types.contains(&"Egress"),
        };
    }
    let path = Path::SPEC.field("types");
    let mut directions = Directions::default();
    for (i, name) in spec.types.iter().enumerate() {
        let direction = match name.as_str() {
            "Ingress" => &mut directions.ingress,
            "Egress" => &mut directions.egress,
            other => {
                let problem = format!("unknown type {other:?}");
                wrong(errors, &path.index(i), problem, "use Ingress or Egress");
                continue;
            }
        };
        if std::mem::replace(direction, true) {
            let problem = format!("{name} is given twice");
            wrong(errors, &path.index(i), problem, "leave one of them out");
        }
    }
    directions
}

fn read_applies_to(scope: Scope, namespace: &str, spec: &PolicySpec, errors: &mut Errors) -> WorkloadMatch {
    let mut parts = Vec::new();
    let mut add = |expression: Option<Expression>| {
        parts.extend(
            expression
                .filter(|e| *e != Expression::All)
                .map(Selector::Expression),
        );
    };
    let path = Path::SPEC.field("selector");
    let own = read_plain_expression(&spec.selector, &path, errors);
    // Beside a selector for namespaces or service accounts, `all()` means whatever has one, also in the policy's own
    // selector: Calico replaces the text in both at once.
    let beside = match (
        spec.namespace_selector.as_str(),
        spec.service_account_selector.as_str(),
    ) {
        ("", "") => None,
        ("", _) => Some(Workload::SERVICE_ACCOUNT_LABEL),
        _ => Some(Workload::NAMESPACE_LABEL),
    };
    let beside = beside.filter(|_| !spec.selector.is_empty());
    add(match beside {
        Some(label) => own.map(|e| e.prefixed("", &Expression::Has(label.to_owned()))),
        None => own,
    });
    let path = Path::SPEC.field("serviceAccountSelector");
    if !spec.service_account_selector.is_empty() {
        let has_account = Expression::Has(Workload::SERVICE_ACCOUNT_LABEL.to_owned());
        let read = read_plain_expression(&spec.service_account_selector, &path, errors);
        add(read.map(|e| e.prefixed(Workload::SERVICE_ACCOUNT_PREFIX, &has_account)));
    }
    let path = Path::SPEC.field("namespaceSelector");
    if !spec.namespace_selector.is_empty() {
        if scope == Scope::Namespace {
            let fix = "leave it out, or use GlobalNetworkPolicy";
            wrong(errors, &path, "only global policies have it", fix);
        }
        let read = read_plain_expression(&spec.namespace_selector, &path, errors);
        add(read.map(namespaces_expression));
    }
    WorkloadMatch {
        kinds: Kinds::All,
        namespace: match scope {
            Scope::Namespace => NamespaceMatch::Named(namespace.to_owned()),
            Scope::Cluster => NamespaceMatch::Any,
        },
        labels: Selector::All(parts),
    }
}
