//! Columns of the policy kinds that Kubernetes does not build in, and of assertions about them.

use serde_json::{Value, json};

use super::{
    Column,
    columns::{AGE, NAME, PLAIN, members, number, text, text_at, text_or_none, wide},
};

/// Columns of a kind of `policy.networking.k8s.io` or `projectcalico.org`.
pub(super) fn of(kind: &str) -> &'static [Column] {
    match kind {
        "ClusterNetworkPolicy" => CLUSTER,
        "Tier" => TIER,
        "NetworkPolicy" | "GlobalNetworkPolicy" => POLICY,
        "StagedNetworkPolicy" | "StagedGlobalNetworkPolicy" => STAGED,
        "StagedKubernetesNetworkPolicy" => STAGED_KUBERNETES,
        "NetworkSet" | "GlobalNetworkSet" => SET,
        "HostEndpoint" => HOST_ENDPOINT,
        "FelixConfiguration" => CONFIGURATION,
        _ => PLAIN,
    }
}

pub(super) const ASSERTION: &[Column] = &[
    NAME,
    text(
        "Enforcement",
        "What happens to a write that would break it.",
        |assertion, _| {
            let annotations = &assertion["metadata"]["annotations"];
            json!(match annotations[api::annotations::ENFORCEMENT].as_str() {
                Some("warn") => "warn",
                _ => "block",
            })
        },
    ),
    text("Assertion", "What must hold.", |assertion, _| {
        json!(text_at(assertion, "/spec/assertion"))
    }),
    AGE,
];

const TIER_OF_POLICY: Column = text("Tier", "Tier that the policy is in.", |policy, _| {
    json!(match text_at(policy, "/spec/tier") {
        "" => "default",
        tier => tier,
    })
});

const ORDER: Column = text(
    "Order",
    "Place: lower comes first, none comes last.",
    |object, _| order(object),
);

const ACTION: Column = text(
    "Action",
    "What the policy would do to the enforced one of its name.",
    |policy, _| {
        json!(match text_at(policy, "/spec/stagedAction") {
            "" => "Set",
            action => action,
        })
    },
);

const SELECTOR: Column = wide(
    "Selector",
    "Endpoints that the policy applies to.",
    |policy, _| {
        json!(match text_at(policy, "/spec/selector") {
            "" => "all()",
            selector => selector,
        })
    },
);

const CLUSTER: &[Column] = &[
    NAME,
    text("Tier", "Admin or Baseline.", |policy, _| {
        json!(text_at(policy, "/spec/tier"))
    }),
    number("Priority", "Place: lower comes first.", |policy, _| {
        json!(policy["spec"]["priority"].as_i64().unwrap_or(0))
    }),
    AGE,
];

const TIER: &[Column] = &[
    NAME,
    ORDER,
    text(
        "Default-Action",
        "What happens to flows that the tier selected and did not decide.",
        |tier, _| {
            json!(match text_at(tier, "/spec/defaultAction") {
                "" => "Deny",
                action => action,
            })
        },
    ),
    AGE,
];

const POLICY: &[Column] = &[NAME, TIER_OF_POLICY, ORDER, SELECTOR, AGE];

const STAGED: &[Column] = &[NAME, TIER_OF_POLICY, ORDER, ACTION, SELECTOR, AGE];

const STAGED_KUBERNETES: &[Column] = &[NAME, ACTION, AGE];

const SET: &[Column] = &[
    NAME,
    number("Nets", "Number of addresses and CIDRs.", |set, _| {
        json!(members(&set["spec"], "nets"))
    }),
    number("Domains", "Number of names.", |set, _| {
        json!(members(&set["spec"], "allowedEgressDomains"))
    }),
    AGE,
];

const HOST_ENDPOINT: &[Column] = &[
    NAME,
    text("Node", "Node that it is on.", |endpoint, _| {
        text_or_none(endpoint, "/spec/node")
    }),
    text("Interface", "Its interface, or * for all.", |endpoint, _| {
        text_or_none(endpoint, "/spec/interfaceName")
    }),
    AGE,
];

const CONFIGURATION: &[Column] = &[
    NAME,
    text(
        "Endpoint-To-Host",
        "What happens to flows from a pod to its own node.",
        |configuration, _| {
            json!(
                match text_at(configuration, "/spec/defaultEndpointToHostAction") {
                    "" => "Drop",
                    action => action,
                }
            )
        },
    ),
    AGE,
];

fn order(object: &Value) -> Value {
    match &object["spec"]["order"] {
        Value::Number(order) => json!(order.to_string()),
        _ => json!("<none>"),
    }
}
