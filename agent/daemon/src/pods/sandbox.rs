//! Which sandbox a container gets. Whatever asks for less than the baseline is refused, also when admission
//! let it pass.

use std::collections::BTreeSet;

use agent_sandbox::{
    LandlockError, Profile, landlock_abi,
    object::{self, ObjectError, Surroundings},
    oci,
};
use api::palisade::{SANDBOX_PRESETS, SandboxPreset, SandboxProfile};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject},
};
use policies_ir::ports::PortSet;

/// Most ports that become Landlock rules, one system call each.
const MAX_RULES: u32 = 4096;

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
    #[error("sandbox profile {name:?} cannot be enforced on this node")]
    Landlock {
        name: String,
        #[source]
        source: LandlockError,
    },
    #[error("sandbox profile {name:?} cannot be enforced")]
    Object {
        name: String,
        #[source]
        source: ObjectError,
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
    /// The oldest interface that a profile may make do with.
    pub(crate) floor: u32,
    /// TCP ports to which the pod's egress policy lets it connect at all; nothing if that is not known.
    pub(crate) egress: Option<PortSet>,
}

impl Ground {
    /// Reads the object that the pod names; one that is missing is found out by [`profile`].
    pub(crate) async fn read(client: &Client, pod: &Pod, floor: u32) -> Result<Self, kube::Error> {
        let mut ground = Self {
            named: None,
            kernel: oci::kernel_version(),
            landlock: landlock_abi(),
            floor,
            egress: None,
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

    /// Whether the pod's egress policy also becomes Landlock rules.
    pub(crate) fn limits_connections(&self, pod: &Pod) -> bool {
        match annotation(pod) {
            Some("strict") => true,
            None | Some("baseline" | "audit") => false,
            Some(_) => self
                .named
                .as_ref()
                .is_some_and(|object| object.spec.preset == SandboxPreset::Strict),
        }
    }

    /// The egress ports as far as Landlock can have them, with those of the pod itself: within the pod no policy
    /// judges. Nothing if all may be connected to, or too many.
    fn connect(&self, pod: &Pod) -> Option<BTreeSet<u16>> {
        let ports = self.egress.as_ref().filter(|ports| ports.len() <= MAX_RULES)?;
        let spec = pod.spec.as_ref();
        let inits = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        let all = spec.iter().flat_map(|spec| &spec.containers).chain(inits);
        Some(ports.iter().chain(all.flat_map(declared_ports)).collect())
    }
}

fn annotation(pod: &Pod) -> Option<&str> {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(api::annotations::SANDBOX_PROFILE))
        .map(String::as_str)
}

/// What the object that the pod names leaves of a container's capabilities.
pub(crate) fn kept(pod: &Pod, mut capabilities: Vec<String>, ground: &Ground) -> Vec<String> {
    let named = ground
        .named
        .as_ref()
        .filter(|object| object.metadata.name.as_deref() == annotation(pod));
    if let Some(kept) = named.and_then(|object| object.spec.capabilities.as_ref()) {
        capabilities.retain(|capability| kept.contains(capability));
    }
    capabilities
}

/// The profile that the pod's annotation names, for one of its containers, which holds `capabilities`. One that the
/// node cannot enforce is none.
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
    let connect = ground.connect(pod);
    let around = Surroundings {
        declared: &declared_ports(container).collect(),
        egress: connect.as_ref(),
        capabilities,
        kernel: ground.kernel,
        floor: ground.floor,
    };
    let name = annotation(pod).unwrap_or("baseline");
    let profile = match name {
        "baseline" => object::preset(SandboxPreset::Baseline, &around),
        "audit" => object::preset(SandboxPreset::Audit, &around),
        "strict" => object::preset(SandboxPreset::Strict, &around),
        _ => {
            let named = ground.named.as_ref();
            let object = named.filter(|object| object.metadata.name.as_deref() == Some(name));
            let object = object.ok_or_else(|| SandboxError::Unknown(name.to_owned()))?;
            let made = object::tightened(&object.spec, &around);
            let made = made.map_err(|source| SandboxError::Object {
                name: name.to_owned(),
                source,
            })?;
            for note in &made.notes {
                tracing::debug!(profile = name, note, "seccomp profile");
            }
            made.profile
        }
    };
    match profile.missing_on(ground.landlock) {
        Ok(_lacking) => Ok(profile),
        Err(source) => Err(SandboxError::Landlock {
            name: name.to_owned(),
            source,
        }),
    }
}

/// TCP ports that the container says it serves.
fn declared_ports(container: &Container) -> impl Iterator<Item = u16> {
    let ports = container.ports.iter().flatten();
    let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    tcp.filter_map(|port| u16::try_from(port.container_port).ok())
}

#[cfg(test)]
mod tests {
    use agent_sandbox::{Tcp, TcpPorts};
    use serde_json::{Value, json};

    use super::*;

    fn ground(landlock: u32) -> Ground {
        Ground {
            kernel: (6, 12),
            landlock,
            floor: 5,
            ..Ground::default()
        }
    }

    fn chosen(annotation: Option<&str>, container: &Value, ground: &Ground) -> Result<Profile, SandboxError> {
        let annotations = annotation.map(|name| json!({"palisade.dev/sandbox-profile": name}));
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 9000}]});
        let pod = json!({"metadata": {"annotations": annotations},
            "spec": {"containers": [container], "initContainers": [sidecar]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let container = pod.spec.as_ref().expect("has a spec").containers[0].clone();
        profile(&pod, &container, &["CAP_CHOWN".to_owned()], ground)
    }

    fn named(spec: &Value, landlock: u32) -> Result<Profile, SandboxError> {
        let container = json!({"name": "c", "ports": [{"containerPort": 8080}, {"containerPort": 443}]});
        let object = json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "SandboxProfile",
            "metadata": {"name": "mine"}, "spec": spec,
        });
        let ground = Ground {
            named: Some(serde_json::from_value(object).expect("a profile")),
            ..ground(landlock)
        };
        chosen(Some("mine"), &container, &ground)
    }

    #[test]
    fn what_cannot_be_enforced_starts_nothing() {
        let newer = named(&json!({"minimumLandlockABI": 8}), 7).map_err(|error| crate::policy::chain(&error));
        assert!(
            newer.as_ref().is_err_and(|error| error.contains("interface 8")),
            "{newer:?}"
        );
        let scoped = json!({"landlock": {"scopes": ["Signals"]}});
        let old = named(&scoped, 5).map_err(|error| crate::policy::chain(&error));
        assert!(
            old.as_ref().is_err_and(|error| error.contains("scopes")),
            "{old:?}"
        );
        assert!(named(&scoped, 6).is_ok());
        let notify = json!({"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}});
        assert!(matches!(named(&notify, 7), Err(SandboxError::Object { .. })));
        let missing = chosen(Some("mine"), &json!({"name": "c"}), &ground(7));
        assert!(
            matches!(missing, Err(SandboxError::Unknown(_))),
            "the object is not there"
        );
        let baseline = chosen(None, &json!({"name": "c"}), &ground(4));
        assert!(
            matches!(baseline, Err(SandboxError::Landlock { .. })),
            "{baseline:?}"
        );
    }

    #[test]
    fn best_effort_goes_down_to_the_floor_of_the_node() {
        let spec = json!({"minimumLandlockABI": 8, "enforcement": "BestEffort", "landlock": {"scopes": ["Signals"]}});
        let profile = named(&spec, 5).expect("as old as the node takes");
        let missing = profile.missing_on(5).expect("taken");
        assert_eq!(missing.len(), 2, "{missing:?}");
        assert!(matches!(named(&spec, 4), Err(SandboxError::Landlock { .. })));
    }

    #[test]
    fn capabilities_are_taken_away_and_never_given() {
        let pod = |name: &str| -> Pod {
            let pod = json!({"metadata": {"annotations": {"palisade.dev/sandbox-profile": name}}});
            serde_json::from_value(pod).expect("a pod")
        };
        let object = json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "SandboxProfile",
            "metadata": {"name": "mine"}, "spec": {"capabilities": ["CAP_KILL", "CAP_SYS_ADMIN"]},
        });
        let ground = Ground {
            named: Some(serde_json::from_value(object).expect("a profile")),
            ..ground(7)
        };
        let held = || vec!["CAP_CHOWN".to_owned(), "CAP_KILL".to_owned()];
        assert_eq!(kept(&pod("mine"), held(), &ground), ["CAP_KILL"]);
        assert_eq!(kept(&pod("other"), held(), &ground), held());
    }

    #[test]
    fn the_annotation_chooses_and_strict_takes_the_declared_ports() {
        let container = json!({"name": "c", "ports": [
            {"containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}, {"containerPort": 443, "protocol": "TCP"}
        ]});
        let ground = ground(7);
        assert_eq!(
            chosen(None, &container, &ground).expect("baseline"),
            Profile::baseline()
        );
        assert_eq!(
            chosen(Some("audit"), &container, &ground).expect("audit"),
            Profile::audit()
        );
        let strict = chosen(Some("strict"), &container, &ground).expect("strict");
        let Tcp::Ports(ports) = &strict.tcp else {
            panic!("{strict:?}")
        };
        assert_eq!(ports.bind, Some(BTreeSet::from([443, 8080])));
        assert!(strict.is_read_only());
        let none = chosen(Some("strict"), &json!({"name": "c"}), &ground).expect("strict");
        assert_eq!(
            none.tcp,
            Tcp::Ports(TcpPorts {
                bind: Some(BTreeSet::new()),
                connect: None
            })
        );
        assert!(matches!(
            chosen(Some("none"), &container, &ground),
            Err(SandboxError::Unknown(_))
        ));
    }

    #[test]
    fn strict_connects_to_what_egress_policy_allows_and_within_the_pod() {
        let container = json!({"name": "c", "ports": [{"containerPort": 8080}]});
        let connect = |ports: PortSet, name| {
            let ground = Ground {
                egress: Some(ports),
                ..ground(7)
            };
            match chosen(Some(name), &container, &ground).expect("a profile").tcp {
                Tcp::Ports(ports) => ports.connect,
                Tcp::Unrestricted => None,
                Tcp::Denied => Some(BTreeSet::new()),
            }
        };
        let mut few = PortSet::none();
        few.insert(53, 53);
        few.insert(5432, 5433);
        let expected = BTreeSet::from([53, 5432, 5433, 8080, 9000]);
        assert_eq!(connect(few.clone(), "strict"), Some(expected));
        assert_eq!(
            connect(PortSet::none(), "strict"),
            Some(BTreeSet::from([8080, 9000]))
        );
        assert_eq!(connect(PortSet::all(), "strict"), None);
        assert_eq!(connect(few, "baseline"), None);
    }
}
