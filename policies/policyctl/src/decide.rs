//! `policyctl decide`: verdicts for many flows, from files or from the live cluster.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    net::IpAddr,
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use policies_compiler::{Answer, Book, FlowEnd, Judge, Question, parse_protocol};
use policies_ir::{
    policy::{ICMP, ICMPV6, PORT_PROTOCOLS},
    tables::{DecidedBy, RuleName, Verdict},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    cli::{Connection, DecideArgs},
    load, output,
};

/// Longest line of a flow: more is no flow.
const MAX_LINE: usize = 64 << 10;
/// Type of the echo request that an ICMP flow without a type stands for.
const ECHO_REQUEST: u8 = 8;
/// The same for ICMPv6.
const ECHO_REQUEST_V6: u8 = 128;

/// Judges every flow; exit code 1 if one of them could not be judged.
pub(crate) async fn run(connection: &Connection, args: &DecideArgs) -> Result<ExitCode> {
    let loaded = if args.filename.is_empty() {
        load::live(connection).await?
    } else {
        load::offline(&args.filename)?
    };
    let book = Book::new(&loaded.view);
    let mut judge = Judge::new(&book);
    let out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let failed = if args.flows == Path::new("-") {
        decide(&mut judge, io::stdin().lock(), "standard input", out)?
    } else {
        let name = args.flows.display().to_string();
        let file = File::open(&args.flows).with_context(|| format!("cannot read {name}"))?;
        decide(&mut judge, BufReader::with_capacity(1 << 16, file), &name, out)?
    };
    if failed > 0 {
        output::note(&format!(
            "error: {failed} flows could not be judged; they are denied"
        ));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// One line out for each line in; how many could not be judged.
fn decide(judge: &mut Judge<'_>, mut flows: impl BufRead, name: &str, mut out: impl Write) -> Result<usize> {
    let mut line = String::new();
    let mut failed = 0;
    for number in 1.. {
        line.clear();
        let read = flows
            .read_line(&mut line)
            .with_context(|| format!("cannot read {name}, line {number}"))?;
        if read == 0 {
            break;
        }
        if line.len() > MAX_LINE {
            bail!("{name}, line {number}: is longer than {MAX_LINE} bytes");
        }
        if line.trim().is_empty() {
            continue;
        }
        let judged = match Flow::read(&line) {
            Ok((id, question)) => match judge.judge(&question) {
                Ok(answer) => Judged::new(id, &answer),
                Err(error) => Judged::failed(id, format!("{name}, line {number}: {error}")),
            },
            Err((id, error)) => Judged::failed(id, format!("{name}, line {number}: {error:#}")),
        };
        failed += usize::from(judged.error.is_some());
        serde_json::to_writer(&mut out, &judged).context("cannot write to standard output")?;
        out.write_all(b"\n").context("cannot write to standard output")?;
    }
    out.flush().context("cannot write to standard output")?;
    Ok(failed)
}

/// One line of the input.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Flow {
    #[serde(default)]
    id: Value,
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
#[serde(untagged)]
enum Protocol {
    Number(u8),
    Name(String),
}

impl Flow {
    /// The id, as far as there is one, comes with an error too.
    fn read(line: &str) -> Result<(Value, Question), (Value, anyhow::Error)> {
        let flow: Self = serde_json::from_str(line).map_err(|error| {
            let id = serde_json::from_str::<Value>(line)
                .ok()
                .and_then(|mut flow| Some(flow.get_mut("id")?.take()));
            (id.unwrap_or_default(), error.into())
        })?;
        match flow.question() {
            Ok(question) => Ok((flow.id, question)),
            Err(error) => Err((flow.id, error)),
        }
    }

    fn question(&self) -> Result<Question> {
        let protocol = match &self.protocol {
            None => policies_ir::policy::TCP,
            Some(Protocol::Number(number)) => *number,
            Some(Protocol::Name(name)) => parse_protocol(name).context("protocol")?,
        };
        let has_ports = PORT_PROTOCOLS.contains(&protocol);
        let port = match protocol {
            ICMP | ICMPV6 => {
                let echo = if protocol == ICMP {
                    ECHO_REQUEST
                } else {
                    ECHO_REQUEST_V6
                };
                u16::from_be_bytes([self.icmp_type.unwrap_or(echo), self.icmp_code.unwrap_or(0)])
            }
            _ if has_ports => self.port.context("port: must be given for TCP, UDP and SCTP")?,
            // Such packets have no ports that policy could see.
            _ => 0,
        };
        Ok(Question {
            source: self.src.resolve().context("src")?,
            destination: self.dst.resolve().context("dst")?,
            protocol,
            // Without one, a port that no rule means.
            source_port: if has_ports { self.src_port.unwrap_or(0) } else { 0 },
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
    id: Value,
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
    fn new(id: Value, answer: &Answer) -> Self {
        Self {
            id,
            verdict: word(answer.verdict),
            egress: answer.egress.as_ref().map(Part::new),
            ingress: answer.ingress.as_ref().map(Part::new),
            error: None,
        }
    }

    fn failed(id: Value, error: String) -> Self {
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
    use super::*;

    fn question(line: &str) -> Result<Question, String> {
        Flow::read(line)
            .map(|(_, question)| question)
            .map_err(|(_, error)| format!("{error:#}"))
    }

    #[test]
    fn reads_every_form_of_a_flow() {
        let tcp =
            question(r#"{"id":1,"src":{"pod":"a/b"},"dst":{"ip":"192.0.2.1"},"protocol":"TCP","port":80}"#);
        let tcp = tcp.unwrap();
        assert_eq!((tcp.protocol, tcp.port, tcp.source_port), (6, 80, 0));
        let icmp = r#"{"src":{"host":"n"},"dst":{"pod":"x"},"protocol":"ICMP","icmpType":3,"icmpCode":1}"#;
        assert_eq!(question(icmp).unwrap().port, 0x0301);
        let ping = r#"{"src":{"ip":"::1"},"dst":{"ip":"::2"},"protocol":"icmpv6"}"#;
        assert_eq!(question(ping).unwrap().port, 0x8000);
        let gre = r#"{"src":{"ip":"10.0.0.1"},"dst":{"ip":"10.0.0.2"},"protocol":47,"port":5}"#;
        assert_eq!(question(gre).unwrap().port, 0);
    }

    #[test]
    fn says_what_is_wrong_with_a_flow() {
        let error = |line| question(line).unwrap_err();
        let no_port = r#"{"src":{"pod":"a/b"},"dst":{"pod":"c/d"},"protocol":"UDP"}"#;
        assert!(error(no_port).contains("port"), "{}", error(no_port));
        let misspelt = r#"{"src":{"pod":"a/b"},"dst":{"pod":"c/d"},"prot":"UDP","port":1}"#;
        assert!(error(misspelt).contains("prot"), "{}", error(misspelt));
        let (id, _) =
            Flow::read(r#"{"id":"f7","src":{"pod":"a//b"},"dst":{"pod":"c/d"},"port":1}"#).unwrap_err();
        assert_eq!(id, "f7");
    }
}
