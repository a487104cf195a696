//! What the kernel must have: asked at start-up, so that what is missing is named rather than found out by a refusal.

use std::{io, thread};

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use rustix::thread::UnshareFlags;

use crate::{Attachment, DatapathError, sys, tc};

/// Whether the kernel has tcx links.
pub(crate) fn has_tcx() -> Result<bool, DatapathError> {
    sys::tcx_is_supported().map_err(|source| DatapathError::Probe {
        feature: "tcx links",
        source,
    })
}

/// Checks for everything that the programs need, and names all that is missing at once.
pub(crate) fn check(attachment: Attachment) -> Result<(), DatapathError> {
    let mut missing = Vec::new();
    let mut need = |feature: &'static str, found: bool| {
        if !found {
            missing.push(feature);
        }
    };
    let at = |feature| move |source| DatapathError::Probe { feature, source };
    need(
        "network programs: set CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_ACT",
        is_program_supported(ProgramType::SchedClassifier)
            .map_err(|error| at("network programs")(io::Error::other(error)))?,
    );
    for (feature, kind) in [
        (
            "prefix tables: run Linux 4.11 or newer",
            aya::maps::MapType::LpmTrie,
        ),
        (
            "ring buffers: run Linux 5.8 or newer",
            aya::maps::MapType::RingBuf,
        ),
    ] {
        let found = is_map_supported(kind).map_err(|error| at("maps")(error.io_error))?;
        need(feature, found);
    }
    need(
        "the coarse clock for programs: run Linux 5.11 or newer",
        is_helper_supported(
            ProgramType::SchedClassifier,
            BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
        )
        .map_err(|error| at("the coarse clock")(io::Error::other(error)))?,
    );
    match attachment {
        Attachment::Tcx => need(
            "tcx links: run Linux 6.6 or newer with CONFIG_NET_XGRESS",
            has_tcx()?,
        ),
        Attachment::Clsact => need(
            "the clsact discipline: set CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF, or load sch_ingress and cls_bpf",
            has_clsact().map_err(at("the clsact discipline"))?,
        ),
    }
    match missing.is_empty() {
        true => Ok(()),
        false => Err(DatapathError::Unsupported { missing }),
    }
}

/// Whether the discipline can be added, and knows BPF filters: tried out on the loopback interface of a network
/// namespace that is gone with its only thread.
fn has_clsact() -> io::Result<bool> {
    let probe = || {
        // SAFETY: the thread has just begun and shares no network namespace with code that relies on the old one; no
        // file descriptors are unshared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        tc::is_supported(1)
    };
    thread::Builder::new()
        .spawn(probe)?
        .join()
        .map_err(|_panic| io::Error::other("the probe ended early"))?
}
