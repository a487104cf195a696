//! Forgetting flows: a look through all of them takes many slices, for whoever is in no hurry, or all at once.

use std::time::Duration;

use ebpf_abi::Endpoint;

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

    /// Notes an endpoint that no program knows any more.
    pub(super) fn note_gone(&mut self, ifindex: u32, endpoint: &Endpoint) {
        self.gone.push(Gone {
            ifindex,
            endpoint: *endpoint,
            at_ns: sys::programs_now_ns(),
        });
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
