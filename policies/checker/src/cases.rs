//! Unit tests of policies: cases with an expected verdict, and which rules they cover.

use std::{collections::BTreeSet, fmt::Write, net::IpAddr};

use policies_compiler::parse_protocol;
use policies_ir::policy::{ICMP_PROTOCOLS, PORT_PROTOCOLS};
use serde::{Deserialize, Serialize};

use crate::{
    difference::addresses_of,
    model::{FAMILIES, Model},
    packet::{Packet, Place, Ruling},
    picture::escaped,
    rules::{RuleDirection, RuleKey, all_rules},
    space::Point,
};

/// Source port of a case that names none: the first of those that systems pick for their clients.
const SOURCE_PORT: u16 = 49152;

/// A file of cases.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaseFile {
    /// The cases.
    pub cases: Vec<Case>,
}

/// One flow and what should become of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Case {
    /// For people; without it, the flow names the case.
    #[serde(default)]
    pub name: Option<String>,
    /// Where the flow starts: `namespace/pod` or an address.
    pub from: String,
    /// Where it goes: `namespace/pod` or an address.
    pub to: String,
    /// Destination port; for ICMP the type, or `TYPE.CODE`.
    #[serde(default)]
    pub port: Option<PortText>,
    /// Protocol by name or number; TCP where there is none.
    #[serde(default)]
    pub protocol: Option<PortText>,
    /// Source port.
    #[serde(default)]
    pub source_port: Option<u16>,
    /// What should become of it.
    pub expect: Expected,
    /// Rule that should decide at one end, in the words of flow events.
    #[serde(default)]
    pub rule: Option<String>,
}

/// A number, or text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
#[expect(missing_docs, reason = "each variant is what its name says")]
pub enum PortText {
    Number(u16),
    Text(String),
}

/// What should become of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// It passes.
    Allow,
    /// It does not.
    Deny,
}

/// What came of all cases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaseReport {
    /// Case by case.
    pub cases: Vec<CaseResult>,
    /// How many failed.
    pub failed: usize,
    /// Rules that decided at least one case.
    pub covered: BTreeSet<RuleKey>,
    /// Rules that decided none.
    pub uncovered: BTreeSet<RuleKey>,
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaseResult {
    /// Its name.
    pub name: String,
    /// What was expected.
    pub expected: Expected,
    /// Why it failed; absent if it passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The flow and what became of it; absent if it could not be judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet: Option<Packet>,
}

/// Judges every case. One that cannot be judged, because it names a pod that does not exist or a port that is none, has
/// failed.
pub fn run_cases(model: &Model, cases: &[Case]) -> CaseReport {
    let results: Vec<CaseResult> = cases.iter().map(|case| run_case(model, case)).collect();
    let all: BTreeSet<RuleKey> = all_rules(model.policies()).into_iter().collect();
    let mut covered = BTreeSet::new();
    for packet in results.iter().filter_map(|result| result.packet.as_ref()) {
        let key = |direction, ruling: &Option<Ruling>| {
            let rule = ruling.as_ref()?.by.clone();
            Some(RuleKey { direction, rule })
        };
        covered.extend(key(RuleDirection::Egress, &packet.egress));
        covered.extend(key(RuleDirection::Ingress, &packet.ingress));
    }
    CaseReport {
        failed: results.iter().filter(|result| result.failure.is_some()).count(),
        uncovered: all.difference(&covered).cloned().collect(),
        covered: all.intersection(&covered).cloned().collect(),
        cases: results,
    }
}

impl CaseReport {
    /// The report in the form that continuous integration reads.
    pub fn junit(&self) -> String {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let (total, failed) = (self.cases.len(), self.failed);
        // Writing to a string does not fail.
        let mut line = |text: String| writeln!(xml, "{text}").unwrap_or_default();
        line(format!("<testsuites tests=\"{total}\" failures=\"{failed}\">"));
        line(format!(
            "  <testsuite name=\"policies\" tests=\"{total}\" failures=\"{failed}\">"
        ));
        for case in &self.cases {
            let name = escaped(&case.name);
            match &case.failure {
                None => line(format!("    <testcase classname=\"policies\" name=\"{name}\"/>")),
                Some(failure) => {
                    line(format!("    <testcase classname=\"policies\" name=\"{name}\">"));
                    line(format!("      <failure message=\"{}\"/>", escaped(failure)));
                    line("    </testcase>".to_owned());
                }
            }
        }
        let covered = self.covered.len();
        let rules = covered + self.uncovered.len();
        line(format!(
            "    <system-out>{covered} of {rules} rules decided a case"
        ));
        for RuleKey { direction, rule } in &self.uncovered {
            line(format!("never: {} ({})", escaped(rule), direction.word()));
        }
        line("    </system-out>".to_owned());
        line("  </testsuite>".to_owned());
        line("</testsuites>".to_owned());
        xml
    }
}

fn run_case(model: &Model, case: &Case) -> CaseResult {
    let packet = judge(model, case);
    let name = match (&case.name, &packet) {
        (Some(name), _) => name.clone(),
        (None, Ok(packet)) => format!("{} to {}, {}", case.from, case.to, packet.service),
        (None, Err(_)) => format!("{} to {}", case.from, case.to),
    };
    let failure = match &packet {
        Err(problem) => Some(problem.clone()),
        Ok(packet) => mismatch(case, packet),
    };
    CaseResult {
        name,
        expected: case.expect,
        failure,
        packet: packet.ok(),
    }
}

fn mismatch(case: &Case, packet: &Packet) -> Option<String> {
    let rulings = packet.rulings();
    let expected = case.expect == Expected::Allow;
    if packet.allowed != expected {
        let word = |allowed| if allowed { "allowed" } else { "denied" };
        let (expected, got) = (word(expected), word(packet.allowed));
        return Some(format!("expected {expected}, is {got}: {rulings}"));
    }
    let rule = case.rule.as_ref()?;
    // Of a denied flow, only what denied it counts.
    let mut sides = packet.egress.iter().chain(&packet.ingress);
    let decides = sides.any(|ruling| ruling.by == *rule && ruling.allowed == packet.allowed);
    (!decides).then(|| format!("expected {rule:?} to decide: {rulings}"))
}

fn judge(model: &Model, case: &Case) -> Result<Packet, String> {
    let point = point(case)?;
    let (from, to) = (places(model, &case.from)?, places(model, &case.to)?);
    let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
    let mut same_family = pairs.filter(|(from, to)| from.address.is_ipv4() == to.address.is_ipv4());
    let (from, to) = same_family
        .next()
        .ok_or("the two ends have no address family in common")?;
    let packet = model.packet(from, to, point);
    packet.ok_or_else(|| "neither end is a pod, so no policy judges the flow".to_owned())
}

/// Where a case's end may be: IPv4 first.
fn places(model: &Model, text: &str) -> Result<Vec<Place>, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(vec![model.place(address.to_canonical())]);
    }
    let name = match text.contains('/') {
        true => text.to_owned(),
        false => format!("default/{text}"),
    };
    let member = model.find(&name).ok_or_else(|| {
        format!("there is no pod {name}; use NAMESPACE/POD of one that exists, or an address")
    })?;
    let addresses = FAMILIES
        .into_iter()
        .flat_map(|version| addresses_of(model, member, version));
    let member = Some(member);
    Ok(addresses.map(|address| Place::new(member, address)).collect())
}

fn point(case: &Case) -> Result<Point, String> {
    let text = |value: &PortText| match value {
        PortText::Number(number) => number.to_string(),
        PortText::Text(text) => text.clone(),
    };
    let port = case.port.as_ref().map(text);
    // `443/TCP` says both at once, as on the command line.
    let (port, of_port) = match port.as_deref().and_then(|port| port.split_once('/')) {
        Some((port, protocol)) => (Some(port.to_owned()), Some(protocol.to_owned())),
        None => (port, None),
    };
    let protocol = match (case.protocol.as_ref().map(text), of_port) {
        (Some(_), Some(_)) => return Err("the protocol is given twice: in port and in protocol".to_owned()),
        (Some(protocol), None) | (None, Some(protocol)) => protocol,
        (None, None) => "TCP".to_owned(),
    };
    let protocol = parse_protocol(&protocol).map_err(|error| error.to_string())?;
    let has_ports = PORT_PROTOCOLS.contains(&protocol);
    let number = match (port.as_deref(), ICMP_PROTOCOLS.contains(&protocol)) {
        (Some(port), true) => {
            let (kind, code) = port.split_once('.').unwrap_or((port, "0"));
            let byte = |text: &str| text.parse::<u8>().ok();
            let bytes = byte(kind).zip(byte(code));
            let (kind, code) =
                bytes.ok_or_else(|| format!("port: {port:?} is no TYPE or TYPE.CODE of ICMP"))?;
            u16::from_be_bytes([kind, code])
        }
        (Some(port), false) if has_ports => port
            .parse()
            .map_err(|_no_number| format!("port: {port:?} is no port"))?,
        (Some(_), false) => return Err(format!("port: protocol {protocol} has no ports")),
        (None, _) if has_ports => return Err("port: is missing".to_owned()),
        (None, _) => 0,
    };
    Ok(Point {
        protocol,
        source_port: match has_ports {
            true => case.source_port.unwrap_or(SOURCE_PORT),
            false => 0,
        },
        port: number,
    })
}
