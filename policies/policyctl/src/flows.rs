//! `policyctl flows`: what the kernel decided, and which rule decided.
//!
//! First what the nodes have written down, then, with `-f`, what comes after the last line of it: each node numbers
//! its lines, so nothing is shown twice and nothing falls between.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use anyhow::{Context, Result, bail};
use api::flow::{
    DecidedBy, EndpointRef, FlowDirection, FlowEnd, FlowEvent, FlowKind, FlowLine, FlowLoss, FlowVerdict,
    LossPlace,
};
use futures::{
    AsyncBufReadExt, Stream, StreamExt, TryStreamExt,
    stream::{BoxStream, SelectAll},
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

/// How long a node that ended its stream is left alone.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// A line as the node wrote it, and what it says.
pub(crate) struct Told {
    pub(crate) text: String,
    pub(crate) line: FlowLine,
}

/// Prints the flows of one node or of all.
pub(crate) async fn run(connection: &Connection, args: &FlowsArgs) -> Result<()> {
    let client = cluster::connect(connection).await?;
    let nodes = nodes(&client, args.node.as_deref()).await?;
    let bounds = Bounds {
        since: args.since,
        limit: args.limit.or(args.since.is_none().then_some(RECENT)),
    };
    let mut told = Vec::new();
    let mut next = Vec::new();
    let mut silent = Silent::default();
    for node in nodes {
        match history(&client, &node, &bounds, &args.filter).await {
            Ok((mut of_node, last)) => {
                told.append(&mut of_node);
                next.push((node, last));
            }
            // What the others say is worth having.
            Err(error) => silent.note(node, &error),
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
    if args.follow && !next.is_empty() {
        follow(&client, args, next).await?;
    }
    silent.into_result()
}

/// Nodes that did not answer: each is told of at once, and all at the end.
#[derive(Default)]
pub(crate) struct Silent(Vec<String>);

impl Silent {
    pub(crate) fn note(&mut self, node: String, error: &anyhow::Error) {
        output::note(&format!("node {node}: no answer: {error:#}"));
        self.0.push(node);
    }

    /// An error that names them, if there are any.
    pub(crate) fn into_result(self) -> Result<()> {
        match self.0.is_empty() {
            true => Ok(()),
            false => bail!(
                "nodes that did not answer, so that what they know is missing: {}",
                self.0.join(", ")
            ),
        }
    }
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

/// What a node has written down and the filter wants, and the number of the last line there is.
pub(crate) async fn history(
    client: &Client,
    node: &str,
    bounds: &Bounds,
    filter: &FlowFilter,
) -> Result<(Vec<Told>, Option<u64>)> {
    // The node counts lines, not those that are wanted.
    let limit = bounds.limit.filter(|_| filter.is_empty());
    let since = bounds.since.or(limit.is_none().then_some(Timestamp::UNIX_EPOCH));
    let mut query = String::new();
    query.extend(limit.map(|limit| format!("&limit={limit}")));
    query.extend(since.map(|since| format!("&since={since}")));
    let mut lines = lines(client, node, &format!("follow=false{query}")).await?;
    let (mut told, mut last) = (VecDeque::new(), None);
    if bounds.limit == Some(0) {
        // Nothing is wanted but where the log ends.
        let mut newest = self::lines(client, node, "follow=false&limit=1").await?;
        while let Some(line) = newest.try_next().await? {
            last = line.line.sequence().or(last);
        }
        return Ok((Vec::new(), last));
    }
    while let Some(line) = lines.try_next().await? {
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

/// Shows what each node writes from here on, for ever. A node whose stream ends is asked again for what came after the last
/// line that it sent; what it no longer has by then it tells of as lost.
async fn follow(client: &Client, args: &FlowsArgs, nodes: Vec<(String, Option<u64>)>) -> Result<()> {
    let streams = nodes.into_iter().map(|(node, last)| {
        let begin = match (last, args.since) {
            (Some(last), _) => format!("after={last}"),
            (None, Some(since)) => format!("since={since}"),
            (None, None) => "after=0".to_owned(),
        };
        let following = Following {
            client: client.clone(),
            node,
            begin,
            last,
            open: None,
        };
        futures::stream::unfold(following, |mut following| async {
            let told = following.next().await;
            Some((told, following))
        })
        .boxed()
    });
    let mut all: SelectAll<_> = streams.collect();
    while let Some(told) = all.next().await {
        if wanted(&args.filter, &told.line) {
            show(args, &told)?;
        }
    }
    Ok(())
}

/// One node's log as it grows.
struct Following {
    client: Client,
    node: String,
    /// Where to begin as long as the node has sent nothing.
    begin: String,
    last: Option<u64>,
    open: Option<BoxStream<'static, Result<Told>>>,
}

impl Following {
    /// The next line, however often the node has to be asked for it.
    async fn next(&mut self) -> Told {
        loop {
            let ended = match self.step().await {
                Ok(Some(told)) => {
                    self.last = told.line.sequence().or(self.last);
                    return told;
                }
                Ok(None) => "the node ended the stream".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            self.open = None;
            output::note(&format!("node {}: {ended}; asking again", self.node));
            tokio::time::sleep(ASK_AGAIN_AFTER).await;
        }
    }

    async fn step(&mut self) -> Result<Option<Told>> {
        let stream = match &mut self.open {
            Some(stream) => stream,
            None => {
                let begin = match self.last {
                    Some(last) => format!("after={last}"),
                    None => self.begin.clone(),
                };
                let query = format!("follow=true&{begin}");
                self.open
                    .insert(lines(&self.client, &self.node, &query).await?.boxed())
            }
        };
        stream.try_next().await
    }
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
