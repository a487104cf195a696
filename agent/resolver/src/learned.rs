//! Which address has which name, for how long. Pure: time is an argument.
//!
//! Names lead outside. Whoever controls a name that a policy allows could have it lead to a pod, to a node or to the pod's own
//! loopback ("DNS rebinding"), which selectors and networks are there to allow; so such an address is never given a name.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use policies_ir::policy::DomainMatch;
use serde::{Deserialize, Serialize};

use crate::message::Answer;

/// Bounds of what is learned.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Names kept for one address on behalf of one pod: names that one pod makes up for an address do not displace
    /// those that another was told.
    pub names_per_address: usize,
    /// Addresses kept for one name on behalf of one pod.
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

/// Addresses of flows that were allowed by a name, with the patterns of names that they rest on.
pub type InUse = BTreeMap<IpAddr, BTreeSet<DomainMatch>>;

/// What an answer did to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Taught {
    /// The generation of the table that first held all of the answer: 0 if the table holds nothing of it.
    pub(crate) generation: u64,
    /// Pairs that some policy wants and that found no room.
    pub(crate) refused: usize,
    /// Pairs that some policy wants and whose address is not outside.
    pub(crate) inside: usize,
}

/// Addresses that no name leads to, beside those that are nowhere outside: see [`is_special`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Inside {
    addresses: BTreeSet<IpAddr>,
    nets: Vec<IpNet>,
}

/// An address and a name that it has.
type Key = (IpAddr, Arc<str>);

pub(crate) struct Learned {
    limits: Limits,
    wanted: BTreeSet<DomainMatch>,
    inside: Inside,
    pairs: BTreeMap<Key, Pair>,
    /// What each pod was told, and until when that holds. A pair lasts as long as one of those that were told it may use it,
    /// so that no pod can have another's forgotten.
    told: BTreeMap<IpAddr, BTreeMap<Key, Instant>>,
    /// Counts answers that brought a new pair.
    generation: u64,
    /// The last generation that the packet programs are known to know.
    settled: u64,
    /// Whether anything changed since it was last [taken](Learned::take_unsaved).
    unsaved: bool,
}

/// What one pod was told, as it is kept in a file.
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
    /// Of the table, when the pair came.
    generation: u64,
    /// How many pods were told it.
    owners: usize,
}

impl Learned {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            wanted: BTreeSet::new(),
            inside: Inside::default(),
            pairs: BTreeMap::new(),
            told: BTreeMap::new(),
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
        let mut saved = Vec::new();
        for (client, told) in &self.told {
            saved.extend(told.iter().map(|((address, name), until)| Saved {
                address: *address,
                name: name.to_string(),
                client: *client,
                until: (now.1 + until.saturating_duration_since(now.0)).as_secs(),
            }));
        }
        Some(saved)
    }

    /// Takes up what an earlier agent knew. What is too old by now stays for the grace, no longer; nothing
    /// stays longer than an answer may hold, whatever became of the clock.
    pub(crate) fn restore(&mut self, saved: Vec<Saved>, now: (Instant, Duration)) {
        for entry in saved {
            let left = Duration::from_secs(entry.until).saturating_sub(now.1);
            let until = now.0 + left.min(self.limits.max_ttl);
            let key = (entry.address, Arc::from(entry.name));
            if self.has_room_for(&key) {
                self.tell(entry.client, key, until, self.generation);
            }
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
        self.keep(|(_, name)| is_wanted(&patterns, name));
        self.wanted = patterns;
    }

    /// Addresses in `nets` have no names from now on.
    pub(crate) fn keep_out(&mut self, nets: BTreeSet<IpNet>) {
        let is_address = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        let (addresses, nets): (Vec<IpNet>, Vec<IpNet>) = nets.into_iter().partition(is_address);
        let inside = Inside {
            addresses: addresses.iter().map(IpNet::addr).collect(),
            nets,
        };
        self.keep(|(address, _)| !inside.holds(*address));
        self.inside = inside;
    }

    /// Forgets all other pairs.
    fn keep(&mut self, stays: impl Fn(&Key) -> bool) {
        let Self { pairs, told, .. } = self;
        pairs.retain(|key, _| stays(key));
        told.retain(|_, told| {
            told.retain(|key, _| pairs.contains_key(key));
            !told.is_empty()
        });
        self.unsaved = true;
    }

    pub(crate) fn names(&self) -> BTreeMap<IpAddr, BTreeSet<String>> {
        let mut names: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        for (address, name) in self.pairs.keys() {
            names.entry(*address).or_default().insert(name.to_string());
        }
        names
    }

    pub(crate) fn learn(&mut self, now: Instant, client: IpAddr, answer: &Answer) -> Taught {
        let mut taught = Taught::default();
        let wanted = answer.names.iter().filter(|name| is_wanted(&self.wanted, name));
        let names: Vec<Arc<str>> = wanted.map(|name| Arc::from(name.as_str())).collect();
        // Beyond what anybody settled: a settling may be under way that has not seen this answer.
        let generation = self.generation + 1;
        for (address, ttl) in &answer.addresses {
            if self.inside.holds(*address) {
                taught.inside += names.len();
                continue;
            }
            let until = now + (*ttl).clamp(self.limits.min_ttl, self.limits.max_ttl);
            for name in &names {
                match self.put(client, (*address, name.clone()), until, generation) {
                    Some(held_by) => taught.generation = taught.generation.max(held_by),
                    None => taught.refused += 1,
                }
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

    /// Forgets what is overdue and not `in_use`. Whether anything changed.
    pub(crate) fn expire(&mut self, now: Instant, in_use: &InUse) -> bool {
        let before = self.pairs.len();
        let grace = self.limits.grace;
        let Self {
            pairs, told, unsaved, ..
        } = self;
        told.retain(|_, told| {
            told.retain(|key, until| {
                let held = in_use
                    .get(&key.0)
                    .is_some_and(|patterns| is_wanted(patterns, &key.1));
                let stays = now < *until + grace || held;
                if !stays {
                    release(pairs, key);
                    *unsaved = true;
                }
                stays
            });
            !told.is_empty()
        });
        self.pairs.len() != before
    }

    /// Addresses of pairs that go unless they are in use.
    pub(crate) fn overdue(&self, now: Instant) -> BTreeSet<IpAddr> {
        let grace = self.limits.grace;
        let told = self.told.values().flatten();
        let overdue = told.filter(|(_, until)| now >= **until + grace);
        overdue.map(|((address, _), _)| *address).collect()
    }

    /// The generation that holds the pair; none where there is no room for it.
    fn put(&mut self, client: IpAddr, key: Key, until: Instant, generation: u64) -> Option<u64> {
        self.unsaved = true;
        let told = self.told.get(&client);
        if !told.is_some_and(|told| told.contains_key(&key)) {
            let Limits {
                names_per_address,
                addresses_per_name,
                pairs_per_client,
                ..
            } = self.limits;
            // A bound that is reached costs the pod what would go first anyway of what it was told itself.
            self.make_room(client, names_per_address, |(address, _)| *address == key.0);
            self.make_room(client, addresses_per_name, |(_, name)| *name == key.1);
            self.make_room(client, pairs_per_client, |_| true);
            if !self.find_room_for(client, &key) {
                return None;
            }
        }
        Some(self.tell(client, key, until, generation))
    }

    /// Whether the pair may come. Where the table is full, it costs the pod that was told most what would go first of that, or this
    /// one, if that has its share.
    fn find_room_for(&mut self, client: IpAddr, key: &Key) -> bool {
        while !self.has_room_for(key) {
            let own = self.told.get(&client).map_or(0, BTreeMap::len);
            let most = self.told.iter().max_by_key(|(_, told)| told.len());
            let most = most.filter(|(_, told)| told.len() > own + 1);
            let from = most.map_or(client, |(most, _)| *most);
            let Self { pairs, told, .. } = self;
            let Some(told) = told.get_mut(&from) else {
                return false;
            };
            // What others were told too makes no room.
            let is_shared = |key: &Key| pairs.get(key).is_some_and(|pair| pair.owners > 1);
            let first = told.iter().min_by_key(|(key, until)| (is_shared(key), **until));
            let first = first.filter(|(key, _)| from != client || !is_shared(key));
            let Some(key) = first.map(|(key, _)| key.clone()) else {
                return false;
            };
            told.remove(&key);
            release(pairs, &key);
        }
        true
    }

    /// Whether the pair is there or may come without another's going.
    fn has_room_for(&self, key: &Key) -> bool {
        self.pairs.len() < self.limits.pairs || self.pairs.contains_key(key)
    }

    /// Notes that the pod was told the pair. The generation that holds it: `generation` if it is new.
    fn tell(&mut self, client: IpAddr, key: Key, until: Instant, generation: u64) -> u64 {
        // One text for all who were told it.
        let known = self.pairs.get_key_value(&key).map(|(known, _)| known.clone());
        let key = known.unwrap_or(key);
        let pair = self.pairs.entry(key.clone()).or_insert(Pair {
            generation,
            owners: 0,
        });
        match self.told.entry(client).or_default().entry(key) {
            Entry::Occupied(mut told) => {
                let until = until.max(*told.get());
                told.insert(until);
            }
            Entry::Vacant(told) => {
                told.insert(until);
                pair.owners += 1;
            }
        }
        pair.generation
    }

    fn make_room(&mut self, client: IpAddr, limit: usize, counts: impl Fn(&Key) -> bool) {
        let Some(told) = self.told.get_mut(&client) else {
            return;
        };
        let alike = told.iter().filter(|(key, _)| counts(key));
        if alike.clone().count() < limit {
            return;
        }
        let first = alike.min_by_key(|(_, until)| **until);
        if let Some(key) = first.map(|(key, _)| key.clone()) {
            told.remove(&key);
            release(&mut self.pairs, &key);
        }
    }
}

impl Inside {
    fn holds(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_special(address)
            || self.addresses.contains(&address)
            || self.nets.iter().any(|net| net.contains(&address))
    }
}

/// Unspecified, which means the node or pod itself, loopback, link-local, multicast and broadcast.
fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            // All of 0.0.0.0/8 is "this host on this network" (RFC 791).
            v4.octets().first() == Some(&0)
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            v6.is_unspecified() || v6.is_loopback() || v6.is_unicast_link_local() || v6.is_multicast()
        }
    }
}

/// One pod fewer was told the pair; without any it goes.
fn release(pairs: &mut BTreeMap<Key, Pair>, key: &Key) {
    if let Some(pair) = pairs.get_mut(key) {
        pair.owners = pair.owners.saturating_sub(1);
        if pair.owners == 0 {
            pairs.remove(key);
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
    fn no_name_leads_to_what_is_not_outside() {
        let mut learned = learned(Limits::default());
        let now = Instant::now();
        let inside = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        learned.keep_out(inside(&["10.244.0.0/24", "fd00:10:244::/64", "192.0.2.7/32"]));
        let within = [
            "10.244.0.5",
            "fd00:10:244::5",
            "192.0.2.7",
            "::ffff:10.244.0.5",
            "0.0.0.0",
            "::",
            "127.0.0.53",
            "::1",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.251",
            "ff02::fb",
            "255.255.255.255",
        ];
        for address in within {
            let told = answer(&["a.example.test"], &[address, "203.0.113.1"], 60);
            assert_eq!(learned.learn(now, POD, &told).inside, 1, "{address}");
            assert!(!has(&learned, address, "a.example.test"), "{address}");
        }
        // The rest of such an answer counts; private networks are outside.
        assert!(has(&learned, "203.0.113.1", "a.example.test"));
        let private = ["10.9.0.1", "192.168.1.1", "fd00::1", "192.0.2.8"];
        let told = learned.learn(now, POD, &answer(&["b.example.test"], &private, 60));
        assert_eq!((told.inside, told.refused), (0, 0));
        let unwanted = answer(&["cdn.net"], &["10.244.0.5"], 60);
        assert_eq!(learned.learn(now, POD, &unwanted), Taught::default());

        // Also what was learned before it came to be inside.
        learned.keep_out(inside(&["203.0.113.1/32"]));
        assert!(!has(&learned, "203.0.113.1", "a.example.test"));
        assert!(has(&learned, "10.9.0.1", "b.example.test"));
    }

    #[test]
    fn names_go_after_ttl_and_grace_unless_in_use() {
        let mut learned = learned(Limits::default());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        learned.learn(start, POD, &answer(&["a.example.test"], &["192.0.2.1"], 60));
        learned.learn(start, POD, &answer(&["b.example.test"], &["192.0.2.2"], 0));
        let nobody = InUse::new();
        assert!(
            !learned.expire(at(19), &nobody),
            "ten seconds at least, and ten of grace"
        );
        let address: IpAddr = "192.0.2.2".parse().unwrap();
        assert!(learned.overdue(at(19)).is_empty());
        assert_eq!(learned.overdue(at(20)), [address].into());
        let in_use = InUse::from([(address, patterns(&["cdn.net", "*.example.test"]))]);
        assert!(!learned.expire(at(20), &in_use));
        // A flow that another name allowed is no reason.
        let otherwise = InUse::from([(address, patterns(&["cdn.net", "a.example.test"]))]);
        assert!(learned.expire(at(20), &otherwise));
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
        assert!(after.overdue(at(69).0).is_empty());
        assert!(!after.overdue(at(70).0).is_empty());
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
        let good = answer(&["good.example.test"], &["192.0.2.1"], 30);
        learned.learn(now, OTHER, &good);
        // What another pod was told is not taken from it by asking for it too.
        learned.learn(now, POD, &good);
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
    }

    /// Nobody has the table for itself, also not with many.
    #[test]
    fn a_full_table_is_shared_by_all_who_ask() {
        let limits = Limits {
            pairs_per_client: 4,
            pairs: 8,
            ..Limits::default()
        };
        let mut learned = learned(limits);
        let now = Instant::now();
        let client = |number: u8| IpAddr::from([10, 0, 1, number]);
        let told = |number: u8, i: u8| {
            let name = format!("x{number}-{i}.example.test");
            answer(&[&name], &[&format!("198.51.{number}.{i}")], 60 + u64::from(i))
        };
        for (number, i) in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)] {
            assert_eq!(learned.learn(now, client(number), &told(number, i)).refused, 0);
        }
        // Both have half of it; who comes gets its share of what would end first, and then displaces its own.
        for i in 0..4 {
            assert_eq!(learned.learn(now, client(2), &told(2, i)).refused, 0, "{i}");
        }
        assert!(has(&learned, "198.51.2.3", "x2-3.example.test"));
        let held = |learned: &Learned| -> Vec<usize> { learned.told.values().map(BTreeMap::len).collect() };
        assert_eq!(held(&learned).iter().sum::<usize>(), 8, "{:?}", held(&learned));
        assert!(
            held(&learned).iter().all(|held| (2..=3).contains(held)),
            "{:?}",
            held(&learned)
        );
        assert!(has(&learned, "198.51.0.3", "x0-3.example.test"));
        assert!(!has(&learned, "198.51.0.0", "x0-0.example.test"));
    }

    #[test]
    fn a_pair_lasts_as_long_as_anybody_was_told_it() {
        let limits = Limits {
            addresses_per_name: 2,
            names_per_address: 2,
            ..Limits::default()
        };
        let mut learned = learned(limits);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let told = |ttl| answer(&["a.example.test"], &["192.0.2.1"], ttl);
        learned.learn(start, OTHER, &told(60));
        learned.learn(start, POD, &told(30));
        // Neither by other addresses of the name nor by other names of the address.
        for i in 2..9 {
            let address = format!("192.0.2.{i}");
            learned.learn(start, POD, &answer(&["a.example.test"], &[&address], 300));
            let name = format!("n{i}.example.test");
            learned.learn(start, POD, &answer(&[&name], &["192.0.2.1"], 300));
        }
        assert!(has(&learned, "192.0.2.1", "a.example.test"));
        learned.expire(at(69), &InUse::new());
        assert!(has(&learned, "192.0.2.1", "a.example.test"));
        assert!(learned.expire(at(70), &InUse::new()));
        assert!(!has(&learned, "192.0.2.1", "a.example.test"), "nobody is left");

        // Whose own answer is older keeps it by another's: it is the same address.
        learned.learn(at(70), OTHER, &told(10));
        learned.learn(at(70), POD, &told(60));
        assert!(!learned.expire(at(100), &InUse::new()));
        assert!(has(&learned, "192.0.2.1", "a.example.test"));

        let saved = learned
            .take_unsaved((at(100), Duration::from_secs(1000)))
            .unwrap();
        let mut after = self::learned(learned.limits.clone());
        after.restore(saved, (at(100), Duration::from_secs(1000)));
        assert_eq!(after.names(), learned.names());
        assert_eq!(after.told.keys().collect::<Vec<_>>(), [&POD]);
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
