//! The nftables table in the kernel: written, looked for, and written again.
//!
//! Nothing keeps others from taking it away: a file that begins with `flush ruleset`, as Debian's `/etc/nftables.conf` does, is
//! enough. The kernel numbers what nftables' tables of a network namespace become ("generation"). While the number is that of the
//! last look nobody has written anything; else the table is read, and compared with how it read once it was written.

use std::{
    fmt, io,
    os::fd::AsRawFd as _,
    process::{Output, Stdio},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::{
    firewall::{self, Scope},
    host_ports,
};

/// Why the table could not be written, or looked for.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// `nft` could not be run.
    #[error("cannot run nft; install the package nftables")]
    Run(#[source] io::Error),
    /// `nft` refused.
    #[error("nft refused the table palisade: {stderr}")]
    Refused {
        /// What it said.
        stderr: String,
    },
    /// The kernel was not to be asked whether anybody has written tables.
    #[error("cannot ask for the generation of the nftables tables")]
    Generation(#[source] io::Error),
}

/// What others did to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It is not there.
    Removed,
    /// It has other rules than were written.
    Changed,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "removed",
            Self::Changed => "changed",
        })
    }
}

/// What a look finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    AsWritten,
    /// Nobody can tell: it was not written yet, or somebody else wrote tables at the same time.
    Unknown,
    Lost(Loss),
}

/// The table of this network namespace.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// As it was when it was known to be as written.
    written: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    generation: u32,
    /// Of how `nft` lists it.
    digest: [u8; 32],
}

impl Table {
    /// Writes all of the table.
    pub(crate) async fn install(&mut self, scope: Scope<'_>) -> Result<(), FirewallError> {
        self.write(&firewall::ruleset(scope)).await
    }

    /// Writes the two chains that change with pods. The others must be there.
    pub(crate) async fn publish(
        &mut self,
        published: &[String],
        tracked: &[String],
    ) -> Result<(), FirewallError> {
        let before = self.written.as_ref().map(|seen| seen.generation);
        self.write(&host_ports::replacement(published, tracked)).await?;
        // The rest is as it was only if nobody has written since the look before.
        self.written
            .take_if(|seen| before.map(|before| before.wrapping_add(1)) != Some(seen.generation));
        Ok(())
    }

    /// Whether the table is as it was written. What it costs while nobody writes tables is a message to the kernel.
    pub(crate) async fn look(&mut self) -> Result<Found, FirewallError> {
        let Some(written) = &mut self.written else {
            return Ok(Found::Unknown);
        };
        // Asked first: what is written after it is seen the next time.
        let generation = generation()?;
        if generation == written.generation {
            return Ok(Found::AsWritten);
        }
        Ok(match list().await? {
            None => Found::Lost(Loss::Removed),
            Some(digest) if digest != written.digest => Found::Lost(Loss::Changed),
            Some(_) => {
                written.generation = generation;
                Found::AsWritten
            }
        })
    }

    async fn write(&mut self, text: &str) -> Result<(), FirewallError> {
        self.written = None;
        let before = generation()?;
        apply(text).await?;
        let digest = list().await?;
        // Between the two nobody else has written, so what was listed is ours alone.
        let generation = generation()?;
        self.written = digest
            .filter(|_| generation == before.wrapping_add(1))
            .map(|digest| Seen { generation, digest });
        Ok(())
    }
}

/// Removes the table. Idempotent: adding first makes the deletion succeed either way.
pub(crate) async fn remove() -> Result<(), FirewallError> {
    apply("add table inet palisade\ndelete table inet palisade\n").await
}

async fn apply(ruleset: &str) -> Result<(), FirewallError> {
    let output = nft(&["-f", "-"], ruleset).await?;
    match output.status.success() {
        true => Ok(()),
        false => Err(refused(&output)),
    }
}

/// The digest of the table as it reads without its counters; none if it is not there.
async fn list() -> Result<Option<[u8; 32]>, FirewallError> {
    let output = nft(&["-s", "list", "table", "inet", "palisade"], "").await?;
    if output.status.success() {
        return Ok(Some(Sha256::digest(&output.stdout).into()));
    }
    match String::from_utf8_lossy(&output.stderr).contains("No such file or directory") {
        true => Ok(None),
        false => Err(refused(&output)),
    }
}

async fn nft(arguments: &[&str], input: &str) -> Result<Output, FirewallError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(FirewallError::Run)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .await
            .map_err(FirewallError::Run)?;
    }
    child.wait_with_output().await.map_err(FirewallError::Run)
}

fn refused(output: &Output) -> FirewallError {
    FirewallError::Refused {
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    }
}

/// Number of the nftables tables of the calling thread's network namespace; each transaction raises it by one.
fn generation() -> Result<u32, FirewallError> {
    ask_generation().map_err(FirewallError::Generation)
}

fn ask_generation() -> io::Result<u32> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    sendto(
        socket.as_raw_fd(),
        &generation_request(),
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut reply = [0; 512];
    // The kernel answers within the call before, so nothing is waited for.
    let length = recv(socket.as_raw_fd(), &mut reply, MsgFlags::MSG_DONTWAIT)?;
    let reply = reply.get(..length).unwrap_or_default();
    read_generation(reply).ok_or_else(|| io::Error::other("the kernel's answer cannot be read"))
}

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN` and `NFT_MSG_NEWGEN` (linux/netfilter/nfnetlink.h, nf_tables.h).
const GET_GENERATION: u16 = 10 << 8 | 16;
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// `NFTA_GEN_ID`.
const GENERATION_ID: u16 = 1;
/// A netlink header and, behind it, that of nfnetlink.
const HEADERS: usize = 16 + 4;

fn generation_request() -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADERS);
    request.extend(20_u32.to_ne_bytes());
    request.extend(GET_GENERATION.to_ne_bytes());
    // NLM_F_REQUEST; what follows is zero.
    request.extend(1_u16.to_ne_bytes());
    request.resize(HEADERS, 0);
    request
}

/// The number in the kernel's answer, which is of the host's byte order but for the value.
fn read_generation(reply: &[u8]) -> Option<u32> {
    let half = |at: usize| Some(u16::from_ne_bytes(reply.get(at..at + 2)?.try_into().ok()?));
    if half(4)? != NEW_GENERATION {
        return None;
    }
    let mut at = HEADERS;
    loop {
        let (length, kind) = (usize::from(half(at)?), half(at + 2)?);
        if kind == GENERATION_ID {
            return Some(u32::from_be_bytes(reply.get(at + 4..at + 8)?.try_into().ok()?));
        }
        // Attributes begin at multiples of four; one that is shorter than its own header is none.
        at += length.max(4).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_generation_among_other_attributes_and_nothing_from_what_is_cut() {
        let mut reply = vec![0; HEADERS];
        reply[4..6].copy_from_slice(&NEW_GENERATION.to_ne_bytes());
        for (length, kind, value) in [(7_u16, 3_u16, *b"nft\0"), (8, 1, 258_u32.to_be_bytes())] {
            reply.extend(length.to_ne_bytes());
            reply.extend(kind.to_ne_bytes());
            reply.extend(value);
        }
        assert_eq!(read_generation(&reply), Some(258));
        assert_eq!(read_generation(&reply[..reply.len() - 1]), None);
        reply[HEADERS..HEADERS + 2].fill(0);
        assert_eq!(read_generation(&reply[..HEADERS + 8]), None);
        reply[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        assert_eq!(read_generation(&reply), None, "an error");
    }
}
