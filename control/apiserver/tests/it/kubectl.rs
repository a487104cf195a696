//! What people do with kubectl, with every version that is installed.

use std::{
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::harness::Cluster;

const TIMEOUT: Duration = Duration::from_secs(60);

/// kubectl with its own cache.
struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: tempfile::TempDir,
}

impl Kubectl {
    async fn run(&self, args: &[&str], stdin: &str) -> Output {
        let mut child = Command::new(&self.program)
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .env("KUBECONFIG", &self.kubeconfig)
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(stdin.as_bytes()).await.unwrap();
        drop(input);
        tokio::time::timeout(TIMEOUT, child.wait_with_output())
            .await
            .expect("kubectl hangs")
            .unwrap()
    }

    /// Runs a command that must succeed and returns its output.
    async fn ok(&self, args: &[&str]) -> String {
        self.ok_with(args, "").await
    }

    async fn ok_with(&self, args: &[&str], stdin: &str) -> String {
        let output = self.run(args, stdin).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{} {args:?}: {}\n{}",
            self.program.display(),
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Runs a command that must fail and returns what it said.
    async fn fails(&self, args: &[&str], stdin: &str) -> String {
        let output = self.run(args, stdin).await;
        assert!(
            !output.status.success(),
            "{args:?} succeeded: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

/// `kubectl` and its siblings `kubectl.1.NN`, oldest first.
fn installed() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(main) = std::env::split_paths(&path)
        .map(|dir| dir.join("kubectl"))
        .find(|file| file.is_file())
    else {
        return Vec::new();
    };
    let real = main.canonicalize().unwrap();
    let mut found: Vec<PathBuf> = std::fs::read_dir(real.parent().unwrap())
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| {
            file.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("kubectl.1."))
        })
        .collect();
    found.sort();
    if found.is_empty() { vec![real] } else { found }
}

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  containers:
  - name: c
    image: registry.example/app:1
"#;

const CONFIG_MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cm}\ndata: {a: '1'}\n";

const POLICIES: &str = r#"
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: ops}
spec: {order: 40, defaultAction: Pass}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: ops.fence}
spec:
  tier: ops
  order: 50
  selector: has(app)
  types: [Ingress]
  ingress:
  - {action: Pass, protocol: TCP, source: {selector: "office == 'yes'"}, destination: {ports: [80, "8000:8010"]}}
  - {action: Deny, source: {nets: [10.0.0.0/8], notNets: [10.9.0.0/16]}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: office, labels: {office: "yes"}}
spec: {nets: [192.0.2.0/24]}
---
apiVersion: projectcalico.org/v3
kind: NetworkSet
metadata: {name: printers, namespace: default}
spec: {nets: [198.51.100.7]}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec: {selector: app == 'web', ingress: [{action: Allow}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec: {podSelector: {}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: isolate}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {}}
  ingress: [{name: none, action: Deny, from: [{namespaces: {matchLabels: {team: a}}}]}]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_version_can_do_the_daily_work() {
    let versions = installed();
    if versions.is_empty() {
        println!("SKIPPED: no kubectl on the PATH");
        return;
    }
    for program in versions {
        let cluster = Cluster::start().await;
        let kubectl = Kubectl {
            program,
            kubeconfig: cluster.kubeconfig(),
            home: tempfile::tempdir().unwrap(),
        };
        println!("{}", kubectl.program.display());
        daily_work(&kubectl).await;
        policies(&kubectl).await;
        assertions(&kubectl).await;
        services(&kubectl).await;
        sandboxes(&kubectl).await;
        pods(&kubectl, &cluster).await;
    }
}

async fn daily_work(kubectl: &Kubectl) {
    let version = kubectl.ok(&["version", "-o", "json"]).await;
    assert!(version.contains("palisade"), "{version}");
    let resources = kubectl.ok(&["api-resources"]).await;
    assert!(
        resources.contains("imagepolicies") && resources.contains("netpol"),
        "{resources}"
    );
    assert!(kubectl.ok(&["get", "namespaces"]).await.contains("kube-system"));

    // Apply three times: created, changed, unchanged.
    assert!(
        kubectl
            .ok_with(&["apply", "-f", "-"], CONFIG_MAP)
            .await
            .contains("configmap/cm created")
    );
    let changed = CONFIG_MAP.replace("'1'", "'2'");
    assert!(
        kubectl
            .ok_with(&["apply", "-f", "-"], &changed)
            .await
            .contains("configmap/cm configured")
    );
    assert!(
        kubectl
            .ok_with(&["apply", "-f", "-"], &changed)
            .await
            .contains("configmap/cm unchanged")
    );
    assert_eq!(
        kubectl.ok(&["get", "cm", "cm", "-o", "jsonpath={.data.a}"]).await,
        "2"
    );
    let yaml = kubectl.ok(&["get", "cm", "cm", "-o", "yaml"]).await;
    assert!(
        yaml.contains("kind: ConfigMap") && yaml.contains("uid:"),
        "{yaml}"
    );

    let typo = CONFIG_MAP.replace("data:", "dataa:").replace("cm}", "cm2}");
    let refusal = kubectl.fails(&["create", "-f", "-"], &typo).await;
    assert!(refusal.contains("unknown field \"dataa\""), "{refusal}");

    // Generators speak protobuf from 1.32 on.
    kubectl
        .ok(&["create", "configmap", "lit", "--from-literal=k=v"])
        .await;
    kubectl
        .ok(&[
            "create",
            "secret",
            "generic",
            "s",
            "--from-literal=password=hunter2",
        ])
        .await;
    kubectl.ok(&["create", "namespace", "team"]).await;
    kubectl
        .ok(&["create", "serviceaccount", "robot", "-n", "team"])
        .await;
    assert_eq!(
        kubectl
            .ok(&["get", "secret", "s", "-o", "jsonpath={.data.password}"])
            .await,
        "aHVudGVyMg=="
    );
    let again = kubectl.fails(&["create", "configmap", "lit"], "").await;
    assert!(again.contains("already exists"), "{again}");
    let again = kubectl
        .fails(&["create", "configmap", "lit", "--dry-run=server"], "")
        .await;
    assert!(again.contains("already exists"), "{again}");
    let missing = kubectl.fails(&["get", "cm", "nosuch"], "").await;
    assert!(
        missing.contains("Error from server (NotFound): configmaps \"nosuch\" not found"),
        "{missing}"
    );

    kubectl.ok(&["label", "cm", "cm", "x=y"]).await;
    assert!(
        kubectl
            .ok(&["get", "cm", "-A", "-l", "x=y", "-o", "name"])
            .await
            .contains("configmap/cm")
    );
    kubectl.ok(&["annotate", "cm", "cm", "note=hello"]).await;
    for (kind, patch) in [
        ("strategic", r#"{"data":{"s":"1"}}"#),
        ("merge", r#"{"data":{"m":"1"}}"#),
        ("json", r#"[{"op":"add","path":"/data/j","value":"1"}]"#),
    ] {
        kubectl
            .ok(&["patch", "cm", "cm", "--type", kind, "-p", patch])
            .await;
    }
    assert_eq!(
        kubectl
            .ok(&["get", "cm", "cm", "-o", "jsonpath={.data.s}{.data.m}{.data.j}"])
            .await,
        "111"
    );

    let who = kubectl.ok(&["auth", "whoami"]).await;
    assert!(
        who.contains("palisade-admin") && who.contains("system:masters"),
        "{who}"
    );
    assert!(
        kubectl
            .ok(&["auth", "can-i", "create", "pods"])
            .await
            .contains("yes")
    );

    let dry = kubectl
        .ok_with(
            &["apply", "--dry-run=server", "-f", "-"],
            &CONFIG_MAP.replace("cm}", "dry}"),
        )
        .await;
    assert!(dry.contains("created (server dry run)"), "{dry}");
    kubectl.fails(&["get", "cm", "dry"], "").await;

    assert!(
        kubectl
            .ok(&["delete", "cm", "cm", "--timeout=20s"])
            .await
            .contains("\"cm\" deleted")
    );
    let apply = kubectl
        .fails(&["apply", "--server-side", "-f", "-"], CONFIG_MAP)
        .await;
    assert!(apply.contains("server-side apply is not supported"), "{apply}");
}

/// Kinds that kubectl itself knows nothing about.
async fn policies(kubectl: &Kubectl) {
    let applied = kubectl.ok_with(&["apply", "-f", "-"], POLICIES).await;
    for line in [
        "tier.projectcalico.org/ops created",
        "globalnetworkpolicy.projectcalico.org/ops.fence created",
        "globalnetworkset.projectcalico.org/office created",
        "networkset.projectcalico.org/printers created",
        "networkpolicy.projectcalico.org/web created",
        "networkpolicy.networking.k8s.io/web created",
        "clusternetworkpolicy.policy.networking.k8s.io/isolate created",
    ] {
        assert!(applied.contains(line), "{line} not in {applied}");
    }
    let again = kubectl.ok_with(&["apply", "-f", "-"], POLICIES).await;
    assert_eq!(
        again.lines().filter(|line| line.ends_with("unchanged")).count(),
        7,
        "{again}"
    );
    let changed = POLICIES.replace("order: 50", "order: 51.5");
    let changed = kubectl.ok_with(&["apply", "-f", "-"], &changed).await;
    assert_eq!(
        changed
            .lines()
            .filter(|line| line.ends_with("configured"))
            .count(),
        1,
        "{changed}"
    );
    let diff = kubectl
        .ok_with(&["apply", "--dry-run=server", "-f", "-"], POLICIES)
        .await;
    assert!(diff.contains("(server dry run)"), "{diff}");

    // The bare name is Kubernetes' own kind, the qualified one says which.
    let columns = async |resource: &str, columns: &[&str]| {
        let table = kubectl.ok(&["get", resource]).await;
        let head = table.lines().next().unwrap_or_default();
        let found: Vec<&str> = head.split_whitespace().collect();
        assert_eq!(found, columns, "{table}");
        table
    };
    columns("networkpolicies", &["NAME", "POD-SELECTOR", "AGE"]).await;
    columns("netpol", &["NAME", "POD-SELECTOR", "AGE"]).await;
    columns(
        "networkpolicies.projectcalico.org",
        &["NAME", "TIER", "ORDER", "AGE"],
    )
    .await;
    columns("caliconetworkpolicies", &["NAME", "TIER", "ORDER", "AGE"]).await;
    let table = columns("gnp", &["NAME", "TIER", "ORDER", "AGE"]).await;
    assert!(table.contains("ops.fence") && table.contains("51.5"), "{table}");
    let table = columns("tiers", &["NAME", "ORDER", "DEFAULT-ACTION", "AGE"]).await;
    assert!(table.contains("kube-admin") && table.contains("Pass"), "{table}");
    let table = columns("clusternetworkpolicies", &["NAME", "TIER", "PRIORITY", "AGE"]).await;
    assert!(table.contains("isolate") && table.contains("Admin"), "{table}");
    columns("globalnetworksets", &["NAME", "NETS", "DOMAINS", "AGE"]).await;
    assert!(kubectl.ok(&["get", "profiles"]).await.contains("kns.default"));
    let in_tier = ["get", "gnp", "-l", "projectcalico.org/tier=ops", "-o", "name"];
    assert_eq!(
        kubectl.ok(&in_tier).await,
        "globalnetworkpolicy.projectcalico.org/ops.fence\n"
    );

    let described = kubectl.ok(&["describe", "gnp", "ops.fence"]).await;
    assert!(
        described.contains("Not Nets") && described.contains("10.9.0.0/16"),
        "{described}"
    );
    let yaml = kubectl.ok(&["get", "tier", "ops", "-o", "yaml"]).await;
    assert!(yaml.contains("order: 40\n"), "{yaml}");

    let misspelt = POLICIES.replace("notNets", "notNest");
    let refusal = kubectl.fails(&["apply", "-f", "-"], &misspelt).await;
    assert!(
        refusal.contains("unknown field \"spec.ingress[1].source.notNest\""),
        "{refusal}"
    );
    let wrong = POLICIES.replace("has(app)", "has(app");
    let refusal = kubectl.fails(&["apply", "-f", "-"], &wrong).await;
    assert!(
        refusal.contains("spec.selector: Invalid value: \"has(app\""),
        "{refusal}"
    );
    let used = kubectl.fails(&["delete", "tier", "ops"], "").await;
    assert!(used.contains("GlobalNetworkPolicy ops.fence is in it"), "{used}");
    let derived = kubectl.fails(&["delete", "profile", "kns.default"], "").await;
    assert!(
        derived.contains("computed from namespaces and service accounts"),
        "{derived}"
    );

    kubectl
        .ok(&[
            "patch",
            "gnp",
            "ops.fence",
            "--type=merge",
            "-p",
            r#"{"spec":{"order":7}}"#,
        ])
        .await;
    let order = ["get", "gnp", "ops.fence", "-o", "jsonpath={.spec.order}"];
    assert_eq!(kubectl.ok(&order).await, "7");
    kubectl
        .ok_with(&["delete", "-f", "-", "--timeout=20s"], &in_reverse(POLICIES))
        .await;
    assert!(!kubectl.ok(&["get", "tiers"]).await.contains("ops"));
}

/// Services as people make them.
async fn services(kubectl: &Kubectl) {
    let made = kubectl
        .run(&["create", "service", "clusterip", "shop", "--tcp=80:8080"], "")
        .await;
    let warning = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(
        made.status.success() && warning.contains("Warning: traffic to the cluster address 10.99.0."),
        "{warning}"
    );
    kubectl
        .ok(&["create", "service", "clusterip", "quiet", "--clusterip=None"])
        .await;
    kubectl
        .ok(&[
            "create",
            "service",
            "externalname",
            "db",
            "--external-name=db.example",
            "--tcp=5432",
        ])
        .await;
    let refused = kubectl
        .fails(&["create", "service", "nodeport", "open", "--tcp=80"], "")
        .await;
    assert!(
        refused.contains("NodePort needs nodes that pass traffic on to services"),
        "{refused}"
    );

    kubectl.ok_with(&["apply", "-f", "-"], POD).await;
    kubectl
        .ok(&["expose", "pod", "web", "--port=80", "--target-port=http"])
        .await;
    let table = kubectl.ok(&["get", "svc", "-o", "wide"]).await;
    let row = |name: &str| {
        let line = table
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        row("NAME"),
        [
            "NAME",
            "TYPE",
            "CLUSTER-IP",
            "EXTERNAL-IP",
            "PORT(S)",
            "AGE",
            "SELECTOR"
        ]
    );
    let shop = row("shop");
    assert_eq!(
        (&*shop[1], &*shop[4], &*shop[6]),
        ("ClusterIP", "80/TCP", "app=shop"),
        "{table}"
    );
    assert!(shop[2].starts_with("10.99.0."), "{table}");
    assert_eq!(row("quiet")[2], "None");
    assert_eq!(
        row("db")[1..5],
        ["ExternalName", "<none>", "db.example", "5432/TCP"]
    );
    assert_eq!(row("web")[6], "app=web");
    let described = kubectl.ok(&["describe", "service", "web"]).await;
    for part in ["Selector:", "app=web", "10.99.0.", "TargetPort:", "http/TCP"] {
        assert!(described.contains(part), "{part}: {described}");
    }

    // A manifest without the address keeps it, whatever else it changes.
    let manifest = "apiVersion: v1\nkind: Service\nmetadata: {name: web2}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n";
    kubectl.ok_with(&["apply", "-f", "-"], manifest).await;
    let address = ["get", "svc", "web2", "-o", "jsonpath={.spec.clusterIP}"];
    let before = kubectl.ok(&address).await;
    let changed = manifest.replace("port: 80", "port: 81");
    assert!(
        kubectl
            .ok_with(&["apply", "-f", "-"], &changed)
            .await
            .contains("configured")
    );
    assert!(
        kubectl
            .ok_with(&["apply", "-f", "-"], &changed)
            .await
            .contains("unchanged")
    );
    assert_eq!(kubectl.ok(&address).await, before);
    assert_eq!(
        kubectl
            .ok(&["get", "svc", "web2", "-o", "jsonpath={.spec.ports[*].port}"])
            .await,
        "81"
    );
    kubectl.ok_with(&["replace", "-f", "-"], manifest).await;
    assert_eq!(kubectl.ok(&address).await, before);
    kubectl.ok(&["delete", "svc", "--all"]).await;
    kubectl.ok(&["delete", "pod", "web"]).await;

    // What is computed can be watched.
    let watched = kubectl
        .ok(&["get", "profiles", "-w", "--request-timeout=2s"])
        .await;
    assert!(watched.contains("kns.default"), "{watched}");
}

const ASSERTION: &str = r#"
apiVersion: palisade.dev/v1alpha1
kind: PolicyAssertion
metadata: {name: vault-is-closed}
spec: {assertion: no ns(shop) reaches pod(pci/vault)}
"#;

const VAULT: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: pci}
spec: {podSelector: {}}
"#;

/// Assertions, and what they do to policies.
async fn assertions(kubectl: &Kubectl) {
    for namespace in ["pci", "shop"] {
        kubectl.ok(&["create", "namespace", namespace]).await;
    }
    let vault = POD.replace("name: web", "name: vault\n  namespace: pci");
    let shop = POD.replace("name: web", "name: web\n  namespace: shop");
    kubectl.ok_with(&["apply", "-f", "-"], &vault).await;
    kubectl.ok_with(&["apply", "-f", "-"], &shop).await;

    let open = kubectl.fails(&["apply", "-f", "-"], ASSERTION).await;
    for part in [
        "Error from server (Forbidden)",
        "policyassertions.palisade.dev \"vault-is-closed\" is forbidden: it does not hold",
        "shop/web (198.18.0.1) to pci/vault (198.18.0.0)",
        "passes, egress allowed by no-policy, ingress allowed by no-policy",
    ] {
        assert!(open.contains(part), "{part:?} is not in {open}");
    }
    let typo = ASSERTION.replace("reaches", "reeches");
    let refused = kubectl.fails(&["apply", "-f", "-"], &typo).await;
    assert!(
        refused.contains("spec.assertion: Invalid value")
            && refused.contains("column 13: expected `reaches`"),
        "{refused}"
    );
    kubectl.ok_with(&["apply", "-f", "-"], VAULT).await;
    kubectl.ok_with(&["apply", "-f", "-"], ASSERTION).await;
    let table = kubectl.ok(&["get", "assertions"]).await;
    let words: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(
        words[..11],
        [
            "NAME",
            "ENFORCEMENT",
            "ASSERTION",
            "AGE",
            "vault-is-closed",
            "block",
            "no",
            "ns(shop)",
            "reaches",
            "pod(pci/vault)",
            "0s"
        ]
        .map(|word| if word == "0s" { words[10] } else { word }),
        "{table}"
    );
    let explained = kubectl.ok(&["explain", "policyassertion.spec.assertion"]).await;
    assert!(explained.contains("isolated X"), "{explained}");

    let refused = kubectl.fails(&["delete", "-f", "-"], VAULT).await;
    for part in [
        "networkpolicies.networking.k8s.io \"closed\" is forbidden",
        "it would break PolicyAssertion \"vault-is-closed\" (no ns(shop) reaches pod(pci/vault))",
        "shop/web (198.18.0.1) to pci/vault (198.18.0.0), ",
        " would pass, egress allowed by no-policy",
    ] {
        assert!(refused.contains(part), "{part:?} is not in {refused}");
    }
    kubectl
        .ok(&[
            "annotate",
            "assertion",
            "vault-is-closed",
            "palisade.dev/enforcement=warn",
        ])
        .await;
    let warned = kubectl
        .run(&["delete", "netpol", "closed", "-n", "pci"], "")
        .await;
    let warning = String::from_utf8_lossy(&warned.stderr).into_owned();
    assert!(
        warned.status.success()
            && warning.contains("Warning: PolicyAssertion vault-is-closed holds no longer"),
        "{warning}"
    );
    kubectl.ok(&["delete", "assertion", "vault-is-closed"]).await;
    for (namespace, pod) in [("pci", "vault"), ("shop", "web")] {
        kubectl.ok(&["delete", "pod", pod, "-n", namespace]).await;
    }
}

/// Documents, last one first: a tier goes after its policies.
fn in_reverse(documents: &str) -> String {
    let mut documents: Vec<&str> = documents.split("---\n").collect();
    documents.reverse();
    documents.join("\n---\n")
}

async fn pods(kubectl: &Kubectl, cluster: &Cluster) {
    let bad = POD
        .replace("registry.example/app:1", "registry.example/vulnerable:1")
        .replace("web", "bad");
    let refusal = kubectl.fails(&["apply", "-f", "-"], &bad).await;
    for part in ["Forbidden", "CVE-2026-0001", "openssl", "3.0.2"] {
        assert!(refusal.contains(part), "{refusal}");
    }
    assert!(kubectl.ok(&["get", "imagescans"]).await.contains("Refused"));

    kubectl.ok_with(&["apply", "-f", "-"], POD).await;
    let image = kubectl
        .ok(&["get", "pod", "web", "-o", "jsonpath={.spec.containers[0].image}"])
        .await;
    assert!(image.starts_with("registry.example/app@sha256:"), "{image}");
    // The same manifest again does not take the pin away.
    kubectl.ok_with(&["apply", "-f", "-"], POD).await;
    assert_eq!(
        kubectl
            .ok(&["get", "pod", "web", "-o", "jsonpath={.spec.containers[0].image}"])
            .await,
        image
    );
    let wide = kubectl.ok(&["get", "pods", "-o", "wide"]).await;
    assert!(
        wide.contains("web") && wide.contains("Pending") && wide.contains("NODE"),
        "{wide}"
    );
    let description = kubectl.ok(&["describe", "pod", "web"]).await;
    assert!(
        description.contains("palisade.dev/requested-image.c: registry.example/app:1"),
        "{description}"
    );
    assert_eq!(
        kubectl.ok(&["logs", "web"]).await,
        "",
        "a pod on no node has no log yet"
    );

    // A running pod goes gracefully: kubectl waits until the agent has ended it.
    let admin = cluster.admin();
    let binding = serde_json::json!({"target": {"kind": "Node", "name": "node-a"}});
    let (code, _) = admin
        .post("/api/v1/namespaces/default/pods/web/binding", &binding)
        .await;
    assert_eq!(code, 201);
    let delete = kubectl.ok(&["delete", "pod", "web", "--timeout=30s"]);
    let agent = async {
        let (_, watched) = crate::http_api::wait_for(&admin, "/api/v1/namespaces/default/pods", |object| {
            object.pointer("/metadata/deletionTimestamp").is_some()
        })
        .await;
        assert_eq!(watched["metadata"]["deletionGracePeriodSeconds"], 30);
        let now = serde_json::json!({"gracePeriodSeconds": 0});
        admin
            .delete("/api/v1/namespaces/default/pods/web", Some(&now))
            .await
    };
    let (deleted, (code, _)) = tokio::join!(delete, agent);
    assert!(deleted.contains("\"web\" deleted"), "{deleted}");
    assert_eq!(code, 200);
}

/// A seccomp profile with what Docker's and Podman's files have beside the specification.
const SANDBOX: &str = r#"
apiVersion: palisade.dev/v1alpha1
kind: SandboxProfile
metadata: {name: web, namespace: default}
spec:
  preset: strict
  tcp: {bind: [8080]}
  minimumLandlockABI: 6
  seccomp:
    defaultAction: SCMP_ACT_ERRNO
    defaultErrnoRet: 1
    archMap: [{architecture: SCMP_ARCH_X86_64, subArchitectures: [SCMP_ARCH_X86]}]
    syscalls:
    - {names: [read, write], action: SCMP_ACT_ALLOW, includes: {}, comment: ""}
    - {names: [clone], action: SCMP_ACT_ALLOW, args: [{index: 0, value: 2114060288, valueTwo: 0, op: SCMP_CMP_MASKED_EQ}], excludes: {caps: [CAP_SYS_ADMIN]}}
"#;

async fn sandboxes(kubectl: &Kubectl) {
    let applied = kubectl.ok_with(&["apply", "-f", "-"], SANDBOX).await;
    assert!(
        applied.contains("sandboxprofile.palisade.dev/web created"),
        "{applied}"
    );
    let applied = kubectl.ok_with(&["apply", "-f", "-"], SANDBOX).await;
    assert!(applied.contains("unchanged"), "{applied}");
    let table = kubectl.ok(&["get", "sandbox"]).await;
    let row = table.lines().nth(1).unwrap_or_default();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[..3], ["web", "strict", "2"], "{table}");
    let mask = "jsonpath={.spec.seccomp.syscalls[1].args[0].value}";
    assert_eq!(
        kubectl.ok(&["get", "sandbox", "web", "-o", mask]).await,
        "2114060288"
    );
    for (from, to, says) in [
        (
            "valueTwo",
            "valueTow",
            "unknown field \"spec.seccomp.syscalls[1].args[0].valueTow\"",
        ),
        (
            "defaultAction: SCMP_ACT_ERRNO",
            "defaultAction: SCMP_ACT_NOTIFY",
            "spec.seccomp.defaultAction",
        ),
        ("name: web", "name: strict", "metadata.name"),
        ("preset: strict", "preset: privileged", "privileged"),
    ] {
        let refusal = kubectl
            .fails(&["apply", "-f", "-"], &SANDBOX.replace(from, to))
            .await;
        assert!(refusal.contains(says), "{says:?} is not in {refusal}");
    }
    kubectl.ok(&["delete", "sandbox", "web"]).await;
}
