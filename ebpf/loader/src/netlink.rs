//! Just enough of rtnetlink(7): one request, one answer.

use std::{io, os::fd::OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink};

// include/uapi/linux/netlink.h.
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
const NLM_F_REQUEST: u16 = 0x1;
const NLMSG_ERROR: u16 = 2;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER_BYTES: usize = 16;

/// Sends one request, whose kind has this header, and returns the payload of its answer: empty if that is an
/// acknowledgement.
pub(crate) fn request(kind: u16, flags: u16, header: &[u8], attributes: &[u8]) -> io::Result<Vec<u8>> {
    let socket = open()?;
    rustix::net::send(
        &socket,
        &message(kind, flags, header, attributes)?,
        SendFlags::empty(),
    )?;
    // A filter and its options are a few hundred bytes, a device two thousand; the kernel answers in messages of at most
    // two pages.
    let mut answer = vec![0; 8192];
    let (received, _) = rustix::net::recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
    answer.truncate(received);
    let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut off");
    let kind = answer.get(4..6).and_then(u16_of).ok_or_else(unreadable)?;
    let payload = answer.get(HEADER_BYTES..).ok_or_else(unreadable)?;
    if kind != NLMSG_ERROR {
        return Ok(payload.to_vec());
    }
    let code = payload.first_chunk().copied().map(i32::from_ne_bytes);
    match code.ok_or_else(unreadable)? {
        0 => Ok(Vec::new()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

fn open() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // Of netlink, this is NETLINK_ROUTE.
        None,
    )?;
    // To the kernel.
    rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

fn message(kind: u16, flags: u16, header: &[u8], attributes: &[u8]) -> io::Result<Vec<u8>> {
    let length = HEADER_BYTES + header.len() + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).map_err(io::Error::other)?.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    // Sequence number and sender.
    bytes.extend([0; 8]);
    bytes.extend(header);
    bytes.extend(attributes);
    Ok(bytes)
}

/// Appends an attribute, padded to four bytes.
pub(crate) fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) -> io::Result<()> {
    let length = u16::try_from(value.len() + 4).map_err(io::Error::other)?;
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(())
}

/// The value of the first attribute of this kind.
pub(crate) fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(attributes.get(..2).and_then(u16_of)?);
        let kind = attributes.get(2..4).and_then(u16_of)?;
        let value = attributes.get(4..length)?;
        if kind & NLA_TYPE_MASK == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_of(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().copied().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: u16 = 1;
    const OPTIONS: u16 = 2;
    const FD: u16 = 6;
    const NAME: u16 = 7;

    #[test]
    fn attributes_are_found_behind_others_and_never_outside() {
        let mut inner = Vec::new();
        attribute(&mut inner, NAME, b"name\0").unwrap();
        let mut bytes = Vec::new();
        attribute(&mut bytes, KIND, b"bpf\0").unwrap();
        attribute(&mut bytes, OPTIONS | 0x8000, &inner).unwrap();
        let options = find(&bytes, OPTIONS).unwrap();
        assert_eq!(find(options, NAME), Some(&b"name\0"[..]));
        assert_eq!(find(options, FD), None);
        for end in 0..bytes.len() {
            let found = find(&bytes[..end], OPTIONS);
            assert!(found.is_none_or(|value| value.len() <= inner.len()), "{end}");
        }
        assert_eq!(find(&[0, 0, 2, 0, 0, 0], OPTIONS), None);
    }
}
