//! Which sandbox a container gets. Whatever asks for less than the baseline is refused, also when admission
//! let it pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use agent_sandbox::{
    LandlockError, Layer, Profile, landlock_abi,
    object::{self, ObjectError, Surroundings},
    oci::{self, OciError},
};
use api::{
    annotations::{CONTAINER_SANDBOX_PROFILE_PREFIX, SANDBOX_PROFILE},
    palisade::{SANDBOX_PRESETS, SandboxPreset, SandboxProfile},
};
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, SeccompProfile};
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject},
};
use policies_ir::ports::PortSet;

use super::last_known::LastKnown;
use crate::{
    config::Config,
    operator_files::{self, FileError},
};

/// A seccomp profile that the node has as a file.
const LOCALHOST: &str = "Localhost";

/// Most ports that become Landlock rules, one system call each.
const MAX_RULES: u32 = 4096;

/// Why a container has no sandbox, and so does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("seccomp profile {0:?} is not supported; containers run under RuntimeDefault or Localhost")]
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
    #[error("the node has no seccomp profile {name:?} that can be read")]
    NoFile {
        name: String,
        #[source]
        source: Arc<FileError>,
    },
    #[error("seccomp profile {name:?} of the node cannot be enforced")]
    File {
        name: String,
        #[source]
        source: OciError,
    },
}

impl SandboxError {
    /// The layer for want of which the container does not start, if that is why.
    pub(crate) fn layer(&self) -> Option<Layer> {
        match self {
            Self::Landlock { .. } => Some(Layer::Landlock),
            Self::Object { .. } | Self::NoFile { .. } | Self::File { .. } => Some(Layer::Seccomp),
            Self::Seccomp(_) | Self::Unknown(_) | Self::Escalation => None,
        }
    }
}

/// What the choice of a sandbox depends on beside the pod.
#[derive(Debug, Default)]
pub(crate) struct Ground {
    /// The objects that the pod's annotations name, as far as those name no presets, by name.
    pub(crate) named: BTreeMap<String, SandboxProfile>,
    /// The seccomp profiles of the node that it names, by name.
    pub(crate) files: BTreeMap<String, Result<String, Arc<FileError>>>,
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
    /// Reads the objects and files that the pod names; one that is missing is found out by [`profile`], if the container
    /// is one that it is for.
    pub(crate) async fn read(
        (client, known): (&Client, &LastKnown),
        pod: &Pod,
        config: &Config,
    ) -> Result<Self, kube::Error> {
        let directory = config.seccomp_dir();
        let read = |name: &str| {
            let text = operator_files::text_below(&directory, Path::new(name)).map_err(Arc::new);
            (name.to_owned(), text)
        };
        let mut ground = Self {
            named: BTreeMap::new(),
            files: localhost_names(pod).into_iter().map(read).collect(),
            kernel: oci::kernel_version(),
            landlock: landlock_abi(),
            floor: config.landlock_floor,
            egress: None,
        };
        let resource = ApiResource {
            group: "palisade.dev".to_owned(),
            version: "v1alpha1".to_owned(),
            api_version: api::palisade::API_VERSION.to_owned(),
            kind: "SandboxProfile".to_owned(),
            plural: "sandboxprofiles".to_owned(),
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let profiles: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let names: BTreeSet<&str> = names(pod).collect();
        for name in names.into_iter().filter(|name| !SANDBOX_PRESETS.contains(name)) {
            let asked = async {
                let object = profiles.get_opt(name).await?;
                let typed =
                    object.map(|object| serde_json::to_value(object).and_then(serde_json::from_value));
                typed.transpose().map_err(kube::Error::SerdeError)
            };
            if let Some(profile) = known.ask::<SandboxProfile>(uid, name, asked).await? {
                ground.named.insert(name.to_owned(), profile);
            }
        }
        Ok(ground)
    }

    /// Whether the pod's egress policy also becomes Landlock rules, of one of its containers.
    pub(crate) fn limits_connections(&self, pod: &Pod) -> bool {
        names(pod).any(|name| self.is_strict(name))
    }

    /// Whether the image of a container is read-only by its profile.
    pub(crate) fn keeps_image(&self, pod: &Pod, container: &Container) -> bool {
        self.is_strict(name_for(pod, container, self))
    }

    fn is_strict(&self, name: &str) -> bool {
        match self.named.get(name) {
            Some(object) => object.spec.preset == SandboxPreset::Strict,
            None => name == "strict",
        }
    }

    /// Profiles by how much they take away, as far as that can be said of two that differ: an object takes from its preset. One
    /// that is missing lets nothing start.
    fn tightness(&self, name: &str) -> Tightness {
        match (self.named.get(name), SANDBOX_PRESETS.contains(&name)) {
            (None, false) => Tightness::Nothing,
            (None, true) if self.is_strict(name) => Tightness::Strict,
            (None, true) => Tightness::Baseline,
            (Some(_object), _) if self.is_strict(name) => Tightness::LessThanStrict,
            (Some(_object), _) => Tightness::LessThanBaseline,
        }
    }

    /// The egress ports as far as Landlock can have them, with those of the pod itself: within the pod no policy
    /// judges. Nothing if all may be connected to, or too many.
    fn connect(&self, pod: &Pod) -> Option<BTreeSet<u16>> {
        let ports = self.egress.as_ref().filter(|ports| ports.len() <= MAX_RULES)?;
        Some(
            ports
                .iter()
                .chain(lasting(pod).flat_map(declared_ports))
                .collect(),
        )
    }
}

/// What a profile leaves, the most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tightness {
    /// The baseline, or the baseline with a log.
    Baseline,
    LessThanBaseline,
    Strict,
    LessThanStrict,
    Nothing,
}

/// The containers that a pod was created with.
fn lasting(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    let inits = spec
        .clone()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    inits.chain(spec.flat_map(|spec| &spec.containers))
}

/// Names of sandbox profiles that the pod's annotations have, of whichever container.
fn names(pod: &Pod) -> impl Iterator<Item = &str> {
    let all = pod.metadata.annotations.iter().flatten();
    let naming = all
        .filter(|(key, _name)| *key == SANDBOX_PROFILE || key.starts_with(CONTAINER_SANDBOX_PROFILE_PREFIX));
    naming.map(|(_key, name)| name.as_str())
}

/// The name of a container's profile: its own, else the pod's, else the baseline. An ephemeral container has its target's: who
/// may add one chooses nothing looser. Without a target it has the pod's, or that of its [`measure`] where that is tighter.
fn name_for<'a>(pod: &'a Pod, container: &Container, ground: &Ground) -> &'a str {
    let of_pod = annotation(pod, SANDBOX_PROFILE).unwrap_or("baseline");
    let Some(ephemeral) = ephemeral(pod, &container.name) else {
        return own_or(pod, &container.name, of_pod);
    };
    if let Some(target) = target(ephemeral) {
        return own_or(pod, target, of_pod);
    }
    let of_measure = measure(pod, ground).map(|measure| own_or(pod, &measure.name, of_pod));
    match of_measure {
        Some(name) if ground.tightness(name) > ground.tightness(of_pod) => name,
        _ => of_pod,
    }
}

/// What an annotation names for one container, or else `otherwise`.
fn own_or<'a>(pod: &'a Pod, container: &str, otherwise: &'a str) -> &'a str {
    let own = annotation(pod, &format!("{CONTAINER_SANDBOX_PROFILE_PREFIX}{container}"));
    own.unwrap_or(otherwise)
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(key)).map(String::as_str)
}

/// The container by which one without a target is measured: the loosest of those that run as long as the pod does. Of init
/// containers that end, nobody can get anything.
fn measure<'a>(pod: &'a Pod, ground: &Ground) -> Option<&'a Container> {
    let of_pod = annotation(pod, SANDBOX_PROFILE).unwrap_or("baseline");
    let spec = pod.spec.as_ref()?;
    let inits = spec.init_containers.iter().flatten();
    let sidecars = inits.filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let staying = spec.containers.iter().chain(sidecars);
    staying.min_by_key(|container| {
        let filters = own_seccomp(container).is_some_and(|own| own.type_ == LOCALHOST);
        (ground.tightness(own_or(pod, &container.name, of_pod)), filters)
    })
}

fn ephemeral<'a>(pod: &'a Pod, name: &str) -> Option<&'a EphemeralContainer> {
    let spec = pod.spec.as_ref()?;
    let mut all = spec.ephemeral_containers.iter().flatten();
    all.find(|ephemeral| ephemeral.name == name)
}

fn target(ephemeral: &EphemeralContainer) -> Option<&str> {
    let target = ephemeral.target_container_name.as_deref();
    target.filter(|target| !target.is_empty())
}

/// The seccomp profiles of `securityContext` that hold for a container, all of them: its own or the pod's, and for an
/// ephemeral one also its target's, or without a target the pod's and that of its [`measure`].
fn seccomp_for<'a>(pod: &'a Pod, container: &'a Container, ground: &Ground) -> Vec<&'a SeccompProfile> {
    let spec = pod.spec.as_ref();
    let of_pod = spec.and_then(|spec| spec.security_context.as_ref()?.seccomp_profile.as_ref());
    let of = |container: &'a Container| own_seccomp(container).or(of_pod);
    let mut all: Vec<&SeccompProfile> = Vec::new();
    if let Some(ephemeral) = ephemeral(pod, &container.name) {
        let measure = match target(ephemeral) {
            Some(target) => lasting(pod).find(|lasting| lasting.name == target),
            None => {
                all.extend(of_pod);
                measure(pod, ground)
            }
        };
        all.extend(measure.map_or(of_pod, of));
    }
    all.extend(of(container));
    all.dedup();
    all
}

fn own_seccomp(container: &Container) -> Option<&SeccompProfile> {
    let security = container.security_context.as_ref();
    security.and_then(|security| security.seccomp_profile.as_ref())
}

/// Names of seccomp profiles of the node, of whichever container.
fn localhost_names(pod: &Pod) -> BTreeSet<&str> {
    let spec = pod.spec.as_ref();
    let of_pod = spec.and_then(|spec| spec.security_context.as_ref()?.seccomp_profile.as_ref());
    let ephemeral = spec
        .into_iter()
        .flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    let securities = lasting(pod)
        .map(|container| &container.security_context)
        .chain(ephemeral.map(|container| &container.security_context));
    let own = securities.filter_map(|security| security.as_ref()?.seccomp_profile.as_ref());
    let local = of_pod
        .into_iter()
        .chain(own)
        .filter(|profile| profile.type_ == LOCALHOST);
    local
        .filter_map(|profile| profile.localhost_profile.as_deref())
        .collect()
}

/// What the object that a container's annotation names leaves of its capabilities.
pub(crate) fn kept(
    pod: &Pod,
    container: &Container,
    capabilities: Vec<String>,
    ground: &Ground,
) -> Vec<String> {
    match ground.named.get(name_for(pod, container, ground)) {
        Some(object) => object::kept(&object.spec, &capabilities),
        None => capabilities,
    }
}

/// The profile that the pod's annotations and security contexts name for one of its containers, which holds
/// `capabilities`. One that the node cannot enforce is none.
pub(crate) fn profile(
    pod: &Pod,
    container: &Container,
    capabilities: &[String],
    ground: &Ground,
) -> Result<Profile, SandboxError> {
    let security = container.security_context.as_ref();
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
    let name = name_for(pod, container, ground);
    let mut profile = match name {
        "baseline" => object::preset(SandboxPreset::Baseline, &around),
        "audit" => object::preset(SandboxPreset::Audit, &around),
        "strict" => object::preset(SandboxPreset::Strict, &around),
        _ => {
            let object = ground.named.get(name);
            let object = object.ok_or_else(|| SandboxError::Unknown(name.to_owned()))?;
            let made = object::tightened(&object.spec, &around);
            let made = made.map_err(|source| SandboxError::Object {
                name: name.to_owned(),
                source,
            })?;
            tell(name, &made.notes);
            made.profile
        }
    };
    for seccomp in seccomp_for(pod, container, ground) {
        match seccomp.type_.as_str() {
            "RuntimeDefault" => {}
            LOCALHOST => filter_by_file(&mut profile, seccomp, &around, ground)?,
            _ => return Err(SandboxError::Seccomp(seccomp.type_.clone())),
        }
    }
    match profile.missing_on(ground.landlock) {
        Ok(_lacking) => Ok(profile),
        Err(source) => Err(SandboxError::Landlock {
            name: name.to_owned(),
            source,
        }),
    }
}

/// Leaves of the profile's system calls what the node's file leaves too.
fn filter_by_file(
    profile: &mut Profile,
    seccomp: &SeccompProfile,
    around: &Surroundings<'_>,
    ground: &Ground,
) -> Result<(), SandboxError> {
    let name = seccomp.localhost_profile.as_deref().unwrap_or_default();
    let text = match ground.files.get(name) {
        Some(Ok(text)) => text,
        Some(Err(source)) => {
            return Err(SandboxError::NoFile {
                name: name.to_owned(),
                source: source.clone(),
            });
        }
        None => return Err(SandboxError::Seccomp(format!("{LOCALHOST} without a profile"))),
    };
    let notes = object::filter(profile, text, around).map_err(|source| SandboxError::File {
        name: name.to_owned(),
        source,
    })?;
    tell(name, &notes);
    Ok(())
}

fn tell(profile: &str, notes: &[String]) {
    for note in notes {
        tracing::debug!(profile, note, "seccomp profile");
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
    use agent_sandbox::{Action, Tcp, TcpPorts};
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
            named: [(
                "mine".to_owned(),
                serde_json::from_value(object).expect("a profile"),
            )]
            .into(),
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
            named: [(
                "mine".to_owned(),
                serde_json::from_value(object).expect("a profile"),
            )]
            .into(),
            ..ground(7)
        };
        let held = || vec!["CAP_CHOWN".to_owned(), "CAP_KILL".to_owned()];
        let any = Container::default();
        assert_eq!(kept(&pod("mine"), &any, held(), &ground), ["CAP_KILL"]);
        assert_eq!(kept(&pod("other"), &any, held(), &ground), held());
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
        for (name, profile) in [("strict", &strict), ("baseline", &Profile::baseline())] {
            let annotations = json!({"palisade.dev/sandbox-profile": name});
            let pod = json!({"metadata": {"annotations": annotations}});
            let keeps = ground.keeps_image(
                &serde_json::from_value(pod).expect("a pod"),
                &Container::default(),
            );
            assert_eq!(keeps, profile.is_read_only(), "{name}");
        }
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

    /// Allows everything but one call, which answers an error of its own.
    fn file(call: &str, errno: u32) -> String {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": [call], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]})
        .to_string()
    }

    fn sharing(annotations: &Value, of_pod: &Value) -> Pod {
        let local = |name: &str| json!({"seccompProfile": {"type": "Localhost", "localhostProfile": name}});
        let pod = json!({
            "metadata": {"annotations": annotations},
            "spec": {
                "securityContext": of_pod,
                "initContainers": [{"name": "i"}],
                "containers": [
                    {"name": "plain"},
                    {"name": "local", "securityContext": local("own.json")},
                    {"name": "default", "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}},
                ],
                "ephemeralContainers": [
                    {"name": "d", "targetContainerName": "local", "securityContext": local("debug.json")},
                    {"name": "e", "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}},
                ],
            },
        });
        serde_json::from_value(pod).expect("a pod")
    }

    fn of(pod: &Pod, name: &str, ground: &Ground) -> Result<Profile, SandboxError> {
        let all = super::super::steps::containers(pod);
        let container = all.into_iter().find(|container| container.name == name);
        profile(pod, &container.expect("of the pod"), &[], ground)
    }

    #[test]
    fn a_container_names_its_own_profile_and_a_debug_container_has_its_targets() {
        let annotations = json!({
            "palisade.dev/sandbox-profile": "strict",
            "palisade.dev/sandbox-profile.plain": "audit",
            "palisade.dev/sandbox-profile.i": "baseline",
            "palisade.dev/sandbox-profile.local": "mine",
            "palisade.dev/sandbox-profile.d": "baseline",
            "palisade.dev/sandbox-profile.e": "baseline",
        });
        let pod = sharing(&annotations, &json!(null));
        let mut container = Container::default();
        let mut name = |of: &str| {
            container.name = of.to_owned();
            name_for(&pod, &container, &ground(7)).to_owned()
        };
        for (container, expected) in [
            ("plain", "audit"),
            ("i", "baseline"),
            ("local", "mine"),
            ("default", "strict"),
            ("d", "mine"),
            ("e", "strict"),
        ] {
            assert_eq!(name(container), expected, "{container}");
        }
        let ground = ground(7);
        assert!(ground.limits_connections(&pod), "one container is enough");
        let plain = sharing(
            &json!({"palisade.dev/sandbox-profile.plain": "audit"}),
            &json!(null),
        );
        assert!(!ground.limits_connections(&plain));
        assert_eq!(name_for(&plain, &Container::default(), &ground), "baseline");
    }

    /// A debug container that looks at none of them has the network, the ids and the volumes of all.
    #[test]
    fn a_debug_container_without_a_target_is_no_looser_than_every_container() {
        let object = |preset: &str| -> SandboxProfile {
            let object = json!({"apiVersion": "palisade.dev/v1alpha1", "kind": "SandboxProfile",
                "metadata": {"name": "x"}, "spec": {"preset": preset, "capabilities": []}});
            serde_json::from_value(object).expect("a profile")
        };
        let ground = Ground {
            named: [
                ("mine".to_owned(), object("baseline")),
                ("hard".to_owned(), object("strict")),
            ]
            .into(),
            ..ground(7)
        };
        // For the pod, an init container that ends, a sidecar, and two containers.
        for (names, expected) in [
            (
                [None, None, Some("strict"), Some("strict"), Some("strict")],
                "strict",
            ),
            ([None, None, Some("strict"), Some("strict"), None], "baseline"),
            ([None, None, None, Some("strict"), Some("strict")], "baseline"),
            ([None, None, Some("hard"), Some("strict"), Some("mine")], "mine"),
            ([None, None, Some("hard"), Some("hard"), Some("strict")], "strict"),
            (
                [Some("mine"), None, Some("hard"), Some("hard"), Some("hard")],
                "hard",
            ),
            (
                [Some("mine"), None, Some("audit"), Some("baseline"), Some("audit")],
                "mine",
            ),
            (
                [Some("hard"), None, Some("strict"), Some("strict"), Some("strict")],
                "hard",
            ),
            ([None, None, Some("gone"), Some("gone"), Some("gone")], "gone"),
            (
                [Some("gone"), None, Some("hard"), Some("hard"), Some("hard")],
                "gone",
            ),
        ] {
            let keys = ["", ".i", ".s", ".a", ".b"];
            let named = keys.iter().zip(names);
            let named =
                named.filter_map(|(key, name)| Some((format!("palisade.dev/sandbox-profile{key}"), name?)));
            let pod = json!({
                "metadata": {"annotations": named.collect::<BTreeMap<_, _>>()},
                "spec": {
                    "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
                    "containers": [{"name": "a"}, {"name": "b"}],
                    "ephemeralContainers": [{"name": "d"}],
                },
            });
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            let debugger = Container {
                name: "d".to_owned(),
                ..Container::default()
            };
            assert_eq!(name_for(&pod, &debugger, &ground), expected, "{names:?}");
            let held = kept(&pod, &debugger, vec!["CAP_KILL".to_owned()], &ground);
            assert_eq!(held.is_empty(), ["mine", "hard"].contains(&expected), "{names:?}");
        }
    }

    #[test]
    fn a_debug_container_without_a_target_has_the_files_of_the_loosest_container() {
        let local = |name: &str| json!({"seccompProfile": {"type": "Localhost", "localhostProfile": name}});
        let ground = Ground {
            files: [
                ("pod.json", file("mkdirat", 71)),
                ("a.json", file("symlinkat", 72)),
                ("b.json", file("linkat", 73)),
            ]
            .map(|(name, text)| (name.to_owned(), Ok(text)))
            .into(),
            ..ground(7)
        };
        let answers = |annotations: Value, of_pod: Value, a: Value, b: Value| {
            let pod = json!({"metadata": {"annotations": annotations}, "spec": {
                "securityContext": of_pod,
                "containers": [{"name": "a", "securityContext": a}, {"name": "b", "securityContext": b}],
                "ephemeralContainers": [{"name": "d"}]}});
            let pod = serde_json::from_value(pod).expect("a pod");
            let policy = of(&pod, "d", &ground).expect("a profile").syscalls.policy();
            ["mkdirat", "symlinkat", "linkat"].map(|call| {
                let number = agent_sandbox::call_number(call).expect("a call");
                match policy.decide(number, &[0; 6]) {
                    Action::Errno(errno) => errno,
                    other => {
                        assert_eq!(other, Action::Allow);
                        0
                    }
                }
            })
        };
        let none = || json!(null);
        assert_eq!(answers(none(), none(), local("a.json"), none()), [0, 0, 0]);
        let both = answers(none(), none(), local("a.json"), local("b.json"));
        assert!(both == [0, 72, 0] || both == [0, 0, 73], "{both:?}");
        assert_eq!(
            answers(none(), local("pod.json"), local("a.json"), local("a.json")),
            [71, 72, 0]
        );
        let strict = json!({"palisade.dev/sandbox-profile.a": "strict"});
        assert_eq!(
            answers(strict, none(), none(), local("b.json")),
            [0, 0, 73],
            "the one whose profile it has"
        );
    }

    #[test]
    fn seccomp_files_of_the_node_take_away_from_whichever_profile() {
        let files = [
            ("pod.json", file("mkdirat", 71)),
            ("own.json", file("mkdirat", 72)),
            ("debug.json", file("symlinkat", 73)),
            (
                "notify.json",
                json!({"defaultAction": "SCMP_ACT_NOTIFY"}).to_string(),
            ),
        ];
        let ground = Ground {
            files: files.map(|(name, text)| (name.to_owned(), Ok(text))).into(),
            ..ground(7)
        };
        let of_pod = |name: &str| json!({"seccompProfile": {"type": "Localhost", "localhostProfile": name}});
        let pod = sharing(
            &json!({"palisade.dev/sandbox-profile": "strict"}),
            &of_pod("pod.json"),
        );
        assert_eq!(
            localhost_names(&pod),
            BTreeSet::from(["pod.json", "own.json", "debug.json"])
        );
        let decide = |container: &str, call: &str| {
            let profile = of(&pod, container, &ground).expect("a profile");
            assert!(profile.is_read_only(), "{container}: still strict");
            let policy = profile.syscalls.policy();
            policy.decide(agent_sandbox::call_number(call).expect("a call"), &[0; 6])
        };
        for (container, mkdir, symlink) in [
            ("i", Action::Errno(71), Action::Allow),
            ("plain", Action::Errno(71), Action::Allow),
            ("local", Action::Errno(72), Action::Allow),
            ("default", Action::Allow, Action::Allow),
            // The target's and its own, and the pod's where there is no target.
            ("d", Action::Errno(72), Action::Errno(73)),
            ("e", Action::Errno(71), Action::Allow),
        ] {
            assert_eq!(decide(container, "mkdirat"), mkdir, "{container}");
            assert_eq!(decide(container, "symlinkat"), symlink, "{container}");
            assert_eq!(decide(container, "bpf"), Action::Errno(1), "{container}");
        }
        let notify = sharing(&json!(null), &of_pod("notify.json"));
        let error = of(&notify, "plain", &ground).expect_err("cannot be expressed");
        assert_eq!(error.layer(), Some(Layer::Seccomp));
        let words = crate::policy::chain(&error);
        assert!(
            words.contains("notify.json") && words.contains("SCMP_ACT_NOTIFY"),
            "{words}"
        );
        let missing = sharing(&json!(null), &of_pod("absent.json"));
        assert!(of(&missing, "plain", &ground).is_err());
        let unconfined = sharing(&json!(null), &json!({"seccompProfile": {"type": "Unconfined"}}));
        assert!(matches!(
            of(&unconfined, "plain", &ground),
            Err(SandboxError::Seccomp(_))
        ));
    }
}
