//! Cross-checks against an independent encoder: `k8s-pb` with `prost`.

use k8s_pb::{
    api::core::v1 as core,
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{self as meta, DeleteOptions, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use prost::Message as _;
use serde_json::json;

use super::*;
use crate::typed;

/// Wraps a message as client-go does.
fn envelope(api_version: &str, kind: &str, message: &impl prost::Message) -> Vec<u8> {
    let unknown = k8s_pb::apimachinery::pkg::runtime::Unknown {
        type_meta: Some(k8s_pb::apimachinery::pkg::runtime::TypeMeta {
            api_version: Some(api_version.to_owned()),
            kind: Some(kind.to_owned()),
        }),
        raw: Some(message.encode_to_vec()),
        content_encoding: Some(String::new()),
        content_type: Some(String::new()),
    };
    [MAGIC, &unknown.encode_to_vec()].concat()
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

#[test]
fn a_config_map_as_kubectl_sends_it() {
    let message = core::ConfigMap {
        metadata: Some(ObjectMeta {
            name: text("c3"),
            namespace: text(""),
            creation_timestamp: Some(meta::Time {
                seconds: None,
                nanos: None,
            }),
            ..ObjectMeta::default()
        }),
        data: [
            ("a".to_owned(), "b".to_owned()),
            ("empty".to_owned(), String::new()),
        ]
        .into(),
        binary_data: [("bin".to_owned(), vec![0xff, 0])].into(),
        immutable: Some(false),
    };
    assert_eq!(
        decode(&envelope("v1", "ConfigMap", &message)),
        Ok(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c3"},
            "data": {"a": "b", "empty": ""}, "binaryData": {"bin": "/wA="}, "immutable": false,
        }))
    );
}

#[test]
fn a_pod_with_inlined_messages_and_special_values() {
    let message = core::Pod {
        metadata: Some(ObjectMeta {
            name: text("p"),
            creation_timestamp: Some(meta::Time {
                seconds: Some(1_767_225_600),
                nanos: Some(0),
            }),
            ..ObjectMeta::default()
        }),
        spec: Some(core::PodSpec {
            volumes: vec![core::Volume {
                name: text("v"),
                volume_source: Some(core::VolumeSource {
                    config_map: Some(core::ConfigMapVolumeSource {
                        local_object_reference: Some(core::LocalObjectReference { name: text("cm") }),
                        default_mode: Some(0o644),
                        ..core::ConfigMapVolumeSource::default()
                    }),
                    ..core::VolumeSource::default()
                }),
            }],
            containers: vec![core::Container {
                name: text("c"),
                liveness_probe: Some(core::Probe {
                    handler: Some(core::ProbeHandler {
                        http_get: Some(core::HttpGetAction {
                            port: Some(IntOrString {
                                r#type: Some(1),
                                int_val: Some(0),
                                str_val: text("web"),
                            }),
                            ..core::HttpGetAction::default()
                        }),
                        ..core::ProbeHandler::default()
                    }),
                    ..core::Probe::default()
                }),
                resources: Some(core::ResourceRequirements {
                    limits: [("cpu".to_owned(), Quantity { string: text("500m") })].into(),
                    ..core::ResourceRequirements::default()
                }),
                ..core::Container::default()
            }],
            security_context: Some(core::PodSecurityContext {
                supplemental_groups: vec![7, 8],
                ..core::PodSecurityContext::default()
            }),
            ..core::PodSpec::default()
        }),
        status: Some(core::PodStatus::default()),
    };
    assert_eq!(
        decode(&envelope("v1", "Pod", &message)),
        Ok(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "volumes": [{"name": "v", "configMap": {"name": "cm", "defaultMode": 420}}],
                "containers": [{
                    "name": "c", "livenessProbe": {"httpGet": {"port": "web"}},
                    "resources": {"limits": {"cpu": "500m"}},
                }],
                "securityContext": {"supplementalGroups": [7, 8]},
            },
            "status": {},
        }))
    );
}

#[test]
fn a_service_as_kubectl_sends_it() {
    let message = core::Service {
        metadata: Some(ObjectMeta {
            name: text("web"),
            ..ObjectMeta::default()
        }),
        spec: Some(core::ServiceSpec {
            ports: vec![core::ServicePort {
                name: text("80-http"),
                protocol: text("TCP"),
                port: Some(80),
                target_port: Some(IntOrString {
                    r#type: Some(1),
                    int_val: Some(0),
                    str_val: text("http"),
                }),
                ..core::ServicePort::default()
            }],
            selector: [("app".to_owned(), "web".to_owned())].into(),
            r#type: text("ClusterIP"),
            publish_not_ready_addresses: Some(true),
            ..core::ServiceSpec::default()
        }),
        status: Some(core::ServiceStatus {
            load_balancer: Some(core::LoadBalancerStatus::default()),
            ..core::ServiceStatus::default()
        }),
    };
    assert_eq!(
        decode(&envelope("v1", "Service", &message)),
        Ok(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {
                "ports": [{"name": "80-http", "protocol": "TCP", "port": 80, "targetPort": "http"}],
                "selector": {"app": "web"}, "type": "ClusterIP", "publishNotReadyAddresses": true,
            },
            "status": {"loadBalancer": {}},
        }))
    );
}

#[test]
fn delete_options_under_any_version() {
    let message = DeleteOptions {
        grace_period_seconds: Some(0),
        preconditions: Some(meta::Preconditions {
            uid: text("u"),
            resource_version: None,
        }),
        dry_run: vec!["All".to_owned()],
        ..DeleteOptions::default()
    };
    let value = decode(&envelope("apps/v1", "DeleteOptions", &message)).unwrap();
    assert_eq!(value["preconditions"]["uid"], "u");
    assert_eq!(
        (&value["gracePeriodSeconds"], &value["dryRun"]),
        (&json!(0), &json!(["All"]))
    );
}

#[test]
fn micro_times_and_packed_numbers() {
    let message = k8s_pb::api::coordination::v1::Lease {
        metadata: None,
        spec: Some(k8s_pb::api::coordination::v1::LeaseSpec {
            renew_time: Some(meta::MicroTime {
                seconds: Some(1),
                nanos: Some(2_000),
            }),
            ..k8s_pb::api::coordination::v1::LeaseSpec::default()
        }),
    };
    let value = decode(&envelope("coordination.k8s.io/v1", "Lease", &message)).unwrap();
    assert_eq!(value["spec"]["renewTime"], "1970-01-01T00:00:01.000002Z");
    // supplementalGroups (field 4 of the security context, 14 of the spec) packed: 1, 300.
    let body = pod_with_spec(&[0x72, 0x05, 0x22, 0x03, 0x01, 0xac, 0x02]);
    let value = decode(&body).unwrap();
    assert_eq!(
        value["spec"]["securityContext"]["supplementalGroups"],
        json!([1, 300])
    );
}

#[test]
fn what_is_known_of_a_requester_is_a_list_for_each_key() {
    // spec (2) with one entry of extra (6): key "k", value (2) a message with two items (1).
    let entry = b"\x0a\x01k\x12\x06\x0a\x01a\x0a\x01b";
    let spec = [&[0x32, 11][..], entry].concat();
    let message = [&[0x12, 13][..], &spec].concat();
    let type_meta = b"\x0a\x16certificates.k8s.io/v1\x12\x19CertificateSigningRequest";
    let body = [MAGIC, &[0x0a, 51], type_meta, &[0x12, 15], &message].concat();
    assert_eq!(decode(&body).unwrap()["spec"]["extra"], json!({"k": ["a", "b"]}));
}

#[test]
fn broken_bodies_are_refused() {
    let good = envelope("v1", "Namespace", &core::Namespace::default());
    assert!(decode(&good).is_ok());
    assert_eq!(decode(b"{}"), Err(ProtobufError::Magic));
    assert_eq!(
        decode(&pod_with_spec(&[0xfa, 0x3f, 0x00])),
        Err(ProtobufError::UnknownField {
            message: "PodSpec",
            number: 1023
        })
    );
    for broken in [&[0x72u8, 0x7f][..], &[0x72], &[0x0b], &[0x70, 0x01], &[0xff; 11]] {
        assert!(
            matches!(
                decode(&pod_with_spec(broken)),
                Err(ProtobufError::Malformed { .. })
            ),
            "{broken:x?}"
        );
    }
    let kind = decode(&envelope("apps/v1", "Deployment", &core::Namespace::default())).unwrap_err();
    assert_eq!(
        kind,
        ProtobufError::Kind {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned()
        }
    );
}

/// Every JSON name of the tables is a field of the type that reads it. The exceptions are fields younger
/// than the types: strict validation refuses them, as it does in JSON.
#[test]
fn tables_name_the_fields_of_the_types() {
    const YOUNGER: &[&str] = &[
        "allocatedResources",
        "declaredFeatures",
        "extendedResourceClaimStatus",
        "fileKeyRef",
        "hostnameOverride",
        "observedGeneration",
        "podCertificate",
        "resources",
        "restartPolicyRules",
        "workloadRef",
    ];
    let check = |kind: &str, api_version: &str, unknown: Vec<String>| {
        assert!(messages::by_kind(api_version, kind).is_some());
        let surprising: Vec<_> = unknown
            .iter()
            .filter(|path| !YOUNGER.iter().any(|field| path.ends_with(field)))
            .collect();
        assert!(surprising.is_empty(), "{kind}: {surprising:?}");
    };
    use k8s_openapi::api as types;
    check("Pod", "v1", unknown::<types::core::v1::Pod>("v1", "Pod"));
    check("Node", "v1", unknown::<types::core::v1::Node>("v1", "Node"));
    check("Event", "v1", unknown::<types::core::v1::Event>("v1", "Event"));
    check(
        "Namespace",
        "v1",
        unknown::<types::core::v1::Namespace>("v1", "Namespace"),
    );
    check("Secret", "v1", unknown::<types::core::v1::Secret>("v1", "Secret"));
    check(
        "ConfigMap",
        "v1",
        unknown::<types::core::v1::ConfigMap>("v1", "ConfigMap"),
    );
    check(
        "Service",
        "v1",
        unknown::<types::core::v1::Service>("v1", "Service"),
    );
    check(
        "ServiceAccount",
        "v1",
        unknown::<types::core::v1::ServiceAccount>("v1", "ServiceAccount"),
    );
    check(
        "Binding",
        "v1",
        unknown::<types::core::v1::Binding>("v1", "Binding"),
    );
    let (group, kind) = ("networking.k8s.io/v1", "NetworkPolicy");
    check(
        kind,
        group,
        unknown::<types::networking::v1::NetworkPolicy>(group, kind),
    );
    let (group, kind) = ("coordination.k8s.io/v1", "Lease");
    check(
        kind,
        group,
        unknown::<types::coordination::v1::Lease>(group, kind),
    );
    let (group, kind) = ("authentication.k8s.io/v1", "SelfSubjectReview");
    check(
        kind,
        group,
        unknown::<types::authentication::v1::SelfSubjectReview>(group, kind),
    );
    let (group, kind) = ("certificates.k8s.io/v1", "CertificateSigningRequest");
    check(
        kind,
        group,
        unknown::<types::certificates::v1::CertificateSigningRequest>(group, kind),
    );
    let (group, kind) = ("v1", "PersistentVolume");
    check(
        kind,
        group,
        unknown::<types::core::v1::PersistentVolume>(group, kind),
    );
    let (group, kind) = ("v1", "PersistentVolumeClaim");
    check(
        kind,
        group,
        unknown::<types::core::v1::PersistentVolumeClaim>(group, kind),
    );
    let (group, kind) = ("storage.k8s.io/v1", "StorageClass");
    check(
        kind,
        group,
        unknown::<types::storage::v1::StorageClass>(group, kind),
    );
    let (group, kind) = ("discovery.k8s.io/v1", "EndpointSlice");
    check(
        kind,
        group,
        unknown::<types::discovery::v1::EndpointSlice>(group, kind),
    );
    let (group, kind) = ("policy/v1", "PodDisruptionBudget");
    check(
        kind,
        group,
        unknown::<types::policy::v1::PodDisruptionBudget>(group, kind),
    );
    let (group, kind) = ("policy/v1", "Eviction");
    check(kind, group, unknown::<types::policy::v1::Eviction>(group, kind));
    let (group, kind) = ("authentication.k8s.io/v1", "TokenRequest");
    check(
        kind,
        group,
        unknown::<types::authentication::v1::TokenRequest>(group, kind),
    );
    let (group, kind) = ("authentication.k8s.io/v1", "TokenReview");
    check(
        kind,
        group,
        unknown::<types::authentication::v1::TokenReview>(group, kind),
    );
    let (group, kind) = ("authorization.k8s.io/v1", "SelfSubjectAccessReview");
    check(
        kind,
        group,
        unknown::<types::authorization::v1::SelfSubjectAccessReview>(group, kind),
    );
}

/// A client that speaks protobuf speaks it for every kind that Kubernetes itself has, and does not fall back to JSON.
#[test]
fn every_kind_of_kubernetes_is_read() {
    let own = |group: &str| {
        let of_definitions = group == "policy.networking.k8s.io";
        matches!(group, "" | "policy") || (group.ends_with(".k8s.io") && !of_definitions)
    };
    let rows = api::resources::RESOURCES.iter();
    let stored = rows.filter(|row| row.stored == api::resources::Stored::Yes && own(row.group));
    let missing = stored.filter(|row| messages::by_kind(&row.api_version(), row.kind).is_none());
    assert_eq!(
        missing.map(|row| row.kind).collect::<Vec<_>>(),
        Vec::<&str>::new()
    );
}

#[test]
fn claims_volumes_classes_and_slices_as_operators_send_them() {
    let named = |name: &str| {
        Some(ObjectMeta {
            name: text(name),
            ..ObjectMeta::default()
        })
    };
    let storage = || ("storage".to_owned(), Quantity { string: text("1Gi") });
    let claim = core::PersistentVolumeClaim {
        metadata: named("data"),
        spec: Some(core::PersistentVolumeClaimSpec {
            access_modes: vec!["ReadWriteOnce".to_owned()],
            resources: Some(core::VolumeResourceRequirements {
                requests: [storage()].into(),
                ..core::VolumeResourceRequirements::default()
            }),
            volume_name: text(""),
            ..core::PersistentVolumeClaimSpec::default()
        }),
        status: Some(core::PersistentVolumeClaimStatus {
            phase: text("Bound"),
            capacity: [storage()].into(),
            ..core::PersistentVolumeClaimStatus::default()
        }),
    };
    assert_eq!(
        decode(&envelope("v1", "PersistentVolumeClaim", &claim)),
        Ok(json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
        }))
    );
    let volume = core::PersistentVolume {
        metadata: named("v"),
        spec: Some(core::PersistentVolumeSpec {
            capacity: [storage()].into(),
            persistent_volume_source: Some(core::PersistentVolumeSource {
                host_path: Some(core::HostPathVolumeSource {
                    path: text("/srv"),
                    r#type: text("Directory"),
                }),
                ..core::PersistentVolumeSource::default()
            }),
            node_affinity: Some(core::VolumeNodeAffinity {
                required: Some(core::NodeSelector::default()),
            }),
            ..core::PersistentVolumeSpec::default()
        }),
        status: None,
    };
    assert_eq!(
        decode(&envelope("v1", "PersistentVolume", &volume)),
        Ok(json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "v"},
            "spec": {
                "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/srv", "type": "Directory"},
                "nodeAffinity": {"required": {}},
            },
        }))
    );
    let class = k8s_pb::api::storage::v1::StorageClass {
        metadata: named("fast"),
        provisioner: text("lab.test/disk"),
        parameters: [("kind".to_owned(), "ssd".to_owned())].into(),
        volume_binding_mode: text("WaitForFirstConsumer"),
        ..k8s_pb::api::storage::v1::StorageClass::default()
    };
    assert_eq!(
        decode(&envelope("storage.k8s.io/v1", "StorageClass", &class)),
        Ok(json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "fast"},
            "provisioner": "lab.test/disk", "parameters": {"kind": "ssd"},
            "volumeBindingMode": "WaitForFirstConsumer",
        }))
    );
    let slice = k8s_pb::api::discovery::v1::EndpointSlice {
        metadata: named("web-1"),
        address_type: text("IPv4"),
        endpoints: vec![k8s_pb::api::discovery::v1::Endpoint {
            addresses: vec!["192.0.2.1".to_owned()],
            conditions: Some(k8s_pb::api::discovery::v1::EndpointConditions {
                ready: Some(true),
                ..k8s_pb::api::discovery::v1::EndpointConditions::default()
            }),
            ..k8s_pb::api::discovery::v1::Endpoint::default()
        }],
        ports: vec![k8s_pb::api::discovery::v1::EndpointPort {
            port: Some(80),
            ..k8s_pb::api::discovery::v1::EndpointPort::default()
        }],
    };
    assert_eq!(
        decode(&envelope("discovery.k8s.io/v1", "EndpointSlice", &slice)),
        Ok(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1"},
            "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": true}}],
            "ports": [{"port": 80}],
        }))
    );
}

#[test]
fn numbers_are_unique_in_each_table() {
    for message in messages::ALL {
        let mut numbers: Vec<_> = message.fields.iter().map(|field| field.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), message.fields.len(), "{}", message.name);
    }
}

/// Fields that `T` does not know in an object with every field of the table.
fn unknown<T: serde::de::DeserializeOwned>(api_version: &str, kind: &str) -> Vec<String> {
    let mut object = Map::new();
    full(messages::by_kind(api_version, kind).unwrap(), &mut object);
    object.insert("apiVersion".to_owned(), Value::from(api_version));
    object.insert("kind".to_owned(), Value::from(kind));
    typed::read::<T>(&Value::Object(object))
        .map(|(_, unknown)| unknown)
        .unwrap()
}

fn full(message: &Message, object: &mut Map<String, Value>) {
    for field in message.fields {
        let one = match field.shape {
            Shape::Text | Shape::Quantity | Shape::Bytes => json!(""),
            Shape::Int | Shape::IntOrString => json!(1),
            Shape::Bool => json!(true),
            Shape::Time | Shape::MicroTime => json!("2026-01-01T00:00:00Z"),
            Shape::RawJson => json!({}),
            Shape::Texts => json!([""]),
            Shape::Message(inner) if field.name == "inline" => {
                full(inner, object);
                continue;
            }
            Shape::Message(inner) => {
                let mut map = Map::new();
                full(inner, &mut map);
                Value::Object(map)
            }
        };
        let value = match field.multiplicity {
            Multiplicity::One => one,
            Multiplicity::List => json!([one]),
            Multiplicity::Map => json!({"key": one}),
        };
        object.insert(field.name.to_owned(), value);
    }
}

/// A pod body around raw bytes of its spec.
fn pod_with_spec(spec: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
    let pod = [&[0x12, length(spec)], spec].concat();
    let type_meta = b"\x0a\x02v1\x12\x03Pod";
    [
        MAGIC,
        &[0x0a, length(type_meta)],
        type_meta,
        &[0x12, length(&pod)],
        &pod,
    ]
    .concat()
}
