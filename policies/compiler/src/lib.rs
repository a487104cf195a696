//! From policy objects to the tables that judge packets.
//!
//! [`compile`] turns a [`ClusterView`] into the tables of one node; it never fails: whatever cannot be
//! understood matches nothing, and is named in the diagnostics. [`validate`] says the same to the person who
//! writes the object, before it is stored. [`explain()`] answers which rule decides between two ends.
//! [`reference`] judges one packet by the reference alone, for tests of everything else. [`capacity`] says whether
//! tables fit into a kernel's maps.
//!
//! The crate is pure. Non-goals: the kernel's bytes (`ebpf/abi`), numbering endpoints and watching objects
//! (the agent).

#![forbid(unsafe_code)]

mod calico;
pub mod capacity;
mod cells;
mod classes;
mod closed;
mod cluster_policy;
mod compile;
mod explain;
mod field;
mod flatten;
mod judge;
mod kubernetes;
mod load;
mod made_up;
mod program;
mod reading;
mod services;
mod session;
mod sources;
mod view;

pub use calico::{ServiceEndpoint, built_in_tiers, default_types};
pub use closed::closed_hosts;
pub use cluster_policy::NodeView;
pub use compile::{
    Answers, Compiled, Diagnostic, compile, compile_answers, compile_policies, compile_staged, reference,
};
pub use explain::{End, ExplainError, Explanation, Judgement, Tried, explain, parse_protocol};
pub use field::{FieldError, NetError, parse_net};
pub use judge::{Answer, Book, FlowEnd, FlowError, Judge, Question};
pub use kubernetes::validate;
pub use load::{Identity, LoadError, Loaded, Source, identity, load_objects, validate_object};
pub use made_up::is_made_up_ipv6;
pub use program::Answer as ClassAnswer;
pub use session::{NamedRules, Session, Settled};
pub use view::{CalicoObject, ClusterView, HostEndpointIds, PodView, Policies};
