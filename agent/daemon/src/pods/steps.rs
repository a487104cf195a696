//! What each step of a plan does. The worker decides when; nothing here remembers anything.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use agent_images::{ImageError, KeyringError, RootfsLayers};
use agent_network::{Attachment, NetworkError};
use agent_plan::{Failure, User};
use agent_runtime::{PodConfig, PodResources, RuntimeError, Trash};
use agent_sandbox::Layer;
use api::{flow::PodRef, host_ports};
use ebpf_loader::EndpointLink;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use kube::Client;
use policies_ir::tables::EndpointId;

use super::{
    Context, PodId, claims,
    container::{self, ContainerError, Places, PodFiles, Resolved},
    contents::Sources,
    debug,
    env::{self, Addresses, Objects, References},
    held::{self, HeldNetwork},
    host_paths,
    ids::NoIds,
    kept,
    last_known::LastKnown,
    limits, names, own_files,
    read::{self, Or, Read},
    sandbox::Ground,
    termination,
    users::{self, UserError},
    verdict::{self, Uncleared},
    volumes::{self, Updated, VolumeError, private_dir},
};
use crate::{
    config::Config,
    events::Kind,
    policy::{Endpoint, PolicyError, chain},
    static_pods,
};

/// Runs of a container whose logs are kept: the present one and the one before.
const RUNS_WITH_LOGS: u32 = 2;
/// Longest wait until policy has forgotten the ports of a pod that goes.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(5);

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error("cannot read what the pod refers to from the API")]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Claim(#[from] claims::ClaimError),
    #[error(transparent)]
    Ids(#[from] NoIds),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Uncleared(#[from] Uncleared),
    #[error("{0}")]
    NeverPull(String),
    #[error("secret {name:?} cannot be used for registries")]
    PullSecret {
        name: String,
        #[source]
        source: KeyringError,
    },
    #[error("the background task was interrupted")]
    Interrupted,
    #[error("{0}")]
    Bug(&'static str),
}

impl StepError {
    /// Kubernetes' word for the failure.
    fn reason(&self) -> &'static str {
        match self {
            Self::Volume(_) | Self::Claim(_) => "FailedMount",
            Self::Container(_) | Self::User(_) => "CreateContainerConfigError",
            Self::Image(ImageError::UnknownUser { .. }) => "CreateContainerConfigError",
            Self::Image(_) | Self::PullSecret { .. } => "ErrImagePull",
            Self::NeverPull(_) => "ErrImageNeverPull",
            Self::Uncleared(Uncleared::Reference(_)) => "InvalidImageName",
            Self::Uncleared(Uncleared::NotPinned(_)) => "ImageNotPinned",
            Self::Uncleared(Uncleared::Note { .. }) => "CreateContainerConfigError",
            // Kubernetes' word for an image whose signature is missing or wrong.
            Self::Uncleared(_) => "SignatureValidationFailed",
            Self::Network(_) | Self::Policy(_) => "FailedCreatePodSandBox",
            Self::Api(_) | Self::Ids(_) | Self::Runtime(_) | Self::Interrupted | Self::Bug(_) => {
                "FailedCreatePodSandBox"
            }
        }
    }

    /// The same for a failure to bring an image, whatever it was.
    pub(super) fn image_reason(&self) -> &'static str {
        match self {
            Self::Api(_) | Self::Interrupted => "ErrImagePull",
            _ => self.reason(),
        }
    }

    /// The layer of the sandbox for want of which a container was not started, if that is why.
    pub(super) fn layer(&self) -> Option<Layer> {
        match self {
            Self::Runtime(RuntimeError::Refused { layer, .. }) => *layer,
            Self::Container(ContainerError::Sandbox(error)) => error.layer(),
            _ => None,
        }
    }

    /// As `agent/plan` counts it, after `before`.
    pub(super) fn failure(&self, before: Option<&Failure>, now: Timestamp) -> Failure {
        self.failure_for(self.reason(), before, now)
    }

    /// The same for the start of a container.
    pub(super) fn failure_to_start(&self, before: Option<&Failure>, now: Timestamp) -> Failure {
        let reason = match self {
            Self::Runtime(_) | Self::Volume(_) | Self::Policy(_) | Self::Interrupted | Self::Bug(_) => {
                "CreateContainerError"
            }
            Self::Api(_) => "CreateContainerConfigError",
            _ => self.reason(),
        };
        self.failure_for(reason, before, now)
    }

    fn failure_for(&self, reason: &'static str, before: Option<&Failure>, now: Timestamp) -> Failure {
        Failure {
            reason,
            message: chain(self),
            at: now,
            attempts: before.map_or(0, |before| before.attempts).saturating_add(1),
        }
    }
}

/// Makes the pod's volumes and starts its shim. The objects of its namespace that decide its network are
/// read meanwhile, so that its first policy is never older than the pod. `reported` is the last status told.
pub(super) async fn start_sandbox(
    context: &Context,
    id: &PodId,
    pod: &Pod,
    reported: Option<&PodStatus>,
) -> Result<(), StepError> {
    let directory = id.directory(&context.config);
    kept::write(&directory, pod, reported)
        .map_err(|source| volumes::failed("keep the pod in", &directory, source))?;
    let directory = directory.join("volumes");
    let objects = everything(context, pod).await?;
    let with_volumes = pod.clone();
    let own = context.config.own_directories();
    let node = crate::node::amounts(&context.config);
    tokio::task::spawn_blocking(move || {
        let sources = Sources {
            pod: &with_volumes,
            objects: &objects,
            node,
        };
        volumes::create(&directory, sources, &own)
    })
    .await
    .map_err(|_cancelled| StepError::Interrupted)??;
    let config = PodConfig {
        uid: id.uid.clone(),
        namespace: id.namespace.clone(),
        name: id.name.clone(),
        hostname: env::hostname(pod).to_owned(),
        id_base: context.ids.acquire(&id.uid)?,
        id_count: users::ID_COUNT,
        shares_processes: container::shares_processes(pod),
        pids: Some(context.config.pod_pids_limit),
        resources: match &pod.spec {
            Some(spec) => limits::of_pod(spec).map_err(ContainerError::from)?,
            None => PodResources::default(),
        },
    };
    let start = async { context.runtime.start_pod(&config).await.map_err(StepError::from) };
    let refresh = async {
        match context.cluster.refresh(&context.client, &id.namespace).await {
            // A static pod starts all the same. Until policy is known, everything on its link is denied.
            Err(error) if static_pods::is_static(pod) => {
                tracing::warn!(pod = %id.name, error = chain(&error), "starting without the API");
                Ok(())
            }
            refreshed => Ok(refreshed?),
        }
    };
    let started = futures::try_join!(start, refresh);
    if started.is_err() {
        // What a failed start leaves would fail the next one too.
        context.runtime.remove_pod(&id.uid).await?;
    }
    started.map(drop)
}

/// Brings those of the volumes that mirror objects of the API up to date that can be; returns why others cannot.
pub(super) async fn refresh_volumes(context: &Context, id: &PodId, pod: &Pod) -> Vec<StepError> {
    let directory = id.directory(&context.config).join("volumes");
    let Read { objects, failed } = read::of_volumes(api_of(context), &context.tokens, pod).await;
    let (pod, node) = (pod.clone(), crate::node::amounts(&context.config));
    let updated = tokio::task::spawn_blocking(move || {
        let sources = Sources {
            pod: &pod,
            objects: &objects,
            node,
        };
        volumes::update(&directory, sources)
    });
    let mut failed: Vec<StepError> = failed.into_iter().map(StepError::from).collect();
    match updated.await {
        Ok(Updated {
            changed,
            failed: kept,
        }) => {
            if !changed.is_empty() {
                tracing::info!(pod = %id.name, volumes = ?changed, "volumes updated");
            }
            // Why nothing was read is said already.
            let told = |error: &VolumeError| !matches!(error, VolumeError::Unread { .. });
            failed.extend(kept.into_iter().filter(told).map(StepError::from));
        }
        Err(_cancelled) => failed.push(StepError::Interrupted),
    }
    failed
}

/// Makes the pod's interface, denies everything on it, brings it up, and writes the files that name it: those are there once
/// all is done ([`is_attached`]).
pub(super) async fn attach_network(
    context: &Context,
    id: &PodId,
    pod: &Pod,
) -> Result<Attachment, StepError> {
    let files = files_of(id, &context.config);
    remove_tree(&files)?;
    let network = HeldNetwork::of(&context.runtime, &id.uid, held::LONGEST).await?;
    let attachment = context.network.prepare(&id.uid, network.path()).await?;
    // An attempt that failed half-way may have left programs on an interface that is gone.
    context.policy.detach(attachment.endpoint).await?;
    // Policy learns of the ports before they lead anywhere, and only of those that could be had.
    let ports = host_ports::of(pod);
    context.network.reserve(&id.uid, &ports)?;
    let attachment = Attachment {
        host_ports: ports,
        ..attachment
    };
    context.policy.attach(endpoint(id, &attachment)).await?;
    context.network.activate(&attachment).await?;
    context.network.publish(&id.uid, &attachment.host_ports).await?;
    write_files(&files, pod, &attachment.addresses(), &context.resolv_conf)?;
    Ok(attachment)
}

/// Whether [`attach_network`] came to its end, whichever agent did it. An interface alone may be down, or lack the ports that
/// lead to it.
pub(crate) fn is_attached(id: &PodId, config: &Config) -> bool {
    files_of(id, config).is_dir()
}

fn files_of(id: &PodId, config: &Config) -> PathBuf {
    id.directory(config).join("files")
}

/// An interface as the datapath knows it.
pub(crate) fn endpoint(id: &PodId, attachment: &Attachment) -> Endpoint {
    Endpoint {
        pod: PodRef {
            namespace: id.namespace.clone(),
            name: id.name.clone(),
        },
        pod_uid: id.uid.clone(),
        link: EndpointLink {
            id: attachment.endpoint,
            ifindex: attachment.ifindex,
            addresses: attachment.addresses(),
            mac: attachment.mac,
        },
        host_ports: attachment.host_ports.clone(),
    }
}

/// Takes the interface away first, so that no packet passes it unjudged; then verdicts and address. What there is to take
/// away the lease says: a start or an end that stopped half-way leaves one without an interface.
pub(super) async fn release_network(context: &Context, id: &PodId) -> Result<(), StepError> {
    let Some(lease) = context.network.lease(&id.uid) else {
        return Ok(());
    };
    context.network.unplug(&id.uid).await?;
    context.policy.detach(EndpointId(lease.endpoint)).await?;
    if !lease.host_ports.is_empty() {
        forget_ports(context, id).await;
    }
    Ok(context.network.release(&id.uid).await?)
}

/// Waits until policy judges what comes to the ports that led to the pod as the node's own again: nobody else gets them
/// before. If it cannot be written the pod goes all the same, and the node says that its policy is an older one.
async fn forget_ports(context: &Context, id: &PodId) {
    match tokio::time::timeout(FORGOTTEN_WITHIN, context.policy.settle()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(pod = %id.name, error = chain(&error), "policy still takes its ports for the pod's");
        }
        Err(_elapsed) => tracing::warn!(pod = %id.name, "policy may still take its ports for the pod's"),
    }
}

/// Ends the pod's shim and what it has, after its network: a pod without an interface may have a lease.
pub(super) async fn remove_sandbox(context: &Context, id: &PodId) -> Result<(), StepError> {
    release_network(context, id).await?;
    Ok(context.runtime.remove_pod(&id.uid).await?)
}

/// Starts a container's process and returns as whom; the one before it, if any, has ended. `users` are those of the pod's
/// containers, as far as they are known.
pub(super) async fn start_container(
    context: &Context,
    id: &PodId,
    pod: &Pod,
    spec: &Container,
    attempt: u32,
    image: &RootfsLayers,
    (pod_addresses, users): (Vec<IpAddr>, &BTreeMap<String, User>),
) -> Result<User, StepError> {
    // Asked again at each start: the object may have changed since the image came.
    let directory = id.directory(&context.config);
    let cleared = verdict::clear(
        &context.verdicts,
        &directory,
        pod,
        (&spec.name, spec.image.as_deref().unwrap_or_default()),
        Timestamp::now(),
    )?;
    if cleared.digest() != image.digest {
        return Err(StepError::Bug(
            "the image on the node is not the one of the container",
        ));
    }
    let addresses = Addresses {
        pod: pod_addresses,
        host: context.network.node_addresses().all().collect(),
        api: context.config.api_for_pods(),
    };
    let references = References::of_environment(spec);
    let objects = read::objects(api_of(context), pod, references, Or::LastKnown)
        .await
        .whole()?;
    let node = crate::node::amounts(&context.config);
    let environment = env::environment(pod, spec, &image.config.env, &objects, (&addresses, node))
        .map_err(ContainerError::from)?;
    let user = match (debug::user(pod, spec, users)?, users::asked_for(pod, spec)?) {
        (Some(of_target), _) => of_target,
        (None, Some(uid)) => users::user(pod, spec, image.user_of_number(uid)?)?,
        (None, None) => users::user(pod, spec, image.user(&image.config.user)?)?,
    };
    let logs = id.logs(&context.config).join(&spec.name);
    private_dir(&logs)?;
    let files = files_of(id, &context.config);
    let messages = volumes::messages_of(&directory.join("volumes"));
    let message = termination::prepare(&messages, &spec.name, attempt)
        .map_err(|source| volumes::failed("prepare the termination message in", &messages, source))?;
    let sandbox = ground(context, id, pod).await?;
    // As with the kubelet and containerd: what has a root to write to may write to these too.
    let own = match container::has_read_only_root(pod, spec) || sandbox.keeps_image(pod, spec) {
        true => None,
        false => own_files::make(&files, &messages, &spec.name)
            .map_err(|source| volumes::failed("copy the pod's files to", &messages, source))?,
    };
    let places = Places {
        volumes: &directory.join("volumes"),
        files: match &own {
            Some(own) => PodFiles::Own(own),
            None => PodFiles::Shared(&files),
        },
        message,
        log: log_path(&logs, attempt),
        log_max_bytes: context.config.log_max_bytes,
        log_max_files: context.config.log_max_files,
    };
    let resolved = Resolved {
        layers: image.layers.clone(),
        image: &image.config,
        user,
        environment,
        sandbox: &sandbox,
        node_memory_bytes: node.memory_bytes,
        pids: context.config.pod_pids_limit,
    };
    let config = container::config(pod, spec, attempt, resolved, &places)?;
    let known = context.runtime.status(&id.uid).await?;
    if known.container(&spec.name).is_some() {
        context.runtime.remove_container(&id.uid, &spec.name).await?;
    }
    remove_old_logs(&logs, attempt)?;
    let started = context.runtime.start_container(&id.uid, &config).await?;
    if started.lacks_executables {
        let message = "The image has more executable files outside of bin, sbin, lib and libexec than a sandbox takes; some \
                       of its programs are refused (EACCES)";
        let name = Some(spec.name.as_str());
        (context.events).pod(
            pod,
            name,
            Kind::Warning,
            "ProgramsNotExecutable",
            message.to_owned(),
        );
    }
    Ok(User {
        uid: config.uid,
        gid: config.gid,
        supplementary: config.supplemental_gids,
    })
}

/// What the sandboxes of the pod's containers depend on now.
pub(super) async fn ground(context: &Context, id: &PodId, pod: &Pod) -> Result<Ground, StepError> {
    let mut ground = Ground::read(api_of(context), pod, &context.config).await?;
    if ground.limits_connections(pod) {
        let pod = PodRef {
            namespace: id.namespace.clone(),
            name: id.name.clone(),
        };
        let ports = context.policy.egress_tcp_ports(pod).await?;
        // Unknown is not unlimited.
        ground.egress = Some(ports.ok_or(StepError::Bug("a pod without policy was about to start"))?);
    }
    Ok(ground)
}

/// Asks for what the pod's containers start with, so that it is known when the API is away.
pub(super) async fn learn(context: &Context, pod: &Pod) -> Result<(), StepError> {
    let api = api_of(context);
    let ground = async { Ok::<_, StepError>(Ground::read(api, pod, &context.config).await?) };
    let references = References::of_environments(pod);
    let environments = async {
        let read = read::objects(api, pod, references, Or::LastKnown).await;
        Ok::<_, StepError>(read.whole()?)
    };
    futures::try_join!(ground, environments).map(drop)
}

/// Where objects come from: the API, and what it said last.
fn api_of(context: &Context) -> (&Client, &LastKnown) {
    (&context.client, &context.last_known)
}

/// Removes everything that is left of the pod, also what this agent knows nothing of: one before it may have been killed,
/// or the machine gone down.
pub(super) async fn forget(context: &Context, id: &PodId) -> Result<(), StepError> {
    remove_sandbox(context, id).await?;
    let (directory, logs) = (id.directory(&context.config), id.logs(&context.config));
    remove_files(directory, logs, context.runtime.trash().clone()).await?;
    context.ids.release(&id.uid);
    context.tokens.forget(&id.uid);
    context.directory.remove(id);
    Ok(())
}

/// Removes the pod's volumes, when its containers have ended for good.
pub(super) async fn remove_volumes(context: &Context, id: &PodId) -> Result<(), StepError> {
    let directory = id.directory(&context.config).join("volumes");
    let trash = context.runtime.trash().clone();
    let removed = tokio::task::spawn_blocking(move || volumes::remove(&directory, &trash));
    Ok(removed.await.map_err(|_cancelled| StepError::Interrupted)??)
}

/// How much there is to remove is the pod's choice, so nobody waits for it: the paths are free afterwards.
async fn remove_files(directory: PathBuf, logs: PathBuf, trash: Trash) -> Result<(), StepError> {
    let removed = tokio::task::spawn_blocking(move || {
        remove_directory(&directory, &trash)?;
        trash
            .discard(&logs)
            .map_err(|source| volumes::failed("remove", &logs, source))
    });
    Ok(removed.await.map_err(|_cancelled| StepError::Interrupted)??)
}

/// Removes a pod's directory, with the mounts in it.
pub(super) fn remove_directory(directory: &Path, trash: &Trash) -> Result<(), VolumeError> {
    volumes::remove(&directory.join("volumes"), trash)?;
    trash
        .discard(directory)
        .map_err(|source| volumes::failed("remove", directory, source))
}

/// What an ended run of a container left for its status.
pub(super) fn last_words(
    context: &Context,
    id: &PodId,
    pod: &Pod,
    container: &str,
    (attempt, failed): (u32, bool),
) -> Result<String, VolumeError> {
    let all = containers(pod);
    let own = all.iter().find(|spec| spec.name == container);
    let policy = own.and_then(|spec| spec.termination_message_policy.as_deref());
    let log = log_path(&id.logs(&context.config).join(container), attempt);
    let log = (policy == Some("FallbackToLogsOnError")).then_some(log.as_path());
    let messages = volumes::messages_of(&id.directory(&context.config).join("volumes"));
    let file = termination::path_of(&messages, container, attempt);
    termination::message(&file, log, failed, all.len())
        .map_err(|source| volumes::failed("read the termination message", &file, source))
}

/// Every container of the pod, of whatever kind.
pub(crate) fn containers(pod: &Pod) -> Vec<Cow<'_, Container>> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let inits = spec.init_containers.iter().flatten();
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let ephemeral = ephemeral.map(|ephemeral| Cow::Owned(agent_plan::as_container(ephemeral)));
    let ordinary = spec.containers.iter().chain(inits).map(Cow::Borrowed);
    ordinary.chain(ephemeral).collect()
}

/// The log of one run of a container.
fn log_path(logs: &Path, attempt: u32) -> PathBuf {
    logs.join(format!("{attempt}.log"))
}

/// The same with what is mounted once, when the pod starts: a grant that is taken back later does not keep its token from
/// being renewed.
async fn everything(context: &Context, pod: &Pod) -> Result<Objects, StepError> {
    let grants = async { Ok::<_, StepError>(host_paths::grants(&context.client, pod).await?) };
    let config = &context.config;
    let claims = claims::find(&context.client, pod, &config.node_name, &config.agent_dir);
    let claims = async { claims.await.map_err(StepError::from) };
    let shown = async {
        let read = read::of_volumes(api_of(context), &context.tokens, pod).await;
        Ok::<_, StepError>(read.whole()?)
    };
    let (objects, grants, claims, ()) = futures::try_join!(shown, grants, claims, learn(context, pod))?;
    let (full, asked) = (context.full.clone(), claims.clone());
    tokio::task::spawn_blocking(move || asked.iter().try_for_each(|(_, claimed)| full.refuse(claimed)))
        .await
        .map_err(|_cancelled| StepError::Interrupted)??;
    Ok(Objects {
        claims: claims.into_iter().collect(),
        host_paths: api::host_paths::granted(pod, &grants).map_err(VolumeError::NotGranted)?,
        ..objects
    })
}

/// `/etc/hosts` and its like, readable by every user of the pod: all of them at once, or none.
fn write_files(
    directory: &Path,
    pod: &Pod,
    addresses: &[IpAddr],
    resolv_conf: &str,
) -> Result<(), VolumeError> {
    let draft = directory.with_extension("new");
    remove_tree(&draft)?;
    private_dir(&draft)?;
    let hostname = env::hostname(pod);
    let contents = |file: &str| match file {
        "hosts" => names::hosts(pod, addresses),
        "hostname" => format!("{hostname}\n"),
        _ => names::resolv_conf(pod, resolv_conf),
    };
    for file in container::POD_FILES {
        let path = draft.join(file);
        let written = fs::write(&path, contents(file))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)));
        written.map_err(|source| volumes::failed("write", &path, source))?;
    }
    fs::rename(&draft, directory).map_err(|source| volumes::failed("replace", directory, source))
}

fn remove_old_logs(logs: &Path, attempt: u32) -> Result<(), VolumeError> {
    let entries = fs::read_dir(logs).map_err(|source| volumes::failed("list", logs, source))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let run = name.split('.').next().and_then(|run| run.parse::<u32>().ok());
        if run.is_some_and(|run| run.saturating_add(RUNS_WITH_LOGS) <= attempt) {
            let path = entry.path();
            fs::remove_file(&path).map_err(|source| volumes::failed("remove", &path, source))?;
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<(), VolumeError> {
    agent_runtime::remove_tree(path).map_err(|source| volumes::failed("remove", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_fails_waits_for_the_next_one() {
        let refused = StepError::Runtime(RuntimeError::Refused {
            reason: "no space left on device".to_owned(),
            layer: None,
        });
        let first = refused.failure_to_start(None, Timestamp::UNIX_EPOCH);
        assert_eq!((first.reason, first.attempts), ("CreateContainerError", 1));
        let second = refused.failure_to_start(Some(&first), Timestamp::UNIX_EPOCH);
        assert_eq!(second.attempts, 2);
        let of_pod = refused.failure(None, Timestamp::UNIX_EPOCH);
        assert_eq!(of_pod.reason, "FailedCreatePodSandBox");
    }

    #[test]
    fn a_network_counts_once_all_its_files_are_there() {
        let base = tempfile::tempdir().unwrap();
        let config = Config::below(base.path());
        let id = PodId {
            uid: "u".to_owned(),
            namespace: "ns".to_owned(),
            name: "p".to_owned(),
        };
        let files = files_of(&id, &config);
        // What an agent that was killed has written of them, and something that the last one cannot replace.
        fs::create_dir_all(files.with_extension("new").join("resolv.conf")).unwrap();
        assert!(!is_attached(&id, &config));
        let write = || {
            write_files(
                &files,
                &Pod::default(),
                &["10.88.0.2".parse().unwrap()],
                "nameserver 169.254.1.1\n",
            )
        };
        write().unwrap();
        assert!(is_attached(&id, &config));
        let mode = |file: &str| fs::metadata(files.join(file)).unwrap().permissions().mode() & 0o777;
        assert!(container::POD_FILES.iter().all(|file| mode(file) == 0o644));
        assert!(!files.with_extension("new").exists());
        assert!(
            write().is_err(),
            "they are another network's until somebody removes them"
        );
    }

    #[tokio::test]
    async fn the_end_of_a_pod_does_not_wait_for_its_files_nor_for_those_of_others() {
        let base = tempfile::tempdir().unwrap();
        let (pod, logs) = (base.path().join("pod"), base.path().join("logs"));
        fs::create_dir_all(pod.join("volumes/data/a/b")).unwrap();
        fs::create_dir_all(&logs).unwrap();
        let trash = Trash::new(base.path().join("trash"));
        // As when others have millions of files.
        let held = trash.hold();
        remove_files(pod.clone(), logs.clone(), trash.clone())
            .await
            .unwrap();
        assert!(!pod.exists() && !logs.exists(), "their paths are free");
        assert!(base.path().join("trash").exists());
        drop(held);
        trash.emptied().await.unwrap();
        assert!(!base.path().join("trash").exists());
    }
}
