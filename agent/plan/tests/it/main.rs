//! Plans driven through a simulated node, and the statuses that go with them.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper of a test may panic like the test itself"
)]

mod golden;
mod properties;
mod stops;
mod world;
