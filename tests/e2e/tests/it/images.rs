//! Where images come from, who may have them, and by whose word they run.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, pod},
    shell::eventually,
};
use serde_json::{Value, json};
use testkit::{
    image::{Layer, Packing},
    lab::{self, LabOs},
    registry::{PASSWORD, Registry, USER},
    slow::SlowLine,
};

use crate::{Test, recovery::kill};

pub(crate) const TESTS: &[Test] = &[
    ("images_of_a_private_registry_take_its_secret", take_a_secret),
    ("images_follow_their_pull_policy", follow_their_pull_policy),
    ("images_in_dockers_formats_run", run_in_dockers_formats),
    (
        "images_without_the_gates_signature_do_not_run",
        need_the_gates_signature,
    ),
    (
        "images_of_deleted_pods_keep_no_turns_of_the_node",
        deleted_pods_keep_no_turns,
    ),
    // Last: it leaves its mark in the agent's configuration, and the next `up` starts another agent.
    ("images_tell_how_far_a_long_pull_has_come", tell_how_far_they_are),
];

/// How long a pod may take to get anywhere.
const PATIENCE: Duration = Duration::from_secs(40);

fn push(registry: &Registry, repository: &str) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // No other test has this image: a node lists but a few names of each.
    let own = Layer::new(Packing::Gzip).file("etc/pushed-as", 0o644, repository.as_bytes());
    let image = lab::busybox(LabOs::Wolfi, scanner_labdb::FIXED_VERSION)?
        .layer(own)
        .build();
    let pushed = runtime.block_on(registry.push(&image, repository, "1"))?;
    Ok(pushed.to_string())
}

fn simple(name: &str, image: &str, extra: &str) -> String {
    pod("default", name, "app: images", image, &["sleep", "1000"], extra)
}

/// Waits for an event about a pod; its message.
fn event(cluster: &Cluster, pod: &str, reason: &str, says: &str) -> Result<String> {
    eventually(PATIENCE, || {
        let field = format!("involvedObject.name={pod},reason={reason}");
        let ran = cluster.kubectl(&["get", "events", "--field-selector", &field, "-o", "json"])?;
        let events: Value = serde_json::from_str(&ran.ok()?.stdout).context("not JSON")?;
        let messages = events["items"].as_array().into_iter().flatten();
        let mut messages = messages.filter_map(|event| event["message"].as_str());
        match messages.find(|message| message.contains(says)) {
            Some(message) => Ok(message.to_owned()),
            None => bail!("pod {pod} has no event {reason} that says {says:?}: {events}"),
        }
    })
    .with_context(|| cluster.daemon_logs())
}

/// Waits until the container of a pod waits for `reason`; the message.
fn waits_for(cluster: &Cluster, pod: &str, reason: &str) -> Result<String> {
    eventually(PATIENCE, || {
        let object = cluster.object("default", "pods", pod)?;
        let waiting = &object["status"]["containerStatuses"][0]["state"]["waiting"];
        match waiting["reason"] == reason {
            true => Ok(waiting["message"].as_str().unwrap_or_default().to_owned()),
            false => bail!("{pod} does not wait for {reason}: {}", object["status"]),
        }
    })
    .with_context(|| cluster.daemon_logs())
}

fn take_a_secret(cluster: &Cluster) -> Result<()> {
    let registry = Registry::start_private()?;
    let image = push(&registry, "team/private")?;
    // Without the secret not even the gate sees it.
    cluster
        .apply(&simple("private", &image, "restartPolicy: Always"))?
        .refused()?
        .says("without credentials")?;
    let (server, user, password) = (
        format!("--docker-server={}", registry.address()),
        format!("--docker-username={USER}"),
        format!("--docker-password={PASSWORD}"),
    );
    let create = [
        "create",
        "secret",
        "docker-registry",
        "pull",
        &server,
        &user,
        &password,
    ];
    cluster.kubectl(&create)?.ok()?;
    let with_secret = "imagePullSecrets: [{name: pull}, {name: missing}]";
    cluster.apply(&simple("private", &image, with_secret))?.ok()?;
    cluster.wait_for_phase("default", "private", "Running")?;
    event(cluster, "private", "Pulling", "Pulling image")?;
    let pulled = event(cluster, "private", "Pulled", "Successfully pulled image")?;
    ensure!(
        pulled.contains(" including waiting). Image size: ") && pulled.ends_with(" bytes."),
        "{pulled}"
    );
    let missing = "Unable to retrieve some image pull secrets (missing)";
    event(cluster, "private", "FailedToRetrieveImagePullSecret", missing)?;

    // By the service account, and now the image is there.
    let account =
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: puller}\nimagePullSecrets: [{name: pull}]\n";
    cluster.apply(account)?.ok()?;
    cluster
        .apply(&simple("by-account", &image, "serviceAccountName: puller"))?
        .ok()?;
    let stored = cluster.wait_for_phase("default", "by-account", "Running")?;
    ensure!(
        stored["spec"]["imagePullSecrets"][0]["name"] == "pull",
        "{}",
        stored["spec"]
    );
    event(cluster, "by-account", "Pulled", "already present on machine")?;
    // Who has no secret does not get it by its digest either.
    let pinned = stored["spec"]["containers"][0]["image"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    cluster
        .apply(&simple("by-digest", &pinned, "restartPolicy: Always"))?
        .refused()?
        .says("without credentials")?;

    eventually(PATIENCE, || {
        let node = cluster.object("", "nodes", "lab")?;
        let images = node["status"]["images"].as_array().cloned().unwrap_or_default();
        let listed = images.iter().any(|entry| {
            let names = entry["names"].as_array().into_iter().flatten();
            entry["sizeBytes"].as_i64() > Some(100_000) && names.clone().any(|name| *name == *pinned)
        });
        match listed {
            true => Ok(()),
            false => bail!("the node does not list {pinned}: {images:?}"),
        }
    })?;
    for log in ["control.log", "agent.log"] {
        let text = std::fs::read_to_string(cluster.state_dir.join("logs").join(log))?;
        ensure!(!text.contains(PASSWORD), "{log} holds the password");
    }
    cluster
        .kubectl(&[
            "delete",
            "pod/private",
            "pod/by-account",
            "secret/pull",
            "sa/puller",
            "--now",
        ])?
        .ok()?;
    Ok(())
}

fn follow_their_pull_policy(cluster: &Cluster) -> Result<()> {
    let registry = Registry::start()?;
    let (absent, image) = (
        push(&registry, "policy/absent")?,
        push(&registry, "policy/asked")?,
    );
    let never = simple("never", &absent, "restartPolicy: Always") + "    imagePullPolicy: Never\n";
    cluster.apply(&never)?.ok()?;
    let message = waits_for(cluster, "never", "ErrImageNeverPull")?;
    ensure!(
        message.contains("is not present with pull policy of Never"),
        "{message}"
    );

    let ends = |name: &str, policy: &str| {
        let yaml = pod(
            "default",
            name,
            "app: images",
            &image,
            &["false"],
            "restartPolicy: Always",
        );
        format!("{yaml}    imagePullPolicy: {policy}\n")
    };
    cluster.apply(&ends("asks", "Always"))?.ok()?;
    cluster.apply(&ends("trusts", "IfNotPresent"))?.ok()?;
    for name in ["asks", "trusts"] {
        eventually(PATIENCE, || {
            let object = cluster.object("default", "pods", name)?;
            match object["status"]["containerStatuses"][0]["restartCount"].as_i64() > Some(0) {
                true => Ok(()),
                false => bail!("{name} was not restarted: {}", object["status"]),
            }
        })?;
    }
    // From now on, who asks gets no answer.
    drop(registry);
    let message = waits_for(cluster, "asks", "ImagePullBackOff")?;
    ensure!(
        message.starts_with("Back-off pulling image") && message.contains(": ErrImagePull: "),
        "{message}"
    );
    event(cluster, "asks", "Failed", "Failed to pull image")?;
    event(cluster, "asks", "Failed", "Error: ErrImagePull")?;
    event(cluster, "asks", "Failed", "Error: ImagePullBackOff")?;
    event(cluster, "asks", "BackOff", "Back-off pulling image")?;
    let before = cluster.object("default", "pods", "trusts")?;
    eventually(Duration::from_secs(60), || {
        let after = cluster.object("default", "pods", "trusts")?;
        let count = |object: &Value| object["status"]["containerStatuses"][0]["restartCount"].as_i64();
        match count(&after) > count(&before) {
            true => Ok(()),
            false => bail!(
                "the image is there, and still it is not started: {}",
                after["status"]
            ),
        }
    })?;
    cluster
        .kubectl(&["delete", "pod", "never", "asks", "trusts", "--now"])?
        .ok()?;
    Ok(())
}

fn run_in_dockers_formats(cluster: &Cluster) -> Result<()> {
    let registry = Registry::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let says = |words: &str| {
        let own = Layer::new(Packing::Gzip).file("etc/words", 0o644, words.as_bytes());
        anyhow::Ok(lab::busybox(LabOs::Wolfi, scanner_labdb::FIXED_VERSION)?.layer(own))
    };
    let (alone, listed) = (says("alone\n")?.build_docker(), says("listed\n")?.build_docker());
    let foreign = says("foreign\n")?.architecture("s390x").build_docker();
    let schema2 = runtime
        .block_on(registry.push(&alone, "docker/schema2", "1"))?
        .to_string();
    let architecture = match cfg!(target_arch = "aarch64") {
        true => "arm64",
        false => "amd64",
    };
    let platform = |architecture: &str| json!({"os": "linux", "architecture": architecture});
    let images = [(&foreign, platform("s390x")), (&listed, platform(architecture))];
    let list = runtime
        .block_on(registry.push_docker_list(&images, "docker/list", "1"))?
        .to_string();
    for (name, image, words) in [("schema2", schema2, "alone\n"), ("list", list, "listed\n")] {
        let log = cluster.run_pod("default", name, &image, &["cat", "/etc/words"])?;
        ensure!(log == words, "{name}: {log:?}");
    }
    cluster
        .kubectl(&["delete", "pod", "schema2", "list", "--now"])?
        .ok()?;
    Ok(())
}

/// Nothing that could be packed.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut content = Vec::with_capacity(bytes);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content
}

fn deleted_pods_keep_no_turns(cluster: &Cluster) -> Result<()> {
    const BYTES: usize = 24 << 20;
    let registry = Registry::start()?;
    let line = SlowLine::to(registry.address(), 1 << 20)?;
    let large = Layer::new(Packing::Gzip)
        .file("large", 0o644, &noise(BYTES))
        .file("etc/pushed-as", 0o644, b"images/held");
    let image = lab::busybox(LabOs::Wolfi, scanner_labdb::FIXED_VERSION)?
        .layer(large)
        .build();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let pushed = runtime
        .block_on(registry.push(&image, "images/held", "1"))?
        .to_string();
    let slow = pushed.replace(registry.address(), &line.address());
    let quick = push(&registry, "images/quick")?;
    let held = ["held-0", "held-1", "held-2", "held-3"];
    for name in held {
        cluster
            .apply(&simple(name, &slow, "restartPolicy: Always"))?
            .ok()?;
    }
    for name in held {
        event(cluster, name, "Pulling", "Pulling image")?;
    }
    let delete = [&["delete", "pod", "--now"], &held[..]].concat();
    cluster.kubectl(&delete)?.ok()?;
    cluster
        .apply(&simple("quick", &quick, "restartPolicy: Always"))?
        .ok()?;
    // The rest of the large image takes longer.
    eventually(Duration::from_secs(10), || {
        let object = cluster.object("default", "pods", "quick")?;
        match object["status"]["phase"] == "Running" {
            true => Ok(()),
            false => bail!("{}", object["status"]),
        }
    })?;
    cluster.kubectl(&["delete", "pod", "quick", "--now"])?.ok()?;
    Ok(())
}

fn tell_how_far_they_are(cluster: &Cluster) -> Result<()> {
    const BYTES: usize = 16 << 20;
    let registry = Registry::start()?;
    let line = SlowLine::to(registry.address(), 5 << 20)?;
    let large = Layer::new(Packing::Gzip).file("large", 0o644, &noise(BYTES));
    let image = lab::busybox(LabOs::Wolfi, scanner_labdb::FIXED_VERSION)?
        .layer(large)
        .build();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let pushed = runtime
        .block_on(registry.push(&image, "images/large", "1"))?
        .to_string();
    let slow = pushed.replace(registry.address(), &line.address());
    cluster.restart_agent("[pulls]\nprogress_seconds = 1\n")?;
    cluster
        .apply(&simple("large", &slow, "restartPolicy: Always"))?
        .ok()?;
    let so_far = event(cluster, "large", "Pulling", " %)")?;
    event(cluster, "large", "Pulled", "Successfully pulled image")?;
    let numbers: Vec<usize> = so_far
        .rsplit_once(": ")
        .map_or("", |(_, numbers)| numbers)
        .split(|other: char| !other.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect();
    let [arrived, expected, percent] = numbers[..] else {
        bail!("{so_far}")
    };
    ensure!(
        expected > BYTES && arrived <= expected && percent == arrived * 100 / expected,
        "{so_far}"
    );
    cluster.wait_for_phase("default", "large", "Running")?;
    cluster.kubectl(&["delete", "pod", "large", "--now"])?.ok()?;
    cluster.restart_agent("")
}

fn need_the_gates_signature(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "images/signed", "1")?;
    let signed = simple("signed", &image, "restartPolicy: Always");
    cluster.apply(&signed)?.ok()?;
    let stored = cluster.wait_for_phase("default", "signed", "Running")?;
    let key = "palisade.dev/image-verdict.main";
    let verdict = stored["metadata"]["annotations"][key].clone();
    ensure!(
        verdict.as_str().is_some_and(|text| text.starts_with("v2.")),
        "{verdict}"
    );
    // Nobody but the gate writes it.
    let forged = format!("{key}=v2.00.00");
    cluster
        .kubectl(&["annotate", "pod", "signed", "--overwrite", &forged])?
        .ok()?;
    let after = cluster.object("default", "pods", "signed")?;
    ensure!(
        after["metadata"]["annotations"][key] == verdict,
        "{}",
        after["metadata"]
    );

    // Whoever takes the gate's place has another key. The node, which runs on, knows the old one.
    kill(cluster.daemon_pid("control")?)?;
    let foreign = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?.serialize_pem();
    std::fs::write(cluster.state_dir.join("control/tls/verdict.key"), foreign)?;
    cluster.up_again()?;
    cluster
        .apply(&simple("unsigned", &image, "restartPolicy: Always"))?
        .ok()?;
    let message = waits_for(cluster, "unsigned", "SignatureValidationFailed")?;
    ensure!(
        message.contains("its signature is not the image gate's"),
        "{message}"
    );
    // It learns the other key as it got the first one: from the cluster's administrator.
    kill(cluster.daemon_pid("agent")?)?;
    cluster.up_again()?;
    cluster.wait_for_phase("default", "unsigned", "Running")?;
    cluster
        .kubectl(&["delete", "pod", "signed", "unsigned", "--now"])?
        .ok()?;
    Ok(())
}
