//! Which address has which name, for how long. Pure: time is an argument.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use policies_ir::policy::DomainMatch;
use serde::{Deserialize, Serialize};

use crate::message::Answer;

/// Bounds of what is learned.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Names kept for one address on behalf of one pod: names that one pod makes up for an address do not displace
    /// those that another was told.
    pub names_per_address: usize,
    /// Addresses kept for one name.
    pub addresses_per_name: usize,
    /// Pairs of name and address kept on behalf of one pod.
    pub pairs_per_client: usize,
    /// Pairs of name and address altogether.
    pub pairs: usize,
    /// An answer holds at least this long, whatever its TTL: its reader needs time to connect.
    pub min_ttl: Duration,
    /// And at most this long.
    pub max_ttl: Duration,
    /// How much longer than the answer holds its names are kept: programs use an answer a little longer than they
    /// may.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            names_per_address: 16,
            addresses_per_name: 64,
            pairs_per_client: 512,
            pairs: 8192,
            min_ttl: Duration::from_secs(10),
            max_ttl: Duration::from_secs(24 * 60 * 60),
            grace: Duration::from_secs(10),
        }
    }
}

/// What an answer did to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Taught {
    /// The generation of the table that first held all of the answer: 0 if the table holds nothing of it.
    pub(crate) generation: u64,
    /// Pairs that some policy wants and that found no room.
    pub(crate) refused: usize,
}

pub(crate) struct Learned {
    limits: Limits,
    wanted: BTreeSet<DomainMatch>,
    pairs: BTreeMap<(IpAddr, String), Pair>,
    /// Counts answers that brought a new pair.
    generation: u64,
    /// The last generation that the packet programs are known to know.
    settled: u64,
    /// Whether anything changed since it was last [taken](Learned::take_unsaved).
    unsaved: bool,
}

/// A pair as it is kept in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    address: IpAddr,
    name: String,
    client: IpAddr,
    /// Seconds since 1970 when the answer no longer holds.
    until: u64,
}

#[derive(Debug, Clone, Copy)]
struct Pair {
    until: Instant,
    /// Of the table, when the pair came.
    generation: u64,
    /// The pod that asked last: who floods the table displaces its own pairs.
    client: IpAddr,
}

impl Learned {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            wanted: BTreeSet::new(),
            pairs: BTreeMap::new(),
            // What is restored is of this one, which nobody has settled.
            generation: 1,
            settled: 0,
            unsaved: false,
        }
    }

    /// Everything that is known, if it changed since the last call. `now` is one moment by two clocks.
    pub(crate) fn take_unsaved(&mut self, now: (Instant, Duration)) -> Option<Vec<Saved>> {
        if !std::mem::take(&mut self.unsaved) {
            return None;
        }
        let saved = |((address, name), pair): (&(IpAddr, String), &Pair)| Saved {
            address: *address,
            name: name.clone(),
            client: pair.client,
            until: (now.1 + pair.until.saturating_duration_since(now.0)).as_secs(),
        };
        Some(self.pairs.iter().map(saved).collect())
    }

    /// Takes up what an earlier agent knew. What is too old by now stays for the grace, no longer; nothing
    /// stays longer than an answer may hold, whatever became of the clock.
    pub(crate) fn restore(&mut self, saved: Vec<Saved>, now: (Instant, Duration)) {
        for entry in saved.into_iter().take(self.limits.pairs) {
            let left = Duration::from_secs(entry.until).saturating_sub(now.1);
            let pair = Pair {
                until: now.0 + left.min(self.limits.max_ttl),
                generation: self.generation,
                client: entry.client,
            };
            self.pairs.insert((entry.address, entry.name), pair);
        }
    }

    /// A save that failed is repeated.
    pub(crate) fn keep_unsaved(&mut self) {
        self.unsaved = true;
    }

    pub(crate) fn want(&mut self, patterns: BTreeSet<DomainMatch>) {
        if patterns == self.wanted {
            return;
        }
        self.pairs.retain(|(_, name), _| is_wanted(&patterns, name));
        self.wanted = patterns;
        self.unsaved = true;
    }

    pub(crate) fn names(&self) -> BTreeMap<IpAddr, BTreeSet<String>> {
        let mut names: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        for (address, name) in self.pairs.keys() {
            names.entry(*address).or_default().insert(name.clone());
        }
        names
    }

    pub(crate) fn learn(&mut self, now: Instant, client: IpAddr, answer: &Answer) -> Taught {
        let mut taught = Taught::default();
        let names: Vec<&String> = answer
            .names
            .iter()
            .filter(|name| is_wanted(&self.wanted, name))
            .collect();
        // Beyond what anybody settled: a settling may be under way that has not seen this answer.
        let generation = self.generation + 1;
        for (address, ttl) in &answer.addresses {
            let until = now + (*ttl).clamp(self.limits.min_ttl, self.limits.max_ttl);
            for name in &names {
                let pair = Pair {
                    until,
                    generation,
                    client,
                };
                self.put((*address, (*name).clone()), pair, &mut taught);
            }
        }
        self.generation = self.generation.max(taught.generation);
        taught
    }

    /// The generation that holds everything known now.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn is_settled(&self, generation: u64) -> bool {
        generation <= self.settled
    }

    pub(crate) fn settled(&mut self, generation: u64) {
        self.settled = self.settled.max(generation);
    }

    pub(crate) fn expire(&mut self, now: Instant, in_use: &BTreeSet<IpAddr>) -> bool {
        let before = self.pairs.len();
        let grace = self.limits.grace;
        self.pairs
            .retain(|(address, _), pair| now < pair.until + grace || in_use.contains(address));
        let changed = self.pairs.len() != before;
        self.unsaved |= changed;
        changed
    }

    pub(crate) fn any_overdue(&self, now: Instant) -> bool {
        let grace = self.limits.grace;
        self.pairs.values().any(|pair| now >= pair.until + grace)
    }

    fn put(&mut self, key: (IpAddr, String), pair: Pair, taught: &mut Taught) {
        self.unsaved = true;
        if let Some(known) = self.pairs.get_mut(&key) {
            known.until = known.until.max(pair.until);
            known.client = pair.client;
            taught.generation = taught.generation.max(known.generation);
            return;
        }
        let Limits {
            names_per_address,
            addresses_per_name,
            pairs_per_client,
            pairs,
            ..
        } = self.limits;
        // A bound that is reached costs the pair that would go first anyway.
        self.make_room(names_per_address, |(address, _), known| {
            *address == key.0 && known.client == pair.client
        });
        self.make_room(addresses_per_name, |(_, name), _| *name == key.1);
        self.make_room(pairs_per_client, |_, known| known.client == pair.client);
        if self.pairs.len() >= pairs {
            // Not at the cost of other pods.
            taught.refused += 1;
            return;
        }
        self.pairs.insert(key, pair);
        taught.generation = taught.generation.max(pair.generation);
    }

    fn make_room(&mut self, limit: usize, counts: impl Fn(&(IpAddr, String), &Pair) -> bool) {
        let alike: Vec<_> = self
            .pairs
            .iter()
            .filter(|(key, pair)| counts(key, pair))
            .collect();
        if alike.len() < limit {
            return;
        }
        let first = alike.into_iter().min_by_key(|(_, pair)| pair.until);
        if let Some(key) = first.map(|(key, _)| key.clone()) {
            self.pairs.remove(&key);
        }
    }
}

fn is_wanted(wanted: &BTreeSet<DomainMatch>, name: &str) -> bool {
    wanted.iter().any(|pattern| pattern.matches(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 3));

    fn learned(limits: Limits) -> Learned {
        let mut learned = Learned::new(limits);
        learned.want(patterns(&["*.example.test"]));
        learned
    }

    fn patterns(texts: &[&str]) -> BTreeSet<DomainMatch> {
        texts
            .iter()
            .map(|text| DomainMatch::parse(text).unwrap())
            .collect()
    }

    fn answer(names: &[&str], addresses: &[&str], ttl: u64) -> Answer {
        Answer {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            addresses: addresses
                .iter()
                .map(|text| (text.parse().unwrap(), Duration::from_secs(ttl)))
                .collect(),
        }
    }

    fn has(learned: &Learned, address: &str, name: &str) -> bool {
        let names = learned.names();
        names
            .get(&address.parse().unwrap())
            .is_some_and(|names| names.contains(name))
    }

    #[test]
    fn only_wanted_names_are_learned_and_only_news_is_a_change() {
        let mut learned = learned(Limits::default());
        let now = Instant::now();
        let told = answer(
            &["www.example.test", "cdn.net"],
            &["192.0.2.1", "2001:db8::1"],
            300,
        );
        let first = learned.learn(now, POD, &told).generation;
        assert!(!learned.is_settled(first));
        assert!(has(&learned, "192.0.2.1", "www.example.test"));
        assert!(has(&learned, "2001:db8::1", "www.example.test"));
        assert!(!has(&learned, "192.0.2.1", "cdn.net"));
        assert_eq!(learned.learn(now, OTHER, &told).generation, first, "no news");
        let unwanted = answer(&["cdn.net"], &["192.0.2.9"], 300);
        assert_eq!(learned.learn(now, OTHER, &unwanted), Taught::default());
        let more = answer(&["www.example.test"], &["192.0.2.1", "192.0.2.2"], 300);
        let second = learned.learn(now, OTHER, &more).generation;
        assert!(second > first);
        learned.settled(first);
        assert!(learned.is_settled(first) && !learned.is_settled(second));
        learned.want(patterns(&["cdn.net"]));
        assert!(
            learned.names().is_empty(),
            "what nobody wants any more is not kept"
        );
    }

    #[test]
    fn names_go_after_ttl_and_grace_unless_in_use() {
        let mut learned = learned(Limits::default());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        learned.learn(start, POD, &answer(&["a.example.test"], &["192.0.2.1"], 60));
        learned.learn(start, POD, &answer(&["b.example.test"], &["192.0.2.2"], 0));
        let nobody = BTreeSet::new();
        assert!(
            !learned.expire(at(19), &nobody),
            "ten seconds at least, and ten of grace"
        );
        assert!(!learned.any_overdue(at(19)));
        assert!(learned.any_overdue(at(20)));
        let in_use = BTreeSet::from(["192.0.2.2".parse().unwrap()]);
        assert!(!learned.expire(at(20), &in_use));
        assert!(learned.expire(at(20), &nobody));
        assert!(!has(&learned, "192.0.2.2", "b.example.test"));
        assert!(!learned.expire(at(69), &nobody));
        assert!(learned.expire(at(70), &nobody));
        assert!(learned.names().is_empty());
    }

    #[test]
    fn a_restarted_agent_goes_on_with_what_it_knew() {
        let start = Instant::now();
        let at = |seconds| {
            let passed = Duration::from_secs(seconds);
            (start + passed, Duration::from_secs(1_700_000_000) + passed)
        };
        let mut before = learned(Limits::default());
        before.take_unsaved(at(0));
        assert_eq!(before.take_unsaved(at(0)), None);
        before.learn(start, POD, &answer(&["a.example.test"], &["192.0.2.1"], 60));
        let saved = before.take_unsaved(at(5)).unwrap();
        let mut after = Learned::new(Limits::default());
        after.restore(saved, at(30));
        after.want(patterns(&["*.example.test"]));
        assert!(has(&after, "192.0.2.1", "a.example.test"));
        assert!(
            !after.is_settled(after.generation()),
            "policy has not been told yet"
        );
        assert!(!after.any_overdue(at(69).0));
        assert!(after.any_overdue(at(70).0));
        after.want(BTreeSet::new());
        assert!(after.names().is_empty(), "meanwhile nobody wants it");
    }

    #[test]
    fn a_flood_costs_its_sender() {
        let limits = Limits {
            pairs_per_client: 4,
            pairs: 6,
            ..Limits::default()
        };
        let mut learned = learned(limits);
        let now = Instant::now();
        learned.learn(now, OTHER, &answer(&["good.example.test"], &["192.0.2.1"], 30));
        for i in 0..50 {
            let name = format!("x{i}.example.test");
            learned.learn(now, POD, &answer(&[&name], &[&format!("198.51.100.{i}")], 60 + i));
        }
        assert!(has(&learned, "192.0.2.1", "good.example.test"));
        assert!(
            has(&learned, "198.51.100.49", "x49.example.test"),
            "the newest of its own"
        );
        assert_eq!(learned.pairs.len(), 5);
        let third = "10.0.0.4".parse().unwrap();
        let many = answer(&["c.example.test"], &["192.0.2.7", "192.0.2.8"], 60);
        assert_eq!(learned.learn(now, third, &many).refused, 1);
    }

    #[test]
    fn one_name_and_one_address_are_bounded() {
        let limits = Limits {
            names_per_address: 2,
            addresses_per_name: 3,
            ..Limits::default()
        };
        let mut learned = learned(limits);
        let now = Instant::now();
        for i in 0..9 {
            learned.learn(
                now,
                POD,
                &answer(&["a.example.test"], &[&format!("192.0.2.{i}")], 60 + i),
            );
            let name = format!("n{i}.example.test");
            learned.learn(now, POD, &answer(&[&name], &["198.51.100.1"], 60 + i));
        }
        let names = learned.names();
        assert_eq!(names[&"198.51.100.1".parse::<IpAddr>().unwrap()].len(), 2);
        let of_a = names.values().filter(|names| names.contains("a.example.test"));
        assert_eq!(of_a.count(), 3);
    }
}
