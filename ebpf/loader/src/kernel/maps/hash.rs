//! A hash of the programs, each call naming it in the error.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    thread,
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError},
};

use super::{absent_is_fine, failed_call, failed_map};
use crate::{
    DatapathError,
    sys::{self, Place, Portion},
};

/// Entries that are read with one system call, unless one bucket has more.
const BATCH: usize = 4096;
/// Entries that are written by one thread before another one helps: they take a millisecond or two, most of it waiting for
/// memory, and a thread takes some tens of microseconds.
const SHARE: usize = 1024;
/// Threads that write at once at most.
const THREADS: usize = 4;

/// A pinned hash, with or without an order of use.
pub(crate) struct Hash<K, V> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
    /// The same map, for what the library does not offer.
    fd: OwnedFd,
}

impl<K: aya::Pod, V: aya::Pod> Hash<K, V> {
    /// Takes the map out of a loaded object.
    pub(crate) fn take(programs: &mut Ebpf, name: &'static str) -> Result<Self, DatapathError> {
        let map = programs.take_map(name).ok_or(DatapathError::Missing { name })?;
        let (Map::HashMap(data) | Map::LruHashMap(data)) = &map else {
            return Err(DatapathError::Missing { name });
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        Ok(Self {
            name,
            fd: fd.map_err(|error| failed_call(name, "open", "dup", error))?,
            map: HashMap::try_from(map).map_err(failed_map(name, "open"))?,
        })
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(failed_map(self.name, "read")(source)),
        }
    }

    pub(crate) fn insert(&mut self, key: &K, value: &V) -> Result<(), DatapathError> {
        self.map
            .insert(key, value, 0)
            .map_err(failed_map(self.name, "write"))
    }

    /// Deletes an entry if it is there.
    pub(crate) fn remove(&mut self, key: &K) -> Result<(), DatapathError> {
        absent_is_fine(self.map.remove(key)).map_err(failed_map(self.name, "delete from"))
    }

    /// Takes an entry out if it is there, with what it held at that moment.
    pub(crate) fn extract(&mut self, key: &K) -> Result<Option<V>, DatapathError> {
        sys::take(self.fd.as_fd(), key).map_err(self.failed("delete from", "bpf_map_lookup_and_delete_elem"))
    }

    /// Writes entries with one call of each thread that helps. When it fails, some are written.
    pub(crate) fn insert_all(&mut self, entries: &[(K, V)]) -> Result<(), DatapathError>
    where
        K: Sync,
        V: Sync,
    {
        let threads = entries.len().div_ceil(SHARE).clamp(1, threads());
        let fd = self.fd.as_fd();
        thread::scope(|scope| {
            let mut shares = entries.chunks(entries.len().div_ceil(threads).max(1));
            let own = shares.next().unwrap_or_default();
            let (mut helpers, mut unhelped) = (Vec::new(), Vec::new());
            for share in shares {
                let helper = thread::Builder::new().spawn_scoped(scope, move || sys::update_many(fd, share));
                match helper {
                    Ok(helper) => helpers.push(helper),
                    // As many threads as there may be: it takes longer.
                    Err(_no_thread) => unhelped.push(share),
                }
            }
            for share in std::iter::once(own).chain(unhelped) {
                sys::update_many(fd, share)?;
            }
            helpers.into_iter().try_for_each(|helper| {
                helper
                    .join()
                    .unwrap_or_else(|_panic| Err(io::ErrorKind::Other.into()))
            })
        })
        .map_err(self.failed("write", "bpf_map_update_batch"))
    }

    /// Deletes those of the entries that there are.
    pub(crate) fn remove_all(&mut self, keys: &[K]) -> Result<(), DatapathError> {
        sys::delete_many(self.fd.as_fd(), keys).map_err(self.failed("delete from", "bpf_map_delete_batch"))
    }

    /// Some entries, those from a place on, and the place of the rest: see [`sys::lookup_many`].
    pub(crate) fn some(&self, from: Option<Place>, most: usize) -> Result<Portion<K, V>, DatapathError> {
        sys::lookup_many(self.fd.as_fd(), from, most).map_err(self.failed("read", "bpf_map_lookup_batch"))
    }

    /// All entries. Those that come or go meanwhile may be among them or not; no key comes twice.
    pub(crate) fn all(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let (mut all, mut place) = self.some(None, BATCH)?;
        while place.is_some() {
            let (more, rest) = self.some(place, BATCH)?;
            all.extend(more);
            place = rest;
        }
        Ok(all)
    }

    /// How many entries there are.
    pub(crate) fn count(&self) -> Result<u64, DatapathError> {
        Ok(u64::try_from(self.all()?.len()).unwrap_or(u64::MAX))
    }

    fn failed(&self, operation: &'static str, call: &'static str) -> impl Fn(io::Error) -> DatapathError {
        let name = self.name;
        move |error| failed_call(name, operation, call, error)
    }
}

/// As many as there are processors for this process, and no more than are of use.
fn threads() -> usize {
    thread::available_parallelism()
        .map_or(1, std::num::NonZero::get)
        .min(THREADS)
}
