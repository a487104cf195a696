use api::resources::{RESOURCES, by_any_name};

use super::*;

const NOW: &str = "2026-01-01T01:00:00Z";

/// Cells of one object, joined like a row of kubectl; `wide` adds the columns of priority 1.
fn row(resource: &str, object: &Value, wide: bool) -> String {
    let table = table_of_one(
        by_any_name(resource).unwrap(),
        object,
        IncludeObject::None,
        NOW.parse().unwrap(),
    );
    let definitions = table["columnDefinitions"].as_array().unwrap();
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(definitions.len(), cells.len());
    let shown = definitions
        .iter()
        .zip(cells)
        .filter(|(d, _)| wide || d["priority"] == 0);
    shown
        .map(
            |(definition, cell)| match (definition["type"].as_str().unwrap(), cell) {
                ("string", Value::String(text)) => text.clone(),
                ("integer", Value::Number(number)) => number.to_string(),
                (kind, cell) => panic!("{} announces {kind}, has {cell}", definition["name"]),
            },
        )
        .collect::<Vec<_>>()
        .join(" | ")
}

fn pod(status: &Value) -> Value {
    json!({
        "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "7"},
        "spec": {"nodeName": "n", "containers": [{"name": "a"}, {"name": "b"}]},
        "status": status,
    })
}

#[test]
fn pods_show_the_most_telling_state() {
    let running = json!({"running": {"startedAt": NOW}});
    let cases = [
        (json!({"phase": "Pending"}), "p | 0/2 | Pending | 0 | 60m"),
        (
            json!({"phase": "Running", "containerStatuses": [
                {"ready": true, "restartCount": 0, "state": running},
                {"ready": true, "restartCount": 0, "state": running}]}),
            "p | 2/2 | Running | 0 | 60m",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [
                {"ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"finishedAt": "2026-01-01T00:59:00Z"}}},
                {"ready": true, "restartCount": 1, "state": running}]}),
            "p | 1/2 | CrashLoopBackOff | 4 (60s ago) | 60m",
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [
                {"ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 3}}}]}),
            "p | 0/2 | ExitCode:3 | 0 | 60m",
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [
                {"ready": false, "restartCount": 0, "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]}),
            "p | 0/2 | OOMKilled | 0 | 60m",
        ),
        (
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [
                {"ready": false, "restartCount": 0, "state": {"terminated": {"reason": "Completed", "exitCode": 0}}},
                {"ready": true, "restartCount": 0, "state": running}]}),
            "p | 1/2 | NotReady | 0 | 60m",
        ),
        (
            json!({"phase": "Failed", "reason": "Evicted"}),
            "p | 0/2 | Evicted | 0 | 60m",
        ),
    ];
    for (status, expected) in cases {
        assert_eq!(row("pods", &pod(&status), false), expected, "{status}");
    }
    let mut deleted = pod(&json!({"phase": "Running"}));
    deleted["metadata"]["deletionTimestamp"] = json!(NOW);
    assert_eq!(row("pods", &deleted, false), "p | 0/2 | Terminating | 0 | 60m");
    let placed = pod(&json!({"phase": "Running", "podIP": "10.0.0.2"}));
    assert_eq!(
        row("pods", &placed, true),
        "p | 0/2 | Running | 0 | 60m | 10.0.0.2 | n | <none> | <none>"
    );
}

#[test]
fn pods_that_initialize_show_how_far_they_are() {
    let running = json!({"running": {"startedAt": NOW}});
    let completed = json!({"terminated": {"reason": "Completed", "exitCode": 0}});
    let initializing = json!({"waiting": {"reason": "PodInitializing"}});
    let init = |name: &str, state: &Value| {
        let ready = *state == completed;
        json!({"name": name, "ready": ready, "started": false, "restartCount": 0, "state": state})
    };
    let sidecar = |started: bool, restarts: u32, state: &Value| json!({"name": "s", "ready": started, "started": started, "restartCount": restarts, "state": state});
    let row_of = |inits: Value, phase: &str, mains: &Value, initialized: bool| {
        let status = if initialized { "True" } else { "False" };
        let mut pod = pod(&json!({
            "phase": phase, "initContainerStatuses": inits,
            "conditions": [{"type": "Initialized", "status": status}, {"type": "Ready", "status": status}],
            "containerStatuses": [
                {"name": "a", "ready": mains == &running, "restartCount": 1, "state": mains},
                {"name": "b", "ready": mains == &running, "restartCount": 0, "state": mains}],
        }));
        pod["spec"]["initContainers"] = json!([
            {"name": "i"}, {"name": "s", "restartPolicy": "Always"}, {"name": "j"}]);
        row("pods", &pod, false)
    };
    let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
    let failed = json!({"terminated": {"reason": "Error", "exitCode": 1}});
    let cases = [
        (
            json!([init("i", &running), sidecar(false, 0, &initializing)]),
            "p | 0/3 | Init:0/3 | 0 | 60m",
        ),
        (
            json!([init("i", &completed), sidecar(false, 0, &running)]),
            "p | 0/3 | Init:1/3 | 0 | 60m",
        ),
        (
            json!([
                init("i", &completed),
                sidecar(true, 2, &running),
                init("j", &running)
            ]),
            "p | 1/3 | Init:2/3 | 2 | 60m",
        ),
        (
            json!([init("i", &waiting("CrashLoopBackOff"))]),
            "p | 0/3 | Init:CrashLoopBackOff | 0 | 60m",
        ),
        (
            json!([init("i", &waiting("ErrImagePull"))]),
            "p | 0/3 | Init:ErrImagePull | 0 | 60m",
        ),
        (json!([init("i", &failed)]), "p | 0/3 | Init:Error | 0 | 60m"),
        (
            json!([init("i", &json!({"terminated": {"exitCode": 2}}))]),
            "p | 0/3 | Init:ExitCode:2 | 0 | 60m",
        ),
        (
            json!([init("i", &json!({"terminated": {"exitCode": 2, "signal": 9}}))]),
            "p | 0/3 | Init:Signal:9 | 0 | 60m",
        ),
    ];
    for (inits, expected) in cases {
        assert_eq!(
            row_of(inits.clone(), "Pending", &initializing, false),
            expected,
            "{inits}"
        );
    }
    let done = json!([
        init("i", &completed),
        sidecar(true, 2, &running),
        init("j", &completed)
    ]);
    assert_eq!(
        row_of(done.clone(), "Pending", &initializing, true),
        "p | 1/3 | PodInitializing | 3 | 60m"
    );
    assert_eq!(
        row_of(done, "Running", &running, true),
        "p | 3/3 | Running | 3 | 60m"
    );
    // A sidecar that dies after the start of the pod does not make it initialize again.
    let died = json!([
        init("i", &completed),
        sidecar(false, 2, &failed),
        init("j", &completed)
    ]);
    assert_eq!(
        row_of(died, "Running", &running, true),
        "p | 2/3 | Running | 3 | 60m"
    );
}

#[test]
fn other_kinds() {
    let metadata = json!({"name": "x", "creationTimestamp": "2025-12-31T01:00:00Z"});
    let cases = [
        (
            "configmaps",
            json!({"data": {"a": "b"}, "binaryData": {"c": "AA=="}}),
            "x | 2 | 24h",
        ),
        (
            "secrets",
            json!({"type": "Opaque", "data": {"a": ""}}),
            "x | Opaque | 1 | 24h",
        ),
        (
            "namespaces",
            json!({"status": {"phase": "Active"}}),
            "x | Active | 24h",
        ),
        ("serviceaccounts", json!({}), "x | 0 | 24h"),
        (
            "leases",
            json!({"spec": {"holderIdentity": "node"}}),
            "x | node | 24h",
        ),
        (
            "networkpolicies",
            json!({"spec": {"podSelector": {"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": [
                {"key": "c", "operator": "NotIn", "values": ["x", "y"]}, {"key": "d", "operator": "DoesNotExist"}]}}}),
            "x | a=1,b=2,c notin (x,y),!d | 24h",
        ),
        (
            "networkpolicies",
            json!({"spec": {"podSelector": {}}}),
            "x | <none> | 24h",
        ),
        (
            "tiers",
            json!({"spec": {"order": 100, "defaultAction": "Pass"}}),
            "x | 100 | Pass | 24h",
        ),
        ("tiers", json!({"spec": {}}), "x | <none> | Deny | 24h"),
        (
            "networkpolicies.projectcalico.org",
            json!({"spec": {"tier": "ops", "order": 0.5}}),
            "x | ops | 0.5 | 24h",
        ),
        ("gnp", json!({"spec": {}}), "x | default | <none> | 24h"),
        (
            "sgnp",
            json!({"spec": {"stagedAction": "Delete"}}),
            "x | default | <none> | Delete | 24h",
        ),
        (
            "endpointslices",
            json!({"addressType": "IPv4", "ports": [{"port": 80}, {}], "endpoints": [
                {"addresses": ["10.0.0.1", "10.0.0.2"]}, {"addresses": ["10.0.0.3"]}, {"addresses": ["10.0.0.4"]}]}),
            "x | IPv4 | 80,* | 10.0.0.1,10.0.0.2,10.0.0.3 + 1 more... | 24h",
        ),
        ("sknp", json!({"spec": {}}), "x | Set | 24h"),
        (
            "globalnetworksets",
            json!({"spec": {"nets": ["10.0.0.0/8", "192.0.2.1"]}}),
            "x | 2 | 0 | 24h",
        ),
        (
            "hostendpoints",
            json!({"spec": {"node": "n", "interfaceName": "*"}}),
            "x | n | * | 24h",
        ),
        (
            "felixconfigurations",
            json!({"spec": {"defaultEndpointToHostAction": "Return"}}),
            "x | Return | 24h",
        ),
        ("profiles", json!({"spec": {}}), "x | 24h"),
        (
            "clusternetworkpolicies",
            json!({"spec": {"tier": "Admin", "priority": 7}}),
            "x | Admin | 7 | 24h",
        ),
        (
            "imagepolicies",
            json!({"spec": {"severityThreshold": "HIGH", "ignoreUnfixed": true, "inconclusive": "Refuse"}}),
            "x | HIGH | ignored | Refuse | 0 | 24h",
        ),
        (
            "persistentvolumeclaims",
            json!({"spec": {"volumeName": "v", "storageClassName": "local-path"},
                "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}}),
            "x | Bound | v | 1Gi | RWO | local-path | <unset> | 24h",
        ),
        (
            "persistentvolumes",
            json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany", "ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "local-path",
                "claimRef": {"namespace": "ns", "name": "c"}}, "status": {"phase": "Released"}}),
            "x | 1Gi | RWO,ROX | Delete | Released | ns/c | local-path | <unset> |  | 24h",
        ),
        (
            "storageclasses",
            json!({"provisioner": "p", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"}),
            "x | p | Delete | Immediate | false | 24h",
        ),
        (
            "hostpathgrants",
            json!({"spec": {"path": "/srv", "access": "ReadOnly", "namespaces": ["a", "b"]}}),
            "x | /srv | ReadOnly | a,b | <all> | 24h",
        ),
        (
            "sandboxprofiles",
            json!({"spec": {"preset": "strict", "seccomp": {"syscalls": [{}, {}]}}}),
            "x | strict | 2 | 24h",
        ),
        (
            "imagescans",
            json!({"spec": {"image": "i:1"}, "status": {"verdict": "Refused", "counts": {"HIGH": 2},
                "scannedAt": "2026-01-01T00:59:30Z"}}),
            "x | i:1 | Refused | 0 | 2 | 30s | 24h",
        ),
        (
            "nodes",
            json!({"spec": {"unschedulable": true}, "status": {"nodeInfo": {"kubeletVersion": "v1"},
                "conditions": [{"type": "Ready", "status": "True"}]}}),
            "x | Ready,SchedulingDisabled | <none> | 24h | v1",
        ),
        (
            "events",
            json!({"type": "Normal", "reason": "Started", "message": "m\n", "lastTimestamp": "2026-01-01T00:55:00Z",
                "involvedObject": {"kind": "Pod", "name": "p"}}),
            "5m | Normal | Started | pod/p | m",
        ),
    ];
    for (resource, mut object, expected) in cases {
        object["metadata"] = metadata.clone();
        assert_eq!(row(resource, &object, false), expected);
        row(resource, &object, true);
    }
}

#[test]
fn cells_of_an_empty_object_still_have_their_types() {
    for resource in RESOURCES {
        let name = format!("{}.{}", resource.plural, resource.group);
        row(&name, &json!({"metadata": {"name": "x"}}), true);
    }
}

#[test]
fn rows_carry_what_was_asked_for() {
    let pods = by_any_name("pods").unwrap();
    let now = NOW.parse().unwrap();
    let object = pod(&json!({}));
    let row = |include| table_of_one(pods, &object, include, now)["rows"][0]["object"].clone();
    assert_eq!(row(IncludeObject::None), Value::Null);
    assert_eq!(row(IncludeObject::Object), object);
    assert_eq!(
        row(IncludeObject::Metadata),
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
    );
    let table = table(
        pods,
        &[],
        json!({"resourceVersion": "9", "continue": "t"}),
        IncludeObject::Metadata,
        now,
    );
    assert_eq!(table["metadata"]["continue"], "t");
    assert_eq!(table["rows"], json!([]));
}

#[test]
fn services_show_addresses_and_ports() {
    let metadata = json!({"name": "s", "creationTimestamp": "2026-01-01T00:00:00Z"});
    let service = |spec: Value| json!({"metadata": metadata, "spec": spec});
    let with_address = service(json!({
        "type": "ClusterIP", "clusterIP": "10.96.0.7", "selector": {"app": "web"},
        "ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
    }));
    assert_eq!(
        row("services", &with_address, true),
        "s | ClusterIP | 10.96.0.7 | <none> | 80/TCP,53/UDP | 60m | app=web"
    );
    let named = service(json!({"type": "ExternalName", "externalName": "db.example"}));
    assert_eq!(
        row("svc", &named, false),
        "s | ExternalName | <none> | db.example | <none> | 60m"
    );
}
