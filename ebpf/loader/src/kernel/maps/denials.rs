//! Denials that were told as one, and those that nobody was told of.

use std::{collections::BTreeMap, mem::offset_of, sync::atomic::Ordering, time::Duration};

use ebpf_abi::{Endpoint, FlowRecord, Slot};

use super::Maps;
use crate::{DatapathError, flows};

impl Maps {
    /// Tells how many packets were denied since the last report of their like, and forgets what is older than `age`.
    pub(crate) fn take_denials(
        &mut self,
        now: Duration,
        age: Duration,
    ) -> Result<Vec<FlowRecord>, DatapathError> {
        let time_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let mut records = Vec::new();
        for (key, denial) in self.denials.all()? {
            if now.saturating_sub(Duration::from_nanos(denial.reported_ns)) <= age {
                continue;
            }
            // A packet that is counted between the look and the removal is lost to the count.
            self.denials.remove(&key)?;
            if denial.packets > 0 {
                records.push(flows::denials(&key, &denial, time_ns));
            }
        }
        Ok(records)
    }

    /// Denied packets of each endpoint that nobody was told of, since it was attached.
    pub(crate) fn unreported(&self) -> Result<BTreeMap<u32, u64>, DatapathError> {
        let count = |endpoint: &Endpoint| {
            let word = self.slots.field(endpoint.slot, offset_of!(Slot, unreported));
            word.map_or(0, |word| word.load(Ordering::Relaxed))
        };
        let endpoints = self.endpoints()?;
        let counts = endpoints
            .iter()
            .map(|(_, endpoint)| (endpoint.id, count(endpoint)));
        Ok(counts.filter(|(_, count)| *count > 0).collect())
    }
}
