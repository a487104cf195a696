//! Forgetting flows: a look through all of them takes many slices, for whoever is in no hurry, or all at once. And what
//! of an endpoint that is gone there is to tell.

use std::{collections::BTreeMap, time::Duration};

use ebpf_abi::Endpoint;
use policies_ir::tables::EndpointId;

use crate::{
    Datapath, DatapathError, Expired,
    kernel::{
        Kernel,
        look::{Expiry, Gone, Look},
        maps::Slice,
    },
    sys,
};

impl Kernel {
    /// One slice of a look at which flows have grown old.
    pub(super) fn go_on_looking(&mut self, now: Duration) -> Result<Expired, DatapathError> {
        let look = match self.look.take() {
            Some(look) => look,
            None => self.begin_look(Some(Expiry {
                now,
                before: self.expired_at,
                is_crowded: self.is_crowded,
            }))?,
        };
        let (removed, ended) = self.look_on(look)?;
        let mut expired = Expired {
            removed,
            more: true,
            ..Expired::default()
        };
        if let Some(Look { expiry, tracked, .. }) = ended {
            expired.tracked = tracked;
            // Closed flows that are too many go at once, not at the next look.
            expired.more = self.is_crowded && expiry.is_none_or(|expiry| !expiry.is_crowded);
            if !expired.more {
                let denials = self.maps.take_denials(now, self.limits.report_every)?;
                self.untold.extend(denials);
            }
        }
        expired.records = std::mem::take(&mut self.untold);
        Ok(expired)
    }

    /// Notes an endpoint that no program knows any more. What was counted of its denials is told by the next look; its slot
    /// may be another's by then.
    pub(super) fn note_gone(&mut self, ifindex: u32, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.gone.push(Gone {
            ifindex,
            endpoint: *endpoint,
            at_ns: sys::programs_now_ns(),
        });
        let left = self.maps.settle_denials(endpoint, sys::monotonic_now())?;
        self.untold.extend(left.records);
        if left.unreported > 0 {
            *self.unreported.entry(endpoint.id).or_default() += left.unreported;
        }
        Ok(())
    }

    /// Denied packets that nobody was told of. Those of an endpoint that is gone are said once; if it has come back, its own
    /// are counted on top of them.
    pub(super) fn take_unreported(&mut self) -> Result<BTreeMap<EndpointId, u64>, DatapathError> {
        let endpoints = self.maps.endpoints()?;
        let mut all = self.maps.unreported(&endpoints);
        for (id, packets) in &self.unreported {
            *all.entry(*id).or_default() += packets;
        }
        let is_there = |id: &u32| endpoints.iter().any(|(_, endpoint)| endpoint.id == *id);
        self.unreported.retain(|id, _| is_there(id));
        Ok(all
            .into_iter()
            .map(|(id, packets)| (EndpointId(id), packets))
            .collect())
    }

    /// Forgets the flows of endpoints that are gone, all at once: their numbers or their interfaces are wanted again, or
    /// the caller has nothing else to do.
    pub(super) fn forget_flows(&mut self) -> Result<(), DatapathError> {
        while self.is_forgetting() {
            let look = match self.look.take() {
                Some(look) => look,
                None => self.begin_look(None)?,
            };
            self.look_on(look)?;
        }
        Ok(())
    }

    fn begin_look(&mut self, expiry: Option<Expiry>) -> Result<Look, DatapathError> {
        let census = self.maps.begin_census()?;
        Ok(Look::new(expiry, std::mem::take(&mut self.gone), census))
    }

    /// Takes one slice of a look; how many flows went, and the look if that was its last.
    fn look_on(&mut self, mut look: Look) -> Result<(usize, Option<Look>), DatapathError> {
        match self.maps.look_on(&mut look, &mut self.untold) {
            Ok(Slice {
                removed,
                is_last: true,
            }) => {
                if let Some(expiry) = look.expiry {
                    self.expired_at = expiry.now;
                    self.is_crowded = look.tracked > self.limits.crowded();
                }
                Ok((removed, Some(look)))
            }
            Ok(Slice { removed, .. }) => {
                self.look = Some(look);
                Ok((removed, None))
            }
            Err(error) => {
                self.gone.append(&mut look.gone);
                Err(error)
            }
        }
    }
}
