//! Container output as CRI log files: `<time> <stdout|stderr> <F|P> <text>` per line, rotated by size.
//!
//! `P` marks a line that was too long or whose end did not come; the next entry of the stream goes on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// Longest text of one entry.
const MAX_ENTRY: usize = 16 << 10;

/// One of a container's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The log of one container.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    max_bytes: u64,
    max_files: u32,
    /// What each stream wrote since its last complete line.
    unfinished: [Vec<u8>; 2],
}

impl LogFile {
    /// Opens for appending, so that a later attempt may go on in the same file.
    pub(crate) fn open(path: &Path, max_bytes: u64, max_files: u32) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        let path = path.to_owned();
        Ok(Self {
            path,
            file,
            size,
            max_bytes,
            max_files,
            unfinished: [Vec::new(), Vec::new()],
        })
    }

    /// Takes output as it comes from the pipe.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let now = Timestamp::now();
        let mut pending = std::mem::take(self.unfinished(stream));
        pending.extend_from_slice(bytes);
        let mut entries = Vec::new();
        let rest = split(&pending, |text, full| {
            format(&mut entries, now, stream, text, full);
        });
        *self.unfinished(stream) = rest.to_vec();
        self.append(&entries)
    }

    /// Writes what is left when the streams have ended.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let now = Timestamp::now();
        let mut entries = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(self.unfinished(stream));
            if !rest.is_empty() {
                format(&mut entries, now, stream, &rest, false);
            }
        }
        self.append(&entries)
    }

    fn unfinished(&mut self, stream: Stream) -> &mut Vec<u8> {
        let [stdout, stderr] = &mut self.unfinished;
        match stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        }
    }

    fn append(&mut self, entries: &[u8]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let length = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        if self.size > 0 && self.size.saturating_add(length) > self.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(entries)?;
        self.size = self.size.saturating_add(length);
        Ok(())
    }

    /// `log` becomes `log.1`, `log.1` becomes `log.2`, the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        let oldest = self.max_files.saturating_sub(1);
        for number in (1..oldest).rev() {
            ignore_missing(fs::rename(numbered(number), numbered(number + 1)))?;
        }
        if oldest == 0 {
            ignore_missing(fs::remove_file(&self.path))?;
        } else {
            ignore_missing(fs::rename(&self.path, numbered(1)))?;
        }
        self.file = open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

/// Hands out complete lines, and pieces of lines that are too long; returns the unfinished rest.
fn split(mut bytes: &[u8], mut entry: impl FnMut(&[u8], bool)) -> &[u8] {
    loop {
        let window = bytes.get(..MAX_ENTRY + 1).unwrap_or(bytes);
        match window.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                entry(&bytes[..end], true);
                bytes = &bytes[end + 1..];
            }
            None if bytes.len() > MAX_ENTRY => {
                let (piece, rest) = bytes.split_at(MAX_ENTRY);
                entry(piece, false);
                bytes = rest;
            }
            None => return bytes,
        }
    }
}

fn format(out: &mut Vec<u8>, now: Timestamp, stream: Stream, text: &[u8], full: bool) {
    let tag = if full { 'F' } else { 'P' };
    out.extend_from_slice(format!("{now:.9} {} {tag} ", stream.name()).as_bytes());
    out.extend_from_slice(text);
    out.push(b'\n');
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(bytes: &[u8]) -> (Vec<(Vec<u8>, bool)>, Vec<u8>) {
        let mut seen = Vec::new();
        let rest = split(bytes, |text, full| seen.push((text.to_vec(), full))).to_vec();
        (seen, rest)
    }

    #[test]
    fn lines_pieces_and_rest_add_up_to_the_input() {
        let long = [b'x'; 2 * MAX_ENTRY + 5];
        let exact = [&[b'y'; MAX_ENTRY][..], b"\n"].concat();
        let input = [b"a\n\nb\n", &long[..], b"\n", &exact, b"tail"].concat();
        let (seen, rest) = entries(&input);
        let mut back = Vec::new();
        for (text, full) in &seen {
            assert!(text.len() <= MAX_ENTRY);
            back.extend_from_slice(text);
            if *full {
                back.push(b'\n');
            }
        }
        back.extend_from_slice(&rest);
        assert_eq!(back, input);
        assert_eq!(rest, b"tail");
        assert_eq!(seen.iter().filter(|(_, full)| !full).count(), 2);
    }

    #[test]
    fn the_log_is_rotated_and_the_oldest_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("0.log");
        let mut log = LogFile::open(&path, 120, 3).expect("opens");
        for number in 0..9 {
            log.write(Stream::Stdout, format!("line {number}\npart").as_bytes())
                .expect("writes");
        }
        log.finish().expect("writes");
        let mut names: Vec<_> = fs::read_dir(&directory)
            .expect("lists")
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        let text = fs::read_to_string(&path).expect("reads");
        assert!(text.ends_with(" stdout P part\n"), "{text}");
        let (time, rest) = text.split_once(' ').expect("a time");
        assert!(time.ends_with('Z') && time.len() == 30, "{time}");
        assert!(rest.starts_with("stdout F part"), "{rest}");
    }
}
