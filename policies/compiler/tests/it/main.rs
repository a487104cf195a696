//! The compiler through its public functions.

#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod explaining;
mod kubernetes;
mod properties;
mod scale;
