//! Pods have an identity towards the API: a token that is theirs, and worth nothing once they are gone.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, free_port_of, kubectls, pod},
    shell::{Ran, eventually, run},
};
use serde_json::Value;
use testkit::{
    image::{Layer, Packing},
    lab::{self, LabOs},
};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "accounts_tokens_identify_pods_and_end_with_them",
        tokens_identify_pods_and_end_with_them,
    ),
    (
        "accounts_clients_in_pods_find_the_api_server",
        clients_in_pods_find_the_api_server,
    ),
];

const DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// kubectl with nothing but a token and the authority.
fn with_token(cluster: &Cluster, token: &str, arguments: &[&str]) -> Result<Ran> {
    let newest = kubectls()?.pop().context("there is no kubectl on the PATH")?;
    let server = format!("https://{}", cluster.listen);
    let authority = cluster.state_dir.join("agent/tls/ca.crt");
    let authority = authority.to_string_lossy();
    let cache = cluster.state_dir.with_file_name("kubectl-cache");
    let cache = cache.to_string_lossy();
    let mut all = vec![
        "--kubeconfig",
        "/dev/null",
        "--server",
        &server,
        "--cache-dir",
        &cache,
    ];
    all.extend(["--certificate-authority", &authority, "--token", token]);
    all.extend(["--tls-server-name", "apiserver.palisade.internal"]);
    all.extend(arguments);
    run(&newest.1, &all)
}

fn whoami(cluster: &Cluster, token: &str) -> Result<Value> {
    let ran = with_token(cluster, token, &["auth", "whoami", "-o", "json"])?.ok()?;
    let answer: Value = serde_json::from_str(&ran.stdout)?;
    Ok(answer["status"]["userInfo"].clone())
}

fn tokens_identify_pods_and_end_with_them(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "pods/clean", "1")?;
    let sleeps = &["sleep", "1000"];
    let with = pod(
        "default",
        "with-token",
        "app: x",
        &image,
        sleeps,
        "restartPolicy: Never",
    );
    let without = "automountServiceAccountToken: false";
    let without = pod("default", "without-token", "app: x", &image, sleeps, without);
    cluster.apply(&format!("{with}---\n{without}"))?.ok()?;
    cluster.wait_for_phase("default", "with-token", "Running")?;
    cluster.wait_for_phase("default", "without-token", "Running")?;
    let read = |file: &str| -> Result<String> {
        let path = format!("{DIRECTORY}/{file}");
        Ok(cluster
            .kubectl(&["exec", "with-token", "--", "cat", &path])?
            .ok()?
            .stdout)
    };
    ensure!(read("namespace")? == "default");
    let authority = std::fs::read_to_string(cluster.state_dir.join("agent/tls/ca.crt"))?;
    ensure!(
        read("ca.crt")? == authority,
        "pods verify the API server by another authority"
    );
    let token = read("token")?;
    let who = whoami(cluster, &token)?;
    ensure!(
        who["username"] == "system:serviceaccount:default:default",
        "{who}"
    );
    let extra = &who["extra"];
    ensure!(
        extra["authentication.kubernetes.io/pod-name"][0] == "with-token",
        "{who}"
    );
    with_token(cluster, &token, &["get", "secrets"])?
        .refused()?
        .says("system:serviceaccount:default:default")?;
    let asked = cluster.kubectl(&["exec", "without-token", "--", "ls", DIRECTORY])?;
    asked.refused()?.says("No such file")?;
    // It cannot be written by the pod that it identifies.
    let script = format!("echo x > {DIRECTORY}/token");
    cluster
        .kubectl(&["exec", "with-token", "--", "sh", "-c", &script])?
        .refused()?;

    let made = cluster
        .kubectl(&["create", "token", "default", "--duration", "10m"])?
        .ok()?;
    let made = made.stdout.trim();
    ensure!(whoami(cluster, made)?["username"] == "system:serviceaccount:default:default");
    let bound = [
        "create",
        "token",
        "default",
        "--bound-object-kind",
        "Pod",
        "--bound-object-name",
        "with-token",
    ];
    let bound = cluster.kubectl(&bound)?.ok()?.stdout.trim().to_owned();
    whoami(cluster, &bound)?;

    let names = ["with-token", "without-token"];
    cluster
        .kubectl(&[&["delete", "pod"][..], &names[..]].concat())?
        .ok()?;
    eventually(Duration::from_secs(10), || {
        for ended in [&token, &bound] {
            let ran = with_token(cluster, ended, &["auth", "whoami"])?;
            if ran.code == 0 {
                bail!("the token outlives its pod: {ran}");
            }
            let said = ran.refused()?.to_string();
            ensure!(
                said.contains("logged in") || said.contains("nauthorized"),
                "{said}"
            );
        }
        Ok(())
    })?;
    whoami(cluster, made)?;
    Ok(())
}

/// A real client with nothing but what a pod finds: kubectl, which asks as a program of client-go in the cluster would.
fn clients_in_pods_find_the_api_server(cluster: &Cluster) -> Result<()> {
    let kubectl = kubectls()?.pop().context("there is no kubectl on the PATH")?.1;
    let layer = Layer::new(Packing::Tar).file("bin/kubectl", 0o755, &std::fs::read(kubectl)?);
    let image = lab::busybox(LabOs::Wolfi, scanner_labdb::FIXED_VERSION)?
        .layer(layer)
        .build();
    let image = cluster.push(&image, "accounts/kubectl", "1")?;
    let script = "env | grep ^KUBERNETES | sort; kubectl auth whoami -o jsonpath={.status.userInfo.username}; echo; \
                  kubectl get pods 2>&1; kubectl version -o json | grep -c serverVersion";
    let ask = |name: &str| cluster.run_pod("default", name, &image, &["sh", "-c", script]);

    // What listens on the node's loopback is in another network than the pod.
    let environment = cluster.run_pod("default", "outside", &image, &["env"])?;
    ensure!(!environment.contains("KUBERNETES"), "{environment}");
    cluster.kubectl(&["delete", "pod", "outside"])?.ok()?;

    let address = address_of_the_machine()?;
    let port = free_port_of(&address)?;
    cluster.up_on(&format!("{address}:{port}"))?;
    let said = ask("inside").and_then(|said| {
        cluster.kubectl(&["delete", "pod", "inside"])?.ok()?;
        Ok(said)
    });
    // The others find the cluster where it was.
    cluster.up_again()?;
    let said = said?;
    let expected = format!(
        "KUBERNETES_SERVICE_HOST={address}\nKUBERNETES_SERVICE_PORT={port}\nKUBERNETES_SERVICE_PORT_HTTPS={port}\n\
         system:serviceaccount:default:default\n"
    );
    let rest = said.strip_prefix(&expected);
    let rest = rest.with_context(|| format!("{said:?} does not begin with {expected:?}"))?;
    // Believed and known; what the account may do is another matter.
    ensure!(
        rest.contains("Forbidden") && rest.contains("system:serviceaccount:default:default"),
        "{rest}"
    );
    ensure!(rest.ends_with("\n1\n"), "{rest}");
    Ok(())
}

/// By which others reach this machine. Nothing is sent.
fn address_of_the_machine() -> Result<String> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket
        .connect("198.51.100.1:9")
        .context("this machine has no route")?;
    Ok(socket.local_addr()?.ip().to_string())
}
