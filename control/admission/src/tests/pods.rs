//! Pods.

use super::*;

/// A change of a stored pod.
type Edit<'a> = &'a dyn Fn(&mut Value);

#[test]
fn an_ordinary_pod_gets_kubernetes_defaults() {
    let body = json!({"spec": {
        "containers": [
            {"name": "a", "image": "busybox", "ports": [{"containerPort": 80}],
             "resources": {"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "500m"}},
             "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
             "volumeMounts": [{"name": "v", "mountPath": "/data"}]},
            {"name": "b", "image": "r.example/app:1"}],
        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "s"}}],
    }});
    let pod = complete(&request("pods", None, object("pods", body))).unwrap();
    assert_eq!(
        pod,
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "default"},
            "spec": {
                "containers": [
                    {"name": "a", "image": "busybox", "imagePullPolicy": "Always",
                     "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                     "ports": [{"containerPort": 80, "protocol": "TCP"}],
                     "resources": {"limits": {"cpu": "1", "memory": "64Mi"},
                                   "requests": {"cpu": "500m", "memory": "64Mi"}},
                     "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}],
                     "volumeMounts": [{"name": "v", "mountPath": "/data"}]},
                    {"name": "b", "image": "r.example/app:1", "imagePullPolicy": "IfNotPresent",
                     "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                     "resources": {}}],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "s", "defaultMode": 420}}],
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
                "terminationGracePeriodSeconds": 30, "enableServiceLinks": true, "securityContext": {},
                "serviceAccountName": "default", "serviceAccount": "default",
            },
            "status": {"phase": "Pending", "qosClass": "Burstable"},
        })
    );
    let again = complete(&request("pods", None, pod.clone())).unwrap();
    assert_eq!(again, pod, "defaults are stable");
}

#[test]
fn a_new_pod_has_its_class_by_the_requests_that_it_ends_up_with() {
    let class = |resources: Value, status: Value| {
        let spec = json!({"containers": [{"name": "c", "image": "r.example/app:1", "resources": resources}]});
        let body = object("pods", json!({"spec": spec, "status": status}));
        complete(&request("pods", None, body)).unwrap()["status"].take()
    };
    let expected = |class: &str| json!({"phase": "Pending", "qosClass": class});
    let limits = json!({"limits": {"cpu": "1", "memory": "64Mi"}});
    assert_eq!(class(json!({}), json!({})), expected("BestEffort"));
    assert_eq!(
        class(json!({"requests": {"cpu": "1"}}), json!({})),
        expected("Burstable")
    );
    assert_eq!(class(limits, json!({})), expected("Guaranteed"));
    let claimed = json!({"phase": "Running", "qosClass": "Guaranteed"});
    assert_eq!(
        class(json!({}), claimed),
        expected("BestEffort"),
        "nobody makes a pod of the class that they name"
    );
}

#[test]
fn a_pod_that_uses_everything_supported_is_admitted() {
    let body = pod(json!({
        "containers": [{
            "name": "c", "image": "r.example/app:1", "imagePullPolicy": "Always", "workingDir": "/work",
            "command": ["sh"], "args": ["-c", "true"],
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k", "optional": true}}},
                {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app.kubernetes.io/name']"}}},
                {"name": "E", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}],
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "s"}}],
            "ports": [{"name": "http", "containerPort": 80, "hostPort": 8080, "hostIP": "192.0.2.1"},
                      {"containerPort": 80, "hostPort": 8080, "hostIP": "192.0.2.2"},
                      {"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}, {"containerPort": 81, "hostPort": 0}],
            "resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "0.5", "memory": "1G"}},
            "securityContext": {
                "runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true, "privileged": false,
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"}},
            "volumeMounts": [
                {"name": "e", "mountPath": "/cache"}, {"name": "m", "mountPath": "/dev/shm"},
                {"name": "c", "mountPath": "/etc/app", "readOnly": true}],
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "stdin": false, "tty": false,
        }],
        "volumes": [
            {"name": "e", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
            {"name": "c", "configMap": {"name": "m", "items": [{"key": "k", "path": "d/f", "mode": 256}]}},
            {"name": "s", "secret": {"secretName": "s", "defaultMode": 256, "optional": true}}],
        "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 0, "nodeSelector": {"kubernetes.io/os": "linux"},
        "nodeName": "node-1", "hostname": "web", "automountServiceAccountToken": false, "dnsPolicy": "Default",
        "hostUsers": false, "hostNetwork": false, "affinity": {}, "activeDeadlineSeconds": 60,
        "initContainers": [{"name": "i", "image": "i"}, {"name": "s", "image": "i", "restartPolicy": "Always"}],
        "tolerations": [{"operator": "Exists"}, {"key": "k", "value": "v", "effect": "NoExecute", "tolerationSeconds": 5}],
        "securityContext": {"runAsUser": 1, "fsGroup": 2, "supplementalGroups": [3], "seccompProfile": {"type": "RuntimeDefault"}},
    }));
    assert_eq!(problems("pods", body), Vec::<String>::new());
}

#[test]
fn what_the_agent_cannot_honour_is_refused_with_its_path() {
    let spec = |field: &str, value: Value| pod(json!({field: value}));
    let cases = [
        (spec("hostNetwork", json!(true)), "spec.hostNetwork: "),
        (spec("hostPID", json!(true)), "spec.hostPID: "),
        (spec("hostIPC", json!(true)), "spec.hostIPC: "),
        (
            spec("ephemeralContainers", json!([{"name": "i"}])),
            "spec.ephemeralContainers: ",
        ),
        (spec("runtimeClassName", json!("kata")), "spec.runtimeClassName: "),
        (spec("affinity", json!({"nodeAffinity": {}})), "spec.affinity: "),
        (
            spec("imagePullSecrets", json!([{"name": "s"}, {"name": "A_B"}])),
            "spec.imagePullSecrets[1].name: ",
        ),
        (
            spec("schedulerName", json!("mine")),
            "spec.schedulerName: Unsupported value",
        ),
        (
            spec("securityContext", json!({"sysctls": [{"name": "a"}]})),
            "spec.securityContext.sysctls: ",
        ),
        (
            spec(
                "securityContext",
                json!({"seccompProfile": {"type": "Unconfined"}}),
            ),
            "spec.securityContext.seccompProfile.type: Unsupported value: \"Unconfined\"",
        ),
        (
            spec(
                "securityContext",
                json!({"seccompProfile": {"type": "RuntimeDefault", "localhostProfile": "p"}}),
            ),
            "spec.securityContext.seccompProfile.localhostProfile: ",
        ),
        (
            spec(
                "volumes",
                json!([{"name": "v", "hostPath": {"path": "/run/x.sock", "type": "Socket"}}]),
            ),
            "spec.volumes[0].hostPath.type: Unsupported value",
        ),
        (
            spec(
                "volumes",
                json!([{"name": "v", "hostPath": {"path": "/srv/../etc"}}]),
            ),
            "spec.volumes[0].hostPath.path: Invalid value",
        ),
        (
            spec("volumes", json!([{"name": "v", "rbd": {}}])),
            "spec.volumes[0].rbd: ",
        ),
        (
            spec(
                "volumes",
                json!([{"name": "v", "emptyDir": {"medium": "HugePages"}}]),
            ),
            "spec.volumes[0].emptyDir.medium: ",
        ),
        (
            spec(
                "volumes",
                json!([{"name": "v", "emptyDir": {"sizeLimit": "a lot"}}]),
            ),
            "spec.volumes[0].emptyDir.sizeLimit: ",
        ),
        (
            container(json!({"lifecycle": {"preStop": {"tcpSocket": {"port": 1}}}})),
            "spec.containers[0].lifecycle.preStop.tcpSocket: ",
        ),
        (
            container(json!({"lifecycle": {"stopSignal": "SIGUSR1"}})),
            "spec.containers[0].lifecycle.stopSignal: ",
        ),
        (
            container(json!({"securityContext": {"privileged": true}})),
            "spec.containers[0].securityContext.privileged: ",
        ),
        (
            container(json!({"securityContext": {"allowPrivilegeEscalation": true}})),
            "spec.containers[0].securityContext.allowPrivilegeEscalation: ",
        ),
        (
            container(json!({"securityContext": {"procMount": "Unmasked"}})),
            "spec.containers[0].securityContext.procMount: ",
        ),
        (
            container(json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}})),
            "spec.containers[0].securityContext.appArmorProfile: ",
        ),
        (
            container(json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}})),
            "spec.containers[0].securityContext.capabilities.add[0]: Unsupported value: \"SYS_ADMIN\"",
        ),
        (
            container(json!({"securityContext": {"capabilities": {"add": ["ALL"]}}})),
            "spec.containers[0].securityContext.capabilities.add[0]: Unsupported value: \"ALL\"",
        ),
        (
            container(json!({"resources": {"limits": {"hugepages-2Mi": "1Gi"}}})),
            "spec.containers[0].resources.limits.hugepages-2Mi: ",
        ),
        (
            container(json!({"resources": {
                "limits": {"ephemeral-storage": "1Gi"}, "requests": {"ephemeral-storage": "2Gi"}}})),
            "spec.containers[0].resources.requests: ",
        ),
    ];
    for (body, expected) in cases {
        let found = problems("pods", body);
        assert_eq!(found.len(), 1, "{expected}: {found:?}");
        assert!(found[0].starts_with(expected), "{found:?}");
    }
    let unknown = problems("pods", spec("fieldOfTheFuture", json!("x")));
    assert!(
        unknown[0].ends_with("unknown field \"spec.fieldOfTheFuture\""),
        "{unknown:?}"
    );
}

#[test]
fn probes_and_hooks_are_defaulted() {
    let body = object(
        "pods",
        json!({"spec": {"containers": [{
            "name": "c", "image": "i",
            "livenessProbe": {"httpGet": {"port": "web", "httpHeaders": [{"name": "A", "value": "b"}]}, "timeoutSeconds": 3},
            "readinessProbe": {"grpc": {"port": 5}, "successThreshold": 2},
            "startupProbe": {"tcpSocket": {"port": 5, "host": "127.0.0.1"}, "terminationGracePeriodSeconds": 5},
            "lifecycle": {"postStart": {"sleep": {"seconds": 1}}, "preStop": {"httpGet": {"port": 80}}},
            "terminationMessagePolicy": "FallbackToLogsOnError", "terminationMessagePath": "/tmp/last",
        }]}}),
    );
    let pod = complete(&request("pods", None, body)).unwrap();
    let container = &pod["spec"]["containers"][0];
    assert_eq!(
        container["livenessProbe"],
        json!({"httpGet": {"port": "web", "path": "/", "scheme": "HTTP", "httpHeaders": [{"name": "A", "value": "b"}]},
               "timeoutSeconds": 3, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
    );
    assert_eq!(
        container["readinessProbe"]["grpc"],
        json!({"port": 5, "service": ""})
    );
    assert_eq!(container["readinessProbe"]["successThreshold"], 2);
    assert_eq!(container["lifecycle"]["preStop"]["httpGet"]["path"], "/");
}

#[test]
fn probes_and_hooks_that_mean_nothing_are_refused() {
    let probe = |kind: &str, probe: Value| container(json!({kind: probe}));
    let http = |extra: Value| {
        let mut get = json!({"port": 80});
        get.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        probe("livenessProbe", json!({"httpGet": get}))
    };
    let hook = |hook: Value| container(json!({"lifecycle": {"preStop": hook}}));
    let init = |extra: Value| {
        let mut init = json!({"name": "i", "image": "i"});
        init.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        pod(json!({"initContainers": [init], "containers": [{"name": "c", "image": "i"}]}))
    };
    let own_grace = json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 1});
    let sh = json!({"exec": {"command": ["sh"]}});
    let cases = [
        (
            probe("readinessProbe", json!({"periodSeconds": 1})),
            "readinessProbe: Required value: must specify a handler type",
        ),
        (
            probe(
                "livenessProbe",
                json!({"exec": {"command": ["x"]}, "tcpSocket": {"port": 1}}),
            ),
            "livenessProbe: Forbidden: may not specify more than 1 handler type",
        ),
        (
            probe(
                "livenessProbe",
                json!({"exec": {"command": []}, "periodSeconds": 1}),
            ),
            "livenessProbe.exec.command: Required value",
        ),
        (
            probe(
                "livenessProbe",
                json!({"exec": {"command": ["x"]}, "successThreshold": 2}),
            ),
            "livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            probe(
                "startupProbe",
                json!({"exec": {"command": ["x"]}, "periodSeconds": -1}),
            ),
            "startupProbe.periodSeconds: Invalid value",
        ),
        (
            probe("readinessProbe", own_grace),
            "readinessProbe.terminationGracePeriodSeconds: Invalid value",
        ),
        (
            http(json!({"host": "node.example"})),
            "livenessProbe.httpGet.host: Invalid value",
        ),
        (
            http(json!({"port": 0})),
            "livenessProbe.httpGet.port: Invalid value",
        ),
        (
            http(json!({"port": "UP"})),
            "livenessProbe.httpGet.port: Invalid value",
        ),
        (
            http(json!({"scheme": "FTP"})),
            "livenessProbe.httpGet.scheme: Unsupported value",
        ),
        (
            http(json!({"path": "/a b"})),
            "livenessProbe.httpGet.path: Invalid value",
        ),
        (
            http(json!({"httpHeaders": [{"name": "a b", "value": ""}]})),
            "livenessProbe.httpGet.httpHeaders[0].name: Invalid value",
        ),
        (
            http(json!({"httpHeaders": [{"name": "a", "value": "x\r\ny"}]})),
            "livenessProbe.httpGet.httpHeaders[0].value: Invalid value",
        ),
        (hook(json!({})), "lifecycle.preStop: Required value"),
        (
            hook(json!({"sleep": {"seconds": 31}})),
            "lifecycle.preStop.sleep.seconds: Invalid value",
        ),
        (
            container(json!({"terminationMessagePath": "last"})),
            "terminationMessagePath: Invalid value",
        ),
        (
            container(json!({"terminationMessagePath": "/proc/1/x"})),
            "terminationMessagePath: Invalid value",
        ),
        (
            container(json!({"terminationMessagePolicy": "Never"})),
            "terminationMessagePolicy: Unsupported value",
        ),
    ];
    for (body, expected) in cases {
        let found = problems("pods", body.clone());
        let expected = format!("spec.containers[0].{expected}");
        assert!(
            found.len() == 1 && found[0].starts_with(&expected),
            "{found:?} is not {expected}"
        );
    }
    for (extra, expected) in [
        (
            json!({"livenessProbe": sh}),
            "livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
        (
            json!({"lifecycle": {"preStop": sh}}),
            "lifecycle: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
        (
            json!({"restartPolicy": "Never"}),
            "restartPolicy: Unsupported value",
        ),
        (json!({"name": "c"}), ""),
        (json!({"image": ""}), "image: Required value"),
    ] {
        let found = problems("pods", init(extra));
        let expected = match expected {
            "" => "spec.containers[0].name: Duplicate value: \"c\"".to_owned(),
            expected => format!("spec.initContainers[0].{expected}"),
        };
        assert!(
            found.len() == 1 && found[0].starts_with(&expected),
            "{found:?} is not {expected}"
        );
    }
    let sidecar = json!({"restartPolicy": "Always", "livenessProbe": sh, "lifecycle": {"preStop": sh}});
    assert_eq!(problems("pods", init(sidecar)), Vec::<String>::new());
    for seconds in [json!(0), json!(-1), json!(1_i64 << 40)] {
        let found = problems("pods", pod(json!({"activeDeadlineSeconds": seconds})));
        assert!(
            found[0].starts_with("spec.activeDeadlineSeconds: Invalid value"),
            "{found:?}"
        );
    }
}

#[test]
fn names_and_volumes_of_every_kind_are_admitted_and_checked() {
    let volumes = json!([
        {"name": "d", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}}]}},
        {"name": "p", "projected": {"sources": [
            {"configMap": {"name": "m"}}, {"secret": {"name": "s", "optional": true}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}}]);
    let body = pod(json!({
        "volumes": volumes, "subdomain": "db", "readinessGates": [{"conditionType": "lab.example/ready"}],
        "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a.test"]}], "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["192.0.2.2"], "searches": ["lab.test"], "options": [{"name": "ndots", "value": "2"}]},
        "containers": [{"name": "c", "image": "i",
            "env": [{"name": "M", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                    {"name": "E", "valueFrom": {"resourceFieldRef": {"resource": "limits.ephemeral-storage", "divisor": "1Gi"}}},
                    {"name": "L", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Ei"}}}],
            "resources": {"requests": {"ephemeral-storage": "20Pi"}, "limits": {"ephemeral-storage": "30Pi"}},
            "volumeMounts": [{"name": "p", "mountPath": "/p", "subPath": "a/b"},
                             {"name": "p", "mountPath": "/q", "readOnly": true, "recursiveReadOnly": "Enabled"},
                             {"name": "d", "mountPath": "/d", "subPathExpr": "$(M)"}]}],
    }));
    assert_eq!(problems("pods", body), Vec::<String>::new());
    let volume = |source: Value| {
        let mut volume = json!({"name": "v"});
        volume
            .as_object_mut()
            .unwrap()
            .extend(source.as_object().unwrap().clone());
        pod(json!({"volumes": [volume], "containers": [{"name": "c", "image": "i"}]}))
    };
    let item = |item: Value| volume(json!({"downwardAPI": {"items": [item]}}));
    let mount = |mount: Value| {
        let mut all = json!({"name": "v", "mountPath": "/a"});
        all.as_object_mut()
            .unwrap()
            .extend(mount.as_object().unwrap().clone());
        pod(json!({"volumes": [{"name": "v", "emptyDir": {}}],
                   "containers": [{"name": "c", "image": "i", "volumeMounts": [all]}]}))
    };
    let resource = |reference: Value| {
        container(json!({"env": [{"name": "A", "valueFrom": {"resourceFieldRef": reference}}]}))
    };
    let cases = [
        (
            item(json!({"path": "../x", "fieldRef": {"fieldPath": "metadata.name"}})),
            "volumes[0].downwardAPI.items[0].path: Invalid value",
        ),
        (
            item(json!({"path": "x", "fieldRef": {"fieldPath": "status.podIP"}})),
            "volumes[0].downwardAPI.items[0].fieldRef.fieldPath: Unsupported value",
        ),
        (
            item(json!({"path": "x"})),
            "volumes[0].downwardAPI.items[0]: Invalid value",
        ),
        (
            item(json!({"path": "x", "resourceFieldRef": {"resource": "limits.cpu"}})),
            "volumes[0].downwardAPI.items[0].resourceFieldRef.containerName: Required value",
        ),
        (
            volume(json!({"projected": {"sources": [{"serviceAccountToken": {
                "path": "t", "expirationSeconds": 599}}]}})),
            "volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value",
        ),
        (
            volume(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "../t"}}]}})),
            "volumes[0].projected.sources[0].serviceAccountToken.path: Invalid value",
        ),
        (
            volume(json!({"projected": {"defaultMode": 292, "sources": [{}]}})),
            "volumes[0].projected.sources[0]: Required value",
        ),
        (
            volume(json!({"projected": {"sources": [
                {"configMap": {"name": "m", "items": [{"key": "k", "path": "same"}]}},
                {"secret": {"name": "s", "items": [{"key": "k", "path": "same"}]}}]}})),
            "volumes[0].projected.sources[1].secret.items[0].path: Duplicate value",
        ),
        (
            mount(json!({"subPath": "../x"})),
            "containers[0].volumeMounts[0].subPath: Invalid value",
        ),
        (
            mount(json!({"subPath": "/x"})),
            "containers[0].volumeMounts[0].subPath: Invalid value",
        ),
        (
            mount(json!({"recursiveReadOnly": "IfPossible"})),
            "containers[0].volumeMounts[0].recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
        ),
        (
            mount(json!({"recursiveReadOnly": "Always"})),
            "containers[0].volumeMounts[0].recursiveReadOnly: Unsupported value",
        ),
        (
            resource(json!({"resource": "requests.ephemeral-storage", "divisor": "1m"})),
            "containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value",
        ),
        (
            mount(json!({"subPath": "x", "subPathExpr": "y"})),
            "containers[0].volumeMounts[0].subPathExpr: Invalid value",
        ),
        (
            resource(json!({"resource": "limits.hugepages-2Mi"})),
            "containers[0].env[0].valueFrom.resourceFieldRef.resource: Unsupported value",
        ),
        (
            resource(json!({"resource": "limits.cpu", "divisor": "3"})),
            "containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value",
        ),
        (
            resource(json!({"resource": "limits.memory", "divisor": "abc"})),
            "containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value",
        ),
        (
            resource(json!({"resource": "requests.memory", "divisor": "-1"})),
            "containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value",
        ),
        (
            resource(json!({"resource": "limits.cpu", "containerName": "x"})),
            "containers[0].env[0].valueFrom.resourceFieldRef.containerName: Invalid value",
        ),
        (pod(json!({"subdomain": "A"})), "subdomain: Invalid value"),
        (
            pod(json!({"readinessGates": [{"conditionType": "a b"}]})),
            "readinessGates[0].conditionType: Invalid value",
        ),
        (
            pod(json!({"hostAliases": [{"ip": "x", "hostnames": ["a"]}]})),
            "hostAliases[0].ip: Invalid value",
        ),
        (
            pod(json!({"hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a\nb"]}]})),
            "hostAliases[0].hostnames[0]: Invalid value",
        ),
        (
            pod(json!({"dnsPolicy": "None"})),
            "dnsConfig.nameservers: Required value",
        ),
        (
            pod(json!({"dnsPolicy": "ClusterFirstWithHostNet"})),
            "dnsPolicy: Unsupported value",
        ),
        (
            pod(json!({"dnsConfig": {"nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]}})),
            "dnsConfig.nameservers: Invalid value",
        ),
        (
            pod(json!({"dnsConfig": {"searches": ["a b"]}})),
            "dnsConfig.searches[0]: Invalid value",
        ),
        (
            pod(json!({"dnsConfig": {"options": [{"name": "a\nnameserver"}]}})),
            "dnsConfig.options[0].name: Invalid value",
        ),
    ];
    for (body, expected) in cases {
        let found = problems("pods", body);
        let expected = format!("spec.{expected}");
        assert!(
            found.len() == 1 && found[0].starts_with(&expected),
            "{found:?} is not {expected}"
        );
    }
}

#[test]
fn annotations_cannot_ask_for_a_weaker_sandbox() {
    let annotated = |key: &str, value: &str| {
        let mut body = pod(json!({}));
        body["metadata"] = json!({"annotations": {key: value}});
        problems("pods", body)
    };
    for preset in ["audit", "baseline", "strict", "a-profile-of-the-namespace"] {
        assert!(
            annotated("palisade.dev/sandbox-profile", preset).is_empty(),
            "{preset}"
        );
    }
    assert!(annotated("palisade.dev/established", "keep").is_empty());
    assert!(annotated("palisade.dev/sandbox-profile.c", "strict").is_empty());
    for (key, value) in [
        ("palisade.dev/sandbox-profile", ""),
        ("palisade.dev/sandbox-profile.c", "A_B"),
        ("palisade.dev/sandbox-profile.other", "strict"),
        ("palisade.dev/sandbox-profile", "../baseline"),
        ("palisade.dev/established", "drop"),
        ("container.apparmor.security.beta.kubernetes.io/c", "unconfined"),
        ("seccomp.security.alpha.kubernetes.io/pod", "unconfined"),
    ] {
        assert_eq!(annotated(key, value).len(), 1, "{key}={value}");
    }
}

#[test]
fn the_profile_of_a_pod_that_exists_stays() {
    let (pods, one) = ("palisade.dev/sandbox-profile", "palisade.dev/sandbox-profile.c");
    let mut body = pod(json!({}));
    body["metadata"] = json!({"annotations": {pods: "strict", one: "mine"}});
    let old = stored("pods", body);
    let changed = |key: &str, value: Value| {
        let mut new = old.clone();
        new["metadata"]["annotations"][key] = value;
        refusals(&request("pods", Some(&old), new))
    };
    assert!(changed("note", json!("x")).is_empty());
    for (key, value) in [(pods, "baseline"), (one, "strict")] {
        let found = changed(key, json!(value));
        let expected = format!("metadata.annotations[{key}]: Forbidden: ");
        assert!(found.len() == 1 && found[0].starts_with(&expected), "{found:?}");
        let mut new = old.clone();
        new["metadata"]["annotations"]
            .as_object_mut()
            .unwrap()
            .remove(key);
        assert_eq!(refusals(&request("pods", Some(&old), new)), found, "taken away");
    }
    let plain = stored("pods", pod(json!({})));
    let mut new = plain.clone();
    new["metadata"]["annotations"][one] = json!("audit");
    assert_eq!(refusals(&request("pods", Some(&plain), new)).len(), 1, "added");
}

#[test]
fn seccomp_profiles_of_the_node_are_paths_below_their_directory() {
    let contexts = |profile: Value| {
        let context = json!({"seccompProfile": profile});
        [
            (problems("pods", pod(json!({"securityContext": context}))), "spec"),
            (
                problems("pods", container(json!({"securityContext": context}))),
                "spec.containers[0]",
            ),
        ]
    };
    for (found, _field) in contexts(json!({"type": "Localhost", "localhostProfile": "profiles/audit.json"})) {
        assert!(found.is_empty(), "{found:?}");
    }
    for (profile, words) in [
        (json!({"type": "Localhost"}), "Required value"),
        (
            json!({"type": "Localhost", "localhostProfile": "/a"}),
            "relative path",
        ),
        (
            json!({"type": "Localhost", "localhostProfile": "a/../../b"}),
            "relative path",
        ),
        (
            json!({"type": "RuntimeDefault", "localhostProfile": "a"}),
            "type is Localhost",
        ),
    ] {
        for (found, field) in contexts(profile.clone()) {
            let field = format!("{field}.securityContext.seccompProfile.localhostProfile: ");
            let named = found.len() == 1 && found[0].starts_with(&field) && found[0].contains(words);
            assert!(named, "{profile}: {found:?}");
        }
    }
}

#[test]
fn malformed_pods_name_each_problem() {
    let cases = [
        (pod(json!({"containers": []})), "spec.containers: Required value"),
        (
            container(json!({"name": ""})),
            "spec.containers[0].name: Required value",
        ),
        (
            container(json!({"name": "Upper"})),
            "spec.containers[0].name: Invalid value: \"Upper\"",
        ),
        (
            container(json!({"image": ""})),
            "spec.containers[0].image: Required value",
        ),
        (
            container(json!({"image": "UPPER/x"})),
            "spec.containers[0].image: Invalid value",
        ),
        (
            container(json!({"workingDir": "a"})),
            "spec.containers[0].workingDir: Invalid value",
        ),
        (
            container(json!({"env": [{"name": "A=B"}]})),
            "spec.containers[0].env[0].name: Invalid value",
        ),
        (
            container(json!({"env": [{"name": "A", "valueFrom": {}}]})),
            "spec.containers[0].env[0].valueFrom: Invalid value",
        ),
        (
            container(
                json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.secrets"}}}]}),
            ),
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value",
        ),
        (
            container(
                json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['<KEY>']"}}}]}),
            ),
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value",
        ),
        (
            container(json!({"envFrom": [{"prefix": "A"}]})),
            "spec.containers[0].envFrom[0]: Invalid value",
        ),
        (
            container(json!({"ports": [{"containerPort": 70000}]})),
            "spec.containers[0].ports[0].containerPort: Invalid value",
        ),
        (
            container(json!({"ports": [{"containerPort": 1, "name": "UP"}]})),
            "spec.containers[0].ports[0].name: Invalid value",
        ),
        (
            container(json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1001m"}}})),
            "spec.containers[0].resources.requests: Invalid value: \"1001m\": must be less than or equal to cpu limit of 1",
        ),
        (
            container(json!({"resources": {"limits": {"memory": "lots"}, "requests": {"memory": "1"}}})),
            "spec.containers[0].resources.limits.memory: Invalid value",
        ),
        (
            container(json!({"volumeMounts": [{"name": "nope", "mountPath": "/a"}]})),
            "spec.containers[0].volumeMounts[0].name: Invalid value",
        ),
        (
            container(json!({"securityContext": {"runAsUser": 70000}})),
            "spec.containers[0].securityContext.runAsUser: Invalid value",
        ),
        (
            container(json!({"securityContext": {"runAsUser": 0, "runAsNonRoot": true}})),
            "spec.containers[0].securityContext.runAsUser: Invalid value",
        ),
        (
            pod(json!({"securityContext": {"supplementalGroups": [-1]}})),
            "spec.securityContext.supplementalGroups[0]: Invalid value",
        ),
        (
            pod(json!({"volumes": [{"name": "v"}]})),
            "spec.volumes[0]: Required value",
        ),
        (
            pod(json!({"volumes": [{"name": "v", "emptyDir": {}, "secret": {"secretName": "s"}}]})),
            "spec.volumes[0]: Forbidden",
        ),
        (
            pod(json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]})),
            "spec.volumes[1].name: Duplicate value",
        ),
        (
            pod(
                json!({"volumes": [{"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": "../x"}]}}]}),
            ),
            "spec.volumes[0].configMap.items[0].path: Invalid value",
        ),
        (
            pod(json!({"volumes": [{"name": "v", "secret": {"secretName": "s", "defaultMode": 4095}}]})),
            "spec.volumes[0].secret.defaultMode: Invalid value",
        ),
        (
            pod(json!({"tolerations": [{"operator": "Equal"}]})),
            "spec.tolerations[0].operator: Invalid value",
        ),
        (
            pod(json!({"tolerations": [{"key": "k", "operator": "Near"}]})),
            "spec.tolerations[0].operator: Unsupported value",
        ),
        (
            pod(json!({"terminationGracePeriodSeconds": -1})),
            "spec.terminationGracePeriodSeconds: Invalid value",
        ),
        (pod(json!({"hostname": "a.b"})), "spec.hostname: Invalid value"),
        (pod(json!({"nodeName": "A"})), "spec.nodeName: Invalid value"),
        (
            pod(json!({"restartPolicy": "Sometimes"})),
            "spec.restartPolicy: Unsupported value",
        ),
        (json!({}), "spec: Required value"),
    ];
    for (body, expected) in cases {
        let found = problems("pods", body);
        assert_eq!(found.len(), 1, "{expected}: {found:?}");
        assert!(
            found[0].starts_with(expected),
            "expected {expected}, found {found:?}"
        );
    }
    for path in [
        "/",
        "//",
        "/proc",
        "/proc/",
        "/./proc/x",
        "/sys/fs",
        "/dev",
        "a",
        "/a/../b",
        "/a:b",
    ] {
        let body = json!({
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": path}]}],
        });
        let found = problems("pods", pod(body));
        assert!(
            !found.is_empty() && found[0].starts_with("spec.containers[0].volumeMounts[0].mountPath"),
            "{path}: {found:?}"
        );
    }
}

#[test]
fn a_deadline_only_comes_closer() {
    let change = |old: Value, new: Value| {
        let old = stored("pods", pod(json!({"activeDeadlineSeconds": old})));
        let mut changed = old.clone();
        changed["spec"]["activeDeadlineSeconds"] = new;
        refusals(&request("pods", Some(&old), changed))
    };
    assert!(change(Value::Null, json!(60)).is_empty());
    assert!(change(json!(60), json!(30)).is_empty());
    for (old, new) in [
        (json!(60), json!(61)),
        (json!(60), Value::Null),
        (Value::Null, json!(0)),
        (json!(60), json!(-1)),
    ] {
        let found = change(old, new);
        assert!(
            found.len() == 1 && found[0].starts_with("spec.activeDeadlineSeconds: Invalid"),
            "{found:?}"
        );
    }
}

#[test]
fn images_of_a_pod_change_and_nothing_else_of_its_containers() {
    let body = || {
        pod(json!({
            "initContainers": [{"name": "i", "image": "i:1"}],
            "containers": [{"name": "c", "image": "c:1"}],
        }))
    };
    let change = |old: &Value, edit: fn(&mut Value)| {
        let mut new = old.clone();
        edit(&mut new["spec"]);
        refusals(&request("pods", Some(old), new))
    };
    let old = stored("pods", body());
    let both = |spec: &mut Value| {
        spec["containers"][0]["image"] = json!("c:2");
        spec["initContainers"][0]["image"] = json!("i:2");
    };
    assert_eq!(change(&old, both), Vec::<String>::new());
    let beside = |spec: &mut Value| {
        spec["containers"][0]["image"] = json!("c:2");
        spec["containers"][0]["command"] = json!(["sh"]);
    };
    let renamed = |spec: &mut Value| {
        spec["containers"][0]["image"] = json!("c:2");
        spec["containers"][0]["name"] = json!("d");
    };
    let added = |spec: &mut Value| {
        let more = json!({"name": "d", "image": "d:1"});
        spec["containers"].as_array_mut().unwrap().push(more);
    };
    type Case = (fn(&mut Value), &'static str);
    let cases: [Case; 3] = [
        (
            beside,
            "spec.containers[0].command: Forbidden: pod updates may not change fields",
        ),
        (renamed, "spec.containers[0]"),
        (added, "spec.containers: Forbidden: "),
    ];
    for (edit, expected) in cases {
        let found = change(&old, edit);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
    }
    // What a static pod runs is its file's to say.
    let mut mirror = old.clone();
    mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("h");
    let found = change(&mirror, both);
    assert!(
        found.len() == 1 && found[0].contains("image: Forbidden: "),
        "{found:?}"
    );
}

#[test]
fn only_metadata_and_tolerations_of_a_pod_change() {
    let old = stored("pods", pod(json!({"tolerations": [{"operator": "Exists"}]})));
    let change = |edit: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        edit(&mut new);
        refusals(&request("pods", Some(&old), new))
    };
    assert!(change(&|_| {}).is_empty());
    assert!(change(&|new| new["metadata"]["labels"] = json!({"a": "b"})).is_empty());
    assert!(
        change(&|new| new["spec"]["tolerations"] =
            json!([{"operator": "Exists"}, {"key": "k", "operator": "Exists"}]))
        .is_empty()
    );
    let cases: [(Edit<'_>, &str); 6] = [
        (
            &|new| new["spec"]["tolerations"] = json!([]),
            "spec.tolerations: Forbidden",
        ),
        (
            &|new| new["spec"]["nodeName"] = json!("n"),
            "spec.nodeName: Forbidden",
        ),
        (
            &|new| new["spec"]["containers"][0]["imagePullPolicy"] = json!("Never"),
            "spec.containers[0].imagePullPolicy: Forbidden",
        ),
        (
            &|new| new["spec"]["containers"][0]["securityContext"] = json!({"privileged": true}),
            "spec.containers[0].securityContext: Forbidden",
        ),
        (
            &|new| new["spec"]["hostNetwork"] = json!(true),
            "spec.hostNetwork: Forbidden",
        ),
        (
            &|new| new["spec"]["containers"] = json!([]),
            "spec.containers: Forbidden",
        ),
    ];
    for (edit, expected) in cases {
        let found = change(edit);
        assert!(
            found.len() == 1 && found[0].starts_with(expected),
            "{expected}: {found:?}"
        );
    }
    let mut bound = old.clone();
    bound["spec"]["nodeName"] = json!("n");
    let binding = AdmissionRequest {
        subresource: "binding",
        ..request("pods", Some(&old), bound)
    };
    assert!(admit(&binding).is_ok(), "binding sets the node");
}

#[test]
fn replacing_a_pod_by_its_own_manifest_changes_nothing() {
    let body = json!({"spec": {"containers": [{"name": "c", "image": "busybox"}]}});
    let old = stored("pods", body.clone());
    let mut again = object("pods", body);
    again["metadata"]["annotations"] = old["metadata"]["annotations"].clone();
    again["spec"]["containers"][0]["image"] = old["spec"]["containers"][0]["image"].clone();
    again["status"] = old["status"].clone();
    let admitted = admit(&request("pods", Some(&old), again)).unwrap();
    assert_eq!(*admitted.object(), old);
}

#[test]
fn a_pod_without_the_gate_is_not_admitted() {
    let new = object("pods", pod(json!({})));
    assert!(review(&request("pods", None, new.clone())).is_ok());
    assert_eq!(admit(&request("pods", None, new)).unwrap_err().code(), 500);
    let pinned = stored("pods", pod(json!({})));
    assert!(admit(&request("pods", None, pinned)).is_ok());
}

#[test]
fn the_sandbox_report_is_the_agents() {
    let mut forged = object("pods", pod(json!({})));
    forged["metadata"]["annotations"] = json!({SANDBOX_STATUS: "seccomp=Enforced"});
    let created = complete(&request("pods", None, forged.clone())).unwrap();
    assert!(created["metadata"]["annotations"].get(SANDBOX_STATUS).is_none());
    let mut old = stored("pods", pod(json!({})));
    old["metadata"]["annotations"][SANDBOX_STATUS] = json!("seccomp=Missing");
    let mut new = old.clone();
    new["metadata"]["annotations"][SANDBOX_STATUS] = json!("seccomp=Enforced");
    let kept = complete(&request("pods", Some(&old), new.clone())).unwrap();
    assert_eq!(kept["metadata"]["annotations"][SANDBOX_STATUS], "seccomp=Missing");
    let status = AdmissionRequest {
        subresource: "status",
        ..request("pods", Some(&old), new)
    };
    let reported = complete(&status).unwrap();
    assert_eq!(
        reported["metadata"]["annotations"][SANDBOX_STATUS],
        "seccomp=Enforced"
    );
}

/// A stored pod, and the same with these ephemeral containers.
fn with_ephemeral(list: Value) -> (Value, Value) {
    let body = pod(json!({
        "containers": [{"name": "c", "image": "r.example/app:1"}],
        "initContainers": [{"name": "i", "image": "r.example/app:1"}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    }));
    let old = stored("pods", body);
    let mut new = old.clone();
    new["spec"]["ephemeralContainers"] = list;
    (old, new)
}

fn ephemeral_refusals(old: &Value, new: Value) -> Vec<String> {
    refusals(&AdmissionRequest {
        subresource: "ephemeralcontainers",
        ..request("pods", Some(old), new)
    })
}

#[test]
fn ephemeral_containers_are_added_through_their_subresource_only() {
    let full = json!([{
        "name": "d", "image": "busybox", "command": ["sh"], "args": ["-c", "true"], "stdin": true, "stdinOnce": true,
        "tty": true, "targetContainerName": "i", "workingDir": "/", "resources": {},
        "env": [{"name": "A", "value": "1"}], "envFrom": [{"configMapRef": {"name": "m"}}],
        "volumeMounts": [{"name": "v", "mountPath": "/data"}], "imagePullPolicy": "Always",
        "terminationMessagePolicy": "File",
        "securityContext": {"runAsUser": 1000, "capabilities": {"drop": ["ALL"]}}}]);
    let (old, new) = with_ephemeral(full);
    assert_eq!(ephemeral_refusals(&old, new.clone()), Vec::<String>::new());
    let unpinned = admit(&AdmissionRequest {
        subresource: "ephemeralcontainers",
        ..request("pods", Some(&old), new.clone())
    });
    assert_eq!(unpinned.unwrap_err().code(), 500, "past the image gate");
    for subresource in ["", "binding"] {
        let refused = refusals(&AdmissionRequest {
            subresource,
            ..request("pods", Some(&old), new.clone())
        });
        assert!(refused[0].contains("spec.ephemeralContainers"), "{refused:?}");
    }
    // And the subresource is for nothing else.
    let mut more = new.clone();
    more["spec"]["activeDeadlineSeconds"] = json!(5);
    let refused = ephemeral_refusals(&old, more);
    assert!(refused[0].contains("spec.activeDeadlineSeconds"), "{refused:?}");
}

#[test]
fn what_an_ephemeral_container_cannot_have_is_refused() {
    let cases = [
        (json!({"ports": [{"containerPort": 80}]}), "ports: "),
        (json!({"resources": {"limits": {"cpu": "1"}}}), "resources: "),
        (
            json!({"livenessProbe": {"exec": {"command": ["x"]}}}),
            "livenessProbe: ",
        ),
        (
            json!({"readinessProbe": {"exec": {"command": ["x"]}}}),
            "readinessProbe: ",
        ),
        (
            json!({"startupProbe": {"exec": {"command": ["x"]}}}),
            "startupProbe: ",
        ),
        (
            json!({"lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}),
            "lifecycle: ",
        ),
        (json!({"restartPolicy": "Always"}), "restartPolicy: "),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/x", "subPath": "y"}]}),
            "volumeMounts[0].subPath: ",
        ),
        (
            json!({"volumeMounts": [{"name": "w", "mountPath": "/x"}]}),
            "volumeMounts[0].name: ",
        ),
        (json!({"targetContainerName": "none"}), "targetContainerName: "),
        (json!({"targetContainerName": "d"}), "targetContainerName: "),
        (json!({"name": "c"}), "name: Duplicate value"),
        (json!({"name": ""}), "name: Required value"),
        (json!({"name": "A B"}), "name: "),
        (json!({"image": ""}), "image: Required value"),
        (
            json!({"securityContext": {"privileged": true}}),
            "securityContext.privileged: ",
        ),
        (
            json!({"securityContext": {"capabilities": {"add": ["SYS_PTRACE"]}}}),
            "securityContext.capabilities.add[0]: ",
        ),
        (
            json!({"securityContext": {"allowPrivilegeEscalation": true}}),
            "securityContext.allowPrivilegeEscalation: ",
        ),
    ];
    for (fields, expected) in cases {
        let mut container = json!({"name": "d", "image": "busybox"});
        let fields = fields.as_object().unwrap().clone();
        container.as_object_mut().unwrap().extend(fields);
        let (old, new) = with_ephemeral(json!([container]));
        let refused = ephemeral_refusals(&old, new);
        let expected = format!("spec.ephemeralContainers[0].{expected}");
        assert!(
            refused.iter().any(|why| why.starts_with(&expected)),
            "{expected}: {refused:?}"
        );
    }
}

#[test]
fn ephemeral_containers_stay_as_they_are() {
    let one = json!({"name": "d", "image": "busybox"});
    let (_, first) = with_ephemeral(json!([one]));
    let first = complete(&AdmissionRequest {
        subresource: "ephemeralcontainers",
        ..request("pods", Some(&with_ephemeral(json!([])).0), first)
    })
    .unwrap();
    let with = |edit: Edit<'_>| {
        let mut new = first.clone();
        edit(&mut new);
        ephemeral_refusals(&first, new)
    };
    let list = "ephemeralContainers";
    assert_eq!(with(&|_| {}), Vec::<String>::new());
    let more = with(&|pod| {
        let list = pod["spec"][list].as_array_mut().unwrap();
        list.insert(0, json!({"name": "e", "image": "busybox"}));
    });
    assert_eq!(more, Vec::<String>::new());
    let changed = with(&|pod| pod["spec"][list][0]["image"] = json!("evil"));
    assert!(changed[0].contains("may not be changed"), "{changed:?}");
    let removed = with(&|pod| pod["spec"][list] = json!([]));
    assert!(removed[0].contains("may not be removed"), "{removed:?}");
    let many: Vec<Value> = (0..33)
        .map(|n| json!({"name": format!("d{n}"), "image": "x"}))
        .collect();
    let (old, new) = with_ephemeral(json!(many));
    assert!(ephemeral_refusals(&old, new)[0].contains("at most 32"));
}

#[test]
fn ports_of_the_node_are_numbers_that_the_pod_asks_for_once() {
    let ports = |ports: Value| container(json!({"ports": ports}));
    let init = |init: Value| pod(json!({"initContainers": [init]}));
    let first = "spec.containers[0].ports[0]";
    let cases = [
        (
            ports(json!([{"containerPort": 1, "hostPort": 65536}])),
            format!("{first}.hostPort: Invalid"),
        ),
        (
            ports(json!([{"containerPort": 1, "hostPort": -1}])),
            format!("{first}.hostPort: Invalid"),
        ),
        (
            ports(json!([{"containerPort": 1, "hostPort": 1, "hostIP": "node"}])),
            format!("{first}.hostIP: Invalid"),
        ),
        (
            ports(json!([{"containerPort": 1, "hostPort": 1}, {"containerPort": 2, "hostPort": 1}])),
            "spec.containers[0].ports[1].hostPort: Duplicate".to_owned(),
        ),
        (
            ports(
                json!([{"containerPort": 1, "hostPort": 1, "hostIP": "192.0.2.1"}, {"containerPort": 2, "hostPort": 1}]),
            ),
            "spec.containers[0].ports[1].hostPort: Duplicate".to_owned(),
        ),
        (
            init(json!({"name": "i", "image": "x", "ports": [{"containerPort": 1, "hostPort": 1}]})),
            "spec.initContainers[0].ports[0].hostPort: Invalid".to_owned(),
        ),
    ];
    for (body, expected) in cases {
        let refused = refusals(&request("pods", None, object("pods", body)));
        assert!(
            refused.iter().any(|why| why.starts_with(&expected)),
            "{expected}: {refused:?}"
        );
    }
    let sidecar = init(json!({
        "name": "i", "image": "x", "restartPolicy": "Always", "ports": [{"containerPort": 1, "hostPort": 1}]}));
    assert_eq!(
        refusals(&request("pods", None, object("pods", sidecar))),
        Vec::<String>::new()
    );
}

#[test]
fn nodes_make_pods_for_their_files_only_and_nobody_else_does() {
    const HASH: &str = "kubernetes.io/config.mirror";
    let mirror = |spec: Value| {
        let mut body = pod(spec);
        body["metadata"] = json!({"annotations": {HASH: "h"}});
        body
    };
    let by = |user: &str, body: Value| {
        let mut request = request("pods", None, object("pods", body));
        request.user = user;
        refusals(&request)
    };
    let node = "system:node:n1";
    assert_eq!(by(node, mirror(json!({"nodeName": "n1"}))), Vec::<String>::new());
    let harmless = json!({"nodeName": "n1", "volumes": [
        {"name": "v", "emptyDir": {}}, {"name": "d", "downwardAPI": {"items": []}}]});
    assert_eq!(by(node, mirror(harmless)), Vec::<String>::new());
    assert!(by("jane", mirror(json!({})))[0].contains("made by their node"));
    assert!(by(node, pod(json!({"nodeName": "n1"})))[0].contains("for its files only"));
    let env = |source: Value| json!({"containers": [{"name": "c", "image": "x", "env": [{"name": "A", "valueFrom": source}]}]});
    for (spec, field) in [
        (json!({"nodeName": "n2"}), "spec.nodeName"),
        (json!({}), "spec.nodeName"),
        (json!({"serviceAccountName": "admin"}), "spec.serviceAccountName"),
        (
            json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
            "spec.volumes",
        ),
        (
            json!({"volumes": [{"name": "v", "configMap": {"name": "s"}}]}),
            "spec.volumes",
        ),
        (
            json!({"volumes": [{"name": "v", "projected": {"sources": []}}]}),
            "spec.volumes",
        ),
        (
            env(json!({"secretKeyRef": {"name": "s", "key": "k"}})),
            "spec.containers",
        ),
        (
            env(json!({"configMapKeyRef": {"name": "s", "key": "k"}})),
            "spec.containers",
        ),
        (
            json!({"initContainers": [{"name": "i", "image": "x", "envFrom": [{"secretRef": {"name": "s"}}]}]}),
            "spec.initContainers",
        ),
    ] {
        let mut spec = spec;
        if field != "spec.nodeName" {
            spec["nodeName"] = json!("n1");
        }
        let refused = by(node, mirror(spec));
        assert!(
            refused.iter().any(|why| why.starts_with(field)),
            "{field}: {refused:?}"
        );
    }
    let mut owned = mirror(json!({"nodeName": "n1"}));
    owned["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u"}]);
    assert!(by(node, owned)[0].starts_with("metadata.ownerReferences"));

    // Nobody makes a stored pod one, or stops it from being one.
    let plain = stored("pods", pod(json!({})));
    let mut marked = plain.clone();
    marked["metadata"]["annotations"][HASH] = json!("h");
    for (old, new) in [(&plain, &marked), (&marked, &plain)] {
        assert!(refusals(&request("pods", Some(old), new.clone()))[0].contains("immutable"));
    }
    let mut debugged = marked.clone();
    debugged["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "x"}]);
    assert!(ephemeral_refusals(&marked, debugged)[0].contains("static pods do not support"));
}
