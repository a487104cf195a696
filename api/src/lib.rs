//! What Palisade's parts say to each other: the resources it serves, its own kinds, and the validated
//! newtypes that everything else is built from.
//!
//! Built-in Kubernetes types come from `k8s-openapi`; this crate adds what that one does not have. It is
//! pure: no I/O, no clock, no randomness. Non-goals: policy semantics (`policies/ir`) and the wire format
//! of the Kubernetes API (`control/wire`).
//!
//! Start at [`resources::RESOURCES`] for what is served and [`palisade`] for our own kinds.

#![forbid(unsafe_code)]

pub mod annotations;
pub mod calico;
pub mod cluster_policy;
pub mod digest;
pub mod flow;
pub mod host_paths;
pub mod host_ports;
pub mod image_ref;
pub mod learned;
pub mod names;
pub mod node_policy;
pub mod palisade;
pub mod pull_secret;
pub mod qos;
pub mod quantity;
pub mod resources;
pub mod selector;
pub mod session;
pub mod stats;
pub mod storage;
pub mod verdict;

pub use digest::Digest;
pub use image_ref::ImageRef;
