//! Word from the kernel that interfaces or addresses of this network namespace are others than before.

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkMessage},
    },
    sys::SocketAddr,
};

use crate::{LINK_PREFIX, NetworkError};

/// Follows interfaces and addresses. What is told is only that something changed: whoever hears it looks.
pub struct LinkChanges {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl LinkChanges {
    /// Begins in the network namespace of the calling thread, with a socket that is served from a task.
    ///
    /// # Errors
    ///
    /// When the kernel gives no such socket.
    pub fn follow() -> Result<Self, NetworkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        let (connection, _handle, messages) =
            new_multicast_connection(&groups).map_err(NetworkError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { messages })
    }

    /// Waits for a change of anything but the pods' links; many at once are one. `None` when no more will be heard of.
    pub async fn next(&mut self) -> Option<()> {
        loop {
            let (message, _from) = self.messages.next().await?;
            let mut concerns = is_of_host(&message);
            while let Ok((message, _from)) = self.messages.try_recv() {
                concerns |= is_of_host(&message);
            }
            if concerns {
                return Some(());
            }
        }
    }
}

/// What is not understood may be anything.
fn is_of_host(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    let name = match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
        ) => name_of(link),
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address),
        ) => label_of(address),
        _ => None,
    };
    name.is_none_or(|name| !name.starts_with(LINK_PREFIX))
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn label_of(address: &AddressMessage) -> Option<&str> {
    address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Label(label) => Some(label.as_str()),
        _ => None,
    })
}
