//! Network policy as an ordered, resolved form, the reference that says what it means, and the tables it
//! compiles to.
//!
//! [`policy`] holds the rules with Calico's shape (tiers, order, Allow, Deny, Pass, Log, profiles), which
//! Kubernetes NetworkPolicy is a small part of. [`cluster`] says who has which address. [`decide()`] judges
//! one flow by reading both from top to bottom; it is the oracle for everything faster. [`tables`] is the
//! compiled form that the kernel runs.
//!
//! The crate is pure. Non-goals: reading API objects and compiling (`policies/compiler`), the kernel's bytes
//! (`ebpf/abi`), and connection tracking: a [`decide::Flow`] is always the first packet of a flow.

#![forbid(unsafe_code)]

pub mod align;
pub mod cluster;
pub mod decide;
pub mod difference;
pub mod dump;
pub mod policy;
pub mod ports;
pub mod selector;
pub mod tables;
pub mod verdicts;

pub use decide::decide;
