//! Reads seccomp profiles of the OCI runtime specification, with what Docker and Podman add to it: `archMap`,
//! `includes` and `excludes`, error numbers by name.
//!
//! The rules are runc's: all arguments of a rule must match, any of several rules of a call is enough, calls
//! newer than the newest one in the profile answer `ENOSYS`. Where rules of one call contradict each other
//! the strictest that matches counts, and it is noted: runc passes over a rule that says what the default
//! says, and libseccomp keeps the first rule without arguments, so that a prohibition may not count there.
//!
//! Where runc is silent this is an error, because the profile's author did not mean it: the same argument
//! twice in a rule (runc makes alternatives of it), misspelt fields. What the filter cannot say is one too.
//! Names that no call here has are passed over as runc does, since profiles list the calls of all machines and
//! kernels, and noted; but if the rule would have *refused* the call, an unknown name must at least be one of
//! another architecture: a misspelt prohibition would leave the call allowed.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::names;
use crate::seccomp::{Action, Alternative, CallRule, Compare, Condition, SyscallPolicy, Width};

/// Longest profile that is read, in bytes.
pub const MAX_PROFILE: usize = 256 << 10;

/// What the conditions of `includes` and `excludes` are about.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The container's capabilities, such as `CAP_CHOWN`.
    pub capabilities: &'a [String],
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
}

/// Major and minor version of the running kernel, for [`Context::kernel`].
pub fn kernel_version() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    (next(), next())
}

/// A profile as a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// What it means.
    pub policy: SyscallPolicy,
    /// What was passed over, one sentence each.
    pub notes: Vec<String>,
}

/// Why a profile was not imported.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// Far beyond any real profile.
    #[error("the seccomp profile has {length} bytes, at most {MAX_PROFILE} are read")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// It is not JSON, or has fields that the specification does not know.
    #[error("the seccomp profile cannot be read")]
    Json {
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// Something the filter cannot do.
    #[error("{field}: {value:?} is not supported: {reason}")]
    Unsupported {
        /// Where it stands.
        field: String,
        /// What stands there.
        value: String,
        /// Why not, and what to write instead.
        reason: &'static str,
    },
    /// A value that means nothing.
    #[error("{field}: {problem}")]
    Invalid {
        /// Where it stands.
        field: String,
        /// What is wrong.
        problem: String,
    },
}

/// Reads a profile.
pub fn import(json: &str, context: &Context<'_>) -> Result<Imported, OciError> {
    let length = json.len();
    if length > MAX_PROFILE {
        return Err(OciError::TooLong { length });
    }
    let profile: Profile = serde_json::from_str(json).map_err(|source| OciError::Json { source })?;
    profile.check()?;
    let default = action(
        "defaultAction",
        &profile.default_action,
        profile.default_errno_ret,
        profile.default_errno.as_deref(),
    )?;
    let mut notes = profile.notes()?;
    let mut calls: BTreeMap<u32, Rules> = BTreeMap::new();
    let mut newest_known = 0;
    for (index, entry) in profile.syscalls.iter().flatten().enumerate() {
        let field = format!("syscalls[{index}]");
        if !entry.applies(&field, context)? {
            continue;
        }
        let action = action(&field, &entry.action, entry.errno_ret, entry.errno.as_deref())?;
        let conditions = entry.conditions(&field)?;
        for name in entry.names(&field)? {
            let Some(number) = names::number_of(name) else {
                if action.severity() > default.severity() && !names::is_foreign(name) {
                    let problem =
                        format!("no system call is named {name:?}, so refusing it would do nothing");
                    return Err(OciError::Invalid { field, problem });
                }
                notes.push(format!("{field}: {name} is no system call of this machine"));
                continue;
            };
            newest_known = newest_known.max(number);
            let rules = calls.entry(number).or_default();
            if let Some(other) = rules.add(&field, action, &conditions) {
                notes.push(format!(
                    "{field}: contradicts {other} about {name}, the stricter counts"
                ));
            }
        }
    }
    let permissive = default.severity() < Action::Errno(0).severity();
    Ok(Imported {
        policy: SyscallPolicy {
            calls: calls
                .into_iter()
                .map(|(number, rules)| (number, rules.finish(default)))
                .collect(),
            default,
            newest_known,
            newer: if permissive {
                default
            } else {
                crate::seccomp::errno(libc::ENOSYS)
            },
        },
        notes,
    })
}

/// The rules that match a call, with where they stand and what they say; the default's if none does. The strictest
/// counts.
pub(crate) fn matching(
    json: &str,
    context: &Context<'_>,
    number: u32,
    arguments: &[u64; 6],
) -> Result<Vec<(String, Action)>, OciError> {
    let imported = import(json, context)?;
    let profile: Profile = serde_json::from_str(json).map_err(|source| OciError::Json { source })?;
    let mut matching = Vec::new();
    for (index, entry) in profile.syscalls.iter().flatten().enumerate() {
        let field = format!("syscalls[{index}]");
        if !entry.applies(&field, context)?
            || !entry
                .names(&field)?
                .any(|name| names::number_of(name) == Some(number))
            || !entry
                .conditions(&field)?
                .iter()
                .all(|condition| condition.holds(arguments))
        {
            continue;
        }
        let action = action(&field, &entry.action, entry.errno_ret, entry.errno.as_deref())?;
        matching.push((field, action));
    }
    if matching.is_empty() {
        let field = match number > imported.policy.newest_known {
            true => "newer than every call of the profile",
            false => "defaultAction",
        };
        matching.push((field.to_owned(), imported.policy.decide(number, arguments)));
    }
    Ok(matching)
}

/// The rules of one call.
#[derive(Debug, Default)]
struct Rules {
    /// Rules without arguments, and where they stand.
    always: Vec<(String, Action)>,
    /// Those with arguments, and where they stand.
    conditional: Vec<(String, Alternative)>,
}

impl Rules {
    /// Adds a rule. The answer is where one stands of which the other leaves nothing.
    fn add(&mut self, field: &str, action: Action, conditions: &[Condition]) -> Option<String> {
        let differs = |other: &(String, Action)| (other.1 != action).then(|| other.0.clone());
        let other = self.always.iter().find_map(differs);
        if conditions.is_empty() {
            let under = |other: &(String, Alternative)| (other.1.action != action).then(|| other.0.clone());
            let other = other.or_else(|| self.conditional.iter().find_map(under));
            self.always.push((field.into(), action));
            return other;
        }
        let alternative = Alternative {
            all_of: conditions.to_vec(),
            action,
        };
        self.conditional.push((field.into(), alternative));
        other
    }

    /// The strictest rule that matches counts, of equally strict ones the first.
    fn finish(self, default: Action) -> CallRule {
        let always = self.always.into_iter().map(|(_, action)| action);
        let always = always.reduce(Action::and);
        let severity = |alternative: &Alternative| alternative.action.severity();
        let mut alternatives: Vec<_> = self
            .conditional
            .into_iter()
            .map(|(_, alternative)| alternative)
            .filter(|alternative| always.is_none_or(|always| severity(alternative) > always.severity()))
            .collect();
        alternatives.sort_by_key(|alternative| std::cmp::Reverse(severity(alternative)));
        CallRule {
            alternatives,
            otherwise: always.unwrap_or(default),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<Architecture>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Entry>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Architecture {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    errno: Option<String>,
    args: Option<Vec<Argument>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    includes: Option<Circumstances>,
    excludes: Option<Circumstances>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Circumstances {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// How the specification names this machine, and how Docker's conditions do.
#[cfg(target_arch = "x86_64")]
const NATIVE: (&str, &str) = ("SCMP_ARCH_X86_64", "amd64");
#[cfg(target_arch = "aarch64")]
const NATIVE: (&str, &str) = ("SCMP_ARCH_AARCH64", "arm64");

const ARCHITECTURES: &[&str] = &[
    "SCMP_ARCH_NATIVE",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
];

impl Profile {
    fn check(&self) -> Result<(), OciError> {
        let unsupported = |field: &str, value: &str, reason| {
            Err(OciError::Unsupported {
                field: field.into(),
                value: value.into(),
                reason,
            })
        };
        for (field, value) in [
            ("listenerPath", &self.listener_path),
            ("listenerMetadata", &self.listener_metadata),
        ] {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                return unsupported(
                    field,
                    value,
                    "no process outside of the container judges its calls",
                );
            }
        }
        for flag in self.flags.iter().flatten() {
            match flag.as_str() {
                // The filter is installed while there is one thread.
                "SECCOMP_FILTER_FLAG_TSYNC" => {}
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => {
                    return unsupported(
                        "flags",
                        flag,
                        "it switches off a protection against speculative attacks",
                    );
                }
                _ => {
                    return unsupported(
                        "flags",
                        flag,
                        "only SECCOMP_FILTER_FLAG_TSYNC is, which changes nothing",
                    );
                }
            }
        }
        if self.architectures.iter().flatten().next().is_some()
            && self.arch_map.iter().flatten().next().is_some()
        {
            return Err(OciError::Invalid {
                field: "archMap".into(),
                problem: "there is a list of architectures too; write one of them".into(),
            });
        }
        Ok(())
    }

    /// The other architectures that the profile allows.
    fn notes(&self) -> Result<Vec<String>, OciError> {
        let mapped = self.arch_map.iter().flatten();
        let own = mapped.clone().filter(|entry| entry.architecture == NATIVE.0);
        let named = self.architectures.iter().flatten();
        let all = named.clone().chain(mapped.flat_map(|entry| {
            entry
                .sub_architectures
                .iter()
                .flatten()
                .chain([&entry.architecture])
        }));
        for name in all {
            if !ARCHITECTURES.contains(&name.as_str()) {
                return Err(OciError::Unsupported {
                    field: "architectures".into(),
                    value: name.clone(),
                    reason: "the specification has no such architecture",
                });
            }
        }
        let allowed = named.chain(own.flat_map(|entry| entry.sub_architectures.iter().flatten()));
        let foreign = allowed.filter(|name| ![NATIVE.0, "SCMP_ARCH_NATIVE"].contains(&name.as_str()));
        Ok(foreign
            .map(|name| format!("architectures: calls of {name} stay refused"))
            .collect())
    }
}

impl Entry {
    fn names<'a>(&'a self, field: &str) -> Result<impl Iterator<Item = &'a String> + use<'a>, OciError> {
        let invalid = |problem: &str| OciError::Invalid {
            field: field.into(),
            problem: problem.into(),
        };
        let several = self.names.iter().flatten();
        match (&self.name, several.clone().next()) {
            (Some(_), Some(_)) => Err(invalid("it has a name and names; write one of them")),
            (None, None) => Err(invalid("it names no system call")),
            _ => Ok(self.name.iter().chain(several)),
        }
    }

    /// Whether the rule is for this machine and container.
    fn applies(&self, field: &str, context: &Context<'_>) -> Result<bool, OciError> {
        let holds = |capability: &String| context.capabilities.contains(capability);
        let is_here = |arch: &String| arch == NATIVE.1;
        let is_old = |version: &Option<String>| match version {
            Some(version) => parse_version(field, version).map(|version| Some(context.kernel < version)),
            None => Ok(None),
        };
        if let Some(excludes) = &self.excludes
            && (excludes.caps.iter().flatten().any(holds)
                || excludes.arches.iter().flatten().any(is_here)
                || is_old(&excludes.min_kernel)? == Some(false))
        {
            return Ok(false);
        }
        let Some(includes) = &self.includes else {
            return Ok(true);
        };
        let arches = includes.arches.as_deref().unwrap_or_default();
        Ok(includes.caps.iter().flatten().all(holds)
            && (arches.is_empty() || arches.iter().any(is_here))
            && is_old(&includes.min_kernel)? != Some(true))
    }

    fn conditions(&self, field: &str) -> Result<Vec<Condition>, OciError> {
        let mut conditions: Vec<Condition> = Vec::new();
        for (position, argument) in self.args.iter().flatten().enumerate() {
            let field = format!("{field}.args[{position}]");
            let invalid = |problem: String| OciError::Invalid {
                field: field.clone(),
                problem,
            };
            let index = u8::try_from(argument.index).ok().filter(|index| *index < 6);
            let index = index.ok_or_else(|| {
                invalid(format!(
                    "there is no argument {}, they count from 0 to 5",
                    argument.index
                ))
            })?;
            if conditions.iter().any(|other| other.index == index) {
                return Err(OciError::Unsupported {
                    field,
                    value: format!("argument {index} twice"),
                    reason: "runc takes this for alternatives; write a rule for each, or MASKED_EQ",
                });
            }
            let (compare, value) = match argument.op.as_str() {
                "SCMP_CMP_NE" => (Compare::Ne, argument.value),
                "SCMP_CMP_LT" => (Compare::Lt, argument.value),
                "SCMP_CMP_LE" => (Compare::Le, argument.value),
                "SCMP_CMP_EQ" => (Compare::Eq, argument.value),
                "SCMP_CMP_GE" => (Compare::Ge, argument.value),
                "SCMP_CMP_GT" => (Compare::Gt, argument.value),
                // The first value is the mask.
                "SCMP_CMP_MASKED_EQ" => (Compare::MaskedEq(argument.value), argument.value_two),
                other => {
                    return Err(invalid(format!(
                        "op {other:?} is no comparison of the specification"
                    )));
                }
            };
            if argument.value_two != 0 && !matches!(compare, Compare::MaskedEq(_)) {
                return Err(invalid("valueTwo counts for SCMP_CMP_MASKED_EQ only".into()));
            }
            conditions.push(Condition {
                index,
                width: Width::Double,
                compare,
                value,
            });
        }
        Ok(conditions)
    }
}

fn action(field: &str, name: &str, number: Option<u32>, symbol: Option<&str>) -> Result<Action, OciError> {
    let unsupported = |reason| {
        Err(OciError::Unsupported {
            field: field.into(),
            value: name.into(),
            reason,
        })
    };
    let invalid = |problem: String| OciError::Invalid {
        field: field.into(),
        problem,
    };
    let action = match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_ERRNO" => {
            let named = symbol.filter(|symbol| !symbol.is_empty());
            let named = named.map(|symbol| {
                error_number(symbol)
                    .ok_or_else(|| invalid(format!("the error {symbol:?} is not known; write errnoRet")))
            });
            let number = match (named.transpose()?, number) {
                (Some(named), Some(number)) if named != number => {
                    return Err(invalid(format!("it has two error numbers, {named} and {number}")));
                }
                (named, number) => named.or(number).unwrap_or(libc::EPERM.unsigned_abs()),
            };
            let small = u16::try_from(number).ok().filter(|number| *number < 4096);
            return small
                .map(Action::Errno)
                .ok_or_else(|| invalid(format!("the error number {number} is above 4095")));
        }
        "SCMP_ACT_NOTIFY" => return unsupported("no process outside of the container judges its calls"),
        "SCMP_ACT_TRACE" => return unsupported("nothing traces containers"),
        _ => return unsupported("the specification has no such action"),
    };
    if number.is_some() || symbol.is_some_and(|symbol| !symbol.is_empty()) {
        return Err(invalid(format!("{name} has no error number")));
    }
    Ok(action)
}

/// Podman writes errors by name; these are the ones that a filter can sensibly answer.
fn error_number(name: &str) -> Option<u32> {
    let number = match name {
        "EPERM" => libc::EPERM,
        "ENOENT" => libc::ENOENT,
        "EIO" => libc::EIO,
        "EAGAIN" => libc::EAGAIN,
        "ENOMEM" => libc::ENOMEM,
        "EACCES" => libc::EACCES,
        "EBUSY" => libc::EBUSY,
        "ENODEV" => libc::ENODEV,
        "EINVAL" => libc::EINVAL,
        "ENOTTY" => libc::ENOTTY,
        "EROFS" => libc::EROFS,
        "ENOSYS" => libc::ENOSYS,
        "EAFNOSUPPORT" => libc::EAFNOSUPPORT,
        "EPROTONOSUPPORT" => libc::EPROTONOSUPPORT,
        "EOPNOTSUPP" | "ENOTSUP" => libc::EOPNOTSUPP,
        _ => return None,
    };
    u32::try_from(number).ok()
}

fn parse_version(field: &str, text: &str) -> Result<(u32, u32), OciError> {
    let parsed = text
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| OciError::Invalid {
        field: format!("{field}.minKernel"),
        problem: format!("{text:?} is no kernel version such as \"4.8\""),
    })
}

#[cfg(test)]
#[path = "oci_tests.rs"]
mod tests;
