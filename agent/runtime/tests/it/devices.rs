//! Devices are denied by the control group alone: to root of the machine, in its namespaces, with no filter.

use std::fs;
use std::path::{Path, PathBuf};

use agent_runtime::{Runtime, RuntimeConfig, RuntimeError};
use agent_sandbox::{Layer, Verdict};
use testkit::devices::{DENIED, denied};

use crate::{Stage, helper};

fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

impl Stage {
    /// The pod's group, where devices are decided about.
    fn device_group(&self) -> PathBuf {
        let mount = if is_unified() {
            "/sys/fs/cgroup"
        } else {
            "/sys/fs/cgroup/devices"
        };
        Path::new(mount).join(&self.cgroup_root).join(&self.pod.uid)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_denied_by_the_control_group() {
    let mut stage = Stage::new("devices").await;
    let start = async |stage: &Stage, name: &str| {
        let config = stage.container(name, &["sleep", "1000"]);
        let started = stage.runtime.start_container(&stage.pod.uid, &config).await;
        started.expect("starts");
        let status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
        let cgroup = &status.container(name).expect("started").sandbox.0[&Layer::Cgroup];
        assert_eq!(cgroup.verdict, Verdict::Enforced, "{}", cgroup.detail);
        assert!(cgroup.detail.contains("devices denied"), "{}", cgroup.detail);
        stage.device_group().join(format!("{name}-0"))
    };
    let none: [&str; 0] = [];
    assert_eq!(
        denied(None).expect("tries"),
        none,
        "it is not the machine that denies"
    );
    let first = start(&stage, "first").await;
    assert_eq!(denied(Some(&first)).expect("tries"), DENIED);

    // Another agent: nothing is held by the one that started the pod.
    stage.runtime = Runtime::new(RuntimeConfig {
        shim: helper(),
        state_dir: stage.directory.path().join("state"),
        run_dir: stage.directory.path().join("run"),
        cgroup_root: stage.cgroup_root.clone(),
    })
    .expect("valid");
    let second = start(&stage, "second").await;
    for group in [first, second] {
        assert_eq!(denied(Some(&group)).expect("tries"), DENIED);
    }
    let (code, output) = stage
        .exec(
            "second",
            "echo x > /dev/null && head -c 1 /dev/urandom > /dev/null",
        )
        .await;
    assert_eq!(code, 0, "{output}");
    stage.end().await;
}

/// Version 2, where the pod's group has a program that its containers' groups do not make for themselves.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_the_program_for_devices_starts_nothing() {
    if !is_unified() {
        eprintln!("skipped: a list of version 1 is each container's own (cargo xtask lab has version 2)");
        return;
    }
    let stage = Stage::new("lost").await;
    fs::remove_dir(stage.device_group()).expect("nobody is in it yet");
    let config = stage.container("main", &["sh", "-c", "echo ran"]);
    let refused = stage.runtime.start_container(&stage.pod.uid, &config).await;
    match refused.expect_err("nothing denies devices") {
        RuntimeError::Refused { reason, layer } => {
            assert_eq!(layer, Some(Layer::Cgroup));
            assert!(
                reason.contains("the program that denies devices is not attached"),
                "{reason}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(stage.output("main"), "", "it did not run");
    stage.end().await;
}
