//! Ways around Landlock's rules for TCP ports, which are refused where there are such rules.
//!
//! Landlock (up to interface 7) asks when a socket of the protocol TCP is bound or connected by the calls of these
//! names, and at no other place. So a profile that limits ports takes these away:
//!
//! - stream sockets of another protocol over IP: Multipath TCP speaks to every TCP server, SCTP and SMC have ports too;
//! - raw sockets of the protocol TCP, or of any, and writing the whole header by hand on one of another protocol: enough
//!   for a TCP of the program's own. Other raw sockets stay, that of `ping` for one;
//! - turning a TCP socket into one of another protocol (`TCP_ULP`), which SMC can, and with it TLS in the kernel;
//! - connecting while sending (`MSG_FASTOPEN`), where connections are limited. `TCP_FASTOPEN_CONNECT` is none: it
//!   only delays what `connect`, which Landlock has judged, begins;
//! - `io_uring`, which does all of that unseen by any filter.
//!
//! The answers are those of a kernel without that feature, or to a program without the capability: what asks for it falls
//! back on TCP and on `connect`.
//! What is left is `listen` on a socket that was never bound: the kernel binds it to a port of its own choice, and
//! neither Landlock nor a filter can tell such a socket from another.

use super::policy::{Action, Alternative, CallRule, Compare, Condition, SyscallPolicy, Width};
use super::{NEWEST_KNOWN, errno};
use crate::Tcp;

/// One way around.
struct Detour {
    /// Numbers on this architecture, of calls that are alike.
    calls: &'static [i64],
    reason: &'static str,
    ways: &'static [Way],
    /// Whether it only leads around limits of connections.
    connects: bool,
}

/// The arguments with which a call leads around.
struct Way {
    all_of: &'static [Condition],
    /// The error number.
    answer: i32,
}

const DETOURS: &[Detour] = &[
    Detour {
        calls: &[libc::SYS_socket],
        reason: "streams over IP that are not TCP have ports that Landlock does not judge, Multipath TCP is one; and a raw \
                 socket of TCP, or of any protocol, sends to and from each port",
        ways: &[
            way(&OTHER_STREAM, libc::EPROTONOSUPPORT),
            way(&raw(0xff, TCP), libc::EPERM),
            way(&raw(0xffff_ffff, ANY), libc::EPERM),
        ],
        connects: false,
    },
    Detour {
        calls: &[libc::SYS_setsockopt],
        reason: "TCP_ULP makes a TCP socket one of another protocol, whose ports Landlock does not judge, and a raw socket \
                 with IP_HDRINCL or IPV6_HDRINCL sends what its program says, TCP too",
        ways: &[
            way(
                &[word(1, Compare::Eq, TCP), word(2, Compare::Eq, 31)],
                libc::ENOENT,
            ),
            way(
                &[word(1, Compare::Eq, 0), word(2, Compare::Eq, 3)],
                libc::ENOPROTOOPT,
            ),
            // At the level of IPv6 (41) as at that of raw sockets (255), of whose bits it is a part; of what else has these
            // bits none is a level.
            way(
                &[word(1, Compare::MaskedEq(41), 41), word(2, Compare::Eq, 36)],
                libc::ENOPROTOOPT,
            ),
        ],
        connects: false,
    },
    Detour {
        calls: &[libc::SYS_sendto],
        reason: FAST_OPEN,
        ways: &[way(&[fast_open(3)], libc::EOPNOTSUPP)],
        connects: true,
    },
    Detour {
        calls: &[libc::SYS_sendmsg],
        reason: FAST_OPEN,
        ways: &[way(&[fast_open(2)], libc::EOPNOTSUPP)],
        connects: true,
    },
    Detour {
        calls: &[libc::SYS_sendmmsg],
        reason: FAST_OPEN,
        ways: &[way(&[fast_open(3)], libc::EOPNOTSUPP)],
        connects: true,
    },
    Detour {
        calls: &[
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
        ],
        reason: "no filter sees what is asked for through io_uring",
        ways: &[way(&[], libc::EPERM)],
        connects: false,
    },
];

/// The number of TCP, as a protocol of IP and as a level of options.
const TCP: u64 = 6;
/// IPPROTO_RAW: packets of whatever protocol their header names.
const ANY: u64 = 255;

const FAST_OPEN: &str = "MSG_FASTOPEN connects without connect, which Landlock judges";

/// IPv4 (2) and IPv6 (10), which differ in one bit. One condition for both: each way is multiplied by those of the profile.
const OVER_IP: Condition = word(0, Compare::MaskedEq(0xffff_fff7), 2);

/// SOCK_STREAM, whatever flags stand beside it, of a protocol that is neither the default, which is TCP, nor TCP.
const OTHER_STREAM: [Condition; 4] = [
    OVER_IP,
    word(1, Compare::MaskedEq(0xf), 1),
    word(2, Compare::Ne, 0),
    word(2, Compare::Ne, TCP),
];

/// SOCK_RAW of a protocol. Its low byte is what a header has room for: the kernel takes the number of Multipath TCP (262)
/// too, and sends TCP.
const fn raw(mask: u64, protocol: u64) -> [Condition; 3] {
    [
        OVER_IP,
        word(1, Compare::MaskedEq(0xf), 3),
        word(2, Compare::MaskedEq(mask), protocol),
    ]
}

const fn way(all_of: &'static [Condition], answer: i32) -> Way {
    Way { all_of, answer }
}

const fn fast_open(index: u8) -> Condition {
    word(index, Compare::MaskedEq(0x2000_0000), 0x2000_0000)
}

const fn word(index: u8, compare: Compare, value: u64) -> Condition {
    Condition {
        index,
        width: Width::Word,
        compare,
        value,
    }
}

/// All is allowed but the ways around these limits; nothing if there are no limits.
pub(crate) fn refused(tcp: &Tcp) -> Option<SyscallPolicy> {
    let detours = detours(tcp)?;
    let rules = detours.flat_map(|detour| {
        let numbers = detour.calls.iter().copied();
        numbers.filter_map(move |number| Some((u32::try_from(number).ok()?, detour.rule())))
    });
    Some(SyscallPolicy {
        calls: rules.collect(),
        default: Action::Allow,
        newest_known: NEWEST_KNOWN,
        newer: Action::Allow,
    })
}

/// Why a call is judged beside these limits, and how.
pub(crate) fn about(tcp: &Tcp, number: u32) -> Option<(&'static str, CallRule)> {
    let detour = detours(tcp)?.find(|detour| detour.calls.contains(&i64::from(number)))?;
    Some((detour.reason, detour.rule()))
}

fn detours(tcp: &Tcp) -> Option<impl Iterator<Item = &'static Detour>> {
    let (bind, connect) = match tcp {
        Tcp::Unrestricted => (false, false),
        Tcp::Denied => (true, true),
        Tcp::Ports(ports) => (ports.bind.is_some(), ports.connect.is_some()),
    };
    // A rule for `send` costs every message something, so it stands only where it keeps something out.
    let all = DETOURS.iter();
    (bind || connect).then(|| all.filter(move |detour| connect || !detour.connects))
}

impl Detour {
    fn rule(&self) -> CallRule {
        let alternative = |way: &Way| Alternative {
            all_of: way.all_of.to_vec(),
            action: errno(way.answer),
        };
        CallRule {
            alternatives: self.ways.iter().map(alternative).collect(),
            otherwise: Action::Allow,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Profile, SyscallSet, TcpPorts, call_number};

    const STREAM: u64 = 1;
    const FLAGS: u64 = 0x8_0800;
    const MPTCP: u64 = 262;
    const FAST: u64 = 0x2000_0000;

    fn profile(bind: Option<u16>, connect: Option<u16>) -> Profile {
        Profile::strict(TcpPorts {
            bind: bind.map(|port| BTreeSet::from([port])),
            connect: connect.map(|port| BTreeSet::from([port])),
        })
    }

    fn answer(profile: &Profile, call: &str, arguments: [u64; 6]) -> Action {
        let number = call_number(call).expect("a call");
        profile.syscall_policy().decide(number, &arguments)
    }

    #[test]
    fn streams_that_are_not_tcp_are_refused_where_ports_are_limited() {
        let refused = errno(libc::EPROTONOSUPPORT);
        for limited in [profile(Some(1), None), profile(None, Some(1))] {
            for family in [2, 10] {
                // The upper half does not count for the kernel either.
                for protocol in [MPTCP, 132, 256, 1, MPTCP | (1 << 32)] {
                    for kind in [STREAM, STREAM | FLAGS] {
                        let arguments = [family, kind, protocol, 0, 0, 0];
                        assert_eq!(answer(&limited, "socket", arguments), refused, "{arguments:x?}");
                    }
                }
                for (kind, protocol) in [(STREAM, 0), (STREAM | FLAGS, 6), (2, 17), (2 | FLAGS, 0), (3, 1)] {
                    let arguments = [family, kind, protocol, 0, 0, 0];
                    assert_eq!(
                        answer(&limited, "socket", arguments),
                        Action::Allow,
                        "{arguments:x?}"
                    );
                }
            }
            assert_eq!(answer(&limited, "socket", [1, STREAM, 0, 0, 0, 0]), Action::Allow);
            assert_eq!(
                answer(&limited, "socket", [17, 3, 0, 0, 0, 0]),
                errno(libc::EPERM)
            );
            assert_eq!(
                answer(&limited, "setsockopt", [3, 6, 31, 0, 0, 0]),
                errno(libc::ENOENT)
            );
            assert_eq!(answer(&limited, "setsockopt", [3, 6, 1, 0, 0, 0]), Action::Allow);
        }
        for free in [Profile::baseline(), profile(None, None)] {
            assert_eq!(
                answer(&free, "socket", [2, STREAM, MPTCP, 0, 0, 0]),
                Action::Allow
            );
            assert_eq!(free.syscall_policy(), free.syscalls.policy());
        }
    }

    /// Also by its number as Multipath TCP, of which the header keeps a byte, and by a header made by hand.
    #[test]
    fn raw_sockets_that_speak_tcp_are_refused_where_ports_are_limited() {
        const RAW: u64 = 3;
        let levels = [(0, 3), (41, 36), (255, 36)];
        for limited in [profile(Some(1), None), profile(None, Some(1))] {
            for family in [2, 10] {
                for kind in [RAW, RAW | FLAGS, RAW | (1 << 32)] {
                    for protocol in [6, 255, MPTCP, 6 | (1 << 32)] {
                        let arguments = [family, kind, protocol, 0, 0, 0];
                        let answer = answer(&limited, "socket", arguments);
                        assert_eq!(answer, errno(libc::EPERM), "{arguments:x?}");
                    }
                    // What pings, what routes, and what has ports that Landlock does not limit.
                    for protocol in [1, 58, 89, 17] {
                        let arguments = [family, kind, protocol, 0, 0, 0];
                        let answer = answer(&limited, "socket", arguments);
                        assert_eq!(answer, Action::Allow, "{arguments:x?}");
                    }
                }
            }
            for (level, option) in levels {
                let arguments = [3, level, option, 0, 0, 0];
                let answer = answer(&limited, "setsockopt", arguments);
                assert_eq!(answer, errno(libc::ENOPROTOOPT), "{arguments:?}");
            }
            // IP_OPTIONS, IPV6_TCLASS, IPV6_V6ONLY, SO_WIFI_STATUS and what other levels call so are others.
            for (level, option) in [
                (0, 4),
                (41, 67),
                (41, 26),
                (6, 3),
                (1, 36),
                (58, 36),
                (17, 36),
                (263, 36),
            ] {
                let arguments = [3, level, option, 0, 0, 0];
                assert_eq!(answer(&limited, "setsockopt", arguments), Action::Allow);
            }
            for family in [1, 3, 16, 18] {
                let arguments = [family, RAW, 6, 0, 0, 0];
                let answer = answer(&limited, "socket", arguments);
                assert_eq!(answer == Action::Allow, [1, 16].contains(&family));
            }
        }
        for free in [Profile::baseline(), profile(None, None)] {
            assert_eq!(answer(&free, "socket", [2, RAW, 6, 0, 0, 0]), Action::Allow);
            for (level, option) in levels {
                let arguments = [3, level, option, 0, 0, 0];
                assert_eq!(answer(&free, "setsockopt", arguments), Action::Allow);
            }
        }
    }

    #[test]
    fn connecting_while_sending_is_refused_where_connections_are_limited() {
        let limited = profile(None, Some(1));
        for (call, index) in [("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)] {
            let with = |flags: u64| {
                let mut arguments = [0; 6];
                arguments[index] = flags;
                arguments
            };
            for flags in [FAST, FAST | 0x4000, FAST | (1 << 32)] {
                assert_eq!(
                    answer(&limited, call, with(flags)),
                    errno(libc::EOPNOTSUPP),
                    "{call} {flags:x}"
                );
            }
            assert_eq!(answer(&limited, call, with(0x4040)), Action::Allow, "{call}");
            // Nothing is paid for where nothing is kept out.
            let only_bind = profile(Some(1), None);
            let number = call_number(call).expect("a call");
            assert_eq!(
                only_bind.syscall_policy().calls[&number].constant(),
                Some(Action::Allow)
            );
        }
    }

    /// Whoever wrote the policy of system calls.
    #[test]
    fn no_policy_brings_io_uring_back_beside_limits() {
        let open = SyscallPolicy {
            calls: [].into(),
            default: Action::Allow,
            newest_known: NEWEST_KNOWN,
            newer: Action::Allow,
        };
        let limited = Profile {
            syscalls: SyscallSet::Policy(open),
            ..profile(Some(1), None)
        };
        for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
            assert_eq!(answer(&limited, call, [0; 6]), errno(libc::EPERM), "{call}");
        }
    }
}
