//! Running the commands that users run, with everything they print kept for the message when a check fails.

use std::{
    ffi::OsStr,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// What a command did.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The command line, for messages.
    pub shown: String,
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    /// Fails with everything printed unless the command succeeded.
    pub fn ok(self) -> Result<Self> {
        if self.code != 0 {
            bail!("{self}");
        }
        Ok(self)
    }

    /// Fails with everything printed unless the command failed.
    pub fn refused(self) -> Result<Self> {
        if self.code == 0 {
            bail!("expected a refusal: {self}");
        }
        Ok(self)
    }

    /// Fails unless standard output or standard error holds `text`.
    pub fn says(self, text: &str) -> Result<Self> {
        if !self.stdout.contains(text) && !self.stderr.contains(text) {
            bail!("expected {text:?} in: {self}");
        }
        Ok(self)
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ended with {} after {:?}\n--- stdout\n{}--- stderr\n{}",
            self.shown, self.code, self.took, self.stdout, self.stderr
        )
    }
}

/// Runs a command to its end.
pub fn run<S: AsRef<OsStr>>(program: &Path, arguments: &[S]) -> Result<Ran> {
    run_with_input(program, arguments, "")
}

/// Runs a command to its end with `input` on its standard input.
pub fn run_with_input<S: AsRef<OsStr>>(program: &Path, arguments: &[S], input: &str) -> Result<Ran> {
    let words: Vec<String> = arguments
        .iter()
        .map(|a| a.as_ref().to_string_lossy().into_owned())
        .collect();
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let shown = format!("{name} {}", words.join(" "));
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input closes it; that is its right.
        stdin.write_all(input.as_bytes()).unwrap_or_default();
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for `{shown}`"))?;
    Ok(Ran {
        shown,
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: start.elapsed(),
    })
}

/// How long to wait here for what takes at most `ordinarily` elsewhere: `PALISADE_TEST_PATIENCE` times as long, for machines
/// that are emulated.
pub fn patience(ordinarily: Duration) -> Duration {
    let times = std::env::var("PALISADE_TEST_PATIENCE");
    ordinarily * times.ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Tries until `check` succeeds; fails with its last error after [`patience`].
pub fn eventually<T>(ordinarily: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let patience = patience(ordinarily);
    let deadline = Instant::now() + patience;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("still so after {patience:?}")));
            }
            Err(_) => std::thread::park_timeout(Duration::from_millis(50)),
        }
    }
}

/// A program on the PATH.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// Directory of this build's binaries.
pub fn binaries() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find my own path")?;
    own.ancestors()
        .find(|dir| dir.join("policyctl").is_file())
        .map(Path::to_path_buf)
        .with_context(|| {
            format!(
                "no policyctl above {}; run `cargo build --workspace --bins`",
                own.display()
            )
        })
}
