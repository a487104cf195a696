//! Unit tests of policies: cases with an expected verdict, and which rules they cover.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::IpAddr,
};

use policies_compiler::{FlowEnd, FlowError, parse_protocol};
use policies_ir::policy::{DomainMatch, ICMP_PROTOCOLS, PORT_PROTOCOLS, echo_request};
use serde::{Deserialize, Serialize};

use crate::{
    difference::{addresses_of, parts},
    model::{FAMILIES, Model},
    packet::{Packet, Place, Ruling},
    picture::escaped,
    region::{Region, version},
    rules::{RuleDirection, RuleKey, all_rules},
    space::{Point, carries, protocol_name},
};

/// What stands before the name of a destination.
const BY_NAME: &str = "dns:";
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
    /// Where the flow starts: `namespace/pod`, `host/NAME` of a node or host endpoint, or an address.
    pub from: String,
    /// Where it goes: the same, or `dns:NAME`: wherever outside a resolver says that the name leads, or
    /// with `dns:NAME@ADDRESS` there.
    pub to: String,
    /// Destination port; for ICMP the type, or `TYPE.CODE`, an echo request where there is none.
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
    // Names that cases ask about are told apart from those that rules ask for.
    let asked: Vec<String> = cases
        .iter()
        .filter_map(|case| Some(by_name(&case.to)?.0))
        .collect();
    let names = model.names().with(asked.iter().map(String::as_str));
    let again = (names != *model.names())
        .then(|| Model::with_names(model.cluster().clone(), model.policies().clone(), names));
    let model = again.as_ref().unwrap_or(model);
    let mut covered = BTreeSet::new();
    let mut results = Vec::new();
    for case in cases {
        let (result, judged) = run_case(model, case);
        for packet in &judged {
            // What one end lets pass and the other denies is decided by the one that denies.
            let key = |direction, ruling: &Option<Ruling>| {
                let ruling = ruling
                    .as_ref()
                    .filter(|ruling| ruling.allowed == packet.allowed)?;
                let rule = ruling.by.clone();
                Some(RuleKey { direction, rule })
            };
            covered.extend(key(RuleDirection::Egress, &packet.egress));
            covered.extend(key(RuleDirection::Ingress, &packet.ingress));
        }
        results.push(result);
    }
    let all: BTreeSet<RuleKey> = all_rules(model.policies()).into_iter().collect();
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
        let mut uses: BTreeMap<&str, usize> = BTreeMap::new();
        for case in &self.cases {
            *uses.entry(&case.name).or_default() += 1;
        }
        for (number, case) in (1..).zip(&self.cases) {
            let mut name = escaped(&case.name);
            // Readers know cases by their names.
            if uses.get(case.name.as_str()).is_some_and(|uses| *uses > 1) {
                name.push_str(&format!(" (case {number})"));
            }
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

/// What came of a case, and every packet that was judged for it.
fn run_case(model: &Model, case: &Case) -> (CaseResult, Vec<Packet>) {
    let (failure, shown, judged) = match judge(model, case) {
        Err(problem) => (Some(problem), None, Vec::new()),
        Ok(judged) => {
            let wrong = judged
                .iter()
                .find_map(|packet| Some((mismatch(case, packet)?, packet)));
            match wrong {
                Some((mismatch, packet)) => {
                    let hint = hint(model, case, packet).unwrap_or_default();
                    (Some(mismatch + &hint), Some(packet.clone()), judged)
                }
                None => (None, judged.first().cloned(), judged),
            }
        }
    };
    let name = case.name.clone().unwrap_or_else(|| {
        let source_port = case.source_port.map(|port| format!(" from source port {port}"));
        let source_port = source_port.unwrap_or_default();
        match &shown {
            Some(packet) => format!("{} to {}, {}{source_port}", case.from, case.to, packet.service),
            None => format!("{} to {}{}{source_port}", case.from, case.to, as_written(case)),
        }
    });
    let result = CaseResult {
        name,
        expected: case.expect,
        failure,
        packet: shown,
    };
    (result, judged)
}

/// The service of a case that cannot be judged.
fn as_written(case: &Case) -> String {
    let text = |value: &PortText| match value {
        PortText::Number(number) => number.to_string(),
        PortText::Text(text) => text.clone(),
    };
    let parts = case.protocol.iter().chain(&case.port).map(text);
    let parts: Vec<String> = parts.collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!(", {}", parts.join(" ")),
    }
}

/// What else might have been meant.
fn hint(model: &Model, case: &Case, packet: &Packet) -> Option<String> {
    if let Some((name, address)) = by_name(&case.to) {
        let elsewhere = format!(
            ", at {}; `{BY_NAME}{name}@ADDRESS` is about one address",
            packet.to.address
        );
        return address.is_none().then_some(elsewhere);
    }
    // An address that is given has no names, and a rule may ask for one.
    let address: IpAddr = case.to.parse().ok()?;
    let (from, to) = (
        model.find(packet.from.workload.as_ref()?)?,
        address.to_canonical(),
    );
    if model.owner(to).is_some() {
        return None;
    }
    let point = point(case).ok()?;
    let mut named = (0..model.names().sets().len()).map(|names| Place {
        names: Some(names),
        ..Place::new(None, to)
    });
    let found = named.find(|to| {
        let packet = model.packet(Place::new(Some(from), packet.from.address), *to, point);
        packet.is_some_and(|packet| mismatch(case, &packet).is_none())
    });
    let names = model.names_text(found?.names?)?;
    Some(format!(
        "; it would be as expected if a resolver had given the name {names} for the address, which `{BY_NAME}NAME@{to}` says"
    ))
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

/// What becomes of the flow: of one packet, or for a name of one to each address outside that policy tells apart.
fn judge(model: &Model, case: &Case) -> Result<Vec<Packet>, String> {
    let point = point(case)?;
    let (from, to) = (places(model, &case.from)?, destinations(model, &case.to)?);
    let same_family = |from: &Place, to: &Place| from.address.is_ipv4() == to.address.is_ipv4();
    let pairs = to
        .iter()
        .filter_map(|to| Some((*from.iter().find(|from| same_family(from, to))?, *to)));
    let pairs: Vec<(Place, Place)> = pairs.collect();
    if pairs.is_empty() {
        return Err("the two ends have no address family in common".to_owned());
    }
    let carried = |(_, to): &&(Place, Place)| carries(version(to.address), point.protocol);
    let wanted = if by_name(&case.to).is_some() {
        pairs.len()
    } else {
        1
    };
    let carried: Vec<&(Place, Place)> = pairs.iter().filter(carried).take(wanted).collect();
    if carried.is_empty() {
        let protocol = protocol_name(point.protocol);
        return Err(format!(
            "the two ends have no addresses in common that carry {protocol}"
        ));
    }
    let packets = carried
        .into_iter()
        .map(|(from, to)| model.packet(*from, *to, point));
    let packets: Option<Vec<Packet>> = packets.collect();
    packets.ok_or_else(|| "neither end is a pod or a host endpoint, so no policy judges the flow".to_owned())
}

/// A name, in the form in which resolvers tell it, and the address that it leads to, if one is given.
fn by_name(text: &str) -> Option<(String, Option<&str>)> {
    let text = text.strip_prefix(BY_NAME)?;
    let (name, address) = match text.split_once('@') {
        Some((name, address)) => (name, Some(address)),
        None => (text, None),
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    Some((name, address))
}

/// Where a case's destination may be: IPv4 first.
fn destinations(model: &Model, text: &str) -> Result<Vec<Place>, String> {
    let Some((name, address)) = by_name(text) else {
        return places(model, text);
    };
    if name.contains('*') || DomainMatch::parse(&name).is_none() {
        return Err(format!(
            "to: {name:?} is not a name that a resolver could be asked for"
        ));
    }
    let names = model.names().position(&name);
    let at = |address: IpAddr| Place {
        names,
        ..Place::new(None, address)
    };
    if let Some(address) = address {
        let parsed: IpAddr = address
            .parse()
            .map_err(|_no_address| format!("to: {address:?} is no address"))?;
        let parsed = parsed.to_canonical();
        return match model.owner(parsed) {
            Some(owner) => Err(format!("to: {address} is the address of {}", model.name(owner))),
            None => Ok(vec![at(parsed)]),
        };
    }
    let internet = Region::internet();
    let regions: Vec<Region> = parts(model, names)
        .into_iter()
        .map(|part| part.region.intersect(&internet))
        .collect();
    let examples = FAMILIES.into_iter().flat_map(|version| {
        let regions = regions.iter();
        regions.filter_map(move |region| region.example(version))
    });
    Ok(examples.map(at).collect())
}

/// Where a case's end may be, which is not given by a DNS name: IPv4 first, and the lowest address, as for `decide`.
fn places(model: &Model, text: &str) -> Result<Vec<Place>, String> {
    let end: FlowEnd = text
        .parse()
        .map_err(|error: policies_compiler::ExplainError| error.to_string())?;
    let name = match end {
        FlowEnd::Address(address) => return Ok(vec![model.place(address)]),
        FlowEnd::Host(name) => return hosts(model, name),
        FlowEnd::Pod { namespace, name } => format!("{namespace}/{name}"),
    };
    let member = model.find(&name).ok_or_else(|| {
        format!("there is no pod {name}; use NAMESPACE/POD of one that exists, host/NAME, or an address")
    })?;
    let addresses = FAMILIES
        .into_iter()
        .flat_map(|version| addresses_of(model, member, version));
    let addresses: BTreeSet<IpAddr> = addresses.collect();
    let at = |address| Place::new(Some(member), address);
    Ok(addresses.into_iter().map(at).collect())
}

/// Where a node or host endpoint may be: IPv4 first.
fn hosts(model: &Model, name: String) -> Result<Vec<Place>, String> {
    match model.host(&name) {
        None => Err(FlowError::UnknownHost(name).to_string()),
        Some(places) if places.is_empty() => Err(format!(
            "no object tells an address of node {name}; give it by its address"
        )),
        Some(places) => Ok(places),
    }
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
        (None, _) => echo_request(protocol).map_or(0, |kind| u16::from_be_bytes([kind, 0])),
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
