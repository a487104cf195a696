//! The semantic difference of two profiles, layer by layer.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode};

use agent_sandbox::{Action, Enforcement, FileLimits, Profile, Tcp, compare};
use anyhow::Result;
use api::palisade::SandboxProfileSpec;
use serde::Serialize;

use super::{Around, answer, args::DiffArgs, args::ProfileOutput, read, report, word};
use crate::output;

/// What is different.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Difference {
    calls: Vec<Call>,
    others: Vec<Other>,
}

/// An answer to a call that is another.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    /// Absent for calls that nobody knows yet.
    call: Option<&'static str>,
    /// Arguments that show it, by position.
    arguments: std::collections::BTreeMap<u8, u64>,
    before: String,
    after: String,
    change: Change,
    /// Whether there may be more differences of this call.
    in_part: bool,
}

/// Something else that is another.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Other {
    field: &'static str,
    before: String,
    after: String,
    change: Change,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Change {
    Tighter,
    Looser,
    Other,
}

pub(super) fn run(args: &DiffArgs) -> Result<ExitCode> {
    let around = Around::of(&args.around)?;
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    let mut difference = difference(
        &around.profile(&args.before, &before)?,
        &around.profile(&args.after, &after)?,
    );
    difference.others.extend(of_capabilities(&before, &after));
    match args.output {
        ProfileOutput::Table => show(&difference)?,
        format => report(&difference, format)?,
    }
    Ok(answer(difference == Difference::default()))
}

fn show(difference: &Difference) -> Result<()> {
    if difference == &Difference::default() {
        return output::line("they mean the same");
    }
    let mut rows = vec![["", "WHAT", "BEFORE", "AFTER"].map(str::to_owned).to_vec()];
    for call in &difference.calls {
        let arguments: Vec<String> = call
            .arguments
            .iter()
            .map(|(index, value)| format!("{index}: {value:#x}"))
            .collect();
        let name = call.call.unwrap_or("calls that are newer");
        let what = match arguments.is_empty() {
            true => name.to_owned(),
            false => format!("{name} ({})", arguments.join(", ")),
        };
        let part = if call.in_part { " and perhaps more" } else { "" };
        rows.push(vec![
            call.change.word().to_owned(),
            format!("{what}{part}"),
            call.before.clone(),
            call.after.clone(),
        ]);
    }
    for other in &difference.others {
        rows.push(vec![
            other.change.word().to_owned(),
            other.field.to_owned(),
            other.before.clone(),
            other.after.clone(),
        ]);
    }
    output::aligned(rows)
}

impl Change {
    fn word(self) -> &'static str {
        match self {
            Self::Tighter => "tighter",
            Self::Looser => "looser",
            Self::Other => "other",
        }
    }

    /// By how much each side refuses.
    fn by(before: impl Into<u32>, after: impl Into<u32>) -> Self {
        match before.into().cmp(&after.into()) {
            std::cmp::Ordering::Less => Self::Tighter,
            std::cmp::Ordering::Greater => Self::Looser,
            std::cmp::Ordering::Equal => Self::Other,
        }
    }
}

fn difference(before: &Profile, after: &Profile) -> Difference {
    let calls = compare::differences(&before.syscall_policy(), &after.syscall_policy());
    let calls = calls.into_iter().flat_map(|difference| {
        let named = |before: Action, after: Action, arguments| Call {
            call: difference.call,
            arguments,
            before: word(before),
            after: word(after),
            change: Change::by(before.severity(), after.severity()),
            in_part: difference.in_part,
        };
        let cases = difference.cases.iter();
        cases
            .map(|case| named(case.before, case.after, case.arguments.clone()))
            .collect::<Vec<_>>()
    });
    let mut others = Vec::new();
    let mut note = |field, before: String, after: String, change| {
        if before != after {
            others.push(Other {
                field,
                before,
                after,
                change,
            });
        }
    };
    let root = |profile: &Profile| {
        if profile.is_read_only() {
            "read-only"
        } else {
            "writable"
        }
        .to_owned()
    };
    note(
        "image",
        root(before),
        root(after),
        Change::by(before.is_read_only(), after.is_read_only()),
    );
    for (field, list) in [
        ("tcp.bind", bind as fn(&Profile) -> Option<BTreeSet<u16>>),
        ("tcp.connect", connect as fn(&Profile) -> Option<BTreeSet<u16>>),
    ] {
        let (a, b) = (list(before), list(after));
        note(
            field,
            listed(a.as_ref()),
            listed(b.as_ref()),
            change_of(a.as_ref(), b.as_ref(), BTreeSet::is_subset),
        );
    }
    for (field, list) in LISTS {
        let (a, b) = (list(&before.limits), list(&after.limits));
        let shown = |list: Option<&Vec<PathBuf>>| {
            listed(list.map(|list| list.iter().map(|path| path.display().to_string())))
        };
        let within = |one: &Vec<PathBuf>, other: &Vec<PathBuf>| {
            one.iter()
                .all(|path| other.iter().any(|directory| path.starts_with(directory)))
        };
        note(field, shown(a), shown(b), change_of(a, b, within));
    }
    let scopes = |profile: &Profile| {
        let mut names = Vec::new();
        names.extend(profile.scopes.abstract_sockets.then_some("AbstractUnixSockets"));
        names.extend(profile.scopes.signals.then_some("Signals"));
        names
    };
    let (a, b) = (scopes(before), scopes(after));
    let change = match (
        a.iter().all(|name| b.contains(name)),
        b.iter().all(|name| a.contains(name)),
    ) {
        (true, _) => Change::Tighter,
        (_, true) => Change::Looser,
        _ => Change::Other,
    };
    note("landlock.scopes", a.join(", "), b.join(", "), change);
    let required = |profile: &Profile| profile.enforcement == Enforcement::Required;
    let enforcement = |profile: &Profile| {
        if required(profile) {
            "Required"
        } else {
            "BestEffort"
        }
        .to_owned()
    };
    note(
        "enforcement",
        enforcement(before),
        enforcement(after),
        Change::by(required(before), required(after)),
    );
    note(
        "minimumLandlockABI",
        before.minimum_landlock.to_string(),
        after.minimum_landlock.to_string(),
        Change::by(before.minimum_landlock, after.minimum_landlock),
    );
    Difference {
        calls: calls.collect(),
        others,
    }
}

/// Which of the capabilities that a container would have two objects leave it.
fn of_capabilities(before: &SandboxProfileSpec, after: &SandboxProfileSpec) -> Option<Other> {
    let kept = |spec: &SandboxProfileSpec| {
        let kept = spec.capabilities.as_ref();
        kept.map(|kept| kept.iter().cloned().collect::<BTreeSet<String>>())
    };
    let (before, after) = (kept(before), kept(after));
    (before != after).then(|| Other {
        field: "capabilities",
        before: listed(before.as_ref()),
        after: listed(after.as_ref()),
        change: change_of(before.as_ref(), after.as_ref(), BTreeSet::is_subset),
    })
}

type List = fn(&FileLimits) -> Option<&Vec<PathBuf>>;

const LISTS: [(&str, List); 4] = [
    ("landlock.paths.read", |limits| limits.read.as_ref()),
    ("landlock.paths.write", |limits| limits.write.as_ref()),
    ("landlock.paths.execute", |limits| limits.execute.as_ref()),
    ("landlock.ioctl", |limits| limits.ioctl.as_ref()),
];

fn bind(profile: &Profile) -> Option<BTreeSet<u16>> {
    match &profile.tcp {
        Tcp::Unrestricted => None,
        Tcp::Denied => Some(BTreeSet::new()),
        Tcp::Ports(ports) => ports.bind.clone(),
    }
}

fn connect(profile: &Profile) -> Option<BTreeSet<u16>> {
    match &profile.tcp {
        Tcp::Unrestricted => None,
        Tcp::Denied => Some(BTreeSet::new()),
        Tcp::Ports(ports) => ports.connect.clone(),
    }
}

/// Of two lists of what is allowed, where none allows all.
fn change_of<T>(before: Option<&T>, after: Option<&T>, within: impl Fn(&T, &T) -> bool) -> Change {
    match (before, after) {
        (None, _) => Change::Tighter,
        (_, None) => Change::Looser,
        (Some(before), Some(after)) => match (within(after, before), within(before, after)) {
            (true, false) => Change::Tighter,
            (false, true) => Change::Looser,
            _ => Change::Other,
        },
    }
}

fn listed<T: ToString>(list: Option<impl IntoIterator<Item = T>>) -> String {
    match list {
        None => "any".to_owned(),
        Some(list) => {
            let words: Vec<String> = list.into_iter().map(|item| item.to_string()).collect();
            if words.is_empty() {
                "none".to_owned()
            } else {
                words.join(", ")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use agent_sandbox::TcpPorts;

    use super::*;

    #[test]
    fn strict_is_tighter_than_the_baseline_in_every_way() {
        let strict = Profile::strict(TcpPorts {
            bind: Some([80].into()),
            connect: None,
        });
        let told = difference(&Profile::baseline(), &strict);
        assert!(told.calls.iter().any(|call| call.call == Some("mprotect")));
        assert!(
            told.calls.iter().all(|call| call.change == Change::Tighter),
            "{told:?}"
        );
        let fields: Vec<_> = told
            .others
            .iter()
            .map(|other| (other.field, other.change))
            .collect();
        assert_eq!(
            fields,
            [("image", Change::Tighter), ("tcp.bind", Change::Tighter)]
        );
        let back = difference(&strict, &Profile::baseline());
        assert!(
            back.others.iter().all(|other| other.change == Change::Looser),
            "{back:?}"
        );
        assert_eq!(difference(&strict, &strict), Difference::default());
    }

    #[test]
    fn capabilities_that_are_left_are_compared() {
        let spec = |kept: Option<&[&str]>| SandboxProfileSpec {
            capabilities: kept.map(|kept| kept.iter().map(|name| (*name).to_owned()).collect()),
            ..SandboxProfileSpec::default()
        };
        let (all, none) = (spec(None), spec(Some(&[])));
        let (one, two) = (spec(Some(&["CAP_KILL"])), spec(Some(&["CAP_KILL", "CAP_CHOWN"])));
        let change = |before: &_, after: &_| of_capabilities(before, after).map(|other| other.change);
        assert_eq!(change(&all, &none), Some(Change::Tighter));
        assert_eq!(change(&one, &all), Some(Change::Looser));
        assert_eq!(change(&two, &one), Some(Change::Tighter));
        let (other, turned) = (spec(Some(&["CAP_CHOWN"])), spec(Some(&["CAP_CHOWN", "CAP_KILL"])));
        assert_eq!(change(&one, &other), Some(Change::Other));
        assert_eq!(change(&two, &turned), None);
        let told = of_capabilities(&all, &none).unwrap();
        assert_eq!((told.before.as_str(), told.after.as_str()), ("any", "none"));
    }

    #[test]
    fn lists_of_paths_are_compared_by_what_is_beneath() {
        let with = |paths: &[&str]| Profile {
            limits: FileLimits {
                write: Some(paths.iter().map(PathBuf::from).collect()),
                ..FileLimits::default()
            },
            ..Profile::baseline()
        };
        let change = |a: &Profile, b: &Profile| difference(a, b).others.first().map(|other| other.change);
        assert_eq!(change(&Profile::baseline(), &with(&["/"])), Some(Change::Tighter));
        assert_eq!(
            change(&with(&["/data"]), &with(&["/data/a", "/data/b"])),
            Some(Change::Tighter)
        );
        assert_eq!(
            change(&with(&["/data/a"]), &with(&["/data"])),
            Some(Change::Looser)
        );
        assert_eq!(change(&with(&["/a"]), &with(&["/b"])), Some(Change::Other));
        assert_eq!(change(&with(&["/a"]), &with(&["/a"])), None);
    }
}
