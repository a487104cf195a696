//! Annotation, label and identity names that more than one part of Palisade reads or writes.

/// The image reference as the user wrote it, kept per container when admission pins a tag to a digest:
/// `palisade.dev/requested-image.<container>`.
pub const REQUESTED_IMAGE_PREFIX: &str = "palisade.dev/requested-image.";

/// Name of the `ImageScan` that admitted the container's image: `palisade.dev/image-scan.<container>`.
pub const IMAGE_SCAN_PREFIX: &str = "palisade.dev/image-scan.";

/// The gate's signed word that the container's image may run, which the node demands before it starts the
/// container: `palisade.dev/image-verdict.<container>`. See [`crate::verdict`].
pub const IMAGE_VERDICT_PREFIX: &str = "palisade.dev/image-verdict.";

/// Sandbox profile asked for by a pod (`baseline`, `audit`, ...); absent means `baseline`.
pub const SANDBOX_PROFILE: &str = "palisade.dev/sandbox-profile";

/// The same for one container, before that of the pod: `palisade.dev/sandbox-profile.<container>`.
pub const CONTAINER_SANDBOX_PROFILE_PREFIX: &str = "palisade.dev/sandbox-profile.";

/// Result of each sandbox layer, written by the agent, such as `seccomp=Enforced,landlock=Enforced`.
pub const SANDBOX_STATUS: &str = "palisade.dev/sandbox-status";

/// `keep` lets established flows of a pod live on after a policy change; anything else judges them again.
pub const ESTABLISHED: &str = "palisade.dev/established";

/// On a node: how many interfaces and addresses it has, as [`HostCounts`](crate::node_policy::HostCounts). Written by the
/// node.
pub const HOST_INTERFACES: &str = "palisade.dev/host-interfaces";

/// What happens to a write that would break the `PolicyAssertion` with this annotation: `block`, which is meant
/// without it, refuses the write; `warn` lets it through with a warning.
pub const ENFORCEMENT: &str = "palisade.dev/enforcement";

/// On a pod that stands for a file of its node: hash of what the file says. Written by nodes only.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// The same hash, as Kubernetes writes it too.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Where such a pod comes from: `file`.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";

/// `allowed` lets nodes have static pods in the namespace with this label; they always may in `kube-system`.
pub const STATIC_PODS: &str = "palisade.dev/static-pods";

/// The namespace's own name, set on every namespace as Kubernetes does.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Group of full administrators (client certificate `O`).
pub const GROUP_MASTERS: &str = "system:masters";
/// Group of nodes (client certificate `O`).
pub const GROUP_NODES: &str = "system:nodes";
/// Prefix of a node's user name (client certificate `CN`).
pub const USER_NODE_PREFIX: &str = "system:node:";
/// Prefix of the user name of who may only ask for the first certificate of the node that follows.
pub const USER_BOOTSTRAP_PREFIX: &str = "system:bootstrap:";
/// Group of those.
pub const GROUP_BOOTSTRAPPERS: &str = "system:bootstrappers";
/// User name of the process that holds the authority's key.
pub const USER_SIGNER: &str = "system:palisade-signer";
/// User name of the control plane's own loops.
pub const USER_CONTROLLERS: &str = "system:palisade-controllers";
/// User name with which the API server calls a node.
pub const USER_APISERVER: &str = "system:palisade-apiserver";

/// The ConfigMap that the control plane keeps in each namespace, with the authority of the API server.
pub const ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";
/// Its key.
pub const ROOT_CA_KEY: &str = "ca.crt";
