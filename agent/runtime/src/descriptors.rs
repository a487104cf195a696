//! Descriptors that travel beside the bytes of a frame (`SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// Most descriptors with one frame.
const MAX_DESCRIPTORS: usize = 4;

/// Room for them in a control message.
const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// Sends what fits of `bytes`, and all of `descriptors` with the first of them. Returns how many bytes fitted.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?)
}

/// Receives bytes and adds the descriptors that came with them. Returns how many bytes came, 0 at the end.
pub(crate) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            descriptors.extend(more);
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_and_close_on_exec() {
        let (near, far) = UnixStream::pair().expect("a pair");
        let (mut reading, writing) = io::pipe().expect("a pipe");
        assert_eq!(send(&near, b"ab", &[writing.as_fd()]).expect("sends"), 2);
        drop(writing);
        let (mut buffer, mut descriptors) = ([0; 1], Vec::new());
        assert_eq!(receive(&far, &mut buffer, &mut descriptors).expect("receives"), 1);
        let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors).expect("one descriptor");
        let flags = rustix::io::fcntl_getfd(&descriptor).expect("has flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        rustix::io::write(&descriptor, b"through").expect("writes");
        drop(descriptor);
        let mut text = String::new();
        reading.read_to_string(&mut text).expect("reads");
        assert_eq!(text, "through");
    }
}
