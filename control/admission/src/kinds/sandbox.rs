//! Sandbox profiles: what can be seen to be wrong without the node's kernel. The agent judges again, and refuses
//! to start a container under a profile that it cannot enforce.

use api::palisade::{SANDBOX_PRESETS, SandboxLandlock, SandboxProfile, SeccompProfile};
use control_wire::Cause;
use serde_json::Value;

use crate::Problems;

/// Longest seccomp profile, in bytes of JSON; as the agent's.
const MAX_SECCOMP: usize = 256 << 10;
/// Ports in one list. Landlock takes a rule for each.
const MAX_PORTS: usize = 1024;

/// Paths in one list.
const MAX_PATHS: usize = 1024;
/// Longest path, as the kernel's.
const MAX_PATH: usize = 4095;

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

/// The preset and the enforcement that are meant, so that readers see it.
pub(super) fn default(object: &mut Value) {
    let Some(object) = object.as_object_mut() else {
        return;
    };
    let spec = object
        .entry("spec")
        .or_insert_with(|| Value::Object(serde_json::Map::new()));
    if let Some(spec) = spec.as_object_mut() {
        spec.entry("preset").or_insert_with(|| "baseline".into());
        spec.entry("enforcement").or_insert_with(|| "Required".into());
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
    for (index, capability) in spec.capabilities.iter().flatten().enumerate() {
        let word = capability.strip_prefix("CAP_").unwrap_or_default();
        let valid = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        let field = format!("spec.capabilities[{index}]");
        problems.require(
            valid,
            &field,
            capability,
            "must be the name of a capability, such as CAP_CHOWN",
        );
    }
    let ports = spec.tcp.unwrap_or_default();
    for (field, ports) in [("spec.tcp.bind", ports.bind), ("spec.tcp.connect", ports.connect)] {
        let number = ports.map_or(0, |ports| ports.len());
        problems.require(number <= MAX_PORTS, field, number, "must have at most 1024 ports");
    }
    if let Some(landlock) = &spec.landlock {
        check_landlock(landlock, problems);
    }
    if let Some(seccomp) = &spec.seccomp {
        check_seccomp(seccomp, object, problems);
    }
}

fn check_landlock(landlock: &SandboxLandlock, problems: &mut Problems) {
    let paths = landlock.paths.clone().unwrap_or_default();
    for (field, list) in [
        ("spec.landlock.paths.read", &paths.read),
        ("spec.landlock.paths.write", &paths.write),
        ("spec.landlock.paths.execute", &paths.execute),
        ("spec.landlock.ioctl", &landlock.ioctl),
    ] {
        let list = list.as_deref().unwrap_or_default();
        let number = list.len();
        problems.require(
            number <= MAX_PATHS,
            field,
            number,
            "must have at most 1024 paths: name directories",
        );
        for (index, path) in list.iter().enumerate() {
            let at = format!("{field}[{index}]");
            if let Some(why) = path_problem(path) {
                problems.require(false, &at, path, why);
            } else {
                let device = field != "spec.landlock.ioctl" || is_beneath(path, "/dev");
                problems.require(
                    device,
                    &at,
                    path,
                    "must be /dev or beneath it: only devices take commands",
                );
                let first = !list[..index].contains(path);
                problems.require(first, &at, path, "stands in the list already: remove it");
            }
        }
    }
    for (index, path) in paths.execute.iter().flatten().enumerate() {
        let written = paths
            .write
            .iter()
            .flatten()
            .find(|written| is_beneath(path, written));
        if let Some(written) = written {
            let why = format!(
                "is beneath {written}, which is written, and what is written is never executed: take it from one of the lists"
            );
            problems.require(
                false,
                &format!("spec.landlock.paths.execute[{index}]"),
                path,
                &why,
            );
        }
    }
    let scopes = landlock.scopes.as_deref().unwrap_or_default();
    for (index, scope) in scopes.iter().enumerate() {
        let first = !scopes[..index].contains(scope);
        let at = format!("spec.landlock.scopes[{index}]");
        problems.require(
            first,
            &at,
            format!("{scope:?}"),
            "stands in the list already: remove it",
        );
    }
}

/// What is wrong with a path, and what to write instead.
fn path_problem(path: &str) -> Option<&'static str> {
    let parts = || path.split('/').skip(1);
    if !path.starts_with('/') {
        Some("must be absolute: begin it with /")
    } else if path.len() > MAX_PATH {
        Some("must have at most 4095 bytes")
    } else if path.contains('\0') {
        Some("must not contain NUL")
    } else if parts().any(|part| part == ".." || part == ".") {
        Some("must not contain . or ..: write the path without them")
    } else if path != "/" && parts().any(str::is_empty) {
        Some("must not have empty parts: write one / between names and none at the end")
    } else {
        None
    }
}

/// Whether `path` is `directory` or lies in it.
fn is_beneath(path: &str, directory: &str) -> bool {
    let rest = path.strip_prefix(directory.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
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
