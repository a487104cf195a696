//! Questions about sandbox profiles, from files alone. What is answered is what the node would do: the same crate
//! makes filters and rules there.

pub(crate) mod args;
mod cases;
mod diff;

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode};

use agent_sandbox::{
    Action, call_number, explain,
    object::{Surroundings, preset, tightened},
    oci,
};
use anyhow::{Context, Result, bail};
use api::palisade::{SandboxPreset, SandboxProfile, SandboxProfileSpec, SeccompProfile};
use serde::Serialize;
use serde_json::Value;

use self::args::{AroundArgs, ExplainArgs, ProfileArgs, ProfileCommand, ProfileOutput};
use crate::{cli::ObjectOutput, objects, output};

/// Exit code of profiles that differ, and of a call that is refused: answers, not errors.
const NO: u8 = 2;

/// What a container holds that asks for nothing, as the agent gives it.
const DEFAULT_CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// `policyctl profile`.
pub(crate) fn run(args: &ProfileArgs) -> Result<ExitCode> {
    match &args.what {
        ProfileCommand::Diff(args) => diff::run(args),
        ProfileCommand::Explain(args) => explain_call(args),
        ProfileCommand::Test(args) => cases::run(args),
    }
}

/// What profiles depend on, owned.
struct Around {
    declared: BTreeSet<u16>,
    egress: Option<BTreeSet<u16>>,
    capabilities: Vec<String>,
    kernel: (u32, u32),
}

impl Around {
    fn of(args: &AroundArgs) -> Result<Self> {
        let capabilities = match args.capabilities.as_slice() {
            [] => DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
            named => named.to_vec(),
        };
        let kernel = match &args.kernel {
            None => oci::kernel_version(),
            Some(text) => text
                .split_once('.')
                .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
                .with_context(|| format!("--kernel {text:?} is no version such as 6.12"))?,
        };
        let egress: BTreeSet<u16> = args.egress.iter().copied().collect();
        Ok(Self {
            declared: args.ports.iter().copied().collect(),
            egress: (!egress.is_empty()).then_some(egress),
            capabilities,
            kernel,
        })
    }

    fn view(&self) -> Surroundings<'_> {
        Surroundings {
            declared: &self.declared,
            egress: self.egress.as_ref(),
            capabilities: &self.capabilities,
            kernel: self.kernel,
            // Of kernels nothing is asked here.
            floor: 0,
        }
    }

    fn profile(&self, name: &str, spec: &SandboxProfileSpec) -> Result<agent_sandbox::Profile> {
        if spec == &SandboxProfileSpec::of(spec.preset) {
            return Ok(preset(spec.preset, &self.view()));
        }
        let made = tightened(spec, &self.view()).with_context(|| format!("{name} cannot be enforced"))?;
        for note in &made.notes {
            output::note(&format!("note: {name}: {note}"));
        }
        Ok(made.profile)
    }
}

/// A profile by the name of a preset, or from a file: a SandboxProfile, or a seccomp profile of Docker, Podman or runc,
/// which stands for a baseline that it tightens.
fn read(name: &str) -> Result<SandboxProfileSpec> {
    let of_preset = |preset| Ok(SandboxProfileSpec::of(preset));
    match name {
        "audit" => return of_preset(SandboxPreset::Audit),
        "baseline" => return of_preset(SandboxPreset::Baseline),
        "strict" => return of_preset(SandboxPreset::Strict),
        _ => {}
    }
    let documents = objects::documents(&[PathBuf::from(name)])
        .with_context(|| format!("{name} is no preset (audit, baseline, strict), and no file"))?;
    let mut found = documents
        .into_iter()
        .filter(|(_, object)| object["kind"] == "SandboxProfile" || object.get("defaultAction").is_some());
    let Some((origin, object)) = found.next() else {
        bail!("{name} has no SandboxProfile and no seccomp profile")
    };
    if found.next().is_some() {
        bail!("{name} has several profiles: put each into a file of its own");
    }
    let unread = || format!("{origin} cannot be read");
    if object.get("defaultAction").is_some() {
        let seccomp: SeccompProfile = serde_json::from_value(object).with_context(unread)?;
        return Ok(SandboxProfileSpec {
            seccomp: Some(seccomp),
            ..SandboxProfileSpec::default()
        });
    }
    let profile: SandboxProfile = serde_json::from_value(object).with_context(unread)?;
    Ok(profile.spec)
}

fn explain_call(args: &ExplainArgs) -> Result<ExitCode> {
    let number = number(&args.call)?;
    let arguments = arguments(&args.arguments)?;
    let around = Around::of(&args.around)?;
    let spec = read(&args.profile)?;
    let told = explain::explain(&spec, &around.view(), number, &arguments)
        .with_context(|| format!("{} cannot be enforced", args.profile))?;
    match args.output {
        ProfileOutput::Table => {
            let verdict = word(told.action);
            let colour = match allows(told.action) {
                true => output::Colour::Good,
                false => output::Colour::Bad,
            };
            output::line(&format!("{}: {}", args.call, output::coloured(&verdict, colour)))?;
            let mut rows = vec![["OF", "ANSWER", "RULE"].map(str::to_owned).to_vec()];
            rows.extend(
                told.rulings
                    .iter()
                    .map(|ruling| vec![ruling.of.clone(), word(ruling.action), ruling.rule.clone()]),
            );
            output::aligned(rows)?;
        }
        _ => report(
            &Told {
                call: &args.call,
                arguments,
                answer: word(told.action),
                rulings: told
                    .rulings
                    .iter()
                    .map(|ruling| Said {
                        of: &ruling.of,
                        rule: &ruling.rule,
                        answer: word(ruling.action),
                    })
                    .collect(),
            },
            args.output,
        )?,
    }
    Ok(answer(allows(told.action)))
}

#[derive(Serialize)]
struct Told<'a> {
    call: &'a str,
    arguments: [u64; 6],
    answer: String,
    rulings: Vec<Said<'a>>,
}

#[derive(Serialize)]
struct Said<'a> {
    of: &'a str,
    rule: &'a str,
    answer: String,
}

fn number(call: &str) -> Result<u32> {
    call_number(call)
        .or_else(|| call.parse().ok())
        .with_context(|| format!("no system call of this machine is named {call:?}; give its name or number"))
}

fn arguments(words: &[String]) -> Result<[u64; 6]> {
    let mut arguments = [0; 6];
    if words.len() > arguments.len() {
        bail!("a system call has at most six arguments");
    }
    for (slot, word) in arguments.iter_mut().zip(words) {
        *slot = argument(word)?;
    }
    Ok(arguments)
}

fn argument(word: &str) -> Result<u64> {
    let parsed = match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        // As the kernel sees a negative number.
        None => word
            .parse::<u64>()
            .ok()
            .or_else(|| word.parse::<i64>().ok().map(i64::cast_unsigned)),
    };
    parsed.with_context(|| format!("argument {word:?} is no number of 64 bits"))
}

fn allows(action: Action) -> bool {
    matches!(action, Action::Allow | Action::Log)
}

/// An answer in words: errors by name where they have one that people know.
fn word(action: Action) -> String {
    match action {
        Action::Allow => "allow".to_owned(),
        Action::Log => "log".to_owned(),
        Action::Trap => "trap".to_owned(),
        Action::KillThread => "kill thread".to_owned(),
        Action::KillProcess => "kill".to_owned(),
        Action::Errno(number) => match nix::errno::Errno::from_raw(number.into()) {
            nix::errno::Errno::UnknownErrno => format!("errno {number}"),
            known => format!("{known:?}"),
        },
    }
}

fn report(value: &impl Serialize, format: ProfileOutput) -> Result<()> {
    let value: Value = serde_json::to_value(value).context("cannot write the answer")?;
    output::object(
        &value,
        match format {
            ProfileOutput::Yaml => ObjectOutput::Yaml,
            ProfileOutput::Json | ProfileOutput::Table => ObjectOutput::Json,
        },
    )
}

fn answer(yes: bool) -> ExitCode {
    match yes {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(NO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_the_kernel_sees_them() {
        assert_eq!(argument("0x10").unwrap(), 16);
        assert_eq!(argument("-1").unwrap(), u64::MAX);
        assert!(argument("x").is_err() && argument("18446744073709551616").is_err());
        let words: Vec<String> = (0..7).map(|number| number.to_string()).collect();
        assert!(arguments(&words).is_err());
        assert_eq!(arguments(&words[1..3]).unwrap(), [1, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn answers_have_words() {
        assert_eq!(word(Action::Errno(1)), "EPERM");
        assert_eq!(word(Action::Errno(4000)), "errno 4000");
        assert!(allows(Action::Log) && !allows(Action::Trap));
    }

    #[test]
    fn files_hold_objects_or_seccomp_profiles() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let object = "apiVersion: palisade.dev/v1alpha1\nkind: SandboxProfile\nmetadata: {name: a}\nspec: {preset: strict}\n";
        let one = write("one.yaml", object);
        assert_eq!(read(&one).unwrap(), SandboxProfileSpec::of(SandboxPreset::Strict));
        let oci = write("oci.json", r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#);
        assert_eq!(
            read(&oci).unwrap().seccomp.unwrap().default_action,
            "SCMP_ACT_ALLOW"
        );
        let two = write("two.yaml", &format!("{object}---\n{object}"));
        assert!(read(&two).unwrap_err().to_string().contains("several"));
        let odd = write("odd.yaml", &object.replace("preset", "prest"));
        assert!(read(&odd).is_err());
        assert!(
            read("nothing-of-that-name")
                .unwrap_err()
                .to_string()
                .contains("no preset")
        );
    }
}
