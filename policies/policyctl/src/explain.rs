//! `policyctl explain`: which rule decides between two ends, from files or from the live cluster, with the
//! compiler that also feeds the kernel.

use std::{net::IpAddr, process::ExitCode};

use anyhow::{Context, Result, bail};
use api::{calico::HostEndpoint, flow::FlowVerdict, node_policy::NodePolicy};
use policies_compiler::{CalicoObject, ClusterView, FlowEnd, PodView, Question, explain, parse_protocol};
use policies_ir::policy::PORT_PROTOCOLS;

use crate::{
    cli::{Connection, ExplainArgs},
    cluster, load, output,
};

/// Exit code of a flow that is denied: an answer, not an error.
const DENIED: u8 = 2;

/// Explains one flow; exit code 0 when it is allowed, 2 when it is denied.
pub(crate) async fn run(connection: &Connection, args: &ExplainArgs) -> Result<ExitCode> {
    let (port, protocol) = service(&args.port)?;
    if args.source_port.is_some() && !PORT_PROTOCOLS.contains(&protocol) {
        bail!("--source-port: only TCP, UDP and SCTP have ports");
    }
    let asked = Question {
        source: args.from.parse()?,
        destination: args.to.parse()?,
        protocol,
        source_port: args.source_port.unwrap_or(0),
        port,
    };
    let view = if args.filename.is_empty() {
        live(connection, &asked.source).await?
    } else {
        load::offline(&args.filename)?.view
    };
    let explanation = explain(&view, &asked)?;
    match args.output {
        Some(format) => {
            output::object(
                &serde_json::to_value(&explanation).context("cannot write the answer")?,
                format,
            )?;
        }
        None => output::line(explanation.to_string().trim_end())?,
    }
    Ok(match explanation.verdict {
        FlowVerdict::Allow => ExitCode::SUCCESS,
        FlowVerdict::Deny => ExitCode::from(DENIED),
    })
}

/// The live cluster, with the names of addresses as the resolver of the node knows them where the flow begins: only
/// rules for what leaves an end have names.
async fn live(connection: &Connection, from: &FlowEnd) -> Result<ClusterView> {
    let mut view = load::live(connection).await?.view;
    let node = node_of(&view, from).filter(|_| view.asks_for_names());
    let Some(node) = node.map(str::to_owned) else {
        return Ok(view);
    };
    let client = cluster::connect(connection).await?;
    let path = format!("/api/v1/nodes/{}/proxy/policy", cluster::encode(&node));
    let sent = cluster::get(&client, &path)
        .await
        .map_err(anyhow::Error::from)
        .with_context(|| {
            format!("some rule asks for names, and node {node} does not tell those it learned")
        })?;
    let sent: NodePolicy =
        serde_json::from_value(sent).with_context(|| format!("node {node} sent something else"))?;
    view.names = sent.names;
    Ok(view)
}

/// The node of the cluster that an end is on, if it is on one.
fn node_of<'a>(view: &'a ClusterView, end: &FlowEnd) -> Option<&'a str> {
    let of_pod = |found: &dyn Fn(&PodView) -> bool| {
        let pod = view.pods.iter().find(|pod| found(pod));
        pod.map(|pod| pod.node.as_str())
    };
    let of_host = |found: &dyn Fn(&HostEndpoint) -> bool| {
        let mut hosts = view.calico.iter().filter_map(|object| match object {
            CalicoObject::HostEndpoint(host) => Some(host),
            _ => None,
        });
        hosts.find(|host| found(host)).map(|host| host.spec.node.as_str())
    };
    let node = match end {
        FlowEnd::Pod { namespace, name } => of_pod(&|pod| (&pod.namespace, &pod.name) == (namespace, name)),
        FlowEnd::Host(name) if view.nodes.contains_key(name) => Some(name.as_str()),
        FlowEnd::Host(name) => of_host(&|host| host.metadata.name.as_ref() == Some(name)),
        FlowEnd::Address(address) => {
            let mut nodes = view.nodes.iter();
            let node = nodes.find(|(_, node)| node.addresses.contains(address));
            let is = |text: &String| {
                text.parse::<IpAddr>()
                    .is_ok_and(|found| found.to_canonical() == *address)
            };
            of_pod(&|pod| pod.addresses.contains(address))
                .or_else(|| of_host(&|host| host.spec.expected_ips.iter().any(is)))
                .or(node.map(|(name, _)| name.as_str()))
        }
    };
    // A host endpoint may be for a node that nobody can ask.
    let (node, _) = view.nodes.get_key_value(node?)?;
    Some(node)
}

/// `80`, `80/TCP`, `53/udp`; for ICMP `8` or `8.0/ICMP` is type and code.
fn service(text: &str) -> Result<(u16, u8)> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let protocol = parse_protocol(protocol)?;
    if matches!(protocol, 1 | 58) {
        let (kind, code) = port.split_once('.').unwrap_or((port, "0"));
        let parse = |number: &str| {
            number
                .parse::<u8>()
                .with_context(|| format!("{text:?}: expected TYPE.CODE/ICMP"))
        };
        return Ok((u16::from(parse(kind)?) << 8 | u16::from(parse(code)?), protocol));
    }
    match port.parse() {
        Ok(port) => Ok((port, protocol)),
        Err(_) => bail!("{text:?}: expected PORT or PORT/PROTOCOL, such as 443 or 53/UDP"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ports_with_and_without_protocol() {
        assert_eq!(service("80").unwrap(), (80, 6));
        assert_eq!(service("53/udp").unwrap(), (53, 17));
        assert_eq!(service("8.0/ICMP").unwrap(), (0x0800, 1));
        assert!(service("http").is_err());
        assert!(service("70000").is_err());
    }
}
