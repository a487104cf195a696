//! `policyctl explain`: which rule decides between two ends, from files or from the live cluster, with the
//! compiler that also feeds the kernel.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use api::flow::FlowVerdict;
use policies_compiler::{Book, ClusterView, FlowEnd, Question, explain, parse_protocol};
use policies_ir::policy::PORT_PROTOCOLS;

use crate::{
    cli::{Connection, ExplainArgs},
    cluster,
    learned::{self, Nodes},
    load, output,
};

/// Exit code of a flow that is denied: an answer, not an error.
const DENIED: u8 = 2;

/// Explains one flow; exit code 0 when it is allowed, 2 when it is denied.
pub(crate) async fn run(connection: &Connection, args: &ExplainArgs) -> Result<ExitCode> {
    let (port, protocol) = service(&args.port)?;
    if args.source_port.is_some() && !PORT_PROTOCOLS.contains(&protocol) {
        bail!("--source-port: only TCP, UDP and SCTP have ports");
    }
    let (source, destination) = (args.from.parse()?, args.to.parse()?);
    let view = if args.filename.is_empty() {
        live(connection, &source).await?
    } else {
        load::offline(&args.filename)?.view
    };
    let source_port = match args.source_port {
        Some(port) => port,
        None if PORT_PROTOCOLS.contains(&protocol) => Book::new(&view).unmeant_source_port(),
        None => 0,
    };
    let asked = Question {
        source,
        destination,
        protocol,
        source_port,
        port,
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

/// The live cluster, with the names of addresses as the resolver of the node knows them where the flow begins.
async fn live(connection: &Connection, from: &FlowEnd) -> Result<ClusterView> {
    let mut view = load::live(connection).await?.view;
    let node = Nodes::new(&view).of(from).filter(|_| view.asks_for_names());
    let Some(node) = node.map(str::to_owned) else {
        return Ok(view);
    };
    let client = cluster::connect(connection).await?;
    view.names = learned::of_node(&client, &node).await?;
    Ok(view)
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
