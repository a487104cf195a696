//! Tables as a node sends them ([`api::node_policy`]), and back.

use std::sync::Arc;

use api::{
    flow::{FlowDirection, FlowVerdict},
    node_policy::{InsideRow, NodePolicy, RuleRow, SourceRow, VerdictRow},
};

use crate::tables::{
    Direction, EndpointId, IdentityId, InsideClass, Insides, NodeTables, RuleId, RuleName, Service,
    SourceBlock, SourceClass, Verdict, VerdictEntry, VerdictKey,
};

/// Why what a node sent are no tables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DumpError {
    /// Entries for an endpoint that is not listed, or not programmed.
    #[error("there are entries for endpoint {0}, which has no tables")]
    Endpoint(u32),
    /// A block of ports that cannot be.
    #[error("port {port} with {bits} bits is no block of ports")]
    Block {
        /// The port.
        port: u16,
        /// Its bits.
        bits: u8,
    },
    /// Two entries for the same packets.
    #[error("two entries of endpoint {0} are about the same packets")]
    Twice(u32),
}

/// Adds `tables` to what the node says about itself.
pub fn write(tables: &NodeTables, policy: &mut NodePolicy) {
    policy
        .identities
        .extend(tables.identities.iter().map(|(net, id)| (*net, id.0)));
    for (endpoint, rows) in &tables.endpoints {
        policy
            .sources
            .extend(rows.sources.iter().map(|(block, class)| SourceRow {
                endpoint: endpoint.0,
                protocol: block.protocol,
                port: block.port,
                port_bits: block.prefix_bits,
                class: class.0,
            }));
        policy
            .insides
            .extend(rows.insides.iter().map(|(address, classes)| InsideRow {
                endpoint: endpoint.0,
                address: address.0,
                ingress: classes.ingress.0,
                egress: classes.egress.0,
            }));
        policy.verdicts.extend(
            rows.verdicts
                .iter()
                .map(|(key, entry)| verdict_row(*endpoint, &key, &entry)),
        );
    }
    policy.rules.extend(tables.rules.iter().map(|name| RuleRow {
        tier: name.tier.clone(),
        policy: name.policy.clone(),
        rule: name.rule,
    }));
}

/// The tables in `policy`.
pub fn read(policy: &NodePolicy) -> Result<NodeTables, DumpError> {
    let mut tables = NodeTables {
        identities: policy
            .identities
            .iter()
            .map(|(net, id)| (*net, IdentityId(*id)))
            .collect(),
        rules: policy
            .rules
            .iter()
            .map(|row| RuleName {
                tier: row.tier.clone(),
                policy: row.policy.clone(),
                rule: row.rule,
            })
            .collect(),
        ..NodeTables::default()
    };
    for endpoint in policy.endpoints.iter().filter(|endpoint| endpoint.programmed) {
        tables.endpoints.entry(EndpointId(endpoint.id)).or_default();
    }
    for endpoint in policy.hosts.iter().flat_map(|host| &host.programmed) {
        tables.endpoints.entry(EndpointId(*endpoint)).or_default();
    }
    for row in &policy.sources {
        let endpoint = tables.endpoints.get_mut(&EndpointId(row.endpoint));
        let endpoint = endpoint.ok_or(DumpError::Endpoint(row.endpoint))?;
        let block = SourceBlock {
            protocol: row.protocol,
            port: checked(row.port, row.port_bits)?,
            prefix_bits: row.port_bits,
        };
        if Arc::make_mut(endpoint)
            .sources
            .insert(block, SourceClass(row.class))
            .is_some()
        {
            return Err(DumpError::Twice(row.endpoint));
        }
    }
    for row in &policy.insides {
        let endpoint = tables.endpoints.get_mut(&EndpointId(row.endpoint));
        let endpoint = endpoint.ok_or(DumpError::Endpoint(row.endpoint))?;
        let classes = Insides {
            ingress: InsideClass(row.ingress),
            egress: InsideClass(row.egress),
        };
        let insides = &mut Arc::make_mut(endpoint).insides;
        if insides.insert(IdentityId(row.address), classes).is_some() {
            return Err(DumpError::Twice(row.endpoint));
        }
    }
    for row in &policy.verdicts {
        let endpoint = tables.endpoints.get_mut(&EndpointId(row.endpoint));
        let endpoint = endpoint.ok_or(DumpError::Endpoint(row.endpoint))?;
        let (key, entry) = verdict_entry(row)?;
        if Arc::make_mut(endpoint).verdicts.insert(key, entry).is_some() {
            return Err(DumpError::Twice(row.endpoint));
        }
    }
    Ok(tables)
}

fn verdict_row(endpoint: EndpointId, key: &VerdictKey, entry: &VerdictEntry) -> VerdictRow {
    let (protocol, port, port_bits) = match key.service {
        Service::Any => (None, 0, 0),
        Service::Protocol(protocol) => (Some(protocol), 0, 0),
        Service::Ports {
            protocol,
            port,
            prefix_bits,
        } => (Some(protocol), port, prefix_bits),
    };
    VerdictRow {
        endpoint: endpoint.0,
        peer: key.peer.0,
        direction: match key.direction {
            Direction::Ingress => FlowDirection::Ingress,
            Direction::Egress => FlowDirection::Egress,
        },
        inside: key.inside.0,
        source: key.source.0,
        protocol,
        port,
        port_bits,
        verdict: match entry.verdict {
            Verdict::Allow => FlowVerdict::Allow,
            Verdict::Deny => FlowVerdict::Deny,
        },
        rule: entry.rule.0,
    }
}

fn verdict_entry(row: &VerdictRow) -> Result<(VerdictKey, VerdictEntry), DumpError> {
    let port = checked(row.port, row.port_bits)?;
    let service = match (row.protocol, row.port_bits) {
        (None, 0) => Service::Any,
        (Some(protocol), 0) => Service::Protocol(protocol),
        (Some(protocol), prefix_bits) => Service::Ports {
            protocol,
            port,
            prefix_bits,
        },
        (None, bits) => return Err(DumpError::Block { port, bits }),
    };
    let key = VerdictKey {
        peer: IdentityId(row.peer),
        direction: match row.direction {
            FlowDirection::Ingress => Direction::Ingress,
            FlowDirection::Egress => Direction::Egress,
        },
        inside: InsideClass(row.inside),
        source: SourceClass(row.source),
        service,
    };
    let verdict = match row.verdict {
        FlowVerdict::Allow => Verdict::Allow,
        FlowVerdict::Deny => Verdict::Deny,
    };
    let rule = RuleId(row.rule);
    Ok((key, VerdictEntry { verdict, rule }))
}

/// The port, if nothing is set beyond its bits.
fn checked(port: u16, bits: u8) -> Result<u16, DumpError> {
    let rest = u16::MAX.checked_shr(bits.into()).unwrap_or(0);
    match bits <= 16 && port & rest == 0 {
        true => Ok(port),
        false => Err(DumpError::Block { port, bits }),
    }
}

#[cfg(test)]
mod tests {
    use api::node_policy::NodeEndpoint;

    use super::*;
    use crate::tables::EndpointTables;

    fn tables() -> NodeTables {
        let key = |service, source| VerdictKey {
            peer: IdentityId(9),
            direction: Direction::Egress,
            inside: InsideClass(5),
            source: SourceClass(source),
            service,
        };
        let entry = |verdict, rule| VerdictEntry {
            verdict,
            rule: RuleId(rule),
        };
        let block = SourceBlock {
            protocol: 6,
            port: 0x8000,
            prefix_bits: 1,
        };
        let ports = Service::Ports {
            protocol: 17,
            port: 443,
            prefix_bits: 16,
        };
        let endpoint = EndpointTables {
            sources: [(block, SourceClass(1))].into(),
            insides: [(
                IdentityId(9),
                Insides {
                    ingress: InsideClass(0),
                    egress: InsideClass(5),
                },
            )]
            .into(),
            verdicts: [
                (key(Service::Any, 0), entry(Verdict::Deny, 0)),
                (key(Service::Protocol(6), 1), entry(Verdict::Allow, 64)),
                (key(ports, 0), entry(Verdict::Allow, 64)),
            ]
            .into(),
        };
        NodeTables {
            identities: [("10.0.0.0/8".parse().unwrap(), IdentityId(9))].into(),
            endpoints: [(EndpointId(7), Arc::new(endpoint))].into(),
            rules: vec![RuleName {
                tier: "default".to_owned(),
                policy: "NetworkPolicy a/b".to_owned(),
                rule: Some(0),
            }],
        }
    }

    fn policy(programmed: bool) -> NodePolicy {
        let mut policy = NodePolicy {
            endpoints: vec![NodeEndpoint {
                id: 7,
                programmed,
                ..NodeEndpoint::default()
            }],
            ..NodePolicy::default()
        };
        write(&tables(), &mut policy);
        policy
    }

    #[test]
    fn tables_survive_the_round_trip() {
        assert_eq!(read(&policy(true)), Ok(tables()));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert_eq!(read(&policy(false)), Err(DumpError::Endpoint(7)));
        let mut twice = policy(true);
        let row = twice.verdicts.first().unwrap().clone();
        twice.verdicts.push(row);
        assert_eq!(read(&twice), Err(DumpError::Twice(7)));
        let mut twice = policy(true);
        twice.insides.extend(twice.insides.clone());
        assert_eq!(read(&twice), Err(DumpError::Twice(7)));
        for (port, bits) in [(1, 0), (1, 15), (0, 17)] {
            let mut bad = policy(true);
            let row = bad.verdicts.last_mut().unwrap();
            (row.port, row.port_bits) = (port, bits);
            assert_eq!(read(&bad), Err(DumpError::Block { port, bits }));
        }
    }
}
