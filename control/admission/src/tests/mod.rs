//! Whole objects through [`admit`], as clients send them.

use std::collections::BTreeMap;

use api::{
    Digest,
    annotations::{SANDBOX_STATUS, USER_APISERVER},
    resources::by_any_name,
};
use serde_json::json;

use super::*;

mod pods;
mod services;

const NOW: &str = "2026-06-01T00:00:00Z";

fn request<'a>(resource: &str, old: Option<&'a Value>, new: Value) -> AdmissionRequest<'a> {
    AdmissionRequest {
        operation: if old.is_some() {
            Operation::Update
        } else {
            Operation::Create
        },
        resource: by_any_name(resource).unwrap(),
        subresource: "",
        namespace: "default",
        name: "x",
        old,
        new,
        user: "admin",
        now: NOW.parse().unwrap(),
    }
}

/// An object of `resource` called `x`, with the members of `body`.
fn object(resource: &str, body: Value) -> Value {
    let row = by_any_name(resource).unwrap();
    let mut object = json!({
        "apiVersion": row.api_version(), "kind": row.kind, "metadata": {"name": "x"},
    });
    if row.namespaced() {
        object["metadata"]["namespace"] = json!("default");
    }
    for (key, value) in body.as_object().unwrap() {
        match key.as_str() {
            "metadata" => object[key]
                .as_object_mut()
                .unwrap()
                .extend(value.as_object().unwrap().clone()),
            _ => object[key] = value.clone(),
        }
    }
    object
}

/// Problems with a new object, sorted, or an empty list.
fn problems(resource: &str, body: Value) -> Vec<String> {
    refusals(&request(resource, None, object(resource, body)))
}

/// Problems with a change.
fn problems_of_change(resource: &str, old: Value, new: Value) -> Vec<String> {
    let (old, new) = (stored(resource, old), object(resource, new));
    refusals(&request(resource, Some(&old), new))
}

fn refusals(request: &AdmissionRequest<'_>) -> Vec<String> {
    match review(request) {
        Ok(()) => Vec::new(),
        Err(status) if status.causes().is_empty() => vec![status.message().to_owned()],
        Err(status) => {
            let mut causes: Vec<String> = status.causes().iter().map(ToString::to_string).collect();
            causes.sort();
            causes
        }
    }
}

/// The object as it is stored: with defaults, and pinned.
fn stored(resource: &str, body: Value) -> Value {
    let mut object = complete(&request(resource, None, object(resource, body))).unwrap();
    if resource == "pods" {
        let pin = Pin {
            digest: Digest::of(b"image"),
            scan: "scan".to_owned(),
            verdict: "verdict".to_owned(),
        };
        let lists = ["initContainers", "containers"].map(|list| &object["spec"][list]);
        let containers = lists.into_iter().flat_map(metadata::items);
        let names = containers.map(|c| c["name"].as_str().unwrap().to_owned());
        let pins: BTreeMap<String, Pin> = names.map(|name| (name, pin.clone())).collect();
        pin_images(&mut object, &pins).unwrap();
    }
    object
}

fn pod(spec: Value) -> Value {
    let mut body = json!({"spec": {"containers": [{"name": "c", "image": "r.example/app:1"}]}});
    for (key, value) in spec.as_object().unwrap() {
        body["spec"][key] = value.clone();
    }
    body
}

fn container(fields: Value) -> Value {
    let mut container = json!({"name": "c", "image": "r.example/app:1"});
    container
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    pod(json!({"containers": [container]}))
}

#[test]
fn metadata_of_every_kind() {
    let cases = [
        (json!({"name": ""}), "metadata.name: Required value"),
        (json!({"name": "A"}), "metadata.name: Invalid value"),
        (json!({"labels": {"a b": "c"}}), "metadata.labels: Invalid value"),
        (json!({"labels": {"a": "b c"}}), "metadata.labels: Invalid value"),
        (
            json!({"annotations": {"a b": "c"}}),
            "metadata.annotations: Invalid value",
        ),
        (
            json!({"annotations": {"a": "x".repeat(256 * 1024)}}),
            "metadata.annotations: Too long",
        ),
        (json!({"finalizers": ["x"]}), "metadata.finalizers: Invalid value"),
        (
            json!({"ownerReferences": [{"kind": "Pod", "name": "p", "uid": "u"}]}),
            "metadata.ownerReferences[0].apiVersion: Required",
        ),
    ];
    for (metadata, expected) in cases {
        let found = problems("configmaps", json!({"metadata": metadata}));
        assert_eq!(found.len(), 1, "{expected}: {found:?}");
        assert!(found[0].starts_with(expected), "{found:?}");
    }
    assert!(
        problems(
            "configmaps",
            json!({"metadata": {"name": "a.b", "labels": {"a/b": ""}, "finalizers": ["a/b"]}})
        )
        .is_empty()
    );
    assert!(
        !problems("namespaces", json!({"metadata": {"name": "a.b"}})).is_empty(),
        "namespaces are labels"
    );
    let huge = json!({"data": {"a": "x".repeat(1024 * 1024 + 1)}});
    assert!(problems("configmaps", huge)[0].starts_with("data: Too long"));
    let deleting = json!({"metadata": {"deletionTimestamp": NOW, "finalizers": ["a/old"]}});
    let added = json!({"metadata": {"deletionTimestamp": NOW, "finalizers": ["a/old", "a/new"]}});
    assert_eq!(problems_of_change("configmaps", deleting.clone(), added).len(), 1);
    assert!(
        problems_of_change(
            "configmaps",
            deleting,
            json!({"metadata": {"deletionTimestamp": NOW}})
        )
        .is_empty()
    );
}

#[test]
fn secrets_and_config_maps() {
    let secret = stored(
        "secrets",
        json!({"stringData": {"a": "text"}, "data": {"b": "AA=="}}),
    );
    assert_eq!(secret["data"], json!({"a": "dGV4dA==", "b": "AA=="}));
    assert_eq!(
        (secret.get("stringData"), &secret["type"]),
        (None, &json!("Opaque"))
    );
    let cases = [
        (
            "secrets",
            json!({"data": {"a/b": ""}}),
            "data[a/b]: Invalid value",
        ),
        (
            "secrets",
            json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
            "data[tls.key]: Required value",
        ),
        (
            "secrets",
            json!({"type": "kubernetes.io/basic-auth"}),
            "data[username]: Required value",
        ),
        (
            "secrets",
            json!({"type": "kubernetes.io/service-account-token"}),
            "type: Forbidden",
        ),
        (
            "configmaps",
            json!({"data": {"..": ""}}),
            "data[..]: Invalid value",
        ),
        (
            "configmaps",
            json!({"data": {"a": ""}, "binaryData": {"a": ""}}),
            "data[a]: Invalid value",
        ),
    ];
    for (resource, body, expected) in cases {
        let found = problems(resource, body);
        assert!(
            found.len() == 1 && found[0].starts_with(expected),
            "{expected}: {found:?}"
        );
    }
    for resource in ["secrets", "configmaps"] {
        let frozen = json!({"immutable": true, "data": {"a": "AA=="}});
        assert!(problems_of_change(resource, frozen.clone(), frozen.clone()).is_empty());
        let changed = json!({"immutable": true, "data": {"a": "AQ=="}});
        assert_eq!(problems_of_change(resource, frozen.clone(), changed).len(), 1);
        assert_eq!(
            problems_of_change(resource, frozen, json!({"data": {"a": "AA=="}})).len(),
            1
        );
    }
    let retyped = problems_of_change("secrets", json!({}), json!({"type": "example.com/x"}));
    assert_eq!(
        retyped,
        ["type: Invalid value: \"example.com/x\": field is immutable"]
    );
}

#[test]
fn namespaces_carry_their_own_name() {
    let forged = json!({"metadata": {"labels": {"kubernetes.io/metadata.name": "other", "a": "b"}}});
    let namespace = stored("namespaces", forged);
    assert_eq!(
        namespace["metadata"]["labels"],
        json!({"kubernetes.io/metadata.name": "x", "a": "b"})
    );
    assert_eq!(namespace["status"]["phase"], "Active");
    assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]));
}

#[test]
fn network_policies_get_types_and_are_checked_by_the_compiler() {
    let policy = stored(
        "networkpolicies",
        json!({"spec": {
        "podSelector": {}, "egress": [{}], "ingress": [{"ports": [{"port": 80}]}]}}),
    );
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(policy["spec"]["ingress"][0]["ports"][0]["protocol"], "TCP");
    for silent in [
        json!({"podSelector": {}}),
        json!({"podSelector": {}, "egress": []}),
        json!({"podSelector": {}, "egress": null}),
    ] {
        let plain = stored("networkpolicies", json!({"spec": silent}));
        assert_eq!(plain["spec"]["policyTypes"], json!(["Ingress"]));
    }
    let bad =
        json!({"spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}]}});
    let found = problems("networkpolicies", bad);
    assert!(
        found.len() == 1 && found[0].starts_with("spec.ingress[0].from[0].ipBlock"),
        "{found:?}"
    );
    assert_eq!(problems("networkpolicies", json!({})).len(), 1);
}

#[test]
fn policies_of_calico_get_types() {
    let rules = json!([{"action": "Allow"}]);
    for resource in [
        "networkpolicies.projectcalico.org",
        "globalnetworkpolicies",
        "stagednetworkpolicies",
        "stagedglobalnetworkpolicies",
    ] {
        let types = |spec: Value| stored(resource, json!({"spec": spec}))["spec"]["types"].clone();
        for (spec, expected) in [
            (json!({}), json!(["Ingress"])),
            (json!({"ingress": rules}), json!(["Ingress"])),
            (json!({"egress": rules}), json!(["Egress"])),
            (
                json!({"ingress": [], "egress": rules, "types": []}),
                json!(["Egress"]),
            ),
            (
                json!({"ingress": rules, "egress": rules}),
                json!(["Ingress", "Egress"]),
            ),
            (json!({"ingress": rules, "types": ["Egress"]}), json!(["Egress"])),
        ] {
            assert_eq!(types(spec.clone()), expected, "{resource}: {spec}");
        }
        let spec = json!({"ingress": rules, "types": ["Sideways"]});
        let found = problems(resource, json!({"spec": spec}));
        assert!(
            found.len() == 1 && found[0].starts_with("spec.types[0]"),
            "{found:?}"
        );
    }
}

/// What is staged to be deleted has no types, also if they were stored while it was to be set.
#[test]
fn a_policy_that_is_staged_to_be_deleted_has_no_types() {
    let set = stored(
        "stagednetworkpolicies",
        json!({"spec": {"ingress": [{"action": "Deny"}]}}),
    );
    let mut delete = set.clone();
    delete["spec"] = json!({"stagedAction": "Delete", "tier": "default", "types": set["spec"]["types"]});
    let changed = complete(&request("stagednetworkpolicies", Some(&set), delete)).unwrap();
    assert_eq!(
        changed["spec"],
        json!({"stagedAction": "Delete", "tier": "default"})
    );
}

#[test]
fn a_node_cannot_attract_pods() {
    let old = stored(
        "nodes",
        json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]},
        "metadata": {"labels": {"node-role.kubernetes.io/worker": ""}}}),
    );
    let as_node = |edit: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        edit(&mut new);
        review(&AdmissionRequest {
            user: "system:node:x",
            ..request("nodes", Some(&old), new)
        })
        .map_err(|s| s.code())
    };
    assert_eq!(
        as_node(&|new| new["metadata"]["labels"]["kubernetes.io/arch"] = json!("amd64")),
        Ok(())
    );
    assert_eq!(as_node(&|new| new["spec"]["taints"] = json!([])), Err(403));
    assert_eq!(
        as_node(&|new| new["spec"]["unschedulable"] = json!(false)),
        Err(403)
    );
    assert_eq!(as_node(&|new| new["metadata"]["labels"] = json!({})), Err(403));
    assert_eq!(
        as_node(&|new| new["metadata"]["labels"]["node-restriction.kubernetes.io/a"] = json!("b")),
        Err(403)
    );
    let registers = |labels: Value| {
        let node = object("nodes", json!({"metadata": {"name": "x", "labels": labels}}));
        review(&AdmissionRequest {
            user: "system:node:x",
            ..request("nodes", None, node)
        })
        .map_err(|s| s.code())
    };
    assert_eq!(registers(json!({"kubernetes.io/arch": "amd64"})), Ok(()));
    assert_eq!(
        registers(json!({"node-restriction.kubernetes.io/a": "b"})),
        Err(403)
    );
    assert!(
        problems(
            "nodes",
            json!({"spec": {"taints": [{"key": "k", "effect": "Never"}]}})
        )
        .len()
            == 1
    );
}

#[test]
fn image_policies_and_scans() {
    let policy = |spec: Value| {
        let mut full = serde_json::to_value(api::palisade::ImagePolicySpec::default()).unwrap();
        full.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        json!({"spec": full})
    };
    let exemption = |expires: &str| {
        json!({"exemptions": [{"vulnerability": "CVE-2026-1", "package": "openssl", "image": "r.example/app",
            "expires": expires, "reason": "not reachable"}]})
    };
    assert!(problems("imagepolicies", policy(exemption("2026-07-01T00:00:00Z"))).is_empty());
    let cases = [
        (
            exemption("2026-05-31T00:00:00Z"),
            "spec.exemptions[0].expires: Invalid value: \"2026-05-31T00:00:00Z\": must be in the future",
        ),
        (
            exemption("2030-01-01T00:00:00Z"),
            "spec.exemptions[0].expires: Invalid value: \"2030-01-01T00:00:00Z\": must be at most",
        ),
        (
            json!({"exemptions": [{"vulnerability": "", "expires": "2026-07-01T00:00:00Z", "reason": "r"}]}),
            "spec.exemptions[0].vulnerability: ",
        ),
        (
            json!({"exemptions": [{"vulnerability": "CVE-1", "expires": "2026-07-01T00:00:00Z", "reason": " "}]}),
            "spec.exemptions[0].reason: Required",
        ),
        (
            json!({"exemptions": [{"vulnerability": "CVE-1", "image": "r.example/app:1", "expires": "2026-07-01T00:00:00Z", "reason": "r"}]}),
            "spec.exemptions[0].image: ",
        ),
        (
            json!({"allowedRegistries": ["https://r.example"]}),
            "spec.allowedRegistries[0]: ",
        ),
        (
            json!({"allowedRegistries": ["r.example/a:1"]}),
            "spec.allowedRegistries[0]: ",
        ),
        (json!({"namespaces": ["A"]}), "spec.namespaces[0]: "),
        (json!({"maxDbAgeHours": 0}), "spec.maxDbAgeHours: "),
    ];
    for (spec, expected) in cases {
        let found = problems("imagepolicies", policy(spec));
        assert!(
            found.len() == 1 && found[0].starts_with(expected),
            "{expected}: {found:?}"
        );
    }
    for registry in [
        "127.0.0.1:5000",
        "r.example",
        "r.example:5000/team",
        "oci-layout.local",
    ] {
        assert!(
            problems("imagepolicies", policy(json!({"allowedRegistries": [registry]}))).is_empty(),
            "{registry}"
        );
    }
    // An exemption that has expired since does not stand in the way of changing the rest.
    let old = object("imagepolicies", policy(exemption("2026-05-31T00:00:00Z")));
    let mut new = old.clone();
    new["spec"]["ignoreUnfixed"] = json!(true);
    assert!(refusals(&request("imagepolicies", Some(&old), new)).is_empty());

    let digest = Digest::of(b"x").to_string();
    let scan = json!({
        "spec": {"image": "r.example/app:1", "digest": digest},
        "status": {"verdict": "Pass", "packages": 1, "dbUpdatedAt": NOW, "dbHash": digest, "policyHash": digest,
            "scanner": "trivy 0.76.0", "scannerHash": digest, "scannedAt": NOW},
    });
    let scan = request("imagescans", None, object("imagescans", scan));
    assert_eq!(review(&scan).unwrap_err().code(), 403);
    assert!(
        review(&AdmissionRequest {
            user: USER_APISERVER,
            ..scan
        })
        .is_ok()
    );
}

#[test]
fn events_stand_beside_what_they_are_about() {
    let event =
        |namespace: Value| json!({"involvedObject": {"kind": "Pod", "name": "p", "namespace": namespace}});
    assert!(problems("events", event(json!("default"))).is_empty());
    assert!(problems("events", event(Value::Null)).is_empty());
    assert_eq!(problems("events", event(json!("other"))).len(), 1);
    assert!(problems("leases", json!({"spec": {"leaseDurationSeconds": 40}})).is_empty());
    assert_eq!(
        problems("leases", json!({"spec": {"leaseDurationSeconds": 0}})).len(),
        1
    );
}

#[test]
fn policies_of_calico_and_of_clusters() {
    let rule =
        json!({"action": "Allow", "protocol": "TCP", "destination": {"ports": [80, "8000:8010", "http"]}});
    assert!(
        problems(
            "gnp",
            json!({"spec": {"selector": "app == \"web\"", "ingress": [rule]}})
        )
        .is_empty()
    );
    let cnp = |rule: Value| json!({"spec": {"tier": "Admin", "priority": 5, "subject": {"namespaces": {}}, "ingress": [rule]}});
    let good = json!({"action": "Deny", "from": [{"namespaces": {}}]});
    assert!(problems("clusternetworkpolicies", cnp(good)).is_empty());
    for (resource, body, expected) in [
        (
            "gnp",
            json!({"spec": {"selector": "app ="}}),
            "spec.selector: Invalid value: \"app =\"",
        ),
        (
            "caliconetworkpolicies",
            json!({"spec": {"ingress": [{"action": "Allow"}, {"action": "Reject"}]}}),
            "spec.ingress[1].action: Invalid value: \"Reject\"",
        ),
        (
            "sgnp",
            json!({"spec": {"stagedAction": "Perhaps"}}),
            "spec.stagedAction: Invalid value: \"Perhaps\"",
        ),
        (
            "globalnetworksets",
            json!({"spec": {"nets": ["10.0.0.0/8", "10.0.0.0/33"]}}),
            "spec.nets[1]: Invalid value: \"10.0.0.0/33\"",
        ),
        (
            "tiers",
            json!({"spec": {"defaultAction": "Allow"}}),
            "spec.defaultAction: Invalid value: \"Allow\"",
        ),
        (
            "clusternetworkpolicies",
            cnp(json!({"action": "Log", "from": [{"namespaces": {}}]})),
            "spec.ingress[0].action: Invalid value: \"Log\"",
        ),
        (
            "felixconfigurations",
            json!({"spec": {}}),
            "metadata.name: Invalid value: \"x\": settings of single nodes",
        ),
    ] {
        let found = problems(resource, body);
        let hit = found.iter().any(|problem| problem.starts_with(expected));
        assert!(hit, "{resource}: {expected} not in {found:?}");
    }
}

#[test]
fn what_calico_fills_in() {
    let policy = stored(
        "gnp",
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"order": 10}}),
    );
    assert_eq!(
        policy["spec"],
        json!({"tier": "default", "order": 10, "types": ["Ingress"]})
    );
    let labels = json!({"a": "b", "projectcalico.org/tier": "default"});
    assert_eq!(policy["metadata"]["labels"], labels);
    // Nobody makes a selector find a policy in a tier that it is not in.
    let body = json!({"metadata": {"labels": {"projectcalico.org/tier": "ops"}}, "spec": {}});
    assert_eq!(
        stored("snp", body)["metadata"]["labels"],
        json!({"projectcalico.org/tier": "default"})
    );
    assert_eq!(
        stored("tiers", json!({"spec": {"order": 1}}))["spec"],
        json!({"order": 1, "defaultAction": "Deny"})
    );
}

#[test]
fn built_in_objects_are_valid_and_stay_as_they_are() {
    let mut found = Vec::new();
    for (row, new) in built_in_objects() {
        let name = new["metadata"]["name"].as_str().unwrap().to_owned();
        let request = |new| AdmissionRequest {
            resource: row,
            namespace: "",
            name: &name,
            ..request("tiers", None, new)
        };
        assert_eq!(complete(&request(new.clone())).unwrap()["spec"], new["spec"]);
        assert_eq!(refuse_deletion(row, &name).unwrap_err().code(), 403);
        if row.kind == "Tier" {
            // Left out means as it is.
            let mut bare = new.clone();
            bare["spec"] = json!({});
            assert_eq!(complete(&request(bare)).unwrap()["spec"], new["spec"]);
            for change in [
                json!({"order": 7}),
                json!({"defaultAction": if name == "default" { "Pass" } else { "Deny" }}),
            ] {
                let mut changed = new.clone();
                changed["spec"] = change;
                assert_eq!(refusals(&request(changed)).len(), 1);
            }
        }
        found.push(format!("{} {name}", row.kind));
    }
    assert_eq!(
        found,
        [
            "Tier kube-admin",
            "Tier default",
            "Tier kube-baseline",
            "FelixConfiguration default",
            "StorageClass local-path"
        ]
    );
    assert!(refuse_deletion(by_any_name("tiers").unwrap(), "ops").is_ok());
    assert!(refuse_deletion(by_any_name("netpol").unwrap(), "default").is_ok());
}

#[test]
fn slices_name_addresses_of_their_family() {
    let slice = |addresses: Value, port: i32| json!({"addressType": "IPv4", "endpoints": [{"addresses": addresses}], "ports": [{"port": port, "protocol": "TCP"}]});
    assert!(problems("endpointslices", slice(json!(["10.0.0.1"]), 80)).is_empty());
    assert_eq!(
        problems("endpointslices", slice(json!(["10.0.0.1", "::1"]), 0)),
        [
            "endpoints[0].addresses: Invalid value: \"::1\": must be an address of the slice's addressType",
            "ports[0].port: Invalid value: 0: must be from 1 to 65535",
        ]
    );
    assert_eq!(
        problems(
            "endpointslices",
            json!({"addressType": "FQDN", "endpoints": [{"addresses": []}]})
        )
        .len(),
        2
    );
}

#[test]
fn assertions_are_sentences_that_can_be_read() {
    let assertion = |text: &str| json!({"spec": {"assertion": text}});
    assert_eq!(
        problems(
            "policyassertions",
            assertion("no pod in ns(pci) reaches internet")
        ),
        [] as [&str; 0]
    );
    assert_eq!(
        problems("policyassertions", assertion(" ")),
        ["spec.assertion: Required value: say what must hold, such as: no pod in ns(pci) reaches internet"]
    );
    let refused = problems("policyassertions", assertion("no pods reaches the moon"));
    assert!(
        refused[0].contains("spec.assertion") && refused[0].contains("column 21: expected a pod, ns(NAME)"),
        "{refused:?}"
    );
    let long = format!("no pod reaches {} internet", "a ".repeat(2048));
    assert_eq!(
        problems("policyassertions", assertion(&long)),
        ["spec.assertion: Too long: may not be more than 4096 bytes"]
    );
    let enforced = |how: &str| {
        let annotations = json!({api::annotations::ENFORCEMENT: how});
        json!({"metadata": {"annotations": annotations}, "spec": {"assertion": "isolated ns(pci)"}})
    };
    assert_eq!(problems("policyassertions", enforced("warn")), [] as [&str; 0]);
    assert_eq!(problems("policyassertions", enforced("block")), [] as [&str; 0]);
    assert_eq!(
        problems("policyassertions", enforced("off")),
        [
            "metadata.annotations[palisade.dev/enforcement]: Unsupported value: \"off\": supported values: \"block\", \"warn\""
        ]
    );
}

#[test]
fn sandbox_profiles_name_what_cannot_be_enforced() {
    let profile = |spec: Value| json!({"metadata": {"name": "x"}, "spec": spec});
    let good = profile(json!({
        "preset": "strict",
        "tcp": {"bind": [8080], "connect": [443, 5432]},
        "minimumLandlockABI": 6,
        "enforcement": "BestEffort",
        "landlock": {
            "paths": {"read": ["/"], "write": ["/tmp", "/data"], "execute": ["/bin", "/database"]},
            "ioctl": ["/dev/pts", "/dev"],
            "scopes": ["Signals", "AbstractUnixSockets"],
        },
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 2, "op": "SCMP_CMP_LE"}]}]},
    }));
    assert!(problems("sandboxprofiles", good).is_empty());
    assert!(problems("sandboxprofiles", profile(json!({}))).is_empty());
    let rule = |rule: Value| json!({"seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}});
    for (spec, field) in [
        (
            json!({"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}}),
            "spec.seccomp.defaultAction",
        ),
        (
            json!({"seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/run/x"}}),
            "spec.seccomp.listenerPath",
        ),
        (
            json!({"seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}}),
            "spec.seccomp.flags",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_TRACE"})),
            "spec.seccomp.syscalls[0].action",
        ),
        (
            rule(json!({"action": "SCMP_ACT_ALLOW"})),
            "spec.seccomp.syscalls[0].names",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
            "spec.seccomp.syscalls[0].args[0].index",
        ),
        (json!({"tcp": {"bind": vec![1; 1025]}}), "spec.tcp.bind"),
        (
            json!({"landlock": {"paths": {"read": ["etc"]}}}),
            "spec.landlock.paths.read[0]: Invalid value: \"etc\": must be absolute: begin it with /",
        ),
        (
            json!({"landlock": {"paths": {"write": ["/tmp", "/a/../b"]}}}),
            "spec.landlock.paths.write[1]",
        ),
        (
            json!({"landlock": {"paths": {"write": ["/tmp/"]}}}),
            "spec.landlock.paths.write[0]",
        ),
        (
            json!({"landlock": {"paths": {"read": ["/a", "/a"]}}}),
            "spec.landlock.paths.read[1]",
        ),
        (
            json!({"landlock": {"paths": {"read": vec!["/"; 1025]}}}),
            "spec.landlock.paths.read",
        ),
        (
            json!({"landlock": {"paths": {"write": ["/data"], "execute": ["/bin", "/data/bin"]}}}),
            "spec.landlock.paths.execute[1]: Invalid value: \"/data/bin\": is beneath /data",
        ),
        (
            json!({"landlock": {"ioctl": ["/dev/pts", "/etc"]}}),
            "spec.landlock.ioctl[1]",
        ),
        (
            json!({"landlock": {"scopes": ["Signals", "Signals"]}}),
            "spec.landlock.scopes[1]",
        ),
        (
            json!({"capabilities": ["CAP_CHOWN", "KILL"]}),
            "spec.capabilities[1]",
        ),
    ] {
        let mut found = problems("sandboxprofiles", profile(spec));
        // A list of a thousand equal paths is wrong in more than one way.
        found.truncate(1);
        assert!(
            found.len() == 1 && found[0].starts_with(field),
            "{field}: {found:?}"
        );
    }
    let mut preset = profile(json!({}));
    preset["metadata"]["name"] = json!("baseline");
    assert_eq!(problems("sandboxprofiles", preset).len(), 1);
}
