//! `policyctl flows`: what the kernel decided, and which rule decided.
//!
//! First what the nodes have written down, then, with `-f`, what comes after the last line of it: each node numbers
//! its lines, so nothing is shown twice and nothing falls between.

use std::{collections::VecDeque, net::IpAddr, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use api::flow::{
    DecidedBy, EndpointRef, FlowDirection, FlowEnd, FlowEvent, FlowKind, FlowLine, FlowLoss, FlowVerdict,
    LossPlace,
};
use futures::{
    AsyncBufReadExt, Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream, SelectAll},
};
use jiff::Timestamp;
use kube::Client;

use crate::{
    cli::{Connection, FlowOutput, FlowsArgs},
    cluster,
    flow_filter::FlowFilter,
    logs,
    output::{self, Colour},
};

/// Lines shown to somebody who does not say how many, nor since when.
const RECENT: usize = 1000;

/// How long a node that tells no more is left alone.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A line as the node wrote it, and what it says.
pub(crate) struct Told {
    pub(crate) text: String,
    pub(crate) line: FlowLine,
}

/// Prints the flows of one node or of all; exit code 1 when one does not tell them.
pub(crate) async fn run(connection: &Connection, args: &FlowsArgs) -> Result<ExitCode> {
    let client = cluster::connect(connection).await?;
    let nodes = nodes(&client, args.node.as_deref()).await?;
    let bounds = Bounds {
        since: args.since,
        limit: args.limit.or(args.since.is_none().then_some(RECENT)),
    };
    let mut told = Vec::new();
    let mut next = Vec::new();
    let mut is_missing = false;
    for node in nodes {
        match history(&client, &node, &bounds, &args.filter).await {
            Ok((mut of_node, last)) => {
                told.append(&mut of_node);
                let query = match (last, args.since) {
                    (None, Some(since)) => format!("follow=true&since={since}"),
                    (last, _) => after(last.unwrap_or(0)),
                };
                next.push((node, query));
            }
            // What the others say is no less true.
            Err(error) => {
                is_missing = true;
                output::complain(&format!("{error:#}"));
                next.push((node, format!("follow=true&since={}", Timestamp::now())));
            }
        }
    }
    // Each node's lines are in order; sorting keeps that where times are the same.
    told.sort_by_key(|told| told.line.time());
    if let Some(limit) = bounds.limit {
        told.drain(..told.len().saturating_sub(limit));
    }
    for told in &told {
        show(args, told)?;
    }
    if args.follow {
        follow(&client, args, next).await?;
    }
    Ok(match is_missing {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// The node that was named, or all.
pub(crate) async fn nodes(client: &Client, named: Option<&str>) -> Result<Vec<String>> {
    if let Some(node) = named {
        return Ok(vec![node.to_owned()]);
    }
    let nodes: Vec<String> = cluster::list_all(client, ("", "v1", "nodes"))
        .await?
        .iter()
        .filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    if nodes.is_empty() {
        bail!("the cluster has no nodes, so no flows");
    }
    Ok(nodes)
}

/// How much of the history.
pub(crate) struct Bounds {
    pub(crate) since: Option<Timestamp>,
    pub(crate) limit: Option<usize>,
}

impl Bounds {
    /// For a node, which counts lines and not those that are wanted.
    fn query(&self, all_are_wanted: bool) -> String {
        // One at least: its number says where what comes begins.
        let limit = self.limit.filter(|_| all_are_wanted).map(|limit| limit.max(1));
        let since = self.since.or(limit.is_none().then_some(Timestamp::UNIX_EPOCH));
        let mut query = String::new();
        query.extend(limit.map(|limit| format!("&limit={limit}")));
        query.extend(since.map(|since| format!("&since={since}")));
        query
    }
}

/// What a node has written down and the filter wants, and the number of the last line there is.
pub(crate) async fn history(
    client: &Client,
    node: &str,
    bounds: &Bounds,
    filter: &FlowFilter,
) -> Result<(Vec<Told>, Option<u64>)> {
    let query = bounds.query(filter.is_empty());
    let mut lines = lines(client, node, &format!("follow=false{query}")).await?;
    let (mut told, mut last) = (VecDeque::new(), None);
    let of_node = || format!("node {node}");
    while let Some(line) = lines.try_next().await.with_context(of_node)? {
        last = line.line.sequence().or(last);
        if wanted(filter, &line.line) {
            if bounds.limit.is_some_and(|limit| told.len() >= limit) {
                told.pop_front();
            }
            told.push_back(line);
        }
    }
    Ok((told.into(), last))
}

/// Shows what comes, of each node with this query.
async fn follow(client: &Client, args: &FlowsArgs, nodes: Vec<(String, String)>) -> Result<()> {
    let coming = nodes.into_iter().map(|(node, query)| {
        let following = Following {
            client: client.clone(),
            node,
            query,
            lines: None,
            is_away: false,
        };
        stream::unfold(following, Following::next).boxed()
    });
    let mut all: SelectAll<_> = coming.collect();
    while let Some(told) = all.next().await {
        if wanted(&args.filter, &told.line) {
            show(args, &told)?;
        }
    }
    Ok(())
}

/// Lines of a node as they come, for ever: one that is away, as while its agent starts again, is asked for what came after
/// the last line that it told.
struct Following {
    client: Client,
    node: String,
    query: String,
    lines: Option<BoxStream<'static, Result<Told>>>,
    is_away: bool,
}

impl Following {
    async fn next(mut self) -> Option<(Told, Self)> {
        loop {
            match self.line().await {
                Ok(told) => {
                    if let Some(last) = told.line.sequence() {
                        self.query = after(last);
                    }
                    self.is_away = false;
                    return Some((told, self));
                }
                Err(error) => {
                    self.lines = None;
                    if !std::mem::replace(&mut self.is_away, true) {
                        output::note(&format!("note: {error:#}; it is asked again until it tells"));
                    }
                    tokio::time::sleep(ASK_AGAIN_AFTER).await;
                }
            }
        }
    }

    async fn line(&mut self) -> Result<Told> {
        let lines = match &mut self.lines {
            Some(lines) => lines,
            None => {
                let opened = lines(&self.client, &self.node, &self.query).await?;
                self.lines.insert(opened.boxed())
            }
        };
        let line = lines
            .try_next()
            .await
            .with_context(|| format!("node {}", self.node))?;
        line.with_context(|| format!("node {} tells no more", self.node))
    }
}

fn after(line: u64) -> String {
    format!("follow=true&after={line}")
}

/// Lines of a node's flow log.
async fn lines(
    client: &Client,
    node: &str,
    query: &str,
) -> Result<impl Stream<Item = Result<Told>> + Unpin + Send + use<>> {
    let path = format!("/api/v1/nodes/{}/proxy/flows?{query}", cluster::encode(node));
    let stream = logs::open(client, &path)
        .await
        .with_context(|| format!("node {node}"))?;
    let parse = |text: std::io::Result<String>| {
        let text = text.context("the connection to the server broke")?;
        let line =
            serde_json::from_str(&text).with_context(|| format!("the node sent something else: {text}"))?;
        Ok(Told { text, line })
    };
    Ok(Box::pin(stream).lines().map(parse).boxed())
}

/// What is missing concerns everybody.
fn wanted(filter: &FlowFilter, line: &FlowLine) -> bool {
    match line {
        FlowLine::Event(event) => filter.matches(event),
        FlowLine::Lost(_) => true,
    }
}

fn show(args: &FlowsArgs, told: &Told) -> Result<()> {
    match (&told.line, args.output) {
        (_, Some(FlowOutput::Json)) => output::line(&told.text),
        (FlowLine::Event(event), _) => output::line(&text(event)),
        (FlowLine::Lost(loss), _) => output::line(&loss_text(loss)),
    }
}

fn text(event: &FlowEvent) -> String {
    let verdict = match event.verdict {
        FlowVerdict::Allow => output::coloured("allow", Colour::Good),
        FlowVerdict::Deny => output::coloured("deny ", Colour::Bad),
    };
    let peer = event.peer.as_ref().map(ToString::to_string);
    let (source, destination) = match event.direction {
        FlowDirection::Egress => (Some(event.pod.to_string()), peer),
        FlowDirection::Ingress => (peer, Some(event.pod.to_string())),
    };
    let end = |name: Option<String>, address: IpAddr| match name {
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
    let logged: Vec<&str> = event.logged_by.iter().map(|rule| rule.rule.as_str()).collect();
    let logged = (!logged.is_empty()).then(|| format!("  (logged by {})", logged.join(", ")));
    let forwarded = if event.forwarded { "  (forwarded)" } else { "" };
    format!(
        "{:.3} {verdict} {direction} {} {} -> {}  {}{forwarded}{}{}{}",
        event.time,
        service(event.protocol, event.destination_port),
        end(source, event.source),
        end(destination, event.destination),
        by(&event.decided_by),
        became(event),
        staged.unwrap_or_default(),
        logged.unwrap_or_default(),
    )
}

/// What became of the flow, where the event is not about its first packet.
fn became(event: &FlowEvent) -> String {
    let (packets, bytes) = (&event.packets, &event.bytes);
    let totals = || {
        let end = match event.pod {
            EndpointRef::Pod(_) => "pod",
            EndpointRef::Host(_) => "host",
        };
        format!(
            "to {end} {} packets, {} bytes; from {end} {}, {}",
            packets.to_pod, bytes.to_pod, packets.from_pod, bytes.from_pod
        )
    };
    match event.kind {
        FlowKind::Start => String::new(),
        FlowKind::Denied => match packets.to_pod.saturating_add(packets.from_pod) {
            0 | 1 => String::new(),
            packets => format!("  ({packets} packets)"),
        },
        FlowKind::Update => format!("  (so far {})", totals()),
        FlowKind::End => {
            let why = match event.end {
                Some(FlowEnd::Closed) => "closed",
                Some(FlowEnd::Reset) => "reset",
                Some(FlowEnd::Silent) => "silent",
                Some(FlowEnd::Denied) => "denied by a change of policy",
                Some(FlowEnd::Removed) => "an end was removed",
                None => "ended",
            };
            format!("  (over, {why}; {})", totals())
        }
    }
}

fn loss_text(loss: &FlowLoss) -> String {
    let what = match loss.at {
        LossPlace::Kernel => "events lost, the kernel's buffer was full",
        LossPlace::Unreported => "denied packets not reported, too many others were denied",
        LossPlace::Disk => "events lost, the node's log could not be written",
        LossPlace::Retention => "lines gone, the node's log keeps the newest",
        LossPlace::Damaged => "lines damaged in the node's log",
        LossPlace::Reader => "events lost, this reader was too slow",
    };
    let pod = loss
        .pod
        .as_ref()
        .map(|pod| format!(" ({pod})"))
        .unwrap_or_default();
    format!(
        "{:.3} ----- {} {what}{pod} on {}",
        loss.time, loss.lost, loss.node
    )
}

/// The rule, which names its policy, and the tier where it is not the one that needs no mention.
fn by(decided: &DecidedBy) -> String {
    match decided.tier.as_deref() {
        None | Some("default") => decided.rule.clone(),
        Some(tier) => format!("tier {tier}: {}", decided.rule),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_no_line_of_before_asks_for_the_number_of_the_last() {
        let bounds = |limit, since| Bounds { since, limit };
        assert_eq!(bounds(Some(0), None).query(true), "&limit=1");
        assert_eq!(bounds(Some(7), None).query(true), "&limit=7");
        let second = Timestamp::from_second(1).ok();
        assert_eq!(
            bounds(Some(7), second).query(false),
            "&since=1970-01-01T00:00:01Z"
        );
        assert_eq!(bounds(None, None).query(true), "&since=1970-01-01T00:00:00Z");
    }
}
