//! The role `owner`: root of the outer user namespace over one snapshot or volume, for the moment it takes to turn true owners into
//! data ("reclaim"), data into owners ("restore"), everything into nothing ("remove"), or what a running container has
//! changed into an archive ("archive") or a list ("changes"), for which it only reads.
//!
//! Theory of operation
//! - *Rights*: a plain user's process joins the outer user namespace and is root there over files of mapped ids. The
//!   process of an engine that runs as root has those rights as it is; it sees other numbers for the same owners, so it
//!   reads the outer namespace's map to write the same log. It is confined to one tree by working from one descriptor.
//! - *Home*: the owner that every file has at rest, which is 0:0 in either view.
//! - *Reclaim* walks twice: first it writes the log (complete, synced, then in place by rename), then it changes what is
//!   not at home. Killed before the rename nothing has happened; killed after it the next run finds log and half-changed
//!   files, and believes the log for each file that is at home or still has the logged owner, the file otherwise.
//! - *Restore* applies the log, syncs what it did where that must last, then removes it. A container must not start before that. The caller may
//!   have changed a volume at rest: a mode that is another than was left stays, and only a file that is as it was gets
//!   set-id bits and a capability.
//! - `work` holds nothing of value: it is brought home without a log.
//! - The *tree of an image* is never written to, so its log, which is made with it, holds for good: both ways it is what the log
//!   names that is changed, without a walk. Who asks for that says by marks of its own what has been done.
//! - Nothing follows a link: a file is held by an `O_PATH` descriptor while it is changed.

use std::cell::Cell;
use std::ffi::{CStr, CString, OsStr};
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use base::{Failure, Kind, Report};
use index::Index;
use layer::TarWriter;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmodat, fstat, fstatat};
use nix::unistd::{Gid, Uid, fchownat};
use overlayfs::acl;
use sys::error::{Call, Result, SysError};
use sys::namespace::{Extent, IdMap, parse_map, proc_dir};
use sys::path::open_in;
use sys::role::Inherited;
use sys::xattr::{self, Existing};
use sys::{process, socket};

use crate::archive::write_native;
use crate::changes::{ChangesError, Truth, changes_in};
use crate::directory::Driver;
use crate::fs_server::objects;
use crate::lower::{ChainLower, HostLower, Lower};
use crate::owner_client::{ArchiveOrder, Task, Tree};
use crate::owner_log::{self, ATTRIBUTES, CAPABILITY, Owners, Record, Stamp, Writer};
use crate::tree_walk::{At, Visitor, remove_contents, walk};

/// The role's entry; what it is given is described at `Task`.
pub fn main(mut inherited: Inherited) -> ExitCode {
    let report = match inherited.fd("report") {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {}", Report::from(error));
            return ExitCode::FAILURE;
        }
    };
    let (answer, code) = match run(&mut inherited) {
        Ok(count) => (format!("done {count}").into_bytes(), ExitCode::SUCCESS),
        Err(report) => (serde_json::to_vec(&Failure::from(&report)).unwrap_or_default(), ExitCode::FAILURE),
    };
    // Nobody waits for it any more when this fails.
    let _sent = socket::send(report.as_fd(), &answer, &[]);
    code
}

/// Does the task; the answer is what it counted.
fn run(inherited: &mut Inherited) -> std::result::Result<u64, Report> {
    let task: Task = serde_json::from_slice(&inherited.config).map_err(|error| Report::of(Kind::Internal, error))?;
    let dir = inherited.fd("dir")?;
    let outer = inherited.fd("outer")?;
    nix::sys::prctl::set_no_new_privs().call(|| "prctl(PR_SET_NO_NEW_PRIVS)".to_owned())?;
    let as_they_are = matches!(task, Task::Reclaim(Tree::Volume) | Task::Restore(Tree::Volume));
    let ids = if as_they_are && nix::unistd::geteuid().is_root() { Ids::Inside } else { become_root(outer.as_fd())? };
    // After the change of credentials: in the namespace that it has joined nobody may look into it.
    nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
    match task {
        Task::Reclaim(tree) => reclaim(dir.as_fd(), &ids, tree)?,
        Task::Restore(tree) => restore(dir.as_fd(), &ids, tree).map_err(with_hint)?,
        Task::Remove => remove_contents(dir.as_fd())?,
        Task::Archive(order) => return Ok(read(dir.as_fd(), &ids, &order, Form::Layer, inherited)?),
        Task::Changes(order) => return Ok(read(dir.as_fd(), &ids, &order, Form::List, inherited)?),
    }
    Ok(0)
}

/// Says what helps where a file system keeps no owners but one.
fn with_hint(error: SysError) -> Report {
    let refused = matches!(error.errno(), Errno::EPERM | Errno::EOPNOTSUPP);
    let report = Report::from(error);
    if !refused {
        return report;
    }
    report.with_hint(
        "the file system of the data directory may keep no owner but you (NFS does so); a container with --userns=single \
         needs no other, and the storage driver fuse keeps owners as data",
    )
}

/// What is written of the changes of an upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The archive of a layer.
    Layer,
    /// Their kinds and paths.
    List,
}

/// Writes what the upper changes; how many sockets were left out of the archive.
fn read(
    snapshot: BorrowedFd<'_>,
    ids: &Ids,
    order: &ArchiveOrder,
    form: Form,
    inherited: &mut Inherited,
) -> std::result::Result<u64, ChangesError> {
    let all = [Extent { inside: 0, outside: 0, size: u32::MAX }];
    let outer = match ids {
        Ids::Inside => (&all[..], &all[..]),
        Ids::Outside { uids, gids } => (&uids[..], &gids[..]),
    };
    let truth = Truth::of(snapshot, &order.meta, Some(outer))?;
    let upper = open_dir(snapshot, c"upper")?;
    let out = BufWriter::with_capacity(1 << 16, std::fs::File::from(inherited.fd("archive")?));
    if let Some(config) = &order.host {
        return write(upper.as_fd(), &HostLower::open(config)?, &truth, order, form, out);
    }
    let file = inherited.fd("index")?;
    let index = Index::open(&file).map_err(|_| SysError::new("index of the image", Errno::EUCLEAN))?;
    let compares = form == Form::Layer && order.meta.driver == Driver::Copy;
    let objects = compares.then(|| objects(inherited)).transpose()?;
    let lower = ChainLower { index: &index, ids: order.ids, objects: objects.as_ref() };
    write(upper.as_fd(), &lower, &truth, order, form, out)
}

fn write<L: Lower>(
    upper: BorrowedFd<'_>,
    lower: &L,
    truth: &Truth<'_>,
    order: &ArchiveOrder,
    form: Form,
    mut out: impl Write,
) -> std::result::Result<u64, ChangesError> {
    let (mut sockets, words) = (0, || "write(archive)".to_owned());
    match form {
        Form::Layer => {
            let mut to = TarWriter::new(&mut out, order.latest_s);
            sockets = write_native(upper, lower, truth, &order.ours, &mut to)?;
            to.finish()?;
        }
        Form::List => {
            for change in changes_in(upper, lower, truth, &|path| order.ours.has(path))? {
                out.write_all(&change.to_bytes()).call(words)?;
            }
        }
    }
    out.flush().call(words)?;
    Ok(sockets)
}

/// How the owners that we see are written in the log.
enum Ids {
    /// As they are: we are inside the outer user namespace, or what we see is written in its ids.
    Inside,
    /// Through the outer namespace's maps: we are root outside.
    Outside { uids: IdMap, gids: IdMap },
}

/// The id that stands for an owner which is not mapped: `overflowuid` of the kernel.
const NOBODY: u32 = 65_534;

impl Ids {
    fn logged(&self, uid: u32, gid: u32) -> (u32, u32) {
        let shift = |map: &[Extent], id: u32| {
            let found =
                map.iter().find_map(|e| id.checked_sub(e.outside).filter(|n| *n < e.size).map(|n| e.inside + n));
            found.unwrap_or(NOBODY)
        };
        match self {
            Ids::Inside => (uid, gid),
            Ids::Outside { uids, gids } => (shift(uids, uid), shift(gids, gid)),
        }
    }

    /// `EOVERFLOW` when the map has become smaller since it was logged.
    fn on_disk(&self, uid: u32, gid: u32) -> Result<(u32, u32)> {
        let shift = |map: &[Extent], id: u32| {
            let found =
                map.iter().find_map(|e| id.checked_sub(e.inside).filter(|n| *n < e.size).map(|n| e.outside + n));
            found.ok_or_else(|| SysError::new(format!("id {id} in the outer user namespace"), Errno::EOVERFLOW))
        };
        match self {
            Ids::Inside => Ok((uid, gid)),
            Ids::Outside { uids, gids } => Ok((shift(uids, uid)?, shift(gids, gid)?)),
        }
    }
}

impl Ids {
    /// An attribute of a file as the log has it: the ids of an ACL are those of the outer user namespace too.
    fn logged_attribute(&self, name: &CStr, mut value: Vec<u8>) -> Vec<u8> {
        if acl::is_one(name.to_bytes()) {
            acl::show(&mut value, |uid, gid| self.logged(uid, gid));
        }
        value
    }

    /// The other way.
    fn attribute_on_disk(&self, name: &CStr, value: &[u8]) -> Result<Vec<u8>> {
        let (mut value, failed) = (value.to_vec(), Cell::new(None));
        if acl::is_one(name.to_bytes()) {
            acl::show(&mut value, |uid, gid| {
                self.on_disk(uid, gid).unwrap_or_else(|error| {
                    failed.set(Some(error));
                    (uid, gid)
                })
            });
        }
        failed.into_inner().map_or(Ok(value), Err)
    }
}

/// As a plain user joins the outer user namespace; as root stays and reads its maps.
fn become_root(outer: BorrowedFd<'_>) -> Result<Ids> {
    let join = || setns(outer, CloneFlags::CLONE_NEWUSER).call(|| "setns(outer user namespace)".to_owned());
    if !nix::unistd::geteuid().is_root() {
        join()?;
        nix::unistd::setresgid(0.into(), 0.into(), 0.into()).call(|| "setresgid(0)".to_owned())?;
        nix::unistd::setresuid(0.into(), 0.into(), 0.into()).call(|| "setresuid(0)".to_owned())?;
        return Ok(Ids::Inside);
    }
    // The maps are shown by the processes inside: one goes there and waits.
    let (ours, theirs) = socket::pair()?;
    let child = process::fork(process::Flags::empty(), None, || {
        let joined = join().and_then(|()| {
            // After the change of credentials, which clears it.
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).call(|| "prctl(PDEATHSIG)".to_owned())?;
            socket::send(theirs.as_fd(), b"in", &[])
        });
        if joined.is_ok() {
            nix::unistd::pause();
        }
        1
    })?;
    drop(theirs);
    let arrived = socket::receive(ours.as_fd(), &mut [0; 8]);
    let maps = arrived.and_then(|_| proc_dir(child.pid)).and_then(|proc| {
        Ok(Ids::Outside { uids: read_map(proc.as_fd(), c"uid_map")?, gids: read_map(proc.as_fd(), c"gid_map")? })
    });
    process::pidfd_send_signal(child.pidfd.as_fd(), nix::libc::SIGKILL)?;
    process::reap(child.pidfd.as_fd(), true)?;
    maps
}

fn read_map(proc: BorrowedFd<'_>, name: &CStr) -> Result<IdMap> {
    let call = || format!("read(/proc/PID/{name:?})");
    let file = openat(proc, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).call(call)?;
    let text = std::io::read_to_string(std::fs::File::from(file)).call(call)?;
    parse_map(&text).ok_or_else(|| SysError::new(call(), Errno::EINVAL))
}

fn open_dir(snapshot: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(snapshot, name, flags, Mode::empty()).call(|| format!("open(snapshot/{name:?})"))
}

/// Runs a visitor over a directory itself and everything below it.
fn visit(root: BorrowedFd<'_>, visitor: &mut impl Visitor) -> Result<()> {
    let stat = fstatat(root, c".", AtFlags::AT_SYMLINK_NOFOLLOW).call(|| "fstatat(root of a walk)".to_owned())?;
    visitor.enter(&At { parent: root, name: c".", path: b".", stat: &stat })?;
    walk(root, visitor)
}

/// Does something with each entry that a log names. One that is not there any more is passed over.
fn visit_named(
    root: BorrowedFd<'_>,
    owners: Owners,
    mut visitor: impl FnMut(&At<'_>, &Record) -> Result<()>,
) -> Result<()> {
    let mut named: Vec<(Vec<u8>, Record)> = owners.into_iter().collect();
    // So that each directory is opened once.
    named.sort_unstable_by(|(one, _), (other, _)| split(one).cmp(&split(other)));
    let mut opened: Option<(&[u8], OwnedFd)> = None;
    for (path, told) in &named {
        let words = |call: &str| format!("{call}({:?})", String::from_utf8_lossy(path));
        let (parent, name) = split(path);
        let parent = match &opened {
            Some((known, open)) if *known == parent => open.as_fd(),
            _ => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
                let at = if parent.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(parent)) };
                match open_in(root, at, flags, Mode::empty()) {
                    Err(error) if matches!(error.errno(), Errno::ENOENT | Errno::ENOTDIR) => continue,
                    found => opened.insert((parent, found?)).1.as_fd(),
                }
            }
        };
        let name = CString::new(name).map_err(|_| SysError::new(words("fstatat"), Errno::EINVAL))?;
        let stat = match fstatat(parent, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => continue,
            stat => stat.call(|| words("fstatat"))?,
        };
        visitor(&At { parent, name: &name, path, stat: &stat }, told)?;
    }
    Ok(())
}

/// The directory of a path, empty for the root's, and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter().rposition(|byte| *byte == b'/').map_or((b"", path), |slash| (&path[..slash], &path[slash + 1..]))
}

fn reclaim(snapshot: BorrowedFd<'_>, ids: &Ids, tree: Tree) -> Result<()> {
    let upper = open_dir(snapshot, tree.directory())?;
    let old = owner_log::read(snapshot)?.unwrap_or_default();
    if tree == Tree::Image {
        // Nobody writes to it, so the log that was written with it names all that is not the caller's.
        return visit_named(upper.as_fd(), old, |at, _| Homecoming.enter(at).map(drop));
    }
    let mut logger = Logger { ids, old, log: Writer::new(snapshot) };
    visit(upper.as_fd(), &mut logger)?;
    if logger.log.finish(tree.is_kept())? > 0 {
        visit(upper.as_fd(), &mut Homecoming)?;
    }
    match open_dir(snapshot, c"work") {
        Ok(work) if tree == Tree::Upper => visit(work.as_fd(), &mut Homecoming),
        // A copy has none.
        Err(error) if tree == Tree::Upper && error.errno() != Errno::ENOENT => Err(error),
        _ => Ok(()),
    }
}

impl Tree {
    /// Whether a power loss must leave its owners known.
    fn is_kept(self) -> bool {
        matches!(self, Tree::Upper | Tree::Volume)
    }

    fn directory(self) -> &'static CStr {
        match self {
            Tree::Upper | Tree::Volatile => c"upper",
            Tree::Image => c"tree",
            Tree::Volume => c"_data",
        }
    }
}

/// The mode that lets its owner read and delete.
fn open_mode(mode: u32) -> u32 {
    match mode & nix::libc::S_IFMT {
        nix::libc::S_IFDIR => mode | 0o700,
        nix::libc::S_IFREG => mode | 0o600,
        _ => mode,
    }
}

/// Set-user-id and set-group-id.
const SET_ID: u32 = 0o6000;

/// First pass of reclaim.
struct Logger<'a> {
    ids: &'a Ids,
    old: Owners,
    log: Writer<'a>,
}

impl Visitor for Logger<'_> {
    fn enter(&mut self, at: &At<'_>) -> Result<bool> {
        let stat = at.stat;
        let home = (stat.st_uid, stat.st_gid) == (0, 0);
        let (uid, gid) = self.ids.logged(stat.st_uid, stat.st_gid);
        let told = self.old.get(at.path).filter(|told| {
            told.mode & nix::libc::S_IFMT == at.file_type() && (home || (told.uid, told.gid) == (uid, gid))
        });
        if let Some(told) = told {
            self.log.add(at.path, told)?;
        } else if !home || open_mode(stat.st_mode) != stat.st_mode {
            let (uid, gid) = if home { (0, 0) } else { (uid, gid) };
            let attributes = attributes(at, self.ids)?;
            let stamp = stamp(stat, &attributes);
            self.log.add(at.path, &Record { mode: stat.st_mode, uid, gid, attributes, stamp })?;
        }
        Ok(true)
    }
}

/// Of a regular file that runs with more rights than who calls it has.
fn stamp(stat: &FileStat, attributes: &[(u8, Vec<u8>)]) -> Option<Stamp> {
    let regular = stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFREG;
    let rights = stat.st_mode & SET_ID != 0 || attributes.iter().any(|(number, _)| *number == CAPABILITY);
    (regular && rights).then(|| Stamp::of(stat))
}

/// The attributes that the change will alter. Only files and directories can have them.
fn attributes(at: &At<'_>, ids: &Ids) -> Result<Vec<(u8, Vec<u8>)>> {
    if !matches!(at.file_type(), nix::libc::S_IFREG | nix::libc::S_IFDIR) {
        return Ok(Vec::new());
    }
    let entry = at.open_path()?;
    // One question in place of three: most files have none.
    let names = match xattr::list(&entry) {
        Err(error) if error.errno() == Errno::EOPNOTSUPP => return Ok(Vec::new()),
        names => names?,
    };
    let mut found = Vec::new();
    for (number, name) in
        ATTRIBUTES.iter().enumerate().filter(|(_, name)| names.iter().any(|it| it.as_c_str() == **name))
    {
        if let Some(value) = xattr::get(&entry, name)? {
            found.push((number as u8, ids.logged_attribute(name, value)));
        }
    }
    Ok(found)
}

/// Second pass of reclaim.
struct Homecoming;

impl Visitor for Homecoming {
    fn enter(&mut self, at: &At<'_>) -> Result<bool> {
        let home = (at.stat.st_uid, at.stat.st_gid) == (0, 0);
        // Nobody else's program may run as the caller.
        let others = !home && at.file_type() == nix::libc::S_IFREG;
        let mode = open_mode(at.stat.st_mode) & if others { !SET_ID } else { !0 };
        if home && mode == at.stat.st_mode {
            return Ok(true);
        }
        let entry = at.open_path()?;
        if !home {
            chown(at, &entry, 0, 0)?;
        }
        if mode != at.stat.st_mode {
            chmod(at, &entry, mode)?;
        }
        Ok(true)
    }
}

fn chown(at: &At<'_>, entry: &OwnedFd, uid: u32, gid: u32) -> Result<()> {
    fchownat(entry, c"", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_EMPTY_PATH)
        .call(|| at.words(&format!("chown {uid}:{gid}")))
}

/// By way of the descriptor's magic link, since fchmod(2) refuses `O_PATH`. Never called for a symbolic link.
fn chmod(at: &At<'_>, entry: &OwnedFd, mode: u32) -> Result<()> {
    let link = sys::path::proc_fd(entry.as_fd());
    let mode = Mode::from_bits_truncate(mode & 0o7777);
    fchmodat(nix::fcntl::AT_FDCWD, link.as_c_str(), mode, FchmodatFlags::FollowSymlink)
        .call(|| at.words(&format!("chmod {:o}", mode.bits())))
}

fn restore(snapshot: BorrowedFd<'_>, ids: &Ids, tree: Tree) -> Result<()> {
    let Some(owners) = owner_log::read(snapshot)? else { return Ok(()) };
    let upper = open_dir(snapshot, tree.directory())?;
    let mut restorer = Restorer { ids, keeps_owners: false };
    if tree == Tree::Image {
        // The log goes on to be right.
        return visit_named(upper.as_fd(), owners, |at, told| restorer.apply(at, told));
    }
    visit(upper.as_fd(), &mut Restoring { restorer, owners })?;
    if tree.is_kept() {
        // A power loss must not take the owners back while the log is gone.
        nix::unistd::syncfs(&upper).call(|| "syncfs(snapshot)".to_owned())?;
    }
    owner_log::remove(snapshot)
}

/// A walk that restores what the log names.
struct Restoring<'a> {
    restorer: Restorer<'a>,
    owners: Owners,
}

impl Visitor for Restoring<'_> {
    fn enter(&mut self, at: &At<'_>) -> Result<bool> {
        if let Some(told) = self.owners.get(at.path) {
            self.restorer.apply(at, told)?;
        }
        Ok(true)
    }
}

struct Restorer<'a> {
    ids: &'a Ids,
    /// Whether the file system has been seen to do so.
    keeps_owners: bool,
}

impl Restorer<'_> {
    /// Gives an entry what the log says of it, if it is still of that type.
    fn apply(&mut self, at: &At<'_>, told: &Record) -> Result<()> {
        if told.mode & nix::libc::S_IFMT != at.file_type() {
            return Ok(());
        }
        let entry = at.open_path()?;
        let (uid, gid) = self.ids.on_disk(told.uid, told.gid)?;
        self.give(at, &entry, (uid, gid))?;
        let regular = at.file_type() == nix::libc::S_IFREG;
        let same_mode = mode_is_as_left(at.stat.st_mode, told.mode);
        let unchanged = same_mode && told.stamp.is_none_or(|stamp| !regular || stamp.fits(at.stat));
        let mode = if same_mode { told.mode } else { at.stat.st_mode };
        if at.file_type() != nix::libc::S_IFLNK {
            chmod(at, &entry, if regular && !unchanged { mode & !SET_ID } else { mode })?;
        }
        for (number, value) in &told.attributes {
            // The mode is a part of an ACL.
            if !if *number == CAPABILITY { unchanged } else { same_mode } {
                continue;
            }
            if let Some(name) = ATTRIBUTES.get(usize::from(*number)) {
                match xattr::set(&entry, name, &self.ids.attribute_on_disk(name, value)?, Existing::Any) {
                    // A copy of an image on a file system that has none: the program runs with fewer rights.
                    Err(error) if error.errno() == Errno::EOPNOTSUPP => {}
                    set => set?,
                }
            }
        }
        Ok(())
    }

    fn give(&mut self, at: &At<'_>, entry: &OwnedFd, (uid, gid): (u32, u32)) -> Result<()> {
        let is_another = (uid, gid) != (at.stat.st_uid, at.stat.st_gid);
        match chown(at, entry, uid, gid) {
            // It need not say so where there is nothing to do.
            Err(error) if !is_another && matches!(error.errno(), Errno::EPERM | Errno::EOPNOTSUPP) => {}
            Err(error) if error.errno() == Errno::EINVAL => {
                let words = format!("chown {uid}:{gid}, ids that the user's subordinate ids have no more,");
                return Err(SysError::new(at.words(&words), Errno::EINVAL));
            }
            given => given?,
        }
        if is_another && !self.keeps_owners {
            // Some say that they have done it, and have not.
            let found = fstat(entry).call(|| at.words("fstat"))?;
            if (found.st_uid, found.st_gid) != (uid, gid) {
                return Err(SysError::new(at.words(&format!("chown {uid}:{gid} had no effect")), Errno::EPERM));
            }
            self.keeps_owners = true;
        }
        Ok(())
    }
}

/// Whether a mode is what reclaim, a seed, or half a restore made of the one that was told. Set-id bits get lost on the way.
fn mode_is_as_left(found: u32, told: u32) -> bool {
    let plain = |mode: u32| mode & !SET_ID;
    match told & nix::libc::S_IFMT {
        nix::libc::S_IFREG | nix::libc::S_IFDIR => [plain(told), plain(open_mode(told))].contains(&plain(found)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_that_the_user_changed_is_told_from_ours() {
        for (told, left) in
            [(0o104_755, 0o100_755), (0o106_010, 0o100_610), (0o042_050, 0o040_750), (0o010_644, 0o010_600)]
        {
            assert!(mode_is_as_left(left, told) && mode_is_as_left(told, told), "{told:o}");
        }
        for (told, changed) in [(0o104_755, 0o100_700), (0o040_750, 0o040_755), (0o041_777, 0o040_777)] {
            assert!(!mode_is_as_left(changed, told), "{told:o}");
        }
    }
}
