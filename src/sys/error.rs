//! The error of a system call: reads like one line of a trace, with the errno as its cause.

use std::fmt;

use base::{Explain, Kind};
pub use nix::errno::Errno;

/// A failed system call with its arguments in words.
#[derive(Debug)]
pub struct SysError {
    /// The call as a trace would show it: `openat2(7, "etc/passwd", O_RDONLY)`.
    pub call: String,
    /// Why the kernel refused.
    pub cause: Cause,
}

/// The errno of a failed call; displays as `Permission denied (EACCES)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause(pub Errno);

impl SysError {
    /// Names the call and the errno it ended with.
    pub fn new(call: impl Into<String>, errno: Errno) -> Self {
        SysError { call: call.into(), cause: Cause(errno) }
    }

    /// The error as bytes, for a child process that fails to tell its parent; [`SysError::from_message`] reads it.
    pub fn to_message(&self) -> Vec<u8> {
        format!("{}\n{}", self.errno() as i32, self.call).into_bytes()
    }

    /// The error as it was in the process that has sent it. What is no such message, as the empty one of a process that
    /// died, is an error of `call`.
    pub fn from_message(message: &[u8], call: &str) -> Self {
        let text = String::from_utf8_lossy(message);
        let told = text.split_once('\n').and_then(|(errno, call)| Some((errno.parse().ok()?, call)));
        let (errno, call) = told.map_or((Errno::EIO, call), |(errno, call)| (Errno::from_raw(errno), call));
        SysError::new(call, errno)
    }

    /// The errno alone, to choose a fallback by.
    pub fn errno(&self) -> Errno {
        self.cause.0
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.call)
    }
}

impl std::error::Error for SysError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.0.desc(), self.0)
    }
}

impl std::error::Error for Cause {}

impl Explain for SysError {
    fn kind(&self) -> Kind {
        match self.errno() {
            Errno::EACCES | Errno::EPERM | Errno::EROFS => Kind::Denied,
            Errno::ENOENT => Kind::NotFound,
            Errno::EEXIST | Errno::EBUSY => Kind::Conflict,
            Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::ENODEV => Kind::Unsupported,
            _ => Kind::Internal,
        }
    }
}

/// What a wrapper of `sys` returns.
pub type Result<T> = std::result::Result<T, SysError>;

/// Names the call of a failing `nix` or raw result.
pub trait Call<T> {
    /// Turns the errno into a [`SysError`] that names the call.
    fn call(self, call: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Call<T> for std::result::Result<T, Errno> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| SysError::new(call(), errno))
    }
}

impl<T> Call<T> for std::io::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| SysError::new(call(), error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))
    }
}

/// The result of a raw call: -1 becomes the current errno.
pub(crate) fn check(result: libc::c_long, call: impl FnOnce() -> String) -> Result<libc::c_long> {
    if result == -1 { Err(SysError::new(call(), Errno::last())) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_child_is_the_same_in_its_parent() {
        let told = SysError::new("mount(\"a\nb\")", Errno::EPERM);
        let heard = SysError::from_message(&told.to_message(), "the child died");
        assert_eq!((heard.call.as_str(), heard.errno()), (told.call.as_str(), Errno::EPERM));
        for message in [&b""[..], b"ok", b"x\ny"] {
            let heard = SysError::from_message(message, "the child died");
            assert_eq!((heard.call.as_str(), heard.errno()), ("the child died", Errno::EIO));
        }
    }
}
