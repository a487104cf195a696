//! `policyctl flows`: what the kernel decided, and which rule decided.

use anyhow::{Context, Result, bail};
use api::flow::{DecidedBy, FlowDirection, FlowEvent, FlowVerdict};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt, stream::SelectAll};

use crate::{
    cli::{Connection, FlowOutput, FlowsArgs, VerdictFilter},
    cluster, logs,
    output::{self, Colour},
};

/// Prints the flows of one node or of all.
pub(crate) async fn run(connection: &Connection, args: &FlowsArgs) -> Result<()> {
    let client = cluster::connect(connection).await?;
    let nodes = match &args.node {
        Some(node) => vec![node.clone()],
        None => cluster::list_all(&client, ("", "v1", "nodes"))
            .await?
            .iter()
            .filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned))
            .collect(),
    };
    if nodes.is_empty() {
        bail!("the cluster has no nodes, so no flows");
    }
    let mut lines = SelectAll::new();
    for node in nodes {
        let path = format!("/api/v1/nodes/{node}/proxy/flows?follow={}", args.follow);
        let stream = logs::open(&client, &path)
            .await
            .with_context(|| format!("node {node}"))?;
        lines.push(Box::pin(stream).lines().boxed());
    }
    while let Some(line) = lines
        .try_next()
        .await
        .context("the connection to the server broke")?
    {
        let event: FlowEvent =
            serde_json::from_str(&line).with_context(|| format!("the node sent something else: {line}"))?;
        if wanted(args, &event) {
            show(args, &line, &event)?;
        }
    }
    Ok(())
}

fn wanted(args: &FlowsArgs, event: &FlowEvent) -> bool {
    let verdict = args.verdict.is_none_or(|filter| match filter {
        VerdictFilter::Allow => event.verdict == FlowVerdict::Allow,
        VerdictFilter::Deny => event.verdict == FlowVerdict::Deny,
    });
    let pod = args.pod.as_ref().is_none_or(|name| {
        event.pod.to_string() == *name || event.peer.as_ref().is_some_and(|peer| peer.to_string() == *name)
    });
    verdict && pod
}

fn show(args: &FlowsArgs, line: &str, event: &FlowEvent) -> Result<()> {
    if args.output == Some(FlowOutput::Json) {
        return output::line(line);
    }
    let verdict = match event.verdict {
        FlowVerdict::Allow => output::coloured("allow", Colour::Good),
        FlowVerdict::Deny => output::coloured("deny ", Colour::Bad),
    };
    let peer = event.peer.as_ref().map(ToString::to_string);
    let (source, destination) = match event.direction {
        FlowDirection::Egress => (Some(event.pod.to_string()), peer),
        FlowDirection::Ingress => (peer, Some(event.pod.to_string())),
    };
    let end = |name: Option<String>, address: std::net::IpAddr| match name {
        Some(name) => format!("{name} ({address})"),
        None => address.to_string(),
    };
    let direction = match event.direction {
        FlowDirection::Ingress => "ingress",
        FlowDirection::Egress => "egress ",
    };
    let staged = event.staged.as_ref().map(|staged| {
        let verdict = match staged.verdict {
            FlowVerdict::Allow => "allow",
            FlowVerdict::Deny => "deny",
        };
        format!("  (staged: {verdict}, {})", by(&staged.decided_by))
    });
    output::line(&format!(
        "{:.3} {verdict} {direction} {} {} -> {}  {}{}",
        event.time,
        service(event.protocol, event.destination_port),
        end(source, event.source),
        end(destination, event.destination),
        by(&event.decided_by),
        staged.unwrap_or_default(),
    ))
}

/// Policy and rule, and the tier where it is not the one that needs no mention.
fn by(decided: &DecidedBy) -> String {
    let tier = match decided.tier.as_deref() {
        None | Some("default") => String::new(),
        Some(tier) => format!("tier {tier}: "),
    };
    match &decided.policy {
        Some(policy) => format!("{tier}{policy} {}", decided.rule),
        None => format!("{tier}{}", decided.rule),
    }
}

fn service(protocol: u8, port: u16) -> String {
    match protocol {
        1 | 58 => format!("ICMP type {} code {}", port >> 8, port & 0xff),
        6 => format!("TCP/{port}"),
        17 => format!("UDP/{port}"),
        132 => format!("SCTP/{port}"),
        other => format!("protocol {other}"),
    }
}
