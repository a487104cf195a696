//! What the target can do with a word of a map value in one step, and `core` offers no method for.

use core::arch::asm;

/// Adds to a word of a map value, which other CPUs may do at the same time. The target has the instruction, but
/// `core` offers no method for it because the target lacks compare-and-swap.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, amount: u64) {
    // SAFETY: callers pass an aligned word of a map value, which stays valid until the program ends.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) amount) };
}

/// Adds, and returns what was there before.
#[inline(always)]
pub(crate) fn fetch_add(counter: *mut u64, mut amount: u64) -> u64 {
    // SAFETY: as in `add`.
    unsafe { asm!("{0} = atomic_fetch_add((u64 *)({1} + 0), {0})", inout(reg) amount, in(reg) counter) };
    amount
}

/// As [`add`], of half a word.
#[inline(always)]
pub(crate) fn add_half(counter: *mut u32, amount: u32) {
    // SAFETY: as in `add`.
    unsafe { asm!("lock *(u32 *)({0} + 0) += {1}", in(reg) counter, in(wreg) amount) };
}

/// Sets bits of half a word of a map value, which other CPUs may do at the same time.
#[inline(always)]
pub(crate) fn set_half(word: *mut u32, bits: u32) {
    // SAFETY: as in `add`.
    unsafe { asm!("lock *(u32 *)({0} + 0) |= {1}", in(reg) word, in(wreg) bits) };
}

/// Writes a word of a map value, and returns what was there before.
#[inline(always)]
pub(crate) fn exchange(word: *mut u64, mut value: u64) -> u64 {
    // SAFETY: as in `add`.
    unsafe { asm!("{0} = xchg_64({1} + 0, {0})", inout(reg) value, in(reg) word) };
    value
}

/// As [`exchange`], of half a word: of several CPUs that write 1, one reads 0.
#[inline(always)]
pub(crate) fn exchange_half(word: *mut u32, mut value: u32) -> u32 {
    // SAFETY: as in `add`.
    unsafe { asm!("{0} = xchg32_32({1} + 0, {0})", inout(wreg) value, in(reg) word) };
    value
}
