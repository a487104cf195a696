//! Writes a bbolt file in one go: two meta pages, an empty free list, and one run of leaf pages per
//! bucket. That is a valid tree, only a flat one, and fine for some hundred keys.
//!
//! Layout of a page: number, flags, element count, number of overflow pages; then one element of 16 bytes
//! per key; then keys and values. Little-endian, as bbolt writes on the machines that this runs on.

use std::collections::BTreeMap;

use serde_json::Value;

const PAGE_SIZE: usize = 4096;
const PAGE_HEADER: usize = 16;
const ELEMENT: usize = 16;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const FLAG_LEAF: u16 = 0x02;
const FLAG_META: u16 = 0x04;
const FLAG_FREELIST: u16 = 0x10;
const FLAG_BUCKET: u32 = 0x01;
const FREELIST_PAGE: u64 = 2;
/// First page of content: behind two meta pages and the free list.
const FIRST_PAGE: u64 = 3;

/// A bucket: keys with JSON values, and further buckets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bucket {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Value(Vec<u8>),
    Bucket(Bucket),
}

impl Bucket {
    /// The bucket of that name in this one, made if absent. A value of that name is replaced.
    pub(crate) fn bucket(&mut self, name: &str) -> &mut Self {
        let entry = self
            .entries
            .entry(name.to_owned())
            .or_insert_with(|| Entry::Bucket(Self::default()));
        if let Entry::Value(_) = entry {
            *entry = Entry::Bucket(Self::default());
        }
        match entry {
            Entry::Bucket(bucket) => bucket,
            Entry::Value(_) => unreachable!("replaced by a bucket above"),
        }
    }

    pub(crate) fn put(&mut self, key: &str, value: &Value) {
        self.entries
            .insert(key.to_owned(), Entry::Value(value.to_string().into_bytes()));
    }

    #[cfg(test)]
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }
}

/// Bytes of a file with `root` as its root bucket.
pub(crate) fn write(root: &Bucket) -> Vec<u8> {
    let mut content = Pages { bytes: Vec::new() };
    let root_page = content.bucket(root);
    let end = content.next_page();
    let mut file = Vec::new();
    for number in 0..2 {
        file.extend(page(number, FLAG_META, 0, &meta(root_page, end, number)));
    }
    file.extend(page(FREELIST_PAGE, FLAG_FREELIST, 0, &[]));
    file.extend(content.bytes);
    file
}

/// Pages behind the fixed ones.
struct Pages {
    bytes: Vec<u8>,
}

impl Pages {
    fn next_page(&self) -> u64 {
        FIRST_PAGE + (self.bytes.len() / PAGE_SIZE) as u64
    }

    /// Writes the buckets inside, then this one; returns its page.
    fn bucket(&mut self, bucket: &Bucket) -> u64 {
        let mut items = Vec::with_capacity(bucket.entries.len());
        for (key, entry) in &bucket.entries {
            items.push(match entry {
                Entry::Value(value) => (0, key.as_bytes(), value.clone()),
                Entry::Bucket(inner) => {
                    // A bucket's value: its root page, and a counter that nothing uses.
                    let root = self.bucket(inner);
                    (FLAG_BUCKET, key.as_bytes(), [root.to_le_bytes(), [0; 8]].concat())
                }
            });
        }
        let mut elements = Vec::new();
        let mut data = Vec::new();
        for (index, (flags, key, value)) in items.iter().enumerate() {
            // Positions count from their own element.
            let position = (items.len() - index) * ELEMENT + data.len();
            for field in [*flags, small(position), small(key.len()), small(value.len())] {
                elements.extend(field.to_le_bytes());
            }
            data.extend_from_slice(key);
            data.extend_from_slice(value);
        }
        let number = self.next_page();
        self.bytes
            .extend(page(number, FLAG_LEAF, items.len(), &[elements, data].concat()));
        number
    }
}

fn page(number: u64, flags: u16, count: usize, body: &[u8]) -> Vec<u8> {
    let pages = (PAGE_HEADER + body.len()).div_ceil(PAGE_SIZE);
    let mut bytes = Vec::with_capacity(pages * PAGE_SIZE);
    bytes.extend(number.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend(small(pages - 1).to_le_bytes());
    bytes.extend(body);
    bytes.resize(pages * PAGE_SIZE, 0);
    bytes
}

fn meta(root: u64, end: u64, transaction: u64) -> Vec<u8> {
    let mut meta = Vec::with_capacity(64);
    for field in [MAGIC, VERSION, small(PAGE_SIZE), 0] {
        meta.extend(field.to_le_bytes());
    }
    for field in [root, 0, FREELIST_PAGE, end, transaction] {
        meta.extend(field.to_le_bytes());
    }
    meta.extend(fnv1a(&meta).to_le_bytes());
    meta
}

/// Sizes inside this small database fit 32 bits by far.
fn small(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// FNV-1a, 64 bit: the checksum of meta pages.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
