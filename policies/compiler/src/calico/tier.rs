//! Tiers, and the names of policies in them.

use api::calico;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use policies_ir::policy::{DefaultAction, Order, Tier};

use crate::field::{Errors, Path, wrong};

/// Tier of policies that do not name one, and of Kubernetes NetworkPolicy.
pub(crate) const DEFAULT_TIER: &str = "default";
/// Tier of ClusterNetworkPolicy with `tier: Admin`.
pub(crate) const KUBE_ADMIN_TIER: &str = "kube-admin";
/// Tier of ClusterNetworkPolicy with `tier: Baseline`.
pub(crate) const KUBE_BASELINE_TIER: &str = "kube-baseline";

/// Tiers that always exist, with their order and default action, neither of which can be changed.
pub(crate) const BUILT_IN_TIERS: [(&str, f64, DefaultAction); 3] = [
    (KUBE_ADMIN_TIER, 1_000.0, DefaultAction::Pass),
    (DEFAULT_TIER, 1_000_000.0, DefaultAction::Deny),
    (KUBE_BASELINE_TIER, 10_000_000.0, DefaultAction::Pass),
];

/// The tiers that always exist, as objects.
pub fn built_in_tiers() -> Vec<calico::Tier> {
    let tier = |(name, order, action): (&str, f64, DefaultAction)| calico::Tier {
        api_version: calico::API_VERSION.to_owned(),
        kind: "Tier".to_owned(),
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        spec: calico::TierSpec {
            order: Some(order),
            default_action: Some(match action {
                DefaultAction::Deny => "Deny".to_owned(),
                DefaultAction::Pass => "Pass".to_owned(),
            }),
        },
    };
    BUILT_IN_TIERS.into_iter().map(tier).collect()
}

/// A tier without policies. One that cannot be understood denies at its end.
pub(crate) fn read_tier(object: &calico::Tier, errors: &mut Errors) -> Tier {
    let name = object.metadata.name.clone().unwrap_or_default();
    let metadata = Path::Root("metadata");
    if !is_tier_name(&name) {
        let fix = "use at most 63 lower-case letters, digits and inner '-'";
        let problem = format!("{name:?} is not the name of a tier");
        wrong(errors, &metadata.field("name"), problem, fix);
    }
    let spec = &object.spec;
    let action_path = Path::SPEC.field("defaultAction");
    let order_path = Path::SPEC.field("order");
    let default_action = match spec.default_action.as_deref() {
        None | Some("Deny") => DefaultAction::Deny,
        Some("Pass") => DefaultAction::Pass,
        Some(other) => {
            let problem = format!("unknown default action {other:?}");
            wrong(errors, &action_path, problem, "use Deny or Pass");
            DefaultAction::Deny
        }
    };
    let built_in = BUILT_IN_TIERS.iter().find(|(built_in, ..)| *built_in == name);
    let Some((_, order, action)) = built_in else {
        let order = read_order(spec.order, &order_path, errors);
        return Tier {
            name,
            order,
            default_action,
            policies: Vec::new(),
        };
    };
    if spec.order.is_some_and(|given| given.total_cmp(order).is_ne()) {
        let problem = format!("the order of tier {name} is {order} and cannot be changed");
        wrong(errors, &order_path, problem, "leave it out");
    }
    if spec.default_action.is_some() && default_action != *action {
        let problem = format!("the default action of tier {name} is {action:?} and cannot be changed");
        wrong(errors, &action_path, problem, "leave it out");
    }
    Tier {
        name,
        order: Order(Some(*order)),
        default_action: *action,
        policies: Vec::new(),
    }
}

/// Lower comes first. A number that cannot be compared comes first too: a policy that denies must not lose its
/// place for it.
pub(super) fn read_order(order: Option<f64>, path: &Path<'_>, errors: &mut Errors) -> Order {
    match order {
        Some(number) if number.is_nan() => {
            wrong(
                errors,
                path,
                "the order is not a number",
                "use a number, or leave it out",
            );
            Order(Some(f64::NEG_INFINITY))
        }
        // Both zeros are one place.
        Some(number) => Order(Some(if number == 0.0 { 0.0 } else { number })),
        None => Order(None),
    }
}

/// One DNS label: tiers' names are the first part of policies' names.
pub(crate) fn is_tier_name(name: &str) -> bool {
    is_label(name) && name.len() <= 63
}

/// A DNS label of any length, as Calico's pattern for names has it.
pub(super) fn is_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty() && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}
