//! Field tables of the protobuf messages that are read: number, JSON name and shape, from the `.proto` files
//! that Kubernetes publishes. A field that is not here is an error, not a loss. `inline` marks a message
//! whose members belong to its parent in JSON.

use super::{Field, Message, Multiplicity, Shape};

/// The message of a top-level kind, if its protobuf form is read.
pub(super) fn by_kind(api_version: &str, kind: &str) -> Option<&'static Message> {
    Some(match (api_version, kind) {
        ("v1", "Binding") => &Binding,
        ("v1", "ConfigMap") => &ConfigMap,
        ("v1", "Event") => &Event,
        ("v1", "Namespace") => &Namespace,
        ("v1", "Node") => &Node,
        ("v1", "PersistentVolume") => &PersistentVolume,
        ("v1", "PersistentVolumeClaim") => &PersistentVolumeClaim,
        ("v1", "Pod") => &Pod,
        ("v1", "Secret") => &Secret,
        ("v1", "Service") => &Service,
        ("v1", "ServiceAccount") => &ServiceAccount,
        ("authentication.k8s.io/v1", "SelfSubjectReview") => &SelfSubjectReview,
        ("authentication.k8s.io/v1", "TokenRequest") => &TokenRequest,
        ("authentication.k8s.io/v1", "TokenReview") => &TokenReview,
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview") => &SelfSubjectAccessReview,
        ("certificates.k8s.io/v1", "CertificateSigningRequest") => &CertificateSigningRequest,
        ("coordination.k8s.io/v1", "Lease") => &Lease,
        ("discovery.k8s.io/v1", "EndpointSlice") => &EndpointSlice,
        ("networking.k8s.io/v1", "NetworkPolicy") => &NetworkPolicy,
        ("policy/v1", "Eviction") => &Eviction,
        ("policy/v1", "PodDisruptionBudget") => &PodDisruptionBudget,
        ("storage.k8s.io/v1", "StorageClass") => &StorageClass,
        // Clients send it under the version of whatever they delete.
        (_, "DeleteOptions") => &DeleteOptions,
        _ => return None,
    })
}

macro_rules! messages {
    ($($message:ident { $($number:literal $name:tt : $shape:tt),* $(,)? })*) => {
        $(
            #[expect(non_upper_case_globals, reason = "named like the message it describes")]
            static $message: Message = Message {
                name: stringify!($message),
                fields: &[$(Field {
                    number: $number,
                    name: stringify!($name),
                    multiplicity: multiplicity!($shape),
                    shape: shape!($shape),
                }),*],
            };
        )*
        /// Every table, for the tests.
        #[cfg(test)]
        pub(super) static ALL: &[&Message] = &[$(&$message),*];
    };
}

macro_rules! multiplicity {
    ([$($shape:tt)*]) => {
        Multiplicity::List
    };
    ({$($shape:tt)*}) => {
        Multiplicity::Map
    };
    ($shape:ident) => {
        Multiplicity::One
    };
}

macro_rules! shape {
    ([$shape:tt]) => {
        shape!($shape)
    };
    ({$shape:tt}) => {
        shape!($shape)
    };
    (Text) => {
        Shape::Text
    };
    (Bytes) => {
        Shape::Bytes
    };
    (Int) => {
        Shape::Int
    };
    (Bool) => {
        Shape::Bool
    };
    (Time) => {
        Shape::Time
    };
    (MicroTime) => {
        Shape::MicroTime
    };
    (Quantity) => {
        Shape::Quantity
    };
    (IntOrString) => {
        Shape::IntOrString
    };
    (RawJson) => {
        Shape::RawJson
    };
    (Texts) => {
        Shape::Texts
    };
    ($message:ident) => {
        Shape::Message(&$message)
    };
}

messages! {
    Affinity { 1 nodeAffinity: NodeAffinity, 2 podAffinity: PodAffinity, 3 podAntiAffinity: PodAntiAffinity }
    AppArmorProfile { 1 type: Text, 2 localhostProfile: Text }
    AttachedVolume { 1 name: Text, 2 devicePath: Text }
    AwsElasticBlockStoreVolumeSource { 1 volumeID: Text, 2 fsType: Text, 3 partition: Int, 4 readOnly: Bool }
    AzureDiskVolumeSource {
        1 diskName: Text, 2 diskURI: Text, 3 cachingMode: Text, 4 fsType: Text, 5 readOnly: Bool,
        6 kind: Text,
    }
    AzureFilePersistentVolumeSource {
        1 secretName: Text, 2 shareName: Text, 3 readOnly: Bool, 4 secretNamespace: Text,
    }
    AzureFileVolumeSource { 1 secretName: Text, 2 shareName: Text, 3 readOnly: Bool }
    Binding { 1 metadata: ObjectMeta, 2 target: ObjectReference }
    CSIPersistentVolumeSource {
        1 driver: Text, 2 volumeHandle: Text, 3 readOnly: Bool, 4 fsType: Text, 5 volumeAttributes: {Text},
        6 controllerPublishSecretRef: SecretReference, 7 nodeStageSecretRef: SecretReference,
        8 nodePublishSecretRef: SecretReference, 9 controllerExpandSecretRef: SecretReference,
        10 nodeExpandSecretRef: SecretReference,
    }
    CSIVolumeSource {
        1 driver: Text, 2 readOnly: Bool, 3 fsType: Text, 4 volumeAttributes: {Text},
        5 nodePublishSecretRef: LocalObjectReference,
    }
    BoundObjectReference { 1 kind: Text, 2 apiVersion: Text, 3 name: Text, 4 uid: Text }
    Capabilities { 1 add: [Text], 2 drop: [Text] }
    CephFsPersistentVolumeSource {
        1 monitors: [Text], 2 path: Text, 3 user: Text, 4 secretFile: Text, 5 secretRef: SecretReference,
        6 readOnly: Bool,
    }
    CephFsVolumeSource {
        1 monitors: [Text], 2 path: Text, 3 user: Text, 4 secretFile: Text,
        5 secretRef: LocalObjectReference, 6 readOnly: Bool,
    }
    CertificateSigningRequest {
        1 metadata: ObjectMeta, 2 spec: CertificateSigningRequestSpec, 3 status: CertificateSigningRequestStatus,
    }
    CertificateSigningRequestCondition {
        1 type: Text, 2 reason: Text, 3 message: Text, 4 lastUpdateTime: Time, 5 lastTransitionTime: Time,
        6 status: Text,
    }
    CertificateSigningRequestSpec {
        1 request: Bytes, 2 username: Text, 3 uid: Text, 4 groups: [Text], 5 usages: [Text], 6 extra: {Texts},
        7 signerName: Text, 8 expirationSeconds: Int,
    }
    CertificateSigningRequestStatus { 1 conditions: [CertificateSigningRequestCondition], 2 certificate: Bytes }
    CinderPersistentVolumeSource {
        1 volumeID: Text, 2 fsType: Text, 3 readOnly: Bool, 4 secretRef: SecretReference,
    }
    CinderVolumeSource {
        1 volumeID: Text, 2 fsType: Text, 3 readOnly: Bool, 4 secretRef: LocalObjectReference,
    }
    ClientIPConfig { 1 timeoutSeconds: Int }
    ClusterTrustBundleProjection {
        1 name: Text, 2 signerName: Text, 3 labelSelector: LabelSelector, 4 path: Text, 5 optional: Bool,
    }
    Condition {
        1 type: Text, 2 status: Text, 3 observedGeneration: Int, 4 lastTransitionTime: Time, 5 reason: Text,
        6 message: Text,
    }
    ConfigMap { 1 metadata: ObjectMeta, 2 data: {Text}, 3 binaryData: {Bytes}, 4 immutable: Bool }
    ConfigMapEnvSource { 1 inline: LocalObjectReference, 2 optional: Bool }
    ConfigMapKeySelector { 1 inline: LocalObjectReference, 2 key: Text, 3 optional: Bool }
    ConfigMapNodeConfigSource {
        1 namespace: Text, 2 name: Text, 3 uid: Text, 4 resourceVersion: Text, 5 kubeletConfigKey: Text,
    }
    ConfigMapProjection { 1 inline: LocalObjectReference, 2 items: [KeyToPath], 4 optional: Bool }
    ConfigMapVolumeSource {
        1 inline: LocalObjectReference, 2 items: [KeyToPath], 3 defaultMode: Int, 4 optional: Bool,
    }
    Container {
        1 name: Text, 2 image: Text, 3 command: [Text], 4 args: [Text], 5 workingDir: Text,
        6 ports: [ContainerPort], 7 env: [EnvVar], 8 resources: ResourceRequirements,
        9 volumeMounts: [VolumeMount], 10 livenessProbe: Probe, 11 readinessProbe: Probe,
        12 lifecycle: Lifecycle, 13 terminationMessagePath: Text, 14 imagePullPolicy: Text,
        15 securityContext: SecurityContext, 16 stdin: Bool, 17 stdinOnce: Bool, 18 tty: Bool,
        19 envFrom: [EnvFromSource], 20 terminationMessagePolicy: Text, 21 volumeDevices: [VolumeDevice],
        22 startupProbe: Probe, 23 resizePolicy: [ContainerResizePolicy], 24 restartPolicy: Text,
        25 restartPolicyRules: [ContainerRestartRule],
    }
    ContainerExtendedResourceRequest { 1 containerName: Text, 2 resourceName: Text, 3 requestName: Text }
    ContainerImage { 1 names: [Text], 2 sizeBytes: Int }
    ContainerPort { 1 name: Text, 2 hostPort: Int, 3 containerPort: Int, 4 protocol: Text, 5 hostIP: Text }
    ContainerResizePolicy { 1 resourceName: Text, 2 restartPolicy: Text }
    ContainerRestartRule { 1 action: Text, 2 exitCodes: ContainerRestartRuleOnExitCodes }
    ContainerRestartRuleOnExitCodes { 1 operator: Text, 2 values: [Int] }
    ContainerState {
        1 waiting: ContainerStateWaiting, 2 running: ContainerStateRunning,
        3 terminated: ContainerStateTerminated,
    }
    ContainerStateRunning { 1 startedAt: Time }
    ContainerStateTerminated {
        1 exitCode: Int, 2 signal: Int, 3 reason: Text, 4 message: Text, 5 startedAt: Time,
        6 finishedAt: Time, 7 containerID: Text,
    }
    ContainerStateWaiting { 1 reason: Text, 2 message: Text }
    ContainerStatus {
        1 name: Text, 2 state: ContainerState, 3 lastState: ContainerState, 4 ready: Bool,
        5 restartCount: Int, 6 image: Text, 7 imageID: Text, 8 containerID: Text, 9 started: Bool,
        10 allocatedResources: {Quantity}, 11 resources: ResourceRequirements,
        12 volumeMounts: [VolumeMountStatus], 13 user: ContainerUser,
        14 allocatedResourcesStatus: [ResourceStatus], 15 stopSignal: Text,
    }
    ContainerUser { 1 linux: LinuxContainerUser }
    DaemonEndpoint { 1 Port: Int }
    DeleteOptions {
        1 gracePeriodSeconds: Int, 2 preconditions: Preconditions, 3 orphanDependents: Bool,
        4 propagationPolicy: Text, 5 dryRun: [Text],
        6 ignoreStoreReadErrorWithClusterBreakingPotential: Bool,
    }
    DownwardAPIProjection { 1 items: [DownwardAPIVolumeFile] }
    DownwardAPIVolumeFile {
        1 path: Text, 2 fieldRef: ObjectFieldSelector, 3 resourceFieldRef: ResourceFieldSelector,
        4 mode: Int,
    }
    DownwardAPIVolumeSource { 1 items: [DownwardAPIVolumeFile], 2 defaultMode: Int }
    EmptyDirVolumeSource { 1 medium: Text, 2 sizeLimit: Quantity }
    Endpoint {
        1 addresses: [Text], 2 conditions: EndpointConditions, 3 hostname: Text, 4 targetRef: ObjectReference,
        5 deprecatedTopology: {Text}, 6 nodeName: Text, 7 zone: Text, 8 hints: EndpointHints,
    }
    EndpointConditions { 1 ready: Bool, 2 serving: Bool, 3 terminating: Bool }
    EndpointHints { 1 forZones: [ForZone], 2 forNodes: [ForNode] }
    EndpointPort { 1 name: Text, 2 protocol: Text, 3 port: Int, 4 appProtocol: Text }
    EndpointSlice { 1 metadata: ObjectMeta, 2 endpoints: [Endpoint], 3 ports: [EndpointPort], 4 addressType: Text }
    EnvFromSource { 1 prefix: Text, 2 configMapRef: ConfigMapEnvSource, 3 secretRef: SecretEnvSource }
    EnvVar { 1 name: Text, 2 value: Text, 3 valueFrom: EnvVarSource }
    EnvVarSource {
        1 fieldRef: ObjectFieldSelector, 2 resourceFieldRef: ResourceFieldSelector,
        3 configMapKeyRef: ConfigMapKeySelector, 4 secretKeyRef: SecretKeySelector,
        5 fileKeyRef: FileKeySelector,
    }
    EphemeralContainer { 1 inline: EphemeralContainerCommon, 2 targetContainerName: Text }
    EphemeralContainerCommon {
        1 name: Text, 2 image: Text, 3 command: [Text], 4 args: [Text], 5 workingDir: Text,
        6 ports: [ContainerPort], 7 env: [EnvVar], 8 resources: ResourceRequirements,
        9 volumeMounts: [VolumeMount], 10 livenessProbe: Probe, 11 readinessProbe: Probe,
        12 lifecycle: Lifecycle, 13 terminationMessagePath: Text, 14 imagePullPolicy: Text,
        15 securityContext: SecurityContext, 16 stdin: Bool, 17 stdinOnce: Bool, 18 tty: Bool,
        19 envFrom: [EnvFromSource], 20 terminationMessagePolicy: Text, 21 volumeDevices: [VolumeDevice],
        22 startupProbe: Probe, 23 resizePolicy: [ContainerResizePolicy], 24 restartPolicy: Text,
        25 restartPolicyRules: [ContainerRestartRule],
    }
    EphemeralVolumeSource { 1 volumeClaimTemplate: PersistentVolumeClaimTemplate }
    Event {
        1 metadata: ObjectMeta, 2 involvedObject: ObjectReference, 3 reason: Text, 4 message: Text,
        5 source: EventSource, 6 firstTimestamp: Time, 7 lastTimestamp: Time, 8 count: Int, 9 type: Text,
        10 eventTime: MicroTime, 11 series: EventSeries, 12 action: Text, 13 related: ObjectReference,
        14 reportingComponent: Text, 15 reportingInstance: Text,
    }
    EventSeries { 1 count: Int, 2 lastObservedTime: MicroTime }
    EventSource { 1 component: Text, 2 host: Text }
    Eviction { 1 metadata: ObjectMeta, 2 deleteOptions: DeleteOptions }
    ExecAction { 1 command: [Text] }
    FcVolumeSource { 1 targetWWNs: [Text], 2 lun: Int, 3 fsType: Text, 4 readOnly: Bool, 5 wwids: [Text] }
    FieldSelectorAttributes { 1 rawSelector: Text, 2 requirements: [FieldSelectorRequirement] }
    FieldSelectorRequirement { 1 key: Text, 2 operator: Text, 3 values: [Text] }
    FileKeySelector { 1 volumeName: Text, 2 path: Text, 3 key: Text, 4 optional: Bool }
    FlexPersistentVolumeSource {
        1 driver: Text, 2 fsType: Text, 3 secretRef: SecretReference, 4 readOnly: Bool, 5 options: {Text},
    }
    FlexVolumeSource {
        1 driver: Text, 2 fsType: Text, 3 secretRef: LocalObjectReference, 4 readOnly: Bool,
        5 options: {Text},
    }
    FlockerVolumeSource { 1 datasetName: Text, 2 datasetUUID: Text }
    ForNode { 1 name: Text }
    ForZone { 1 name: Text }
    GcePersistentDiskVolumeSource { 1 pdName: Text, 2 fsType: Text, 3 partition: Int, 4 readOnly: Bool }
    GitRepoVolumeSource { 1 repository: Text, 2 revision: Text, 3 directory: Text }
    GlusterfsPersistentVolumeSource {
        1 endpoints: Text, 2 path: Text, 3 readOnly: Bool, 4 endpointsNamespace: Text,
    }
    GlusterfsVolumeSource { 1 endpoints: Text, 2 path: Text, 3 readOnly: Bool }
    GrpcAction { 1 port: Int, 2 service: Text }
    HostAlias { 1 ip: Text, 2 hostnames: [Text] }
    HostIp { 1 ip: Text }
    HostPathVolumeSource { 1 path: Text, 2 type: Text }
    HttpGetAction {
        1 path: Text, 2 port: IntOrString, 3 host: Text, 4 scheme: Text, 5 httpHeaders: [HttpHeader],
    }
    HttpHeader { 1 name: Text, 2 value: Text }
    ImageVolumeSource { 1 reference: Text, 2 pullPolicy: Text }
    IpBlock { 1 cidr: Text, 2 except: [Text] }
    IscsiPersistentVolumeSource {
        1 targetPortal: Text, 2 iqn: Text, 3 lun: Int, 4 iscsiInterface: Text, 5 fsType: Text,
        6 readOnly: Bool, 7 portals: [Text], 8 chapAuthDiscovery: Bool, 10 secretRef: SecretReference,
        11 chapAuthSession: Bool, 12 initiatorName: Text,
    }
    IscsiVolumeSource {
        1 targetPortal: Text, 2 iqn: Text, 3 lun: Int, 4 iscsiInterface: Text, 5 fsType: Text,
        6 readOnly: Bool, 7 portals: [Text], 8 chapAuthDiscovery: Bool, 10 secretRef: LocalObjectReference,
        11 chapAuthSession: Bool, 12 initiatorName: Text,
    }
    KeyToPath { 1 key: Text, 2 path: Text, 3 mode: Int }
    LabelSelector { 1 matchLabels: {Text}, 2 matchExpressions: [LabelSelectorRequirement] }
    LabelSelectorAttributes { 1 rawSelector: Text, 2 requirements: [LabelSelectorRequirement] }
    LabelSelectorRequirement { 1 key: Text, 2 operator: Text, 3 values: [Text] }
    Lease { 1 metadata: ObjectMeta, 2 spec: LeaseSpec }
    LeaseSpec {
        1 holderIdentity: Text, 2 leaseDurationSeconds: Int, 3 acquireTime: MicroTime,
        4 renewTime: MicroTime, 5 leaseTransitions: Int, 6 strategy: Text, 7 preferredHolder: Text,
    }
    Lifecycle { 1 postStart: LifecycleHandler, 2 preStop: LifecycleHandler, 3 stopSignal: Text }
    LifecycleHandler {
        1 exec: ExecAction, 2 httpGet: HttpGetAction, 3 tcpSocket: TcpSocketAction, 4 sleep: SleepAction,
    }
    LinuxContainerUser { 1 uid: Int, 2 gid: Int, 3 supplementalGroups: [Int] }
    LoadBalancerIngress { 1 ip: Text, 2 hostname: Text, 3 ipMode: Text, 4 ports: [PortStatus] }
    LoadBalancerStatus { 1 ingress: [LoadBalancerIngress] }
    LocalObjectReference { 1 name: Text }
    LocalVolumeSource { 1 path: Text, 2 fsType: Text }
    ManagedFieldsEntry {
        1 manager: Text, 2 operation: Text, 3 apiVersion: Text, 4 time: Time, 6 fieldsType: Text,
        7 fieldsV1: RawJson, 8 subresource: Text,
    }
    ModifyVolumeStatus { 1 targetVolumeAttributesClassName: Text, 2 status: Text }
    Namespace { 1 metadata: ObjectMeta, 2 spec: NamespaceSpec, 3 status: NamespaceStatus }
    NamespaceCondition {
        1 type: Text, 2 status: Text, 4 lastTransitionTime: Time, 5 reason: Text, 6 message: Text,
    }
    NamespaceSpec { 1 finalizers: [Text] }
    NamespaceStatus { 1 phase: Text, 2 conditions: [NamespaceCondition] }
    NetworkPolicy { 1 metadata: ObjectMeta, 2 spec: NetworkPolicySpec }
    NetworkPolicyEgressRule { 1 ports: [NetworkPolicyPort], 2 to: [NetworkPolicyPeer] }
    NetworkPolicyIngressRule { 1 ports: [NetworkPolicyPort], 2 from: [NetworkPolicyPeer] }
    NetworkPolicyPeer { 1 podSelector: LabelSelector, 2 namespaceSelector: LabelSelector, 3 ipBlock: IpBlock }
    NetworkPolicyPort { 1 protocol: Text, 2 port: IntOrString, 3 endPort: Int }
    NetworkPolicySpec {
        1 podSelector: LabelSelector, 2 ingress: [NetworkPolicyIngressRule],
        3 egress: [NetworkPolicyEgressRule], 4 policyTypes: [Text],
    }
    NfsVolumeSource { 1 server: Text, 2 path: Text, 3 readOnly: Bool }
    Node { 1 metadata: ObjectMeta, 2 spec: NodeSpec, 3 status: NodeStatus }
    NodeAddress { 1 type: Text, 2 address: Text }
    NodeAffinity {
        1 requiredDuringSchedulingIgnoredDuringExecution: NodeSelector,
        2 preferredDuringSchedulingIgnoredDuringExecution: [PreferredSchedulingTerm],
    }
    NodeCondition {
        1 type: Text, 2 status: Text, 3 lastHeartbeatTime: Time, 4 lastTransitionTime: Time, 5 reason: Text,
        6 message: Text,
    }
    NodeConfigSource { 2 configMap: ConfigMapNodeConfigSource }
    NodeConfigStatus {
        1 assigned: NodeConfigSource, 2 active: NodeConfigSource, 3 lastKnownGood: NodeConfigSource,
        4 error: Text,
    }
    NodeDaemonEndpoints { 1 kubeletEndpoint: DaemonEndpoint }
    NodeFeatures { 1 supplementalGroupsPolicy: Bool }
    NodeRuntimeHandler { 1 name: Text, 2 features: NodeRuntimeHandlerFeatures }
    NodeRuntimeHandlerFeatures { 1 recursiveReadOnlyMounts: Bool, 2 userNamespaces: Bool }
    NodeSelector { 1 nodeSelectorTerms: [NodeSelectorTerm] }
    NodeSelectorRequirement { 1 key: Text, 2 operator: Text, 3 values: [Text] }
    NodeSelectorTerm {
        1 matchExpressions: [NodeSelectorRequirement], 2 matchFields: [NodeSelectorRequirement],
    }
    NodeSpec {
        1 podCIDR: Text, 2 externalID: Text, 3 providerID: Text, 4 unschedulable: Bool, 5 taints: [Taint],
        6 configSource: NodeConfigSource, 7 podCIDRs: [Text],
    }
    NodeStatus {
        1 capacity: {Quantity}, 2 allocatable: {Quantity}, 3 phase: Text, 4 conditions: [NodeCondition],
        5 addresses: [NodeAddress], 6 daemonEndpoints: NodeDaemonEndpoints, 7 nodeInfo: NodeSystemInfo,
        8 images: [ContainerImage], 9 volumesInUse: [Text], 10 volumesAttached: [AttachedVolume],
        11 config: NodeConfigStatus, 12 runtimeHandlers: [NodeRuntimeHandler], 13 features: NodeFeatures,
        14 declaredFeatures: [Text],
    }
    NodeSwapStatus { 1 capacity: Int }
    NodeSystemInfo {
        1 machineID: Text, 2 systemUUID: Text, 3 bootID: Text, 4 kernelVersion: Text, 5 osImage: Text,
        6 containerRuntimeVersion: Text, 7 kubeletVersion: Text, 8 kubeProxyVersion: Text,
        9 operatingSystem: Text, 10 architecture: Text, 11 swap: NodeSwapStatus,
    }
    NonResourceAttributes { 1 path: Text, 2 verb: Text }
    ObjectFieldSelector { 1 apiVersion: Text, 2 fieldPath: Text }
    ObjectMeta {
        1 name: Text, 2 generateName: Text, 3 namespace: Text, 4 selfLink: Text, 5 uid: Text,
        6 resourceVersion: Text, 7 generation: Int, 8 creationTimestamp: Time, 9 deletionTimestamp: Time,
        10 deletionGracePeriodSeconds: Int, 11 labels: {Text}, 12 annotations: {Text},
        13 ownerReferences: [OwnerReference], 14 finalizers: [Text], 17 managedFields: [ManagedFieldsEntry],
    }
    ObjectReference {
        1 kind: Text, 2 namespace: Text, 3 name: Text, 4 uid: Text, 5 apiVersion: Text,
        6 resourceVersion: Text, 7 fieldPath: Text,
    }
    OwnerReference {
        1 kind: Text, 3 name: Text, 4 uid: Text, 5 apiVersion: Text, 6 controller: Bool,
        7 blockOwnerDeletion: Bool,
    }
    PersistentVolume { 1 metadata: ObjectMeta, 2 spec: PersistentVolumeSpec, 3 status: PersistentVolumeStatus }
    PersistentVolumeClaim {
        1 metadata: ObjectMeta, 2 spec: PersistentVolumeClaimSpec, 3 status: PersistentVolumeClaimStatus,
    }
    PersistentVolumeClaimCondition {
        1 type: Text, 2 status: Text, 3 lastProbeTime: Time, 4 lastTransitionTime: Time, 5 reason: Text,
        6 message: Text,
    }
    PersistentVolumeClaimSpec {
        1 accessModes: [Text], 2 resources: VolumeResourceRequirements, 3 volumeName: Text,
        4 selector: LabelSelector, 5 storageClassName: Text, 6 volumeMode: Text,
        7 dataSource: TypedLocalObjectReference, 8 dataSourceRef: TypedObjectReference,
        9 volumeAttributesClassName: Text,
    }
    PersistentVolumeClaimStatus {
        1 phase: Text, 2 accessModes: [Text], 3 capacity: {Quantity}, 4 conditions: [PersistentVolumeClaimCondition],
        5 allocatedResources: {Quantity}, 7 allocatedResourceStatuses: {Text},
        8 currentVolumeAttributesClassName: Text, 9 modifyVolumeStatus: ModifyVolumeStatus,
    }
    PersistentVolumeClaimTemplate { 1 metadata: ObjectMeta, 2 spec: PersistentVolumeClaimSpec }
    PersistentVolumeClaimVolumeSource { 1 claimName: Text, 2 readOnly: Bool }
    PersistentVolumeSource {
        1 gcePersistentDisk: GcePersistentDiskVolumeSource, 2 awsElasticBlockStore: AwsElasticBlockStoreVolumeSource,
        3 hostPath: HostPathVolumeSource, 4 glusterfs: GlusterfsPersistentVolumeSource, 5 nfs: NfsVolumeSource,
        6 rbd: RbdPersistentVolumeSource, 7 iscsi: IscsiPersistentVolumeSource,
        8 cinder: CinderPersistentVolumeSource, 9 cephfs: CephFsPersistentVolumeSource, 10 fc: FcVolumeSource,
        11 flocker: FlockerVolumeSource, 12 flexVolume: FlexPersistentVolumeSource,
        13 azureFile: AzureFilePersistentVolumeSource, 14 vsphereVolume: VsphereVirtualDiskVolumeSource,
        15 quobyte: QuobyteVolumeSource, 16 azureDisk: AzureDiskVolumeSource,
        17 photonPersistentDisk: PhotonPersistentDiskVolumeSource, 18 portworxVolume: PortworxVolumeSource,
        19 scaleIO: ScaleIoPersistentVolumeSource, 20 local: LocalVolumeSource,
        21 storageos: StorageOsPersistentVolumeSource, 22 csi: CSIPersistentVolumeSource,
    }
    PersistentVolumeSpec {
        1 capacity: {Quantity}, 2 inline: PersistentVolumeSource, 3 accessModes: [Text], 4 claimRef: ObjectReference,
        5 persistentVolumeReclaimPolicy: Text, 6 storageClassName: Text, 7 mountOptions: [Text], 8 volumeMode: Text,
        9 nodeAffinity: VolumeNodeAffinity, 10 volumeAttributesClassName: Text,
    }
    PersistentVolumeStatus { 1 phase: Text, 2 message: Text, 3 reason: Text, 4 lastPhaseTransitionTime: Time }
    PhotonPersistentDiskVolumeSource { 1 pdID: Text, 2 fsType: Text }
    Pod { 1 metadata: ObjectMeta, 2 spec: PodSpec, 3 status: PodStatus }
    PodAffinity {
        1 requiredDuringSchedulingIgnoredDuringExecution: [PodAffinityTerm],
        2 preferredDuringSchedulingIgnoredDuringExecution: [WeightedPodAffinityTerm],
    }
    PodAffinityTerm {
        1 labelSelector: LabelSelector, 2 namespaces: [Text], 3 topologyKey: Text,
        4 namespaceSelector: LabelSelector, 5 matchLabelKeys: [Text], 6 mismatchLabelKeys: [Text],
    }
    PodAntiAffinity {
        1 requiredDuringSchedulingIgnoredDuringExecution: [PodAffinityTerm],
        2 preferredDuringSchedulingIgnoredDuringExecution: [WeightedPodAffinityTerm],
    }
    PodCertificateProjection {
        1 signerName: Text, 2 keyType: Text, 3 maxExpirationSeconds: Int, 4 credentialBundlePath: Text,
        5 keyPath: Text, 6 certificateChainPath: Text, 7 userAnnotations: {Text},
    }
    PodCondition {
        1 type: Text, 2 status: Text, 3 lastProbeTime: Time, 4 lastTransitionTime: Time, 5 reason: Text,
        6 message: Text, 7 observedGeneration: Int,
    }
    PodDisruptionBudget {
        1 metadata: ObjectMeta, 2 spec: PodDisruptionBudgetSpec, 3 status: PodDisruptionBudgetStatus,
    }
    PodDisruptionBudgetSpec {
        1 minAvailable: IntOrString, 2 selector: LabelSelector, 3 maxUnavailable: IntOrString,
        4 unhealthyPodEvictionPolicy: Text,
    }
    PodDisruptionBudgetStatus {
        1 observedGeneration: Int, 2 disruptedPods: {Time}, 3 disruptionsAllowed: Int, 4 currentHealthy: Int,
        5 desiredHealthy: Int, 6 expectedPods: Int, 7 conditions: [Condition],
    }
    PodDnsConfig { 1 nameservers: [Text], 2 searches: [Text], 3 options: [PodDnsConfigOption] }
    PodDnsConfigOption { 1 name: Text, 2 value: Text }
    PodExtendedResourceClaimStatus {
        1 requestMappings: [ContainerExtendedResourceRequest], 2 resourceClaimName: Text,
    }
    PodIp { 1 ip: Text }
    PodOs { 1 name: Text }
    PodReadinessGate { 1 conditionType: Text }
    PodResourceClaim { 1 name: Text, 3 resourceClaimName: Text, 4 resourceClaimTemplateName: Text }
    PodResourceClaimStatus { 1 name: Text, 2 resourceClaimName: Text }
    PodSchedulingGate { 1 name: Text }
    PodSecurityContext {
        1 seLinuxOptions: SeLinuxOptions, 2 runAsUser: Int, 3 runAsNonRoot: Bool,
        4 supplementalGroups: [Int], 5 fsGroup: Int, 6 runAsGroup: Int, 7 sysctls: [Sysctl],
        8 windowsOptions: WindowsSecurityContextOptions, 9 fsGroupChangePolicy: Text,
        10 seccompProfile: SeccompProfile, 11 appArmorProfile: AppArmorProfile,
        12 supplementalGroupsPolicy: Text, 13 seLinuxChangePolicy: Text,
    }
    PodSpec {
        1 volumes: [Volume], 2 containers: [Container], 3 restartPolicy: Text,
        4 terminationGracePeriodSeconds: Int, 5 activeDeadlineSeconds: Int, 6 dnsPolicy: Text,
        7 nodeSelector: {Text}, 8 serviceAccountName: Text, 9 serviceAccount: Text, 10 nodeName: Text,
        11 hostNetwork: Bool, 12 hostPID: Bool, 13 hostIPC: Bool, 14 securityContext: PodSecurityContext,
        15 imagePullSecrets: [LocalObjectReference], 16 hostname: Text, 17 subdomain: Text,
        18 affinity: Affinity, 19 schedulerName: Text, 20 initContainers: [Container],
        21 automountServiceAccountToken: Bool, 22 tolerations: [Toleration], 23 hostAliases: [HostAlias],
        24 priorityClassName: Text, 25 priority: Int, 26 dnsConfig: PodDnsConfig,
        27 shareProcessNamespace: Bool, 28 readinessGates: [PodReadinessGate], 29 runtimeClassName: Text,
        30 enableServiceLinks: Bool, 31 preemptionPolicy: Text, 32 overhead: {Quantity},
        33 topologySpreadConstraints: [TopologySpreadConstraint],
        34 ephemeralContainers: [EphemeralContainer], 35 setHostnameAsFQDN: Bool, 36 os: PodOs,
        37 hostUsers: Bool, 38 schedulingGates: [PodSchedulingGate], 39 resourceClaims: [PodResourceClaim],
        40 resources: ResourceRequirements, 41 hostnameOverride: Text, 42 workloadRef: WorkloadReference,
    }
    PodStatus {
        1 phase: Text, 2 conditions: [PodCondition], 3 message: Text, 4 reason: Text, 5 hostIP: Text,
        6 podIP: Text, 7 startTime: Time, 8 containerStatuses: [ContainerStatus], 9 qosClass: Text,
        10 initContainerStatuses: [ContainerStatus], 11 nominatedNodeName: Text, 12 podIPs: [PodIp],
        13 ephemeralContainerStatuses: [ContainerStatus], 14 resize: Text,
        15 resourceClaimStatuses: [PodResourceClaimStatus], 16 hostIPs: [HostIp],
        17 observedGeneration: Int, 18 extendedResourceClaimStatus: PodExtendedResourceClaimStatus,
        19 allocatedResources: {Quantity}, 20 resources: ResourceRequirements,
    }
    PortStatus { 1 port: Int, 2 protocol: Text, 3 error: Text }
    PortworxVolumeSource { 1 volumeID: Text, 2 fsType: Text, 3 readOnly: Bool }
    Preconditions { 1 uid: Text, 2 resourceVersion: Text }
    PreferredSchedulingTerm { 1 weight: Int, 2 preference: NodeSelectorTerm }
    Probe {
        1 inline: ProbeHandler, 2 initialDelaySeconds: Int, 3 timeoutSeconds: Int, 4 periodSeconds: Int,
        5 successThreshold: Int, 6 failureThreshold: Int, 7 terminationGracePeriodSeconds: Int,
    }
    ProbeHandler {
        1 exec: ExecAction, 2 httpGet: HttpGetAction, 3 tcpSocket: TcpSocketAction, 4 grpc: GrpcAction,
    }
    ProjectedVolumeSource { 1 sources: [VolumeProjection], 2 defaultMode: Int }
    QuobyteVolumeSource {
        1 registry: Text, 2 volume: Text, 3 readOnly: Bool, 4 user: Text, 5 group: Text, 6 tenant: Text,
    }
    RbdPersistentVolumeSource {
        1 monitors: [Text], 2 image: Text, 3 fsType: Text, 4 pool: Text, 5 user: Text, 6 keyring: Text,
        7 secretRef: SecretReference, 8 readOnly: Bool,
    }
    RbdVolumeSource {
        1 monitors: [Text], 2 image: Text, 3 fsType: Text, 4 pool: Text, 5 user: Text, 6 keyring: Text,
        7 secretRef: LocalObjectReference, 8 readOnly: Bool,
    }
    ResourceAttributes {
        1 namespace: Text, 2 verb: Text, 3 group: Text, 4 version: Text, 5 resource: Text,
        6 subresource: Text, 7 name: Text, 8 fieldSelector: FieldSelectorAttributes,
        9 labelSelector: LabelSelectorAttributes,
    }
    ResourceClaim { 1 name: Text, 2 request: Text }
    ResourceFieldSelector { 1 containerName: Text, 2 resource: Text, 3 divisor: Quantity }
    ResourceHealth { 1 resourceID: Text, 2 health: Text }
    ResourceRequirements { 1 limits: {Quantity}, 2 requests: {Quantity}, 3 claims: [ResourceClaim] }
    ResourceStatus { 1 name: Text, 2 resources: [ResourceHealth] }
    ScaleIoPersistentVolumeSource {
        1 gateway: Text, 2 system: Text, 3 secretRef: SecretReference, 4 sslEnabled: Bool,
        5 protectionDomain: Text, 6 storagePool: Text, 7 storageMode: Text, 8 volumeName: Text,
        9 fsType: Text, 10 readOnly: Bool,
    }
    ScaleIoVolumeSource {
        1 gateway: Text, 2 system: Text, 3 secretRef: LocalObjectReference, 4 sslEnabled: Bool,
        5 protectionDomain: Text, 6 storagePool: Text, 7 storageMode: Text, 8 volumeName: Text,
        9 fsType: Text, 10 readOnly: Bool,
    }
    SeLinuxOptions { 1 user: Text, 2 role: Text, 3 type: Text, 4 level: Text }
    SeccompProfile { 1 type: Text, 2 localhostProfile: Text }
    Secret { 1 metadata: ObjectMeta, 2 data: {Bytes}, 3 type: Text, 4 stringData: {Text}, 5 immutable: Bool }
    SecretEnvSource { 1 inline: LocalObjectReference, 2 optional: Bool }
    SecretKeySelector { 1 inline: LocalObjectReference, 2 key: Text, 3 optional: Bool }
    SecretProjection { 1 inline: LocalObjectReference, 2 items: [KeyToPath], 4 optional: Bool }
    SecretReference { 1 name: Text, 2 namespace: Text }
    SecretVolumeSource { 1 secretName: Text, 2 items: [KeyToPath], 3 defaultMode: Int, 4 optional: Bool }
    SecurityContext {
        1 capabilities: Capabilities, 2 privileged: Bool, 3 seLinuxOptions: SeLinuxOptions,
        4 runAsUser: Int, 5 runAsNonRoot: Bool, 6 readOnlyRootFilesystem: Bool,
        7 allowPrivilegeEscalation: Bool, 8 runAsGroup: Int, 9 procMount: Text,
        10 windowsOptions: WindowsSecurityContextOptions, 11 seccompProfile: SeccompProfile,
        12 appArmorProfile: AppArmorProfile,
    }
    SelfSubjectAccessReview {
        1 metadata: ObjectMeta, 2 spec: SelfSubjectAccessReviewSpec, 3 status: SubjectAccessReviewStatus,
    }
    SelfSubjectAccessReviewSpec {
        1 resourceAttributes: ResourceAttributes, 2 nonResourceAttributes: NonResourceAttributes,
    }
    SelfSubjectReview { 1 metadata: ObjectMeta, 2 status: SelfSubjectReviewStatus }
    SelfSubjectReviewStatus { 1 userInfo: UserInfo }
    Service { 1 metadata: ObjectMeta, 2 spec: ServiceSpec, 3 status: ServiceStatus }
    ServiceAccount {
        1 metadata: ObjectMeta, 2 secrets: [ObjectReference], 3 imagePullSecrets: [LocalObjectReference],
        4 automountServiceAccountToken: Bool,
    }
    ServiceAccountTokenProjection { 1 audience: Text, 2 expirationSeconds: Int, 3 path: Text }
    ServicePort {
        1 name: Text, 2 protocol: Text, 3 port: Int, 4 targetPort: IntOrString, 5 nodePort: Int, 6 appProtocol: Text,
    }
    ServiceSpec {
        1 ports: [ServicePort], 2 selector: {Text}, 3 clusterIP: Text, 4 type: Text, 5 externalIPs: [Text],
        7 sessionAffinity: Text, 8 loadBalancerIP: Text, 9 loadBalancerSourceRanges: [Text],
        10 externalName: Text, 11 externalTrafficPolicy: Text, 12 healthCheckNodePort: Int,
        13 publishNotReadyAddresses: Bool, 14 sessionAffinityConfig: SessionAffinityConfig,
        17 ipFamilyPolicy: Text, 18 clusterIPs: [Text], 19 ipFamilies: [Text],
        20 allocateLoadBalancerNodePorts: Bool, 21 loadBalancerClass: Text, 22 internalTrafficPolicy: Text,
        23 trafficDistribution: Text,
    }
    ServiceStatus { 1 loadBalancer: LoadBalancerStatus, 2 conditions: [Condition] }
    SessionAffinityConfig { 1 clientIP: ClientIPConfig }
    SleepAction { 1 seconds: Int }
    StorageClass {
        1 metadata: ObjectMeta, 2 provisioner: Text, 3 parameters: {Text}, 4 reclaimPolicy: Text,
        5 mountOptions: [Text], 6 allowVolumeExpansion: Bool, 7 volumeBindingMode: Text,
        8 allowedTopologies: [TopologySelectorTerm],
    }
    StorageOsPersistentVolumeSource {
        1 volumeName: Text, 2 volumeNamespace: Text, 3 fsType: Text, 4 readOnly: Bool, 5 secretRef: ObjectReference,
    }
    StorageOsVolumeSource {
        1 volumeName: Text, 2 volumeNamespace: Text, 3 fsType: Text, 4 readOnly: Bool,
        5 secretRef: LocalObjectReference,
    }
    SubjectAccessReviewStatus { 1 allowed: Bool, 2 reason: Text, 3 evaluationError: Text, 4 denied: Bool }
    Sysctl { 1 name: Text, 2 value: Text }
    Taint { 1 key: Text, 2 value: Text, 3 effect: Text, 4 timeAdded: Time }
    TcpSocketAction { 1 port: IntOrString, 2 host: Text }
    TokenRequest { 1 metadata: ObjectMeta, 2 spec: TokenRequestSpec, 3 status: TokenRequestStatus }
    TokenRequestSpec { 1 audiences: [Text], 3 boundObjectRef: BoundObjectReference, 4 expirationSeconds: Int }
    TokenRequestStatus { 1 token: Text, 2 expirationTimestamp: Time }
    TokenReview { 1 metadata: ObjectMeta, 2 spec: TokenReviewSpec, 3 status: TokenReviewStatus }
    TokenReviewSpec { 1 token: Text, 2 audiences: [Text] }
    TokenReviewStatus { 1 authenticated: Bool, 2 user: UserInfo, 3 error: Text, 4 audiences: [Text] }
    Toleration { 1 key: Text, 2 operator: Text, 3 value: Text, 4 effect: Text, 5 tolerationSeconds: Int }
    TopologySelectorLabelRequirement { 1 key: Text, 2 values: [Text] }
    TopologySelectorTerm { 1 matchLabelExpressions: [TopologySelectorLabelRequirement] }
    TopologySpreadConstraint {
        1 maxSkew: Int, 2 topologyKey: Text, 3 whenUnsatisfiable: Text, 4 labelSelector: LabelSelector,
        5 minDomains: Int, 6 nodeAffinityPolicy: Text, 7 nodeTaintsPolicy: Text, 8 matchLabelKeys: [Text],
    }
    TypedLocalObjectReference { 1 apiGroup: Text, 2 kind: Text, 3 name: Text }
    TypedObjectReference { 1 apiGroup: Text, 2 kind: Text, 3 name: Text, 4 namespace: Text }
    UserInfo { 1 username: Text, 2 uid: Text, 3 groups: [Text] }
    Volume { 1 name: Text, 2 inline: VolumeSource }
    VolumeDevice { 1 name: Text, 2 devicePath: Text }
    VolumeMount {
        1 name: Text, 2 readOnly: Bool, 3 mountPath: Text, 4 subPath: Text, 5 mountPropagation: Text,
        6 subPathExpr: Text, 7 recursiveReadOnly: Text,
    }
    VolumeMountStatus { 1 name: Text, 2 mountPath: Text, 3 readOnly: Bool, 4 recursiveReadOnly: Text }
    VolumeNodeAffinity { 1 required: NodeSelector }
    VolumeProjection {
        1 secret: SecretProjection, 2 downwardAPI: DownwardAPIProjection, 3 configMap: ConfigMapProjection,
        4 serviceAccountToken: ServiceAccountTokenProjection,
        5 clusterTrustBundle: ClusterTrustBundleProjection, 6 podCertificate: PodCertificateProjection,
    }
    VolumeResourceRequirements { 1 limits: {Quantity}, 2 requests: {Quantity} }
    VolumeSource {
        1 hostPath: HostPathVolumeSource, 2 emptyDir: EmptyDirVolumeSource,
        3 gcePersistentDisk: GcePersistentDiskVolumeSource,
        4 awsElasticBlockStore: AwsElasticBlockStoreVolumeSource, 5 gitRepo: GitRepoVolumeSource,
        6 secret: SecretVolumeSource, 7 nfs: NfsVolumeSource, 8 iscsi: IscsiVolumeSource,
        9 glusterfs: GlusterfsVolumeSource, 10 persistentVolumeClaim: PersistentVolumeClaimVolumeSource,
        11 rbd: RbdVolumeSource, 12 flexVolume: FlexVolumeSource, 13 cinder: CinderVolumeSource,
        14 cephfs: CephFsVolumeSource, 15 flocker: FlockerVolumeSource,
        16 downwardAPI: DownwardAPIVolumeSource, 17 fc: FcVolumeSource, 18 azureFile: AzureFileVolumeSource,
        19 configMap: ConfigMapVolumeSource, 20 vsphereVolume: VsphereVirtualDiskVolumeSource,
        21 quobyte: QuobyteVolumeSource, 22 azureDisk: AzureDiskVolumeSource,
        23 photonPersistentDisk: PhotonPersistentDiskVolumeSource, 24 portworxVolume: PortworxVolumeSource,
        25 scaleIO: ScaleIoVolumeSource, 26 projected: ProjectedVolumeSource,
        27 storageos: StorageOsVolumeSource, 28 csi: CSIVolumeSource, 29 ephemeral: EphemeralVolumeSource,
        30 image: ImageVolumeSource,
    }
    VsphereVirtualDiskVolumeSource {
        1 volumePath: Text, 2 fsType: Text, 3 storagePolicyName: Text, 4 storagePolicyID: Text,
    }
    WeightedPodAffinityTerm { 1 weight: Int, 2 podAffinityTerm: PodAffinityTerm }
    WindowsSecurityContextOptions {
        1 gmsaCredentialSpecName: Text, 2 gmsaCredentialSpec: Text, 3 runAsUserName: Text,
        4 hostProcess: Bool,
    }
    WorkloadReference { 1 name: Text, 2 podGroup: Text, 3 podGroupReplicaKey: Text }
}
