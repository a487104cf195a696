//! The programs on the kernel of this machine. Needs root; everything made here is named after this process and
//! removed again.

#![expect(clippy::expect_used, reason = "a helper of a test that fails ends the test")]

mod addresses;
mod adopted;
mod bare;
mod carried;
mod closed;
mod corpus;
mod devices;
mod direct;
mod flips;
mod fragments;
mod frames;
mod host;
mod lab;
mod layer3;
mod learn;
mod link;
mod looks;
mod matrix;
mod places;
mod policies;
mod proof;
mod published;
mod reports;
mod restart;
mod splits;
mod timed;
mod tracking;
mod verifier;
mod wire;
