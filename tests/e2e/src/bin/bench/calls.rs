//! What the layers cost a running program: a system call that the filter lets pass, and the opening of a file that
//! Landlock judges. A child measures itself, confines itself as a container's first process is confined, and measures
//! itself again.

use std::{
    collections::BTreeMap, ffi::OsStr, fs::File, hint::black_box, os::fd::AsFd as _, path::Path,
    process::Command, time::Instant,
};

use agent_sandbox::{Action, Filter, ImageRuleset, Moment, Profile, SyscallPolicy};
use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, SocketType};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Line, median};

/// The word that makes this program the child that is confined as a container is.
pub(crate) const CHILD: &str = "measure-own-calls";
/// The word for a child under the least that a filter can be: it allows every call.
pub(crate) const LEAST: &str = "measure-least-filter";
/// Calls that are timed together.
const CALLS: u32 = 200_000;
const OPENINGS: u32 = 50_000;
/// Children; each has its own layout of memory, which alone makes some nanoseconds.
pub(crate) const CHILDREN: usize = 9;
/// Where the file lies, below a root that stands for the image's: as deep as programs' files mostly do.
const FILE: &str = "usr/lib/python3/dist-packages/module.py";

/// Nanoseconds for one, free and confined.
#[derive(Serialize, Deserialize)]
struct Measured {
    call: [f64; 2],
    judged: [f64; 2],
    open: [f64; 2],
}

/// Starts children and takes the middle of what they tell.
pub(crate) fn measure() -> Result<Vec<Line>> {
    let root = tempfile::tempdir().context("cannot make a directory")?;
    let file = root.path().join(FILE);
    std::fs::create_dir_all(file.parent().context("a file in no directory")?)?;
    std::fs::write(&file, "x")?;
    let (mut told, mut least) = (Vec::new(), Vec::new());
    for _ in 0..CHILDREN {
        told.push(child::<Measured>(&[CHILD.as_ref(), root.path().as_os_str()])?);
        let [free, under]: [f64; 2] = child(&[LEAST.as_ref()])?;
        least.push(under - free);
    }
    let middle = |which: &dyn Fn(&Measured) -> f64| median(told.iter().map(which).collect());
    let added = |metric, pair: &dyn Fn(&Measured) -> [f64; 2], most| {
        let more = middle(&|one| pair(one)[1] - pair(one)[0]);
        Line::alone(metric, "ns", more, most)
    };
    let under_baseline = added("  more under the baseline's filter", &|one| one.call, Some(45.0));
    Ok(vec![
        Line::alone("getppid, free", "ns", middle(&|one| one.call[0]), None),
        Line {
            target: under_baseline.target,
            met: under_baseline.met,
            ..Line::beside(
                &under_baseline.metric,
                "ns",
                under_baseline.ours,
                ("a filter that allows all", median(least)),
                None,
            )
        },
        Line::alone(
            "socket of no type, free",
            "ns",
            middle(&|one| one.judged[0]),
            None,
        ),
        added(
            "  more under the filter, which looks at its arguments",
            &|one| one.judged,
            Some(45.0),
        ),
        Line::alone(
            "open and close, six directories deep, free",
            "ns",
            middle(&|one| one.open[0]),
            None,
        ),
        added("  more under filter and Landlock", &|one| one.open, None),
    ])
}

fn child<T: DeserializeOwned>(words: &[&OsStr]) -> Result<T> {
    let own = std::env::current_exe().context("cannot find my own path")?;
    let ran = Command::new(own)
        .args(words)
        .output()
        .context("cannot start myself")?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(
        ran.status.success(),
        "the measuring child failed: {}",
        said.trim()
    );
    serde_json::from_slice(&ran.stdout).context("the measuring child wrote something else")
}

/// The child: one thread, confined for good halfway through. Returns what it measured as JSON.
pub(crate) fn as_child(root: &Path) -> Result<String> {
    let file = root.join(FILE);
    let (call, judged, open) = (time_calls(), time_judged(), time_openings(&file)?);
    let profile = Profile::baseline();
    let directory = File::open(root).context("cannot open the root")?;
    let image = ImageRuleset::build(directory.as_fd(), &[], &profile)?;
    profile
        .compile()?
        .restrict_in_container(&image, &[], Moment::Start)?
        .install_filter()?;
    let measured = Measured {
        call: [call, time_calls()],
        judged: [judged, time_judged()],
        open: [open, time_openings(&file)?],
    };
    Ok(serde_json::to_string(&measured)?)
}

/// The other child: nothing but a filter that allows every call, which no filter that is of use can be faster than.
pub(crate) fn under_the_least() -> Result<String> {
    let free = time_calls();
    Filter::compile(&SyscallPolicy {
        calls: BTreeMap::new(),
        default: Action::Allow,
        newest_known: 0,
        newer: Action::Allow,
    })?
    .install()?;
    Ok(serde_json::to_string(&[free, time_calls()])?)
}

/// One that the kernel knows to be allowed, whatever its arguments: it keeps a bitmap of those.
fn time_calls() -> f64 {
    let start = Instant::now();
    for _ in 0..CALLS {
        black_box(nix::unistd::getppid());
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
}

/// One that the filter judges by its arguments each time. It allows it, and no socket has the type.
fn time_judged() -> f64 {
    let no_type = SocketType::from_raw(77);
    let start = Instant::now();
    for _ in 0..CALLS {
        let _no_socket = black_box(rustix::net::socket(AddressFamily::INET, no_type, None));
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
}

fn time_openings(file: &Path) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..OPENINGS {
        black_box(File::open(file).context("the file cannot be opened")?);
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(OPENINGS))
}
