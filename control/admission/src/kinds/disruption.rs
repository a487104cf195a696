//! Disruption budgets.

use api::selector::LabelSelector;
use control_wire::Cause;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde_json::Value;

use crate::Problems;

const BOUNDS: [&str; 2] = ["minAvailable", "maxUnavailable"];
const POLICIES: &[&str] = &["AlwaysAllow", "IfHealthyBudget"];

pub(super) fn check(budget: &Value, problems: &mut Problems) {
    let spec = &budget["spec"];
    if BOUNDS.iter().all(|bound| !spec[bound].is_null()) {
        let why = "minAvailable and maxUnavailable cannot be both set";
        problems.push(Cause::invalid("spec", "", why));
    }
    for bound in BOUNDS {
        let value = &spec[bound];
        let fits = match value {
            Value::Null => true,
            Value::Number(number) => number.as_i64().is_some_and(|number| number >= 0),
            Value::String(text) => share(text).is_some(),
            _ => false,
        };
        let why = "must be a whole number from 0 on, or a share such as 50%";
        problems.require(fits, &format!("spec.{bound}"), value, why);
    }
    if let Some(policy) = spec["unhealthyPodEvictionPolicy"].as_str()
        && !POLICIES.contains(&policy)
    {
        problems.push(Cause::not_supported(
            "spec.unhealthyPodEvictionPolicy",
            policy,
            POLICIES,
        ));
    }
    let selector = serde_json::from_value::<meta::LabelSelector>(spec["selector"].clone());
    if let Ok(selector) = selector
        && let Err(error) = LabelSelector::try_from(&selector)
    {
        problems.push(Cause::invalid("spec.selector", "", error));
    }
}

/// A share of at most all.
fn share(text: &str) -> Option<u32> {
    let percent = text.strip_suffix('%')?.parse().ok()?;
    (percent <= 100).then_some(percent)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bounds_are_numbers_or_shares_and_one_of_them() {
        let fields = |spec: Value| {
            let mut problems = Problems::default();
            check(&json!({"spec": spec}), &mut problems);
            let fields = problems.causes.into_iter().map(|cause| cause.field);
            fields.collect::<Vec<_>>()
        };
        for fine in [
            json!({"minAvailable": 0}),
            json!({"maxUnavailable": "30%", "selector": {"matchLabels": {"a": "b"}}}),
            json!({}),
        ] {
            assert_eq!(fields(fine.clone()), [] as [&str; 0], "{fine}");
        }
        for (spec, field) in [
            (json!({"minAvailable": 1, "maxUnavailable": 1}), "spec"),
            (json!({"minAvailable": -1}), "spec.minAvailable"),
            (json!({"minAvailable": "101%"}), "spec.minAvailable"),
            (json!({"maxUnavailable": "many"}), "spec.maxUnavailable"),
            (
                json!({"unhealthyPodEvictionPolicy": "Never"}),
                "spec.unhealthyPodEvictionPolicy",
            ),
            (
                json!({"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
                "spec.selector",
            ),
        ] {
            assert_eq!(fields(spec), [field]);
        }
    }
}
