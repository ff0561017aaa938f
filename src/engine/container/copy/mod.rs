//! Copying files between a container and the host, or an archive.
//!
//! Whatever is copied goes through a pipe as an archive, written on the one side ([`pack`]) and read on the other
//! ([`unpack`]). The container's side is a child that joins the container's user and mount namespace (`runtime::visit`): there
//! no path of a hostile container leads out, and files have the owners that they have inside. A container that does not run
//! is set up for the time of the copy, under its lock (`start::hold`).
//!
//! The host's side trusts nothing of what it reads: names go into the destination component by component and follow no link.

mod pack;
mod unpack;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use base::{ContainerId, Context, Kind, Report};
use nix::fcntl::OFlag;
use runtime::channel::{Channel, Message};
use sys::Call;

use crate::Engine;
use crate::container::copy::unpack::{Links, Owners, Source, Target};
use crate::container::lock::{ContainerLock, lock};
use crate::container::record::load;
use crate::container::restart::refuse_between;
use crate::container::rootfs::outer_namespace;
use crate::container::start::{Held, hold};
use crate::container::state::{Condition, Life, condition};

/// What holds for a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// Of a symbolic link as the source its target is copied.
    pub follow: bool,
    /// Owners stay; else what is copied is the container's root's, or the caller's.
    pub keep_owners: bool,
}

/// Copies a file or directory of a container to a path of the host, by the rules of `docker cp`.
pub fn to_host(engine: &Engine, id: &ContainerId, from: &Path, to: &Path, options: CopyOptions) -> Result<(), Report> {
    // Before anything is set up.
    let to = absolute(to)?;
    let owners = if options.keep_owners && nix::unistd::geteuid().is_root() { Owners::Keep } else { Owners::Caller };
    read_from(engine, id, from, options.follow, |archive| {
        let target = Target { path: &to, source: source(from), owners, links: Links::Refused };
        unpack::unpack(archive, &target, &|line| engine.notice(line))
    })
}

/// Writes a file or directory of a container as an archive.
pub fn to_archive(
    engine: &Engine,
    id: &ContainerId,
    from: &Path,
    options: CopyOptions,
    out: &mut dyn Write,
) -> Result<(), Report> {
    read_from(engine, id, from, options.follow, |mut archive| {
        io::copy(&mut archive, out).map(drop).map_err(|error| Report::of(Kind::Internal, error))
    })
}

/// Copies a file or directory of the host into a container.
pub fn from_host(
    engine: &Engine,
    id: &ContainerId,
    from: &Path,
    to: &Path,
    options: CopyOptions,
) -> Result<(), Report> {
    let from = absolute(from)?;
    std::fs::symlink_metadata(&from)
        .map_err(|error| Report::of(Kind::NotFound, error))
        .step(|| format!("lstat {}", from.display()))?;
    let owners = if options.keep_owners { Owners::Keep } else { Owners::Caller };
    let target = Target { path: to, source: source(&from), owners, links: Links::Followed };
    write_to(engine, id, &target, |out| pack::pack(&from, options.follow, out))
}

/// Puts what an archive has, with its owners, into a directory of a container.
pub fn from_archive(engine: &Engine, id: &ContainerId, archive: &mut dyn Read, to: &Path) -> Result<(), Report> {
    let target = Target { path: to, source: Source::Archive, owners: Owners::Keep, links: Links::Followed };
    write_to(engine, id, &target, |out| {
        io::copy(archive, out).map(drop).map_err(|error| Report::of(Kind::Internal, error))
    })
}

fn source(path: &Path) -> Source {
    if pack::means_contents(path) { Source::Contents } else { Source::Tree }
}

fn absolute(path: &Path) -> Result<PathBuf, Report> {
    // Not `std::path::absolute`: what the end of a path says (`/`, `/.`) must stay.
    let here = std::env::current_dir().map_err(|error| Report::of(Kind::Usage, error));
    Ok(here.step(|| format!("finding where {} is", path.display()))?.join(path))
}

/// The container writes an archive of a path of its own.
fn read_from(
    engine: &Engine,
    id: &ContainerId,
    from: &Path,
    follow: bool,
    outside: impl FnOnce(BufReader<File>) -> Result<(), Report>,
) -> Result<(), Report> {
    let name = load(engine, id)?.name;
    let from = Path::new("/").join(from);
    let missing = |report: Report| match report.kind() {
        Kind::NotFound => {
            let text = format!("Could not find the file {} in container {name}", from.display());
            Report::new(Kind::NotFound, text)
        }
        _ => report,
    };
    let inside = |read: File, mut write: File, _: &Channel| {
        drop(read);
        pack::pack(&from, follow, &mut write).map_err(missing)
    };
    through_a_pipe(engine, id, inside, |read, write| {
        drop(write);
        outside(BufReader::new(read))
    })
}

/// The container unpacks an archive.
fn write_to(
    engine: &Engine,
    id: &ContainerId,
    target: &Target<'_>,
    outside: impl FnOnce(&mut dyn Write) -> Result<(), Report>,
) -> Result<(), Report> {
    let path = Path::new("/").join(target.path);
    let target = Target { path: &path, ..*target };
    let inside = |read: File, write: File, channel: &Channel| {
        drop(write);
        unpack::unpack(BufReader::new(read), &target, &|line| channel.notice(line))
    };
    through_a_pipe(engine, id, inside, |read, mut write| {
        drop(read);
        outside(&mut write)
    })
}

/// Does `inside` in the container and `outside` here, with a pipe between. Each drops the end that it does not use.
fn through_a_pipe(
    engine: &Engine,
    id: &ContainerId,
    inside: impl FnOnce(File, File, &Channel) -> Result<(), Report>,
    outside: impl FnOnce(File, File) -> Result<(), Report>,
) -> Result<(), Report> {
    let (condition, held) = ready(engine, id)?;
    let copied = copy(engine, id, &condition, inside, outside);
    let Some((locked, held)) = held else { return copied };
    drop(locked);
    copied.and(held.let_go())
}

fn copy(
    engine: &Engine,
    id: &ContainerId,
    condition: &Condition,
    inside: impl FnOnce(File, File, &Channel) -> Result<(), Report>,
    outside: impl FnOnce(File, File) -> Result<(), Report>,
) -> Result<(), Report> {
    let ended = || Report::new(Kind::Conflict, format!("container {id} has ended"));
    let pids = condition.pids.as_ref().ok_or_else(ended)?;
    let init = pids.init()?.ok_or_else(ended)?;
    let outer = outer_namespace(engine)?;
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).call(|| "pipe2(O_CLOEXEC)".to_owned())?;
    // Each of the two processes takes its own.
    let ends = Cell::new(Some((File::from(read), File::from(write))));
    let (ours, theirs) = Channel::pair()?;
    let channel = &theirs;
    let child = runtime::visit::visit(outer.as_fd(), (pids.pid, init.as_fd()), channel, || {
        let (read, write) = ends.take().ok_or_else(ended)?;
        // Who does not read to the end tells why.
        inside(read, write, channel).or_else(|report| if is_broken_pipe(&report) { Ok(()) } else { Err(report) })
    })?;
    drop(theirs);
    let outside = ends.take().map_or(Ok(()), |(read, write)| outside(read, write));
    let mut failure = None;
    while let Some((message, _)) = ours.receive()? {
        match message {
            Message::Failed(told) => failure = Some(Report::from(told)),
            Message::Notice(line) => engine.notice(&line),
            _ => {}
        }
    }
    sys::process::reap(child.pidfd.as_fd(), true)?;
    failure.map_or(outside, Err)
}

fn is_broken_pipe(report: &Report) -> bool {
    let is_one = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    report.causes().any(|error| error.downcast_ref().is_some_and(is_one))
}

/// A container whose files can be reached: it runs, or is set up for that under its lock.
fn ready(engine: &Engine, id: &ContainerId) -> Result<(Condition, Option<(ContainerLock, Held)>), Report> {
    let running = |condition: &Condition| matches!(condition.life, Life::Running { .. });
    let now = condition(engine, id)?;
    if running(&now) {
        return Ok((now, None));
    }
    let locked = lock(engine, id)?;
    if running(&locked.condition) {
        return Ok((locked.condition, None));
    }
    refuse_between(id, &locked.condition.life)?;
    let held = hold(engine, &load(engine, id)?, &locked)?;
    Ok((condition(engine, id)?, Some((locked, held))))
}
