//! Which sandbox a container gets. Whatever asks for less than the baseline is refused, also when admission
//! let it pass.

use std::collections::BTreeSet;

use agent_sandbox::{Profile, SyscallSet, Tcp, TcpPorts, landlock_abi, oci};
use api::palisade::{SANDBOX_PRESETS, SandboxPorts, SandboxPreset, SandboxProfile};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject},
};

/// Why a container has no sandbox, and so does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("seccomp profile {0:?} is not supported; pods run under RuntimeDefault")]
    Seccomp(String),
    #[error(
        "sandbox profile {0:?} is neither a preset (audit, baseline, strict) nor a SandboxProfile of the namespace"
    )]
    Unknown(String),
    #[error("allowPrivilegeEscalation: true is not supported")]
    Escalation,
    #[error(
        "sandbox profile {name:?} asks for Landlock interface {needed}, the kernel of this node has {found}"
    )]
    Landlock { name: String, needed: u32, found: u32 },
    #[error("the seccomp profile of sandbox profile {name:?}")]
    Oci {
        name: String,
        #[source]
        source: oci::OciError,
    },
    #[error("sandbox profile {name:?} cannot be read")]
    Malformed {
        name: String,
        #[source]
        source: serde_json::Error,
    },
}

/// What the choice of a sandbox depends on beside the pod.
#[derive(Debug, Default)]
pub(crate) struct Ground {
    /// The object that the pod's annotation names, if it names no preset.
    pub(crate) named: Option<SandboxProfile>,
    /// Version of the node's kernel.
    pub(crate) kernel: (u32, u32),
    /// Its Landlock interface.
    pub(crate) landlock: u32,
}

impl Ground {
    /// Reads the object that the pod names; one that is missing is found out by [`profile`].
    pub(crate) async fn read(client: &Client, pod: &Pod) -> Result<Self, kube::Error> {
        let mut ground = Self {
            named: None,
            kernel: oci::kernel_version(),
            landlock: landlock_abi(),
        };
        if let Some(name) = annotation(pod).filter(|name| !SANDBOX_PRESETS.contains(name)) {
            let resource = ApiResource {
                group: "palisade.dev".to_owned(),
                version: "v1alpha1".to_owned(),
                api_version: api::palisade::API_VERSION.to_owned(),
                kind: "SandboxProfile".to_owned(),
                plural: "sandboxprofiles".to_owned(),
            };
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let profiles: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
            if let Some(object) = profiles.get_opt(name).await? {
                let typed = serde_json::to_value(object).and_then(serde_json::from_value);
                ground.named = Some(typed.map_err(kube::Error::SerdeError)?);
            }
        }
        Ok(ground)
    }
}

fn annotation(pod: &Pod) -> Option<&str> {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(api::annotations::SANDBOX_PROFILE))
        .map(String::as_str)
}

/// The profile that the pod's annotation names, for one of its containers, which holds `capabilities`.
pub(crate) fn profile(
    pod: &Pod,
    container: &Container,
    capabilities: &[String],
    ground: &Ground,
) -> Result<Profile, SandboxError> {
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
    match annotation(pod) {
        None | Some("baseline") => Ok(preset(SandboxPreset::Baseline, container)),
        Some("audit") => Ok(preset(SandboxPreset::Audit, container)),
        Some("strict") => Ok(preset(SandboxPreset::Strict, container)),
        Some(name) => {
            let named = ground.named.as_ref();
            let object = named.filter(|object| object.metadata.name.as_deref() == Some(name));
            let object = object.ok_or_else(|| SandboxError::Unknown(name.to_owned()))?;
            tightened(name, object, container, capabilities, ground)
        }
    }
}

fn preset(preset: SandboxPreset, container: &Container) -> Profile {
    match preset {
        SandboxPreset::Audit => Profile::audit(),
        SandboxPreset::Baseline => Profile::baseline(),
        SandboxPreset::Strict => Profile::strict(TcpPorts {
            bind: Some(declared_ports(container)),
            connect: None,
        }),
    }
}

/// A preset less what the object takes away.
fn tightened(
    name: &str,
    object: &SandboxProfile,
    container: &Container,
    capabilities: &[String],
    ground: &Ground,
) -> Result<Profile, SandboxError> {
    let spec = &object.spec;
    let needed = spec.minimum_landlock_abi.unwrap_or(0);
    if needed > ground.landlock {
        return Err(SandboxError::Landlock {
            name: name.to_owned(),
            needed,
            found: ground.landlock,
        });
    }
    let mut profile = preset(spec.preset, container);
    if let Some(seccomp) = &spec.seccomp {
        let json = serde_json::to_string(seccomp).map_err(|source| SandboxError::Malformed {
            name: name.to_owned(),
            source,
        })?;
        let context = oci::Context {
            capabilities,
            kernel: ground.kernel,
        };
        let imported = oci::import(&json, &context).map_err(|source| SandboxError::Oci {
            name: name.to_owned(),
            source,
        })?;
        for note in &imported.notes {
            tracing::debug!(profile = name, note, "seccomp profile");
        }
        profile.syscalls = SyscallSet::Policy(profile.syscalls.policy().and(&imported.policy));
    }
    if let Some(ports) = &spec.tcp {
        profile.tcp = fewer_ports(&profile.tcp, ports);
    }
    Ok(profile)
}

fn fewer_ports(before: &Tcp, ports: &SandboxPorts) -> Tcp {
    let before = match before {
        Tcp::Denied => return Tcp::Denied,
        Tcp::Unrestricted => &TcpPorts::default(),
        Tcp::Ports(before) => before,
    };
    let both = |before: &Option<BTreeSet<u16>>, ports: &Option<Vec<u16>>| {
        let ports = ports
            .as_ref()
            .map(|ports| ports.iter().copied().collect::<BTreeSet<_>>());
        match (before, ports) {
            (Some(before), Some(ports)) => Some(before & &ports),
            (before, ports) => ports.or_else(|| before.clone()),
        }
    };
    Tcp::Ports(TcpPorts {
        bind: both(&before.bind, &ports.bind),
        connect: both(&before.connect, &ports.connect),
    })
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
    use agent_sandbox::Action;
    use serde_json::{Value, json};

    use super::*;

    fn chosen(annotation: Option<&str>, container: &Value) -> Result<Profile, SandboxError> {
        let annotations = annotation.map(|name| json!({"palisade.dev/sandbox-profile": name}));
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [container]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let container = pod.spec.as_ref().expect("has a spec").containers[0].clone();
        profile(&pod, &container, &["CAP_CHOWN".to_owned()], &Ground::default())
    }

    fn named(spec: &Value, landlock: u32) -> Result<Profile, SandboxError> {
        let pod = json!({"metadata": {"annotations": {"palisade.dev/sandbox-profile": "mine"}}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let container = json!({"name": "c", "ports": [{"containerPort": 8080}, {"containerPort": 443}]});
        let container: Container = serde_json::from_value(container).expect("a container");
        let object = json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "SandboxProfile",
            "metadata": {"name": "mine"}, "spec": spec,
        });
        let ground = Ground {
            named: Some(serde_json::from_value(object).expect("a profile")),
            kernel: (6, 12),
            landlock,
        };
        profile(&pod, &container, &["CAP_CHOWN".to_owned()], &ground)
    }

    #[test]
    fn an_object_takes_away_and_never_adds() {
        let spec = json!({
            "preset": "strict",
            "tcp": {"bind": [443, 9090], "connect": [5432]},
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30},
                {"names": ["ptrace", "bpf"], "action": "SCMP_ACT_ALLOW"}]},
        });
        let profile = named(&spec, 7).expect("valid");
        let ports = TcpPorts {
            bind: Some(BTreeSet::from([443])),
            connect: Some(BTreeSet::from([5432])),
        };
        assert_eq!(profile.tcp, Tcp::Ports(ports), "declared and allowed");
        assert!(profile.is_read_only());
        let policy = profile.syscalls.policy();
        let decide = |name| policy.decide(agent_sandbox::call_number(name).expect("a call"), &[0; 6]);
        assert_eq!(decide("mkdirat"), Action::Errno(30));
        assert_eq!(decide("openat"), Action::Allow);
        for refused in ["ptrace", "bpf", "mount", "personality"] {
            assert_eq!(decide(refused), Action::Errno(1), "{refused}");
        }
        let open = named(&json!({}), 7).expect("valid");
        assert_eq!(open, Profile::baseline());
    }

    #[test]
    fn what_cannot_be_enforced_starts_nothing() {
        let newer = named(&json!({"minimumLandlockABI": 8}), 7);
        assert!(
            matches!(
                newer,
                Err(SandboxError::Landlock {
                    needed: 8,
                    found: 7,
                    ..
                })
            ),
            "{newer:?}"
        );
        let notify = json!({"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}});
        assert!(matches!(named(&notify, 7), Err(SandboxError::Oci { .. })));
        let missing = chosen(Some("mine"), &json!({"name": "c"}));
        assert!(
            matches!(missing, Err(SandboxError::Unknown(_))),
            "the object is not there"
        );
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
