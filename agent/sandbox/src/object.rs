//! What an object of kind `SandboxProfile`, or a seccomp profile alone, makes of a preset. It takes away and never adds:
//! lists are intersected, filters answer what is stricter, a second Landlock ruleset stands beside the image's.

use std::collections::BTreeSet;
use std::path::PathBuf;

use api::palisade::{
    SandboxEnforcement, SandboxLandlock, SandboxPorts, SandboxPreset, SandboxProfileSpec, SandboxScope,
};

use crate::features::Enforcement;
use crate::oci::{self, OciError};
use crate::{FileLimits, Profile, Scopes, SyscallSet, Tcp, TcpPorts};

/// What a sandbox depends on beside the object.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// TCP ports that the container declares.
    pub declared: &'a BTreeSet<u16>,
    /// TCP ports that the pod may connect to; nothing if policy leaves all.
    pub egress: Option<&'a BTreeSet<u16>>,
    /// The container's capabilities, such as `CAP_CHOWN`; what the object takes of them may be among them.
    pub capabilities: &'a [String],
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
    /// The oldest Landlock interface that the node takes when a profile asks for best effort.
    pub floor: u32,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The seccomp profile cannot be enforced.
    #[error("spec.seccomp")]
    Seccomp {
        /// What of it.
        #[source]
        source: OciError,
    },
    /// It cannot be written as JSON.
    #[error("spec.seccomp cannot be read")]
    Malformed {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A profile, and what of the object was passed over, one sentence each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tightened {
    /// The profile.
    pub profile: Profile,
    /// What was passed over.
    pub notes: Vec<String>,
}

/// A sandbox that every pod can have by name.
pub fn preset(preset: SandboxPreset, around: &Surroundings<'_>) -> Profile {
    match preset {
        SandboxPreset::Audit => Profile::audit(),
        SandboxPreset::Baseline => Profile::baseline(),
        SandboxPreset::Strict => Profile::strict(TcpPorts {
            bind: Some(around.declared.clone()),
            connect: around.egress.cloned(),
        }),
    }
}

/// The preset less what the object takes away.
pub fn tightened(spec: &SandboxProfileSpec, around: &Surroundings<'_>) -> Result<Tightened, ObjectError> {
    let capabilities = kept(spec, around.capabilities);
    let around = &Surroundings {
        capabilities: &capabilities,
        ..*around
    };
    let mut profile = preset(spec.preset, around);
    let mut notes = Vec::new();
    if let Some(seccomp) = &spec.seccomp {
        let json = serde_json::to_string(seccomp).map_err(|source| ObjectError::Malformed { source })?;
        let filtered = filter(&mut profile, &json, around);
        notes = filtered.map_err(|source| ObjectError::Seccomp { source })?;
    }
    if let Some(ports) = &spec.tcp {
        profile.tcp = fewer_ports(&profile.tcp, ports);
    }
    if let Some(landlock) = &spec.landlock {
        profile.limits = limits(landlock);
        let wanted = |scope| landlock.scopes.iter().flatten().any(|wanted| *wanted == scope);
        profile.scopes = Scopes {
            signals: wanted(SandboxScope::Signals),
            abstract_sockets: wanted(SandboxScope::AbstractUnixSockets),
        };
    }
    profile.minimum_landlock = spec.minimum_landlock_abi.unwrap_or(0);
    profile.enforcement = match spec.enforcement {
        SandboxEnforcement::Required => Enforcement::Required,
        SandboxEnforcement::BestEffort => Enforcement::BestEffort { floor: around.floor },
    };
    Ok(Tightened { profile, notes })
}

/// What the object leaves of a container's capabilities.
pub fn kept(spec: &SandboxProfileSpec, capabilities: &[String]) -> Vec<String> {
    let is_kept = |capability: &&String| {
        spec.capabilities
            .as_ref()
            .is_none_or(|kept| kept.contains(capability))
    };
    capabilities.iter().filter(is_kept).cloned().collect()
}

/// Leaves of the profile's system calls what a seccomp profile of the OCI runtime specification leaves too. Returns what of
/// that was passed over, one sentence each.
pub fn filter(profile: &mut Profile, json: &str, around: &Surroundings<'_>) -> Result<Vec<String>, OciError> {
    let context = oci::Context {
        capabilities: around.capabilities,
        kernel: around.kernel,
    };
    let imported = oci::import(json, &context)?;
    profile.syscalls = SyscallSet::Policy(profile.syscalls.policy().and(&imported.policy));
    Ok(imported.notes)
}

fn limits(landlock: &SandboxLandlock) -> FileLimits {
    let paths = landlock.paths.clone().unwrap_or_default();
    let list = |list: Option<Vec<String>>| list.map(|list| list.into_iter().map(PathBuf::from).collect());
    FileLimits {
        read: list(paths.read),
        write: list(paths.write),
        execute: list(paths.execute),
        ioctl: list(landlock.ioctl.clone()),
    }
}

fn fewer_ports(before: &Tcp, ports: &SandboxPorts) -> Tcp {
    let before = match before {
        Tcp::Denied => return Tcp::Denied,
        Tcp::Unrestricted => &TcpPorts::default(),
        Tcp::Ports(before) => before,
    };
    let both = |before: &Option<BTreeSet<u16>>, ports: &Option<Vec<u16>>| {
        let ports = ports
            .as_ref()
            .map(|ports| ports.iter().copied().collect::<BTreeSet<_>>());
        match (before, ports) {
            (Some(before), Some(ports)) => Some(before & &ports),
            (before, ports) => ports.or_else(|| before.clone()),
        }
    };
    Tcp::Ports(TcpPorts {
        bind: both(&before.bind, &ports.bind),
        connect: both(&before.connect, &ports.connect),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Action, call_number};

    fn made(spec: &Value) -> Result<Tightened, ObjectError> {
        let spec: SandboxProfileSpec = serde_json::from_value(spec.clone()).expect("a spec");
        let around = Surroundings {
            declared: &BTreeSet::from([443, 8080]),
            egress: Some(&BTreeSet::from([53, 5432])),
            capabilities: &["CAP_CHOWN".to_owned()],
            kernel: (6, 12),
            floor: 5,
        };
        tightened(&spec, &around)
    }

    #[test]
    fn an_object_takes_away_and_never_adds() {
        let spec = json!({
            "preset": "strict",
            "tcp": {"bind": [443, 9090], "connect": [5432, 22]},
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30},
                {"names": ["ptrace", "bpf", "io_uring_setup", "io_uring_enter"], "action": "SCMP_ACT_ALLOW"}]},
        });
        let profile = made(&spec).expect("valid").profile;
        let ports = TcpPorts {
            bind: Some(BTreeSet::from([443])),
            connect: Some(BTreeSet::from([5432])),
        };
        assert_eq!(profile.tcp, Tcp::Ports(ports), "declared and allowed");
        assert!(profile.is_read_only());
        let policy = profile.syscall_policy();
        let decide = |name| policy.decide(call_number(name).expect("a call"), &[0; 6]);
        assert_eq!(decide("mkdirat"), Action::Errno(30));
        assert_eq!(decide("openat"), Action::Allow);
        for refused in [
            "ptrace",
            "bpf",
            "mount",
            "personality",
            "io_uring_setup",
            "io_uring_enter",
        ] {
            assert_eq!(decide(refused), Action::Errno(1), "{refused}");
        }
        assert_eq!(made(&json!({})).expect("valid").profile, Profile::baseline());
    }

    /// As on the node, which gives the container what the object leaves it.
    #[test]
    fn rules_are_judged_by_the_capabilities_that_the_object_leaves() {
        let spec = |capabilities: Value| {
            json!({"capabilities": capabilities, "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30, "includes": {"caps": ["CAP_CHOWN"]}},
                {"names": ["symlinkat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 31, "excludes": {"caps": ["CAP_CHOWN"]}}]}})
        };
        let answers = |capabilities| {
            let policy = made(&spec(capabilities)).expect("valid").profile.syscall_policy();
            ["mkdirat", "symlinkat"].map(|name| policy.decide(call_number(name).expect("a call"), &[0; 6]))
        };
        assert_eq!(answers(json!(null)), [Action::Errno(30), Action::Allow]);
        assert_eq!(answers(json!(["CAP_CHOWN"])), [Action::Errno(30), Action::Allow]);
        assert_eq!(answers(json!(["CAP_KILL"])), [Action::Allow, Action::Errno(31)]);
    }

    #[test]
    fn landlock_fields_arrive() {
        let spec = json!({
            "enforcement": "BestEffort",
            "minimumLandlockABI": 6,
            "landlock": {
                "paths": {"read": ["/"], "write": ["/tmp"], "execute": []},
                "ioctl": ["/dev/pts"],
                "scopes": ["Signals"],
            },
        });
        let profile = made(&spec).expect("valid").profile;
        let list = |path: &str| Some(vec![PathBuf::from(path)]);
        let limits = FileLimits {
            read: list("/"),
            write: list("/tmp"),
            execute: Some(Vec::new()),
            ioctl: list("/dev/pts"),
        };
        assert_eq!(profile.limits, limits);
        assert!(profile.scopes.signals && !profile.scopes.abstract_sockets);
        assert_eq!(profile.minimum_landlock, 6);
        assert_eq!(profile.enforcement, Enforcement::BestEffort { floor: 5 });
    }

    #[test]
    fn what_cannot_be_enforced_is_an_error() {
        let notify = json!({"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}});
        assert!(matches!(made(&notify), Err(ObjectError::Seccomp { .. })));
    }
}
