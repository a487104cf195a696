//! The tracer of crash tests, as a process of its own: see `testkit::walk`.

fn main() -> std::io::Result<()> {
    // The first word is the subcommand that all such programs have.
    let words: Vec<String> = std::env::args().skip(2).collect();
    testkit::walk::main(&words)
}
