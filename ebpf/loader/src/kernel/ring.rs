//! The ring of decisions, read in gulps.
//!
//! A wake-up for each record would cost a packet more than all its judging does. The kernel wakes a reader only for a
//! record that finds the ring empty, so a reader that lets records gather for [`GATHER`] is woken once in that time,
//! however many there are. The programs wake it earlier when the ring fills (`ebpf_abi::RING_HURRY_BYTES`).

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use aya::maps::{Map, MapData, RingBuf};
use rustix::{
    event::{Timespec, epoll},
    io::Errno,
};

use crate::{
    DatapathError, FlowRecord, FlowSource,
    kernel::maps::{EVENTS, failed_map},
};

/// How long records gather before they are read: what a follower of flows does not notice, and in which no datapath
/// fills the ring.
const GATHER: Duration = Duration::from_millis(10);

/// The ring, read through the pinned map.
pub(crate) struct Ring {
    ring: RingBuf<MapData>,
    /// Reports wake-ups, each once, and not that the ring holds something: that it does while records gather.
    wake_ups: OwnedFd,
}

impl Ring {
    pub(crate) fn open(directory: &Path) -> Result<Self, DatapathError> {
        let data = MapData::from_pin(directory.join(EVENTS)).map_err(failed_map(EVENTS, "open"))?;
        let ring = Map::from_map_data(data)
            .and_then(RingBuf::try_from)
            .map_err(failed_map(EVENTS, "open"))?;
        let wake_ups = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(wait_failed)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&wake_ups, &ring, epoll::EventData::new_u64(0), flags).map_err(wait_failed)?;
        Ok(Self { ring, wake_ups })
    }

    fn take(&mut self) -> Option<FlowRecord> {
        // The programs write nothing but whole records; anything else would be skipped.
        self.ring.next().and_then(|item| FlowRecord::from_bytes(&item))
    }

    /// Waits for a wake-up that has not been seen yet. Whether there was one.
    fn woken_within(&self, time: Duration) -> Result<bool, DatapathError> {
        let timeout =
            Timespec::try_from(time).map_err(|source| DatapathError::Wait(io::Error::other(source)))?;
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 1];
        match epoll::wait(&self.wake_ups, &mut events, Some(&timeout)) {
            Ok((events, _)) => Ok(!events.is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(source) => Err(wait_failed(source)),
        }
    }
}

impl FlowSource for Ring {
    fn next(&mut self, timeout: Duration) -> Result<Option<FlowRecord>, DatapathError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(record) = self.take() {
                return Ok(Some(record));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // A record that came between the look and the wait has left its wake-up, since the ring was empty.
            if self.woken_within(left)? {
                self.woken_within(GATHER)?;
            }
        }
    }
}

fn wait_failed(source: Errno) -> DatapathError {
    DatapathError::Wait(source.into())
}
