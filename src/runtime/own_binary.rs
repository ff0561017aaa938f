//! Our own binary where a container can reach it: read-only (CVE-2019-5736).
//!
//! A container's command may be `/proc/self/exe`, or a script that names it: then our binary runs inside, and another
//! process there opens it through `/proc/PID/exe` and writes to it once nobody executes it any more. Without root this is
//! worse than with: the binary often belongs to the very user who is root inside. So whatever of ours becomes a payload is
//! executed from a clone of the binary's mount that is read-only and attached nowhere, or where that cannot be made
//! from a sealed copy in memory. What it executes by `/proc/self/exe` in its turn is as protected.
//!
//! - The engine executes the monitor from the clone, and with it the stage, whose copy init is, and the role exec. The fs
//!   role made the clone along with its mount and hands it to every user of the view, so a start costs no process for it.
//! - The OCI runtime has nobody to ask, and executes itself once more.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::Seek;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;

use base::{Context, Report};
use nix::fcntl::{AtFlags, FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{AccessFlags, execveat, faccessat, geteuid};
use sys::own_binary::{EXE, is_running, read_only_clone};
use sys::process::{Flags, fork, reap};
use sys::{Call, Errno, SysError};

/// The binary to execute what becomes a container's process from: `given`, if that is a read-only clone of the running
/// binary, or one that is made now. The caller must have one thread.
pub fn for_containers(given: Option<OwnedFd>) -> Result<OwnedFd, Report> {
    let usable = |given: &OwnedFd| Ok::<_, SysError>(is_read_only(given)? && is_running(given)?);
    if let Some(given) = given
        && usable(&given).unwrap_or(false)
    {
        return Ok(given);
    }
    let exe = open_exe()?;
    if is_protected(&exe)? { Ok(exe) } else { protected() }
}

/// Executes the running program anew, with its arguments and environment, from where it cannot be written; returns at
/// once where that is so already. The caller must have one thread.
pub fn protect() -> Result<(), Report> {
    if is_protected(&open_exe()?)? {
        return Ok(());
    }
    match execute(&protected()?).step(|| "executing our own binary from a read-only mount".to_owned())? {}
}

fn protected() -> Result<OwnedFd, Report> {
    clone_in_child().or_else(|_| sealed_copy().step(|| "copying our own binary to memory".to_owned()))
}

fn open_exe() -> Result<OwnedFd, SysError> {
    nix::fcntl::open(EXE, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).call(|| format!("open({EXE})"))
}

fn is_read_only(exe: &OwnedFd) -> Result<bool, SysError> {
    Ok(fstatvfs(exe).call(|| format!("fstatvfs({EXE})"))?.flags().contains(FsFlags::ST_RDONLY))
}

/// Whether nobody in a container could write to it: its mount is read-only, its copy is sealed, or it belongs to somebody
/// whose ids no container of ours has.
fn is_protected(exe: &OwnedFd) -> Result<bool, SysError> {
    if is_read_only(exe)? {
        return Ok(true);
    }
    let file = File::open(EXE);
    let sealed = file.as_ref().is_ok_and(|file| {
        let seals = fcntl(file, FcntlArg::F_GET_SEALS).unwrap_or(0);
        SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_WRITE)
    });
    let owner = file.and_then(|file| file.metadata()).map_or(0, |metadata| metadata.uid());
    let writable = faccessat(exe, c"", AccessFlags::W_OK, AtFlags::AT_EACCESS | AtFlags::AT_EMPTY_PATH).is_ok();
    let user = geteuid();
    Ok(sealed || !(user.is_root() || writable || owner == user.as_raw()))
}

/// Clones the binary's mount in a mount namespace of a child's, as the caller itself may not clone mounts.
fn clone_in_child() -> Result<OwnedFd, SysError> {
    let (ours, theirs) = sys::socket::pair()?;
    let user = if geteuid().is_root() { Flags::empty() } else { Flags::NEWUSER };
    let child = fork(user | Flags::NEWNS, None, || {
        let sent = read_only_clone().and_then(|clone| sys::socket::send(theirs.as_fd(), b"exe", &[clone.as_fd()]));
        i32::from(sent.is_err())
    })?;
    drop(theirs);
    let (_, mut fds) = sys::socket::receive(ours.as_fd(), &mut [0; 8])?;
    reap(child.pidfd.as_fd(), true)?;
    fds.pop().ok_or_else(|| SysError::new("cloning the mount of our own binary", Errno::EPERM))
}

fn sealed_copy() -> Result<OwnedFd, SysError> {
    /// Linux 6.3 may want to be told that it will be executed; kernels before do not know the flag.
    const MFD_EXEC: MFdFlags = MFdFlags::from_bits_retain(0x10);
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let copy = memfd_create(c"sublet", flags | MFD_EXEC).or_else(|_| memfd_create(c"sublet", flags));
    let mut copy = File::from(copy.call(|| "memfd_create()".to_owned())?);
    let mut source = File::open(EXE).call(|| format!("open({EXE})"))?;
    std::io::copy(&mut source, &mut copy).and_then(|_| copy.rewind()).call(|| "copy(own binary)".to_owned())?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals)).call(|| "fcntl(F_ADD_SEALS)".to_owned())?;
    Ok(copy.into())
}

fn execute(binary: &OwnedFd) -> Result<Infallible, SysError> {
    let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| SysError::new("an argument has a NUL", Errno::EINVAL));
    let argv = std::env::args_os().map(|word| text(word.into_vec())).collect::<Result<Vec<_>, _>>()?;
    let variables = std::env::vars_os().map(|(name, value)| {
        let mut variable = name.into_vec();
        variable.push(b'=');
        variable.extend(value.into_vec());
        text(variable)
    });
    let envp = variables.collect::<Result<Vec<_>, _>>()?;
    execveat(binary, c"", &argv, &envp, AtFlags::AT_EMPTY_PATH).call(|| "execveat(own binary)".to_owned())
}
