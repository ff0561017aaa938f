//! The signals of a command that waits for a container's process: they are meant for the process.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sys::{Call, SysError};

/// Those by which a user ends a program.
pub fn ending() -> SigSet {
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM].into_iter().collect()
}

/// All that are handed on, those of real time too: but for what the kernel says of the command itself, its children and its
/// descriptors, and what stops it at the terminal. `SIGWINCH` is handed on as the new size of the terminal, where there is one.
pub fn forwarded() -> SigSet {
    let mut set = SigSet::all();
    let own = [
        Signal::SIGABRT,
        Signal::SIGBUS,
        Signal::SIGCHLD,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGPIPE,
        Signal::SIGSEGV,
        Signal::SIGSYS,
        Signal::SIGTRAP,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGURG,
        Signal::SIGXCPU,
        Signal::SIGXFSZ,
    ];
    for signal in own {
        set.remove(signal);
    }
    set
}

/// Blocks all that are handed on; to be called before the process exists, so that none is lost.
pub fn block() -> Result<(), SysError> {
    forwarded().thread_block().call(|| "sigprocmask(SIG_BLOCK)".to_owned())
}

/// Undoes [`block`]: what came meanwhile ends us now.
pub fn unblock() -> Result<(), SysError> {
    forwarded().thread_unblock().call(|| "sigprocmask(SIG_UNBLOCK)".to_owned())
}

/// A non-blocking descriptor that brings those of a set, which are blocked.
pub fn open(signals: &SigSet) -> Result<SignalFd, SysError> {
    SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).call(|| "signalfd()".to_owned())
}
