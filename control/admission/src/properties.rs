//! Properties of admission over objects that nobody would write by hand.

use api::resources::RESOURCES;
use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;

/// Names that occur in objects, so that random objects get past the outermost check now and then.
const KEYS: &[&str] = &[
    "metadata",
    "name",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "spec",
    "status",
    "containers",
    "image",
    "volumes",
    "securityContext",
    "env",
    "valueFrom",
    "ports",
    "containerPort",
    "resources",
    "limits",
    "hostNetwork",
    "tolerations",
    "data",
    "stringData",
    "type",
    "taints",
    "podSelector",
    "ingress",
    "from",
    "exemptions",
    "privileged",
    "a b",
];

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z/.:-]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(KEYS), inner), 0..6).prop_map(|members| {
                let map: Map<String, Value> = members
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect();
                Value::Object(map)
            }),
        ]
    })
}

/// Parts of a pod's spec that are admitted, one by one and together.
fn spec_parts() -> Vec<(&'static str, Value)> {
    vec![
        ("nodeSelector", json!({"a": "b"})),
        ("tolerations", json!([{"operator": "Exists"}])),
        (
            "volumes",
            json!([{"name": "v", "emptyDir": {}}, {"name": "m", "configMap": {"name": "m"}}]),
        ),
        ("securityContext", json!({"runAsUser": 7, "fsGroup": 8})),
        ("serviceAccount", json!("robot")),
        ("hostUsers", json!(false)),
        ("hostNetwork", json!(false)),
        ("terminationGracePeriodSeconds", json!(0)),
        ("hostname", json!("web")),
        ("restartPolicy", json!("Never")),
    ]
}

/// The same for a container.
fn container_parts() -> Vec<(&'static str, Value)> {
    vec![
        ("args", json!(["a", ""])),
        (
            "env",
            json!([{"name": "A", "value": ""}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}]),
        ),
        ("ports", json!([{"containerPort": 80, "hostPort": 0}])),
        ("resources", json!({"limits": {"cpu": "1", "memory": "1Mi"}})),
        (
            "securityContext",
            json!({"privileged": false, "capabilities": {"drop": ["ALL"]}}),
        ),
        ("imagePullPolicy", json!("Never")),
        ("tty", json!(false)),
    ]
}

/// A valid pod of some of the parts, and in half of the cases one member more that may be anything.
fn any_pod() -> impl Strategy<Value = Value> {
    let some = |parts: Vec<(&'static str, Value)>| {
        let all = parts.len();
        prop::sample::subsequence(parts, 0..=all)
    };
    let extra = prop::option::of((prop::sample::select(KEYS), any_json(), any::<bool>()));
    (some(spec_parts()), some(container_parts()), extra).prop_map(|(spec, container, extra)| {
        let mut pod = json!({
            "metadata": {"name": "x", "namespace": "default"},
            "spec": {"containers": [{"name": "c", "image": "r.example/app:1"}]},
        });
        for (key, value) in spec {
            pod["spec"][key] = value;
        }
        for (key, value) in container {
            pod["spec"]["containers"][0][key] = value;
        }
        match extra {
            Some((key, value, true)) => pod["spec"][key] = value,
            Some((key, value, false)) => pod["spec"]["containers"][0][key] = value,
            None => {}
        }
        pod
    })
}

fn request<'a>(resource: &'static Resource, new: Value, old: Option<&'a Value>) -> AdmissionRequest<'a> {
    AdmissionRequest {
        operation: if old.is_some() {
            Operation::Update
        } else {
            Operation::Create
        },
        resource,
        subresource: "",
        namespace: if resource.namespaced() { "default" } else { "" },
        name: "x",
        old,
        new,
        user: "admin",
        now: Timestamp::UNIX_EPOCH,
    }
}

fn row(plural: &str) -> &'static Resource {
    api::resources::by_any_name(plural).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever comes in, something comes out.
    #[test]
    fn admission_is_total(object in any_json(), old in any_json(), kind in 0..RESOURCES.len()) {
        let resource = &RESOURCES[kind];
        for old in [None, Some(&old)] {
            for subresource in ["", "status", "binding"] {
                let request = AdmissionRequest { subresource, ..request(resource, object.clone(), old) };
                let _outcome = review(&request);
            }
        }
    }

    /// Admitting twice changes nothing: defaults are stable, and what was admitted stays admissible.
    #[test]
    fn admission_is_idempotent(sent in any_pod()) {
        let pods = row("pods");
        if let Ok(once) = complete(&request(pods, sent, None)) {
            prop_assert_eq!(complete(&request(pods, once.clone(), None)).unwrap(), once.clone());
            prop_assert_eq!(complete(&request(pods, once.clone(), Some(&once))).unwrap(), once);
        }
    }

    /// A field of a pod is honoured or refused, never dropped: what is admitted says everything that was sent.
    #[test]
    fn nothing_that_was_sent_is_lost(sent in any_pod()) {
        let admitted = complete(&request(row("pods"), sent.clone(), None));
        if let Ok(admitted) = admitted {
            prop_assert!(contains(&admitted["spec"], &sent["spec"]), "{admitted} lost something of {sent}");
        }
    }
}

/// The two properties above speak about pods that are admitted, so there must be many.
#[test]
fn all_parts_together_are_admitted() {
    let mut pod = json!({
        "metadata": {"name": "x", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "r.example/app:1"}]},
    });
    for (key, value) in spec_parts() {
        pod["spec"][key] = value;
    }
    for (key, value) in container_parts() {
        pod["spec"]["containers"][0][key] = value;
    }
    assert!(complete(&request(row("pods"), pod, None)).is_ok());
}

/// Whether everything that `part` says stands in `whole`.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part.iter().all(|(key, value)| {
            let nothing = value.is_null() || *value == json!("");
            nothing || whole.get(key).is_some_and(|found| contains(found, value))
        }),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| contains(whole, part))
        }
        // Defaults take the place of an empty text, and the types that of a null.
        _ => whole == part || *part == json!("") || part.is_null(),
    }
}
