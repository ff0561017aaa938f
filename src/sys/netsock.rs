//! Socket options that the network role needs and nix lacks.

use std::os::fd::{AsRawFd, BorrowedFd};

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
