//! What `kubectl get -o yaml` writes of clusters that are newer than these types, and of Calico's many settings, loads:
//! what no verdict depends on is passed over and named, anything else that is not known is an error.

use policies_compiler::{Loaded, load_objects, validate_object};
use policies_ir::{policy::EndpointToHost, tables::Direction};
use serde_json::{Value, json};

use crate::sources;

const CALICO: &str = "projectcalico.org/v3";

fn felix(name: &str, spec: Value) -> Value {
    let mut object = json!({"apiVersion": CALICO, "kind": "FelixConfiguration", "metadata": {"name": name}});
    object["spec"] = spec;
    object
}

fn load(objects: &[Value]) -> Result<Loaded, String> {
    load_objects(sources(objects)).map_err(|error| error.to_string())
}

fn core(kind: &str, rest: Value) -> Value {
    let mut object =
        json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "x", "labels": {"app": "x"}}});
    if kind == "EndpointSlice" {
        object["apiVersion"] = "discovery.k8s.io/v1".into();
    }
    let Value::Object(rest) = rest else {
        panic!("{rest}")
    };
    object.as_object_mut().unwrap().extend(rest);
    object
}

/// The settings as the operator of Calico leaves them, with what people set for the rest.
#[test]
fn settings_that_decide_nothing_are_passed_over_and_named() {
    let settings = json!({
        "bpfConnectTimeLoadBalancing": "TCP", "bpfEnabled": false, "bpfLogLevel": "",
        "defaultEndpointToHostAction": "ACCEPT", "floatingIPs": "Disabled", "flowLogsFlushInterval": "15s",
        "healthPort": 9099, "healthTimeoutOverrides": [{"name": "x", "timeout": "5s"}],
        "logSeverityScreen": "Info", "nftablesMode": "Auto", "prometheusMetricsEnabled": true,
        "reportingInterval": "0s", "routeTableRanges": [{"min": 1, "max": 250}], "vxlanVNI": 4096,
        "wireguardEnabled": true, "iptablesFilterDenyAction": "Reject", "chainInsertMode": "insert",
        "failsafeInboundHostPorts": [{"net": "", "port": 22, "protocol": "tcp"}],
    });
    let loaded = load(&[felix("default", settings)]).unwrap();
    let [note] = &loaded.notes[..] else {
        panic!("{:?}", loaded.notes)
    };
    let named = note
        .strip_prefix("FelixConfiguration default: passed over, ")
        .unwrap();
    for field in [
        "bpfEnabled",
        "healthTimeoutOverrides",
        "vxlanVNI",
        "wireguardEnabled",
    ] {
        assert!(named.contains(field), "{field}: {note}");
    }
    assert!(
        !named.contains("failsafe") && !named.contains("defaultEndpoint"),
        "{note}"
    );
    let policies = loaded.view.policy_set(|_, _| {}).enforced;
    assert_eq!(policies.endpoint_to_host, EndpointToHost::Accept);
    assert_eq!(policies.failsafe.inbound.len(), 1);
    assert!(policies.failsafe.inbound[0].peer.nets.is_empty());
}

#[test]
fn settings_that_change_what_passes_are_errors_unless_they_are_calicos_defaults() {
    for (field, changing, default) in [
        ("chainInsertMode", json!("Append"), json!("Insert")),
        ("iptablesFilterAllowAction", json!("Return"), json!("ACCEPT")),
        ("iptablesMangleAllowAction", json!("Return"), json!("Accept")),
        ("nftablesFilterAllowAction", json!("RETURN"), json!("Accept")),
        ("nftablesMangleAllowAction", json!("Return"), json!("Accept")),
        ("iptablesFilterDenyAction", json!("Accept"), json!("Drop")),
        ("nftablesFilterDenyAction", json!("Accept"), json!("Reject")),
        ("dropActionOverride", json!("LogAndAccept"), json!("LogAndDrop")),
        ("workloadSourceSpoofing", json!("Any"), json!("Disabled")),
        ("allowVXLANPacketsFromWorkloads", json!(true), json!(false)),
        ("allowIPIPPacketsFromWorkloads", json!(true), json!(false)),
        ("ipv6Support", json!(false), json!(true)),
        ("interfaceExclude", json!("kube-ipvs0,eth1"), json!("kube-ipvs0")),
        ("externalNodesList", json!(["192.0.2.0/24"]), json!([])),
        ("metadataAddr", json!("192.0.2.1"), json!("127.0.0.1")),
        ("metadataPort", json!(80), json!(8775)),
        ("istioAmbientMode", json!("Enabled"), json!("Disabled")),
        ("nodeSelector", json!("has(gpu)"), Value::Null),
    ] {
        let told = load(&[felix("default", json!({field: changing}))]).unwrap_err();
        let expected = format!("test: FelixConfiguration default: spec.{field}: with this value ");
        assert!(
            told.starts_with(&expected) && told.contains("leave it out, or set it to Calico's default, "),
            "{told}"
        );
        for harmless in [default, json!(""), Value::Null] {
            let loaded = load(&[felix("default", json!({field: harmless}))]);
            assert!(loaded.is_ok(), "{field}: {harmless}: {loaded:?}");
        }
    }
}

#[test]
fn settings_that_nobody_knows_are_errors() {
    for spec in [
        json!({"failsafeInboundHostPort": []}),
        json!({"bpfenabled": true}),
        json!({"defaultEndpointToHostAction": "Bogus"}),
        json!({"failsafeInboundHostPorts": [{"port": 22, "portocol": "udp"}]}),
        json!({"failsafeInboundHostPorts": [{"port": 22, "net": "10.0.0"}]}),
    ] {
        let told = load(&[felix("default", spec.clone())]);
        assert!(told.is_err(), "{spec}: {told:?}");
    }
}

/// Felix writes objects for single nodes; those that are not about what passes are nothing to wait for.
#[test]
fn settings_of_single_nodes_are_left_out_where_they_decide_nothing() {
    let silent = felix(
        "node.n1",
        json!({"bpfLogLevel": "", "logSeverityScreen": "Debug"}),
    );
    let loaded = load(&[silent]).unwrap();
    assert!(loaded.view.calico.is_empty());
    assert!(
        loaded
            .notes
            .iter()
            .any(|note| note.contains("FelixConfiguration node.n1 is left out")),
        "{:?}",
        loaded.notes
    );
    for deciding in [
        json!({"defaultEndpointToHostAction": "Return"}),
        json!({"failsafeInboundHostPorts": []}),
        json!({"chainInsertMode": "Append"}),
    ] {
        assert!(load(&[felix("node.n1", deciding.clone())]).is_err(), "{deciding}");
    }
}

/// Fields that Kubernetes may get after these types were made.
#[test]
fn new_fields_are_passed_over_where_policy_reads_nothing() {
    let pods = |name: &str| {
        let mut pod = core(
            "Pod",
            json!({"spec": {"nodeName": "n", "hostnameOverride": "x", "workloadRef": {"name": "w"},
                "containers": [{"name": "c", "restartPolicyRules": [], "ports": [{"containerPort": 80}],
                    "securityContext": {"newOne": 1}}]},
                "status": {"podIP": "10.0.0.1", "allocatedThings": {},
                    "conditions": [{"type": "Ready", "status": "True", "observedSomething": 1}]}}),
        );
        pod["metadata"]["name"] = name.into();
        pod
    };
    let objects = [
        pods("a"),
        pods("b"),
        core(
            "Node",
            json!({"spec": {"newOne": 1}, "status": {"declaredFeatures": [], "addresses": []}}),
        ),
        core(
            "Namespace",
            json!({"spec": {"newOne": 1}, "status": {"newOne": 1}}),
        ),
        core(
            "Service",
            json!({"spec": {"selector": {"app": "x"}, "newOne": 1, "ports": [{"port": 80}]}, "status": {"newOne": 1}}),
        ),
        core(
            "EndpointSlice",
            json!({"addressType": "IPv4", "ports": [], "endpoints": [{"addresses": ["10.0.0.1"],
                "newOne": 1, "hints": {"newOne": []}, "conditions": {"newOne": true}}]}),
        ),
        // As Kubernetes before 1.28 wrote them.
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"},
            "spec": {"podSelector": {}}, "status": {}}),
    ];
    let loaded = load(&objects).unwrap();
    let passed = |kind: &str| {
        let of_kind = |note: &&String| note.starts_with(&format!("{kind}: fields that this version"));
        let notes: Vec<&String> = loaded.notes.iter().filter(of_kind).collect();
        let [note] = &notes[..] else {
            panic!("{kind}: {:?}", loaded.notes)
        };
        let (_, fields) = note.rsplit_once(": ").unwrap();
        fields.split(", ").map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        passed("Pod"),
        [
            "spec.containers[].restartPolicyRules",
            "spec.containers[].securityContext.newOne",
            "spec.hostnameOverride",
            "spec.workloadRef",
            "status.allocatedThings",
            "status.conditions[].observedSomething",
        ]
    );
    assert_eq!(passed("Node"), ["spec.newOne", "status.declaredFeatures"]);
    assert_eq!(passed("Namespace"), ["spec.newOne", "status.newOne"]);
    assert_eq!(passed("Service"), ["spec.newOne", "status.newOne"]);
    let of_slices = ["conditions.newOne", "hints.newOne", "newOne"];
    assert_eq!(
        passed("EndpointSlice"),
        of_slices.map(|field| format!("endpoints[].{field}"))
    );
    assert_eq!(passed("NetworkPolicy"), ["status"]);
    assert!(loaded.view.pods.iter().all(|pod| pod.node == "n"));
}

/// What is read must not be lost to a slip, nor what belongs to all objects, nor anything of a policy.
#[test]
fn fields_that_could_count_are_errors() {
    let container = |container: Value| json!({"spec": {"containers": [container]}});
    let policy = |kind: &str, spec: Value| json!({"apiVersion": CALICO, "kind": kind, "metadata": {"name": "x"}, "spec": spec});
    for (object, field) in [
        (
            core("Pod", json!({"spec": {"containers": [], "hostNetwrok": true}})),
            "spec.hostNetwrok",
        ),
        (
            core("Pod", json!({"spec": {"containers": [], "nodename": "n"}})),
            "spec.nodename",
        ),
        (
            core(
                "Pod",
                json!({"spec": {"containers": [], "serviceAcountName": "n"}}),
            ),
            "spec.serviceAcountName",
        ),
        (core("Pod", json!({"spec": {"container": []}})), "spec.container"),
        (
            core("Pod", container(json!({"name": "c", "port": []}))),
            "spec.containers[0].port",
        ),
        (
            core(
                "Pod",
                container(json!({"name": "c", "ports": [{"containerPort": 80, "nam": "web"}]})),
            ),
            "spec.containers[0].ports[0].nam",
        ),
        (
            core(
                "Pod",
                json!({"spec": {"containers": []}, "status": {"podIp": "10.0.0.1"}}),
            ),
            "status.podIp",
        ),
        (
            core("Pod", json!({"spec": {"containers": []}, "label": {"app": "y"}})),
            "label",
        ),
        (core("Namespace", json!({"label": {"app": "y"}})), "label"),
        (
            core("Node", json!({"status": {"adresses": []}})),
            "status.adresses",
        ),
        (
            core("Service", json!({"spec": {"selectors": {}}})),
            "spec.selectors",
        ),
        (
            core(
                "Service",
                json!({"spec": {"ports": [{"port": 80, "targetport": 8080}]}}),
            ),
            "spec.ports[0].targetport",
        ),
        (core("ServiceAccount", json!({"spec": {}})), "spec"),
        (
            core(
                "EndpointSlice",
                json!({"addressType": "IPv4", "endpoints": [{"adresses": []}]}),
            ),
            "endpoints[0].adresses",
        ),
        (
            core(
                "EndpointSlice",
                json!({"addressType": "IPv4", "endpoints": [], "port": []}),
            ),
            "port",
        ),
        (policy("Tier", json!({"ordr": 1})), "spec.ordr"),
        (policy("GlobalNetworkPolicy", json!({"newOne": 1})), "spec.newOne"),
        (
            policy(
                "NetworkPolicy",
                json!({"ingress": [{"action": "Allow", "source": {"newOne": 1}}]}),
            ),
            "spec.ingress[0].source.newOne",
        ),
        (policy("GlobalNetworkSet", json!({"newOne": 1})), "spec.newOne"),
        (
            policy(
                "HostEndpoint",
                json!({"node": "n", "interfaceName": "*", "newOne": 1}),
            ),
            "spec.newOne",
        ),
    ] {
        let told = load(std::slice::from_ref(&object)).expect_err(field);
        let kind = object["kind"].as_str().unwrap();
        let expected = format!("test: {kind} x: {field}: the kind has no such field; ");
        assert!(told.contains(&expected), "{told}");
    }
    for kind in ["Pod", "Namespace", "Node", "ServiceAccount", "Service"] {
        let mut object = core(kind, json!({}));
        if kind == "Pod" {
            object["spec"] = json!({"containers": []});
        }
        object["metadata"]["label"] = json!({"app": "y"});
        let told = load(&[object]).expect_err(kind);
        assert!(told.contains(" x: metadata.label: "), "{told}");
    }
}

/// The API takes what it knows, and no more than before.
#[test]
fn objects_for_the_api_are_judged_as_before() {
    for object in [
        felix("default", json!({"bpfEnabled": true})),
        felix("default", json!({"defaultEndpointToHostAction": "RETURN"})),
        felix("node.n1", json!({})),
        core("Pod", json!({"spec": {"containers": [], "newOne": 1}})),
        core("Node", json!({"status": {"newOne": 1}})),
    ] {
        assert!(validate_object(&object).is_err(), "{object}");
    }
    assert_eq!(validate_object(&felix("default", json!({}))), Ok(()));
}

/// New fields change nothing about what is read beside them.
#[test]
fn verdicts_are_those_of_what_is_known() {
    let objects = |more: bool| {
        let mut pod = core(
            "Pod",
            json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 80}]}]},
                "status": {"podIP": "10.0.0.1"}}),
        );
        let mut settings = felix("default", json!({"defaultEndpointToHostAction": "Return"}));
        if more {
            pod["spec"]["newOne"] = 1.into();
            pod["status"]["newOne"] = 1.into();
            settings["spec"]["bpfEnabled"] = true.into();
        }
        let policy = json!({"apiVersion": CALICO, "kind": "GlobalNetworkPolicy", "metadata": {"name": "p"},
            "spec": {"selector": "app == 'x'", "ingress": [{"action": "Allow", "protocol": "TCP",
                "destination": {"ports": ["web"]}}]}});
        [pod, settings, policy]
    };
    let with = load(&objects(true)).unwrap().view;
    assert_eq!(with, load(&objects(false)).unwrap().view);
    let policies = with.policy_set(|_, _| {}).enforced;
    let rules = policies.tiers.iter().flat_map(|tier| &tier.policies);
    let rules: usize = rules
        .filter_map(|policy| policy.rules(Direction::Ingress))
        .map(<[_]>::len)
        .sum();
    assert_eq!(rules, 1);
}
