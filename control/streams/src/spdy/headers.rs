//! Header blocks: names and values, compressed with zlib over the whole connection and with a dictionary that both
//! sides know.
//!
//! The pure Rust inflater has no call for preset dictionaries. It needs none: a dictionary is nothing but text that came
//! before, so it is fed to it as a stored block first.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Most headers of one stream.
const MAX_HEADERS: usize = 64;

/// Most bytes of one header block, decompressed.
const MAX_BLOCK: usize = 16 * 1024;

/// Head of a zlib stream with a window of 32 KiB and a preset dictionary.
const ZLIB_HEAD: [u8; 2] = [0x78, 0xbb];

/// Names and values of one stream, names in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers(Vec<(String, String)>);

/// Headers that do not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not zlib with SPDY's dictionary.
    #[error("compressed with something else than zlib and SPDY's dictionary")]
    Dictionary,
    /// The compressed text is damaged.
    #[error("the compressed text is damaged")]
    Damaged,
    /// Too many or too large.
    #[error("more than {MAX_HEADERS} headers or {MAX_BLOCK} bytes")]
    TooMuch,
    /// The block does not have the lengths it announces, or text that is none.
    #[error("the block is malformed")]
    Malformed,
}

impl Headers {
    /// Headers of these pairs.
    pub fn of<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        Self(
            pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
        )
    }

    /// First value of a name in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.as_str())
    }

    fn parse(block: &[u8]) -> Result<Self, HeaderError> {
        let mut rest = block;
        let count = take_number(&mut rest)?;
        if count > MAX_HEADERS {
            return Err(HeaderError::TooMuch);
        }
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            let name = take_text(&mut rest)?.to_ascii_lowercase();
            headers.push((name, take_text(&mut rest)?));
        }
        match rest {
            [] => Ok(Self(headers)),
            _ => Err(HeaderError::Malformed),
        }
    }

    fn block(&self) -> Vec<u8> {
        let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        let mut block = number(self.0.len()).to_vec();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&number(text.len()));
            block.extend_from_slice(text.as_bytes());
        }
        block
    }
}

fn take_number(rest: &mut &[u8]) -> Result<usize, HeaderError> {
    let (number, after) = rest.split_first_chunk::<4>().ok_or(HeaderError::Malformed)?;
    *rest = after;
    usize::try_from(u32::from_be_bytes(*number)).map_err(|_range| HeaderError::Malformed)
}

fn take_text(rest: &mut &[u8]) -> Result<String, HeaderError> {
    let length = take_number(rest)?;
    let (text, after) = rest.split_at_checked(length).ok_or(HeaderError::Malformed)?;
    *rest = after;
    String::from_utf8(text.to_vec()).map_err(|_utf8| HeaderError::Malformed)
}

/// Decompresses the header blocks of one direction of a connection, in order.
#[derive(Debug)]
pub(super) struct Inflater {
    state: Decompress,
    begun: bool,
}

impl Inflater {
    pub(super) fn new() -> Self {
        Self {
            state: Decompress::new(false),
            begun: false,
        }
    }

    /// The headers of the next compressed block.
    pub(super) fn headers(&mut self, mut compressed: &[u8]) -> Result<Headers, HeaderError> {
        if !self.begun {
            compressed = self.begin(compressed)?;
        }
        // One byte more than allowed shows that there is more.
        let mut block = Vec::with_capacity(MAX_BLOCK + 1);
        let before = self.state.total_in();
        let status = self
            .state
            .decompress_vec(compressed, &mut block, FlushDecompress::Sync)
            .map_err(|_damaged| HeaderError::Damaged)?;
        let taken = usize::try_from(self.state.total_in() - before).unwrap_or(usize::MAX);
        if block.len() > MAX_BLOCK {
            return Err(HeaderError::TooMuch);
        }
        // The compression ends with the connection, never before.
        if taken != compressed.len() || matches!(status, Status::StreamEnd) {
            return Err(HeaderError::Damaged);
        }
        Headers::parse(&block)
    }

    /// Checks the head of the zlib stream and lets the dictionary be what came before.
    fn begin<'a>(&mut self, compressed: &'a [u8]) -> Result<&'a [u8], HeaderError> {
        let (head, rest) = compressed
            .split_first_chunk::<2>()
            .ok_or(HeaderError::Dictionary)?;
        let [method, flags] = *head;
        let deflate = method & 0x0f == 8 && method >> 4 <= 7;
        let checked = u16::from_be_bytes(*head) % 31 == 0;
        let (wanted, rest) = rest.split_first_chunk::<4>().ok_or(HeaderError::Dictionary)?;
        let ours = u32::from_be_bytes(*wanted) == adler32(DICTIONARY);
        if !(deflate && checked && flags & 0x20 != 0 && ours) {
            return Err(HeaderError::Dictionary);
        }
        let length = u16::try_from(DICTIONARY.len()).map_err(|_range| HeaderError::Dictionary)?;
        // A stored block that is not the last: three bits of zero, then the length twice.
        let mut stored = vec![0];
        stored.extend_from_slice(&length.to_le_bytes());
        stored.extend_from_slice(&(!length).to_le_bytes());
        stored.extend_from_slice(DICTIONARY);
        let mut seen = Vec::with_capacity(DICTIONARY.len() + 1);
        self.state
            .decompress_vec(&stored, &mut seen, FlushDecompress::Sync)
            .map_err(|_damaged| HeaderError::Damaged)?;
        self.begun = true;
        Ok(rest)
    }
}

/// Compresses the header blocks of one direction of a connection.
#[derive(Debug)]
pub(super) struct Deflater {
    state: Compress,
    begun: bool,
}

impl Deflater {
    pub(super) fn new() -> Self {
        Self {
            state: Compress::new(Compression::fast(), false),
            begun: false,
        }
    }

    /// The next compressed block. It names the dictionary, as it must, and does not use it, as it may.
    pub(super) fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut compressed = Vec::new();
        if !self.begun {
            compressed.extend_from_slice(&ZLIB_HEAD);
            compressed.extend_from_slice(&adler32(DICTIONARY).to_be_bytes());
            self.begun = true;
        }
        let block = headers.block();
        let end = self.state.total_in() + u64::try_from(block.len()).unwrap_or(u64::MAX);
        loop {
            let taken = self.state.total_in();
            let left = usize::try_from(end - taken).unwrap_or(usize::MAX);
            let rest = block.get(block.len() - left..).unwrap_or_default();
            compressed.reserve(256);
            let room = compressed.capacity() - compressed.len();
            let before = compressed.len();
            let result = self
                .state
                .compress_vec(rest, &mut compressed, FlushCompress::Sync);
            // Room that was not filled shows that everything is out.
            if result.is_err() || (self.state.total_in() == end && compressed.len() - before < room) {
                return compressed;
            }
        }
    }
}

fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (a + b) % 65_521)
    });
    b << 16 | a
}

/// Appendix of draft 3 of the protocol.
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_that_of_the_draft() {
        assert_eq!(DICTIONARY.len(), 1423);
        // The checksum that every SPDY/3 implementation writes.
        assert_eq!(adler32(DICTIONARY), 0xe3c6_a7c2);
    }

    #[test]
    fn many_blocks_share_one_stream() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        for number in 0..200 {
            let port = number.to_string();
            let headers = Headers::of([("streamtype", "data"), ("port", &port), ("requestid", &port)]);
            let block = deflater.block(&headers);
            assert_eq!(inflater.headers(&block).unwrap(), headers, "{number}");
        }
    }

    /// What zlib itself makes of three headers, with words of the dictionary.
    #[rustfmt::skip]
    const BY_ZLIB: &[u8] = &[
        0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2, 0x02, 0x25, 0x3a, 0x70, 0x3a, 0x2b, 0x29, 0x4a, 0x4d, 0xcc, 0x85, 0x16, 0x25, 0xac, 0xa9, 0xa0, 0x80, 0x86, 0x14, 0xcb, 0x45, 0xa0, 0x24, 0xcc, 0x64, 0x61, 0x00, 0x24, 0x39, 0x8b, 0x20, 0x91, 0x98, 0x09, 0x4a, 0xdc, 0x8c, 0x06, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff,
    ];

    #[test]
    fn what_zlib_compresses_with_the_dictionary_is_read() {
        let expected = Headers::of([("streamtype", "error"), ("port", "80"), ("requestid", "0")]);
        assert_eq!(Inflater::new().headers(BY_ZLIB), Ok(expected));
    }

    #[test]
    fn other_compression_and_bombs_are_refused() {
        let mut plain = vec![0x78, 0x9c];
        plain.extend_from_slice(&[0; 8]);
        assert_eq!(Inflater::new().headers(&plain), Err(HeaderError::Dictionary));
        let long = "x".repeat(MAX_BLOCK);
        let bomb = Deflater::new().block(&Headers::of([("a", &long)]));
        assert!(bomb.len() < 1024, "it compresses well");
        assert_eq!(Inflater::new().headers(&bomb), Err(HeaderError::TooMuch));
        let mut many = 65_u32.to_be_bytes().to_vec();
        many.extend_from_slice(&[0; 8 * 65]);
        assert_eq!(Headers::parse(&many), Err(HeaderError::TooMuch));
        assert_eq!(Headers::parse(&[0, 0, 0, 0, 1]), Err(HeaderError::Malformed));
    }

    proptest! {
        #[test]
        fn any_block_is_answered(bytes: Vec<u8>) {
            drop(Headers::parse(&bytes));
            drop(Inflater::new().headers(&bytes));
            // Past the head of the stream, where the inflater itself is reached.
            let mut begun = ZLIB_HEAD.to_vec();
            begun.extend_from_slice(&adler32(DICTIONARY).to_be_bytes());
            begun.extend_from_slice(&bytes);
            drop(Inflater::new().headers(&begun));
        }

        #[test]
        fn headers_survive(pairs in proptest::collection::vec(("[a-z]{0,9}", ".{0,300}"), 0..8)) {
            let headers = Headers(pairs);
            let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
            for _ in 0..3 {
                prop_assert_eq!(&inflater.headers(&deflater.block(&headers)).unwrap(), &headers);
            }
        }
    }
}
