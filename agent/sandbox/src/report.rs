//! What was seen of a sandbox: one result for each of its layers.

use std::collections::BTreeMap;

use serde::de::{IntoDeserializer, value};
use serde::{Deserialize, Serialize};

use crate::features::Feature;

/// A mechanism of the kernel that confines a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The system call filter.
    Seccomp,
    /// Rules for files, TCP ports, device commands and scopes.
    Landlock,
    /// Executing a program gives no privileges.
    NoNewPrivileges,
    /// What root of the container may.
    Capabilities,
    /// The container's ids are others on the host.
    UserNamespace,
    /// Processes, mounts, network, host name, IPC and control groups are the container's own.
    Namespaces,
    /// What the container may use up.
    Cgroup,
    /// Verdicts on the pod's packets.
    NetworkPolicy,
}

/// How much of a layer is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    /// All that was asked for.
    Enforced,
    /// The container runs without some of it.
    Partial,
    /// The container was not started for want of it.
    Refused,
}

/// The result of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How much is in force.
    pub verdict: Verdict,
    /// What was seen, or what is missing; for people.
    pub detail: String,
}

/// The results of all layers that were looked at. A layer that is not there was not looked at, or is one that this version
/// does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, Finding>")]
pub struct Report(pub BTreeMap<Layer, Finding>);

impl From<BTreeMap<String, Finding>> for Report {
    fn from(told: BTreeMap<String, Finding>) -> Self {
        let known = |(name, finding): (String, Finding)| {
            let name = IntoDeserializer::<value::Error>::into_deserializer(name);
            Some((Layer::deserialize(name).ok()?, finding))
        };
        Self(told.into_iter().filter_map(known).collect())
    }
}

/// What the kernel answered to a Landlock ruleset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LandlockOutcome {
    /// The kernel's interface.
    pub interface: u32,
    /// Rulesets that the kernel took whole.
    pub rulesets: u32,
    /// What of the profile the kernel does not have.
    pub missing: Vec<Feature>,
}

impl Layer {
    /// Its name, as in the annotation of a pod.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seccomp => "seccomp",
            Self::Landlock => "landlock",
            Self::NoNewPrivileges => "no-new-privileges",
            Self::Capabilities => "capabilities",
            Self::UserNamespace => "user-namespace",
            Self::Namespaces => "namespaces",
            Self::Cgroup => "cgroup",
            Self::NetworkPolicy => "network-policy",
        }
    }
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Enforced => "Enforced",
            Self::Partial => "Partial",
            Self::Refused => "Refused",
        })
    }
}

impl Finding {
    /// A layer of which all is in force.
    pub fn enforced(detail: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Enforced,
            detail: detail.into(),
        }
    }

    /// A layer for want of which the container does not run.
    pub fn refused(detail: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Refused,
            detail: detail.into(),
        }
    }
}

impl LandlockOutcome {
    /// The result of the layer.
    pub fn finding(&self) -> Finding {
        let Self {
            interface,
            rulesets,
            missing,
        } = self;
        if !missing.is_empty() {
            let missing: Vec<_> = missing.iter().map(Feature::to_string).collect();
            return Finding {
                verdict: Verdict::Partial,
                detail: format!(
                    "interface {interface} of this kernel lacks {}",
                    missing.join(", ")
                ),
            };
        }
        match rulesets {
            // Nothing is missing and nothing was enforced: not a state that a profile leads to.
            0 => Finding::refused("no ruleset was enforced"),
            _ => Finding::enforced(format!("interface {interface}, rulesets: {rulesets}")),
        }
    }
}

impl Report {
    /// The report of a container that was not started because of one layer.
    pub fn refusal(layer: Layer, detail: impl Into<String>) -> Self {
        Self([(layer, Finding::refused(detail))].into())
    }

    /// The least that any layer is.
    pub fn worst(&self) -> Option<Verdict> {
        self.0.values().map(|finding| finding.verdict).max()
    }

    /// Layers of which not all is in force.
    pub fn lacking(&self) -> impl Iterator<Item = (Layer, &Finding)> {
        let all = self.0.iter().map(|(layer, finding)| (*layer, finding));
        all.filter(|(_, finding)| finding.verdict != Verdict::Enforced)
    }

    /// For each layer the lesser of two results: of several containers of a pod.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        for (layer, finding) in &other.0 {
            let kept = self.0.entry(*layer).or_insert_with(|| finding.clone());
            if finding.verdict > kept.verdict {
                kept.clone_from(finding);
            }
        }
        self
    }
}

/// Layers and verdicts, such as `seccomp=Enforced,landlock=Partial`.
impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (layer, finding)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{layer}={}", finding.verdict)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lesser_result_of_several_containers_counts() {
        let report = |verdict| {
            let detail = format!("{verdict}");
            Report([(Layer::Landlock, Finding { verdict, detail })].into())
        };
        let seccomp = Report([(Layer::Seccomp, Finding::enforced(""))].into());
        let both = report(Verdict::Enforced)
            .with(&report(Verdict::Partial))
            .with(&seccomp);
        assert_eq!(both.to_string(), "seccomp=Enforced,landlock=Partial");
        assert_eq!(both.worst(), Some(Verdict::Partial));
        assert_eq!(
            both.lacking().map(|(layer, _)| layer).collect::<Vec<_>>(),
            [Layer::Landlock]
        );
        assert_eq!(
            report(Verdict::Refused).with(&both).worst(),
            Some(Verdict::Refused)
        );
        assert_eq!(Report::default().worst(), None, "nothing seen, nothing claimed");
    }

    #[test]
    fn a_ruleset_that_the_kernel_did_not_take_is_not_claimed() {
        let outcome = |rulesets, missing| LandlockOutcome {
            interface: 4,
            rulesets,
            missing,
        };
        assert_eq!(outcome(2, vec![]).finding().verdict, Verdict::Enforced);
        assert_eq!(outcome(0, vec![]).finding().verdict, Verdict::Refused);
        let partial = outcome(1, vec![Feature::Scopes]).finding();
        assert_eq!(partial.verdict, Verdict::Partial);
        assert!(partial.detail.contains("scopes"), "{}", partial.detail);
    }
}
