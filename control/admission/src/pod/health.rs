//! Probes and hooks of containers.

use std::net::IpAddr;

use control_wire::Cause;
use k8s_openapi::{
    api::core::v1::{
        Container, ExecAction, HTTPGetAction, LifecycleHandler, PodSpec, Probe, TCPSocketAction,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{Problems, syntax};

/// Headers that one request may bring.
const MAX_HEADERS: usize = 64;

/// Checks the probes and hooks of a container. One that runs to its end has neither.
pub(super) fn check(
    spec: &PodSpec,
    container: &Container,
    runs_to_its_end: bool,
    field: &str,
    problems: &mut Problems,
) {
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        let field = format!("{field}.{name}");
        match probe {
            None => {}
            Some(_) if runs_to_its_end => problems.push(Cause::forbidden(&field, NOT_FOR_INIT)),
            Some(probe) => check_probe(probe, name == "readinessProbe", &field, problems),
        }
    }
    let Some(hooks) = &container.lifecycle else { return };
    let field = format!("{field}.lifecycle");
    if runs_to_its_end {
        problems.push(Cause::forbidden(&field, NOT_FOR_INIT));
        return;
    }
    let grace = spec.termination_grace_period_seconds.unwrap_or(30);
    for (name, hook) in [("postStart", &hooks.post_start), ("preStop", &hooks.pre_stop)] {
        if let Some(hook) = hook {
            check_hook(hook, grace, &format!("{field}.{name}"), problems);
        }
    }
}

const NOT_FOR_INIT: &str = "may not be set for init containers without restartPolicy=Always";

fn check_probe(probe: &Probe, of_readiness: bool, field: &str, problems: &mut Problems) {
    let handlers = [
        probe.exec.is_some(),
        probe.http_get.is_some(),
        probe.tcp_socket.is_some(),
        probe.grpc.is_some(),
    ];
    demand_one(&handlers, field, problems);
    check_exec(probe.exec.as_ref(), field, problems);
    check_http(probe.http_get.as_ref(), field, problems);
    check_socket(probe.tcp_socket.as_ref(), field, problems);
    if let Some(grpc) = &probe.grpc {
        check_number(grpc.port, &format!("{field}.grpc.port"), problems);
    }
    let numbers = [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ];
    for (name, number) in numbers {
        let number = number.unwrap_or_default();
        let why = "must be greater than or equal to 0";
        problems.require(number >= 0, &format!("{field}.{name}"), number, why);
    }
    if let Some(times) = probe.success_threshold.filter(|_times| !of_readiness) {
        problems.require(
            times <= 1,
            &format!("{field}.successThreshold"),
            times,
            "must be 1",
        );
    }
    if let Some(seconds) = probe.termination_grace_period_seconds {
        let field = format!("{field}.terminationGracePeriodSeconds");
        if of_readiness {
            let why = "must not be set for readinessProbes";
            problems.push(Cause::invalid(field, seconds, why));
        } else {
            problems.require(seconds > 0, &field, seconds, "must be greater than 0");
        }
    }
}

fn check_hook(hook: &LifecycleHandler, grace: i64, field: &str, problems: &mut Problems) {
    // The list of fields has its own words for a kind that is not honoured.
    let handlers = [
        hook.exec.is_some(),
        hook.http_get.is_some(),
        hook.sleep.is_some(),
        hook.tcp_socket.is_some(),
    ];
    demand_one(&handlers, field, problems);
    check_exec(hook.exec.as_ref(), field, problems);
    check_http(hook.http_get.as_ref(), field, problems);
    if let Some(sleep) = &hook.sleep {
        let why =
            format!("must be greater than or equal to 0 and at most terminationGracePeriodSeconds ({grace})");
        let valid = (0..=grace).contains(&sleep.seconds);
        problems.require(valid, &format!("{field}.sleep.seconds"), sleep.seconds, &why);
    }
}

fn demand_one(handlers: &[bool], field: &str, problems: &mut Problems) {
    match handlers.iter().filter(|present| **present).count() {
        0 => problems.push(Cause::required(field, "must specify a handler type")),
        1 => {}
        _ => problems.push(Cause::forbidden(
            field,
            "may not specify more than 1 handler type",
        )),
    }
}

fn check_exec(exec: Option<&ExecAction>, field: &str, problems: &mut Problems) {
    if exec.is_some_and(|exec| exec.command.as_ref().is_none_or(Vec::is_empty)) {
        problems.push(Cause::required(format!("{field}.exec.command"), ""));
    }
}

fn check_http(get: Option<&HTTPGetAction>, field: &str, problems: &mut Problems) {
    let Some(get) = get else { return };
    let field = format!("{field}.httpGet");
    check_port(&get.port, &format!("{field}.port"), problems);
    check_host(get.host.as_deref(), &format!("{field}.host"), problems);
    let path = get.path.as_deref().unwrap_or_default();
    let valid = path.bytes().all(|byte| byte.is_ascii_graphic());
    let why = "must be a path and query in printable ASCII; encode other characters";
    problems.require(valid, &format!("{field}.path"), path, why);
    let headers = get.http_headers.as_deref().unwrap_or_default();
    let count = headers.len();
    problems.require(
        count <= MAX_HEADERS,
        &format!("{field}.httpHeaders"),
        count,
        "at most 64 headers",
    );
    for (index, header) in headers.iter().enumerate() {
        let field = format!("{field}.httpHeaders[{index}]");
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let valid = !header.name.is_empty() && header.name.bytes().all(is_token);
        problems.require(
            valid,
            &format!("{field}.name"),
            &header.name,
            "must be the name of a header",
        );
        let valid = header
            .value
            .bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_graphic());
        problems.require(
            valid,
            &format!("{field}.value"),
            &header.value,
            "must be printable ASCII",
        );
    }
}

fn check_socket(socket: Option<&TCPSocketAction>, field: &str, problems: &mut Problems) {
    if let Some(socket) = socket {
        check_port(&socket.port, &format!("{field}.tcpSocket.port"), problems);
        check_host(
            socket.host.as_deref(),
            &format!("{field}.tcpSocket.host"),
            problems,
        );
    }
}

/// Probes run inside the pod's network, where names mean nothing before the pod's own resolver is asked.
fn check_host(host: Option<&str>, field: &str, problems: &mut Problems) {
    if let Some(host) = host.filter(|host| !host.is_empty()) {
        let why = "must be an IP address, as the pod reaches it; leave it out for the pod itself, and set the \
                   Host header in httpHeaders";
        problems.require(host.parse::<IpAddr>().is_ok(), field, host, why);
    }
}

fn check_port(port: &IntOrString, field: &str, problems: &mut Problems) {
    match port {
        IntOrString::Int(number) => check_number(*number, field, problems),
        IntOrString::String(name) => {
            let valid = syntax::is_port_name(name) || name.parse::<u16>().is_ok_and(|number| number > 0);
            problems.require(valid, field, name, syntax::PORT_NAME);
        }
    }
}

fn check_number(number: i32, field: &str, problems: &mut Problems) {
    let why = "must be between 1 and 65535, inclusive";
    problems.require((1..=65_535).contains(&number), field, number, why);
}
