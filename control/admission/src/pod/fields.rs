//! The fields of a pod that the agent honours. This is the list to extend when the agent learns something.

use crate::shape::Shape::{self, Any, Both, List, Members, OneOf, Refused};

const NO_HOST: Shape = Refused("pods do not share the node's namespaces");
const PROFILES: Shape = Refused("every container runs under Palisade's own seccomp and Landlock profile");

/// Members of `spec`.
pub(super) const SPEC: Shape = Members(&[
    ("activeDeadlineSeconds", Any),
    (
        "affinity",
        Refused("only nodeSelector, nodeName and tolerations place pods"),
    ),
    ("automountServiceAccountToken", Any),
    ("containers", List(&CONTAINER)),
    (
        "dnsConfig",
        Members(&[
            ("nameservers", Any),
            ("options", List(&Members(&[("name", Any), ("value", Any)]))),
            ("searches", Any),
        ]),
    ),
    ("dnsPolicy", OneOf(&["ClusterFirst", "Default", "None"])),
    ("enableServiceLinks", Any),
    (
        "ephemeralContainers",
        Refused("they cannot be set on create; kubectl debug adds them to a pod that exists"),
    ),
    ("hostAliases", List(&Members(&[("hostnames", Any), ("ip", Any)]))),
    ("hostIPC", NO_HOST),
    ("hostNetwork", NO_HOST),
    ("hostPID", NO_HOST),
    ("hostUsers", Refused("every pod has a user namespace of its own")),
    ("hostname", Any),
    ("imagePullSecrets", List(&Members(&[("name", Any)]))),
    ("initContainers", List(&INIT_CONTAINER)),
    ("nodeName", Any),
    ("nodeSelector", Any),
    ("os", Members(&[("name", OneOf(&["linux"]))])),
    ("preemptionPolicy", OneOf(&["PreemptLowerPriority", "Never"])),
    ("priority", Refused("all pods have the same priority")),
    ("priorityClassName", Refused("all pods have the same priority")),
    ("readinessGates", List(&Members(&[("conditionType", Any)]))),
    ("restartPolicy", OneOf(&["Always", "OnFailure", "Never"])),
    ("runtimeClassName", Refused("there is one runtime")),
    ("schedulerName", OneOf(&["default-scheduler"])),
    ("securityContext", POD_SECURITY),
    ("serviceAccount", Any),
    ("serviceAccountName", Any),
    ("shareProcessNamespace", Any),
    ("subdomain", Any),
    ("terminationGracePeriodSeconds", Any),
    ("tolerations", Any),
    (
        "topologySpreadConstraints",
        Refused("only nodeSelector, nodeName and tolerations place pods"),
    ),
    ("volumes", List(&VOLUME)),
]);

const POD_SECURITY: Shape = Members(&[
    ("appArmorProfile", PROFILES),
    ("fsGroup", Any),
    ("fsGroupChangePolicy", OneOf(&["Always", "OnRootMismatch"])),
    ("runAsGroup", Any),
    ("runAsNonRoot", Any),
    ("runAsUser", Any),
    ("seLinuxOptions", PROFILES),
    ("seccompProfile", SECCOMP),
    ("supplementalGroups", Any),
    ("supplementalGroupsPolicy", OneOf(&["Merge"])),
    ("sysctls", Refused("kernel parameters are not set")),
    ("windowsOptions", Refused("nodes run Linux")),
]);

const SECCOMP: Shape = Members(&[
    ("localhostProfile", Any),
    ("type", OneOf(&["Localhost", "RuntimeDefault"])),
]);

/// As [`CONTAINER`], with the policy that makes a sidecar. What hooks and probes mean for containers that run
/// to their end is nothing: `containers` refuses them there.
const INIT_CONTAINER: Shape = Both(&CONTAINER, &[("restartPolicy", OneOf(&["Always"]))]);

const CONTAINER: Shape = Members(&[
    ("args", Any),
    ("command", Any),
    ("env", List(&ENV)),
    ("envFrom", List(&ENV_FROM)),
    ("image", Any),
    ("imagePullPolicy", OneOf(&["Always", "IfNotPresent", "Never"])),
    ("lifecycle", LIFECYCLE),
    ("livenessProbe", PROBE),
    ("name", Any),
    ("ports", List(&PORT)),
    ("readinessProbe", PROBE),
    ("resources", RESOURCES),
    ("securityContext", CONTAINER_SECURITY),
    ("startupProbe", PROBE),
    ("stdin", Any),
    ("stdinOnce", Any),
    ("terminationMessagePath", Any),
    (
        "terminationMessagePolicy",
        OneOf(&["File", "FallbackToLogsOnError"]),
    ),
    ("tty", Any),
    ("volumeDevices", Refused("block devices are not given to pods")),
    ("volumeMounts", List(&MOUNT)),
    ("workingDir", Any),
]);

const NOT_EPHEMERAL: Shape = Refused("it cannot be set for an ephemeral container");

/// Members of an item of `spec.ephemeralContainers`: nothing that others would rely on, as in Kubernetes.
pub(super) const EPHEMERAL_CONTAINER: Shape = Members(&[
    ("args", Any),
    ("command", Any),
    ("env", List(&ENV)),
    ("envFrom", List(&ENV_FROM)),
    ("image", Any),
    ("imagePullPolicy", OneOf(&["Always", "IfNotPresent", "Never"])),
    ("lifecycle", NOT_EPHEMERAL),
    ("livenessProbe", NOT_EPHEMERAL),
    ("name", Any),
    ("ports", NOT_EPHEMERAL),
    ("readinessProbe", NOT_EPHEMERAL),
    ("resizePolicy", NOT_EPHEMERAL),
    ("resources", NOT_EPHEMERAL),
    ("restartPolicy", NOT_EPHEMERAL),
    ("securityContext", CONTAINER_SECURITY),
    ("startupProbe", NOT_EPHEMERAL),
    ("stdin", Any),
    ("stdinOnce", Any),
    ("targetContainerName", Any),
    ("terminationMessagePath", Any),
    (
        "terminationMessagePolicy",
        OneOf(&["File", "FallbackToLogsOnError"]),
    ),
    ("tty", Any),
    ("volumeDevices", NOT_EPHEMERAL),
    (
        "volumeMounts",
        List(&Both(
            &MOUNT,
            &[("subPath", NOT_EPHEMERAL), ("subPathExpr", NOT_EPHEMERAL)],
        )),
    ),
    ("workingDir", Any),
]);

const PROBE: Shape = Members(&[
    ("exec", EXEC),
    ("failureThreshold", Any),
    ("grpc", Members(&[("port", Any), ("service", Any)])),
    ("httpGet", HTTP_GET),
    ("initialDelaySeconds", Any),
    ("periodSeconds", Any),
    ("successThreshold", Any),
    ("tcpSocket", Members(&[("host", Any), ("port", Any)])),
    ("terminationGracePeriodSeconds", Any),
    ("timeoutSeconds", Any),
]);

const LIFECYCLE: Shape = Members(&[
    ("postStart", HOOK),
    ("preStop", HOOK),
    ("stopSignal", Refused("the image's STOPSIGNAL is sent")),
]);

const HOOK: Shape = Members(&[
    ("exec", EXEC),
    ("httpGet", HTTP_GET),
    ("sleep", Members(&[("seconds", Any)])),
    (
        "tcpSocket",
        Refused("Kubernetes never ran hooks of this kind; use exec"),
    ),
]);

const EXEC: Shape = Members(&[("command", Any)]);

const HTTP_GET: Shape = Members(&[
    ("host", Any),
    ("httpHeaders", List(&Members(&[("name", Any), ("value", Any)]))),
    ("path", Any),
    ("port", Any),
    ("scheme", OneOf(&["HTTP", "HTTPS"])),
]);

const CONTAINER_SECURITY: Shape = Members(&[
    (
        "allowPrivilegeEscalation",
        Refused("no_new_privs is always set; leave it out or set it to false"),
    ),
    ("appArmorProfile", PROFILES),
    ("capabilities", Members(&[("add", Any), ("drop", Any)])),
    ("privileged", Refused("no container is privileged")),
    ("procMount", OneOf(&["Default"])),
    ("readOnlyRootFilesystem", Any),
    ("runAsGroup", Any),
    ("runAsNonRoot", Any),
    ("runAsUser", Any),
    ("seLinuxOptions", PROFILES),
    ("seccompProfile", SECCOMP),
    ("windowsOptions", Refused("nodes run Linux")),
]);

const ENV: Shape = Members(&[
    ("name", Any),
    ("value", Any),
    (
        "valueFrom",
        Members(&[
            ("configMapKeyRef", Any),
            (
                "fieldRef",
                Members(&[("apiVersion", OneOf(&["v1"])), ("fieldPath", Any)]),
            ),
            ("resourceFieldRef", RESOURCE_FIELD),
            ("secretKeyRef", Any),
        ]),
    ),
]);

const RESOURCE_FIELD: Shape = Members(&[("containerName", Any), ("divisor", Any), ("resource", Any)]);

const DOWNWARD_FILES: Shape = List(&Members(&[
    (
        "fieldRef",
        Members(&[("apiVersion", OneOf(&["v1"])), ("fieldPath", Any)]),
    ),
    ("mode", Any),
    ("path", Any),
    ("resourceFieldRef", RESOURCE_FIELD),
]));

const PROJECTION: Shape = Members(&[
    ("configMap", Any),
    ("downwardAPI", Members(&[("items", DOWNWARD_FILES)])),
    ("secret", Any),
    (
        "serviceAccountToken",
        Members(&[("audience", Any), ("expirationSeconds", Any), ("path", Any)]),
    ),
]);

const ENV_FROM: Shape = Members(&[("configMapRef", Any), ("prefix", Any), ("secretRef", Any)]);

const PORT: Shape = Members(&[
    ("containerPort", Any),
    ("hostIP", Any),
    ("hostPort", Any),
    ("name", Any),
    ("protocol", OneOf(&["TCP", "UDP", "SCTP"])),
]);

const RESOURCES: Shape = Members(&[("limits", QUANTITIES), ("requests", QUANTITIES)]);

const QUANTITIES: Shape = Members(&[("cpu", Any), ("ephemeral-storage", Any), ("memory", Any)]);

const MOUNT: Shape = Members(&[
    ("mountPath", Any),
    ("mountPropagation", OneOf(&["None"])),
    ("name", Any),
    ("readOnly", Any),
    ("recursiveReadOnly", OneOf(&["Disabled", "Enabled", "IfPossible"])),
    ("subPath", Any),
    ("subPathExpr", Any),
]);

/// What is behind sockets and devices is not content of files.
const HOST_PATH_TYPES: Shape = OneOf(&["Directory", "DirectoryOrCreate", "File", "FileOrCreate"]);

const VOLUME: Shape = Members(&[
    ("configMap", Any),
    (
        "downwardAPI",
        Members(&[("defaultMode", Any), ("items", DOWNWARD_FILES)]),
    ),
    (
        "emptyDir",
        Members(&[("medium", OneOf(&["Memory"])), ("sizeLimit", Any)]),
    ),
    // Whether the path is granted, the server looks up.
    ("hostPath", Members(&[("path", Any), ("type", HOST_PATH_TYPES)])),
    ("name", Any),
    (
        "persistentVolumeClaim",
        Members(&[("claimName", Any), ("readOnly", Any)]),
    ),
    (
        "projected",
        Members(&[("defaultMode", Any), ("sources", List(&PROJECTION))]),
    ),
    ("secret", Any),
]);
