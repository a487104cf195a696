//! Any bytes, as any kind of layer: unpacking must not panic, must respect its limits, and must not touch
//! anything but its directory. Run as root: `cargo +nightly fuzz run --fuzz-dir tests/fuzz unpack_layer`.

#![no_main]

use std::{collections::BTreeSet, fs, os::fd::AsFd};

use agent_images::{UnpackLimits, unpack};
use images_fetch::Compression;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

const LIMITS: UnpackLimits = UnpackLimits { bytes: 1 << 20, entries: 100 };

fuzz_target!(|data: &[u8]| {
    let Some((kind, packed)) = data.split_first() else { return };
    let compression = match kind % 4 {
        0 => Compression::Gzip,
        1 => Compression::Zstd,
        // Plain tar is where most of our own code is.
        _ => Compression::None,
    };
    let Ok(dir) = tempfile::tempdir() else { return };
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("the directory is empty");
    fs::write(dir.path().join("outside"), "untouched").expect("the directory is writable");
    let root = fs::File::open(root).expect("it was just made");
    if let Ok(unpacked) = unpack(compression.reader(packed), root.as_fd(), &LIMITS) {
        assert!(unpacked.bytes <= LIMITS.bytes && unpacked.entries <= LIMITS.entries);
    }
    let names: BTreeSet<_> =
        fs::read_dir(dir.path()).expect("it exists").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, BTreeSet::from(["outside".into(), "root".into()]));
    assert_eq!(fs::read(dir.path().join("outside")).expect("it exists"), b"untouched");
});

// Without this nearly every changed archive would fail at the checksum of its first changed header, before our code.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, _seed: u32| {
    let size = libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    if let Some((kind, archive)) = data[..size].split_first_mut()
        && *kind % 4 >= 2
    {
        repair_checksums(archive);
    }
    size
});

const BLOCK: usize = 512;

/// Walks the headers as a reader does and makes the checksum of each one right.
fn repair_checksums(mut archive: &mut [u8]) {
    while let Some((header, rest)) = archive.split_at_mut_checked(BLOCK) {
        if header.iter().any(|byte| *byte != 0) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let size = header[124..136].iter().skip_while(|byte| **byte == b' ').take_while(|byte| byte.is_ascii_digit());
        let size = size.fold(0usize, |size, digit| size.saturating_mul(8).saturating_add(usize::from(digit - b'0')));
        let content = size.div_ceil(BLOCK).saturating_mul(BLOCK);
        archive = rest.get_mut(content..).unwrap_or_default();
    }
}
