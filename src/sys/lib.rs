//! The one crate with `unsafe`: thin wrappers over Linux system calls that `nix` lacks.
//!
//! A wrapper takes borrowed descriptors, typed flags and slices, returns owned descriptors and values, and decides
//! nothing: no policy, no retry (except a documented `EINTR` loop), no logging. Descriptors are close-on-exec from
//! birth. Everything `nix` wraps safely is called through `nix` by the other crates directly.

pub mod bpf;
pub mod error;
pub mod file;
pub mod lock;
pub mod memory;
pub mod mmap;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod netsock;
pub mod notification;
pub mod own_binary;
pub mod path;
pub mod process;
mod random;
pub mod role;
pub mod schedule;
pub mod seccomp;
pub mod security;
pub mod socket;
pub mod staging;
pub mod step;
pub mod terminal;
pub mod tuntap;
pub mod without;
pub mod xattr;

pub use error::{Call, Errno, SysError};
pub use random::random;
pub use step::step;
pub use without::without;
