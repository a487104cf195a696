//! How a pod finds names, and how it is called.

use std::net::IpAddr;

use api::selector::is_label_key;
use control_wire::Cause;
use k8s_openapi::api::core::v1::PodSpec;

use crate::{Problems, syntax};

/// What the C library takes.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_BYTES: usize = 2048;

pub(super) fn check(spec: &PodSpec, problems: &mut Problems) {
    if let Some(subdomain) = spec.subdomain.as_deref().filter(|name| !name.is_empty()) {
        problems.require(
            syntax::is_label(subdomain),
            "spec.subdomain",
            subdomain,
            syntax::LABEL,
        );
    }
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let field = format!("spec.hostAliases[{index}]");
        check_address(&alias.ip, &format!("{field}.ip"), problems);
        for (index, name) in alias.hostnames.iter().flatten().enumerate() {
            let field = format!("{field}.hostnames[{index}]");
            problems.require(syntax::is_subdomain(name), &field, name, syntax::SUBDOMAIN);
        }
    }
    for (index, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let field = format!("spec.readinessGates[{index}].conditionType");
        let kind = &gate.condition_type;
        problems.require(is_label_key(kind), &field, kind, "must be a qualified name");
    }
    check_dns(spec, problems);
}

fn check_dns(spec: &PodSpec, problems: &mut Problems) {
    let config = spec.dns_config.clone().unwrap_or_default();
    let servers = config.nameservers.unwrap_or_default();
    let field = "spec.dnsConfig.nameservers";
    problems.require(
        servers.len() <= MAX_NAMESERVERS,
        field,
        servers.len(),
        "at most 3 nameservers",
    );
    if spec.dns_policy.as_deref() == Some("None") && servers.is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        problems.push(Cause::required(field, why));
    }
    for (index, server) in servers.iter().enumerate() {
        check_address(server, &format!("{field}[{index}]"), problems);
    }
    let searches = config.searches.unwrap_or_default();
    let field = "spec.dnsConfig.searches";
    problems.require(
        searches.len() <= MAX_SEARCHES,
        field,
        searches.len(),
        "at most 32 domains",
    );
    let length = searches.join(" ").len();
    problems.require(
        length <= MAX_SEARCH_BYTES,
        field,
        length,
        "at most 2048 bytes, with the spaces between",
    );
    for (index, domain) in searches.iter().enumerate() {
        let plain = domain.strip_suffix('.').unwrap_or(domain);
        let valid = domain == "." || syntax::is_subdomain(plain);
        problems.require(valid, &format!("{field}[{index}]"), domain, syntax::SUBDOMAIN);
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        let field = format!("spec.dnsConfig.options[{index}]");
        let name = option.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            problems.push(Cause::required(format!("{field}.name"), ""));
        }
        // Each becomes a word of a file that programs read by lines.
        let is_word = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let value = option.value.as_deref().unwrap_or_default();
        problems.require(
            is_word(name),
            &format!("{field}.name"),
            name,
            "must be one word in printable ASCII",
        );
        problems.require(
            is_word(value),
            &format!("{field}.value"),
            value,
            "must be one word in printable ASCII",
        );
    }
}

fn check_address(text: &str, field: &str, problems: &mut Problems) {
    let valid = text.parse::<IpAddr>().is_ok();
    problems.require(valid, field, text, "must be a valid IP address");
}
