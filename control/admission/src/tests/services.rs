//! Services through admission.

use serde_json::json;

use super::*;

fn web(spec: Value) -> Value {
    let mut body = json!({"spec": {"ports": [{"port": 80}], "selector": {"app": "web"}}});
    for (key, value) in spec.as_object().unwrap() {
        body["spec"][key] = value.clone();
    }
    body
}

#[test]
fn defaults_are_those_of_kubernetes() {
    let ports = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"}]);
    let made = stored("services", web(json!({"ports": ports, "clusterIP": "10.96.0.9"})));
    assert_eq!(
        made["spec"],
        json!({
            "type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "selector": {"app": "web"},
            "ports": [
                {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 80},
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"},
            ],
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
        })
    );
    assert_eq!(made["status"], json!({"loadBalancer": {}}));
    let both = stored(
        "services",
        web(json!({"clusterIP": "None", "ipFamilyPolicy": "PreferDualStack"})),
    );
    assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    let named = stored(
        "services",
        json!({"spec": {"type": "ExternalName", "externalName": "db.example."}}),
    );
    assert_eq!(
        named["spec"],
        json!({"type": "ExternalName", "externalName": "db.example.", "sessionAffinity": "None"})
    );
    // What was defaulted is valid, and stays as it is.
    let again = complete(&request("services", Some(&made), made.clone())).unwrap();
    assert_eq!(again, made);
}

#[test]
fn what_a_service_cannot_be_is_refused_with_its_field() {
    let refused = |spec: Value| problems("services", web(spec));
    for (spec, problem) in [
        (
            json!({"type": "NodePort"}),
            "spec.type: Forbidden: not supported by this version: NodePort needs nodes",
        ),
        (
            json!({"type": "LoadBalancer"}),
            "spec.type: Forbidden: not supported by this version: LoadBalancer needs",
        ),
        (
            json!({"type": "Other"}),
            "spec.type: Unsupported value: \"Other\"",
        ),
        (json!({"ports": []}), "spec.ports: Required value"),
        (
            json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
            "spec.ports[0].name: Required value",
        ),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}),
            "spec.ports[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
            "spec.ports[1].port: Duplicate value: 80",
        ),
        (
            json!({"ports": [{"port": 80, "name": "A"}]}),
            "spec.ports[0].name: Invalid value",
        ),
        (
            json!({"ports": [{"port": 0}]}),
            "spec.ports[0].port: Invalid value: 0: must be from 1 to 65535",
        ),
        (
            json!({"ports": [{"port": 1, "targetPort": 65536}]}),
            "spec.ports[0].targetPort: Invalid value: 65536",
        ),
        (
            json!({"ports": [{"port": 1, "targetPort": "80"}]}),
            "spec.ports[0].targetPort: Invalid value: \"80\"",
        ),
        (
            json!({"ports": [{"port": 1, "protocol": "ICMP"}]}),
            "spec.ports[0].protocol: Unsupported value: \"ICMP\"",
        ),
        (
            json!({"ports": [{"port": 1, "nodePort": 30000}]}),
            "spec.ports[0].nodePort: Forbidden: not supported",
        ),
        (
            json!({"sessionAffinity": "ClientIP"}),
            "spec.sessionAffinity: Unsupported value: \"ClientIP\"",
        ),
        (
            json!({"externalIPs": ["192.0.2.1"]}),
            "spec.externalIPs: Forbidden: not supported by this version",
        ),
        (
            json!({"loadBalancerIP": "192.0.2.1"}),
            "spec.loadBalancerIP: Forbidden: not supported by this version",
        ),
        (
            json!({"internalTrafficPolicy": "Local"}),
            "spec.internalTrafficPolicy: Unsupported value",
        ),
        (
            json!({"externalName": "x"}),
            "spec.externalName: Forbidden: only a service of type ExternalName",
        ),
        (
            json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.8"]}),
            "spec.clusterIPs: Invalid value",
        ),
        (
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilyPolicy: Unsupported value",
        ),
        (json!({"ipFamilies": ["IPv6"]}), "spec.ipFamilies: Invalid value"),
        (
            json!({"clusterIP": "None", "ipFamilies": ["IPv6", "IPv6"]}),
            "spec.ipFamilies: Invalid value",
        ),
        (
            json!({"selector": {"a b": "c"}}),
            "spec.selector: Invalid value: \"a b\"",
        ),
    ] {
        let found = refused(spec.clone());
        assert!(
            found.iter().any(|found| found.starts_with(problem)),
            "{spec}: {found:?}"
        );
    }
    assert_eq!(
        refused(json!({"clusterIP": "None", "ports": []})),
        [] as [&str; 0]
    );
    for spec in [
        json!({"type": "ExternalName"}),
        json!({"type": "ExternalName", "externalName": "a b"}),
    ] {
        let found = problems("services", json!({"spec": spec}));
        assert!(found[0].starts_with("spec.externalName: "), "{found:?}");
    }
    let mut digits = request("services", None, object("services", web(json!({}))));
    digits.new["metadata"]["name"] = json!("1x");
    digits.name = "1x";
    assert!(refusals(&digits)[0].contains("metadata.name: Invalid value: \"1x\": must be an RFC 1035 label"));
}

#[test]
fn an_address_stays_what_it_is() {
    let old = web(json!({"clusterIP": "10.96.0.9"}));
    for (spec, changes) in [
        (json!({"clusterIP": "10.96.0.9", "ports": [{"port": 81}]}), false),
        (json!({"clusterIP": "10.96.0.8"}), true),
        (json!({"clusterIP": "None"}), true),
    ] {
        let found = problems_of_change("services", old.clone(), web(spec));
        let expected = "spec.clusterIP: Invalid value: ";
        assert_eq!(
            found.iter().any(|found| found.starts_with(expected)),
            changes,
            "{found:?}"
        );
    }
    let named = json!({"spec": {"type": "ExternalName", "externalName": "x", "clusterIP": "10.96.0.9"}});
    let found = problems_of_change("services", old, named);
    assert_eq!(
        found,
        ["spec.clusterIP: Forbidden: a service of type ExternalName has no address"]
    );
}
