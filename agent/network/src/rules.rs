//! Keeps the node's nftables table as the leases ask for it, and as it was written.

use api::host_ports::HostPort;

use crate::{
    Network, NetworkError, firewall, host_ports,
    table::{Found, Loss, Table},
};

/// The nftables table, and what is to be said of it.
#[derive(Default)]
pub(crate) struct Rules {
    pub(crate) table: Table,
    /// Whether the kernel may lead ports elsewhere than the leases say, since writing that failed.
    behind: bool,
    /// What others did to it, until [`Network::look_after_rules`] has told.
    lost: Option<Loss>,
}

impl Network {
    /// Writes the rules by which `ports`, and no others, lead to the pod.
    pub(crate) async fn lead(&self, pod_uid: &str, ports: &[HostPort]) -> Result<(), NetworkError> {
        let mut rules = self.rules.lock().await;
        rules.behind |= self.leases().publish(pod_uid, ports)?;
        match rules.behind {
            true => self.write(&mut rules).await,
            false => Ok(()),
        }
    }

    /// Writes the nftables table again if it is not there as it was written. What others did to it since the last call; to be
    /// asked every few seconds, since no guard stands until it is written. While nobody writes tables it costs next to nothing.
    pub async fn look_after_rules(&self) -> Result<Option<Loss>, NetworkError> {
        let mut rules = self.rules.lock().await;
        if rules.behind || rules.table.look().await? != Found::AsWritten {
            self.write(&mut rules).await?;
        }
        Ok(rules.lost.take())
    }

    /// Brings the kernel's rules up to date: the chains that change with pods, or all where others took them away.
    async fn write(&self, rules: &mut Rules) -> Result<(), NetworkError> {
        let (published, tracked) = host_ports::rules(self.leases().all());
        let found = rules.table.look().await?;
        if let Found::Lost(loss) = found {
            tracing::warn!(
                "the nftables table inet palisade was {loss} by somebody else; it is written again"
            );
            rules.lost = Some(loss);
        }
        if found == Found::AsWritten {
            rules.table.publish(&published, &tracked).await?;
        } else {
            let (opened, opened6) = {
                let leases = self.leases();
                (leases.opened().to_vec(), leases.opened6().to_vec())
            };
            let scope = firewall::Scope {
                pods: self.pods,
                pods6: self.ipv6.cidr(),
                opened: &opened,
                opened6: &opened6,
                node: self.node.v4,
                host_ports: (&published, &tracked),
            };
            rules.table.install(scope).await?;
        }
        rules.behind = false;
        Ok(())
    }
}
