//! Read-only look into a bbolt file: which top-level buckets exist and hold something.
//!
//! Trivy says nothing when its database has no advisories for a release, so the gate looks itself. Only
//! the pages on the way to one key are read, with `pread`; every offset and count is checked against the
//! page, and the depth is bounded, so a damaged file gives an error and nothing worse.
//!
//! Format: two meta pages (the valid one with the higher transaction counts), then a B+tree of branch
//! and leaf pages. All integers are little-endian, as bbolt writes them on this architecture.

use std::{fs::File, io, os::unix::fs::FileExt};

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const PAGE_HEADER: usize = 16;
const META_BYTES: usize = 64;
/// Branch and leaf elements are both this long.
const ELEMENT: usize = 16;
const FLAG_BRANCH: u16 = 0x01;
const FLAG_LEAF: u16 = 0x02;
const FLAG_BUCKET: u32 = 0x01;
/// A tree deeper than this has a cycle.
const MAX_DEPTH: u32 = 32;
const MAX_PAGE_BYTES: usize = 16 << 20;

/// Why a bbolt file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    /// Reading failed, or the file ends too early.
    #[error("reading {what} failed")]
    Read {
        /// What was read.
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The content is not that of a bbolt file.
    #[error("damaged database: {problem}")]
    Damaged {
        /// What is wrong.
        problem: &'static str,
    },
}

/// An open database.
#[derive(Debug)]
pub(crate) struct Bolt<'a> {
    file: &'a File,
    page_size: usize,
    root: u64,
}

impl<'a> Bolt<'a> {
    /// Finds the current meta page.
    pub(crate) fn open(file: &'a File) -> Result<Self, BoltError> {
        // The second meta page lies one page further; the page size is in the first, or if that one is
        // torn, it is the usual one.
        let first = Meta::read(file, 0);
        let second_at = first.as_ref().map_or(4096, |meta| u64::from(meta.page_size));
        let second = Meta::read(file, second_at);
        let meta = match (first, second) {
            (Ok(first), Ok(second)) if second.transaction > first.transaction => second,
            (Ok(meta), _) | (Err(_), Ok(meta)) => meta,
            (Err(error), Err(_)) => return Err(error),
        };
        let page_size = usize::try_from(meta.page_size).map_err(|_large| damaged("page size"))?;
        Ok(Self {
            file,
            page_size,
            root: meta.root,
        })
    }

    /// Whether a top-level bucket exists and has at least one key.
    pub(crate) fn has_entries(&self, bucket: &str) -> Result<bool, BoltError> {
        let Some(value) = self.find(bucket.as_bytes())? else {
            return Ok(false);
        };
        // A bucket's value is its root page and a counter; page 0 means that the page follows inline.
        match u64_at(&value, 0)? {
            0 => Ok(u16_at(&value, 16 + 10)? > 0),
            root => Ok(u16_at(&self.page(root)?, 10)? > 0),
        }
    }

    /// Value of a bucket entry in the root bucket.
    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BoltError> {
        let mut id = self.root;
        for _ in 0..MAX_DEPTH {
            let page = self.page(id)?;
            let (flags, count) = (u16_at(&page, 8)?, usize::from(u16_at(&page, 10)?));
            match flags {
                FLAG_BRANCH => match child(&page, count, key)? {
                    Some(next) => id = next,
                    None => return Ok(None),
                },
                FLAG_LEAF => return leaf(&page, count, key),
                _ => return Err(damaged("a page is neither branch nor leaf")),
            }
        }
        Err(damaged("the tree is too deep"))
    }

    fn page(&self, id: u64) -> Result<Vec<u8>, BoltError> {
        let offset = id
            .checked_mul(self.page_size as u64)
            .ok_or_else(|| damaged("page number"))?;
        let header = read_at(self.file, offset, PAGE_HEADER, "a page header")?;
        if u64_at(&header, 0)? != id {
            return Err(damaged("a page has another number than its place"));
        }
        let pages = usize::try_from(u32_at(&header, 12)?)
            .ok()
            .and_then(|overflow| overflow.checked_add(1));
        let bytes = pages
            .and_then(|pages| pages.checked_mul(self.page_size))
            .filter(|bytes| *bytes <= MAX_PAGE_BYTES)
            .ok_or_else(|| damaged("a page is too large"))?;
        read_at(self.file, offset, bytes, "a page")
    }
}

struct Meta {
    page_size: u32,
    root: u64,
    transaction: u64,
}

impl Meta {
    fn read(file: &File, offset: u64) -> Result<Self, BoltError> {
        let page = read_at(file, offset, PAGE_HEADER + META_BYTES, "a meta page")?;
        let meta = page.get(PAGE_HEADER..).ok_or_else(|| damaged("meta page"))?;
        let page_size = u32_at(meta, 8)?;
        if u32_at(meta, 0)? != MAGIC || u32_at(meta, 4)? != VERSION {
            return Err(damaged("not a bbolt file of version 2"));
        }
        if fnv1a(meta.get(..56).unwrap_or_default()) != u64_at(meta, 56)? {
            return Err(damaged("the meta page's checksum is wrong"));
        }
        if !(512..=1 << 20).contains(&page_size) {
            return Err(damaged("page size"));
        }
        Ok(Self {
            page_size,
            root: u64_at(meta, 16)?,
            transaction: u64_at(meta, 48)?,
        })
    }
}

/// The child that may hold `key`: the last whose first key is not greater.
fn child(page: &[u8], count: usize, key: &[u8]) -> Result<Option<u64>, BoltError> {
    let mut found = None;
    for index in 0..count {
        let at = PAGE_HEADER + index * ELEMENT;
        let (start, length) = (at + size(u32_at(page, at)?)?, size(u32_at(page, at + 4)?)?);
        if slice(page, start, length)? > key {
            break;
        }
        found = Some(u64_at(page, at + 8)?);
    }
    Ok(found)
}

fn leaf(page: &[u8], count: usize, key: &[u8]) -> Result<Option<Vec<u8>>, BoltError> {
    for index in 0..count {
        let at = PAGE_HEADER + index * ELEMENT;
        let (flags, start) = (u32_at(page, at)?, at + size(u32_at(page, at + 4)?)?);
        let (key_length, value_length) = (size(u32_at(page, at + 8)?)?, size(u32_at(page, at + 12)?)?);
        if slice(page, start, key_length)? == key {
            if flags & FLAG_BUCKET == 0 {
                return Ok(None);
            }
            return slice(page, start + key_length, value_length).map(|value| Some(value.to_vec()));
        }
    }
    Ok(None)
}

fn read_at(file: &File, offset: u64, bytes: usize, what: &'static str) -> Result<Vec<u8>, BoltError> {
    let mut buffer = vec![0; bytes];
    file.read_exact_at(&mut buffer, offset)
        .map_err(|source| BoltError::Read { what, source })?;
    Ok(buffer)
}

fn slice(bytes: &[u8], start: usize, length: usize) -> Result<&[u8], BoltError> {
    start
        .checked_add(length)
        .and_then(|end| bytes.get(start..end))
        .ok_or_else(|| damaged("an element points outside of its page"))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], BoltError> {
    slice(bytes, at, N)?
        .try_into()
        .map_err(|_length| damaged("an element is cut off"))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, BoltError> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, BoltError> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, BoltError> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// Offsets fit on every machine that this runs on; elsewhere the file counts as damaged.
fn size(value: u32) -> Result<usize, BoltError> {
    usize::try_from(value).map_err(|_large| damaged("an offset is too large"))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn damaged(problem: &'static str) -> BoltError {
    BoltError::Damaged { problem }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn lab_file(change: impl FnOnce(&mut Vec<u8>)) -> File {
        let mut bytes = scanner_labdb::lab().database();
        change(&mut bytes);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn finds_exactly_what_is_there() {
        let file = lab_file(|_| {});
        let bolt = Bolt::open(&file).unwrap();
        assert!(bolt.has_entries("vulnerability").unwrap());
        assert!(bolt.has_entries(scanner_labdb::ALPINE_BUCKET).unwrap());
        for absent in ["alpine 2.0", "", "zzz", "alpine", "vulnerability2"] {
            assert!(!bolt.has_entries(absent).unwrap(), "{absent:?}");
        }
    }

    #[test]
    fn survives_any_damage() {
        let whole = scanner_labdb::lab().database();
        for length in (0..whole.len()).step_by(1021) {
            let file = lab_file(|bytes| bytes.truncate(length));
            if let Ok(bolt) = Bolt::open(&file) {
                let _answer = bolt.has_entries(scanner_labdb::ALPINE_BUCKET);
            }
        }
        for at in (0..whole.len()).step_by(211) {
            let file = lab_file(|bytes| bytes[at] ^= 0xff);
            if let Ok(bolt) = Bolt::open(&file) {
                let _answer = bolt.has_entries(scanner_labdb::ALPINE_BUCKET);
            }
        }
    }
}
