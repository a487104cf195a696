//! Fields that the types of this version do not have, as real clusters write them: those of a newer Kubernetes, and the many
//! settings of Calico's that are not about policy.
//!
//! One that policy could be about is an error, for what it says would not count. One that stands where policy reads nothing
//! is passed over, unless it looks like a misspelt name of what is read there.

use api::calico;
use serde_json::Value;

use crate::{
    field::FieldError,
    load::settings::{self, Bearing},
};

/// What becomes of such fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum UnknownFields {
    /// All are errors.
    #[default]
    Refused,
    /// Those that no verdict depends on are not.
    PassedOver,
}

/// Where a kind says something that policy reads.
struct Place {
    kind: &'static str,
    /// Path within the object, without numbers.
    path: &'static str,
    reads: Reads,
}

/// What policy reads at a place.
enum Reads {
    /// These fields.
    These(&'static [&'static str]),
    /// What stands there is all about policy.
    All,
}

/// Kinds whose `spec` is not all about policy.
const OTHER_KINDS: [&str; 4] = ["Pod", "Node", "Namespace", "Service"];

const PLACES: [Place; 11] = [
    Place {
        kind: "Pod",
        path: "spec",
        reads: Reads::These(&[
            "containers",
            "initContainers",
            "serviceAccountName",
            "serviceAccount",
            "nodeName",
            "hostNetwork",
        ]),
    },
    Place {
        kind: "Pod",
        path: "spec.containers[]",
        reads: Reads::These(&["ports"]),
    },
    Place {
        kind: "Pod",
        path: "spec.containers[].ports[]",
        reads: Reads::All,
    },
    Place {
        kind: "Pod",
        path: "spec.initContainers[]",
        reads: Reads::These(&["ports", "restartPolicy"]),
    },
    Place {
        kind: "Pod",
        path: "spec.initContainers[].ports[]",
        reads: Reads::All,
    },
    Place {
        kind: "Pod",
        path: "status",
        reads: Reads::These(&["phase", "podIP", "podIPs"]),
    },
    Place {
        kind: "Node",
        path: "status",
        reads: Reads::These(&["addresses"]),
    },
    Place {
        kind: "Service",
        path: "spec",
        reads: Reads::These(&[
            "selector",
            "ports",
            "type",
            "clusterIP",
            "ipFamilies",
            "ipFamilyPolicy",
        ]),
    },
    Place {
        kind: "Service",
        path: "spec.ports[]",
        reads: Reads::All,
    },
    Place {
        kind: "EndpointSlice",
        path: "endpoints[]",
        reads: Reads::These(&["addresses"]),
    },
    Place {
        kind: "EndpointSlice",
        path: "ports[]",
        reads: Reads::All,
    },
];

/// What is wrong with a field that the type of `object` does not have; nothing if no verdict depends on it.
pub(super) fn problem(kind: &str, object: &Value, field: &str) -> Option<FieldError> {
    let wrong = |problem: String, fix: String| {
        Some(FieldError {
            field: field.to_owned(),
            problem,
            fix,
        })
    };
    if kind == settings::KIND
        && let Some(setting) = field.strip_prefix("spec.")
        && let Some(bearing) = settings::bearing(setting, &object["spec"][setting])
    {
        return match bearing {
            Bearing::None => None,
            Bearing::Changes { why, default } => wrong(
                format!("with this value {why}, which is not modelled"),
                format!(
                    "leave it out, or set it to Calico's default, {default}, if verdicts under that are wanted"
                ),
            ),
        };
    }
    match meant(kind, &without_numbers(field)) {
        Meant::Nothing => None,
        Meant::Perhaps(read) => wrong(
            "the kind has no such field".to_owned(),
            format!("write {read} if that is meant, or leave it out"),
        ),
        Meant::Policy => Some(refused(field)),
    }
}

/// That the kind does not have the field.
pub(super) fn refused(field: &str) -> FieldError {
    FieldError {
        field: field.to_owned(),
        problem: "the kind has no such field".to_owned(),
        fix: "correct its spelling, or leave it out".to_owned(),
    }
}

/// Path without the numbers of items, alike for all of a list.
pub(super) fn without_numbers(path: &str) -> String {
    path.split('[')
        .map(|part| part.split_once(']').map_or(part, |(_, rest)| rest))
        .collect::<Vec<_>>()
        .join("[]")
}

/// Whether a configuration says nothing that verdicts depend on.
pub(super) fn is_silent(configuration: &calico::FelixConfiguration) -> bool {
    configuration.spec == calico::FelixConfigurationSpec::default()
}

/// What somebody may have meant by a field that there is none of.
enum Meant {
    /// Nothing that policy reads.
    Nothing,
    /// This field.
    Perhaps(&'static str),
    Policy,
}

fn meant(kind: &str, path: &str) -> Meant {
    let root = path.split(['.', '[']).next().unwrap_or_default();
    let about_others = match root {
        "status" => true,
        "spec" => OTHER_KINDS.contains(&kind),
        "endpoints" => kind == "EndpointSlice",
        _ => false,
    };
    let (place, name) = path.rsplit_once('.').unwrap_or(("", path));
    // An object's own fields are few, and one of them misspelt is all of it.
    if !about_others || (place.is_empty() && root != "status") {
        return Meant::Policy;
    }
    let reads = PLACES
        .iter()
        .find(|known| known.kind == kind && known.path == place);
    match reads.map(|place| &place.reads) {
        None => Meant::Nothing,
        Some(Reads::All) => Meant::Policy,
        Some(Reads::These(fields)) => match fields.iter().find(|read| looks_like(name, read)) {
            Some(read) => Meant::Perhaps(read),
            None => Meant::Nothing,
        },
    }
}

/// Whether one may be the other misspelt: in another case, or with a letter or two (in a short name one) that are missing,
/// too many, wrong or in each other's place.
fn looks_like(name: &str, known: &str) -> bool {
    let (name, known) = (name.to_ascii_lowercase(), known.to_ascii_lowercase());
    let limit = if known.len() < 6 { 1 } else { 2 };
    distance(name.as_bytes(), known.as_bytes()) <= limit
}

/// Fewest single changes that make the one of the other; neighbours change places in one (optimal string alignment).
fn distance(one: &[u8], other: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        // Each line has a place for each beginning of `other`, from the empty one on.
        let mut line = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let replaced = last[j] + usize::from(a != b);
            let mut least = replaced.min(last[j + 1] + 1).min(line[j] + 1);
            let swapped = i > 0 && j > 0 && one[i - 1] == *b && *a == other[j - 1];
            if swapped {
                least = least.min(before[j - 1] + 1);
            }
            line.push(least);
        }
        before = std::mem::replace(&mut last, line);
    }
    last[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_names_are_known_again_and_new_ones_are_not_taken_for_them() {
        for (name, known) in [
            ("hostnetwork", "hostNetwork"),
            ("hostNetwrok", "hostNetwork"),
            ("serviceAcountName", "serviceAccountName"),
            ("nodename", "nodeName"),
            ("container", "containers"),
            ("port", "ports"),
            ("podIp", "podIP"),
            ("adresses", "addresses"),
        ] {
            assert!(looks_like(name, known), "{name} {known}");
        }
        for (name, known) in [
            ("hostnameOverride", "hostNetwork"),
            ("resources", "containers"),
            ("restartPolicyRules", "restartPolicy"),
            ("features", "addresses"),
            ("parts", "port"),
        ] {
            assert!(!looks_like(name, known), "{name} {known}");
        }
    }

    #[test]
    fn items_are_alike_whatever_their_numbers() {
        assert_eq!(without_numbers("spec.a[12].b[0]"), "spec.a[].b[]");
        assert_eq!(without_numbers("spec"), "spec");
    }
}
