//! Any bytes, cut anyhow, as what a client of SPDY sends: no panic, and the cuts change nothing.
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz spdy`.

#![no_main]

use control_streams::{
    channels::VERSIONS,
    spdy::{Decoder, Event},
};
use libfuzzer_sys::fuzz_target;

/// Everything that was said, with data joined; and whether the client broke the rules after that.
fn told(pieces: &[&[u8]]) -> (Vec<String>, bool) {
    let mut decoder = Decoder::new();
    let (mut told, mut data) = (Vec::new(), (0, 0_usize));
    for piece in pieces {
        let mut input = *piece;
        loop {
            match decoder.next(&mut input) {
                Ok(Some(Event::Data { stream, bytes })) => {
                    if data.0 != stream {
                        told.push(format!("{data:?}"));
                        data = (stream, 0);
                    }
                    data.1 += bytes.len();
                }
                Ok(Some(other)) => {
                    told.push(format!("{data:?} {other:?}"));
                    data = (0, 0);
                }
                Ok(None) => break,
                Err(_) => return (told, true),
            }
        }
        assert!(input.is_empty());
    }
    told.push(format!("{data:?}"));
    (told, false)
}

fuzz_target!(|data: &[u8]| {
    let Some((cut, bytes)) = data.split_first() else { return };
    let (front, back) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    assert_eq!(told(&[bytes]), told(&[front, back]));
    for version in VERSIONS {
        drop(version.parse(bytes, version.base64));
    }
});
