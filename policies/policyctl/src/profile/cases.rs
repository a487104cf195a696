//! Unit tests of profiles.

use std::{
    path::{Component, Path, PathBuf},
    process::ExitCode,
};

use agent_sandbox::{Action, Paths, Profile, Tcp};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{Around, args::ProfileOutput, args::TestArgs, number, read, report, word};
use crate::output;

/// One case, about exactly one thing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    name: String,
    expect: String,
    profile: Option<String>,
    syscall: Option<String>,
    #[serde(default)]
    args: Vec<u64>,
    read: Option<PathBuf>,
    write: Option<PathBuf>,
    execute: Option<PathBuf>,
    bind: Option<u16>,
    connect: Option<u16>,
}

/// What came of one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    name: String,
    passed: bool,
    expected: String,
    answer: String,
}

pub(super) fn run(args: &TestArgs) -> Result<ExitCode> {
    let path = args.cases.display();
    let text = std::fs::read_to_string(&args.cases).with_context(|| format!("cannot read {path}"))?;
    let cases: Vec<Case> =
        serde_saphyr::from_str(&text).with_context(|| format!("{path} is no list of cases"))?;
    if cases.is_empty() {
        bail!("{path} has no case");
    }
    let around = Around::of(&args.around)?;
    let places = Places::of(args)?;
    let mut outcomes = Vec::new();
    for case in cases {
        let name = case.profile.as_deref().unwrap_or(&args.profile);
        let profile = around.profile(name, &read(name)?)?;
        let answer = ask(&case, &profile, &places).with_context(|| format!("case {:?}", case.name))?;
        let passed = meets(&case.expect, &answer).with_context(|| format!("case {:?}", case.name))?;
        outcomes.push(Outcome {
            name: case.name,
            passed,
            expected: case.expect,
            answer: answer.word(),
        });
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    match args.output {
        ProfileOutput::Table => {
            for outcome in &outcomes {
                let verdict = match outcome.passed {
                    true => output::coloured("pass", output::Colour::Good),
                    false => output::coloured("FAIL", output::Colour::Bad),
                };
                output::line(&format!("{verdict}  {}", outcome.name))?;
                if !outcome.passed {
                    output::line(&format!(
                        "      expected {}, is {}",
                        outcome.expected, outcome.answer
                    ))?;
                }
            }
            output::line(&format!(
                "{} of {} cases pass",
                outcomes.len() - failed,
                outcomes.len()
            ))?;
        }
        format => report(&outcomes, format)?,
    }
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// What the answers about paths depend on beside the profile.
#[derive(Default)]
struct Places {
    volumes: Vec<PathBuf>,
    executables: Vec<PathBuf>,
}

impl Places {
    fn of(args: &TestArgs) -> Result<Self> {
        for (option, paths) in [("--volume", &args.volumes), ("--executable", &args.executables)] {
            for path in paths {
                demand_plain(path).context(option)?;
            }
        }
        Ok(Self {
            volumes: args.volumes.clone(),
            executables: args.executables.clone(),
        })
    }
}

/// What a profile answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Call(Action),
    Landlock(bool),
}

impl Answer {
    fn word(self) -> String {
        match self {
            Self::Call(action) => word(action),
            Self::Landlock(true) => "allow".to_owned(),
            Self::Landlock(false) => "deny".to_owned(),
        }
    }
}

fn ask(case: &Case, profile: &Profile, places: &Places) -> Result<Answer> {
    let (mut bind, mut connect) = (None, None);
    match &profile.tcp {
        Tcp::Unrestricted => {}
        Tcp::Denied => (bind, connect) = (Some(Default::default()), Some(Default::default())),
        Tcp::Ports(ports) => (bind, connect) = (ports.bind.clone(), ports.connect.clone()),
    }
    let mut answers = Vec::new();
    if let Some(call) = &case.syscall {
        let mut arguments = [0; 6];
        if case.args.len() > arguments.len() {
            bail!("args: a system call has at most six");
        }
        arguments[..case.args.len()].copy_from_slice(&case.args);
        answers.push(Answer::Call(
            profile.syscall_policy().decide(number(call)?, &arguments),
        ));
    }
    for (access, path) in [
        (Access::Read, &case.read),
        (Access::Write, &case.write),
        (Access::Execute, &case.execute),
    ] {
        if let Some(path) = path {
            answers.push(Answer::Landlock(may(access, path, profile, places)?));
        }
    }
    let has = |ports: &Option<std::collections::BTreeSet<u16>>, port| {
        Answer::Landlock(ports.as_ref().is_none_or(|ports| ports.contains(&port)))
    };
    answers.extend(case.bind.map(|port| has(&bind, port)));
    answers.extend(case.connect.map(|port| has(&connect, port)));
    match answers.as_slice() {
        [one] => Ok(*one),
        _ => bail!("it must be about exactly one of syscall, read, write, execute, bind and connect"),
    }
}

#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
    Execute,
}

/// Whether the preset and the profile's lists leave this access to a path.
fn may(access: Access, path: &Path, profile: &Profile, places: &Places) -> Result<bool> {
    demand_plain(path)?;
    let limits = &profile.limits;
    let named =
        |list: &Option<Vec<PathBuf>>| list.iter().flatten().any(|directory| path.starts_with(directory));
    let leaves = |list: &Option<Vec<PathBuf>>| list.is_none() || named(list);
    // What is written or executed is read as well.
    let lists_leave_reading = leaves(&limits.read) || named(&limits.write) || named(&limits.execute);
    let paths = Paths {
        is_read_only: profile.is_read_only(),
        volumes: &places.volumes,
        executables: &places.executables,
    };
    Ok(match access {
        Access::Read => lists_leave_reading && paths.are_readable(path),
        Access::Execute => lists_leave_reading && leaves(&limits.execute) && paths.are_executable(path),
        Access::Write => {
            leaves(&limits.write)
                && paths.are_writable(path).with_context(|| {
                    format!(
                        "write: whether {} is a directory is for the image to say, and nothing else can be written there; \
                         name a path beneath it",
                        path.display()
                    )
                })?
        }
    })
}

fn demand_plain(path: &Path) -> Result<()> {
    let is_plain = |component| matches!(component, Component::RootDir | Component::Normal(_));
    match path.is_absolute() && path.components().all(is_plain) {
        true => Ok(()),
        false => bail!("{} must be an absolute path without '..'", path.display()),
    }
}

fn meets(expected: &str, answer: &Answer) -> Result<bool> {
    let is = |wanted: Action| *answer == Answer::Call(wanted);
    let refused = match answer {
        Answer::Call(action) => !super::allows(*action),
        Answer::Landlock(allowed) => !allowed,
    };
    Ok(match expected {
        "allow" => is(Action::Allow) || *answer == Answer::Landlock(true),
        "deny" => refused,
        "log" => is(Action::Log),
        "trap" => is(Action::Trap),
        "kill" => is(Action::KillProcess) || is(Action::KillThread),
        error => {
            let number = error
                .parse()
                .ok()
                .or_else(|| (1..4096_u16).find(|number| word(Action::Errno(*number)) == error));
            let number = number.with_context(|| {
                format!(
                    "expect: {error:?} is none of allow, deny, log, trap, kill, an error's name or its number"
                )
            })?;
            is(Action::Errno(number))
        }
    })
}

#[cfg(test)]
mod tests {
    use agent_sandbox::{FileLimits, TcpPorts};

    use super::*;

    fn judged(yaml: &str) -> Result<bool> {
        let case: Case = serde_saphyr::from_str(yaml)?;
        let profile = Profile {
            limits: FileLimits {
                read: Some(vec!["/etc".into()]),
                write: Some(vec!["/data".into()]),
                ..FileLimits::default()
            },
            ..Profile::strict(TcpPorts {
                bind: Some([80].into()),
                connect: None,
            })
        };
        meets(&case.expect, &ask(&case, &profile, &Places::default())?)
    }

    #[test]
    fn the_preset_judges_paths_before_the_lists_do() {
        let strict = Profile::strict(TcpPorts::default());
        let listed = Profile {
            limits: FileLimits {
                write: Some(vec!["/data".into(), "/usr/bin".into()]),
                ..FileLimits::default()
            },
            ..Profile::baseline()
        };
        let none = Places::default();
        let some = Places {
            volumes: vec!["/data".into()],
            executables: vec!["/app/run".into()],
        };
        for (profile, places, yaml) in [
            (&strict, &none, "{name: a, write: /etc/x, expect: deny}"),
            (&strict, &none, "{name: a, write: /data/x, expect: deny}"),
            (&strict, &some, "{name: a, write: /data/x, expect: allow}"),
            (&strict, &some, "{name: a, write: /dev/null, expect: allow}"),
            (
                &Profile::baseline(),
                &none,
                "{name: a, write: /etc/x, expect: allow}",
            ),
            (
                &Profile::baseline(),
                &none,
                "{name: a, write: /usr/bin/x, expect: deny}",
            ),
            (
                &Profile::baseline(),
                &none,
                "{name: a, execute: /usr/bin/x, expect: allow}",
            ),
            (
                &Profile::baseline(),
                &none,
                "{name: a, execute: /tmp/x, expect: deny}",
            ),
            (
                &Profile::baseline(),
                &none,
                "{name: a, execute: /app/run, expect: deny}",
            ),
            (
                &Profile::baseline(),
                &some,
                "{name: a, execute: /app/run, expect: allow}",
            ),
            (
                &Profile::baseline(),
                &none,
                "{name: a, read: /sys/kernel/x, expect: deny}",
            ),
            (&listed, &none, "{name: a, write: /data/x, expect: allow}"),
            (&listed, &none, "{name: a, write: /usr/bin/x, expect: deny}"),
            (&listed, &none, "{name: a, write: /new, expect: deny}"),
        ] {
            let case: Case = serde_saphyr::from_str(yaml).unwrap();
            let answer = ask(&case, profile, places).unwrap();
            assert!(meets(&case.expect, &answer).unwrap(), "{yaml}");
        }
        for (yaml, says) in [
            ("{name: a, write: /new, expect: allow}", "a path beneath"),
            ("{name: a, write: etc/x, expect: allow}", "absolute"),
            ("{name: a, read: /data/../etc/x, expect: allow}", "absolute"),
        ] {
            let case: Case = serde_saphyr::from_str(yaml).unwrap();
            let error = ask(&case, &Profile::baseline(), &none).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn cases_are_about_calls_paths_and_ports() {
        for (yaml, passes) in [
            ("{name: a, syscall: read, expect: allow}", true),
            (
                "{name: a, syscall: mprotect, args: [0, 1, 4], expect: EPERM}",
                true,
            ),
            ("{name: a, syscall: mprotect, args: [0, 1, 4], expect: '1'}", true),
            (
                "{name: a, syscall: mprotect, args: [0, 1, 4], expect: allow}",
                false,
            ),
            (
                "{name: a, syscall: mprotect, args: [0, 1, 4], expect: ENOSYS}",
                false,
            ),
            ("{name: a, syscall: ptrace, expect: deny}", true),
            ("{name: a, read: /etc/x, expect: allow}", true),
            ("{name: a, read: /data/x, expect: allow}", true),
            ("{name: a, read: /database, expect: deny}", true),
            ("{name: a, write: /etc/x, expect: deny}", true),
            ("{name: a, execute: /bin/sh, expect: deny}", true),
            ("{name: a, bind: 80, expect: allow}", true),
            ("{name: a, bind: 81, expect: deny}", true),
            ("{name: a, connect: 81, expect: allow}", true),
        ] {
            assert_eq!(judged(yaml).unwrap(), passes, "{yaml}");
        }
    }

    #[test]
    fn odd_cases_are_errors() {
        for (yaml, says) in [
            ("{name: a, expect: allow}", "exactly one"),
            ("{name: a, syscall: read, bind: 1, expect: allow}", "exactly one"),
            ("{name: a, syscall: raed, expect: allow}", "raed"),
            ("{name: a, syscall: read, expect: EWHAT}", "EWHAT"),
            ("{name: a, syscal: read, expect: allow}", "syscal"),
        ] {
            let error = format!("{:#}", judged(yaml).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
