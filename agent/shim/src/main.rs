//! `palisade-shim RUN_DIRECTORY POD`: the process that is a pod, as far as the host is concerned. The agent starts one
//! for each pod.
//!
//! A program of its own and not a subcommand of the agent's: mapping and relocating a program is part of each pod's
//! start, and what it maps is part of each pod's memory.

#![forbid(unsafe_code)]

fn main() -> ! {
    agent_runtime::shim::main(std::env::args_os().skip(1))
}
