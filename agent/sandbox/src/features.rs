//! What a profile needs of Landlock, and what is left of it on a kernel that lacks a part. Pure: the kernel is an
//! argument, so that every kernel can be judged on one.

use landlock::{ABI, Access, AccessFs, BitFlags};
use serde::{Deserialize, Serialize};

use crate::landlock::LandlockError;
use crate::{Profile, Tcp};

/// The newest interface whose file rights are used. A later one adds rights; handling them needs rules for them.
pub(crate) const FILE_RIGHTS: u32 = 5;

/// A part of Landlock that came with some version of its interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// Rules for files.
    Files,
    /// Rules for moving files between directories; without them nothing is moved.
    Moves,
    /// Rules for cutting files off.
    Truncation,
    /// Rules for TCP ports.
    TcpPorts,
    /// Rules for device commands.
    DeviceCommands,
    /// Scopes for signals and abstract unix sockets.
    Scopes,
    /// Nothing in particular: the profile wants at least this interface.
    Interface(u32),
}

/// What becomes of a profile that the kernel cannot enforce whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enforcement {
    /// The process does not run.
    #[default]
    Required,
    /// It runs with what the kernel has, but on no kernel with an older interface than `floor`.
    BestEffort {
        /// The oldest interface, 0 for none at all.
        floor: u32,
    },
}

/// What of a profile the kernel enforces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The kernel's interface.
    pub(crate) found: u32,
    /// Features of the profile that the kernel lacks; only with [`Enforcement::BestEffort`].
    pub(crate) missing: Vec<Feature>,
}

impl Feature {
    /// The interface that brought it.
    pub fn since(self) -> u32 {
        match self {
            Self::Files => 1,
            Self::Moves => 2,
            Self::Truncation => 3,
            Self::TcpPorts => 4,
            Self::DeviceCommands => 5,
            Self::Scopes => 6,
            Self::Interface(version) => version,
        }
    }
}

impl std::fmt::Display for Feature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Files => f.pad("Landlock rules for files"),
            Self::Moves => f.pad("Landlock rules for moving files"),
            Self::Truncation => f.pad("Landlock rules for truncation"),
            Self::TcpPorts => f.pad("Landlock rules for TCP ports"),
            Self::DeviceCommands => f.pad("Landlock rules for device commands"),
            Self::Scopes => f.pad("Landlock scopes for signals and abstract sockets"),
            Self::Interface(version) => write!(f, "Landlock interface {version}"),
        }
    }
}

/// The kernel version that brought an interface of Landlock.
pub(crate) fn linux_of(interface: u32) -> &'static str {
    match interface {
        0 | 1 => "5.13",
        2 => "5.19",
        3 => "6.2",
        4 => "6.7",
        5 => "6.10",
        6 => "6.12",
        7 => "6.15",
        _ => "a later one",
    }
}

/// What a kernel with the interface `found` makes of the profile.
pub(crate) fn plan(profile: &Profile, found: u32) -> Result<Plan, LandlockError> {
    let mut missing = needs(profile);
    missing.retain(|feature| feature.since() > found);
    let demanded = match profile.enforcement {
        Enforcement::Required => missing.iter().map(|feature| feature.since()).max().unwrap_or(0),
        Enforcement::BestEffort { floor } => floor,
    };
    if demanded > found {
        return Err(LandlockError::Missing {
            features: missing,
            needed: demanded,
            found,
        });
    }
    Ok(Plan { found, missing })
}

fn needs(profile: &Profile) -> Vec<Feature> {
    let mut needs = vec![
        Feature::Files,
        Feature::Moves,
        Feature::Truncation,
        Feature::DeviceCommands,
    ];
    let limits_tcp = match &profile.tcp {
        Tcp::Unrestricted => false,
        Tcp::Denied => true,
        Tcp::Ports(ports) => ports.bind.is_some() || ports.connect.is_some(),
    };
    if limits_tcp {
        needs.push(Feature::TcpPorts);
    }
    if profile.scopes.any() {
        needs.push(Feature::Scopes);
    }
    if profile.minimum_landlock > 0 {
        needs.push(Feature::Interface(profile.minimum_landlock));
    }
    needs.sort_by_key(|feature| feature.since());
    needs
}

impl Plan {
    pub(crate) fn has(&self, feature: Feature) -> bool {
        feature.since() <= self.found
    }

    /// The rights on files that the kernel judges, of those that profiles know.
    pub(crate) fn file_rights(&self) -> BitFlags<AccessFs> {
        AccessFs::from_all(match self.found.min(FILE_RIGHTS) {
            0 => return BitFlags::EMPTY,
            1 => ABI::V1,
            2 => ABI::V2,
            3 => ABI::V3,
            4 => ABI::V4,
            _ => ABI::V5,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scopes, TcpPorts};

    fn strict() -> Profile {
        Profile {
            scopes: Scopes {
                signals: true,
                abstract_sockets: false,
            },
            ..Profile::strict(TcpPorts {
                bind: Some([80].into()),
                connect: None,
            })
        }
    }

    /// Every kernel from none to one of the future.
    #[test]
    fn a_required_profile_runs_whole_or_not_at_all() {
        for found in 0..12 {
            for (profile, needed) in [
                (strict(), 6),
                (Profile::baseline(), 5),
                (Profile::jail(vec![]), 6),
            ] {
                match plan(&profile, found) {
                    Ok(plan) => {
                        assert!(found >= needed && plan.missing.is_empty());
                        assert_eq!(plan.file_rights(), AccessFs::from_all(ABI::V5));
                    }
                    Err(LandlockError::Missing {
                        features,
                        needed: said,
                        found: seen,
                    }) => {
                        assert!(found < needed);
                        assert_eq!((said, seen), (needed, found));
                        assert!(
                            features.iter().all(|feature| feature.since() > found) && !features.is_empty()
                        );
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }

    #[test]
    fn the_error_names_what_is_missing() {
        let error = plan(&strict(), 3).expect_err("an old kernel").to_string();
        for words in [
            "TCP ports",
            "device commands",
            "scopes",
            "interface 6",
            "6.12",
            "has 3",
        ] {
            assert!(error.contains(words), "{words:?} is not in {error:?}");
        }
        let wanted = Profile {
            minimum_landlock: 9,
            ..Profile::baseline()
        };
        let error = plan(&wanted, 7).expect_err("a future kernel").to_string();
        assert!(
            error.contains("Landlock interface 9") && error.contains("has 7"),
            "{error}"
        );
    }

    #[test]
    fn best_effort_takes_what_there_is_down_to_the_floor() {
        for found in 0..8 {
            for floor in 0..8 {
                let profile = Profile {
                    enforcement: Enforcement::BestEffort { floor },
                    ..strict()
                };
                let planned = plan(&profile, found);
                assert_eq!(planned.is_ok(), found >= floor, "{found} {floor}");
                let Ok(planned) = planned else { continue };
                assert_eq!(planned.missing.is_empty(), found >= 6);
                assert_eq!(planned.missing.contains(&Feature::TcpPorts), found < 4);
                assert_eq!(planned.has(Feature::Scopes), found >= 6);
                assert_eq!(planned.file_rights().is_empty(), found == 0);
                assert_eq!(planned.file_rights().contains(AccessFs::IoctlDev), found >= 5);
            }
        }
    }
}
