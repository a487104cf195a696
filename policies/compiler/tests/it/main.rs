//! The compiler through its public functions.

#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod assumed;
mod calico;
mod closed;
mod explaining;
mod exports;
mod families;
mod fields;
mod hosts;
mod judging;
mod kubernetes;
mod lab;
mod loading;
mod nodes;
mod properties;
mod regressions;
mod scale;
mod session;
mod spec;
mod translated;

use policies_compiler::Source;
use serde_json::Value;

/// The objects, all from one place.
fn sources(objects: &[Value]) -> impl Iterator<Item = Source<'_>> {
    objects.iter().map(|object| Source {
        origin: "test",
        object,
    })
}
