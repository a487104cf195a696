//! The whole control plane as a process: started as root, with the real scanner, the laboratory database and
//! images in OCI layouts.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
#![expect(clippy::print_stdout, reason = "the daemon's log explains a failure")]

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, Client, Config,
    api::{DynamicObject, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    discovery::ApiResource,
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

const BUILT: &str = env!("CARGO_BIN_EXE_palisade-control");
const UID: u32 = 64100;

struct Control {
    child: Child,
    client: Client,
}

/// A copy of the program where its own user gets to it: the build may lie below root's home.
fn program(state: &Path) -> PathBuf {
    state.join("palisade-control")
}

/// Makes a state directory as `policyctl up` does.
fn prepare(state: &Path, port: u16) {
    fs::set_permissions(state, Permissions::from_mode(0o711)).unwrap();
    fs::copy(BUILT, program(state)).unwrap();
    let init = std::process::Command::new(program(state))
        .args([
            "init",
            "--node-name",
            "node-a",
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--state-dir",
        ])
        .arg(state)
        .output()
        .unwrap();
    assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    let cache = state.join("trivy");
    testkit::scanner::write_lab_db(&cache.join("db"), 1).unwrap();
    let (built_trivy, hash) = testkit::scanner::trivy().unwrap();
    let trivy = state.join("trivy-binary");
    fs::copy(built_trivy, &trivy).unwrap();
    let config = format!(
        "listen = \"127.0.0.1:{port}\"\ncontrol_dir = {control:?}\nlayout_dir = {layouts:?}\nuid = {UID}\n\
         [gate]\ntrivy = {trivy:?}\ntrivy_sha256 = \"{hash}\"\ntrivy_cache = {cache:?}\ntimeout_seconds = 60\n",
        control = state.join("control"),
        layouts = state.join("layouts"),
    );
    fs::write(state.join("control/config.toml"), config).unwrap();
    testkit::lab::vulnerable()
        .unwrap()
        .write_layout(&state.join("layouts/bad"), "1")
        .unwrap();
    testkit::lab::clean()
        .unwrap()
        .write_layout(&state.join("layouts/good"), "1")
        .unwrap();
}

async fn start(state: &Path) -> Control {
    let mut child = Command::new(program(state))
        .args(["run", "--config"])
        .arg(state.join("control/config.toml"))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let serving = async {
        while let Some(line) = log.next_line().await.unwrap() {
            println!("{line}");
            if line.contains("serving") {
                return;
            }
        }
        panic!("palisade-control ended before it served");
    };
    tokio::time::timeout(Duration::from_secs(60), serving)
        .await
        .expect("palisade-control does not serve");
    // Read on, or the daemon would block on a full pipe.
    tokio::spawn(async move {
        while let Ok(Some(line)) = log.next_line().await {
            println!("{line}");
        }
    });
    let kubeconfig = Kubeconfig::read_from(state.join("admin.kubeconfig")).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    Control {
        child,
        client: Client::try_from(config).unwrap(),
    }
}

impl Control {
    async fn stop(mut self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await;
        assert!(status.expect("SIGTERM is ignored").unwrap().success());
    }

    /// A field of `/proc/PID/status`.
    fn status(&self, field: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

fn pod(name: &str, image: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": image}]},
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_works_confined_and_keeps_its_state() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    prepare(state, port);
    let control = start(state).await;

    let ids = [UID; 4].map(|id| id.to_string()).join(" ");
    assert_eq!((control.status("Uid"), control.status("Gid")), (ids.clone(), ids));
    assert_eq!(control.status("Groups"), "");
    assert_eq!(control.status("CapEff"), "0000000000000000");
    assert_eq!(control.status("NoNewPrivs"), "1");
    assert_eq!(control.status("Seccomp"), "2");

    // The gate, through the sandbox: jailed Trivy on images that were verified first.
    let pods: Api<Pod> = Api::default_namespaced(control.client.clone());
    let refused = pods
        .create(&PostParams::default(), &pod("bad", "oci-layout.local/bad:1"))
        .await
        .unwrap_err();
    let kube::Error::Api(status) = refused else {
        panic!("{refused}")
    };
    assert_eq!(status.code, 403);
    for part in [
        scanner_labdb::CRITICAL_ID,
        "busybox",
        scanner_labdb::FIXED_VERSION,
    ] {
        assert!(status.message.contains(part), "{part}: {}", status.message);
    }
    let admitted = pods
        .create(&PostParams::default(), &pod("good", "oci-layout.local/good:1"))
        .await
        .unwrap();
    let image = admitted.spec.unwrap().containers.remove(0).image.unwrap();
    assert!(image.starts_with("oci-layout.local/good@sha256:"), "{image}");
    let started = Instant::now();
    pods.create(&PostParams::default(), &pod("again", "oci-layout.local/good:1"))
        .await
        .unwrap();
    println!(
        "admission with a known image: {} ms",
        started.elapsed().as_millis()
    );

    let kind = ApiResource {
        group: "palisade.dev".into(),
        version: "v1alpha1".into(),
        api_version: "palisade.dev/v1alpha1".into(),
        kind: "ImageScan".into(),
        plural: "imagescans".into(),
    };
    let scans: Api<DynamicObject> = Api::all_with(control.client.clone(), &kind);
    let verdicts: Vec<_> = scans.list(&ListParams::default()).await.unwrap().items;
    let mut verdicts: Vec<_> = verdicts
        .iter()
        .map(|scan| scan.data["status"]["verdict"].clone())
        .collect();
    verdicts.sort_by_key(ToString::to_string);
    assert_eq!(verdicts, [json!("Pass"), json!("Refused")]);

    let secrets: Api<Secret> = Api::default_namespaced(control.client.clone());
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "correct-horse-battery"}});
    secrets
        .create(&PostParams::default(), &serde_json::from_value(secret).unwrap())
        .await
        .unwrap();
    control.stop().await;

    assert_no_file_contains(
        &state.join("control"),
        &["correct-horse-battery", "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5"],
    );
    let control = start(state).await;
    let secrets: Api<Secret> = Api::default_namespaced(control.client.clone());
    let data = secrets.get("s").await.unwrap().data.unwrap();
    assert_eq!(data["password"].0, b"correct-horse-battery");
    control.stop().await;
}

#[test]
fn a_configuration_of_the_control_user_is_not_followed_by_root() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    fs::write(&file, "").unwrap();
    std::os::unix::fs::chown(&file, Some(UID), Some(UID)).unwrap();
    let run = std::process::Command::new(BUILT)
        .args(["run", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(!run.status.success());
    let message = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(message.contains("must belong to root"), "{message}");
}

/// Everything below `directory` belongs to the control user or root, and holds none of `needles`.
fn assert_no_file_contains(directory: &Path, needles: &[&str]) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert!([0, UID].contains(&metadata.uid()), "{}", path.display());
        if metadata.is_dir() {
            assert_no_file_contains(&path, needles);
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        for needle in needles {
            let found = bytes
                .windows(needle.len())
                .any(|window| window == needle.as_bytes());
            assert!(!found, "{} holds {needle}", path.display());
        }
    }
}
