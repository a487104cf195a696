//! Runs Trivy over one verified image, in a jail.
//!
//! Per scan: a fresh private directory with the image's layout, an empty working directory and a
//! temporary directory; an empty environment; no network; resource limits; its own process group, killed
//! when time is up. Nothing that Trivy reads besides the image and the database can steer it, and nothing
//! that it leaves behind reaches the next scan.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use agent_sandbox::{
    PathAccess, PathRule,
    jail::{self, JailSpec},
};
use api::Digest;
use images_fetch::VerifiedImage;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags, Signal},
};
use scanner_report::{MAX_REPORT_BYTES, Report};
use sha2::{Digest as _, Sha256};

use crate::{GateError, error::io_error};

const MAX_STDERR_BYTES: i64 = 2048;

/// The scanner binary, its pinned hash, and how to run it.
#[derive(Debug)]
pub(crate) struct Scanner {
    pub(crate) program: PathBuf,
    pub(crate) pinned: Digest,
    pub(crate) jail_exe: PathBuf,
    pub(crate) db_dir: PathBuf,
    /// Parent of the directories of single scans.
    pub(crate) work_dir: PathBuf,
    pub(crate) timeout: Duration,
    /// Identity of the binary when its hash was last found right.
    pub(crate) verified: Mutex<Option<FileIdentity>>,
}

/// What changes when a file's content changes. The change time cannot be set back by anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Scanner {
    /// Checks that the binary is the pinned one. Its 170 MB are hashed only when the file is another than
    /// the last time. Between this check and the start the file must not change: it belongs to root or
    /// the operator, and the gate runs as neither.
    pub(crate) fn verify_binary(&self) -> Result<(), GateError> {
        let path = &self.program;
        let mut file = File::open(path).map_err(io_error("open the scanner", path))?;
        let identity = FileIdentity::of(&file).map_err(io_error("inspect the scanner", path))?;
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if *verified == Some(identity) {
            return Ok(());
        }
        *verified = None;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file
                .read(&mut buffer)
                .map_err(io_error("read the scanner", path))?
            {
                0 => break,
                read => hasher.update(&buffer[..read]),
            }
        }
        let actual = Digest::from_sha256(hasher.finalize().into());
        if actual != self.pinned {
            return Err(GateError::ScannerHash {
                path: path.clone(),
                expected: self.pinned,
                actual,
            });
        }
        *verified = Some(identity);
        Ok(())
    }

    /// Scans. Blocks for as long as that takes; the child is tied to the calling thread.
    pub(crate) fn scan(&self, image: &VerifiedImage) -> Result<Report, GateError> {
        self.verify_binary()?;
        // Removed when it goes out of scope, with everything the scanner left in it.
        let dir = tempfile::Builder::new()
            .prefix("scan-")
            .tempdir_in(&self.work_dir)
            .map_err(io_error("create a directory in", &self.work_dir))?;
        let place = Place::prepare(dir.path(), &self.db_dir)?;
        image
            .write_layout(&place.layout)
            .map_err(|source| GateError::Fetch { source })?;

        let spec = self.jail(&place, image.image().digest);
        let stderr = tempfile::tempfile_in(&place.out).map_err(io_error("create a file in", &place.out))?;
        let child_stderr = stderr
            .try_clone()
            .map_err(io_error("open a file in", &place.out))?;
        let child = jail::command(&self.jail_exe, &spec)
            .map_err(|source| GateError::Jail { source })?
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(child_stderr)
            .spawn()
            .map_err(io_error("start the scanner's jail", &self.jail_exe))?;
        let status = wait(child, self.timeout)?;
        if !status.success() {
            return Err(GateError::ScannerFailed {
                status: describe(status),
                message: tail(stderr),
            });
        }
        let mut bytes = Vec::new();
        File::open(&place.report)
            .and_then(|file| file.take(MAX_REPORT_BYTES as u64 + 1).read_to_end(&mut bytes))
            .map_err(io_error("read the scanner's report", &place.report))?;
        Report::parse(&bytes).map_err(|source| GateError::Report { source })
    }

    fn jail(&self, place: &Place, digest: Digest) -> JailSpec {
        let path = |path: &Path| path.display().to_string();
        let args = [
            "image",
            "--quiet",
            "--input",
            &format!("{}@{digest}", path(&place.layout)),
            "--format",
            "json",
            "--output",
            &path(&place.report),
            "--scanners",
            "vuln",
            "--list-all-pkgs",
            "--cache-dir",
            &path(&place.cache),
            // The default cache trusts the diffIDs that an image claims, so one image could poison the
            // results of another.
            "--cache-backend",
            "memory",
            "--offline-scan",
            "--skip-db-update",
            "--skip-java-db-update",
            "--skip-check-update",
            "--skip-vex-repo-update",
            "--skip-version-check",
            "--disable-telemetry",
            "--no-progress",
            // Without these two, files of that name in the working directory would be obeyed.
            "--config",
            "",
            "--ignorefile",
            "",
        ];
        let read = |path: &Path| PathRule::new(path, PathAccess::Read);
        let write = |path: &Path| PathRule::new(path, PathAccess::ReadWrite);
        JailSpec {
            program: self.program.clone(),
            args: args.map(str::to_owned).to_vec(),
            env: vec![("TMPDIR".to_owned(), path(&place.tmp))],
            cwd: place.cwd.clone(),
            paths: vec![
                read(&self.db_dir),
                read(&place.cache),
                read(&place.cwd),
                read(&place.layout),
                write(&place.tmp),
                write(&place.out),
            ],
            limits: jail::Limits {
                cpu_seconds: self.timeout.as_secs().saturating_mul(4).max(1),
                file_bytes: MAX_REPORT_BYTES as u64,
                ..jail::Limits::default()
            },
        }
    }
}

impl FileIdentity {
    fn of(file: &File) -> io::Result<Self> {
        let stat = file.metadata()?;
        Ok(Self {
            device: stat.dev(),
            inode: stat.ino(),
            size: stat.size(),
            modified: (stat.mtime(), stat.mtime_nsec()),
            changed: (stat.ctime(), stat.ctime_nsec()),
        })
    }
}

/// Directories of one scan.
struct Place {
    layout: PathBuf,
    cwd: PathBuf,
    tmp: PathBuf,
    out: PathBuf,
    cache: PathBuf,
    report: PathBuf,
}

impl Place {
    fn prepare(dir: &Path, db_dir: &Path) -> Result<Self, GateError> {
        let place = Self {
            layout: dir.join("layout"),
            cwd: dir.join("cwd"),
            tmp: dir.join("tmp"),
            out: dir.join("out"),
            cache: dir.join("cache"),
            report: dir.join("out/report.json"),
        };
        for path in [&place.layout, &place.cwd, &place.tmp, &place.out, &place.cache] {
            fs::create_dir(path).map_err(io_error("create", path))?;
        }
        // Trivy wants its database below its cache directory; the cache directory is ours and empty.
        let link = place.cache.join("db");
        std::os::unix::fs::symlink(db_dir, &link).map_err(io_error("link", &link))?;
        Ok(place)
    }
}

/// Waits for the child; kills its process group when time is up, and in any case before it is reaped, so
/// that nothing it started stays behind.
fn wait(mut child: Child, timeout: Duration) -> Result<ExitStatus, GateError> {
    let waited = wait_for_exit(&child, timeout);
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Fails when all are gone, which is what is wanted.
        let _gone = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let status = child
        .wait()
        .map_err(io_error("wait for", Path::new("the scanner")))?;
    match waited.map_err(io_error("wait for", Path::new("the scanner")))? {
        true => Ok(status),
        false => Err(GateError::ScannerTimeout {
            seconds: timeout.as_secs(),
        }),
    }
}

/// Whether the child ended within `timeout`.
fn wait_for_exit(child: &Child, timeout: Duration) -> io::Result<bool> {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return Err(io::Error::other("the scanner has no process id"));
    };
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(jail::EXIT_NOT_STARTED), _) => "it was not started".to_owned(),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}

/// The end of what the scanner wrote, as one harmless line.
fn tail(mut stderr: File) -> String {
    let mut bytes = Vec::new();
    let start = stderr.metadata().map_or(0, |stat| {
        i64::try_from(stat.len()).unwrap_or(0).min(MAX_STDERR_BYTES)
    });
    let read = stderr
        .seek(SeekFrom::End(-start))
        .and_then(|_| stderr.read_to_end(&mut bytes));
    if let Err(error) = read {
        return format!("(its messages cannot be read: {error})");
    }
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim().replace(['\n', '\t'], " ");
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
