//! What the kernel's verifier has to walk through.

use crate::lab::Lab;

/// Instructions, of the million after which the kernel refuses a program. Kernels differ in how much they walk through, and
/// whoever adds to a program hears of it here before some kernel refuses it.
const BUDGET: u32 = 450_000;

#[test]
fn every_program_is_verified_within_the_budget() {
    let mut lab = Lab::new();
    let counts = lab.kernel().verified_instructions().expect("ask the kernel");
    if counts.is_empty() {
        eprintln!("skipped: this kernel does not tell");
        return;
    }
    println!("{counts:?}");
    assert_eq!(counts.len(), 7, "{counts:?}");
    for (name, count) in counts {
        assert!(count <= BUDGET, "{name} takes {count} of {BUDGET} instructions");
    }
}
