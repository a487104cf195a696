//! Looks at a confined process from outside and says of each layer whether it is as it must be.
//!
//! What counts is what the kernel says of the process in `/proc`, not what was asked for. Landlock alone says nothing
//! there; of it counts what the kernel answered to the process.

use std::fs;

use agent_sandbox::{Finding, LandlockOutcome, Layer, Report, Verdict};
use nix::unistd::Pid;
use rustix::thread::CapabilitySet;

use crate::cgroup::{self, Limits};
use crate::config::ContainerConfig;
use crate::devices::Devices;

/// The namespaces that a container shares with nobody outside of its pod.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// The kernel's word for a filter in the `Seccomp` line.
const FILTERED: &str = "2";

/// A memory limit may be off by what the kernel rounds.
const ROUNDING: i64 = 1 << 16;

/// What must be.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    /// First and number of the host's ids.
    pub(crate) ids: (u32, u32),
    /// Absolute.
    pub(crate) cgroup: String,
    /// Number of the program that denies devices to the pod, where a program does it.
    pub(crate) device_program: Option<u32>,
    pub(crate) config: &'a ContainerConfig,
}

/// What is.
#[derive(Debug)]
struct Seen {
    status: String,
    /// Of the process that looks, which no profile filters.
    own_status: String,
    uid_map: String,
    gid_map: String,
    cgroups: String,
    /// Namespaces that are also those of the process that looks.
    common: Vec<&'static str>,
    limits: Limits,
    devices: Devices,
}

/// The findings about a process that waits.
pub(crate) fn findings(
    pid: Pid,
    expected: &Expected<'_>,
    landlock: &LandlockOutcome,
) -> Result<Report, String> {
    let seen = see(pid, &expected.cgroup)?;
    let mut report = judge(&seen, expected);
    report.0.insert(Layer::Landlock, landlock.finding());
    Ok(report)
}

fn see(pid: Pid, cgroup: &str) -> Result<Seen, String> {
    let read =
        |path: String| fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"));
    let link = |path: String| fs::read_link(&path).map_err(|error| format!("cannot read {path}: {error}"));
    let mut common = Vec::new();
    for name in NAMESPACES {
        if link(format!("/proc/{pid}/ns/{name}"))? == link(format!("/proc/self/ns/{name}"))? {
            common.push(name);
        }
    }
    Ok(Seen {
        status: read(format!("/proc/{pid}/status"))?,
        own_status: read("/proc/self/status".into())?,
        uid_map: read(format!("/proc/{pid}/uid_map"))?,
        gid_map: read(format!("/proc/{pid}/gid_map"))?,
        cgroups: read(format!("/proc/{pid}/cgroup"))?,
        common,
        limits: cgroup::limits(cgroup).map_err(|error| crate::shim::chain(&error))?,
        devices: Devices::of(cgroup).map_err(|error| crate::shim::chain(&error))?,
    })
}

/// One finding for each layer that `/proc` tells of.
fn judge(seen: &Seen, expected: &Expected<'_>) -> Report {
    Report(
        [
            (Layer::Seccomp, seccomp(seen)),
            (Layer::NoNewPrivileges, no_new_privileges(seen)),
            (
                Layer::Capabilities,
                capabilities(seen, &expected.config.capabilities),
            ),
            (Layer::UserNamespace, user_namespace(seen, expected.ids)),
            (Layer::Namespaces, namespaces(seen)),
            (Layer::Cgroup, control_group(seen, expected)),
        ]
        .into(),
    )
}

fn seccomp(seen: &Seen) -> Finding {
    let filters = |status| -> Option<u32> { field(status, "Seccomp_filters")?.parse().ok() };
    let mode = field(&seen.status, "Seccomp").unwrap_or("absent");
    // The host may have filters of its own on everything that runs here.
    let own = filters(&seen.own_status).unwrap_or(0);
    match filters(&seen.status) {
        Some(number) if mode == FILTERED && number > own => {
            Finding::enforced(format!("mode {mode}, filters: {number}"))
        }
        number => Finding::refused(format!(
            "mode {mode}, filters: {}, {own} of them the host's",
            number.unwrap_or(0)
        )),
    }
}

fn no_new_privileges(seen: &Seen) -> Finding {
    match field(&seen.status, "NoNewPrivs") {
        Some("1") => Finding::enforced("set"),
        other => Finding::refused(format!("it is {}", other.unwrap_or("absent"))),
    }
}

/// None may be held, or be had again, that was not asked for. Fewer are fine: a user other than root has none in effect.
fn capabilities(seen: &Seen, wanted: &[String]) -> Finding {
    let known = wanted
        .iter()
        .filter_map(|name| CapabilitySet::from_name(name.strip_prefix("CAP_")?));
    let wanted = known
        .fold(CapabilitySet::empty(), |all, capability| all | capability)
        .bits();
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let held = field(&seen.status, name).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let Some(held) = held else {
            return Finding::refused(format!("the kernel does not tell {name}"));
        };
        // Whatever is ambient or inheritable could be had by executing a program.
        let allowed = if matches!(name, "CapInh" | "CapAmb") {
            0
        } else {
            wanted
        };
        if held & !allowed != 0 {
            return Finding::refused(format!("{name} is {held:x}, allowed are {allowed:x}"));
        }
    }
    Finding::enforced(format!("at most {wanted:x}"))
}

fn user_namespace(seen: &Seen, (base, count): (u32, u32)) -> Finding {
    for (name, map) in [("uid_map", &seen.uid_map), ("gid_map", &seen.gid_map)] {
        let words: Vec<&str> = map.split_whitespace().collect();
        if words != ["0", &base.to_string(), &count.to_string()] {
            return Finding::refused(format!("{name} is {:?}", map.trim()));
        }
    }
    Finding::enforced(format!("0 is {base} of the host"))
}

fn namespaces(seen: &Seen) -> Finding {
    if seen.common.is_empty() {
        return Finding::enforced(NAMESPACES.join(" "));
    }
    Finding::refused(format!("shared with the host: {}", seen.common.join(" ")))
}

/// It is in its group in every hierarchy that limits something, devices are denied to that, and the limits are those that
/// were asked for.
fn control_group(seen: &Seen, expected: &Expected<'_>) -> Finding {
    let groups = seen.cgroups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        Some((controllers, path))
    });
    let limiting = ["", "cpu", "devices", "memory", "pids"];
    let elsewhere = groups
        .filter(|(controllers, _)| controllers.split(',').any(|name| limiting.contains(&name)))
        // A hybrid host has an unlimited version 2 hierarchy beside the others.
        .filter(|(controllers, _)| !controllers.is_empty() || seen.limits.unified)
        .find(|(_, path)| !path.ends_with(&expected.cgroup));
    if let Some((controllers, path)) = elsewhere {
        return Finding::refused(format!("in {path} of {controllers:?}, not in its own"));
    }
    if let Some(fault) = seen.devices.fault(expected.device_program) {
        return Finding::refused(fault);
    }
    let wanted = &expected.config.resources;
    let mut lacking = Vec::new();
    for (name, wanted, found, slack) in [
        ("memory", wanted.memory_bytes, seen.limits.memory_bytes, ROUNDING),
        ("pids", wanted.pids, seen.limits.pids, 0),
        ("cpu", wanted.cpu_quota_us, seen.limits.cpu_quota_us, 0),
    ] {
        let Some(wanted) = wanted else { continue };
        if found.is_none_or(|found| found > wanted || wanted - found > slack) {
            let found = found.map_or("none".into(), |found| found.to_string());
            lacking.push(format!("{name} limit is {found}, not {wanted}"));
        }
    }
    if lacking.is_empty() {
        return Finding::enforced("limits as asked for, devices denied");
    }
    Finding {
        verdict: Verdict::Partial,
        detail: lacking.join(", "),
    }
}

/// A line of `/proc/<pid>/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map(str::trim)
}

#[cfg(test)]
mod tests {
    use agent_sandbox::Profile;

    use super::*;
    use crate::config::Resources;

    const STATUS: &str = "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000001\nCapEff:\t0000000000000001\n\
                          CapBnd:\t0000000000000001\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n\
                          Seccomp_filters:\t2\n";

    fn good() -> Seen {
        Seen {
            status: STATUS.into(),
            own_status: "Seccomp:\t2\nSeccomp_filters:\t1\n".into(),
            uid_map: "         0     100000      65536\n".into(),
            gid_map: "0 100000 65536\n".into(),
            cgroups: "5:memory:/p/u/c-0\n4:cpu,cpuacct:/p/u/c-0\n6:devices:/p/u/c-0\n3:pids:/p/u/c-0\n1:name=systemd:/\n0::/\n"
                .into(),
            common: Vec::new(),
            limits: Limits {
                unified: false,
                memory_bytes: Some(4096),
                pids: Some(9),
                cpu_quota_us: None,
            },
            devices: Devices::Listed(vec!["c 1:3 rwm".into()]),
        }
    }

    fn verdict(layer: Layer, change: impl FnOnce(&mut Seen)) -> Verdict {
        let config = ContainerConfig {
            capabilities: vec!["CAP_CHOWN".into()],
            resources: Resources {
                memory_bytes: Some(5000),
                pids: Some(9),
                ..Resources::default()
            },
            ..crate::config::tests::container(Profile::baseline())
        };
        let expected = Expected {
            ids: (100_000, 65536),
            cgroup: "/p/u/c-0".into(),
            device_program: Some(7),
            config: &config,
        };
        let mut seen = good();
        change(&mut seen);
        judge(&seen, &expected).0[&layer].verdict
    }

    #[test]
    fn what_is_as_it_must_be_is_enforced() {
        for layer in [
            Layer::Seccomp,
            Layer::NoNewPrivileges,
            Layer::Capabilities,
            Layer::UserNamespace,
            Layer::Namespaces,
            Layer::Cgroup,
        ] {
            assert_eq!(verdict(layer, |_| ()), Verdict::Enforced, "{layer}");
        }
    }

    #[test]
    fn each_layer_that_is_not_is_found_out() {
        let edit = |layer, from: &str, to: &str| {
            assert!(STATUS.contains(from));
            let (from, to) = (from.to_owned(), to.to_owned());
            verdict(layer, move |seen| seen.status = seen.status.replace(&from, &to))
        };
        for (layer, from, to) in [
            (Layer::Seccomp, "Seccomp:\t2", "Seccomp:\t0"),
            (Layer::Seccomp, "filters:\t2", "filters:\t1"),
            (Layer::Seccomp, "Seccomp_filters:\t2\n", ""),
            (Layer::NoNewPrivileges, "NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            (
                Layer::Capabilities,
                "CapBnd:\t0000000000000001",
                "CapBnd:\t0000000000200001",
            ),
            (
                Layer::Capabilities,
                "CapAmb:\t0000000000000000",
                "CapAmb:\t0000000000000001",
            ),
            (Layer::Capabilities, "CapEff", "CapX"),
        ] {
            assert_eq!(edit(layer, from, to), Verdict::Refused, "{from}");
        }
        let identity = |seen: &mut Seen| seen.uid_map = "0 0 4294967295".into();
        assert_eq!(verdict(Layer::UserNamespace, identity), Verdict::Refused);
        assert_eq!(
            verdict(Layer::Namespaces, |seen| seen.common.push("net")),
            Verdict::Refused
        );
        let outside = |seen: &mut Seen| seen.cgroups = seen.cgroups.replace("pids:/p/u/c-0", "pids:/");
        assert_eq!(verdict(Layer::Cgroup, outside), Verdict::Refused);
        for devices in [
            Devices::Any,
            Devices::Listed(vec!["a *:* rwm".into()]),
            Devices::Asked(vec![6]),
        ] {
            let change = |seen: &mut Seen| seen.devices = devices;
            assert_eq!(verdict(Layer::Cgroup, change), Verdict::Refused);
        }
        let outside = |seen: &mut Seen| seen.cgroups = seen.cgroups.replace("devices:/p/u/c-0", "devices:/");
        assert_eq!(verdict(Layer::Cgroup, outside), Verdict::Refused);
        let unified = |seen: &mut Seen| seen.limits.unified = true;
        assert_eq!(verdict(Layer::Cgroup, unified), Verdict::Refused, "0::/");
        let unlimited = |seen: &mut Seen| seen.limits.pids = None;
        assert_eq!(verdict(Layer::Cgroup, unlimited), Verdict::Partial);
    }
}
