//! The FUSE server side: what a file system answers ([`Filesystem`]), and the connection that carries the questions
//! ([`Session`]).
//!
//! Theory of operation
//! - A file system is a set of blocking functions over node ids. It returns values; it never sees the protocol, a reply
//!   handle or a file handle. Buffers belong to the wire and are reused, so a request costs no allocation here.
//! - *No open.* `OPEN`, `OPENDIR`, `CREATE`, `FLUSH` are answered `ENOSYS` once each; the kernel then stops sending
//!   them, and with them `RELEASE`, for the life of the connection. A warm open, read and close never leaves the kernel.
//!   The price: a file system has no handles, so everything is keyed by node, copy-up happens at the first mutation,
//!   and an unlinked file lives until the kernel forgets its node.
//! - Node id and `st_ino` are the same number.
//! - A panic in a handler becomes `EIO` for that request, a line on standard error and a count, where the binary is
//!   built to unwind; where panics abort, the process ends and its supervisor starts it again. Never a silent dead thread.
//! - A request is bytes that need not be believed ([`Request`]); its answer is written by one call from the thread's own
//!   buffer, or from the memory of the file system.
//! - A connection outlives the process that serves it, as long as somebody has a duplicate of its descriptor: another one
//!   goes on ([`Session::resume`]), and what was read and not answered comes again, marked ([`Caller::resent`]). The file
//!   system must find its nodes again under their numbers, and must not do twice what is not the same twice.
//!
//! This crate knows no images, no store and no mounts: the caller mounts and hands over the `/dev/fuse` descriptor.

mod abi;
mod filesystem;
pub mod op;
mod request;
mod session;

pub use filesystem::{DirSink, EntrySink, Filesystem};
pub use op::{Attr, Caller, Entry, NodeId};
pub use request::{Agreed, Buffers, Request};
pub use session::{Features, Served, Session, SessionError};
