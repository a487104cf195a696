//! Layer compression: which there are, and readers that give the tar stream inside.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use api::Digest;
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use sha2::{Digest as _, Sha256};

use crate::FetchError;

/// Largest zstd window that is accepted: RFC 8878 recommends that decoders support at least 8 MiB;
/// 128 MiB is what `zstd --ultra -22 --long=27` needs, and bounds what a frame makes us allocate.
const MAX_ZSTD_WINDOW: u64 = 128 << 20;

/// How a layer's tar stream is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, possibly of several members.
    Gzip,
    /// zstd, possibly of several frames.
    Zstd,
}

impl Compression {
    /// Compression of a layer media type; `None` for types that are no plain file system layer (foreign
    /// and encrypted layers among them).
    pub(crate) fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
                Some(Self::None)
            }
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Some(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The uncompressed bytes of `packed`, to the last one: what follows the compressed stream is an
    /// error, so that no two readers can disagree about where a layer ends.
    pub fn reader<'a, R: BufRead + 'a>(self, packed: R) -> Box<dyn Read + 'a> {
        match self {
            Self::None => Box::new(packed),
            Self::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Self::Zstd => Box::new(ZstdFrames::new(packed)),
        }
    }
}

/// SHA-256 of the uncompressed bytes of the layer in `blob`, of which there may be at most `limit`.
/// Returns the digest and the number of bytes.
pub(crate) fn diff_id(
    blob: &Path,
    digest: Digest,
    compression: Compression,
    limit: u64,
) -> Result<(Digest, u64), FetchError> {
    let file = File::open(blob).map_err(|source| FetchError::Io {
        operation: "open",
        path: blob.to_owned(),
        source,
    })?;
    let mut reader = compression
        .reader(BufReader::with_capacity(128 << 10, file))
        .take(limit.saturating_add(1));
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    let mut total = 0u64;
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(FetchError::Decompress { digest, source }),
        };
        hasher.update(&buffer[..read]);
        total += read as u64;
    }
    if total > limit {
        return Err(FetchError::TooLarge {
            what: format!("layer {digest}, uncompressed,"),
            limit,
        });
    }
    Ok((Digest::from_sha256(hasher.finalize().into()), total))
}

/// Reads zstd frames one after the other until the input ends; skippable frames carry no content.
struct ZstdFrames<R: BufRead> {
    source: R,
    decoder: FrameDecoder,
    inside_frame: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_ZSTD_WINDOW);
        Self {
            source,
            decoder,
            inside_frame: false,
        }
    }

    /// Enters the next frame with content; `false` at the end of the input.
    fn enter_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let skipped = io::copy(&mut (&mut self.source).take(u64::from(length)), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.inside_frame {
                if !self.enter_frame()? {
                    return Ok(0);
                }
                self.inside_frame = true;
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            }
            match self.decoder.read(buffer)? {
                0 => self.inside_frame = false,
                read => return Ok(read),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read_all(compression: Compression, packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut unpacked = Vec::new();
        compression.reader(packed).read_to_end(&mut unpacked)?;
        Ok(unpacked)
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn reads_every_member_and_frame() {
        let big = vec![7u8; 1 << 20];
        assert_eq!(
            read_all(Compression::Gzip, &[gzip(b"ab"), gzip(&big)].concat())
                .unwrap()
                .len(),
            big.len() + 2
        );
        let skippable = [&0x184D_2A50u32.to_le_bytes()[..], &3u32.to_le_bytes(), b"xyz"].concat();
        let frames = [zstd(&big), skippable, zstd(b"cd")].concat();
        let unpacked = read_all(Compression::Zstd, &frames).unwrap();
        assert_eq!(unpacked.len(), big.len() + 2);
        assert!(unpacked.ends_with(b"cd"));
    }

    #[test]
    fn truncation_and_trailing_bytes_are_errors() {
        for (compression, packed) in [
            (Compression::Gzip, gzip(b"hello")),
            (Compression::Zstd, zstd(b"hello")),
        ] {
            assert!(
                read_all(compression, &packed[..packed.len() - 2]).is_err(),
                "{compression:?} truncated"
            );
            let trailing = [&packed[..], b"garbage"].concat();
            assert!(
                read_all(compression, &trailing).is_err(),
                "{compression:?} with trailing bytes"
            );
        }
    }
}
