//! Which rules speak about one system call, and what each says.

use api::palisade::{SandboxPreset, SandboxProfileSpec};
use serde::Serialize;

use crate::object::{ObjectError, Surroundings, kept, tightened};
use crate::oci::{self, OciError};
use crate::seccomp::{Action, SyscallPolicy, detours};
use crate::syscalls::{
    BASELINE, BASELINE_CONDITIONS, CLONE3, Conditional, Group, NEWEST_KNOWN, STRICT_ABSENT,
    STRICT_CONDITIONS, STRICT_REFUSED,
};
use crate::{SyscallSet, Tcp};

/// What one rule says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ruling {
    /// Whose rule it is, such as `preset strict`.
    pub of: String,
    /// Which one, and why it is there.
    pub rule: String,
    /// Its answer.
    pub action: Action,
}

/// The answer to a call, and all that was said about it; the strictest counts, of equally strict ones the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The answer.
    pub action: Action,
    /// In the order in which they are asked.
    pub rulings: Vec<Ruling>,
}

/// What a profile says about a call.
pub fn explain(
    spec: &SandboxProfileSpec,
    around: &Surroundings<'_>,
    number: u32,
    arguments: &[u64; 6],
) -> Result<Explanation, ObjectError> {
    let profile = tightened(spec, around)?.profile;
    let action = profile.syscall_policy().decide(number, arguments);
    let mut rulings = of_preset(spec.preset, number, arguments);
    if let Some(seccomp) = &spec.seccomp {
        let json = serde_json::to_string(seccomp).map_err(|source| ObjectError::Malformed { source })?;
        let capabilities = kept(spec, around.capabilities);
        let context = oci::Context {
            capabilities: &capabilities,
            kernel: around.kernel,
        };
        rulings.extend(
            of_oci(&json, &context, number, arguments).map_err(|source| ObjectError::Seccomp { source })?,
        );
    }
    rulings.extend(of_ports(&profile.tcp, number, arguments));
    Ok(Explanation { action, rulings })
}

/// What limits of TCP ports say of a call that could get around them.
fn of_ports(tcp: &Tcp, number: u32, arguments: &[u64; 6]) -> Option<Ruling> {
    let (reason, rule) = detours::about(tcp, number)?;
    Some(Ruling {
        of: "limits of TCP ports".to_owned(),
        rule: reason.to_owned(),
        action: rule.decide(arguments),
    })
}

fn of_oci(
    json: &str,
    context: &oci::Context<'_>,
    number: u32,
    arguments: &[u64; 6],
) -> Result<Vec<Ruling>, OciError> {
    let matching = oci::matching(json, context, number, arguments)?;
    let ruling = |(rule, action)| Ruling {
        of: "spec.seccomp".to_owned(),
        rule,
        action,
    };
    Ok(matching.into_iter().map(ruling).collect())
}

fn of_preset(preset: SandboxPreset, number: u32, arguments: &[u64; 6]) -> Vec<Ruling> {
    let baseline = SyscallSet::Baseline.policy();
    let mut rulings = vec![Ruling {
        of: "preset baseline".to_owned(),
        rule: baseline_rule(&baseline, number),
        action: baseline.decide(number, arguments),
    }];
    let (name, beyond) = match preset {
        SandboxPreset::Baseline => return rulings,
        SandboxPreset::Strict => ("strict", SyscallSet::Strict.policy()),
        SandboxPreset::Audit => ("audit", SyscallSet::Audit.policy()),
    };
    if let Some(rule) = strict_rule(number) {
        rulings.push(Ruling {
            of: format!("preset {name}"),
            rule,
            action: beyond.decide(number, arguments),
        });
    }
    rulings
}

fn baseline_rule(baseline: &SyscallPolicy, number: u32) -> String {
    if let Some(rule) = listed(BASELINE, BASELINE_CONDITIONS, number) {
        return rule;
    }
    if u32::try_from(CLONE3) == Ok(number) {
        return "clone3 hides its flags behind a pointer; libraries fall back to clone".to_owned();
    }
    if number >= crate::seccomp::X32 {
        return "a call of the x32 interface".to_owned();
    }
    if number > baseline.newest_known {
        return format!("newer than {NEWEST_KNOWN}, the newest call that is known");
    }
    "not in the list of what ordinary images need".to_owned()
}

fn strict_rule(number: u32) -> Option<String> {
    let absent = STRICT_ABSENT
        .iter()
        .any(|(_, absent)| u32::try_from(*absent) == Ok(number));
    match absent {
        true => {
            Some("anonymous files could be mapped as code and written through a second mapping".to_owned())
        }
        false => listed(STRICT_REFUSED, STRICT_CONDITIONS, number),
    }
}

fn listed(groups: &[&Group], conditions: &[Conditional], number: u32) -> Option<String> {
    let is = |(_, other): &(&str, i64)| u32::try_from(*other) == Ok(number);
    if let Some(condition) = conditions.iter().find(|condition| is(&condition.call)) {
        return Some(format!("its arguments decide: {}", condition.reason));
    }
    let group = groups.iter().find(|group| group.calls.iter().any(is))?;
    Some(format!("group {}: {}", group.name, group.reason))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::call_number;

    fn explained(spec: serde_json::Value, call: &str, arguments: [u64; 6]) -> Explanation {
        let around = Surroundings {
            declared: &BTreeSet::new(),
            egress: None,
            capabilities: &[],
            kernel: (6, 12),
            floor: 5,
        };
        let spec = serde_json::from_value(spec).expect("a spec");
        let number = call_number(call).expect("a call");
        explain(&spec, &around, number, &arguments).expect("valid")
    }

    #[test]
    fn the_strictest_rule_decides_and_all_are_named() {
        let spec = json!({"preset": "strict", "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mprotect"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 1, "value": 4096, "op": "SCMP_CMP_LE"}]}]}});
        let read = explained(spec.clone(), "read", [0; 6]);
        assert_eq!(read.action, Action::Allow);
        assert!(read.rulings[0].rule.starts_with("group "), "{read:?}");
        assert_eq!(read.rulings[1].rule, "syscalls[0]");
        let code = explained(spec.clone(), "mprotect", [0, 10, 4, 0, 0, 0]);
        assert_eq!(code.action, Action::Errno(1));
        let actions: Vec<_> = code.rulings.iter().map(|ruling| ruling.action).collect();
        assert_eq!(actions, [Action::Allow, Action::Errno(1), Action::Allow]);
        let long = explained(spec.clone(), "mprotect", [0, 5000, 0, 0, 0, 0]);
        assert_eq!(long.rulings.last().expect("the object's").rule, "defaultAction");
        assert_eq!(long.action, Action::Errno(1));
        assert_eq!(explained(spec, "ptrace", [0; 6]).action, Action::Errno(1));
        assert_eq!(explained(json!({}), "clone3", [0; 6]).action, Action::Errno(38));
    }

    /// The rule counts for a capability that the container would have and the object takes.
    #[test]
    fn rules_for_capabilities_that_are_taken_do_not_count() {
        let around = Surroundings {
            declared: &BTreeSet::new(),
            egress: None,
            capabilities: &["CAP_SYS_CHROOT".to_owned()],
            kernel: (6, 12),
            floor: 5,
        };
        let number = call_number("chroot").expect("a call");
        let told = |capabilities: serde_json::Value| {
            let spec = json!({"capabilities": capabilities, "seccomp": {"defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
                    {"names": ["openat2"], "action": "SCMP_ACT_ALLOW"}]}});
            let spec = serde_json::from_value(spec).expect("a spec");
            let told = explain(&spec, &around, number, &[0; 6]).expect("valid");
            (
                told.action,
                told.rulings.last().expect("the object's").rule.clone(),
            )
        };
        assert_eq!(told(json!(null)), (Action::Allow, "syscalls[0]".to_owned()));
        assert_eq!(
            told(json!(["CAP_CHOWN"])),
            (Action::Errno(1), "defaultAction".to_owned())
        );
    }

    /// What is explained is what the filter does, for every call.
    #[test]
    fn the_rulings_of_every_call_add_up_to_its_answer() {
        for preset in ["baseline", "strict", "audit"] {
            for (name, _) in crate::names::all() {
                for arguments in [[0; 6], [u64::MAX; 6], [1, 2, 4, 8, 16, 32]] {
                    let told = explained(json!({"preset": preset}), name, arguments);
                    let strictest = told
                        .rulings
                        .iter()
                        .map(|ruling| ruling.action)
                        .reduce(Action::and);
                    assert_eq!(strictest, Some(told.action), "{preset} {name}: {told:?}");
                }
            }
        }
    }
}
