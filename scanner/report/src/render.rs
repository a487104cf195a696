//! The outcome of a scan for people (a message, a table) and for tools (JSON, SARIF).

use std::fmt::Write;

use api::palisade::{Finding, ImageScan, ScanVerdict, Severity};
use serde_json::{Value, json};

const SARIF_SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";
/// Longest refusal: it travels in an HTTP status message and an event.
const MAX_MESSAGE_CHARS: usize = 4000;

/// Everything there is to say about one scan.
#[derive(Debug, Clone, Copy)]
pub struct Outcome<'a> {
    /// The record.
    pub scan: &'a ImageScan,
    /// All findings; the record holds only the worst.
    pub findings: &'a [Finding],
    /// Whether the image may run.
    pub admitted: bool,
}

/// One paragraph that says what happened to the image and why.
pub fn message(scan: &ImageScan, admitted: bool) -> String {
    let verb = match (scan.status.verdict, admitted) {
        (ScanVerdict::Pass, _) => "passed the scan",
        (ScanVerdict::Refused, _) => "was refused",
        (ScanVerdict::Inconclusive, true) => "is admitted although the scan was inconclusive",
        (ScanVerdict::Inconclusive, false) => "was refused because the scan was inconclusive",
    };
    let mut text = format!("image {} ({}) {verb}", scan.spec.image, scan.spec.digest);
    if !scan.status.reasons.is_empty() {
        text.push_str(": ");
        text.push_str(&scan.status.reasons.join(". "));
    }
    match text.char_indices().nth(MAX_MESSAGE_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// A table with one line per finding, and a summary.
pub fn table(outcome: Outcome<'_>) -> String {
    let status = &outcome.scan.status;
    let mut text = format!("{}\n", message(outcome.scan, outcome.admitted));
    let os = status.os.as_deref().unwrap_or("not recognised");
    line(
        &mut text,
        format_args!(
            "system {os}, {} packages, scanner {}, database of {}",
            status.packages, status.scanner, status.db_updated_at
        ),
    );
    if outcome.findings.is_empty() {
        text.push_str("no known vulnerabilities\n");
        return text;
    }
    let header = [
        "VULNERABILITY",
        "SEVERITY",
        "PACKAGE",
        "INSTALLED",
        "FIXED IN",
        "TITLE",
    ]
    .map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(outcome.findings.iter().map(|finding| {
        [
            finding.vulnerability.clone(),
            format!(
                "{}{}",
                finding.severity,
                if finding.exempted { " (exempted)" } else { "" }
            ),
            finding.package.clone(),
            finding.installed.clone(),
            finding.fixed.clone().unwrap_or_else(|| "-".to_owned()),
            finding.title.clone(),
        ]
    }));
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    text.push('\n');
    for row in &rows {
        let cells: Vec<_> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        line(&mut text, format_args!("{}", cells.join("  ").trim_end()));
    }
    text
}

/// The record with all findings.
pub fn json(outcome: Outcome<'_>) -> Value {
    let mut scan = json!(outcome.scan);
    scan["status"]["findings"] = json!(outcome.findings);
    scan["status"]["findingsOmitted"] = json!(0);
    json!({ "admitted": outcome.admitted, "message": message(outcome.scan, outcome.admitted), "scan": scan })
}

/// SARIF 2.1.0: one rule per vulnerability, one result per affected package. Doubts about the scan become
/// notifications of the tool, and `executionSuccessful` is false when it was inconclusive.
pub fn sarif(outcome: Outcome<'_>) -> Value {
    let scan = outcome.scan;
    let mut rules: Vec<&Finding> = Vec::new();
    let mut rule_of = std::collections::BTreeMap::new();
    for finding in outcome.findings {
        rule_of.entry(finding.vulnerability.as_str()).or_insert_with(|| {
            rules.push(finding);
            rules.len() - 1
        });
    }
    let results: Vec<Value> = outcome
        .findings
        .iter()
        .map(|finding| sarif_result(scan, finding, rule_of[finding.vulnerability.as_str()]))
        .collect();
    let inconclusive = scan.status.verdict == ScanVerdict::Inconclusive;
    let notifications: Vec<Value> = match inconclusive {
        true => scan
            .status
            .reasons
            .iter()
            .map(|r| json!({ "level": "error", "message": { "text": r } }))
            .collect(),
        false => Vec::new(),
    };
    json!({
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "palisade",
                "version": env!("CARGO_PKG_VERSION"),
                "informationUri": "https://palisade.dev",
                "rules": rules.iter().map(|finding| sarif_rule(finding)).collect::<Vec<_>>(),
            }},
            "invocations": [{
                "executionSuccessful": !inconclusive,
                "endTimeUtc": scan.status.scanned_at.to_string(),
                "toolExecutionNotifications": notifications,
            }],
            "results": results,
            "properties": {
                "image": scan.spec.image,
                "digest": scan.spec.digest,
                "verdict": scan.status.verdict,
                "scanner": scan.status.scanner,
                "databaseUpdatedAt": scan.status.db_updated_at.to_string(),
            },
        }],
    })
}

fn sarif_rule(finding: &Finding) -> Value {
    let title = if finding.title.is_empty() {
        &finding.vulnerability
    } else {
        &finding.title
    };
    json!({
        "id": finding.vulnerability,
        "shortDescription": { "text": title },
        "defaultConfiguration": { "level": sarif_level(finding.severity) },
        "properties": { "security-severity": security_severity(finding.severity), "tags": ["vulnerability", "security"] },
    })
}

fn sarif_result(scan: &ImageScan, finding: &Finding, rule: usize) -> Value {
    let fix = finding
        .fixed
        .as_ref()
        .map_or("there is no fixed version".to_owned(), |f| {
            format!("fixed in {f}")
        });
    let text = format!(
        "{} {} has {}: {fix}",
        finding.package, finding.installed, finding.vulnerability
    );
    // Spaces and brackets of a target are not allowed in a URI; the digest names the artifact exactly.
    let mut result = json!({
        "ruleId": finding.vulnerability,
        "ruleIndex": rule,
        "level": sarif_level(finding.severity),
        "message": { "text": text },
        "locations": [{
            "physicalLocation": { "artifactLocation": { "uri": format!("oci:{}", scan.spec.digest) } },
            "logicalLocations": [{ "name": finding.package, "fullyQualifiedName": format!("{}/{}", finding.target, finding.package) }],
        }],
        "partialFingerprints": {
            "package/v1": format!("{}:{}:{}", finding.vulnerability, finding.package, finding.installed),
        },
    });
    if finding.exempted {
        result["suppressions"] = json!([{ "kind": "external", "status": "accepted" }]);
    }
    result
}

fn sarif_level(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical | Severity::High => "error",
        Severity::Medium => "warning",
        Severity::Low | Severity::Unknown => "note",
    }
}

/// Middle of the CVSS v3 band of each rating, as code-scanning viewers sort by.
fn security_severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical => "9.5",
        Severity::High => "8.0",
        Severity::Medium => "5.5",
        Severity::Low => "2.0",
        Severity::Unknown => "0.0",
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _infallible = writeln!(text, "{arguments}");
}

#[cfg(test)]
mod tests {
    use api::{
        Digest,
        palisade::{API_VERSION, ImageScanSpec, ImageScanStatus},
    };
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn scan(verdict: ScanVerdict, reasons: &[&str]) -> ImageScan {
        let digest = Digest::of(b"image");
        let time = "2026-06-01T00:00:00Z".parse().unwrap();
        ImageScan {
            api_version: API_VERSION.into(),
            kind: "ImageScan".into(),
            metadata: ObjectMeta {
                name: Some(api::palisade::image_scan_name(&digest)),
                ..ObjectMeta::default()
            },
            spec: ImageScanSpec {
                image: "127.0.0.1:5000/lab/app:1".into(),
                digest,
            },
            status: ImageScanStatus {
                verdict,
                reasons: reasons.iter().map(|r| (*r).to_owned()).collect(),
                counts: [(Severity::Critical, 1)].into(),
                findings: Vec::new(),
                findings_omitted: 2,
                os: Some("wolfi 20230201".into()),
                packages: 2,
                db_updated_at: time,
                db_hash: digest,
                policy_hash: digest,
                scanner: "trivy 0.76.0".into(),
                scanner_hash: digest,
                scanned_at: time,
            },
        }
    }

    fn findings() -> Vec<Finding> {
        let finding = |package: &str, severity, fixed: Option<&str>, exempted| Finding {
            vulnerability: "CVE-2099-0001".into(),
            severity,
            package: package.into(),
            installed: "1.0".into(),
            fixed: fixed.map(Into::into),
            target: "layout (wolfi 20230201)".into(),
            title: "Lab: flaw".into(),
            exempted,
        };
        vec![
            finding("busybox", Severity::Critical, Some("1.1"), false),
            finding("musl", Severity::Low, None, true),
        ]
    }

    #[test]
    fn messages_say_what_happened_and_stay_bounded() {
        let text = message(&scan(ScanVerdict::Inconclusive, &["nothing was checked"]), false);
        assert!(
            text.ends_with("was refused because the scan was inconclusive: nothing was checked"),
            "{text}"
        );
        let long = "x".repeat(MAX_MESSAGE_CHARS * 2);
        assert!(message(&scan(ScanVerdict::Refused, &[&long]), false).len() <= MAX_MESSAGE_CHARS + 3);
    }

    #[test]
    fn the_table_lines_up() {
        let (scan, findings) = (scan(ScanVerdict::Refused, &[]), findings());
        let text = table(Outcome {
            scan: &scan,
            findings: &findings,
            admitted: false,
        });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[3],
            "VULNERABILITY  SEVERITY        PACKAGE  INSTALLED  FIXED IN  TITLE"
        );
        assert_eq!(
            lines[4],
            "CVE-2099-0001  CRITICAL        busybox  1.0        1.1       Lab: flaw"
        );
        assert_eq!(
            lines[5],
            "CVE-2099-0001  LOW (exempted)  musl     1.0        -         Lab: flaw"
        );
    }

    #[test]
    fn json_has_all_findings() {
        let (scan, findings) = (scan(ScanVerdict::Refused, &[]), findings());
        let value = json(Outcome {
            scan: &scan,
            findings: &findings,
            admitted: false,
        });
        assert_eq!(value["scan"]["status"]["findings"].as_array().unwrap().len(), 2);
        assert_eq!(value["scan"]["status"]["findingsOmitted"], 0);
        assert_eq!(value["admitted"], false);
    }

    #[test]
    fn sarif_has_one_rule_per_vulnerability_and_marks_exemptions() {
        let (scan, findings) = (scan(ScanVerdict::Inconclusive, &["doubt"]), findings());
        let value = sarif(Outcome {
            scan: &scan,
            findings: &findings,
            admitted: false,
        });
        let run = &value["runs"][0];
        assert_eq!(value["version"], "2.1.0");
        assert_eq!(run["tool"]["driver"]["rules"].as_array().unwrap().len(), 1);
        assert_eq!(run["results"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&run["results"][1]["ruleIndex"], &run["results"][1]["level"]),
            (&json!(0), &json!("note"))
        );
        assert_eq!(run["results"][1]["suppressions"][0]["status"], "accepted");
        assert!(run["results"][0].get("suppressions").is_none());
        assert_eq!(run["invocations"][0]["executionSuccessful"], false);
        assert_eq!(
            run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"],
            "doubt"
        );
    }
}
