//! Socket options that the network role needs and nix lacks.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{SockaddrLike, SockaddrStorage};

use crate::error::{Result, check};

const SO_MEMINFO: libc::c_int = 55;
/// Positions in the answer of SO_MEMINFO: linux/sock_diag.h.
const MEMINFO_SNDBUF: usize = 3;
const MEMINFO_WMEM_QUEUED: usize = 5;
const MEMINFO_FIELDS: usize = 9;

/// Sets an integer option.
pub fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<()> {
    // SAFETY: the kernel reads one int of the size given from a live variable.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    check(result.into(), || format!("setsockopt({level}, {name}, {value})"))?;
    Ok(())
}

/// Where the next `MSG_PEEK` begins: `SO_PEEK_OFF`, for TCP since Linux 6.9 (IPv4) and 6.11 (IPv6). Peeking moves it
/// forward, consuming moves it back. `EOPNOTSUPP` before.
pub fn set_peek_offset(socket: BorrowedFd<'_>, offset: i32) -> Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)
}

/// Whether a socket's datagrams are refused with `EMSGSIZE` when they do not fit the path as it is known, and are not cut on
/// it: `IP_MTU_DISCOVER` (ip(7)), `IPV6_MTU_DISCOVER` (ipv6(7)). Without, the kernel cuts what does not fit.
pub fn set_dont_fragment(socket: BorrowedFd<'_>, dont: bool) -> Result<()> {
    match level(socket)? {
        libc::IPPROTO_IPV6 => {
            let value = if dont { libc::IPV6_PMTUDISC_DO } else { libc::IPV6_PMTUDISC_WANT };
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value)
        }
        level => {
            let value = if dont { libc::IP_PMTUDISC_DO } else { libc::IP_PMTUDISC_WANT };
            set_option(socket, level, libc::IP_MTU_DISCOVER, value)
        }
    }
}

/// The MTU of a connected socket's path as it is known, in bytes: `IP_MTU`, `IPV6_MTU`.
pub fn path_mtu(socket: BorrowedFd<'_>) -> Result<u32> {
    let level = level(socket)?;
    let name = if level == libc::IPPROTO_IPV6 { libc::IPV6_MTU } else { libc::IP_MTU };
    get_option(socket, level, name).map(i32::cast_unsigned)
}

/// The level of the options of a socket's family.
fn level(socket: BorrowedFd<'_>) -> Result<libc::c_int> {
    let family = get_option(socket, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    Ok(if family == libc::AF_INET6 { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP })
}

/// Reads an integer option.
fn get_option(socket: BorrowedFd<'_>, level: i32, name: i32) -> Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes, which is the size of the live variable.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_mut(&mut value).cast(),
            std::ptr::from_mut(&mut size),
        )
    };
    check(result.into(), || format!("getsockopt({level}, {name})"))?;
    Ok(value)
}

/// Bytes of memory in the send buffer: its size, and how much of that is taken (with the kernel's own overhead).
/// Linux 4.12.
pub fn send_memory(socket: BorrowedFd<'_>) -> Result<(u32, u32)> {
    let mut fields = [0_u32; MEMINFO_FIELDS];
    let mut size = size_of_val(&fields) as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes into a live array of that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            fields.as_mut_ptr().cast(),
            std::ptr::from_mut(&mut size),
        )
    };
    check(result.into(), || "getsockopt(SO_MEMINFO)".to_owned())?;
    Ok((fields[MEMINFO_SNDBUF], fields[MEMINFO_WMEM_QUEUED]))
}

/// Drops `count` bytes from a stream's receive queue without copying them (`MSG_TRUNC`, tcp(7)) and returns how many.
pub fn discard(socket: BorrowedFd<'_>, count: usize) -> Result<usize> {
    // SAFETY: with MSG_TRUNC on TCP nothing is written to the (null) buffer.
    let result =
        unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), count, libc::MSG_TRUNC | libc::MSG_DONTWAIT) };
    check(result as libc::c_long, || format!("recv(NULL, {count}, MSG_TRUNC)")).map(|count| count as usize)
}

/// Room for one control message with an `in6_pktinfo`, aligned as `cmsghdr` must be.
#[repr(C, align(8))]
struct PacketInfo([u8; 64]);

/// Sends a datagram with this source address: `IP_PKTINFO` (ip(7)) or `IPV6_PKTINFO` (RFC 3542, section 6.1). `from` and
/// `to` are of the socket's family. Never waits (`EAGAIN`), and allocates nothing.
pub fn send_from(socket: BorrowedFd<'_>, bytes: &[u8], to: SocketAddr, from: IpAddr) -> Result<usize> {
    let address = SockaddrStorage::from(to);
    let mut control = PacketInfo([0; 64]);
    let mut slice = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: a msghdr of zeros is valid: null pointers with lengths of zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.as_ptr().cast_mut().cast();
    message.msg_namelen = address.len();
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    match from {
        IpAddr::V4(from) => {
            let address = libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) };
            let info =
                libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: libc::in_addr { s_addr: 0 } };
            put_info(&mut message, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        IpAddr::V6(from) => {
            let address = libc::in6_addr { s6_addr: from.octets() };
            let info = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: 0 };
            put_info(&mut message, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
    }
    // SAFETY: every pointer of `message` is to a live variable of this frame or to `bytes`, with its length; the kernel
    // only reads them.
    let result =
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    check(result as libc::c_long, || format!("sendmsg({to} from {from})")).map(|count| count as usize)
}

/// Makes `info` the only control message of `message`, whose control buffer is a [`PacketInfo`].
fn put_info<T: Copy>(message: &mut libc::msghdr, level: libc::c_int, kind: libc::c_int, info: T) {
    const { assert!(size_of::<T>() + size_of::<libc::cmsghdr>() + 16 <= size_of::<PacketInfo>()) };
    let size = size_of::<T>() as libc::c_uint;
    // SAFETY: computes a length from a length.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as _;
    // SAFETY: the control buffer is live, aligned for `cmsghdr` and, as asserted, larger than `msg_controllen`, so the
    // header is inside; the data behind it has room for `T` and is written without regard to alignment.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(size) as _;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(info);
    }
}
