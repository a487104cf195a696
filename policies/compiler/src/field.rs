//! What the readers of policy objects share: where they are in an object, what is wrong there, and values that
//! several kinds write in the same way.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use policies_ir::policy::{PortMatch, Selector};

/// What is wrong with a field, and how to put it right.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, thiserror::Error)]
#[error("{field}: {problem}; {fix}")]
pub struct FieldError {
    /// Path within the object, such as `spec.ingress[0].from[1].ipBlock.cidr`.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub fix: String,
}

/// Where in the object the reader is.
#[derive(Clone, Copy)]
pub(crate) enum Path<'a> {
    Root(&'static str),
    Field(&'a Path<'a>, &'static str),
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    pub(crate) const SPEC: Path<'static> = Path::Root("spec");

    pub(crate) fn field(&self, name: &'static str) -> Path<'_> {
        Path::Field(self, name)
    }

    pub(crate) fn index(&self, index: usize) -> Path<'_> {
        Path::Index(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

pub(crate) type Errors = Vec<FieldError>;

pub(crate) fn wrong(
    errors: &mut Errors,
    path: &Path<'_>,
    problem: impl Into<String>,
    fix: impl Into<String>,
) {
    errors.push(FieldError {
        field: path.to_string(),
        problem: problem.into(),
        fix: fix.into(),
    });
}

/// An expression that is not empty, where that is an error.
pub(crate) fn within_limit(
    count: usize,
    limit: usize,
    what: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) -> bool {
    if count > limit {
        let fix = "split them over several rules or policies";
        wrong(
            errors,
            path,
            format!("{count} {what}, at most {limit} are allowed"),
            fix,
        );
    }
    count <= limit
}

pub(crate) fn read_cidr(text: &str, path: &Path<'_>, errors: &mut Errors) -> Option<IpNet> {
    let net = parse_cidr(text);
    if net.is_none() {
        let fix = "write it as 10.0.0.0/8 or 2001:db8::/32, without leading zeros";
        wrong(errors, path, format!("{text:?} is not a CIDR"), fix);
    }
    told(not_mapped(net?, text), path, errors)
}

/// A CIDR, or an address, which is a CIDR of one.
pub(crate) fn read_net(text: &str, path: &Path<'_>, errors: &mut Errors) -> Option<IpNet> {
    told(parse_net(text), path, errors)
}

/// What is wrong with a network, and how to put it right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {fix}")]
pub struct NetError {
    problem: String,
    fix: &'static str,
}

/// A CIDR, or an address, which is a CIDR of one, as objects may have them.
pub fn parse_net(text: &str) -> Result<IpNet, NetError> {
    let net = parse_cidr(text).or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let net = net.ok_or_else(|| NetError {
        problem: format!("{text:?} is neither a CIDR nor an address"),
        fix: "write it as 10.0.0.0/8, 10.0.0.7, 2001:db8::/32 or 2001:db8::7, without leading zeros",
    })?;
    not_mapped(net, text)
}

fn not_mapped(net: IpNet, text: &str) -> Result<IpNet, NetError> {
    if let IpAddr::V6(address) = net.addr()
        && net.prefix_len() >= 96
        && address.to_ipv4_mapped().is_some()
    {
        // In the kernel's tables, IPv4 addresses stand in this range.
        return Err(NetError {
            problem: format!("{text:?} is an IPv4 CIDR in IPv6 form"),
            fix: "write the IPv4 CIDR itself",
        });
    }
    Ok(net.trunc())
}

fn told(net: Result<IpNet, NetError>, path: &Path<'_>, errors: &mut Errors) -> Option<IpNet> {
    net.map_err(|NetError { problem, fix }| wrong(errors, path, problem, fix))
        .ok()
}

/// `IpNet`'s own parser takes leading zeros, which other programs read as octal: 010.0.0.0 would be 8.0.0.0
/// to them. The standard library's parser of addresses refuses them.
fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let digits_only = length.bytes().all(|b| b.is_ascii_digit());
    if !digits_only || (length.starts_with('0') && length != "0") {
        return None;
    }
    IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()
}

pub(crate) fn read_port_number(number: i32, path: &Path<'_>, errors: &mut Errors) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    if port.is_none() {
        let fix = "use a number from 1 to 65535";
        wrong(errors, path, format!("{number} is not a port"), fix);
    }
    port
}

/// `first` to `last`, both of which are ports.
pub(crate) fn read_port_range(
    (first, first_path): (i32, &Path<'_>),
    (last, last_path): (i32, &Path<'_>),
    errors: &mut Errors,
) -> Option<PortMatch> {
    let last = read_port_number(last, last_path, errors);
    let first = read_port_number(first, first_path, errors)?;
    let last = last?;
    if last < first {
        let problem = format!("the last port {last} is below the first {first}");
        wrong(errors, last_path, problem, "swap them");
        return None;
    }
    Some(PortMatch::Range(first, last))
}

/// A label selector of Kubernetes.
pub(crate) fn read_selector(
    selector: &meta::LabelSelector,
    path: &Path<'_>,
    errors: &mut Errors,
) -> Option<Selector> {
    match api::selector::LabelSelector::try_from(selector) {
        Ok(selector) => Some(Selector::Labels(selector)),
        Err(error) => {
            wrong(errors, path, error.to_string(), "correct the selector");
            None
        }
    }
}
