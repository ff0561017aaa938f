//! Pseudo-terminals of a given devpts instance, controlling terminals and window sizes: pty(7), ioctl_tty(2).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::error::{Call, Result, check};

const TIOCGPTPEER: libc::c_int = 0x5441;

/// Unlocks the pseudo-terminal behind `master`.
pub fn unlock(master: BorrowedFd<'_>) -> Result<()> {
    let locked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int from a live address.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, std::ptr::from_ref(&locked)) };
    check(result.into(), || "ioctl(TIOCSPTLCK)".to_owned())?;
    Ok(())
}

/// Opens the other end of `master` without going through a path: `TIOCGPTPEER`, Linux 4.13.
pub fn peer(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = (OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).bits();
    // SAFETY: takes flags by value and returns a new descriptor.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER as _, flags) };
    check(fd.into(), || "ioctl(TIOCGPTPEER)".to_owned())?;
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the terminal the controlling one of the calling session leader.
pub fn set_controlling(terminal: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the argument 0 (do not steal) is passed by value.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, 0) };
    check(result.into(), || "ioctl(TIOCSCTTY)".to_owned())?;
    Ok(())
}

/// Rows and columns of a terminal's window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Reads the window size; `ENOTTY` when it is no terminal.
pub fn window_size(terminal: BorrowedFd<'_>) -> Result<WindowSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills one winsize at a live, exclusively borrowed address.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ as _, std::ptr::from_mut(&mut size)) };
    check(result.into(), || "ioctl(TIOCGWINSZ)".to_owned())?;
    Ok(WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// Sets the window size; the foreground process group gets SIGWINCH.
pub fn set_window_size(terminal: BorrowedFd<'_>, size: WindowSize) -> Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize from a live address.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, std::ptr::from_ref(&size)) };
    check(result.into(), || "ioctl(TIOCSWINSZ)".to_owned())?;
    Ok(())
}

/// A terminal in raw mode, cfmakeraw(3), until it is dropped.
#[derive(Debug)]
pub struct Raw<T: AsFd> {
    terminal: T,
    before: Termios,
}

impl<T: AsFd> Raw<T> {
    /// `ENOTTY` when it is no terminal.
    pub fn enter(terminal: T) -> Result<Self> {
        let before = tcgetattr(&terminal).call(|| "tcgetattr()".to_owned())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&terminal, SetArg::TCSANOW, &raw).call(|| "tcsetattr(raw)".to_owned())?;
        Ok(Raw { terminal, before })
    }
}

impl<T: AsFd> Drop for Raw<T> {
    fn drop(&mut self) {
        // A terminal that has hung up needs no setting.
        let _ = tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}
