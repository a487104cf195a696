//! Prints how long judging takes, with 10 and with 10,000 rules.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    for rules in [10, 10_000, 10, 10_000] {
        let pins = std::env::temp_dir().join(format!("palisade-measure-{}", std::process::id()));
        println!(
            "{rules} rules: {:?}",
            ebpf_loader::measure::judging(&pins, rules)?
        );
    }
    Ok(())
}
