//! Which sandbox a container gets. Whatever asks for less than the baseline is refused, also when admission
//! let it pass.

use std::collections::BTreeSet;

use agent_sandbox::{Profile, TcpPorts};
use k8s_openapi::api::core::v1::{Container, Pod};

/// Why a container has no sandbox, and so does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("seccomp profile {0:?} is not supported; pods run under RuntimeDefault")]
    Seccomp(String),
    #[error("sandbox profile {0:?} is not known; there are baseline, strict and audit")]
    Unknown(String),
    #[error("allowPrivilegeEscalation: true is not supported")]
    Escalation,
}

/// The profile that the pod's annotation names, for one of its containers.
pub(crate) fn profile(pod: &Pod, container: &Container) -> Result<Profile, SandboxError> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let security = container.security_context.as_ref();
    let seccomp = security
        .and_then(|security| security.seccomp_profile.as_ref())
        .or(of_pod.and_then(|security| security.seccomp_profile.as_ref()));
    if let Some(seccomp) = seccomp.filter(|seccomp| seccomp.type_ != "RuntimeDefault") {
        return Err(SandboxError::Seccomp(seccomp.type_.clone()));
    }
    if security.and_then(|security| security.allow_privilege_escalation) == Some(true) {
        return Err(SandboxError::Escalation);
    }
    let annotations = pod.metadata.annotations.as_ref();
    let named = annotations.and_then(|all| all.get(api::annotations::SANDBOX_PROFILE));
    match named.map(String::as_str) {
        None | Some("baseline") => Ok(Profile::baseline()),
        Some("audit") => Ok(Profile::audit()),
        Some("strict") => Ok(Profile::strict(TcpPorts {
            bind: Some(declared_ports(container)),
            connect: None,
        })),
        Some(other) => Err(SandboxError::Unknown(other.to_owned())),
    }
}

/// TCP ports that the container says it serves.
fn declared_ports(container: &Container) -> BTreeSet<u16> {
    let ports = container.ports.iter().flatten();
    let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    tcp.filter_map(|port| u16::try_from(port.container_port).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use agent_sandbox::Tcp;
    use serde_json::{Value, json};

    use super::*;

    fn chosen(annotation: Option<&str>, container: &Value) -> Result<Profile, SandboxError> {
        let annotations = annotation.map(|name| json!({"palisade.dev/sandbox-profile": name}));
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [container]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let container = pod.spec.as_ref().expect("has a spec").containers[0].clone();
        profile(&pod, &container)
    }

    #[test]
    fn the_annotation_chooses_and_strict_takes_the_declared_ports() {
        let container = json!({"name": "c", "ports": [
            {"containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}, {"containerPort": 443, "protocol": "TCP"}
        ]});
        assert_eq!(chosen(None, &container).expect("baseline"), Profile::baseline());
        assert_eq!(
            chosen(Some("audit"), &container).expect("audit"),
            Profile::audit()
        );
        let strict = chosen(Some("strict"), &container).expect("strict");
        let Tcp::Ports(ports) = &strict.tcp else {
            panic!("{strict:?}")
        };
        assert_eq!(ports.bind, Some(BTreeSet::from([443, 8080])));
        assert!(strict.is_read_only());
        let none = chosen(Some("strict"), &json!({"name": "c"})).expect("strict");
        assert_eq!(
            none.tcp,
            Tcp::Ports(TcpPorts {
                bind: Some(BTreeSet::new()),
                connect: None
            })
        );
        assert!(matches!(
            chosen(Some("none"), &container),
            Err(SandboxError::Unknown(_))
        ));
    }
}
