//! The checker through its public functions, held to the reference by brute force.

#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod clusters;
mod model;
