//! Plans driven through a simulated node, and the statuses that go with them.

mod golden;
mod properties;
mod stops;
mod world;
