//! The nftables table `inet palisade`: masquerade for what leaves the node, and guards for the forwarding that
//! we switched on. Policy is not here; the packet programs judge it.
//!
//! The packet programs judge a pod's peer by its address, and see only the pods' own links. So no other link
//! may bring a packet that claims a pod's address, and none may carry away what is meant for an address that
//! no pod has at the moment. Link-local addresses are the node's neighbours, above all a cloud's metadata
//! service, which hands out the node's identity: pods reach their name service there and nothing else.
//!
//! The table is replaced in one transaction at the agent's start and never changes with pods.

use std::{fmt::Write as _, io, process::Stdio};

use ipnet::Ipv4Net;
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::LINK_PREFIX;

/// Why the table could not be written.
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
}

/// Writes the table. `opened_uplinks` are those that did not forward before us.
pub(crate) async fn install(pods: Ipv4Net, opened_uplinks: &[String]) -> Result<(), FirewallError> {
    apply(&ruleset(pods, opened_uplinks)).await
}

/// Removes the table. Idempotent: adding first makes the deletion succeed either way.
pub(crate) async fn remove() -> Result<(), FirewallError> {
    apply("add table inet palisade\ndelete table inet palisade\n").await
}

/// The whole table as `nft -f` reads it: one transaction.
fn ruleset(pods: Ipv4Net, opened_uplinks: &[String]) -> String {
    let mut text = String::from("add table inet palisade\ndelete table inet palisade\n");
    let mut guard = String::new();
    for uplink in opened_uplinks {
        // What did not pass through this machine before Palisade does not pass now, pods apart.
        let _infallible = writeln!(
            guard,
            "    iifname {} oifname != \"{LINK_PREFIX}*\" counter drop",
            quoted(uplink)
        );
    }
    let _infallible = write!(
        text,
        "table inet palisade {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pods} ip daddr != {pods} oifname != \"{LINK_PREFIX}*\" counter masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname != \"{LINK_PREFIX}*\" ip saddr {pods} counter drop
    iifname \"{LINK_PREFIX}*\" oifname != \"{LINK_PREFIX}*\" ip daddr {pods} counter drop
    iifname \"{LINK_PREFIX}*\" ip daddr 169.254.0.0/16 th dport != 53 counter drop
{guard}  }}
}}
"
    );
    text
}

/// Interface names may hold any byte but `/` and white space; what nft would read as syntax is replaced by
/// its wildcard, so the guard covers more rather than less.
fn quoted(name: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | ':');
    let plain: String = name.chars().take_while(|c| safe(*c)).collect();
    if plain.len() == name.len() {
        format!("\"{plain}\"")
    } else {
        format!("\"{plain}*\"")
    }
}

async fn apply(ruleset: &str) -> Result<(), FirewallError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(FirewallError::Run)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(ruleset.as_bytes())
            .await
            .map_err(FirewallError::Run)?;
    }
    let output = child.wait_with_output().await.map_err(FirewallError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    Err(FirewallError::Refused {
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_only_uplinks_that_we_opened() {
        let pods = "10.88.0.0/16".parse().unwrap();
        let none = ruleset(pods, &[]);
        assert!(none.contains("ip saddr 10.88.0.0/16 ip daddr != 10.88.0.0/16"));
        assert!(!none.contains("iifname \"eth0\""));
        assert!(
            ruleset(pods, &["eth0".to_owned()]).contains("iifname \"eth0\" oifname != \"pal*\" counter drop")
        );
    }

    #[test]
    fn pods_addresses_belong_to_pods_links() {
        let text = ruleset("10.88.0.0/16".parse().unwrap(), &[]);
        assert!(text.contains("iifname != \"pal*\" ip saddr 10.88.0.0/16 counter drop"));
        assert!(text.contains("iifname \"pal*\" oifname != \"pal*\" ip daddr 10.88.0.0/16 counter drop"));
        assert!(text.contains("iifname \"pal*\" ip daddr 169.254.0.0/16 th dport != 53 counter drop"));
    }

    #[test]
    fn interface_names_cannot_become_syntax() {
        assert_eq!(quoted("eth0.5"), "\"eth0.5\"");
        assert_eq!(quoted("a\" accept"), "\"a*\"");
    }
}
