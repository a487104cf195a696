//! Lines of a file or of standard input, one at a time. None is read further than it may be long: it may never end.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use anyhow::{Context, Result, bail};

use crate::standard_input;

const BUFFER_BYTES: usize = 1 << 16;

/// Lines that remain to be read.
pub(crate) struct Lines<R> {
    reader: R,
    name: String,
    max_bytes: u64,
    number: u64,
    line: Vec<u8>,
}

/// One line.
pub(crate) struct Line<'a> {
    /// What it says, with its end.
    pub(crate) text: &'a str,
    name: &'a str,
    number: u64,
}

impl Lines<Box<dyn BufRead>> {
    /// Those of a file, or of standard input for `-`, none longer than `max_bytes` with its end.
    pub(crate) fn open(path: &Path, max_bytes: u64) -> Result<Self> {
        if standard_input::is_meant(path) {
            let reader = Box::new(standard_input::take()?);
            return Ok(Self::new(reader, standard_input::NAME, max_bytes));
        }
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
        let reader = Box::new(BufReader::with_capacity(BUFFER_BYTES, file));
        Ok(Self::new(reader, &name, max_bytes))
    }
}

impl<R: BufRead> Lines<R> {
    /// Those of a reader, which messages call `name`.
    pub(crate) fn new(reader: R, name: &str, max_bytes: u64) -> Self {
        Self {
            reader,
            name: name.to_owned(),
            max_bytes,
            number: 0,
            line: Vec::new(),
        }
    }

    /// The next line that is not blank; nothing at the end.
    pub(crate) fn read(&mut self) -> Result<Option<Line<'_>>> {
        loop {
            self.line.clear();
            self.number += 1;
            let mut bounded = (&mut self.reader).take(self.max_bytes + 1);
            let length = bounded
                .read_until(b'\n', &mut self.line)
                .with_context(|| format!("cannot read {}, line {}", self.name, self.number))?;
            if length == 0 {
                return Ok(None);
            }
            if self.line.len() as u64 > self.max_bytes {
                bail!(
                    "{}, line {}: is longer than {} bytes",
                    self.name,
                    self.number,
                    self.max_bytes
                );
            }
            if !self.line.trim_ascii().is_empty() {
                break;
            }
        }
        let text = str::from_utf8(&self.line)
            .with_context(|| format!("{}, line {}: is not text in UTF-8", self.name, self.number))?;
        Ok(Some(Line {
            text,
            name: &self.name,
            number: self.number,
        }))
    }
}

impl Line<'_> {
    /// Where it stands, for messages.
    pub(crate) fn place(&self) -> String {
        format!("{}, line {}", self.name, self.number)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn all(mut lines: Lines<impl BufRead>) -> Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        while let Some(line) = lines.read()? {
            found.push((line.place(), line.text.trim().to_owned()));
        }
        Ok(found)
    }

    #[test]
    fn lines_have_their_numbers_in_the_file() {
        let found = all(Lines::new(&b"one\n \n\nfour\r\nfive"[..], "f", 8)).unwrap();
        let wanted = [("f, line 1", "one"), ("f, line 4", "four"), ("f, line 5", "five")];
        assert_eq!(
            found,
            wanted.map(|(place, text)| (place.to_owned(), text.to_owned()))
        );
    }

    /// Gives letters without an end, until somebody has read more than is needed to refuse them.
    struct Endless {
        letters: &'static str,
        given: usize,
    }

    impl Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            assert!(self.given < 1 << 20, "it is read for ever");
            let bytes = self.letters.as_bytes().iter().cycle().skip(self.given);
            for (to, byte) in into.iter_mut().zip(bytes) {
                *to = *byte;
            }
            self.given += into.len();
            Ok(into.len())
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused_before_it_is_read() {
        // Of the second, a letter is in two parts where reading stops.
        for letters in ["x", "\u{fc}"] {
            let endless = Endless { letters, given: 0 };
            let error = all(Lines::new(BufReader::new(endless), "f", 4096)).unwrap_err();
            assert_eq!(error.to_string(), "f, line 1: is longer than 4096 bytes");
        }
        let long = format!("{}\n", "x".repeat(4095));
        let lines = Lines::new(long.as_bytes(), "f", 4096);
        assert_eq!(all(lines).unwrap().len(), 1);
        let error = all(Lines::new(&b"ok\n\xff\n"[..], "f", 9)).unwrap_err();
        assert_eq!(error.to_string(), "f, line 2: is not text in UTF-8");
    }
}
