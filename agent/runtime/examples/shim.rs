//! Helper of the integration tests: a program with the `shim` subcommand, as the agent's is.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(mode) if mode == agent_runtime::shim::SUBCOMMAND => agent_runtime::shim::main(args),
        _ => ExitCode::FAILURE,
    }
}
