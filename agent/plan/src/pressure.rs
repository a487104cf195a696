//! Which pod goes first when the node has too little left: the kubelet's order.

/// What there is too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// Memory.
    Memory,
    /// Space on the node's disk.
    Disk,
    /// File numbers of the node's disk.
    Inodes,
    /// Process numbers.
    Processes,
}

/// A pod that could go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its UID.
    pub uid: String,
    /// Higher ones stay longer.
    pub priority: i32,
    /// How much of what is short it asked for.
    pub requested: u64,
    /// How much it uses.
    pub used: u64,
}

/// From here on pods are the system's own, and never go for want of something: Kubernetes' number.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// Whether the pod is one of the system's own, which end last and are never evicted.
pub fn is_critical(priority: i32) -> bool {
    priority >= SYSTEM_CRITICAL
}

/// The pod that goes first. Those that use more than they asked for go before others, those of lower priority before
/// those of higher, and then whoever is furthest above what it asked for. File numbers cannot be
/// asked for, so whoever uses any is above. Process numbers neither: there only priority and use count.
pub fn first_to_go(shortage: Shortage, candidates: &[Candidate]) -> Option<&Candidate> {
    let within = |candidate: &Candidate| match shortage {
        Shortage::Memory | Shortage::Disk | Shortage::Inodes => candidate.used <= candidate.requested,
        Shortage::Processes => false,
    };
    let above = |candidate: &Candidate| match shortage {
        Shortage::Memory | Shortage::Disk | Shortage::Inodes => {
            i128::from(candidate.used) - i128::from(candidate.requested)
        }
        Shortage::Processes => i128::from(candidate.used),
    };
    let order = |candidate: &&Candidate| {
        let rank = (within(candidate), candidate.priority, -above(candidate));
        (rank, candidate.uid.clone())
    };
    let may_go = candidates
        .iter()
        .filter(|candidate| !is_critical(candidate.priority));
    may_go.min_by_key(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(shortage: Shortage, candidates: &[(&str, i32, u64, u64)]) -> Option<String> {
        let candidates: Vec<Candidate> = candidates
            .iter()
            .map(|(uid, priority, requested, used)| Candidate {
                uid: (*uid).to_owned(),
                priority: *priority,
                requested: *requested,
                used: *used,
            })
            .collect();
        first_to_go(shortage, &candidates).map(|candidate| candidate.uid.clone())
    }

    #[test]
    fn usage_over_request_then_priority_then_usage() {
        let memory = |candidates: &[_]| first(Shortage::Memory, candidates).unwrap();
        assert_eq!(memory(&[("within", 0, 100, 100), ("over", 9, 0, 1)]), "over");
        assert_eq!(memory(&[("high", 1, 0, 900), ("low", 0, 0, 1)]), "low");
        assert_eq!(memory(&[("small", 0, 10, 20), ("large", 0, 500, 600)]), "large");
        assert_eq!(
            memory(&[("much", 0, 500, 400), ("little", 0, 200, 190)]),
            "little",
            "within its request, the nearest to it"
        );
    }

    #[test]
    fn file_numbers_go_by_use_over_nothing_then_priority_then_use() {
        let inodes = |candidates: &[_]| first(Shortage::Inodes, candidates).unwrap();
        assert_eq!(inodes(&[("none", 0, 0, 0), ("some", 9, 0, 1)]), "some");
        assert_eq!(inodes(&[("high", 1, 0, 900), ("low", 0, 0, 1)]), "low");
        assert_eq!(inodes(&[("few", 0, 0, 20), ("many", 0, 0, 600)]), "many");
    }

    #[test]
    fn the_systems_own_stay_and_processes_are_counted_as_they_are() {
        assert_eq!(first(Shortage::Disk, &[("system", 2_000_000_000, 0, 9)]), None);
        assert_eq!(first(Shortage::Disk, &[]), None);
        let counted = [("few", 0, 0, 3), ("many", 0, 1000, 50), ("more", 1, 0, 500)];
        assert_eq!(first(Shortage::Processes, &counted).unwrap(), "many");
    }
}
