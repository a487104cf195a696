//! Services: what Kubernetes fills in and demands, and which of it is honoured. The cluster address is the API
//! server's to give; see `control/apiserver/src/services.rs`.

use std::collections::BTreeSet;

use api::selector::{is_label_key, is_label_value};
use control_wire::Cause;
use serde_json::{Value, json};

use crate::{
    AdmissionRequest, Operation, Problems,
    metadata::{items, members},
    shape::{self, Shape},
    syntax,
};

/// Type of a service with a cluster address, or without one.
const CLUSTER_IP: &str = "ClusterIP";
/// Type of a service that is another name.
const EXTERNAL_NAME: &str = "ExternalName";
/// Cluster address of a service that has none.
const HEADLESS: &str = "None";

const NO_LOAD_BALANCER: &str = "there is no load balancer";
const NOT_CARRIED: &str = "traffic to services is not carried, so nothing would honour this";

/// What of a service is honoured.
const SPEC: Shape = Shape::Members(&[
    ("type", Shape::Any),
    (
        "ports",
        Shape::List(&Shape::Members(&[
            ("name", Shape::Any),
            ("protocol", Shape::OneOf(&["TCP", "UDP", "SCTP"])),
            ("port", Shape::Any),
            ("targetPort", Shape::Any),
            ("appProtocol", Shape::Any),
            (
                "nodePort",
                Shape::Refused("nodes do not pass traffic on to services"),
            ),
        ])),
    ),
    ("selector", Shape::Any),
    ("clusterIP", Shape::Any),
    ("clusterIPs", Shape::Any),
    ("externalName", Shape::Any),
    ("publishNotReadyAddresses", Shape::Any),
    ("ipFamilies", Shape::Any),
    ("ipFamilyPolicy", Shape::Any),
    ("internalTrafficPolicy", Shape::OneOf(&["Cluster"])),
    ("sessionAffinity", Shape::OneOf(&["None"])),
    ("sessionAffinityConfig", Shape::Refused(NOT_CARRIED)),
    ("externalIPs", Shape::Refused(NOT_CARRIED)),
    ("externalTrafficPolicy", Shape::Refused(NOT_CARRIED)),
    ("trafficDistribution", Shape::Refused(NOT_CARRIED)),
    ("healthCheckNodePort", Shape::Refused(NO_LOAD_BALANCER)),
    ("allocateLoadBalancerNodePorts", Shape::Refused(NO_LOAD_BALANCER)),
    ("loadBalancerClass", Shape::Refused(NO_LOAD_BALANCER)),
    ("loadBalancerIP", Shape::Refused(NO_LOAD_BALANCER)),
    ("loadBalancerSourceRanges", Shape::Refused(NO_LOAD_BALANCER)),
]);

pub(super) fn default(request: &AdmissionRequest<'_>, service: &mut Value) {
    let spec = &mut service["spec"];
    if !spec.is_object() {
        *spec = json!({});
    }
    set_if_empty(&mut spec["type"], CLUSTER_IP);
    set_if_empty(&mut spec["sessionAffinity"], "None");
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        set_if_empty(&mut port["protocol"], "TCP");
        let target = &port["targetPort"];
        if target.is_null() || *target == json!(0) || *target == json!("") {
            port["targetPort"] = port["port"].clone();
        }
    }
    if spec["type"] == CLUSTER_IP {
        set_if_empty(&mut spec["internalTrafficPolicy"], "Cluster");
        if items(&spec["clusterIPs"]).next().is_none() && !text(&spec["clusterIP"]).is_empty() {
            spec["clusterIPs"] = json!([spec["clusterIP"]]);
        }
        set_if_empty(&mut spec["ipFamilyPolicy"], "SingleStack");
        if items(&spec["ipFamilies"]).next().is_none() {
            // A cluster address is one of IPv4; without one, both families of the pods can be wanted.
            let both = spec["clusterIP"] == HEADLESS && spec["ipFamilyPolicy"] != "SingleStack";
            spec["ipFamilies"] = if both {
                json!(["IPv4", "IPv6"])
            } else {
                json!(["IPv4"])
            };
        }
    }
    // `null` is a member that nobody gave.
    if let Some(spec) = spec.as_object_mut() {
        spec.retain(|_, value| !value.is_null());
    }
    if request.operation == Operation::Create {
        service["status"] = json!({"loadBalancer": {}});
    }
}

pub(super) fn check(request: &AdmissionRequest<'_>, service: &Value, problems: &mut Problems) {
    let spec = &service["spec"];
    shape::check(spec, &SPEC, "spec", problems);
    let kind = text(&spec["type"]);
    match kind {
        CLUSTER_IP => check_addresses(request, spec, problems),
        EXTERNAL_NAME => check_external_name(spec, problems),
        "NodePort" | "LoadBalancer" => problems.push(shape::unsupported(
            "spec.type",
            &format!(
                "{kind} needs nodes that pass traffic on to services; use ClusterIP, or clusterIP: None"
            ),
        )),
        other => problems.push(Cause::not_supported(
            "spec.type",
            other,
            &[CLUSTER_IP, EXTERNAL_NAME],
        )),
    }
    check_ports(spec, problems);
    for (key, value) in members(&spec["selector"]) {
        problems.require(
            is_label_key(key),
            "spec.selector",
            key,
            "must be a label key: [prefix/]name of at most 63 characters",
        );
        let value = text(value);
        problems.require(
            is_label_value(value),
            "spec.selector",
            value,
            "must be a label value",
        );
    }
}

fn check_addresses(request: &AdmissionRequest<'_>, spec: &Value, problems: &mut Problems) {
    let address = text(&spec["clusterIP"]);
    let all: Vec<&str> = items(&spec["clusterIPs"]).filter_map(Value::as_str).collect();
    problems.require(
        all.len() <= 1 && all.first().is_none_or(|first| *first == address),
        "spec.clusterIPs",
        all,
        "must be clusterIP alone: services have one address",
    );
    if !spec["externalName"].is_null() {
        let why = format!("only a service of type {EXTERNAL_NAME} has one");
        problems.push(Cause::forbidden("spec.externalName", why));
    }
    let policy = text(&spec["ipFamilyPolicy"]);
    let headless = address == HEADLESS;
    let policies: &[&str] = match headless {
        true => &["SingleStack", "PreferDualStack", "RequireDualStack"],
        false => &["SingleStack", "PreferDualStack"],
    };
    if !policies.contains(&policy) {
        problems.push(Cause::not_supported("spec.ipFamilyPolicy", policy, policies));
    }
    let families: Vec<&str> = items(&spec["ipFamilies"]).filter_map(Value::as_str).collect();
    let distinct: BTreeSet<&&str> = families.iter().collect();
    let known = distinct.len() == families.len() && families.iter().all(|f| matches!(*f, "IPv4" | "IPv6"));
    problems.require(
        known && (headless || families == ["IPv4"]),
        "spec.ipFamilies",
        families,
        "must be IPv4 for a service with an address; a headless one may have IPv4, IPv6 or both",
    );
    if let (Operation::Update, Some(old)) = (request.operation, request.old)
        && old["spec"]["type"] == CLUSTER_IP
        && text(&old["spec"]["clusterIP"]) != address
    {
        let why = "may not change once set: delete the service and make it anew";
        problems.push(Cause::invalid("spec.clusterIP", address, why));
    }
}

fn check_external_name(spec: &Value, problems: &mut Problems) {
    let name = text(&spec["externalName"]);
    if name.is_empty() {
        problems.push(Cause::required(
            "spec.externalName",
            "the name that the service stands for",
        ));
    } else {
        problems.require(
            syntax::is_subdomain(name.strip_suffix('.').unwrap_or(name)),
            "spec.externalName",
            name,
            syntax::SUBDOMAIN,
        );
    }
    for field in ["clusterIP", "clusterIPs"] {
        if !spec[field].is_null() && spec[field] != json!([]) && spec[field] != json!("") {
            let why = format!("a service of type {EXTERNAL_NAME} has no address");
            problems.push(Cause::forbidden(format!("spec.{field}"), why));
        }
    }
}

fn check_ports(spec: &Value, problems: &mut Problems) {
    let ports: Vec<&Value> = items(&spec["ports"]).collect();
    if ports.is_empty() && spec["type"] == CLUSTER_IP && spec["clusterIP"] != HEADLESS {
        problems.push(Cause::required(
            "spec.ports",
            "a service with an address has ports",
        ));
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let at = |field: &str| format!("spec.ports[{index}].{field}");
        let name = text(&port["name"]);
        if name.is_empty() {
            if ports.len() > 1 {
                problems.push(Cause::required(at("name"), "each of several ports has a name"));
            }
        } else {
            problems.require(syntax::is_label(name), &at("name"), name, syntax::LABEL);
            if !names.insert(name) {
                problems.push(Cause::duplicate(at("name"), name));
            }
        }
        let number = port["port"].as_i64().unwrap_or_default();
        let in_range = |number: i64| (1..=65535).contains(&number);
        problems.require(in_range(number), &at("port"), number, "must be from 1 to 65535");
        if !numbers.insert((text(&port["protocol"]), number)) {
            problems.push(Cause::duplicate(at("port"), number));
        }
        match &port["targetPort"] {
            Value::String(name) => {
                problems.require(
                    syntax::is_port_name(name),
                    &at("targetPort"),
                    name,
                    syntax::PORT_NAME,
                );
            }
            target => {
                let target = target.as_i64().unwrap_or_default();
                problems.require(
                    in_range(target),
                    &at("targetPort"),
                    target,
                    "must be from 1 to 65535",
                );
            }
        }
        if let Some(protocol) = port["appProtocol"].as_str() {
            problems.require(
                is_label_key(&protocol.to_ascii_lowercase()),
                &at("appProtocol"),
                protocol,
                "must be a name, or prefix/name",
            );
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn set_if_empty(value: &mut Value, default: &str) {
    if text(value).is_empty() {
        *value = json!(default);
    }
}
