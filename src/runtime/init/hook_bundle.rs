//! What hooks in the container's namespaces take for its bundle, where there is none.
//!
//! A container of the engine has its root file system on top of the host's root directory, where no path leads: before
//! the pivot only a descriptor does. So a hook of the kind createContainer inherits two, and is told of them by the
//! magic links of its own `/proc`: a directory in memory with the specification as `config.json`, and the root
//! directory that this names.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use base::{Kind, Report};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use oci_spec::runtime::{Root, Spec};
use sys::Call;
use sys::mount::{Attr, FsContext};
use sys::path::proc_fd;
use sys::process::keep_over_exec;

/// A bundle for the hooks that run while it is there.
#[derive(Debug)]
pub struct HookBundle {
    directory: OwnedFd,
}

impl HookBundle {
    /// Makes it for a container whose root directory is `root`, and hands both descriptors on to hooks.
    pub fn make(spec: &Spec, root: BorrowedFd<'_>) -> Result<Self, Report> {
        let context = FsContext::open(c"tmpfs")?;
        context.set(c"source", c"bundle")?;
        context.set(c"mode", c"755")?;
        let directory = context.mount(Attr::NOSUID | Attr::NODEV | Attr::NOEXEC)?;
        let mut told = spec.clone();
        let mut place = Root::default();
        place.set_path(link(root)).set_readonly(spec.root().as_ref().and_then(Root::readonly));
        told.set_root(Some(place));
        let text = serde_json::to_vec(&told).map_err(|error| Report::of(Kind::Internal, error))?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = openat(&directory, "config.json", flags, Mode::from_bits_truncate(0o644))
            .call(|| "openat(bundle, config.json, O_CREAT)".to_owned())?;
        File::from(file).write_all(&text).call(|| "write(config.json)".to_owned())?;
        keep_over_exec(root.as_raw_fd())?;
        keep_over_exec(directory.as_raw_fd())?;
        Ok(HookBundle { directory })
    }

    /// Its path, for a process that has inherited it.
    pub fn path(&self) -> PathBuf {
        link(self.directory.as_fd())
    }
}

fn link(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(proc_fd(fd).to_string_lossy().into_owned())
}
