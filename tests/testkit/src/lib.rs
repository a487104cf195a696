//! What tests share.

#![forbid(unsafe_code)]

pub mod policies;
