//! Properties of admission over objects that nobody would write by hand.

use api::resources::{RESOURCES, Stored};
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

/// A pod that is valid but for what `spec` and `container` add to it.
fn pod_with(spec: Value, container: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": "x", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "r.example/app:1"}]},
    });
    for (at, extra) in [("/spec/containers/0", container), ("/spec", spec)] {
        if let (Some(Value::Object(target)), Value::Object(extra)) = (pod.pointer_mut(at), extra) {
            for (key, value) in extra {
                target.entry(key).or_insert(value);
            }
        }
    }
    pod
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
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever comes in, something comes out.
    #[test]
    fn admission_is_total(object in any_json(), old in any_json(), kind in 0..RESOURCES.len()) {
        let resource = &RESOURCES[kind];
        prop_assume!(resource.stored == Stored::Yes);
        for old in [None, Some(&old)] {
            for subresource in ["", "status", "binding"] {
                let request = AdmissionRequest { subresource, ..request(resource, object.clone(), old) };
                let _outcome = review(&request);
            }
        }
    }

    /// Admitting twice changes nothing: defaults are stable, and what was admitted stays admissible.
    #[test]
    fn admission_is_idempotent(spec in any_json(), container in any_json()) {
        let pods = row("pods");
        if let Ok(once) = complete(&request(pods, pod_with(spec, container), None)) {
            prop_assert_eq!(complete(&request(pods, once.clone(), None)).unwrap(), once.clone());
            // The old object is admissible as its own successor.
            prop_assert_eq!(complete(&request(pods, once.clone(), Some(&once))).unwrap(), once);
        }
    }

    /// A field of Kubernetes' pod type is either on the list or refused, never dropped: what is admitted
    /// says everything that was sent.
    #[test]
    fn nothing_that_was_sent_is_lost(spec in any_json(), container in any_json()) {
        let pods = row("pods");
        let sent = pod_with(spec, container);
        let typed = decode::patched(pods, None, sent, FieldValidation::Strict);
        if let Ok(typed) = typed
            && let Ok(admitted) = complete(&request(pods, typed.object.clone(), None))
        {
            prop_assert!(contains(&admitted["spec"], &typed.object["spec"]), "{admitted} lost {}", typed.object);
        }
    }
}

/// Whether everything that `part` says stands in `whole`.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part.iter().all(|(key, value)| {
            whole.get(key).is_some_and(|found| contains(found, value)) || *value == json!("")
        }),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| contains(whole, part))
        }
        _ => whole == part || *part == json!(""),
    }
}
