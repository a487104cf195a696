//! Reads container logs (CRI format) the way `kubectl logs` asks for them.

use std::{
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use axum::body::Bytes;
use jiff::{SignedDuration, Timestamp};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde::Deserialize;
use tokio::{
    fs::File,
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncSeekExt as _, BufReader, unix::AsyncFd},
    sync::mpsc,
};

use crate::pods::directory::{Directory, Entry};

/// Longest line of a log file: a piece of output and what stands before it.
const MAX_LINE_BYTES: u64 = 64 * 1024;
/// Chunks that wait for a slow reader.
const QUEUE: usize = 16;
/// Size at which a chunk is sent.
const CHUNK_BYTES: usize = 32 * 1024;

/// What a reader of logs asks for, in the names of the query.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Options {
    #[serde(default)]
    pub(crate) follow: bool,
    #[serde(default)]
    pub(crate) previous: bool,
    #[serde(default)]
    pub(crate) timestamps: bool,
    pub(crate) tail_lines: Option<u64>,
    pub(crate) since_seconds: Option<i64>,
    pub(crate) since_time: Option<Timestamp>,
    pub(crate) limit_bytes: Option<u64>,
}

/// Which run of which container.
pub(crate) struct Target {
    pub(crate) entry: Entry,
    pub(crate) container: String,
    pub(crate) attempt: u32,
    pub(crate) logs: PathBuf,
}

/// Streams a log. The receiver's end stops the reading.
pub(crate) fn stream(
    target: Target,
    options: Options,
    directory: Directory,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut output = Output {
            sender,
            chunk: Vec::new(),
            left: options.limit_bytes.unwrap_or(u64::MAX),
            timestamps: options.timestamps,
            within_line: false,
        };
        let result = read(&target, &options, &directory, &mut output).await;
        match result {
            Ok(()) | Err(Stopped::ByReader) => {}
            Err(Stopped::ByError(error)) => {
                tracing::warn!(%error, pod = %target.entry.id.name, "log reading failed");
                // A reader that has left does not hear of it.
                drop(output.sender.send(Err(error)).await);
            }
        }
    });
    receiver
}

/// Why reading ended early.
enum Stopped {
    ByReader,
    ByError(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::ByError(error)
    }
}

async fn read(
    target: &Target,
    options: &Options,
    directory: &Directory,
    output: &mut Output,
) -> Result<(), Stopped> {
    let since = options.since_time.or_else(|| {
        let ago = SignedDuration::from_secs(options.since_seconds?);
        Timestamp::now().checked_sub(ago).ok()
    });
    let current = target.logs.join(format!("{}.log", target.attempt));
    // Before the first look at the files, and only where it is used: of these the kernel has few.
    let watch = options.follow.then(|| Watch::new(&target.logs)).transpose()?;
    let mut changes = directory.changes();
    let mut older = Vec::new();
    for path in rotated(&target.logs, target.attempt)? {
        older.push(LogFile::open(&path).await?);
    }
    let mut file = LogFile::open(&current).await?;
    let mut all: Vec<&mut LogFile> = older.iter_mut().chain([&mut file]).collect();
    match options.tail_lines {
        Some(wanted) => tail(&mut all, since, wanted, output).await?,
        None => {
            for file in all {
                pump(file, since, output).await?;
            }
        }
    }
    drop(older);
    output.flush().await?;
    let Some(mut watch) = watch else {
        return Ok(());
    };
    loop {
        // Looked at before the last read: what was written before the end is read after it.
        changes.borrow_and_update();
        let over = is_over(target, directory);
        pump(&mut file, since, output).await?;
        if file.was_rotated(&current).await {
            pump(&mut file, since, output).await?;
            file = LogFile::open(&current).await?;
            continue;
        }
        output.flush().await?;
        if over {
            return Ok(());
        }
        tokio::select! {
            changed = watch.changed() => changed?,
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            () = output.sender.closed() => return Err(Stopped::ByReader),
        }
    }
}

/// Whether the run has ended, so that its log does not grow any more.
fn is_over(target: &Target, directory: &Directory) -> bool {
    let id = &target.entry.id;
    let entry = directory.entry(&id.uid);
    let latest = entry.and_then(|entry| entry.containers.get(&target.container).copied());
    latest.is_none_or(|latest| !latest.running || latest.attempt != target.attempt)
}

/// Reads to the present end of the file.
async fn pump(file: &mut LogFile, since: Option<Timestamp>, output: &mut Output) -> Result<(), Stopped> {
    while let Some(line) = file.entry(since).await? {
        output.line(&line).await?;
    }
    Ok(())
}

/// Gives the last `wanted` lines before the present ends of the files, and leaves them there. What is counted first and then
/// read again takes no memory, however many lines that are.
async fn tail(
    files: &mut [&mut LogFile],
    since: Option<Timestamp>,
    wanted: u64,
    output: &mut Output,
) -> Result<(), Stopped> {
    let mut counts = Vec::new();
    for file in files.iter_mut() {
        let mut count = 0u64;
        while file.entry(since).await?.is_some() {
            count += 1;
        }
        counts.push(count);
    }
    let mut passed_over = counts.iter().sum::<u64>().saturating_sub(wanted);
    for (file, count) in files.iter_mut().zip(counts) {
        if passed_over >= count {
            passed_over -= count;
            continue;
        }
        file.rewind().await?;
        for index in 0..count {
            let Some(line) = file.entry(since).await? else {
                break;
            };
            if index >= passed_over {
                output.line(&line).await?;
            }
        }
        passed_over = 0;
    }
    Ok(())
}

/// Older files of a run, oldest first: `N.log.2`, `N.log.1`.
fn rotated(logs: &Path, attempt: u32) -> io::Result<Vec<PathBuf>> {
    let prefix = format!("{attempt}.log.");
    let mut numbered: Vec<(u32, PathBuf)> = std::fs::read_dir(logs)?
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix(&prefix)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    numbered.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    Ok(numbered.into_iter().map(|(_, path)| path).collect())
}

/// An open log file, read line by line. A line whose end is not written yet is kept for the next time.
struct LogFile {
    reader: BufReader<File>,
    inode: u64,
    unfinished: Vec<u8>,
}

impl LogFile {
    async fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path).await?;
        let inode = file.metadata().await?.ino();
        Ok(Self {
            reader: BufReader::new(file),
            inode,
            unfinished: Vec::new(),
        })
    }

    /// From the beginning again.
    async fn rewind(&mut self) -> io::Result<()> {
        self.unfinished.clear();
        self.reader.rewind().await?;
        Ok(())
    }

    /// The next entry that is not older than `since`.
    async fn entry(&mut self, since: Option<Timestamp>) -> io::Result<Option<Line>> {
        while let Some(line) = self.line().await? {
            let Some(line) = Line::parse(&line) else { continue };
            if since.is_none_or(|since| line.time.is_none_or(|time| time >= since)) {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    async fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let room = MAX_LINE_BYTES.saturating_sub(u64::try_from(self.unfinished.len()).unwrap_or(u64::MAX));
        (&mut self.reader)
            .take(room)
            .read_until(b'\n', &mut self.unfinished)
            .await?;
        let full = u64::try_from(self.unfinished.len()).is_ok_and(|length| length >= MAX_LINE_BYTES);
        if self.unfinished.last() == Some(&b'\n') || full {
            return Ok(Some(std::mem::take(&mut self.unfinished)));
        }
        Ok(None)
    }

    /// Whether another file has taken the path meanwhile.
    async fn was_rotated(&self, path: &Path) -> bool {
        tokio::fs::metadata(path)
            .await
            .is_ok_and(|metadata| metadata.ino() != self.inode)
    }
}

/// One entry: `TIME STREAM F|P TEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    time: Option<Timestamp>,
    stamp: Vec<u8>,
    text: Vec<u8>,
    /// Whether the container ended its line here.
    complete: bool,
}

impl Line {
    fn parse(line: &[u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (stamp, _stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let time = std::str::from_utf8(stamp)
            .ok()
            .and_then(|stamp| stamp.parse().ok());
        Some(Self {
            time,
            stamp: stamp.to_vec(),
            text: parts.next().unwrap_or_default().to_vec(),
            complete: tag != b"P",
        })
    }
}

/// Where lines go, in chunks.
struct Output {
    sender: mpsc::Sender<io::Result<Bytes>>,
    chunk: Vec<u8>,
    left: u64,
    timestamps: bool,
    /// Whether the entry before was a piece of a line that goes on.
    within_line: bool,
}

impl Output {
    async fn line(&mut self, line: &Line) -> Result<(), Stopped> {
        if self.timestamps && !self.within_line {
            self.chunk.extend_from_slice(&line.stamp);
            self.chunk.push(b' ');
        }
        self.chunk.extend_from_slice(&line.text);
        if line.complete {
            self.chunk.push(b'\n');
        }
        self.within_line = !line.complete;
        if self.chunk.len() >= CHUNK_BYTES {
            self.flush().await
        } else {
            Ok(())
        }
    }

    async fn flush(&mut self) -> Result<(), Stopped> {
        let mut chunk = std::mem::take(&mut self.chunk);
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        if length > self.left {
            chunk.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        }
        if !chunk.is_empty() {
            self.sender
                .send(Ok(chunk.into()))
                .await
                .map_err(|_left| Stopped::ByReader)?;
        }
        self.left = self.left.saturating_sub(length);
        if self.left == 0 {
            Err(Stopped::ByReader)
        } else {
            Ok(())
        }
    }
}

/// Wakes up when something in a directory is written.
struct Watch {
    fd: AsyncFd<OwnedFd>,
}

impl Watch {
    fn new(directory: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(
            &fd,
            directory,
            WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO,
        )?;
        #[expect(
            deprecated,
            reason = "unsound only for types that lie about their descriptor; OwnedFd does not"
        )]
        let fd = AsyncFd::new(fd)?;
        Ok(Self { fd })
    }

    async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.fd.readable().await?;
        // What happened does not matter, only that something did: events are taken off and thrown away.
        let mut events = [0; 4096];
        while rustix::io::read(self.fd.get_ref(), &mut events).is_ok_and(|read| read > 0) {}
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::pods::PodId;

    const LOG: &str = "2026-01-01T00:00:00.000000000Z stdout F one\n\
        2026-01-01T00:00:01.000000000Z stderr F two\n\
        2026-01-01T00:00:02.000000000Z stdout P thr\n\
        2026-01-01T00:00:02.000000000Z stdout F ee\n";

    async fn collect(options: Options) -> String {
        let directory = tempfile::tempdir().unwrap();
        let old = "2025-12-31T00:00:00.000000000Z stdout F zero\n";
        std::fs::write(directory.path().join("0.log.1"), old).unwrap();
        std::fs::write(directory.path().join("0.log"), LOG).unwrap();
        let mut chunks = stream(target(directory.path()), options, Directory::default());
        let mut text = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    fn target(logs: &Path) -> Target {
        let id = PodId {
            uid: "u".to_owned(),
            namespace: "n".to_owned(),
            name: "p".to_owned(),
        };
        Target {
            entry: Entry {
                id,
                containers: Default::default(),
            },
            container: "c".to_owned(),
            attempt: 0,
            logs: logs.to_owned(),
        }
    }

    #[tokio::test]
    async fn options_choose_what_is_shown() {
        let all = Options::default();
        assert_eq!(collect(all.clone()).await, "zero\none\ntwo\nthree\n");
        assert_eq!(
            collect(Options {
                tail_lines: Some(3),
                ..all.clone()
            })
            .await,
            "two\nthree\n"
        );
        assert_eq!(
            collect(Options {
                tail_lines: Some(0),
                ..all.clone()
            })
            .await,
            ""
        );
        assert_eq!(
            collect(Options {
                tail_lines: Some(5),
                ..all.clone()
            })
            .await,
            "zero\none\ntwo\nthree\n"
        );
        assert_eq!(
            collect(Options {
                limit_bytes: Some(6),
                ..all.clone()
            })
            .await,
            "zero\no"
        );
        let since = Some("2026-01-01T00:00:01Z".parse().unwrap());
        assert_eq!(
            collect(Options {
                since_time: since,
                ..all.clone()
            })
            .await,
            "two\nthree\n"
        );
        let stamped = collect(Options {
            timestamps: true,
            tail_lines: Some(4),
            ..all.clone()
        })
        .await;
        assert!(
            stamped.starts_with("2026-01-01T00:00:00.000000000Z one\n"),
            "{stamped}"
        );
        // Following a run that has ended is reading it.
        assert_eq!(
            collect(Options { follow: true, ..all }).await,
            "zero\none\ntwo\nthree\n"
        );
    }

    #[tokio::test]
    async fn a_line_in_pieces_has_one_stamp() {
        let logs = tempfile::tempdir().unwrap();
        let entries = [("P", "one"), ("P", "two"), ("F", "three"), ("F", "next")];
        let entries = entries
            .iter()
            .zip(0..)
            .map(|((tag, text), second)| format!("2026-01-01T00:00:0{second}.0Z stdout {tag} {text}\n"));
        std::fs::write(logs.path().join("0.log"), entries.collect::<String>()).unwrap();
        let options = Options {
            timestamps: true,
            ..Options::default()
        };
        let mut chunks = stream(target(logs.path()), options, Directory::default());
        let text = chunks.recv().await.unwrap().unwrap();
        assert_eq!(
            text,
            "2026-01-01T00:00:00.0Z onetwothree\n2026-01-01T00:00:03.0Z next\n"
        );
    }

    #[tokio::test]
    async fn a_tail_is_as_long_as_it_was_asked_to_be() {
        let logs = tempfile::tempdir().unwrap();
        let line = "2026-01-01T00:00:00.0Z stdout F x\n";
        std::fs::write(logs.path().join("0.log.1"), line.repeat(70_000)).unwrap();
        std::fs::write(logs.path().join("0.log"), line.repeat(70_000)).unwrap();
        for (wanted, expected) in [(120_000, 120_000), (70_000, 70_000), (u64::MAX, 140_000)] {
            let options = Options {
                tail_lines: Some(wanted),
                ..Options::default()
            };
            let mut chunks = stream(target(logs.path()), options, Directory::default());
            let mut bytes = 0;
            while let Some(chunk) = chunks.recv().await {
                bytes += chunk.unwrap().len();
            }
            assert_eq!(bytes, 2 * expected, "{wanted}");
        }
    }

    #[tokio::test]
    async fn what_follows_a_tail_begins_where_it_ends() {
        let logs = tempfile::tempdir().unwrap();
        let path = logs.path().join("0.log");
        // The last line is being written.
        std::fs::write(&path, format!("{LOG}2026-01-01T00:00:03.0Z stdout F fo")).unwrap();
        let directory = Directory::default();
        let mut entry = target(logs.path()).entry;
        let running = crate::pods::directory::Latest::for_tests(true);
        entry.containers.insert("c".to_owned(), running);
        directory.publish_for_tests(&entry);
        let options = Options {
            follow: true,
            tail_lines: Some(3),
            ..Options::default()
        };
        let mut chunks = stream(target(logs.path()), options, directory.clone());
        assert_eq!(chunks.recv().await.unwrap().unwrap(), "two\nthree\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"ur\n").unwrap();
        assert_eq!(chunks.recv().await.unwrap().unwrap(), "four\n");
    }

    /// Of what watches files the kernel has few, and everybody may read logs many times.
    #[tokio::test]
    async fn only_who_follows_watches() {
        let logs = tempfile::tempdir().unwrap();
        // More than waits for a reader.
        std::fs::write(logs.path().join("0.log"), LOG.repeat(20_000)).unwrap();
        let wanted = format!("ino:{:x} ", std::fs::metadata(logs.path()).unwrap().ino());
        let watches = || {
            let entries = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
            let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
            let is_watch = |line: &str| line.starts_with("inotify ") && line.contains(&wanted);
            texts.filter(|text| text.lines().any(is_watch)).count()
        };
        for (follow, expected) in [(false, 0), (true, 1)] {
            let options = Options {
                follow,
                ..Options::default()
            };
            let mut chunks = stream(target(logs.path()), options, Directory::default());
            assert!(chunks.recv().await.unwrap().is_ok());
            assert_eq!(watches(), expected, "follow: {follow}");
        }
    }

    #[tokio::test]
    async fn following_sees_new_lines_and_rotation_until_the_run_ends() {
        let logs = tempfile::tempdir().unwrap();
        let path = logs.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let directory = Directory::default();
        let mut entry = target(logs.path()).entry;
        let running = crate::pods::directory::Latest::for_tests;
        entry.containers.insert("c".to_owned(), running(true));
        directory.publish_for_tests(&entry);
        let options = Options {
            follow: true,
            ..Options::default()
        };
        let mut chunks = stream(target(logs.path()), options, directory.clone());
        let append = |text: &str| {
            let mut file = std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(&path)
                .unwrap();
            writeln!(file, "2026-01-01T00:00:03.000000000Z stdout F {text}").unwrap();
        };
        // Sent before the following begins, so whatever is written after it arrived is new.
        assert_eq!(chunks.recv().await.unwrap().unwrap(), "one\ntwo\nthree\n");
        append("four");
        assert_eq!(chunks.recv().await.unwrap().unwrap(), "four\n");
        std::fs::rename(&path, logs.path().join("0.log.1")).unwrap();
        append("five");
        assert_eq!(chunks.recv().await.unwrap().unwrap(), "five\n");
        entry.containers.insert("c".to_owned(), running(false));
        directory.publish_for_tests(&entry);
        assert!(chunks.recv().await.is_none(), "the stream ends with the run");
    }
}
