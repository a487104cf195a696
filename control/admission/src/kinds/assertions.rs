//! Policy assertions: a sentence that can be read, and what happens to writes that would break it. Whether it holds
//! depends on the cluster, and is the API server's to find out.

use api::annotations::ENFORCEMENT;
use control_wire::Cause;
use policies_checker::assertion;
use serde_json::Value;

use crate::Problems;

/// Longest sentence, in bytes.
const MAX_ASSERTION: usize = 4096;

pub(super) fn check(object: &Value, problems: &mut Problems) {
    const FIELD: &str = "spec.assertion";
    let text = object["spec"]["assertion"].as_str().unwrap_or_default();
    if text.trim().is_empty() {
        let why = "say what must hold, such as: no pod in ns(pci) reaches internet";
        problems.push(Cause::required(FIELD, why));
    } else if text.len() > MAX_ASSERTION {
        problems.push(Cause::too_long(FIELD, MAX_ASSERTION));
    } else if let Err(error) = assertion::parse(text) {
        let why = format!("column {}: {}", error.column, error.problem);
        problems.push(Cause::invalid(FIELD, text, why));
    }
    let annotations = &object["metadata"]["annotations"];
    if let Some(enforcement) = annotations[ENFORCEMENT].as_str()
        && !matches!(enforcement, "block" | "warn")
    {
        let field = format!("metadata.annotations[{ENFORCEMENT}]");
        problems.push(Cause::not_supported(field, enforcement, &["block", "warn"]));
    }
}
