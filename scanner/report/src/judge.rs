//! Holds a report against image policies.
//!
//! An image must satisfy every policy that applies to its namespace; if none does, the default policy
//! judges. A finding at or above a threshold refuses; otherwise any doubt about whether the scan checked
//! anything makes it inconclusive; only then does it pass.

use std::collections::BTreeMap;

use api::{
    Digest, ImageRef,
    palisade::{Exemption, Finding, ImagePolicy, ImagePolicySpec, OnInconclusive, ScanVerdict, Severity},
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    Report,
    coverage::{DbMetadata, Os},
};

/// How far in the future a database may claim to be from, for clocks that differ.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_hours(1);
/// Findings that a refusal lists; more would hide the point.
const SHOWN_FINDINGS: usize = 10;
const DEFAULT_POLICY: &str = "default";

/// The image in question.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Reference as it was asked for.
    pub image: &'a ImageRef,
    /// Namespace of the pod.
    pub namespace: &'a str,
}

/// Circumstances of the scan.
#[derive(Debug, Clone, Copy)]
pub struct ScanContext<'a> {
    /// The time.
    pub now: Timestamp,
    /// The database that was used.
    pub db: &'a DbMetadata,
    /// Whether the database has advisories for the release that the report names.
    pub release_in_db: bool,
}

/// What follows from a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The judgement.
    pub verdict: ScanVerdict,
    /// Whether the image may run: a pass, or inconclusive where every policy admits that.
    pub admitted: bool,
    /// Why not a clean pass, one sentence each, the most important first.
    pub reasons: Vec<String>,
    /// All findings, most severe first, exempted ones marked.
    pub findings: Vec<Finding>,
    /// Number of findings by severity, exempted ones included.
    pub counts: BTreeMap<Severity, u32>,
    /// Hash of the policies that judged.
    pub policy_hash: Digest,
    /// Their names.
    pub policies: Vec<String>,
}

/// Judges a report.
pub fn judge(
    report: &Report,
    subject: Subject<'_>,
    policies: &[ImagePolicy],
    context: ScanContext<'_>,
) -> Judgement {
    let applicable = applicable(policies, subject.namespace);
    let doubts = doubts(report, &applicable, context);
    let mut findings = report.findings.clone();
    let mut refusals: Vec<String> = registry_refusal(subject, policies).into_iter().collect();
    let mut exempted = vec![false; findings.len()];
    let mut refused = vec![false; findings.len()];

    for (name, spec) in &applicable {
        let mut blocking = Vec::new();
        for (index, finding) in findings.iter().enumerate() {
            if finding.severity < spec.severity_threshold || (spec.ignore_unfixed && finding.fixed.is_none())
            {
                continue;
            }
            match spec
                .exemptions
                .iter()
                .any(|exemption| exempts(exemption, finding, subject, context.now))
            {
                true => exempted[index] = true,
                false => blocking.push(index),
            }
        }
        if !blocking.is_empty() {
            refusals.push(refusal(
                name,
                spec,
                blocking.iter().map(|index| &findings[*index]),
                blocking.len(),
            ));
        }
        for index in blocking {
            refused[index] = true;
        }
    }
    for (index, finding) in findings.iter_mut().enumerate() {
        finding.exempted = exempted[index] && !refused[index];
    }

    let (verdict, admitted) = match (refusals.is_empty(), doubts.is_empty()) {
        (false, _) => (ScanVerdict::Refused, false),
        (true, false) => {
            let admit = applicable
                .iter()
                .all(|(_, spec)| spec.inconclusive == OnInconclusive::Admit);
            (ScanVerdict::Inconclusive, admit)
        }
        (true, true) => (ScanVerdict::Pass, true),
    };
    let mut counts = BTreeMap::new();
    for finding in &findings {
        *counts.entry(finding.severity).or_default() += 1;
    }
    Judgement {
        verdict,
        admitted,
        reasons: refusals.into_iter().chain(doubts).collect(),
        findings,
        counts,
        policy_hash: policy_hash(&applicable),
        policies: applicable.into_iter().map(|(name, _)| name).collect(),
    }
}

/// The policies that judge images of a namespace, by name; the default policy if none does.
pub fn applicable(policies: &[ImagePolicy], namespace: &str) -> Vec<(String, ImagePolicySpec)> {
    let applies =
        |spec: &ImagePolicySpec| spec.namespaces.is_empty() || spec.namespaces.iter().any(|n| n == namespace);
    let mut applicable: Vec<_> = policies
        .iter()
        .filter(|policy| applies(&policy.spec))
        .map(|policy| {
            (
                policy.metadata.name.clone().unwrap_or_default(),
                policy.spec.clone(),
            )
        })
        .collect();
    if applicable.is_empty() {
        applicable.push((DEFAULT_POLICY.to_owned(), ImagePolicySpec::default()));
    }
    applicable.sort_by(|a, b| a.0.cmp(&b.0));
    applicable
}

/// SHA-256 of the canonical JSON of named policies: keys sorted, no spaces.
pub fn policy_hash(applicable: &[(String, ImagePolicySpec)]) -> Digest {
    // `json!` sorts keys, and both halves of the pair always serialise.
    Digest::of(serde_json::json!(applicable).to_string().as_bytes())
}

/// Why the image's registry or repository is not allowed; asked before anything is fetched.
pub fn registry_refusal(subject: Subject<'_>, policies: &[ImagePolicy]) -> Option<String> {
    let name = subject.image.name();
    applicable(policies, subject.namespace)
        .into_iter()
        .find_map(|(policy, spec)| {
            let allowed = spec.allowed_registries.is_empty()
                || spec.allowed_registries.iter().any(|prefix| {
                    let rest = name.strip_prefix(prefix.trim_end_matches('/'));
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                });
            (!allowed).then(|| {
                let list = spec.allowed_registries.join(", ");
                format!("{name} is not among the registries that policy {policy:?} allows ({list})")
            })
        })
}

/// Reasons to believe that the scan checked nothing, or not enough.
fn doubts(
    report: &Report,
    applicable: &[(String, ImagePolicySpec)],
    context: ScanContext<'_>,
) -> Vec<String> {
    let mut doubts = Vec::new();
    match &report.os {
        None => doubts.push(
            "the scanner recognised no operating system, so no system packages were checked".to_owned(),
        ),
        Some(os) => doubts.extend(os_doubts(os, report, context)),
    }
    let updated_at = context.db.updated_at;
    let age = context.now.duration_since(updated_at);
    if age < -CLOCK_TOLERANCE {
        doubts.push(format!(
            "the vulnerability database claims to be from the future ({updated_at})"
        ));
    }
    let strictest = applicable.iter().min_by_key(|(_, spec)| spec.max_db_age_hours);
    if let Some((policy, spec)) = strictest
        && age > SignedDuration::from_hours(i64::from(spec.max_db_age_hours))
    {
        doubts.push(format!(
            "the vulnerability database is {} hours old ({updated_at}), policy {policy:?} allows {}",
            age.as_hours(),
            spec.max_db_age_hours
        ));
    }
    if report.suppressed > 0 {
        doubts.push(format!(
            "the scanner suppressed {} findings without being told to",
            report.suppressed
        ));
    }
    if report.findings_dropped > 0 {
        doubts.push(format!(
            "{} findings were too many to be read",
            report.findings_dropped
        ));
    }
    doubts
}

fn os_doubts(os: &Os, report: &Report, context: ScanContext<'_>) -> Vec<String> {
    let mut doubts = Vec::new();
    if !context.release_in_db {
        doubts.push(format!("the vulnerability database has no advisories for {os}"));
    }
    if os.end_of_life {
        doubts.push(format!(
            "{os} is past its end of life, so new vulnerabilities are no longer listed for it"
        ));
    }
    if report.os_packages == 0 {
        doubts.push(format!(
            "the image claims to be {os}, but lists no installed packages"
        ));
    }
    doubts
}

fn exempts(exemption: &Exemption, finding: &Finding, subject: Subject<'_>, now: Timestamp) -> bool {
    let Exemption {
        vulnerability,
        package,
        image,
        expires,
        reason: _,
    } = exemption;
    now < *expires
        && *vulnerability == finding.vulnerability
        && package.as_ref().is_none_or(|package| *package == finding.package)
        && image.as_ref().is_none_or(|image| *image == subject.image.name())
}

fn refusal<'a>(
    policy: &str,
    spec: &ImagePolicySpec,
    blocking: impl Iterator<Item = &'a Finding>,
    total: usize,
) -> String {
    let shown: Vec<_> = blocking.take(SHOWN_FINDINGS).map(describe).collect();
    let more = match total.saturating_sub(SHOWN_FINDINGS) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let findings = if total == 1 {
        "1 finding"
    } else {
        &format!("{total} findings")
    };
    let threshold = spec.severity_threshold;
    format!(
        "{findings} of severity {threshold} or above (policy {policy:?}): {}{more}",
        shown.join("; ")
    )
}

fn describe(finding: &Finding) -> String {
    let Finding {
        vulnerability,
        severity,
        package,
        installed,
        ..
    } = finding;
    let fix = match &finding.fixed {
        Some(fixed) => format!("fixed in {fixed}"),
        None => "no fixed version".to_owned(),
    };
    format!("{vulnerability} ({severity}) in {package} {installed}, {fix}")
}

#[cfg(test)]
mod tests;
