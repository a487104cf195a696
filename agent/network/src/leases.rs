//! Who holds which address, endpoint number and link name. Kept in one JSON file.
//!
//! The file matters only while the kernel that holds the links lives, so it is replaced atomically but not
//! synced: after a power loss there are no pods left to remember. What is left of the file then, be it half of one or nothing,
//! is put aside once nobody can have the addresses that it named ([`Leases::anew`]).

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use api::{host_ports::HostPort, node_policy::Mac};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::LINK_PREFIX;

/// What one pod holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The pod.
    pub pod_uid: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its IPv6 address: `None` where pods have none, and for pods from before they had.
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    /// Its endpoint number.
    pub endpoint: u32,
    /// Name of the host side of its link.
    pub link: String,
    /// MAC address of its own side.
    pub mac: [u8; 6],
    /// Ports of the node that lead to it.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
}

/// Why an address could not be given or taken back.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Every address of the node is taken.
    #[error("no free pod address in {cidr}: {taken} are taken; delete pods or use a larger pod_cidr")]
    Exhausted {
        /// The node's range.
        cidr: Ipv4Net,
        /// Addresses taken.
        taken: usize,
    },
    /// The file could not be read.
    #[error("cannot read the lease file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what this agent writes.
    #[error(
        "lease file {path} does not parse, and links of pods are there; end the pods of this node, then remove the file"
    )]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The file could not be replaced.
    #[error("cannot write the lease file {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// All leases of the node. Every change is on disk before it is answered.
pub(crate) struct Leases {
    path: PathBuf,
    cidr: Ipv4Net,
    cidr6: Option<Ipv6Net>,
    table: Table,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Table {
    /// Endpoint numbers grow and are never reused: tables and flow events may still name old ones.
    last_endpoint: u32,
    /// Where the search for a free address goes on, so that an address rests before it is given again.
    last_address: Option<Ipv4Addr>,
    /// By pod UID.
    leases: BTreeMap<String, Lease>,
    /// Uplinks whose forwarding was off before us.
    opened_uplinks: Vec<String>,
    /// The same for IPv6, which is switched on its own.
    #[serde(default)]
    opened_uplinks6: Vec<String>,
}

impl Leases {
    /// Reads the leases. Pods get IPv6 addresses only with `cidr6`.
    pub(crate) fn open(path: &Path, cidr: Ipv4Net, cidr6: Option<Ipv6Net>) -> Result<Self, LeaseError> {
        let table = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| LeaseError::Parse {
                path: path.to_owned(),
                source,
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Table::default(),
            Err(source) => {
                return Err(LeaseError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Ok(Self {
            path: path.to_owned(),
            cidr,
            cidr6,
            table,
        })
    }

    /// No leases at all, in place of a file that does not parse. It stays beside, for people.
    pub(crate) fn anew(path: &Path, cidr: Ipv4Net, cidr6: Option<Ipv6Net>) -> Result<Self, LeaseError> {
        let aside = path.with_extension("json.unreadable");
        std::fs::rename(path, aside).map_err(|source| LeaseError::Write {
            path: path.to_owned(),
            source,
        })?;
        Self::open(path, cidr, cidr6)
    }

    pub(crate) fn find(&self, pod_uid: &str) -> Option<&Lease> {
        self.table.leases.get(pod_uid)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Lease> {
        self.table.leases.values()
    }

    /// The pod's lease: the one it has, or a new one. A pod whose interface is made anew takes part in a
    /// change of the node's IPv6 range; its IPv4 address stays.
    pub(crate) fn acquire(&mut self, pod_uid: &str) -> Result<Lease, LeaseError> {
        if let Some(lease) = self.find(pod_uid) {
            let mut lease = lease.clone();
            let fits = match (lease.address6, self.cidr6) {
                (Some(address6), Some(cidr6)) => cidr6.contains(&address6),
                (None, None) => true,
                _ => false,
            };
            if !fits {
                lease.address6 = self.address6_of(lease.address);
                let mut table = self.table.clone();
                table.leases.insert(pod_uid.to_owned(), lease.clone());
                self.replace(table)?;
            }
            return Ok(lease);
        }
        let address = self.free_address()?;
        let endpoint = self.table.last_endpoint + 1;
        let lease = Lease {
            pod_uid: pod_uid.to_owned(),
            address,
            address6: self.address6_of(address),
            endpoint,
            link: self.free_link_name(pod_uid),
            mac: Mac::of_pod(pod_uid).0,
            host_ports: Vec::new(),
        };
        let mut table = self.table.clone();
        table.last_endpoint = endpoint;
        table.last_address = Some(address);
        table.leases.insert(pod_uid.to_owned(), lease.clone());
        self.replace(table)?;
        Ok(lease)
    }

    pub(crate) fn release(&mut self, pod_uid: &str) -> Result<(), LeaseError> {
        let mut table = self.table.clone();
        if table.leases.remove(pod_uid).is_none() {
            return Ok(());
        }
        self.replace(table)
    }

    /// Which ports of the node lead to the pod from now on; true if that is a change.
    pub(crate) fn publish(&mut self, pod_uid: &str, ports: &[HostPort]) -> Result<bool, LeaseError> {
        let mut table = self.table.clone();
        match table.leases.get_mut(pod_uid) {
            Some(lease) if lease.host_ports != ports => lease.host_ports = ports.to_vec(),
            _ => return Ok(false),
        }
        self.replace(table)?;
        Ok(true)
    }

    /// Uplinks whose forwarding was off before this node had pods.
    pub(crate) fn opened(&self) -> &[String] {
        &self.table.opened_uplinks
    }

    /// The same for IPv6.
    pub(crate) fn opened6(&self) -> &[String] {
        &self.table.opened_uplinks6
    }

    /// Adds to [`Leases::opened`] and [`Leases::opened6`]. Called before forwarding is switched on, so that a crash in between
    /// leaves too long a list rather than too short a one.
    pub(crate) fn remember_opened(
        &mut self,
        names: Vec<String>,
        names6: Vec<String>,
    ) -> Result<(), LeaseError> {
        let mut table = self.table.clone();
        table.opened_uplinks.extend(names);
        table.opened_uplinks6.extend(names6);
        for list in [&mut table.opened_uplinks, &mut table.opened_uplinks6] {
            list.sort();
            list.dedup();
        }
        self.replace(table)
    }

    pub(crate) fn forget_opened(&mut self) -> Result<(), LeaseError> {
        let table = Table {
            opened_uplinks: Vec::new(),
            opened_uplinks6: Vec::new(),
            ..self.table.clone()
        };
        self.replace(table)
    }

    /// The next address after the last one given. The first two and the last of the range stay unused:
    /// people take them for the network, a router and the broadcast address.
    fn free_address(&self) -> Result<Ipv4Addr, LeaseError> {
        let first = u32::from(self.cidr.network()).saturating_add(2);
        let last = u32::from(self.cidr.broadcast()).saturating_sub(1);
        let taken = |address: &Ipv4Addr| {
            let address6 = self.address6_of(*address);
            self.all()
                .any(|lease| lease.address == *address || (address6.is_some() && lease.address6 == address6))
        };
        let resume = self
            .table
            .last_address
            .map_or(first, |last| u32::from(last).saturating_add(1));
        let resume = resume.clamp(first, last.max(first));
        (resume..=last)
            .chain(first..resume)
            .map(Ipv4Addr::from)
            .find(|address| !taken(address))
            .ok_or(LeaseError::Exhausted {
                cidr: self.cidr,
                taken: self.table.leases.len(),
            })
    }

    /// The IPv6 address at the same place of its range as `address` is in its own: one search for a free
    /// address serves both, and people recognise a pod by the end of either.
    fn address6_of(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let cidr6 = self.cidr6?;
        let place = u32::from(address) & !u32::from(self.cidr.netmask());
        let address6 = Ipv6Addr::from(u128::from(cidr6.network()) | u128::from(place));
        cidr6.contains(&address6).then_some(address6)
    }

    /// `pal` and eight hex digits of the UID's hash; hashed again in the rare case that two pods collide.
    fn free_link_name(&self, pod_uid: &str) -> String {
        let mut name = link_name(pod_uid);
        while self.all().any(|lease| lease.link == name) {
            name = link_name(&name);
        }
        name
    }

    fn replace(&mut self, table: Table) -> Result<(), LeaseError> {
        let write = || -> std::io::Result<()> {
            let directory = self.path.parent().unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            file.write_all(&serde_json::to_vec(&table)?)?;
            file.persist(&self.path)?;
            Ok(())
        };
        write().map_err(|source| LeaseError::Write {
            path: self.path.clone(),
            source,
        })?;
        self.table = table;
        Ok(())
    }
}

/// Whether a link is called as those that are made here.
pub(crate) fn is_link_name(name: &str) -> bool {
    let digits = name.strip_prefix(LINK_PREFIX).unwrap_or_default();
    digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

fn link_name(seed: &str) -> String {
    let hash = Sha256::digest(seed);
    format!("{LINK_PREFIX}{}", hex::encode(hash.get(..4).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: &Path, cidr: &str) -> Leases {
        Leases::open(&directory.join("network.json"), cidr.parse().unwrap(), None).unwrap()
    }

    #[test]
    fn keeps_a_pods_lease_and_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut leases = open(directory.path(), "10.88.0.0/24");
        let first = leases.acquire("a").unwrap();
        assert_eq!(first.address, Ipv4Addr::new(10, 88, 0, 2));
        assert_eq!(leases.acquire("a").unwrap(), first);
        let again = open(directory.path(), "10.88.0.0/24");
        assert_eq!(again.find("a"), Some(&first));
    }

    #[test]
    fn rests_addresses_and_never_reuses_endpoint_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let mut leases = open(directory.path(), "10.88.0.0/29");
        let first = leases.acquire("a").unwrap();
        leases.release("a").unwrap();
        let second = leases.acquire("b").unwrap();
        assert_ne!(second.address, first.address, "the next address comes first");
        for uid in ["c", "d", "e"] {
            leases.acquire(uid).unwrap();
        }
        let last = leases.acquire("f").unwrap();
        assert_eq!(last.address, first.address, "the search goes round");
        assert_eq!(last.endpoint, 6);
        assert!(matches!(
            leases.acquire("g"),
            Err(LeaseError::Exhausted { taken: 5, .. })
        ));
    }

    #[test]
    fn both_families_are_leased_together() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("network.json");
        let open = |cidr6: Option<&str>| {
            let cidr6 = cidr6.map(|text| text.parse().unwrap());
            Leases::open(&path, "10.88.0.0/24".parse().unwrap(), cidr6).unwrap()
        };
        assert_eq!(open(None).acquire("old").unwrap().address6, None);
        let mut leases = open(Some("fd00:10:88::/64"));
        let lease = leases.acquire("new").unwrap();
        assert_eq!(lease.address, Ipv4Addr::new(10, 88, 0, 3));
        assert_eq!(lease.address6, Some("fd00:10:88::3".parse().unwrap()));
        assert_eq!(
            leases.find("old").unwrap().address6,
            None,
            "a running pod keeps what it has"
        );
        let old = leases.acquire("old").unwrap();
        assert_eq!(old.address6, Some("fd00:10:88::2".parse().unwrap()));
        assert_eq!(open(Some("fd00:10:88::/64")).find("new"), Some(&lease));
        assert_eq!(open(None).acquire("new").unwrap().address6, None);
    }

    #[test]
    fn refuses_a_file_it_did_not_write() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("network.json"), b"{").unwrap();
        let opened = Leases::open(
            &directory.path().join("network.json"),
            "10.0.0.0/24".parse().unwrap(),
            None,
        );
        assert!(matches!(opened, Err(LeaseError::Parse { .. })));
    }

    #[test]
    fn names_of_links_fit() {
        assert_eq!(link_name("x").len(), 11);
        assert!(is_link_name(&link_name("x")));
        for other in [
            "",
            "palace",
            "pal0123456",
            "pal012345678",
            "palisade-x0",
            "eth01234567",
        ] {
            assert!(!is_link_name(other), "{other}");
        }
    }
}
