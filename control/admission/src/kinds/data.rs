//! Config maps and secrets.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use control_wire::Cause;
use serde_json::{Value, json};

use super::require_unchanged;
use crate::{
    AdmissionRequest, Operation, Problems,
    metadata::{items, members},
    syntax,
};

/// All values of one object together, in bytes.
const MAX_DATA: usize = 1024 * 1024;

/// Keys that secrets of a type must have.
const REQUIRED_KEYS: &[(&str, &[&str])] = &[
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

pub(super) fn default_secret(secret: &mut Value) {
    if let Some(Value::Object(texts)) = secret.as_object_mut().and_then(|map| map.remove("stringData")) {
        if !secret["data"].is_object() {
            secret["data"] = json!({});
        }
        for (key, value) in texts {
            secret["data"][key] = json!(STANDARD.encode(value.as_str().unwrap_or_default()));
        }
    }
    if secret["type"].as_str().unwrap_or_default().is_empty() {
        secret["type"] = json!("Opaque");
    }
}

pub(super) fn check_secret(request: &AdmissionRequest<'_>, secret: &Value, problems: &mut Problems) {
    check_keys(&secret["data"], "data", problems);
    // Base64 was checked when the object was typed; the encoded size is close enough for a limit.
    check_size(&[&secret["data"]], MAX_DATA / 3 * 4, problems);
    check_immutable(request, secret, &["data"], problems);
    require_unchanged(request, secret, "type", problems);
    let kind = secret["type"].as_str().unwrap_or_default();
    if kind == "kubernetes.io/service-account-token" {
        let why = "not supported: tokens are bound to pods and expire; use `kubectl create token`";
        problems.push(Cause::forbidden("type", why));
    }
    let required = REQUIRED_KEYS
        .iter()
        .find(|(known, _)| *known == kind)
        .map_or(&[][..], |(_, keys)| keys);
    for key in required.iter().filter(|key| secret["data"].get(**key).is_none()) {
        problems.push(Cause::required(format!("data[{key}]"), ""));
    }
    if kind == "kubernetes.io/basic-auth"
        && secret["data"].get("username").is_none()
        && secret["data"].get("password").is_none()
    {
        problems.push(Cause::required(
            "data[username]",
            "username or password is required",
        ));
    }
}

pub(super) fn check_config_map(request: &AdmissionRequest<'_>, map: &Value, problems: &mut Problems) {
    check_keys(&map["data"], "data", problems);
    check_keys(&map["binaryData"], "binaryData", problems);
    for (key, _) in members(&map["binaryData"]).filter(|(key, _)| map["data"].get(key.as_str()).is_some()) {
        problems.push(Cause::invalid(
            format!("data[{key}]"),
            key,
            "duplicate of key present in binaryData",
        ));
    }
    check_size(&[&map["data"], &map["binaryData"]], MAX_DATA, problems);
    check_immutable(request, map, &["data", "binaryData"], problems);
}

fn check_keys(data: &Value, field: &str, problems: &mut Problems) {
    for (key, _) in members(data) {
        problems.require(
            syntax::is_data_key(key),
            &format!("{field}[{key}]"),
            key,
            syntax::DATA_KEY,
        );
    }
}

fn check_size(parts: &[&Value], limit: usize, problems: &mut Problems) {
    let sizes = parts
        .iter()
        .flat_map(|part| members(part))
        .map(|(_, value)| value.as_str().map_or(0, str::len));
    if sizes.sum::<usize>() > limit {
        problems.push(Cause::too_long("data", MAX_DATA));
    }
}

fn check_immutable(request: &AdmissionRequest<'_>, object: &Value, fields: &[&str], problems: &mut Problems) {
    let (Operation::Update, Some(old)) = (request.operation, request.old) else {
        return;
    };
    if old["immutable"] != true {
        return;
    }
    const WHY: &str = "field is immutable when `immutable` is set";
    if object["immutable"] != true {
        problems.push(Cause::forbidden("immutable", WHY));
    }
    for field in fields.iter().filter(|field| old[**field] != object[**field]) {
        problems.push(Cause::forbidden(*field, WHY));
    }
}

/// What policy takes from a slice must be there as it is meant: addresses of its family, and ports.
pub(super) fn check_endpoint_slice(request: &AdmissionRequest<'_>, slice: &Value, problems: &mut Problems) {
    require_unchanged(request, slice, "addressType", problems);
    let family = slice["addressType"].as_str().unwrap_or_default();
    if !matches!(family, "IPv4" | "IPv6") {
        problems.push(Cause::not_supported("addressType", family, &["IPv4", "IPv6"]));
    }
    for (index, endpoint) in items(&slice["endpoints"]).enumerate() {
        let field = format!("endpoints[{index}].addresses");
        let addresses: Vec<&str> = items(&endpoint["addresses"]).filter_map(Value::as_str).collect();
        if addresses.is_empty() {
            problems.push(Cause::required(&field, "must have an address"));
        }
        for address in addresses {
            let parsed = address.parse::<std::net::IpAddr>();
            let fits = parsed.is_ok_and(|address| address.is_ipv4() == (family == "IPv4"));
            problems.require(
                fits,
                &field,
                address,
                "must be an address of the slice's addressType",
            );
        }
    }
    for (index, port) in items(&slice["ports"]).enumerate() {
        if let Some(number) = port["port"].as_i64() {
            let field = format!("ports[{index}].port");
            problems.require(
                (1..=65535).contains(&number),
                &field,
                number,
                "must be from 1 to 65535",
            );
        }
        if let Some(protocol) = port["protocol"].as_str() {
            let known = ["TCP", "UDP", "SCTP"];
            if !known.contains(&protocol) {
                problems.push(Cause::not_supported(
                    format!("ports[{index}].protocol"),
                    protocol,
                    &known,
                ));
            }
        }
    }
}
