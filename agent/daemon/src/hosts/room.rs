//! Interfaces for which the kernel's map of the host's addresses has no room.
//!
//! That map has an entry for each address of the host at each interface with a host endpoint. Where those are too many, the
//! interfaces with the lowest numbers get theirs, and the others are not left open: such a one keeps its own addresses,
//! which are judged as asked, and [`CLOSED`] has what is about any other address and what is forwarded, and denies it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ebpf_loader::{HostEndpoint, HostLink};
use policies_compiler::capacity::{Exceeded, What};
use policies_ir::tables::{EndpointId, NodeTables};

/// Denies everything, wherever it is. No pod and no host endpoint has this number.
pub(super) const CLOSED: EndpointId = EndpointId(0x7fff_ffff);

/// What became of interfaces for which there is no room.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfit {
    /// What all of them would take.
    pub(super) exceeded: Exceeded,
    /// These are judged at their own addresses, and closed to all others.
    pub(super) narrowed: Vec<u32>,
    /// These are closed.
    pub(super) closed: Vec<u32>,
    /// For these there is not even room to close them.
    pub(super) open: Vec<u32>,
}

/// Makes of `links` what there is room for; `own` are the addresses of an interface itself. Nothing if all fit.
pub(super) fn fit(
    links: &mut BTreeMap<u32, HostLink>,
    own: impl Fn(u32) -> BTreeSet<IpAddr>,
    room: usize,
) -> Option<Unfit> {
    let needed = links.values().map(places).sum();
    let mut unfit = Unfit {
        exceeded: Exceeded::if_more(What::HostPlaces, needed, room)?,
        narrowed: Vec::new(),
        closed: Vec::new(),
        open: Vec::new(),
    };
    let narrow = |link: &HostLink| narrowed(link, &own(link.ifindex));
    let narrowest: usize = links.values().map(|link| places(&narrow(link))).sum();
    // What has to be left for an interface that comes later.
    let least = |link: &HostLink| match narrowest <= room {
        true => places(&narrow(link)),
        false => 1,
    };
    let mut kept: usize = links.values().map(least).sum();
    let mut taken = 0;
    links.retain(|index, link| {
        kept -= least(link);
        let left = room.saturating_sub(taken + kept).max(usize::from(taken < room));
        let fits = |form: &HostLink| places(form) <= left;
        let narrow = narrow(link);
        let (kind, form) = match left {
            _ if narrowest <= room && fits(link) => (None, Some(link.clone())),
            _ if fits(&narrow) => (Some(&mut unfit.narrowed), Some(narrow)),
            0 => (Some(&mut unfit.open), None),
            _ => (Some(&mut unfit.closed), Some(narrowed(link, &BTreeSet::new()))),
        };
        kind.into_iter().for_each(|of_kind| of_kind.push(*index));
        let stays = form.is_some();
        if let Some(form) = form {
            taken += places(&form);
            *link = form;
        }
        stays
    });
    Some(unfit)
}

/// Entries that it takes: one for groups among them, where the host has addresses.
pub(super) fn places(link: &HostLink) -> usize {
    link.addresses.len() + usize::from(!link.addresses.is_empty()) + usize::from(link.forward.is_some())
}

/// Whether it is closed to some.
pub(super) fn is_closed(link: &HostLink) -> bool {
    link.forward.is_some_and(|forward| forward.id == CLOSED)
}

/// Adds that [`CLOSED`] denies everything.
pub(super) fn close(mut tables: NodeTables) -> NodeTables {
    tables.endpoints.insert(CLOSED, Arc::default());
    tables
}

/// The same for these addresses alone, and closed to all others.
fn narrowed(link: &HostLink, own: &BTreeSet<IpAddr>) -> HostLink {
    let addresses = link.addresses.iter().filter(|(address, _)| own.contains(address));
    HostLink {
        ifindex: link.ifindex,
        addresses: addresses.map(|(address, of)| (*address, *of)).collect(),
        forward: Some(HostEndpoint {
            id: CLOSED,
            untracked: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interfaces from 2 on, each with one address of its own.
    fn links(count: u8, forwards: bool) -> BTreeMap<u32, HostLink> {
        let judge = |id| HostEndpoint {
            id: EndpointId(id),
            untracked: None,
        };
        let addresses = (0..count).map(|i| (address(i.into()), judge(7)));
        let addresses: BTreeMap<IpAddr, HostEndpoint> = addresses.collect();
        let link = |ifindex| HostLink {
            ifindex,
            addresses: addresses.clone(),
            forward: forwards.then(|| judge(8)),
        };
        (0..count)
            .map(|i| (2 + u32::from(i), link(2 + u32::from(i))))
            .collect()
    }

    fn address(i: u32) -> IpAddr {
        IpAddr::from([192, 0, 2, u8::try_from(i).unwrap()])
    }

    fn fitted(count: u8, forwards: bool, room: usize) -> (BTreeMap<u32, HostLink>, Option<Unfit>) {
        let mut links = links(count, forwards);
        let unfit = fit(&mut links, |index| [address(index - 2)].into(), room);
        let taken: usize = links.values().map(places).sum();
        assert!(taken <= room, "{taken} of {room}");
        (links, unfit)
    }

    #[test]
    fn what_fits_is_as_it_was() {
        assert_eq!(fitted(4, false, 20), (links(4, false), None));
        assert_eq!(fitted(4, true, 24), (links(4, true), None));
    }

    #[test]
    fn what_does_not_fit_is_closed_to_all_but_its_own_addresses() {
        let (fits, unfit) = fitted(4, false, 19);
        let unfit = unfit.unwrap();
        assert_eq!(
            unfit.exceeded.to_string(),
            "needs 20 pairs of an interface and an address of the host, and a node holds 19"
        );
        assert_eq!((&unfit.narrowed[..], &unfit.closed[..]), (&[5][..], &[][..]));
        assert_eq!(fits[&4], links(4, false)[&4]);
        assert_eq!(fits[&5].addresses.len(), 1);
        assert!(fits[&5].addresses.contains_key(&address(3)) && is_closed(&fits[&5]));
        // Who has a policy for what is forwarded is no exception.
        let (fits, unfit) = fitted(4, true, 12);
        assert_eq!(unfit.unwrap().narrowed, [2, 3, 4, 5]);
        assert!(fits.values().all(is_closed));
    }

    #[test]
    fn the_last_resort_is_one_entry_that_closes_all() {
        let (fits, unfit) = fitted(4, false, 8);
        let unfit = unfit.unwrap();
        assert_eq!((unfit.narrowed, unfit.closed), (vec![2, 3], vec![4, 5]));
        assert!(fits[&5].addresses.is_empty() && is_closed(&fits[&5]));
        let (fits, unfit) = fitted(4, false, 3);
        let unfit = unfit.unwrap();
        assert_eq!((unfit.closed, unfit.open), (vec![2, 3, 4], vec![5]));
        assert!(!fits.contains_key(&5));
    }
}
