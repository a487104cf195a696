//! Becomes a jailed tool, as the daemons do with their `jail` subcommand.

#![forbid(unsafe_code)]

fn main() {
    // The first two words are the program and the subcommand.
    agent_sandbox::jail::main(std::env::args_os().skip(2))
}
