//! Interfaces that nothing judges although they have endpoints: somebody else took the programs off, or they went with a
//! queueing discipline or to another network namespace and back. No message of the kernel tells; it is asked every few
//! seconds, and whenever interfaces change. What the endpoints have in the maps stays, so programs that are back judge as
//! before.

use std::collections::BTreeMap;

use super::{Enforcement, Worker, chain};

/// Those that could not be given their programs again, with the reason.
#[derive(Debug, Default)]
pub(super) struct Bare(BTreeMap<u32, String>);

impl Bare {
    pub(super) fn contains(&self, ifindex: u32) -> bool {
        self.0.contains_key(&ifindex)
    }
}

impl Worker {
    /// Attaches the programs again where they are gone. Whether there were any: until tables are looked at again, and for
    /// as long as one cannot be had back, policy is not in force.
    pub(super) fn restore(&mut self) -> bool {
        let found = match self.datapath.bare() {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(error = chain(&error), "cannot tell which interfaces are judged");
                return false;
            }
        };
        let before = std::mem::take(&mut self.bare);
        let new: Vec<String> = found
            .iter()
            .filter(|ifindex| !before.contains(**ifindex))
            .map(|ifindex| self.hosts.name_of(*ifindex))
            .collect();
        if !new.is_empty() {
            self.tell(Enforcement::Behind(format!(
                "nothing judges {}: its programs were taken off, and not by this agent",
                new.join(", ")
            )));
        }
        for ifindex in &found {
            if let Err(error) = self.datapath.restore(*ifindex) {
                self.bare.0.insert(*ifindex, chain(&error));
            }
        }
        !(found.is_empty() && before.0.is_empty())
    }

    /// Why policy is not in force at some interface, if it is not.
    pub(super) fn still_bare(&self) -> Option<String> {
        let each = self.bare.0.iter();
        let each: Vec<String> = each
            .map(|(ifindex, why)| format!("{} ({why})", self.hosts.name_of(*ifindex)))
            .collect();
        let all = each.join(", ");
        (!each.is_empty()).then(|| {
            format!("nothing judges {all}: its programs were taken off, and cannot be attached again")
        })
    }
}
