//! What the machine has and uses, from `/proc` and its file systems.

use std::{fs, path::Path};

use api::stats::{CpuStats, FsStats, MemoryStats, RlimitStats};
use jiff::{SignedDuration, Timestamp};

/// Units of `/proc/stat`: the kernel shows 100 per second to every program, whatever it counts in itself.
const NANOS_PER_TICK: u64 = 10_000_000;

/// Processor time that all processes have used.
pub(super) fn cpu(now: Timestamp) -> Option<CpuStats> {
    let nanos = busy_nanos(&fs::read_to_string("/proc/stat").ok()?)?;
    Some(CpuStats {
        time: now,
        usage_nano_cores: None,
        usage_core_nano_seconds: nanos,
    })
}

/// Memory, with what is available as the kubelet's eviction counts it: without files that were not used lately.
pub(crate) fn memory(now: Timestamp) -> Option<MemoryStats> {
    memory_of(&fs::read_to_string("/proc/meminfo").ok()?, now)
}

/// The file system of `path`; what is used of it is all that is not free.
pub(crate) fn file_system(path: &Path, now: Timestamp) -> Option<FsStats> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(FsStats {
        time: now,
        available_bytes: bytes(stat.f_bavail),
        capacity_bytes: bytes(stat.f_blocks),
        used_bytes: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        inodes_free: stat.f_favail,
        inodes: stat.f_files,
        inodes_used: Some(stat.f_files.saturating_sub(stat.f_ffree)),
    })
}

/// Process numbers: the smaller of the kernel's two bounds, and threads that are there.
pub(crate) fn processes(now: Timestamp) -> Option<RlimitStats> {
    let number = |path: &str| -> Option<u64> { fs::read_to_string(path).ok()?.trim().parse().ok() };
    let most = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    Some(RlimitStats {
        time: now,
        maxpid: most,
        curproc: threads(&load)?,
    })
}

/// When the machine was booted.
pub(super) fn booted_at(now: Timestamp) -> Timestamp {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split('.').next().and_then(|text| text.parse().ok());
    now.checked_sub(SignedDuration::from_secs(seconds.unwrap_or(0)))
        .unwrap_or(now)
}

/// Everything but idling and waiting for disks; guests are part of user time already.
fn busy_nanos(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map_while(|text| text.parse().ok())
        .collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks.as_slice() else {
        return None;
    };
    let steal = ticks.get(7).copied().unwrap_or(0);
    let busy = [*user, *nice, *system, *irq, *softirq, steal];
    let busy = busy.into_iter().fold(0u64, u64::saturating_add);
    Some(busy.saturating_mul(NANOS_PER_TICK))
}

fn memory_of(meminfo: &str, now: Timestamp) -> Option<MemoryStats> {
    let bytes = |key: &str| -> Option<u64> {
        let mut lines = meminfo.lines();
        let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kib.saturating_mul(1024))
    };
    let total = bytes("MemTotal")?;
    let usage = total.saturating_sub(bytes("MemFree")?);
    let working_set = usage.saturating_sub(bytes("Inactive(file)")?);
    Some(MemoryStats {
        time: now,
        available_bytes: Some(total.saturating_sub(working_set)),
        usage_bytes: usage,
        working_set_bytes: working_set,
        rss_bytes: bytes("AnonPages"),
        page_faults: None,
        major_page_faults: None,
    })
}

/// The fourth field of `/proc/loadavg` is `running/existing`.
fn threads(loadavg: &str) -> Option<u64> {
    let (_, existing) = loadavg.split_whitespace().nth(3)?.split_once('/')?;
    existing.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        let stat = "cpu  10 1 5 1000 50 2 3 4 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_nanos(stat), Some(25 * NANOS_PER_TICK));
        assert_eq!(busy_nanos("cpu0 1\n"), None);
        assert_eq!(threads("0.1 0.2 0.3 2/317 4242\n"), Some(317));
        let now = Timestamp::UNIX_EPOCH;
        let meminfo = "MemTotal:  1000 kB\nMemFree: 300 kB\nInactive(file): 200 kB\nAnonPages: 100 kB\n";
        let memory = memory_of(meminfo, now).unwrap();
        assert_eq!(
            (
                memory.usage_bytes,
                memory.working_set_bytes,
                memory.available_bytes
            ),
            (700 << 10, 500 << 10, Some(500 << 10))
        );
    }

    #[test]
    fn this_machine_can_be_measured() {
        let now = Timestamp::now();
        assert!(cpu(now).unwrap().usage_core_nano_seconds > 0);
        assert!(memory(now).unwrap().working_set_bytes > 1 << 20);
        assert!(processes(now).unwrap().curproc > 1);
        let fs = file_system(Path::new("/"), now).unwrap();
        assert!(fs.available_bytes <= fs.capacity_bytes && fs.capacity_bytes > 0);
        assert!(booted_at(now) < now);
    }
}
