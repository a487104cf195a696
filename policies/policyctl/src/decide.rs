//! `policyctl decide`: verdicts for many flows, from files or from the live cluster.

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    io::{self, BufRead, BufWriter, Write},
    net::IpAddr,
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use policies_compiler::{Answer, Book, ClusterView, FlowEnd, Judge, Question, parse_protocol};
use policies_ir::{
    policy::{PORT_PROTOCOLS, echo_request},
    tables::{DecidedBy, RuleName, Verdict},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    cli::{Connection, DecideArgs},
    cluster,
    learned::{self, Names, Nodes},
    lines::Lines,
    load, output,
};

/// Longest line of a flow: more is no flow.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// Judges every flow; exit code 1 if one of them could not be judged.
pub(crate) async fn run(connection: &Connection, args: &DecideArgs) -> Result<ExitCode> {
    let (view, learned) = if args.filename.is_empty() {
        let view = load::live(connection).await?.view;
        let learned = learn(connection, &view).await?;
        (view, learned)
    } else {
        (load::offline(&args.filename)?.view, Learned::new())
    };
    let books = Books::new(&view, &learned);
    let mut judges = books.judges();
    let mut judge = |flow: &Flow| judges.judge(flow);
    let out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let failed = decide(&mut judge, Lines::open(&args.flows, MAX_LINE_BYTES)?, out)?;
    if failed > 0 {
        output::note(&format!(
            "error: {failed} flows could not be judged; they are denied"
        ));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// What the resolvers of the nodes have learned, or why that is not known.
type Learned = BTreeMap<String, Result<Names, String>>;

/// What is learned on each node that flows may begin at, where some rule asks for it.
async fn learn(connection: &Connection, view: &ClusterView) -> Result<Learned> {
    let mut learned = Learned::new();
    if view.asks_for_names() {
        let client = cluster::connect(connection).await?;
        for node in Nodes::new(view).all() {
            let names = learned::of_node(&client, node).await;
            learned.insert(node.to_owned(), names.map_err(|error| format!("{error:#}")));
        }
    }
    Ok(learned)
}

/// What flows are judged by: one book for all nodes whose resolvers know no names, and one for each of the others, put
/// together when a flow begins there.
struct Books<'a> {
    view: &'a ClusterView,
    nodes: Nodes<'a>,
    learned: &'a Learned,
    unnamed: OnceCell<Book>,
    source_port: OnceCell<u16>,
    of_node: BTreeMap<&'a str, OnceCell<Book>>,
}

impl<'a> Books<'a> {
    fn new(view: &'a ClusterView, learned: &'a Learned) -> Self {
        let of_node = learned.keys().map(|node| (node.as_str(), OnceCell::new()));
        Self {
            view,
            nodes: Nodes::new(view),
            learned,
            unnamed: OnceCell::new(),
            source_port: OnceCell::new(),
            of_node: of_node.collect(),
        }
    }

    fn judges(&self) -> Judges<'_> {
        Judges {
            books: self,
            judges: BTreeMap::new(),
        }
    }

    /// The source port of flows that name none.
    fn source_port(&self) -> u16 {
        *self
            .source_port
            .get_or_init(|| self.book(None).unmeant_source_port())
    }

    /// The node whose names count for a flow, and those names.
    fn names(&self, question: &Question) -> Result<Option<(&'a str, &'a Names)>> {
        if self.learned.is_empty() {
            return Ok(None);
        }
        let node = self.nodes.of(&question.source);
        let Some((node, learned)) = node.and_then(|node| self.learned.get_key_value(node)) else {
            return Ok(None);
        };
        match learned {
            Ok(names) => Ok(Some((node.as_str(), names)).filter(|(_, names)| !names.is_empty())),
            Err(error) => bail!("{error}"),
        }
    }

    fn book(&self, named: Option<(&str, &Names)>) -> &Book {
        let of_node = named.and_then(|(node, names)| Some((self.of_node.get(node)?, names)));
        match of_node {
            None => self.unnamed.get_or_init(|| Book::new(self.view)),
            Some((book, names)) => book.get_or_init(|| {
                let mut view = self.view.clone();
                view.names.clone_from(names);
                Book::new(&view)
            }),
        }
    }
}

/// A judge for each of the books that was needed so far, by node.
struct Judges<'a> {
    books: &'a Books<'a>,
    judges: BTreeMap<Option<&'a str>, Judge<'a>>,
}

impl Judges<'_> {
    fn judge(&mut self, flow: &Flow) -> Result<Answer> {
        let question = &flow.question(|| self.books.source_port())?;
        let named = self.books.names(question)?;
        let judge = self
            .judges
            .entry(named.map(|(node, _)| node))
            .or_insert_with(|| Judge::new(self.books.book(named)));
        Ok(judge.judge(question)?)
    }
}

/// One line out for each line in; how many could not be judged.
fn decide(
    judge: &mut impl FnMut(&Flow) -> Result<Answer>,
    mut flows: Lines<impl BufRead>,
    mut out: impl Write,
) -> Result<usize> {
    let mut failed = 0;
    while let Some(line) = flows.read()? {
        let failure = |error: &anyhow::Error| format!("{}: {error:#}", line.place());
        let judged = match Flow::read(line.text) {
            Ok(mut flow) => {
                let id = flow.id.take();
                match judge(&flow) {
                    Ok(answer) => Judged::new(id, &answer),
                    Err(error) => Judged::failed(id, failure(&error)),
                }
            }
            Err((id, error)) => Judged::failed(id, failure(&error)),
        };
        failed += usize::from(judged.error.is_some());
        output::written(serde_json::to_writer(&mut out, &judged).map_err(io::Error::from))?;
        output::written(out.write_all(b"\n"))?;
    }
    output::written(out.flush())?;
    Ok(failed)
}

/// What a flow is called by who asks, to the letter: a number may be too large for us, and the order of keys may count.
type Id = Option<Box<RawValue>>;

/// One line of the input.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Flow {
    #[serde(default)]
    id: Id,
    src: End,
    dst: End,
    #[serde(default)]
    protocol: Option<Protocol>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    src_port: Option<u16>,
    #[serde(default)]
    icmp_type: Option<u8>,
    #[serde(default)]
    icmp_code: Option<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum End {
    Pod(String),
    Ip(IpAddr),
    Host(String),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "protocol: must be a name or a number from 0 to 255")]
enum Protocol {
    Number(u8),
    Name(String),
}

impl Flow {
    /// The id, as far as there is one, comes with an error too.
    fn read(line: &str) -> Result<Self, (Id, anyhow::Error)> {
        /// Of a line that is no flow.
        #[derive(Deserialize)]
        struct Named {
            #[serde(default)]
            id: Id,
        }
        serde_json::from_str(line).map_err(|error| {
            let named = serde_json::from_str::<Named>(line).ok();
            (named.and_then(|named| named.id), error.into())
        })
    }

    /// What is asked; `source_port` gives the port of flows that name none.
    fn question(&self, source_port: impl FnOnce() -> u16) -> Result<Question> {
        let protocol = match &self.protocol {
            None => policies_ir::policy::TCP,
            Some(Protocol::Number(number)) => *number,
            Some(Protocol::Name(name)) => parse_protocol(name).context("protocol")?,
        };
        let has_ports = PORT_PROTOCOLS.contains(&protocol);
        let port = match echo_request(protocol) {
            Some(echo) => u16::from_be_bytes([self.icmp_type.unwrap_or(echo), self.icmp_code.unwrap_or(0)]),
            None if has_ports => self.port.context("port: must be given for TCP, UDP and SCTP")?,
            // Such packets have no ports that policy could see.
            None => 0,
        };
        Ok(Question {
            source: self.src.resolve().context("src")?,
            destination: self.dst.resolve().context("dst")?,
            protocol,
            source_port: match self.src_port {
                _ if !has_ports => 0,
                Some(port) => port,
                None => source_port(),
            },
            port,
        })
    }
}

impl End {
    fn resolve(&self) -> Result<FlowEnd> {
        Ok(match self {
            Self::Ip(address) => FlowEnd::Address(*address),
            Self::Host(name) => FlowEnd::Host(name.clone()),
            Self::Pod(pod) => {
                let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
                if namespace.is_empty() || name.is_empty() || name.contains('/') {
                    bail!("pod: {pod:?} is not NAMESPACE/NAME");
                }
                FlowEnd::Pod {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                }
            }
        })
    }
}

/// One line of the output.
#[derive(Serialize)]
struct Judged {
    id: Id,
    verdict: &'static str,
    egress: Option<Part>,
    ingress: Option<Part>,
    /// Why there is no answer; the verdict is then a denial.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What one end says.
#[derive(Serialize)]
struct Part {
    verdict: &'static str,
    tier: Option<String>,
    policy: Option<String>,
    rule: Option<u32>,
    by: &'static str,
}

impl Judged {
    fn new(id: Id, answer: &Answer) -> Self {
        Self {
            id,
            verdict: word(answer.verdict),
            egress: answer.egress.as_ref().map(Part::new),
            ingress: answer.ingress.as_ref().map(Part::new),
            error: None,
        }
    }

    fn failed(id: Id, error: String) -> Self {
        Self {
            id,
            verdict: word(Verdict::Deny),
            egress: None,
            ingress: None,
            error: Some(error),
        }
    }
}

impl Part {
    fn new((verdict, decided_by): &(Verdict, DecidedBy)) -> Self {
        let verdict = word(*verdict);
        match decided_by {
            DecidedBy::Builtin(rule) => Self {
                verdict,
                tier: None,
                policy: None,
                rule: None,
                by: rule.word(),
            },
            DecidedBy::Rule(RuleName { tier, policy, rule }) => {
                let profile = tier == RuleName::PROFILE_TIER;
                Self {
                    verdict,
                    tier: (!profile).then(|| tier.clone()),
                    policy: (!policy.is_empty()).then(|| policy.clone()),
                    rule: *rule,
                    by: match rule {
                        _ if profile => "profile",
                        Some(_) => "rule",
                        None => "end-of-tier",
                    },
                }
            }
        }
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use policies_compiler::{Source, load_objects};
    use serde_json::{Value, json};

    use super::*;

    fn question(line: &str) -> Result<Question, String> {
        let flow = Flow::read(line).map_err(|(_, error)| format!("{error:#}"))?;
        flow.question(|| 50000).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn reads_every_form_of_a_flow() {
        let tcp =
            question(r#"{"id":1,"src":{"pod":"a/b"},"dst":{"ip":"192.0.2.1"},"protocol":"TCP","port":80}"#);
        let tcp = tcp.unwrap();
        assert_eq!((tcp.protocol, tcp.port, tcp.source_port), (6, 80, 50000));
        let from = r#"{"src":{"host":"n"},"dst":{"pod":"x"},"protocol":"UDP","port":80,"srcPort":0}"#;
        assert_eq!(question(from).unwrap().source_port, 0);
        let icmp = r#"{"src":{"host":"n"},"dst":{"pod":"x"},"protocol":"ICMP","icmpType":3,"icmpCode":1}"#;
        assert_eq!(question(icmp).unwrap().port, 0x0301);
        let ping = r#"{"src":{"ip":"::1"},"dst":{"ip":"::2"},"protocol":"icmpv6"}"#;
        assert_eq!(question(ping).unwrap().port, 0x8000);
        let gre = r#"{"src":{"ip":"10.0.0.1"},"dst":{"ip":"10.0.0.2"},"protocol":47,"port":5}"#;
        let gre = question(gre).unwrap();
        assert_eq!((gre.port, gre.source_port), (0, 0));
    }

    #[test]
    fn says_what_is_wrong_with_a_flow() {
        let error = |line| question(line).unwrap_err();
        let no_port = r#"{"src":{"pod":"a/b"},"dst":{"pod":"c/d"},"protocol":"UDP"}"#;
        assert!(error(no_port).contains("port"), "{}", error(no_port));
        let misspelt = r#"{"src":{"pod":"a/b"},"dst":{"pod":"c/d"},"prot":"UDP","port":1}"#;
        assert!(error(misspelt).contains("prot"), "{}", error(misspelt));
        let flow = Flow::read(r#"{"id":"f7","src":{"pod":"a//b"},"dst":{"pod":"c/d"},"port":1}"#);
        assert!(flow.is_ok_and(|flow| flow.question(|| 0).is_err()));
        let misread = Flow::read(r#"{"id":"f7","src":{"pod":"a/b"},"dst":{"pot":"c/d"},"port":1}"#);
        assert!(misread.is_err_and(|(id, _)| id.is_some_and(|id| id.get() == r#""f7""#)));
    }

    #[test]
    fn an_id_comes_back_to_the_letter() {
        let ids = [
            "12345678901234567890123",
            "1e2",
            "0.10",
            r#"{"z": 1, "a": [2, 1.0]}"#,
            r#""\u0041""#,
            "null",
        ];
        let flow = |id: &str| {
            format!(r#"{{"id": {id}, "src": {{"ip": "::1"}}, "dst": {{"ip": "::2"}}, "port": 1}}"#)
        };
        let broken = |id: &str| format!(r#"{{"prot": 1, "id": {id}}}"#);
        let lines: Vec<String> = ids.iter().flat_map(|id| [flow(id), broken(id)]).collect();
        let mut out = Vec::new();
        let mut judge = |_: &Flow| bail!("not asked");
        let failed = decide(
            &mut judge,
            Lines::new(lines.join("\n").as_bytes(), "flows", MAX_LINE_BYTES),
            &mut out,
        )
        .unwrap();
        assert_eq!(failed, 2 * ids.len());
        let out = String::from_utf8(out).unwrap();
        for (line, id) in out.lines().zip(ids.iter().flat_map(|id| [id, id])) {
            assert!(line.starts_with(&format!(r#"{{"id":{id},"verdict""#)), "{line}");
        }
        assert_eq!(out.lines().count(), 2 * ids.len());
    }

    #[test]
    fn names_are_those_that_the_node_learned_where_the_flow_begins() {
        let pod = |name: &str, node: &str, address: &str| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                "spec": {"nodeName": node, "containers": [{"name": "c"}]}, "status": {"podIP": address}})
        };
        let node = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        let policy = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
            "metadata": {"name": "by-name"}, "spec": {"selector": "all()", "types": ["Egress"],
            "egress": [{"action": "Allow", "destination": {"domains": ["api.example.com"]}}]}});
        let objects = [
            node("n1"),
            node("n2"),
            node("n3"),
            pod("knows", "n1", "10.244.0.1"),
            pod("knows-other", "n2", "10.244.0.2"),
            pod("untold", "n3", "10.244.0.3"),
            policy,
        ];
        let origin = "here";
        let loaded = load_objects(objects.iter().map(|object| Source { origin, object })).unwrap();
        let names = |address: &str| {
            Names::from([(
                address.parse().unwrap(),
                BTreeSet::from(["api.example.com".to_owned()]),
            )])
        };
        let learned = Learned::from([
            ("n1".to_owned(), Ok(names("203.0.113.9"))),
            ("n2".to_owned(), Ok(names("203.0.113.10"))),
            ("n3".to_owned(), Err("node n3 does not tell".to_owned())),
        ]);
        let books = Books::new(&loaded.view, &learned);
        let mut judges = books.judges();
        let flows = ["knows", "knows-other", "untold"].map(|pod| {
            let dst = json!({"ip": "203.0.113.9"});
            json!({"id": pod, "src": {"pod": pod}, "dst": dst, "port": 443}).to_string()
        });
        let flows = flows.join("\n");
        let mut out = Vec::new();
        let mut judge = |flow: &Flow| judges.judge(flow);
        let failed = decide(
            &mut judge,
            Lines::new(flows.as_bytes(), "flows", MAX_LINE_BYTES),
            &mut out,
        )
        .unwrap();
        assert_eq!(failed, 1);
        let lines = String::from_utf8(out).unwrap();
        let lines: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let verdicts: Vec<&str> = lines.iter().filter_map(|line| line["verdict"].as_str()).collect();
        assert_eq!(verdicts, ["allow", "deny", "deny"]);
        assert_eq!(lines[2]["error"], "flows, line 3: node n3 does not tell");
    }
}
