//! Any bytes, as any kind of layer: unpacking must not panic, must respect its limits, and must not touch
//! anything but its directory. Run as root: `cargo +nightly fuzz run --fuzz-dir tests/fuzz unpack_layer`.

#![no_main]

use std::{collections::BTreeSet, fs, os::fd::AsFd};

use agent_images::{UnpackLimits, unpack};
use images_fetch::Compression;
use libfuzzer_sys::fuzz_target;

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
