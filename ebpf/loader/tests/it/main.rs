//! The programs on the kernel of this machine. Needs root; everything made here is named after this process and
//! removed again.

mod corpus;
mod frames;
mod lab;
mod link;
mod policies;
mod restart;
