//! Messages with descriptors over Unix sockets of type SEQPACKET.
//!
//! One send is one message; a message carries up to [`MAX_FDS`] descriptors. unix(7), `SCM_RIGHTS`.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, sendmsg,
    socket, socketpair,
};

use nix::sys::stat::Mode;

use crate::error::{Call, Result};

/// The most descriptors that one message of ours carries.
pub const MAX_FDS: usize = 16;

/// A connected pair of close-on-exec SEQPACKET sockets.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .call(|| "socketpair(AF_UNIX, SOCK_SEQPACKET)".to_owned())
}

/// A close-on-exec SEQPACKET socket that is not connected.
pub fn seqpacket(flags: SockFlag) -> Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, flags | SockFlag::SOCK_CLOEXEC, None)
        .call(|| "socket(AF_UNIX, SOCK_SEQPACKET)".to_owned())
}

/// Opens a directory for [`address_in`].
pub fn open_directory(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).call(|| format!("open({path:?})"))
}

/// The address of a socket in a directory, valid while that is open. By way of the descriptor, since an address
/// holds a path of 107 bytes at most: unix(7).
pub fn address_in(directory: BorrowedFd<'_>, name: &str) -> Result<UnixAddr> {
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    UnixAddr::new(path.as_str()).call(|| format!("socket address {path:?}"))
}

/// Sends one message with descriptors; blocks when the queue is full (`EAGAIN` on a non-blocking socket).
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    send_with(socket, bytes, fds, MsgFlags::MSG_NOSIGNAL)
}

/// Sends one message without waiting: `EAGAIN` when the queue is full.
pub fn send_now(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    send_with(socket, bytes, &[], MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)
}

fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: MsgFlags) -> Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop).call(|| format!("sendmsg({} bytes, {} fds)", bytes.len(), raw.len())),
        }
    }
}

/// Receives one message into `buffer` and returns its length and descriptors (close-on-exec). A length of 0 is the
/// end of the stream, also when the peer has closed its end with something unread: the kernel tells that once, as
/// `ECONNRESET` and ahead of what the peer had sent, and then goes on. `EMSGSIZE` when the message or its descriptors did
/// not fit: nothing of it may be used.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            result => break result.call(|| "recvmsg(AF_UNIX)".to_owned())?,
        }
    };
    let mut fds = Vec::new();
    for control in message.cmsgs().call(|| "recvmsg(AF_UNIX): control data".to_owned())? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just installed these descriptors for us and nobody else knows their numbers.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(Errno::EMSGSIZE).call(|| "recvmsg(AF_UNIX): message was cut".to_owned());
    }
    Ok((message.bytes, fds))
}

/// How long the message is that [`receive`] will give; waits for one. 0 at the end of the stream.
pub fn next_length(socket: BorrowedFd<'_>) -> Result<usize> {
    loop {
        match nix::sys::socket::recv(socket.as_raw_fd(), &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC) {
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            result => return result.call(|| "recv(AF_UNIX, MSG_PEEK)".to_owned()),
        }
    }
}

/// Accepts a connection, close-on-exec; `EAGAIN` when none waits on a non-blocking listener.
pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd> {
    let fd = nix::sys::socket::accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).call(|| "accept4()".to_owned())?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The process that a connected Unix socket's peer was when it connected, for good: `SO_PEERPIDFD`, Linux 6.5 (`ENOPROTOOPT`
/// before). One that has ended and was reaped is an error, or since Linux 6.16 a descriptor that takes no signal.
pub fn peer_process(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerPidfd)
        .call(|| "getsockopt(SO_PEERPIDFD)".to_owned())
}

/// The peer of a connected Unix socket as the kernel recorded it at connect: pid and uid in *our* namespaces.
pub fn peer(socket: BorrowedFd<'_>) -> Result<(i32, u32)> {
    let credentials = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)
        .call(|| "getsockopt(SO_PEERCRED)".to_owned())?;
    Ok((credentials.pid(), credentials.uid()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_peer_is_known_as_a_process() {
        let (ours, _theirs) = pair().unwrap();
        let process = match peer_process(ours.as_fd()) {
            Err(error) if error.errno() == Errno::ENOPROTOOPT => return,
            process => process.unwrap(),
        };
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).unwrap();
        assert!(about.contains(&format!("\nPid:\t{}\n", std::process::id())), "{about}");
        assert_eq!(peer(ours.as_fd()).unwrap().0, std::process::id() as i32);
    }

    #[test]
    fn the_last_words_of_a_peer_that_did_not_listen_are_read() {
        let (ours, theirs) = pair().unwrap();
        send(ours.as_fd(), b"unread", &[]).unwrap();
        send(theirs.as_fd(), b"last words", &[]).unwrap();
        drop(theirs);
        let mut buffer = [0; 32];
        let (length, _) = receive(ours.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"last words");
        assert_eq!(receive(ours.as_fd(), &mut buffer).unwrap().0, 0);
    }
}
