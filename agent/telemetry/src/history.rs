//! What is in the log, read back.

use std::{fs, io};

use api::flow::{FlowLine, FlowLoss, LossPlace};
use jiff::Timestamp;
use serde::Deserialize;

use crate::log::{Segment, to_text};

/// Which lines of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Query {
    /// Those about this time or later.
    pub since: Option<Timestamp>,
    /// Those with a larger number.
    pub after: Option<u64>,
    /// No more than so many, the newest.
    pub limit: Option<usize>,
}

/// Lines to be read from files: it takes a while, and blocks.
#[derive(Debug)]
pub struct History {
    pub(crate) segments: Vec<Segment>,
    /// Number of the first line that is not part of it.
    pub(crate) until: u64,
    pub(crate) node: String,
    pub(crate) query: Query,
}

/// What a line says about itself.
#[derive(Debug, Deserialize)]
pub(crate) struct Mark {
    #[serde(default)]
    pub(crate) sequence: Option<u64>,
    time: Timestamp,
}

/// What `line` says about itself; nothing if it is damaged.
pub(crate) fn mark(line: &[u8]) -> Option<Mark> {
    serde_json::from_slice(line).ok()
}

impl History {
    /// Calls `emit` with each line, oldest first, until it returns false. Lines that were dropped meanwhile, or are
    /// damaged, are replaced by the number of them.
    pub fn read(&self, mut emit: impl FnMut(String) -> bool) {
        match self.query.limit {
            None => {
                for position in 0..self.segments.len() {
                    if !self.lines(position).into_iter().all(&mut emit) {
                        return;
                    }
                }
            }
            Some(limit) => {
                let mut kept: Vec<Vec<String>> = Vec::new();
                let mut left = limit;
                for position in (0..self.segments.len()).rev() {
                    if left == 0 {
                        break;
                    }
                    let mut lines = self.lines(position);
                    lines.drain(..lines.len().saturating_sub(left));
                    left -= lines.len();
                    kept.push(lines);
                }
                kept.into_iter().rev().flatten().all(emit);
            }
        }
    }

    /// What is asked for of one file.
    fn lines(&self, position: usize) -> Vec<String> {
        let Some(segment) = self.segments.get(position) else {
            return Vec::new();
        };
        let end = self
            .segments
            .get(position + 1)
            .map_or(self.until, |next| next.first);
        let after = self.query.after.unwrap_or(0);
        // Numbers of the file's lines are below the end.
        if end <= after.saturating_add(1) {
            return Vec::new();
        }
        let mut lines = Vec::new();
        if position == 0 && self.query.after.is_some() {
            let gone = segment.first.saturating_sub(after.saturating_add(1));
            lines.extend(self.lost(gone, LossPlace::Retention));
        }
        let text = match fs::read(&segment.path) {
            Ok(text) => text,
            Err(error) => {
                let gone = end.saturating_sub(segment.first.max(after.saturating_add(1)));
                let place = match error.kind() {
                    io::ErrorKind::NotFound => LossPlace::Retention,
                    _ => LossPlace::Damaged,
                };
                lines.extend(self.lost(gone, place));
                return lines;
            }
        };
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match mark(line) {
                Some(found) => {
                    let sequence = found.sequence.unwrap_or(0);
                    if sequence >= self.until {
                        break;
                    }
                    let young = self.query.since.is_none_or(|since| found.time >= since);
                    if young && sequence > after {
                        lines.push(String::from_utf8_lossy(line).into_owned() + "\n");
                    }
                }
                // The last line may be in the middle of being written; it is none of ours then.
                None if position + 1 == self.segments.len() && text.ends_with(line) => {}
                None => lines.extend(self.lost(1, LossPlace::Damaged)),
            }
        }
        lines
    }

    fn lost(&self, lost: u64, at: LossPlace) -> Option<String> {
        (lost > 0).then(|| loss_line(&self.node, lost, at)).flatten()
    }
}

/// A line about a loss that is a reader's alone, so it has no number.
pub(crate) fn loss_line(node: &str, lost: u64, at: LossPlace) -> Option<String> {
    to_text(&FlowLine::Lost(FlowLoss {
        sequence: None,
        time: Timestamp::now(),
        node: node.to_owned(),
        lost,
        at,
        pod: None,
    }))
}
