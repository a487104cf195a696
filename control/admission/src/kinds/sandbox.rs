//! Sandbox profiles: what can be seen to be wrong without the node's kernel. The agent judges again, and refuses
//! to start a container under a profile that it cannot enforce.

use api::palisade::{SANDBOX_PRESETS, SandboxProfile, SeccompProfile};
use control_wire::Cause;
use serde_json::Value;

use crate::Problems;

/// Longest seccomp profile, in bytes of JSON; as the agent's.
const MAX_SECCOMP: usize = 256 << 10;
/// Ports in one list. Landlock takes a rule for each.
const MAX_PORTS: usize = 1024;

const ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRAP",
];

const COMPARISONS: &[&str] = &[
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// The preset that is meant, so that readers see it.
pub(super) fn default(object: &mut Value) {
    let Some(object) = object.as_object_mut() else {
        return;
    };
    let spec = object
        .entry("spec")
        .or_insert_with(|| Value::Object(serde_json::Map::new()));
    if let Some(spec) = spec.as_object_mut() {
        spec.entry("preset").or_insert_with(|| "baseline".into());
    }
}

pub(super) fn check(object: &Value, problems: &mut Problems) {
    let profile: SandboxProfile = match serde_json::from_value(object.clone()) {
        Ok(profile) => profile,
        Err(error) => return problems.push(Cause::invalid("spec", "", error)),
    };
    let name = profile.metadata.name.as_deref().unwrap_or_default();
    problems.require(
        !SANDBOX_PRESETS.contains(&name),
        "metadata.name",
        name,
        "is the name of a preset, which every pod can name already",
    );
    let spec = profile.spec;
    let ports = spec.tcp.unwrap_or_default();
    for (field, ports) in [("spec.tcp.bind", ports.bind), ("spec.tcp.connect", ports.connect)] {
        let number = ports.map_or(0, |ports| ports.len());
        problems.require(number <= MAX_PORTS, field, number, "must have at most 1024 ports");
    }
    if let Some(seccomp) = &spec.seccomp {
        check_seccomp(seccomp, object, problems);
    }
}

fn check_seccomp(seccomp: &SeccompProfile, object: &Value, problems: &mut Problems) {
    let length = object["spec"]["seccomp"].to_string().len();
    problems.require(
        length <= MAX_SECCOMP,
        "spec.seccomp",
        length,
        "must have at most 262144 bytes",
    );
    let listener = seccomp.listener_path.iter().chain(&seccomp.listener_metadata);
    for value in listener.filter(|value| !value.is_empty()) {
        let why = "is not supported: no process outside of the container judges its calls";
        problems.require(false, "spec.seccomp.listenerPath", value, why);
    }
    for flag in seccomp.flags.iter().flatten() {
        let known = "SECCOMP_FILTER_FLAG_TSYNC";
        if flag != known {
            problems.push(Cause::not_supported("spec.seccomp.flags", flag, &[known]));
        }
    }
    if !ACTIONS.contains(&seccomp.default_action.as_str()) {
        let field = "spec.seccomp.defaultAction";
        problems.push(Cause::not_supported(field, &seccomp.default_action, ACTIONS));
    }
    for (index, rule) in seccomp.syscalls.iter().flatten().enumerate() {
        let field = format!("spec.seccomp.syscalls[{index}]");
        if !ACTIONS.contains(&rule.action.as_str()) {
            problems.push(Cause::not_supported(
                format!("{field}.action"),
                &rule.action,
                ACTIONS,
            ));
        }
        if rule.name.is_none() && rule.names.iter().flatten().next().is_none() {
            problems.push(Cause::required(
                format!("{field}.names"),
                "a rule is about system calls",
            ));
        }
        for (index, argument) in rule.args.iter().flatten().enumerate() {
            let field = format!("{field}.args[{index}]");
            if !COMPARISONS.contains(&argument.op.as_str()) {
                problems.push(Cause::not_supported(
                    format!("{field}.op"),
                    &argument.op,
                    COMPARISONS,
                ));
            }
            problems.require(
                argument.index < 6,
                &format!("{field}.index"),
                argument.index,
                "system calls have the arguments 0 to 5",
            );
        }
    }
}
