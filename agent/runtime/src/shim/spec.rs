//! A container's configuration in the form libcontainer reads, and the sandbox's view of its mounts.
//!
//! There is no seccomp section on purpose: built without libseccomp, libcontainer would ignore it silently.
//! The filters are installed by our executor.

use std::os::fd::{AsRawFd, BorrowedFd};

use agent_sandbox::{PathAccess, PathRule, system_mounts};
use serde_json::{Value, json};

use crate::config::ContainerConfig;
use crate::shim::rootfs::{Rootfs, Shared, may_execute};

/// What the host provides for one container.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) rootfs: &'a Rootfs,
    pub(crate) shared: &'a Shared,
    /// The pid namespace that it joins; absent if it gets one of its own. Open in this process until the container is
    /// created by a fork of it, which finds it under the same number.
    pub(crate) processes: Option<BorrowedFd<'a>>,
    /// Absolute cgroup of the container.
    pub(crate) cgroup: &'a str,
    /// Whether the host has only version 2 control groups. On others the container sees none: mounting a
    /// dozen of them costs more than it tells.
    pub(crate) unified_cgroups: bool,
}

/// The OCI configuration.
pub(crate) fn oci(config: &ContainerConfig, around: &Surroundings<'_>) -> Value {
    let namespace = |kind: &str| json!({ "type": kind });
    let joined =
        |kind: &str, name: &str| json!({ "type": kind, "path": around.shared.namespaces.join(name) });
    let env: Vec<_> = config
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {
                "uid": config.uid,
                "gid": config.gid,
                "additionalGids": config.supplemental_gids,
            },
            "args": config.argv,
            "env": env,
            "cwd": config.cwd,
            "capabilities": {
                "bounding": config.capabilities,
                "effective": config.capabilities,
                "permitted": config.capabilities,
                "inheritable": [],
                "ambient": [],
            },
            "noNewPrivileges": true,
        },
        "root": { "path": around.rootfs.root, "readonly": config.read_only_root || config.profile.is_read_only() },
        "mounts": mounts(config, around),
        "linux": {
            "namespaces": [
                joined("user", "user"),
                joined("network", "net"),
                joined("ipc", "ipc"),
                joined("uts", "uts"),
                match around.processes {
                    Some(open) => json!({ "type": "pid", "path": format!("/proc/self/fd/{}", open.as_raw_fd()) }),
                    None => namespace("pid"),
                },
                namespace("mount"),
                namespace("cgroup"),
            ],
            "cgroupsPath": around.cgroup,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
                "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
                "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    // On others they are set before it is created ([`crate::placement`]).
    if around.unified_cgroups {
        spec["linux"]["resources"] = resources(config);
    }
    spec
}

/// What the sandbox grants on everything that is mounted over the image.
pub(crate) fn mount_rules(config: &ContainerConfig) -> Vec<PathRule> {
    let mut rules = system_mounts(config.profile.is_read_only());
    let mounts = config.mounts.iter().enumerate().filter(|(index, mount)| {
        // The last one at a place hides the others, whose rules would count for its files.
        let mut later = config.mounts.iter().skip(index + 1);
        later.all(|later| later.target != mount.target)
    });
    let volumes = config.image_volumes.iter();
    rules.extend(volumes.map(|volume| PathRule::new(volume, PathAccess::ReadWrite)));
    rules.extend(mounts.map(|(_, mount)| {
        let access = match (mount.read_only, may_execute(mount)) {
            (true, true) => PathAccess::ReadExecute,
            (true, false) => PathAccess::Read,
            (false, _) => PathAccess::ReadWrite,
        };
        PathRule::new(&mount.target, access)
    }));
    rules
}

fn mounts(config: &ContainerConfig, around: &Surroundings<'_>) -> Vec<Value> {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            &[
                "nosuid",
                "noexec",
                "strictatime",
                "mode=755",
                "size=65536k",
                "nr_inodes=32768",
            ],
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
                // The host has a few thousand for all.
                "max=128",
            ],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        json!({
            "destination": "/dev/shm",
            "type": "bind",
            "source": around.shared.memory,
            "options": ["bind", "nosuid", "noexec", "nodev"],
        }),
    ];
    if around.unified_cgroups {
        mounts.push(mount(
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ));
    }
    // Before the mounts, which may be in them.
    for (volume, staged) in config.image_volumes.iter().zip(&around.rootfs.volumes) {
        mounts.push(json!({
            "destination": volume,
            "type": "bind",
            "source": staged,
            "options": ["bind", "nosuid", "nodev", "rw"],
        }));
    }
    for (mount, staged) in config.mounts.iter().zip(&around.rootfs.mounts) {
        let mut options = vec!["bind", "nosuid", "nodev"];
        options.push(if mount.read_only { "ro" } else { "rw" });
        if config.profile.is_read_only() && !may_execute(mount) {
            // The kernel then maps no code from it either, which Landlock does not judge.
            options.push("noexec");
        }
        mounts.push(json!({
            "destination": mount.target,
            "type": "bind",
            "source": staged,
            "options": options,
        }));
    }
    mounts
}

fn resources(config: &ContainerConfig) -> Value {
    let limits = &config.resources;
    let mut resources = json!({});
    let mut cpu = serde_json::Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            cpu.insert(name.into(), value);
        }
    };
    set("quota", limits.cpu_quota_us.map(Value::from));
    set("period", limits.cpu_period_us.map(Value::from));
    set("shares", limits.cpu_shares.map(Value::from));
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if let Some(bytes) = limits.memory_bytes {
        resources["memory"] = json!({ "limit": bytes });
    }
    if let Some(pids) = limits.pids {
        resources["pids"] = json!({ "limit": pids });
    }
    resources
}

#[cfg(test)]
mod tests {
    use agent_sandbox::Profile;

    use super::*;
    use crate::config::{Mount, Resources};

    fn example() -> ContainerConfig {
        let mount = |target: &str, read_only, executable| Mount {
            source: "/host".into(),
            sub_path: None,
            target: target.into(),
            read_only,
            executable,
        };
        ContainerConfig {
            name: "main".into(),
            attempt: 0,
            layers: vec!["/layer".into()],
            argv: vec!["sh".into()],
            env: vec![("A".into(), "b".into())],
            cwd: "/".into(),
            uid: 1,
            gid: 2,
            supplemental_gids: vec![3],
            mounts: vec![
                mount("/rw", false, true),
                mount("/ro", true, false),
                mount("/rx", true, true),
            ],
            read_only_root: true,
            image_volumes: vec!["/volume".into()],
            capabilities: vec!["CAP_CHOWN".into()],
            pid_namespace: crate::config::PidNamespace::Own,
            streams: crate::config::Streams::default(),
            resources: Resources {
                memory_bytes: Some(7),
                ..Resources::default()
            },
            oom_score_adj: 0,
            stop_signal: libc::SIGTERM,
            profile: Profile::baseline(),
            log_path: "/log".into(),
            log_max_bytes: 1,
            log_max_files: 1,
        }
    }

    #[test]
    fn the_configuration_never_weakens() {
        let staged = ["/s/0", "/s/1", "/s/2"].map(Into::into).to_vec();
        let rootfs = Rootfs {
            root: "/s/root".into(),
            mounts: staged,
            volumes: vec!["/s/v0".into()],
        };
        let shared = Shared {
            namespaces: "/ns".into(),
            memory: "/shm".into(),
        };
        let around = Surroundings {
            rootfs: &rootfs,
            shared: &shared,
            processes: None,
            cgroup: "/p/x",
            unified_cgroups: true,
        };
        let value = oci(&example(), &around);
        assert_eq!(value["process"]["noNewPrivileges"], true);
        assert_eq!(value["process"]["capabilities"]["ambient"], json!([]));
        assert!(
            value["linux"].get("seccomp").is_none(),
            "libcontainer would ignore it silently"
        );
        assert_eq!(value["linux"]["cgroupsPath"], "/p/x");
        assert_eq!(
            value["linux"]["namespaces"][0],
            json!({ "type": "user", "path": "/ns/user" })
        );
        assert_eq!(value["linux"]["resources"]["memory"]["limit"], 7);
        assert!(value["linux"]["resources"].get("cpu").is_none());
        let version_1 = Surroundings {
            unified_cgroups: false,
            ..around
        };
        assert!(
            oci(&example(), &version_1)["linux"].get("resources").is_none(),
            "libcontainer would look for the controllers"
        );
        let parsed: Result<libcontainer::oci_spec::runtime::Spec, _> = serde_json::from_value(value);
        assert!(parsed.is_ok(), "{parsed:?}");
    }

    #[test]
    fn what_is_writable_is_not_executable() {
        let access = |path: &str| {
            let rules = mount_rules(&example());
            rules
                .into_iter()
                .find(|rule| rule.path == std::path::Path::new(path))
                .map(|rule| rule.access)
        };
        assert_eq!(
            access("/rw"),
            Some(PathAccess::ReadWrite),
            "even if executable is asked for"
        );
        assert_eq!(access("/volume"), Some(PathAccess::ReadWrite));
        assert_eq!(access("/ro"), Some(PathAccess::Read));
        assert_eq!(access("/rx"), Some(PathAccess::ReadExecute));
        let mut hidden = example();
        hidden.mounts[2].target = "/rw".into();
        hidden.mounts.swap(0, 2);
        let rules = mount_rules(&hidden);
        let at_rw: Vec<_> = rules
            .iter()
            .filter(|rule| rule.path == std::path::Path::new("/rw"))
            .map(|rule| rule.access)
            .collect();
        assert_eq!(at_rw, [PathAccess::ReadWrite], "what is hidden grants nothing");
    }
}
