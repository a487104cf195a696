//! Last words: what a container left for its status when it ended.
//!
//! A file of the node, on a small tmpfs of the pod, is mounted at `terminationMessagePath`. It is the container's to write, so it is read
//! bounded, and its name on the node is nothing that the container can change.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// Kubernetes' path for containers that name none.
pub(crate) const DEFAULT_PATH: &str = "/dev/termination-log";

/// Longest message of one container: the end of its file.
const MAX_MESSAGE_BYTES: u64 = 4096;
/// Longest message taken from a log, and the most lines.
const MAX_LOG_BYTES: usize = 2048;
const MAX_LOG_LINES: usize = 80;
/// How much of a log's end is looked at for that.
const LOG_WINDOW_BYTES: u64 = 64 * 1024;
/// What all messages of a pod may have together.
const MAX_POD_BYTES: usize = 12 * 1024;

/// Where the message of one run of a container is kept, below the pod's directory of messages.
pub(super) fn path_of(files: &Path, container: &str, attempt: u32) -> PathBuf {
    files.join(format!("{container}.{attempt}.message"))
}

/// Makes the file for a run, empty and writable for every user of the pod, and removes the one before.
pub(super) fn prepare(files: &Path, container: &str, attempt: u32) -> io::Result<PathBuf> {
    if let Some(before) = attempt.checked_sub(1) {
        match fs::remove_file(path_of(files, container, before)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    // A pod of an agent before this one has no such directory.
    fs::create_dir_all(files)?;
    let path = path_of(files, container, attempt);
    fs::write(&path, b"")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    Ok(path)
}

/// What the run left: its message, or the end of its log if it failed and may fall back to that. Bounded by
/// the pod's number of containers, as Kubernetes does.
pub(super) fn message(
    file: &Path,
    log: Option<&Path>,
    failed: bool,
    containers: usize,
) -> io::Result<String> {
    let (mut message, _) = end_of(file, MAX_MESSAGE_BYTES)?;
    if message.is_empty()
        && failed
        && let Some(log) = log
    {
        message = end_of_log(log)?;
    }
    message.truncate(MAX_POD_BYTES / containers.max(1));
    Ok(String::from_utf8_lossy(&message).into_owned())
}

/// The last lines of a CRI log, without their heads.
fn end_of_log(path: &Path) -> io::Result<Vec<u8>> {
    let (window, is_part) = end_of(path, LOG_WINDOW_BYTES)?;
    let lines: Vec<&[u8]> = window
        .split_inclusive(|byte| *byte == b'\n')
        // The window may begin in the middle of a line.
        .skip(usize::from(is_part))
        .collect();
    let mut kept = Vec::new();
    for line in lines
        .get(lines.len().saturating_sub(MAX_LOG_LINES)..)
        .unwrap_or_default()
    {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let (tag, text) = (
            fields.nth(2).unwrap_or_default(),
            fields.next().unwrap_or_default(),
        );
        let text = match tag {
            // The rest of the line follows in the next entry.
            b"P" => text.strip_suffix(b"\n").unwrap_or(text),
            _ => text,
        };
        kept.extend_from_slice(text);
    }
    // The end says what went wrong.
    kept.drain(..kept.len().saturating_sub(MAX_LOG_BYTES));
    Ok(kept)
}

/// At most so many bytes of the end of a file, and whether it has more; nothing if there is none.
fn end_of(path: &Path, limit: u64) -> io::Result<(Vec<u8>, bool)> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), false)),
        Err(error) => return Err(error),
    };
    let start = file.metadata()?.len().saturating_sub(limit);
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    file.take(limit).read_to_end(&mut end)?;
    Ok((end, start > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_bounded_and_fall_back_to_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let file = prepare(directory.path(), "c", 0).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o666);
        let log = directory.path().join("0.log");
        let lines = (0..100).map(|line| format!("2026-01-01T00:00:00Z stdout F line {line}\n"));
        fs::write(&log, lines.collect::<String>()).unwrap();
        let of = |failed: bool, fall_back: bool, containers: usize| {
            message(&file, fall_back.then_some(log.as_path()), failed, containers).unwrap()
        };
        assert_eq!(of(true, false, 1), "");
        assert_eq!(of(false, true, 1), "", "only for failures");
        let fallen_back = of(true, true, 1);
        assert!(fallen_back.starts_with("line 20\nline 21\n"), "{fallen_back}");
        assert!(fallen_back.ends_with("line 99\n"));
        let long = (0..80).map(|line| format!("t stdout F {:0>99}\n", line));
        fs::write(&log, long.collect::<String>()).unwrap();
        let tail = of(true, true, 1);
        assert_eq!(tail.len(), MAX_LOG_BYTES);
        assert!(tail.ends_with("79\n"), "the end is what tells why: {tail}");
        let written = format!("begun\n{}error: it broke\n", "x".repeat(1 << 20));
        fs::write(&file, written).unwrap();
        let message = of(true, true, 1);
        assert_eq!(message.len(), 4096);
        assert!(
            message.ends_with("xerror: it broke\n"),
            "the end, as the kubelet reads it"
        );
        let short = of(true, true, 24);
        assert_eq!(short.len(), 512, "12 kB for all");
        assert!(
            !short.contains("error"),
            "the beginning of that, as the kubelet cuts it"
        );
        let next = prepare(directory.path(), "c", 1).unwrap();
        assert!(!file.exists() && next.exists());
    }

    #[test]
    fn parts_of_a_line_are_joined() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        fs::write(&log, "t stderr P half\nt stderr F  whole\nt stdout F next\n").unwrap();
        let none = directory.path().join("none");
        assert_eq!(message(&none, Some(&log), true, 1).unwrap(), "half whole\nnext\n");
        assert_eq!(message(&none, Some(&none), true, 1).unwrap(), "");
    }
}
