//! The calls that a system call filter hands to another process: seccomp_unotify(2), Linux 5.0.

use std::os::fd::{AsFd, AsRawFd};

use crate::error::{Errno, Result, check};

/// A call that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    /// What names it to [`answer`].
    pub id: u64,
    /// Who makes it: a thread, in the receiver's pid namespace; 0 if it is not there.
    pub pid: u32,
    /// By which architecture's numbers: `AUDIT_ARCH_*` of linux/audit.h.
    pub arch: u32,
    /// The call's number.
    pub number: i64,
    /// Its arguments as they stood in the registers.
    pub arguments: [u64; 6],
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It returns this; the kernel does nothing.
    Returns(i64),
    /// It fails with this; the kernel does nothing.
    Fails(Errno),
    /// The kernel does it. Its arguments in memory may have changed by then, so this decides nothing. Linux 5.5.
    Continues,
}

/// Takes a call that waits. `None` if its maker has ended meanwhile, or a signal came.
pub fn receive(listener: impl AsFd) -> Result<Option<Notification>> {
    // SAFETY: a structure of integers, for which zeroes are values; the kernel wants them.
    let mut raw: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let listener = listener.as_fd().as_raw_fd();
    // SAFETY: the request takes a structure of this type, which lives through the call.
    let result = unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut raw) };
    match check(result.into(), || "ioctl(SECCOMP_IOCTL_NOTIF_RECV)".to_owned()) {
        Err(error) if matches!(error.errno(), Errno::ENOENT | Errno::EINTR) => Ok(None),
        Err(error) => Err(error),
        Ok(_) => Ok(Some(Notification {
            id: raw.id,
            pid: raw.pid,
            arch: raw.data.arch,
            number: raw.data.nr.into(),
            arguments: raw.data.args,
        })),
    }
}

/// Whether the call still waits. What was opened by its maker's pid before a yes is its maker's.
pub fn is_waiting(listener: impl AsFd, id: u64) -> bool {
    // SAFETY: the request reads a number that lives through the call.
    let result = unsafe {
        libc::ioctl(listener.as_fd().as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, std::ptr::from_ref(&id))
    };
    result == 0
}

/// Answers a call; fine if its maker has ended meanwhile.
pub fn answer(listener: impl AsFd, id: u64, answer: Answer) -> Result<()> {
    let (val, error, flags) = match answer {
        Answer::Returns(value) => (value, 0, 0),
        Answer::Fails(errno) => (0, -(errno as i32), 0),
        Answer::Continues => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
    };
    let response = libc::seccomp_notif_resp { id, val, error, flags };
    // SAFETY: the request reads a structure of this type, which lives through the call.
    let result = unsafe {
        libc::ioctl(listener.as_fd().as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, std::ptr::from_ref(&response))
    };
    match check(result.into(), || "ioctl(SECCOMP_IOCTL_NOTIF_SEND)".to_owned()) {
        Err(error) if error.errno() == Errno::ENOENT => Ok(()),
        result => result.map(drop),
    }
}

/// Whether the kernel can let a call continue ([`Answer::Continues`]).
pub fn is_possible() -> bool {
    // What came with 5.5 cannot be asked for; WAIT_KILLABLE_RECV (5.19) is the next that can.
    let flags = crate::seccomp::Flags::NEW_LISTENER | crate::seccomp::Flags::WAIT_KILLABLE_RECV;
    crate::seccomp::check_flags(flags).is_ok()
}
