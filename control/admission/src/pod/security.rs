//! Users, groups and capabilities.

use control_wire::Cause;
use k8s_openapi::api::core::v1::{Container, PodSpec, SeccompProfile};

use crate::Problems;

/// Users and groups that a pod's user namespace has: 0 to one less than this.
const ID_COUNT: i64 = 65_536;

/// Path of a seccomp profile, in bytes.
const MAX_PATH: usize = 1024;

/// Supplemental groups of a pod.
const MAX_GROUPS: usize = 64;

/// Capabilities that a container may have: those that Docker gives by default. All of them are confined to
/// the pod's own user namespace.
const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

pub(super) fn check_pod(spec: &PodSpec, problems: &mut Problems) {
    let Some(context) = &spec.security_context else {
        return;
    };
    check_id(context.run_as_user, "spec.securityContext.runAsUser", problems);
    check_id(context.run_as_group, "spec.securityContext.runAsGroup", problems);
    check_id(context.fs_group, "spec.securityContext.fsGroup", problems);
    check_seccomp(context.seccomp_profile.as_ref(), "spec.securityContext", problems);
    let groups = context.supplemental_groups.as_deref().unwrap_or_default();
    let field = "spec.securityContext.supplementalGroups";
    problems.require(
        groups.len() <= MAX_GROUPS,
        field,
        groups.len(),
        "at most 64 groups",
    );
    for (index, group) in groups.iter().enumerate() {
        check_id(Some(*group), &format!("{field}[{index}]"), problems);
    }
}

pub(super) fn check_container(spec: &PodSpec, container: &Container, field: &str, problems: &mut Problems) {
    let pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let field = format!("{field}.securityContext");
    check_id(
        own.and_then(|c| c.run_as_user),
        &format!("{field}.runAsUser"),
        problems,
    );
    check_id(
        own.and_then(|c| c.run_as_group),
        &format!("{field}.runAsGroup"),
        problems,
    );
    check_seccomp(own.and_then(|c| c.seccomp_profile.as_ref()), &field, problems);
    let user = own
        .and_then(|c| c.run_as_user)
        .or(pod.and_then(|c| c.run_as_user));
    let non_root = own
        .and_then(|c| c.run_as_non_root)
        .or(pod.and_then(|c| c.run_as_non_root));
    if non_root == Some(true) && user == Some(0) {
        let why = "must not be 0 when runAsNonRoot is set: the container would never start";
        problems.push(Cause::invalid(format!("{field}.runAsUser"), 0, why));
    }
    let Some(capabilities) = own.and_then(|c| c.capabilities.as_ref()) else {
        return;
    };
    for (index, name) in capabilities.add.iter().flatten().enumerate() {
        // The prefix is a common slip, and means the same.
        if !CAPABILITIES.contains(&name.strip_prefix("CAP_").unwrap_or(name)) {
            problems.push(Cause::not_supported(
                format!("{field}.capabilities.add[{index}]"),
                name,
                CAPABILITIES,
            ));
        }
    }
    for (index, name) in capabilities.drop.iter().flatten().enumerate() {
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        let field = format!("{field}.capabilities.drop[{index}]");
        problems.require(
            is_name,
            &field,
            name,
            "must be ALL or a capability in upper case, without CAP_",
        );
    }
}

/// A profile of the node is a path below its directory of them. Whether the node has it is seen when a container starts.
fn check_seccomp(profile: Option<&SeccompProfile>, field: &str, problems: &mut Problems) {
    let Some(profile) = profile else { return };
    let field = format!("{field}.seccompProfile.localhostProfile");
    match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
        ("Localhost", None | Some("")) => {
            let why = "must be set when seccomp type is Localhost";
            problems.push(Cause::required(field, why));
        }
        ("Localhost", Some(path)) => {
            let parts = || path.split('/');
            let plain = !path.starts_with('/') && parts().all(|part| !matches!(part, "" | "." | ".."));
            let why = "must be a relative path without '..'";
            problems.require(plain && path.len() <= MAX_PATH, &field, path, why);
        }
        (_, Some(path)) => {
            let why = "can only be set when seccomp type is Localhost";
            problems.push(Cause::invalid(field, path, why));
        }
        (_, None) => {}
    }
}

fn check_id(id: Option<i64>, field: &str, problems: &mut Problems) {
    if let Some(id) = id {
        let why = "must be 0 to 65535, the users and groups of the pod's user namespace";
        problems.require((0..ID_COUNT).contains(&id), field, id, why);
    }
}
