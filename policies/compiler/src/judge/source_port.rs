//! The source port of flows of which nobody said one.

use std::collections::BTreeSet;

use policies_ir::policy::PortMatch;

use super::{Book, rules};

/// The first port of those that systems pick for their clients, and the last of all.
const PICKED: std::ops::RangeInclusive<u16> = 49152..=u16::MAX;

impl Book {
    /// A source port that no rule means, by its number or by a name that some end declares for it: of those that
    /// systems pick for their clients if there is one, else the highest. A rule that asks for any port at all means
    /// none. Where rules mean every port, it is the first that systems pick, as such flows have one.
    pub fn unmeant_source_port(&self) -> u16 {
        let meant = self.meant_source_ports();
        let unmeant = |port: &u16| meant.get(usize::from(*port)) == Some(&false);
        let below = (1..*PICKED.start()).rev();
        PICKED.chain(below).find(unmeant).unwrap_or(*PICKED.start())
    }

    /// Of each port, whether a rule means it.
    fn meant_source_ports(&self) -> Vec<bool> {
        // How many ranges more begin than ended before each port: rules may be many, and their ranges long.
        let mut begun = vec![0i64; usize::from(u16::MAX) + 2];
        let mut mean = |first: u16, last: u16| {
            begun[usize::from(first)] += 1;
            begun[usize::from(last) + 1] -= 1;
        };
        let mut names = BTreeSet::new();
        for (rule, _) in rules(&self.policies) {
            let service = &rule.service;
            for port in service.source_ports.iter().chain(&service.not_source_ports) {
                match port {
                    PortMatch::Range(0 | 1, u16::MAX) => {}
                    PortMatch::Range(first, last) => mean(*first, *last),
                    PortMatch::Named(name) => {
                        names.insert(name.as_str());
                    }
                }
            }
        }
        let members = &self.cluster.members;
        let declared = members.iter().flat_map(|member| &member.workload.named_ports);
        for port in declared.filter(|port| names.contains(port.name.as_str())) {
            mean(port.port, port.port);
        }
        let open = begun.into_iter().scan(0, |open, change| {
            *open += change;
            Some(*open > 0)
        });
        open.collect()
    }
}
