//! Bounded reader of Trivy's JSON report (SchemaVersion 2).
//!
//! Package names, versions and targets come from the image, so they are hostile: every text is cut and
//! stripped of control characters here, before it can reach a terminal or an API object. The image
//! configuration inside the report, which repeats environment variables in clear, is never read.

use api::palisade::{Finding, Severity};
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use crate::coverage::Os;

/// Largest report that is read.
pub const MAX_REPORT_BYTES: usize = 128 << 20;
/// Most findings that are kept; an image past it is refused by what is kept.
pub const MAX_REPORT_FINDINGS: usize = 50_000;
/// What Trivy calls the family of a system that it does not know but whose package list it read.
const NO_FAMILY: &str = "none";
const MAX_RESULTS: usize = 10_000;
const MAX_TEXT_CHARS: usize = 200;

/// What a scan found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Version of the scanner, if it says so.
    pub scanner_version: Option<String>,
    /// Operating system, if the scanner recognised one.
    pub os: Option<Os>,
    /// Packages of the operating system.
    pub os_packages: u32,
    /// Packages of programming languages.
    pub language_packages: u32,
    /// Known vulnerabilities, most severe first.
    pub findings: Vec<Finding>,
    /// Findings past [`MAX_REPORT_FINDINGS`].
    pub findings_dropped: u32,
    /// Findings that the scanner itself suppressed. We give it nothing that could, so any is suspicious.
    pub suppressed: u32,
}

/// Why a report cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Longer than the limit.
    #[error("the scanner's report has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Size of the report.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Not the JSON that Trivy writes.
    #[error("the scanner's report is not valid")]
    Json {
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// A schema that this version does not know.
    #[error("the scanner's report has schema version {version}, expected 2")]
    Schema {
        /// Its version.
        version: u32,
    },
    /// Too many scan targets.
    #[error("the scanner's report has {results} targets, the limit is {limit}")]
    TooManyResults {
        /// Targets in the report.
        results: usize,
        /// The limit.
        limit: usize,
    },
}

impl Report {
    /// Reads a report.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        if bytes.len() > MAX_REPORT_BYTES {
            return Err(ParseError::TooLarge {
                bytes: bytes.len(),
                limit: MAX_REPORT_BYTES,
            });
        }
        let raw: RawReport = serde_json::from_slice(bytes).map_err(|source| ParseError::Json { source })?;
        if raw.schema_version != 2 {
            return Err(ParseError::Schema {
                version: raw.schema_version,
            });
        }
        if raw.results.len() > MAX_RESULTS {
            return Err(ParseError::TooManyResults {
                results: raw.results.len(),
                limit: MAX_RESULTS,
            });
        }
        let os = raw
            .metadata
            .and_then(|metadata| metadata.os)
            .filter(|os| !matches!(os.family.as_str(), "" | NO_FAMILY));
        let mut report = Self {
            scanner_version: raw.trivy.map(|scanner| clean(&scanner.version)),
            os: os.map(|os| Os {
                family: clean(&os.family),
                release: clean(&os.name),
                end_of_life: os.eosl,
            }),
            ..Self::default()
        };
        for result in raw.results {
            let packages = count(result.packages.len());
            match result.class.as_str() {
                "os-pkgs" => report.os_packages = report.os_packages.saturating_add(packages),
                "lang-pkgs" => report.language_packages = report.language_packages.saturating_add(packages),
                _ => {}
            }
            report.suppressed = report.suppressed.saturating_add(count(result.modified.len()));
            let target = clean(&result.target);
            report
                .findings
                .extend(result.vulnerabilities.iter().map(|raw| raw.finding(&target)));
        }
        report.findings.sort_by(|a, b| {
            let key = |finding: &Finding| (finding.vulnerability.clone(), finding.package.clone());
            b.severity.cmp(&a.severity).then_with(|| key(a).cmp(&key(b)))
        });
        report.findings_dropped = count(report.findings.len().saturating_sub(MAX_REPORT_FINDINGS));
        report.findings.truncate(MAX_REPORT_FINDINGS);
        Ok(report)
    }

    /// All packages that were looked at.
    pub fn packages(&self) -> u32 {
        self.os_packages.saturating_add(self.language_packages)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawReport {
    schema_version: u32,
    trivy: Option<RawScanner>,
    metadata: Option<RawMetadata>,
    #[serde(default, deserialize_with = "null_is_empty")]
    results: Vec<RawResult>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawScanner {
    version: String,
}

#[derive(Deserialize)]
struct RawMetadata {
    #[serde(rename = "OS")]
    os: Option<RawOs>,
}

#[derive(Deserialize)]
struct RawOs {
    #[serde(rename = "Family", default)]
    family: String,
    #[serde(rename = "Name", default)]
    name: String,
    #[serde(rename = "EOSL", default)]
    eosl: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawResult {
    #[serde(default)]
    target: String,
    #[serde(default)]
    class: String,
    /// Only counted: `IgnoredAny` takes no memory.
    #[serde(default, deserialize_with = "null_is_empty")]
    packages: Vec<IgnoredAny>,
    #[serde(default, deserialize_with = "null_is_empty")]
    vulnerabilities: Vec<RawVulnerability>,
    #[serde(
        rename = "ExperimentalModifiedFindings",
        default,
        deserialize_with = "null_is_empty"
    )]
    modified: Vec<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawVulnerability {
    #[serde(rename = "VulnerabilityID")]
    vulnerability_id: String,
    #[serde(default)]
    pkg_name: String,
    #[serde(default)]
    installed_version: String,
    #[serde(default)]
    fixed_version: String,
    #[serde(default)]
    severity: String,
    #[serde(default)]
    title: String,
}

impl RawVulnerability {
    fn finding(&self, target: &str) -> Finding {
        Finding {
            vulnerability: clean(&self.vulnerability_id),
            severity: severity(&self.severity),
            package: clean(&self.pkg_name),
            installed: clean(&self.installed_version),
            fixed: Some(clean(&self.fixed_version)).filter(|fixed| !fixed.is_empty()),
            target: target.to_owned(),
            title: clean(&self.title),
            exempted: false,
        }
    }
}

/// A word that we do not know counts as the highest severity: an unknown rating must not let through.
fn severity(word: &str) -> Severity {
    match word {
        "" | "UNKNOWN" => Severity::Unknown,
        "LOW" => Severity::Low,
        "MEDIUM" => Severity::Medium,
        "HIGH" => Severity::High,
        _ => Severity::Critical,
    }
}

/// Cuts a text and replaces what could steer a terminal or break a line.
fn clean(text: &str) -> String {
    let plain = |c: char| {
        if c.is_control() || is_bidi_control(c) {
            '\u{fffd}'
        } else {
            c
        }
    };
    text.chars().take(MAX_TEXT_CHARS).map(plain).collect()
}

/// Characters that reorder the text around them.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Go writes an absent list as `null`.
fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_trivy_writes() {
        // Written by Trivy 0.76.0 over a small root file system with the lab's invented advisories.
        let report = Report::parse(include_bytes!("../testdata/trivy-wolfi.json")).unwrap();
        assert_eq!(report.scanner_version.as_deref(), Some("0.76.0"));
        assert_eq!(report.os.as_ref().unwrap().to_string(), "wolfi 20230201");
        assert_eq!(
            (report.os_packages, report.language_packages, report.suppressed),
            (2, 1, 0)
        );
        let found: Vec<_> = report
            .findings
            .iter()
            .map(|f| (f.severity, f.package.as_str(), f.fixed.as_deref()))
            .collect();
        let expected = [
            (Severity::Critical, "busybox", Some("1.36.1-r99")),
            (Severity::High, "requests", Some("2.99.0")),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn empty_reports_are_empty_not_errors() {
        let report = Report::parse(br#"{"SchemaVersion":2,"Results":null}"#).unwrap();
        assert_eq!(report, Report::default());
    }

    #[test]
    fn other_schemas_and_broken_reports_are_errors() {
        assert!(matches!(
            Report::parse(br#"{"SchemaVersion":3}"#),
            Err(ParseError::Schema { version: 3 })
        ));
        assert!(matches!(Report::parse(b"{}"), Err(ParseError::Json { .. })));
        assert!(matches!(
            Report::parse(br#"{"SchemaVersion":2,"Results":{}}"#),
            Err(ParseError::Json { .. })
        ));
        let deep = [br#"{"SchemaVersion":2,"x":"#.to_vec(), vec![b'['; 100_000]].concat();
        assert!(matches!(Report::parse(&deep), Err(ParseError::Json { .. })));
    }

    #[test]
    fn hostile_names_are_defused_and_unknown_ratings_are_critical() {
        let text = r#"{"SchemaVersion":2,"Results":[{"Target":"t","Vulnerabilities":[
            {"VulnerabilityID":"X\u001b[2J\n","PkgName":"a\u202eb","Severity":"CATASTROPHIC"}]}]}"#;
        let report = Report::parse(text.as_bytes()).unwrap();
        let finding = &report.findings[0];
        assert_eq!(finding.vulnerability, "X\u{fffd}[2J\u{fffd}");
        assert_eq!(finding.package, "a\u{fffd}b");
        assert_eq!(finding.severity, Severity::Critical);
    }
}
