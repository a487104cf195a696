//! Palisade's own kinds, `palisade.dev/v1alpha1`. Field names are camel case, unknown fields are errors.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::{Digest, annotations};

/// `apiVersion` of these kinds.
pub const API_VERSION: &str = "palisade.dev/v1alpha1";

/// What an image must satisfy before a pod with it is admitted. Cluster-scoped. An image must satisfy
/// every policy whose `namespaces` match; without any policy, [`ImagePolicySpec::default`] judges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImagePolicy {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Always `ImagePolicy`.
    pub kind: String,
    /// Object metadata.
    pub metadata: ObjectMeta,
    /// The conditions.
    pub spec: ImagePolicySpec,
}

/// Conditions of an [`ImagePolicy`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ImagePolicySpec {
    /// Namespaces that this policy judges; empty means all.
    pub namespaces: Vec<String>,
    /// Findings of this severity and above refuse the image.
    pub severity_threshold: Severity,
    /// Whether findings without a fixed version are let through.
    pub ignore_unfixed: bool,
    /// `host[:port]` or `host[:port]/repository-prefix` of allowed images; empty means all.
    pub allowed_registries: Vec<String>,
    /// What happens to an image of which the scan checked nothing.
    pub inconclusive: OnInconclusive,
    /// Oldest acceptable vulnerability database, in hours since its `UpdatedAt`.
    pub max_db_age_hours: u32,
    /// Findings that are let through for a while.
    pub exemptions: Vec<Exemption>,
}

impl Default for ImagePolicySpec {
    fn default() -> Self {
        Self {
            namespaces: Vec::new(),
            severity_threshold: Severity::High,
            ignore_unfixed: false,
            allowed_registries: Vec::new(),
            inconclusive: OnInconclusive::Refuse,
            max_db_age_hours: 7 * 24,
            exemptions: Vec::new(),
        }
    }
}

/// What happens to an image of which the scan checked nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnInconclusive {
    /// The pod is refused.
    Refuse,
    /// The pod is admitted and the scan says so.
    Admit,
}

/// One finding that is let through until `expires`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exemption {
    /// Vulnerability id, such as `CVE-2026-0001`.
    pub vulnerability: String,
    /// Package it is limited to; absent means any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// `registry/repository` it is limited to; absent means any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// From this moment on the exemption no longer counts.
    pub expires: Timestamp,
    /// Why, for the reader of the report.
    pub reason: String,
}

/// Severity of a vulnerability, ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Severity {
    /// Not rated; judged like the lowest.
    Unknown,
    /// Low.
    Low,
    /// Medium.
    Medium,
    /// High.
    High,
    /// Critical.
    Critical,
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Unknown => "UNKNOWN",
            Self::Low => "LOW",
            Self::Medium => "MEDIUM",
            Self::High => "HIGH",
            Self::Critical => "CRITICAL",
        })
    }
}

/// A sandbox for pods of its namespace, which name it by [`crate::annotations::SANDBOX_PROFILE`]. It starts
/// from a preset and takes away from it; nothing in it adds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SandboxProfile {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Always `SandboxProfile`.
    pub kind: String,
    /// Object metadata.
    pub metadata: ObjectMeta,
    /// What is taken away.
    #[serde(default)]
    pub spec: SandboxProfileSpec,
}

/// What a [`SandboxProfile`] takes away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SandboxProfileSpec {
    /// What it starts from.
    #[serde(default)]
    pub preset: SandboxPreset,
    /// What becomes of a container on a node whose kernel lacks a part of its sandbox.
    #[serde(default)]
    pub enforcement: SandboxEnforcement,
    /// A seccomp profile as the OCI runtime specification writes it. A call is allowed that it and the preset
    /// allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<SeccompProfile>,
    /// Capabilities that a container keeps of those that it would have, such as `CAP_CHOWN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
    /// Ports of TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<SandboxPorts>,
    /// Files, device commands and scopes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock: Option<SandboxLandlock>,
    /// Landlock interface that the node must have at least.
    #[serde(
        default,
        rename = "minimumLandlockABI",
        skip_serializing_if = "Option::is_none"
    )]
    pub minimum_landlock_abi: Option<u32>,
}

/// The sandboxes that always exist; no [`SandboxProfile`] has their names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxPreset {
    /// The baseline, where what `strict` would refuse is logged.
    Audit,
    /// What every pod gets.
    #[default]
    Baseline,
    /// What is written is never executed.
    Strict,
}

impl SandboxProfileSpec {
    /// A preset from which nothing is taken.
    pub fn of(preset: SandboxPreset) -> Self {
        Self {
            preset,
            ..Self::default()
        }
    }
}

/// What becomes of a container on a node whose kernel lacks a part of its sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxEnforcement {
    /// It does not start.
    #[default]
    Required,
    /// It starts without what Landlock of the node lacks, and its pod says so. Never below what the node takes.
    BestEffort,
}

/// What Landlock takes away; absent means what the preset leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SandboxLandlock {
    /// Files and directories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<SandboxPaths>,
    /// Devices, or directories of them, that take commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ioctl: Option<Vec<String>>,
    /// What does not leave the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<SandboxScope>>,
}

/// Files and directories with what is beneath them, by what is done with them; a list that is absent limits nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SandboxPaths {
    /// What is read, beside what the other two name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<Vec<String>>,
    /// What is written, created, renamed and removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<Vec<String>>,
    /// What is executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execute: Option<Vec<String>>,
}

/// What does not leave a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SandboxScope {
    /// Connections to abstract unix sockets that others made.
    AbstractUnixSockets,
    /// Signals.
    Signals,
}

/// Their names.
pub const SANDBOX_PRESETS: &[&str] = &["audit", "baseline", "strict"];

/// Ports of TCP that a sandbox leaves; absent means what the preset leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SandboxPorts {
    /// What may be bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<Vec<u16>>,
    /// What may be connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Vec<u16>>,
}

/// A seccomp profile with the field names of the OCI runtime specification, Docker and Podman. What the
/// fields mean is decided by the agent, which refuses what it cannot enforce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "as in the specification")]
pub struct SeccompProfile {
    pub default_action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architectures: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch_map: Option<Vec<SeccompArchitecture>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_metadata: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syscalls: Option<Vec<SeccompRule>>,
}

/// An architecture of a [`SeccompProfile`] and those that come with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "as in the specification")]
pub struct SeccompArchitecture {
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_architectures: Option<Vec<String>>,
}

/// One rule of a [`SeccompProfile`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "as in the specification")]
pub struct SeccompRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
    pub action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<SeccompArgument>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub includes: Option<SeccompCircumstances>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excludes: Option<SeccompCircumstances>,
}

/// One comparison of a [`SeccompRule`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "as in the specification")]
pub struct SeccompArgument {
    pub index: u32,
    pub value: u64,
    #[serde(default)]
    pub value_two: u64,
    pub op: String,
}

/// When a [`SeccompRule`] counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "as in the specification")]
pub struct SeccompCircumstances {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caps: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arches: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_kernel: Option<String>,
}

/// Record of one scan of one image digest. Cluster-scoped, named by [`image_scan_name`]. Written by the
/// gate only; the newest scan of a digest replaces the one before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageScan {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Always `ImageScan`.
    pub kind: String,
    /// Object metadata.
    pub metadata: ObjectMeta,
    /// What was scanned.
    pub spec: ImageScanSpec,
    /// What came of it.
    pub status: ImageScanStatus,
}

/// What was scanned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageScanSpec {
    /// Image reference as it was asked for.
    pub image: String,
    /// Digest of the platform manifest that was verified and scanned.
    pub digest: Digest,
}

/// What came of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageScanStatus {
    /// The judgement under the policy named by `policy_hash`.
    pub verdict: ScanVerdict,
    /// Why, one sentence each, most severe first; empty for a pass.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Number of findings by severity, before exemptions.
    #[serde(default)]
    pub counts: BTreeMap<Severity, u32>,
    /// The worst findings, at most [`MAX_FINDINGS`].
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// How many findings did not fit.
    #[serde(default)]
    pub findings_omitted: u32,
    /// Operating system that the scanner recognised, such as `alpine 3.20.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Packages that were checked.
    pub packages: u32,
    /// `UpdatedAt` of the vulnerability database.
    pub db_updated_at: Timestamp,
    /// SHA-256 of the database's metadata and file identity: the cache key beside the digest.
    pub db_hash: Digest,
    /// SHA-256 of the canonical JSON of the policies that judged.
    pub policy_hash: Digest,
    /// Scanner name and version, such as `trivy 0.76.0`.
    pub scanner: String,
    /// SHA-256 of the scanner binary.
    pub scanner_hash: Digest,
    /// When the scan ended.
    pub scanned_at: Timestamp,
}

/// Findings kept in an [`ImageScan`]; more would bloat the store, the full report is `policyctl scan`'s.
pub const MAX_FINDINGS: usize = 100;

/// Judgement of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScanVerdict {
    /// Checked, nothing at or above the threshold.
    Pass,
    /// Checked, and refused.
    Refused,
    /// Nothing, or not enough, was checked.
    Inconclusive,
}

impl std::fmt::Display for ScanVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pass => "Pass",
            Self::Refused => "Refused",
            Self::Inconclusive => "Inconclusive",
        })
    }
}

/// One vulnerability in one package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Finding {
    /// Vulnerability id.
    pub vulnerability: String,
    /// Its severity.
    pub severity: Severity,
    /// Package name.
    pub package: String,
    /// Installed version.
    pub installed: String,
    /// First fixed version, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed: Option<String>,
    /// Scan target, such as `layout (alpine 3.20.1)`.
    #[serde(default)]
    pub target: String,
    /// One line about it.
    #[serde(default)]
    pub title: String,
    /// Whether an exemption lets it through.
    #[serde(default)]
    pub exempted: bool,
}

/// A sentence about who may reach whom, which must hold whatever the policies are. Cluster-scoped. The language is
/// described in `docs/checker.md`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyAssertion {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Always `PolicyAssertion`.
    pub kind: String,
    /// Object metadata.
    pub metadata: ObjectMeta,
    /// The sentence.
    pub spec: PolicyAssertionSpec,
}

/// What a [`PolicyAssertion`] says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyAssertionSpec {
    /// The sentence, such as `no pod in ns(pci) reaches internet`.
    pub assertion: String,
}

impl PolicyAssertion {
    /// What happens to a write that would break it. An annotation that says neither of the two blocks; admission
    /// refuses such a one.
    pub fn enforcement(&self) -> Enforcement {
        let annotations = self.metadata.annotations.as_ref();
        let said = annotations.and_then(|all| all.get(annotations::ENFORCEMENT));
        match said.map(String::as_str) {
            Some("warn") => Enforcement::Warn,
            _ => Enforcement::Block,
        }
    }
}

/// What happens to a write that would break an assertion; see [`annotations::ENFORCEMENT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// It is refused, also when it cannot be judged in time.
    Block,
    /// It is stored, and whoever wrote it is warned.
    Warn,
}

/// Name of the [`ImageScan`] of a digest: `sha256-` and the 64 hex digits (a valid object name).
pub fn image_scan_name(digest: &Digest) -> String {
    format!("sha256-{}", digest.hex())
}
