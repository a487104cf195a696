//! The flow log on disk: JSON lines in files of bounded size and number, the oldest dropped first.
//!
//! Each file is named after the number of its first line, so names alone say what is there and what is gone. A line
//! is one `write`: it survives the end of this process at once. It survives the end of the machine once it is synced,
//! which happens when a file is full and whenever [`Hub::sync`](crate::Hub::sync) is called.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use api::flow::{EndpointRef, FlowLine, FlowLoss, LossPlace};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::history::{History, Query, mark};

/// What the names of the files begin and end with.
const PREFIX: &str = "flows-";
const SUFFIX: &str = ".jsonl";
/// What the kernel had counted when it was last asked.
const COUNTED_FILE: &str = "counted.json";
/// Changes with every boot, and with it the kernel's counters begin anew.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where the log is and how large it may become.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Its own directory; made if absent.
    pub dir: PathBuf,
    /// Name of this node, for lines about the log itself.
    pub node: String,
    /// A file that has reached this size is followed by another one.
    pub segment_bytes: u64,
    /// Most files.
    pub segments: usize,
}

impl LogConfig {
    /// Size of one file.
    pub const SEGMENT_BYTES: u64 = 4 << 20;

    /// A log of about `bytes` in `dir`, of two files at least.
    pub fn sized(dir: PathBuf, node: String, bytes: u64) -> Self {
        let segments = usize::try_from(bytes / Self::SEGMENT_BYTES).unwrap_or(usize::MAX);
        Self {
            dir,
            node,
            segment_bytes: Self::SEGMENT_BYTES,
            segments: segments.max(2),
        }
    }
}

/// Why the log cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path}, part of the flow log")]
pub struct LogError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The log, open for writing. One process writes.
#[derive(Debug)]
pub struct FlowLog {
    config: LogConfig,
    segments: VecDeque<Segment>,
    file: File,
    size: u64,
    next: u64,
    /// Lines that could not be written since the last that could.
    unwritten: u64,
    /// Lines that went with the oldest files, and that no line tells of yet.
    retired: u64,
    counted: Counted,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Number of its first line.
    pub(crate) first: u64,
    pub(crate) path: PathBuf,
}

/// What the kernel had counted when it was last asked, so that nothing is told twice after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    #[serde(default)]
    pub(crate) boot: String,
    #[serde(default)]
    pub(crate) kernel: u64,
    /// By endpoint.
    #[serde(default)]
    pub(crate) unreported: BTreeMap<u32, u64>,
}

impl FlowLog {
    /// Opens the log, or begins one. A last line that is not whole is cut off, and counted.
    pub fn open(config: LogConfig) -> Result<Self, LogError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&config.dir);
        made.map_err(failed("create", &config.dir))?;
        let mut segments = segments(&config.dir)?;
        let mut torn = false;
        let (file, size, next) = match segments.back() {
            Some(last) => {
                let text = fs::read(&last.path).map_err(failed("read", &last.path))?;
                let whole = text
                    .iter()
                    .rposition(|byte| *byte == b'\n')
                    .map_or(0, |end| end + 1);
                torn = whole < text.len();
                let lines = text.get(..whole).unwrap_or_default().split(|byte| *byte == b'\n');
                let newest = lines.filter_map(|line| mark(line)?.sequence).max();
                let next = newest.map_or(last.first, |newest| newest.saturating_add(1));
                let size = u64::try_from(whole).unwrap_or(u64::MAX);
                let file = OpenOptions::new().append(true).open(&last.path);
                let file = file.map_err(failed("open", &last.path))?;
                if torn {
                    file.set_len(size).map_err(failed("cut", &last.path))?;
                }
                (file, size, next)
            }
            None => {
                let segment = Segment::new(&config.dir, 1);
                let file = create(&segment.path).map_err(failed("create", &segment.path))?;
                segments.push_back(segment);
                (file, 0, 1)
            }
        };
        let mut log = Self {
            counted: read_counted(&config.dir.join(COUNTED_FILE)),
            config,
            segments,
            file,
            size,
            next,
            unwritten: 0,
            retired: 0,
        };
        if torn {
            log.append_loss(1, LossPlace::Damaged, None);
        }
        Ok(log)
    }

    /// Gives the line its number and writes it. Returns it as it was written; nothing if it cannot be written as JSON.
    /// A disk that fails delays nobody: the line is counted, and the next that can be written says how many are missing.
    pub(crate) fn append(&mut self, mut line: FlowLine) -> Option<String> {
        if self.unwritten > 0 {
            let mut lost = FlowLine::Lost(self.loss(self.unwritten, LossPlace::Disk, None));
            if self.write(&mut lost).is_ok() {
                self.unwritten = 0;
            }
        }
        match self.write(&mut line) {
            Ok(text) => Some(text),
            Err(error) => {
                if self.unwritten == 0 {
                    tracing::error!(%error, "the flow log cannot be written; what is missing is counted");
                }
                self.unwritten = self.unwritten.saturating_add(1);
                // Who follows need not lose what the disk does; the number is for the next line that is written.
                match &mut line {
                    FlowLine::Event(event) => event.sequence = 0,
                    FlowLine::Lost(loss) => loss.sequence = None,
                }
                to_text(&line)
            }
        }
    }

    /// Writes that `lost` events are missing.
    pub(crate) fn append_loss(
        &mut self,
        lost: u64,
        at: LossPlace,
        pod: Option<EndpointRef>,
    ) -> Option<String> {
        let loss = self.loss(lost, at, pod);
        self.append(FlowLine::Lost(loss))
    }

    /// What was asked for, of everything that is written by now, and the number of the next line.
    pub(crate) fn history(&self, query: Query) -> History {
        History {
            segments: self.segments.iter().cloned().collect(),
            until: self.next,
            node: self.config.node.clone(),
            query,
        }
    }

    /// The file that is written now, to be synced without holding up who writes.
    pub(crate) fn newest_file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    pub(crate) fn counted(&self) -> &Counted {
        &self.counted
    }

    /// Remembers what the kernel has counted. Written after the lines that tell of it: if the machine ends in between,
    /// they are told again, rather than never.
    pub(crate) fn set_counted(&mut self, mut counted: Counted) {
        counted.boot = boot();
        if counted == self.counted {
            return;
        }
        let path = self.config.dir.join(COUNTED_FILE);
        if let Err(error) = write_counted(&path, &counted) {
            tracing::error!(%error, path = %path.display(), "cannot remember what was counted; losses may be told twice");
        }
        self.counted = counted;
    }

    fn loss(&self, lost: u64, at: LossPlace, pod: Option<EndpointRef>) -> FlowLoss {
        FlowLoss {
            sequence: None,
            time: Timestamp::now(),
            node: self.config.node.clone(),
            lost,
            at,
            pod,
        }
    }

    fn write(&mut self, line: &mut FlowLine) -> io::Result<String> {
        if self.size >= self.config.segment_bytes {
            self.rotate()?;
        }
        if self.retired > 0 {
            let mut told = FlowLine::Lost(self.loss(self.retired, LossPlace::Retention, None));
            self.put(&mut told)?;
            self.retired = 0;
        }
        self.put(line)
    }

    /// Gives the line the next number, which it has only if it is written, as a whole.
    fn put(&mut self, line: &mut FlowLine) -> io::Result<String> {
        match line {
            FlowLine::Event(event) => event.sequence = self.next,
            FlowLine::Lost(loss) => loss.sequence = Some(self.next),
        }
        let text = to_text(line).ok_or_else(|| io::Error::other("the event cannot be written as JSON"))?;
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            // Half a line would spoil the next one.
            self.file.set_len(self.size)?;
            return Err(error);
        }
        self.next = self.next.saturating_add(1);
        self.size = self
            .size
            .saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
        Ok(text)
    }

    /// Begins the next file, and drops the oldest if there are too many.
    fn rotate(&mut self) -> io::Result<()> {
        let segment = Segment::new(&self.config.dir, self.next);
        let file = create(&segment.path)?;
        self.file.sync_data()?;
        File::open(&self.config.dir)?.sync_all()?;
        self.segments.push_back(segment);
        (self.file, self.size) = (file, 0);
        while self.segments.len() > self.config.segments {
            let [oldest, second, ..] = self.segments.make_contiguous() else {
                break;
            };
            match fs::remove_file(&oldest.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {
                    let gone = second.first.saturating_sub(oldest.first);
                    self.retired = self.retired.saturating_add(gone);
                }
            }
            self.segments.pop_front();
        }
        Ok(())
    }
}

impl Counted {
    /// How much more there is than at the last time. A counter that went back began anew.
    pub(crate) fn since(before: u64, now: u64) -> u64 {
        now.checked_sub(before).unwrap_or(now)
    }
}

impl Segment {
    fn new(dir: &Path, first: u64) -> Self {
        Self {
            first,
            path: dir.join(format!("{PREFIX}{first:020}{SUFFIX}")),
        }
    }
}

/// A line as it stands in the file.
pub(crate) fn to_text(line: &FlowLine) -> Option<String> {
    match serde_json::to_string(line) {
        Ok(text) => Some(text + "\n"),
        Err(error) => {
            tracing::error!(%error, "a flow event cannot be written as JSON");
            None
        }
    }
}

/// The files of a log, oldest first. Others are left alone.
fn segments(dir: &Path) -> Result<VecDeque<Segment>, LogError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let path = entry.map_err(failed("list", dir))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let number = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.strip_suffix(SUFFIX));
        if let Some(first) = number.and_then(|number| number.parse().ok()) {
            found.push(Segment { first, path });
        }
    }
    found.sort_by_key(|segment| segment.first);
    Ok(found.into())
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// What was counted in this boot; nothing in another one.
fn read_counted(path: &Path) -> Counted {
    let text = fs::read(path).unwrap_or_default();
    serde_json::from_slice(&text)
        .ok()
        .filter(|counted: &Counted| counted.boot == boot())
        .unwrap_or_default()
}

fn write_counted(path: &Path, counted: &Counted) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(&serde_json::to_vec(counted)?)?;
    fs::rename(fresh, path)
}

fn boot() -> String {
    fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError {
        operation,
        path,
        source,
    }
}
