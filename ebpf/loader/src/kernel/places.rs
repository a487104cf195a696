//! Who is where, and who is closed, read back from the maps.

use ebpf_abi::STATE_KEEP_ESTABLISHED;
use policies_ir::tables::EndpointId;

use crate::{
    DatapathError, Places, Way, encode,
    kernel::{maps::Maps, tables::is_closed},
};

/// What programs know of pods and hosts beside their links and tables.
pub(crate) fn read(maps: &Maps) -> Result<Places, DatapathError> {
    let ways = maps.ways()?.into_iter().map(|(address, link)| {
        let way = Way {
            id: EndpointId(link.endpoint),
            ifindex: link.ifindex,
            mac: link.mac,
        };
        (address.to_ip(), way)
    });
    let hosts = maps.hosts()?;
    let pods = maps.pods()?;
    let keeping = pods.iter().map(|(_, endpoint)| endpoint);
    let keeping = keeping.filter(|endpoint| maps.state(endpoint).flags & STATE_KEEP_ESTABLISHED != 0);
    let mut endpoints = maps.endpoints()?;
    endpoints.retain(|(_, endpoint)| is_closed(maps.state(endpoint)));
    Ok(Places {
        ways: ways.collect(),
        hosts: hosts
            .iter()
            .map(|(key, endpoint)| encode::host_place(key, endpoint))
            .collect(),
        keeping: keeping.map(|endpoint| EndpointId(endpoint.id)).collect(),
        closed: endpoints
            .iter()
            .map(|(_, endpoint)| EndpointId(endpoint.id))
            .collect(),
    })
}
