//! From a container of the spec and its image to what the runtime is asked for. Pure.

use std::path::{Path, PathBuf};

use agent_images::{ImageConfig, UserIds};
use agent_runtime::{ContainerConfig, Mount, PidNamespace, Streams};
use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};

use super::{contents, debug, env, limits, sandbox, signals, termination, volumes};

/// What a container may do without asking for more, inside its user namespace: Docker's set without raw
/// sockets and device nodes.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// What a pod may add: the rest of Docker's set.
const ADDABLE_CAPABILITIES: &[&str] = &["AUDIT_WRITE", "MKNOD", "NET_RAW"];

/// Files that every container of a pod gets over those of its image, written by the agent.
pub(crate) const POD_FILES: &[&str] = &["hosts", "hostname", "resolv.conf"];

/// Volumes of an image that stay writable under a read-only root; more are nothing that an image needs.
const MAX_IMAGE_VOLUMES: usize = 64;

/// Why a container cannot be started as its spec says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    #[error("the image has neither an entry point nor a command, and the container names none")]
    NoCommand,
    #[error("volume mount {0:?} names no volume of the pod")]
    NoVolume(String),
    #[error("{field} {value:?} must be an absolute path without '..'")]
    Path { field: &'static str, value: String },
    #[error("subPath {0:?} must be relative, without '..'")]
    SubPath(String),
    #[error(
        "the image declares more than {MAX_IMAGE_VOLUMES} VOLUMEs, which is more than a read-only root can leave writable"
    )]
    ImageVolumes,
    #[error("capability {0:?} cannot be added")]
    Capability(String),
    #[error(transparent)]
    Sandbox(#[from] sandbox::SandboxError),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("resources of the container")]
    Quantity(#[from] api::quantity::QuantityError),
    #[error(transparent)]
    Env(#[from] env::EnvError),
}

/// Where the pod's things are on the node.
pub(crate) struct Places<'a> {
    pub(crate) volumes: &'a Path,
    pub(crate) files: PodFiles<'a>,
    /// Where this run leaves its last words.
    pub(crate) message: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) log_max_bytes: u64,
    pub(crate) log_max_files: u32,
}

/// Where those of [`POD_FILES`] are.
pub(crate) enum PodFiles<'a> {
    /// The pod's, which no container writes to.
    Shared(&'a Path),
    /// Copies that are the container's to write.
    Own(&'a Path),
}

/// Everything that was resolved for a container before it starts.
pub(crate) struct Resolved<'a> {
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) image: &'a ImageConfig,
    pub(crate) user: UserIds,
    pub(crate) environment: env::Environment,
    pub(crate) sandbox: &'a sandbox::Ground,
    pub(crate) node_memory_bytes: u64,
    /// Processes and threads: those of the pod, which one container may have all.
    pub(crate) pids: u32,
}

/// The runtime's view of `container`, started for the `attempt`th time after the first.
pub(crate) fn config(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    resolved: Resolved<'_>,
    places: &Places<'_>,
) -> Result<ContainerConfig, ContainerError> {
    let none = SecurityContext::default();
    let security = container.security_context.as_ref().unwrap_or(&none);
    if security.privileged == Some(true) {
        return Err(ContainerError::Unsupported("privileged"));
    }
    let argv = argv(container, &resolved)?;
    let capabilities = sandbox::kept(pod, container, capabilities_of(pod, container)?, resolved.sandbox);
    let cwd = match (
        container.working_dir.as_deref(),
        resolved.image.working_dir.as_str(),
    ) {
        (Some(own), _) if !own.is_empty() => own,
        (_, "") => "/",
        (_, image) => image,
    };
    let profile = sandbox::profile(pod, container, &capabilities, resolved.sandbox)?;
    let read_only_root = has_read_only_root(pod, container);
    let image_volumes = match read_only_root && !profile.is_read_only() {
        true => image_volumes(resolved.image)?,
        // They are as writable as the rest of the root, or, by the profile `strict`, as little.
        false => Vec::new(),
    };
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt,
        argv,
        cwd: absolute("workingDir", cwd)?,
        mounts: mounts(pod, container, &resolved.environment, places)?,
        env: resolved.environment.all.into_iter().collect(),
        layers: resolved.layers,
        uid: resolved.user.uid,
        gid: resolved.user.gid,
        supplemental_gids: resolved.user.supplementary,
        read_only_root,
        image_volumes,
        pid_namespace: pid_namespace(pod, container),
        streams: Streams {
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            tty: container.tty == Some(true),
        },
        oom_score_adj: pod.spec.as_ref().map_or(0, |spec| {
            agent_plan::oom_score_adj(spec, container, resolved.node_memory_bytes)
        }),
        stop_signal: signals::stop_signal(resolved.image.stop_signal.as_deref()),
        resources: limits::of_container(container, resolved.pids)?,
        profile,
        capabilities,
        log_path: places.log.clone(),
        log_max_bytes: places.log_max_bytes,
        log_max_files: places.log_max_files,
    })
}

/// Kubernetes' rule: `command` replaces the entry point and drops the image's arguments, `args` replaces
/// the arguments.
fn argv(container: &Container, resolved: &Resolved<'_>) -> Result<Vec<String>, ContainerError> {
    let expanded = |words: &Option<Vec<String>>| -> Option<Vec<String>> {
        let words = words.as_ref().filter(|words| !words.is_empty())?;
        Some(
            words
                .iter()
                .map(|word| env::expand(word, &resolved.environment.own))
                .collect(),
        )
    };
    let mut argv = match (expanded(&container.command), expanded(&container.args)) {
        (Some(command), args) => [command, args.unwrap_or_default()].concat(),
        (None, Some(args)) => [resolved.image.entrypoint.clone(), args].concat(),
        (None, None) => [resolved.image.entrypoint.clone(), resolved.image.cmd.clone()].concat(),
    };
    if argv.first().is_none_or(String::is_empty) {
        return Err(ContainerError::NoCommand);
    }
    argv.shrink_to_fit();
    Ok(argv)
}

/// Whose processes the container sees: only an ephemeral one looks at another's, unless the pod's share them all.
fn pid_namespace(pod: &Pod, container: &Container) -> PidNamespace {
    let spec = pod.spec.as_ref();
    if shares_processes(pod) {
        return PidNamespace::Pod;
    }
    let mut ephemeral = spec
        .iter()
        .flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    let target = ephemeral
        .find(|ephemeral| ephemeral.name == container.name)
        .and_then(|ephemeral| text(&ephemeral.target_container_name));
    target.map_or(PidNamespace::Own, |target| PidNamespace::Of(target.to_owned()))
}

/// Whether the pod's containers see one another's processes.
pub(crate) fn shares_processes(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.share_process_namespace) == Some(true)
}

fn mounts(
    pod: &Pod,
    container: &Container,
    environment: &env::Environment,
    places: &Places<'_>,
) -> Result<Vec<Mount>, ContainerError> {
    let known: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
        .map(|volume| volume.name.as_str())
        .collect();
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        if !known.contains(&mount.name.as_str()) {
            return Err(ContainerError::NoVolume(mount.name.clone()));
        }
        let sub_path = match (text(&mount.sub_path), text(&mount.sub_path_expr)) {
            (Some(path), _) => Some(relative(path)?),
            (None, Some(expression)) => Some(relative(&env::expand_all(expression, &environment.own)?)?),
            (None, None) => None,
        };
        let target = absolute("mountPath", &mount.mount_path)?;
        let immutable = pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten())
            .any(|volume| {
                // What mirrors objects is not the pod's to write.
                volume.name == mount.name && !contents::is_the_pods(volume)
            });
        mounts.push(Mount {
            source: volumes::path_of(places.volumes, &mount.name),
            sub_path,
            target,
            read_only: immutable || mount.read_only == Some(true),
            executable: false,
        });
    }
    let (files, writable) = match places.files {
        PodFiles::Shared(files) => (files, false),
        PodFiles::Own(files) => (files, true),
    };
    for file in POD_FILES {
        let target = Path::new("/etc").join(file);
        // A volume over one of our files wins, as it does in Kubernetes. In one that cannot be written there is no place for
        // it, and the container would not start.
        let is_taken =
            |mount: &Mount| mount.target == target || (mount.read_only && target.starts_with(&mount.target));
        if !mounts.iter().any(is_taken) {
            mounts.push(Mount {
                source: files.join(file),
                sub_path: None,
                target,
                read_only: !writable,
                executable: false,
            });
        }
    }
    let path = container.termination_message_path.as_deref();
    let path = path
        .filter(|path| !path.is_empty())
        .unwrap_or(termination::DEFAULT_PATH);
    let target = absolute("terminationMessagePath", path)?;
    // A volume that has the path takes the messages, and nobody reads them.
    if mounts.iter().all(|mount| mount.target != target) {
        mounts.push(Mount {
            source: places.message.clone(),
            sub_path: None,
            target,
            read_only: false,
            executable: false,
        });
    }
    Ok(mounts)
}

/// What the image means to write to: containerd gives it that also under a read-only root.
fn image_volumes(image: &ImageConfig) -> Result<Vec<PathBuf>, ContainerError> {
    match image.volumes.len() > MAX_IMAGE_VOLUMES {
        true => Err(ContainerError::ImageVolumes),
        false => image
            .volumes
            .iter()
            .map(|path| absolute("VOLUME", path))
            .collect(),
    }
}

fn text(field: &Option<String>) -> Option<&str> {
    field.as_deref().filter(|text| !text.is_empty())
}

fn relative(value: &str) -> Result<PathBuf, ContainerError> {
    use std::path::Component;
    let mut parts = Path::new(value).components();
    // `.` is the volume itself, which needs no sub-path; anything else that is odd is refused.
    match parts.all(|part| matches!(part, Component::Normal(_))) && !value.is_empty() {
        true => Ok(PathBuf::from(value)),
        false => Err(ContainerError::SubPath(value.to_owned())),
    }
}

fn absolute(field: &'static str, value: &str) -> Result<PathBuf, ContainerError> {
    use std::path::Component;
    let path = Path::new(value);
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    // Rebuilt from its components, so that `/a//b/./` and `/a/b` are one path.
    if path.is_absolute() && plain {
        Ok(path.components().collect())
    } else {
        Err(ContainerError::Path {
            field,
            value: value.to_owned(),
        })
    }
}

/// Whether the container cannot write to its root, by its own wish or since it looks at one that cannot.
pub(crate) fn has_read_only_root(pod: &Pod, container: &Container) -> bool {
    let security = container.security_context.as_ref();
    let own = security.and_then(|security| security.read_only_root_filesystem);
    own == Some(true) || debug::has_read_only_root(pod, container)
}

/// The capabilities that a container of the pod holds, such as `CAP_CHOWN`.
pub(crate) fn capabilities_of(pod: &Pod, container: &Container) -> Result<Vec<String>, ContainerError> {
    let asked = |container: &Container| {
        let none = SecurityContext::default();
        capabilities(container.security_context.as_ref().unwrap_or(&none))
    };
    debug::capabilities(pod, container, asked(container)?, asked)
}

fn capabilities(security: &SecurityContext) -> Result<Vec<String>, ContainerError> {
    let wishes = security.capabilities.clone().unwrap_or_default();
    let plain = |name: &String| name.trim_start_matches("CAP_").to_owned();
    let dropped: Vec<String> = wishes.drop.iter().flatten().map(plain).collect();
    let drops = |name: &str| dropped.iter().any(|dropped| dropped == name || dropped == "ALL");
    let mut held: Vec<String> = DEFAULT_CAPABILITIES
        .iter()
        .filter(|name| !drops(name))
        .map(|name| (*name).to_owned())
        .collect();
    for name in wishes.add.iter().flatten().map(plain) {
        let known = DEFAULT_CAPABILITIES
            .iter()
            .chain(ADDABLE_CAPABILITIES)
            .any(|known| **known == name);
        if !known {
            return Err(ContainerError::Capability(name));
        }
        if !held.contains(&name) {
            held.push(name);
        }
    }
    held.sort();
    Ok(held.into_iter().map(|name| format!("CAP_{name}")).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn build(container: Value) -> Result<ContainerConfig, ContainerError> {
        let mut container = container;
        container["name"] = json!("c");
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [container],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x"}}],
        }}))
        .unwrap();
        let image = ImageConfig {
            entrypoint: vec!["/entry".to_owned()],
            cmd: vec!["image".to_owned()],
            volumes: vec!["/data/".to_owned()],
            ..ImageConfig::default()
        };
        let sandbox = sandbox::Ground {
            landlock: 7,
            ..sandbox::Ground::default()
        };
        let resolved = Resolved {
            layers: vec![PathBuf::from("/layer")],
            image: &image,
            user: UserIds::default(),
            environment: env::Environment {
                all: [("A", "1"), ("IMAGE", "2")]
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
                    .into(),
                own: [("A".to_owned(), "1".to_owned())].into(),
            },
            sandbox: &sandbox,
            node_memory_bytes: 8 << 30,
            pids: 99,
        };
        let places = Places {
            volumes: Path::new("/volumes"),
            files: PodFiles::Own(Path::new("/files")),
            message: PathBuf::from("/files/c.0.message"),
            log: PathBuf::from("/log"),
            log_max_bytes: 1,
            log_max_files: 1,
        };
        config(
            &pod,
            &pod.spec.as_ref().unwrap().containers[0],
            0,
            resolved,
            &places,
        )
    }

    #[test]
    fn commands_combine_like_kubernetes() {
        let argv = |container: Value| build(container).unwrap().argv.join(" ");
        assert_eq!(argv(json!({})), "/entry image");
        assert_eq!(argv(json!({"args": ["$(A)", "$(IMAGE)"]})), "/entry 1 $(IMAGE)");
        assert_eq!(argv(json!({"command": ["/own"]})), "/own");
        assert_eq!(argv(json!({"command": ["/own"], "args": ["$$(A)"]})), "/own $(A)");
    }

    #[test]
    fn resources_become_cgroup_numbers() {
        let config = build(json!({"resources": {
            "limits": {"cpu": "250m", "memory": "64Mi"}, "requests": {"cpu": "100m"}}}))
        .unwrap();
        assert_eq!(config.resources.cpu_quota_us, Some(25_000));
        assert_eq!(config.resources.cpu_shares, Some(102));
        assert_eq!(config.resources.memory_bytes, Some(64 * 1024 * 1024));
        assert_eq!(config.oom_score_adj, 999, "it requests no memory");
        let nothing = build(json!({})).unwrap().resources;
        assert_eq!(
            (nothing.cpu_quota_us, nothing.cpu_shares, nothing.memory_bytes),
            (None, Some(2), None)
        );
        assert_eq!(nothing.pids, Some(99), "the pod's");
    }

    #[test]
    fn capabilities_start_from_the_default_set() {
        let held = |capabilities: Value| {
            build(json!({"securityContext": {"capabilities": capabilities}}))
                .map(|config| config.capabilities)
        };
        assert_eq!(held(json!({"drop": ["ALL"]})).unwrap(), Vec::<String>::new());
        assert_eq!(
            held(json!({"drop": ["ALL"], "add": ["CHOWN"]})).unwrap(),
            ["CAP_CHOWN"]
        );
        assert!(held(json!({})).unwrap().contains(&"CAP_SETUID".to_owned()));
        assert!(!held(json!({})).unwrap().contains(&"CAP_NET_RAW".to_owned()));
        assert!(matches!(
            held(json!({"add": ["SYS_ADMIN"]})),
            Err(ContainerError::Capability(_))
        ));
    }

    #[test]
    fn mounts_name_volumes_and_targets_are_plain() {
        let config = build(json!({"volumeMounts": [
            {"name": "v", "mountPath": "/data//x/"}, {"name": "s", "mountPath": "/etc/hosts"}]}))
        .unwrap();
        let shown: Vec<(String, bool)> = config
            .mounts
            .iter()
            .map(|m| (m.target.display().to_string(), m.read_only))
            .collect();
        let expected = [
            ("/data/x", false),
            ("/etc/hosts", true),
            ("/etc/hostname", false),
            ("/etc/resolv.conf", false),
            ("/dev/termination-log", false),
        ];
        assert_eq!(
            shown,
            expected.map(|(path, read_only)| (path.to_owned(), read_only))
        );
        for path in ["data", "/a/../b", ""] {
            let mount = json!({"volumeMounts": [{"name": "v", "mountPath": path}]});
            assert!(matches!(build(mount), Err(ContainerError::Path { .. })), "{path}");
        }
        let own = |volume: &str| {
            let config = build(json!({"volumeMounts": [{"name": volume, "mountPath": "/etc"}]})).unwrap();
            let files = config.mounts.iter();
            files
                .filter(|mount| mount.target.parent() == Some(Path::new("/etc")))
                .count()
        };
        assert_eq!(
            own("v"),
            POD_FILES.len(),
            "they are mounted into what can be written"
        );
        assert_eq!(own("s"), 0, "a secret has no place for them");
        let unknown = json!({"volumeMounts": [{"name": "x", "mountPath": "/x"}]});
        assert!(matches!(build(unknown), Err(ContainerError::NoVolume(_))));
    }

    #[test]
    fn parts_of_volumes_are_named_and_expanded() {
        let sub_path = |mount: Value| {
            let mut mount = mount;
            mount["name"] = json!("v");
            mount["mountPath"] = json!("/data");
            let config = build(json!({"volumeMounts": [mount]}))?;
            let found = config
                .mounts
                .into_iter()
                .find(|mount| mount.target == Path::new("/data"));
            Ok::<_, ContainerError>(found.unwrap().sub_path.map(|path| path.display().to_string()))
        };
        let path = |text: &str| Some(text.to_owned());
        assert_eq!(sub_path(json!({})).unwrap(), None);
        assert_eq!(sub_path(json!({"subPath": "a/b"})).unwrap(), path("a/b"));
        assert_eq!(sub_path(json!({"subPathExpr": "x-$(A)"})).unwrap(), path("x-1"));
        assert!(matches!(
            sub_path(json!({"subPathExpr": "$(NONE)"})),
            Err(ContainerError::Env(_))
        ));
        for odd in ["/a", "../a", "a/../b"] {
            assert!(
                matches!(sub_path(json!({"subPath": odd})), Err(ContainerError::SubPath(_))),
                "{odd}"
            );
        }
    }

    #[test]
    fn volumes_of_the_image_are_written_under_a_read_only_root() {
        let volumes = |security: Value| build(json!({"securityContext": security})).unwrap().image_volumes;
        let read_only = json!({"readOnlyRootFilesystem": true});
        assert_eq!(volumes(read_only), [PathBuf::from("/data")]);
        assert!(volumes(json!({})).is_empty(), "they are in the root");
        let many = ImageConfig {
            volumes: (0..65).map(|number| format!("/{number}")).collect(),
            ..ImageConfig::default()
        };
        assert!(matches!(image_volumes(&many), Err(ContainerError::ImageVolumes)));
    }

    #[test]
    fn processes_are_shared_where_the_pod_says_so() {
        let namespace = |shares: bool, name: &str| {
            let pod: Pod = serde_json::from_value(json!({"spec": {
                "shareProcessNamespace": shares,
                "containers": [{"name": "c"}],
                "ephemeralContainers": [{"name": "d", "targetContainerName": "c"}, {"name": "e"}],
            }}))
            .unwrap();
            let container = Container {
                name: name.to_owned(),
                ..Container::default()
            };
            pid_namespace(&pod, &container)
        };
        assert_eq!(namespace(false, "c"), PidNamespace::Own);
        assert_eq!(namespace(false, "d"), PidNamespace::Of("c".to_owned()));
        assert_eq!(namespace(false, "e"), PidNamespace::Own);
        for name in ["c", "d", "e"] {
            assert_eq!(namespace(true, name), PidNamespace::Pod);
        }
    }

    #[test]
    fn nothing_weaker_than_the_baseline() {
        for security in [
            json!({"privileged": true}),
            json!({"seccompProfile": {"type": "Unconfined"}}),
            json!({"allowPrivilegeEscalation": true}),
        ] {
            assert!(build(json!({"securityContext": security})).is_err(), "{security}");
        }
    }
}
