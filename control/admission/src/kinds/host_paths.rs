//! Grants of paths of the nodes: what nobody should grant is refused.

use api::host_paths::{HostPathGrant, covers, is_plain};
use control_wire::Cause;
use serde_json::Value;

use crate::{Problems, syntax};

/// What the kernel says there is not files, and what is in it changes the node.
const NEVER: &[&str] = &["/proc", "/sys", "/dev", "/run/palisade", "/boot"];
/// Namespaces and accounts of one grant.
const MAX_NAMES: usize = 256;

pub(super) fn check(object: &Value, problems: &mut Problems) {
    let grant: HostPathGrant = match serde_json::from_value(object.clone()) {
        Ok(grant) => grant,
        Err(error) => return problems.push(Cause::invalid("spec", "", error)),
    };
    let spec = grant.spec;
    let path = spec.path.as_str();
    let why = "must be an absolute path without empty parts, '.' and '..'";
    problems.require(is_plain(path), "spec.path", path, why);
    let why = "must name something below the root: the whole node is not granted";
    problems.require(path != "/", "spec.path", path, why);
    let guarded = NEVER.iter().find(|never| covers(never, path));
    let why = format!("must not be below any of {}", NEVER.join(", "));
    problems.require(guarded.is_none(), "spec.path", path, &why);
    if spec.namespaces.is_empty() {
        let why = "a grant is for pods of namespaces; name them, there is no word for all";
        problems.push(Cause::required("spec.namespaces", why));
    }
    for (field, names) in [
        ("spec.namespaces", &spec.namespaces),
        ("spec.serviceAccounts", &spec.service_accounts),
    ] {
        problems.require(
            names.len() <= MAX_NAMES,
            field,
            names.len(),
            "must have at most 256 names",
        );
        for (index, name) in names.iter().enumerate() {
            let field = format!("{field}[{index}]");
            problems.require(syntax::is_subdomain(name), &field, name, syntax::SUBDOMAIN);
        }
    }
}
