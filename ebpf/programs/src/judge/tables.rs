//! What policy says: a constant number of lookups, whatever the number of policies.

use aya_ebpf::maps::lpm_trie::Key;
use ebpf_abi::{
    Address, AddressClass, Decision, FAMILY_IPV4, FAMILY_IPV6, IDENTITY_PREFIX_BASE, IdentityKey, InsideKey, NO_CLASS, RANK_ANY,
    RANK_PORT, RANK_PROTOCOL, RULE_NO_MATCH, RULE_NO_POLICY, SOURCE_PREFIX_BASE, STATE_HAS_INSIDES, STATE_HAS_SOURCES, SourceKey,
    SplitKey, VERDICT_ALLOW, VERDICT_DENY, VerdictKey, base_generation,
};

use super::Judge;
use crate::{
    maps::{HOSTS, IDENTITIES, INSIDES, SOURCES, SPLITS, VERDICTS},
    packet::Packet,
};

#[inline(always)]
pub(super) fn ask_about(endpoint: &Judge, packet: &Packet) -> Decision {
    ask(endpoint, packet).1
}

/// Whether the tables say anything about the packet, and what.
#[inline(always)]
pub(super) fn ask(endpoint: &Judge, packet: &Packet) -> (bool, Decision) {
    ask_tables(
        endpoint,
        packet.direction,
        &packet.inside,
        &packet.peer,
        packet.protocol,
        packet.source_port,
        packet.service_port,
    )
}

/// Addresses to classes, source port to class, classes and destination port to verdict. Whatever is missing denies, but
/// for source ports: those that no rule tells apart have the class that needs no entry.
#[inline(always)]
pub(super) fn ask_tables(
    endpoint: &Judge,
    direction: u8,
    local: &Address,
    peer: &Address,
    protocol: u8,
    source_port: u16,
    service_port: u16,
) -> (bool, Decision) {
    let state = endpoint.state;
    if endpoint.is_open {
        let open = Decision {
            change: state.change(),
            rule: RULE_NO_POLICY,
            verdict: VERDICT_ALLOW,
        };
        return (true, open);
    }
    let unknown = Decision {
        change: state.change(),
        rule: RULE_NO_MATCH,
        verdict: VERDICT_DENY,
    };
    let Some(found) = class_of(state.generation, peer) else {
        return (false, unknown);
    };
    let peer = answering(endpoint, found);
    let inside = inside_of(endpoint, direction, local);
    let mut class = 0;
    if state.flags & STATE_HAS_SOURCES != 0 {
        let source = Key::new(
            SOURCE_PREFIX_BASE + 16,
            SourceKey {
                endpoint: endpoint.id,
                epoch: state.epoch,
                protocol,
                padding: 0,
                port_be: source_port.to_be(),
            },
        );
        if let Some(&found) = SOURCES.get(&source) {
            class = found as u8;
        }
    }
    // SAFETY: a pointer that the map returned in this run, aligned to eight bytes; the word is read at once, and after
    // the state, which the loader writes after it.
    let ranks = unsafe { (&raw const (*endpoint.slot).ranks).read_volatile() };
    let mut key = VerdictKey {
        endpoint: endpoint.id,
        epoch: state.epoch,
        peer,
        side: VerdictKey::side(direction, class),
        protocol,
        port: service_port,
        rank: RANK_PORT,
        padding: 0,
        inside,
    };
    for below in 0..=RANK_PORT {
        let rank = RANK_PORT - below;
        if ranks >> rank & 1 == 0 {
            continue;
        }
        key.rank = rank;
        key.port = if rank > RANK_PROTOCOL {
            service_port & (0xffff_0000_u32 >> (rank - RANK_PROTOCOL)) as u16
        } else {
            0
        };
        if rank == RANK_ANY {
            key.protocol = 0;
        }
        // SAFETY: as above.
        if let Some(found) = unsafe { VERDICTS.get(&key) } {
            let decision = Decision {
                change: state.change(),
                rule: found.rule,
                verdict: found.verdict,
            };
            // Such an entry only takes its ports out of a wider one.
            return (found.rule != RULE_NO_MATCH, decision);
        }
    }
    (false, unknown)
}

/// Class of an address: what the generation has for the whole address, or else what the first of its group has, or else
/// what the longest shorter prefix has.
#[inline(always)]
fn class_of(generation: u32, address: &Address) -> Option<AddressClass> {
    let mut key = IdentityKey {
        generation,
        family: if address.is_ipv4() { FAMILY_IPV4 } else { FAMILY_IPV6 },
        address: *address,
    };
    // SAFETY: values are never changed, only added and, when no program asks for them any more, removed.
    let mut found = unsafe { HOSTS.get(&key) };
    let base = base_generation(generation);
    if found.is_none() && base != generation {
        key.generation = base;
        // SAFETY: as above.
        found = unsafe { HOSTS.get(&key) };
        key.generation = generation;
    }
    match found {
        Some(found) if found.class != NO_CLASS => Some(*found),
        _ => IDENTITIES.get(&Key::new(IDENTITY_PREFIX_BASE + 128, key)).copied(),
    }
}

/// The class whose verdicts answer: the parent's where the endpoint does not tell the two apart.
#[inline(always)]
fn answering(endpoint: &Judge, found: AddressClass) -> u32 {
    if found.class == found.parent {
        return found.class;
    }
    let key = SplitKey {
        endpoint: endpoint.id,
        epoch: endpoint.state.epoch,
        class: found.class,
    };
    // SAFETY: only whether there is a value is looked at.
    match unsafe { SPLITS.get(&key) } {
        Some(_) => found.class,
        None => found.parent,
    }
}

/// What an address at the own end is to the endpoint's rules. One that nobody can be sure of has no entry: where rules
/// ask who is there, no verdict is about that.
#[inline(always)]
fn inside_of(endpoint: &Judge, direction: u8, local: &Address) -> u16 {
    let state = endpoint.state;
    if state.flags & STATE_HAS_INSIDES == 0 {
        return 0;
    }
    let Some(found) = class_of(state.generation, local) else {
        return 0;
    };
    let key = InsideKey {
        endpoint: endpoint.id,
        epoch: state.epoch,
        class: found.class,
    };
    // SAFETY: as in `class_of`.
    match unsafe { INSIDES.get(&key) } {
        Some(classes) => classes.of(direction),
        None => 0,
    }
}
