//! What tests and the demonstration share: images that are built here, a real registry to serve them, the
//! scanner and its lab database, and generators for random policies and packets.
//!
//! Entry points: [`lab::vulnerable`] and [`lab::clean`] for ready images, [`image::ImageBuilder`] for any
//! other, [`registry::Registry`], [`scanner`], [`policies`], [`walk`] for kills in the middle of things,
//! [`devices`] for what a control group lets be opened, [`slow`] for transfers that take their time. Non-goals: starting Palisade itself
//! (`tests/e2e`).

#![forbid(unsafe_code)]

pub mod devices;
pub mod image;
pub mod lab;
pub mod policies;
pub mod registry;
pub mod scanner;
pub mod slow;
pub mod walk;
