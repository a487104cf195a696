//! Looks after the node's nftables table, whose guards stand beside the packet programs: others may flush it, or change it. What
//! was found is told until the next look finds the table as it was written.

use std::{sync::Arc, time::Duration};

use agent_network::{Loss, Network, NetworkError};
use tokio::time::MissedTickBehavior;

use crate::policy::{Policy, chain};

/// How often it is looked for, as the programs are.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks until nobody wants to hear of it.
pub(crate) async fn look_after(network: Arc<Network>, policy: Policy) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        looks.tick().await;
        let now = lacking(&network.look_after_rules().await);
        if now == told {
            continue;
        }
        if policy.unguarded(now.clone()).is_err() {
            return;
        }
        told = now;
    }
}

/// For people, what the look found to be amiss.
fn lacking(found: &Result<Option<Loss>, NetworkError>) -> Option<String> {
    match found {
        Ok(None) => None,
        Ok(Some(loss)) => Some(format!(
            "the node's nftables table was {loss}, and not by this agent; it is there again, but for up to {} s pods may have \
             reached the node's loopback and the cloud's metadata, and others have spoken as pods",
            LOOK_EVERY.as_secs()
        )),
        Err(error) => Some(format!(
            "the node's nftables table may not be as it should, so pods may reach the node's loopback and the cloud's metadata, \
             and others speak as pods: {}",
            chain(error)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_named() {
        assert_eq!(lacking(&Ok(None)), None);
        let gone = lacking(&Ok(Some(Loss::Removed))).unwrap();
        assert!(
            gone.starts_with("the node's nftables table was removed, and not by"),
            "{gone}"
        );
        let stuck = lacking(&Err(NetworkError::NoNodeAddress)).unwrap();
        assert!(
            stuck.ends_with("set node_address in the agent's configuration"),
            "{stuck}"
        );
    }
}
