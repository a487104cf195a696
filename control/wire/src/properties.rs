//! Properties of everything that reads untrusted bytes.

use api::resources::by_any_name;
use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Map, Value, json};

use crate::{
    decode,
    negotiate::{self, BodyForm, PatchForm},
    patch, protobuf,
    query::{Continue, FieldValidation, ListQuery, LogQuery, Parameters},
    selector::FieldSelector,
};

/// Members of pods.
const MEMBERS: &[&str] = &[
    "metadata",
    "name",
    "finalizers",
    "spec",
    "containers",
    "env",
    "volumes",
    "ports",
    "containerPort",
    "key",
    "tolerations",
];

/// Members of pods and directives of patches.
const KEYS: &[&str] = &[
    "metadata",
    "name",
    "finalizers",
    "spec",
    "containers",
    "env",
    "volumes",
    "ports",
    "containerPort",
    "key",
    "tolerations",
    "$patch",
    "$retainKeys",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/finalizers",
];

fn any_json() -> impl Strategy<Value = Value> {
    json_of(KEYS)
}

fn json_of(keys: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(&["a", "b", "replace", "delete", "merge", ""][..]).prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            object_of(keys, inner),
        ]
    })
}

fn object_of(
    keys: &'static [&'static str],
    member: impl Strategy<Value = Value>,
) -> impl Strategy<Value = Value> {
    prop::collection::vec((prop::sample::select(keys), member), 0..6).prop_map(|members| {
        let map: Map<String, Value> = members
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        Value::Object(map)
    })
}

fn has_directive(value: &Value) -> bool {
    match value {
        Value::Object(map) => map
            .iter()
            .any(|(key, value)| key.starts_with('$') || has_directive(value)),
        Value::Array(items) => items.iter().any(has_directive),
        _ => false,
    }
}

/// The pod of a real request in protobuf.
fn pod_body() -> Vec<u8> {
    use k8s_pb::{api::core::v1 as core, apimachinery::pkg as apimachinery};
    let text = |value: &str| Some(value.to_owned());
    let container = core::Container {
        name: text("c"),
        image: text("busybox"),
        ..core::Container::default()
    };
    let pod = core::Pod {
        metadata: Some(apimachinery::apis::meta::v1::ObjectMeta {
            name: text("p"),
            ..Default::default()
        }),
        spec: Some(core::PodSpec {
            containers: vec![container; 3],
            ..core::PodSpec::default()
        }),
        status: None,
    };
    let unknown = apimachinery::runtime::Unknown {
        type_meta: Some(apimachinery::runtime::TypeMeta {
            api_version: text("v1"),
            kind: text("Pod"),
        }),
        raw: Some(pod.encode_to_vec()),
        content_encoding: None,
        content_type: None,
    };
    [b"k8s\0".as_slice(), &unknown.encode_to_vec()].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Bytes from the network are read or refused, never more.
    #[test]
    fn readers_are_total(bytes in prop::collection::vec(any::<u8>(), 0..256), text in "\\PC{0,80}") {
        let pods = by_any_name("pods").unwrap();
        let mut body = b"k8s\0".to_vec();
        body.extend_from_slice(&bytes);
        let _outcome = protobuf::decode(&body);
        for form in [BodyForm::Json, BodyForm::Protobuf] {
            let _outcome = decode::object(pods, None, form, &bytes, FieldValidation::Strict);
            let _outcome = decode::delete_options(form, &bytes, &Parameters::default());
        }
        for form in [PatchForm::Json, PatchForm::Merge, PatchForm::Strategic] {
            let _outcome = patch::apply(pods, form, &json!({}), text.as_bytes());
        }
        let _outcome = FieldSelector::parse(pods, &text);
        let _outcome = Continue::decode(&text);
        let _outcome = (negotiate::object_form(Some(&text)), negotiate::discovery_form(Some(&text)));
        if let Ok(parameters) = Parameters::parse(&text) {
            let _outcome = (ListQuery::parse(pods, &parameters), LogQuery::parse(&parameters));
        }
    }

    /// A real protobuf body with some bytes changed, cut or repeated is read or refused.
    #[test]
    fn mutated_protobuf_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut body = pod_body();
        prop_assert!(protobuf::decode(&body).is_ok());
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        body.truncate(cut.index(body.len()) + 1);
        if let Ok(value) = protobuf::decode(&body) {
            prop_assert!(value.is_object());
        }
    }

    /// Decoding keeps what it has decoded, and finds nothing unknown in it.
    #[test]
    fn decoding_is_idempotent(object in object_of(KEYS, any_json())) {
        let pods = by_any_name("pods").unwrap();
        let body = object.to_string();
        if let Ok(once) = decode::object(pods, None, BodyForm::Json, body.as_bytes(), FieldValidation::Ignore) {
            let twice = decode::patched(pods, None, once.object.clone(), FieldValidation::Strict);
            prop_assert_eq!(twice.map(|decoded| decoded.object), Ok(once.object));
        }
    }

    /// A strategic merge leaves no directive behind, and an empty one changes nothing.
    #[test]
    fn strategic_merge_consumes_its_directives(current in object_of(MEMBERS, json_of(MEMBERS)), body in object_of(KEYS, any_json())) {
        let pods = by_any_name("pods").unwrap();
        let apply = |patch: &str| patch::apply(pods, PatchForm::Strategic, &current, patch.as_bytes());
        prop_assert_eq!(apply("{}"), Ok(current.clone()));
        if let Ok(patched) = apply(&body.to_string()) {
            prop_assert!(!has_directive(&patched), "{patched}");
        }
    }

    /// RFC 7386: what the patch sets stands in the result, and applying it twice is applying it once.
    #[test]
    fn merge_patch_is_idempotent(current in object_of(KEYS, any_json()), body in object_of(KEYS, any_json())) {
        let pods = by_any_name("pods").unwrap();
        let apply = |current: &Value| patch::apply(pods, PatchForm::Merge, current, body.to_string().as_bytes());
        let once = apply(&current).unwrap();
        prop_assert_eq!(apply(&once), Ok(once));
    }
}
