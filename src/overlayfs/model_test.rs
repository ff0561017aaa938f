//! Random operations against a small model of POSIX names, with the disk copied after every log record: what a crash
//! leaves must be the state before or after the operation, never another.
#![allow(clippy::unwrap_used, reason = "a failed test is what an unwrap is for")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use index::{Content, Entry, Index, Metadata, TreeBuilder, merge};
use nix::errno::Errno;
use oci::{DiffId, Digest};
use proptest::prelude::*;

use crate::tree::CAPABILITY;
use crate::xattr::SetXattrHow;
use crate::{
    Contents, Difference, Make, Overlay, Policy, ROOT, RenameHow, Request, Result, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG,
    SetAttr,
};

const BIG: &[u8] = b"contents of a lower object, longer than what stands inline";
const PATHS: [&str; 12] = ["a", "b", "d", "d/a", "d/big", "d/x", "e", "e/a", "e/h", "e/d", "e/d/a", "l"];

struct OneObject;

impl Contents for OneObject {
    fn open(&self, _index: &Index, _content: &Content<'_>) -> Result<Arc<File>> {
        let mut file = tempfile::tempfile().map_err(|_| Errno::EIO)?;
        file.write_all(BIG).map_err(|_| Errno::EIO)?;
        Ok(Arc::new(file))
    }
}

fn chain() -> Arc<Index> {
    let mut layer = TreeBuilder::new();
    let mut put = |path: &str, permissions, entry| {
        let metadata = Metadata { permissions, uid: 3, gid: 4, ..Metadata::default() };
        layer.insert(path.as_bytes(), &metadata, entry).unwrap();
    };
    put("", 0o755, Entry::Directory);
    put("a", 0o644, Entry::InlineFile(b"inline".to_vec()));
    put("d", 0o755, Entry::Directory);
    put("d/a", 0o4755, Entry::InlineFile(b"privileged".to_vec()));
    let digest = Digest::from_bytes([7; 32]);
    put("d/big", 0o600, Entry::ObjectFile { digest, size: BIG.len() as u64 });
    put("e", 0o700, Entry::Directory);
    put("e/d", 0o755, Entry::Directory);
    put("e/d/a", 0o644, Entry::EmptyFile);
    put("l", 0o777, Entry::Symlink(b"d/a".to_vec()));
    layer.hard_link(b"e/h", b"d/big").unwrap();
    let bytes = layer.write(DiffId(Digest::from_bytes([1; 32])), None).unwrap();
    let layer = Index::from_bytes(bytes).unwrap();
    Arc::new(Index::from_bytes(merge(&[&layer]).unwrap()).unwrap())
}

fn open(dir: &Path) -> Overlay {
    let dir = File::open(dir).unwrap().into();
    Overlay::open(dir, chain(), Arc::new(OneObject), Policy::Durable).unwrap()
}

/// What can be seen of one path. Times are left out; `group` tells hard links.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    bytes: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    group: String,
}

impl Seen {
    /// What the kernel does when somebody without CAP_FSETID over the host changes a file.
    fn take_set_id(&mut self) {
        let group = if self.mode & 0o10 != 0 { 0o2000 } else { 0 };
        self.mode &= !(0o4000 | group);
    }
}

type View = BTreeMap<String, Seen>;

fn observe(overlay: &Overlay) -> View {
    let mut view = View::new();
    let mut first = BTreeMap::new();
    let mut pending = vec![(ROOT, String::new())];
    while let Some((dir, path)) = pending.pop() {
        let mut names = Vec::new();
        overlay
            .list(dir, 0, false, |listed| {
                names.push((String::from_utf8(listed.name.to_vec()).unwrap(), listed.attr));
                true
            })
            .unwrap();
        for (name, attr) in names.into_iter().filter(|(name, _)| name != "." && name != "..") {
            assert_eq!(overlay.lookup(dir, name.as_bytes()).unwrap(), Some(attr));
            let path = format!("{path}/{name}");
            let mut buffer = vec![0; 4096];
            let bytes = match attr.mode & S_IFMT {
                S_IFREG => overlay.read_data(attr.ino, 0, &mut buffer).unwrap().to_vec(),
                S_IFLNK => overlay.readlink(attr.ino, &mut buffer).unwrap().to_vec(),
                S_IFDIR => {
                    pending.push((attr.ino, path.clone()));
                    Vec::new()
                }
                _ => Vec::new(),
            };
            if attr.mode & S_IFMT != S_IFDIR {
                assert_eq!(attr.size, bytes.len() as u64, "{path}");
            }
            let mut list = Vec::new();
            overlay.xattr_names(attr.ino, &mut list).unwrap();
            let mut xattrs = BTreeMap::new();
            for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                xattrs.insert(name.to_vec(), overlay.xattr(attr.ino, name, &mut [0; 64]).unwrap().to_vec());
            }
            first
                .entry(attr.ino)
                .and_modify(|known: &mut String| *known = known.clone().min(path.clone()))
                .or_insert(path.clone());
            let group = attr.ino.to_string();
            view.insert(
                path,
                Seen { mode: attr.mode, uid: attr.uid, gid: attr.gid, nlink: attr.nlink, bytes, xattrs, group },
            );
        }
    }
    for seen in view.values_mut() {
        seen.group = first[&seen.group.parse().unwrap()].clone();
    }
    view
}

/// The model: inodes by number, each with the paths' meaning spelled out as plainly as possible.
#[derive(Clone)]
struct Model {
    inodes: Vec<Seen>,
    names: BTreeMap<String, usize>,
}

impl Model {
    fn of(view: &View) -> Model {
        let mut model = Model { inodes: Vec::new(), names: BTreeMap::new() };
        let mut groups = BTreeMap::new();
        for (path, seen) in view {
            let ino = *groups.entry(seen.group.clone()).or_insert_with(|| {
                model.inodes.push(seen.clone());
                model.inodes.len() - 1
            });
            model.names.insert(path.clone(), ino);
        }
        model
    }

    fn view(&self) -> View {
        let mut first = BTreeMap::new();
        for (path, ino) in &self.names {
            first.entry(*ino).or_insert(path.clone());
        }
        let count = |ino: usize, path: &str| match self.inodes[ino].mode & S_IFMT {
            S_IFDIR => {
                2 + self
                    .below(path)
                    .filter(|(name, at)| !name[path.len() + 1..].contains('/') && self.is_dir(**at))
                    .count()
            }
            _ => self.names.values().filter(|at| **at == ino).count(),
        };
        self.names
            .iter()
            .map(|(path, ino)| {
                let nlink = count(*ino, path) as u32;
                (path.clone(), Seen { nlink, group: first[ino].clone(), ..self.inodes[*ino].clone() })
            })
            .collect()
    }

    fn below(&self, path: &str) -> impl Iterator<Item = (&String, &usize)> {
        let prefix = format!("{path}/");
        self.names.iter().filter(move |(name, _)| name.starts_with(&prefix))
    }

    fn is_dir(&self, ino: usize) -> bool {
        self.inodes[ino].mode & S_IFMT == S_IFDIR
    }

    fn get(&self, path: &str) -> Result<usize> {
        let parent = path.rsplit_once('/').unwrap().0;
        if !parent.is_empty() {
            let up = self.get(parent)?;
            if !self.is_dir(up) {
                return Err(Errno::ENOTDIR);
            }
        }
        self.names.get(path).copied().ok_or(Errno::ENOENT)
    }

    fn free(&self, path: &str) -> Result<()> {
        match self.get(path) {
            Ok(_) => Err(Errno::EEXIST),
            Err(Errno::ENOENT) => match path.rsplit_once('/').unwrap().0 {
                "" => Ok(()),
                parent => self.get(parent).map(drop),
            },
            Err(errno) => Err(errno),
        }
    }

    fn file(&mut self, path: &str) -> Result<&mut Seen> {
        let ino = self.get(path)?;
        let seen = &mut self.inodes[ino];
        match seen.mode & S_IFMT {
            S_IFREG => Ok(seen),
            S_IFDIR => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn take_tree(&mut self, path: &str) -> Vec<(String, usize)> {
        let mut taken: Vec<_> = self.below(path).map(|(name, ino)| (name[path.len()..].to_owned(), *ino)).collect();
        taken.push((String::new(), self.names[path]));
        for (rest, _) in &taken {
            self.names.remove(&format!("{path}{rest}"));
        }
        taken
    }

    fn put_tree(&mut self, path: &str, tree: Vec<(String, usize)>) {
        self.names.extend(tree.into_iter().map(|(rest, ino)| (format!("{path}{rest}"), ino)));
    }

    fn rename(&mut self, from: &str, to: &str, exchange: bool) -> Result<()> {
        let moved = self.get(from)?;
        let target = match self.get(to) {
            Ok(ino) => Some(ino),
            Err(Errno::ENOENT) => {
                self.free(to)?;
                None
            }
            Err(errno) => return Err(errno),
        };
        if self.is_dir(moved) && to.starts_with(&format!("{from}/")) {
            return Err(Errno::EINVAL);
        }
        let Some(target) = target else {
            if exchange {
                return Err(Errno::ENOENT);
            }
            let tree = self.take_tree(from);
            self.put_tree(to, tree);
            return Ok(());
        };
        if self.is_dir(target) && from.starts_with(&format!("{to}/")) {
            return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if target == moved {
            return Ok(());
        }
        if !exchange {
            match (self.is_dir(moved), self.is_dir(target)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if self.below(to).next().is_some() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        let (moved, target) = (self.take_tree(from), self.take_tree(to));
        self.put_tree(to, moved);
        if exchange {
            self.put_tree(from, target);
        }
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Result<()> {
        let new = |mode, bytes: &[u8]| Seen {
            mode,
            uid: 1,
            gid: 2,
            nlink: 0,
            bytes: bytes.to_vec(),
            xattrs: BTreeMap::new(),
            group: String::new(),
        };
        match op {
            Op::Make(path, kind) => {
                self.free(path)?;
                let mut made = new(*kind | 0o644, if *kind == S_IFLNK { b"to" } else { b"" });
                let parent = self.names.get(path.rsplit_once('/').unwrap().0).map(|ino| &self.inodes[*ino]);
                if let Some(parent) = parent.filter(|parent| parent.mode & 0o2000 != 0) {
                    made.gid = parent.gid;
                    made.mode |= if *kind == S_IFDIR { 0o2000 } else { 0 };
                }
                self.inodes.push(made);
                self.names.insert(path.clone(), self.inodes.len() - 1);
            }
            Op::Link(from, to) => {
                let ino = self.get(from)?;
                if self.is_dir(ino) {
                    return Err(Errno::EPERM);
                }
                self.free(to)?;
                self.names.insert(to.clone(), ino);
            }
            Op::Unlink(path) => {
                let ino = self.get(path)?;
                if self.is_dir(ino) {
                    return Err(Errno::EISDIR);
                }
                self.names.remove(path);
            }
            Op::Rmdir(path) => {
                let ino = self.get(path)?;
                if !self.is_dir(ino) {
                    return Err(Errno::ENOTDIR);
                }
                if self.below(path).next().is_some() {
                    return Err(Errno::ENOTEMPTY);
                }
                self.names.remove(path);
            }
            Op::Rename(from, to, exchange) => self.rename(from, to, *exchange)?,
            Op::Write(path, at, byte) => {
                let bytes = &mut self.file(path)?.bytes;
                bytes.resize(bytes.len().max(at + 1), 0);
                bytes[*at] = *byte;
            }
            Op::Truncate(path, size) => {
                let seen = self.file(path)?;
                seen.bytes.resize(*size, 0);
                seen.take_set_id();
            }
            Op::Chown(path, uid) => {
                let ino = self.get(path)?;
                let seen = &mut self.inodes[ino];
                seen.uid = *uid;
                if seen.mode & S_IFMT != S_IFDIR {
                    seen.take_set_id();
                }
            }
            Op::Chmod(path, mode) => {
                let ino = self.get(path)?;
                let seen = &mut self.inodes[ino];
                seen.mode = seen.mode & S_IFMT | mode;
            }
            Op::Xattr(path, value) => {
                let ino = self.get(path)?;
                let xattrs = &mut self.inodes[ino].xattrs;
                match value {
                    Some(value) => xattrs.insert(b"user.x".to_vec(), vec![*value]).map_or((), drop),
                    None => xattrs.remove(&b"user.x"[..]).map(drop).ok_or(Errno::ENODATA)?,
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Op {
    Make(String, u32),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, bool),
    Write(String, usize, u8),
    Truncate(String, usize),
    Chown(String, u32),
    Chmod(String, u32),
    Xattr(String, Option<u8>),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let path = || prop::sample::select(PATHS.to_vec()).prop_map(|path| format!("/{path}"));
    let kind = prop::sample::select(vec![S_IFREG, S_IFREG, S_IFDIR, S_IFLNK, nix::libc::S_IFIFO]);
    let op = prop_oneof![
        3 => (path(), kind).prop_map(|(path, kind)| Op::Make(path, kind)),
        1 => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        2 => path().prop_map(Op::Unlink),
        1 => path().prop_map(Op::Rmdir),
        4 => (path(), path(), any::<bool>()).prop_map(|(from, to, exchange)| Op::Rename(from, to, exchange)),
        2 => (path(), 0usize..80, any::<u8>()).prop_map(|(path, at, byte)| Op::Write(path, at, byte)),
        2 => (path(), 0usize..80).prop_map(|(path, size)| Op::Truncate(path, size)),
        1 => (path(), 0u32..9).prop_map(|(path, uid)| Op::Chown(path, uid)),
        1 => (path(), 0u32..0o7777).prop_map(|(path, mode)| Op::Chmod(path, mode)),
        1 => (path(), any::<Option<u8>>()).prop_map(|(path, value)| Op::Xattr(path, value)),
    ];
    prop::collection::vec(op, 1..40)
}

/// The directory of a path and its last name.
fn split<'p>(overlay: &Overlay, path: &'p str) -> Result<(u64, &'p [u8])> {
    let (parent, name) = path.rsplit_once('/').unwrap();
    let mut dir = ROOT;
    for step in parent.split('/').filter(|step| !step.is_empty()) {
        dir = overlay.lookup(dir, step.as_bytes())?.ok_or(Errno::ENOENT)?.ino;
    }
    Ok((dir, name.as_bytes()))
}

fn run(overlay: &Overlay, op: &Op) -> Result<()> {
    let request = Request { unique: 9, uid: 1, gid: 2, ..Request::default() };
    let root = Request { uid: 0, ..request };
    let find = |path: &str| {
        let (dir, name) = split(overlay, path)?;
        Ok(overlay.lookup(dir, name)?.ok_or(Errno::ENOENT)?.ino)
    };
    let set = |path: &str, change: SetAttr| overlay.setattr(&root, find(path)?, &change).map(drop);
    match op {
        Op::Make(path, kind) => {
            let (dir, name) = split(overlay, path)?;
            let make = Make { mode: kind | 0o644, umask: 0, rdev: 0, target: b"to" };
            overlay.create(&request, dir, name, &make, false).map(drop)
        }
        Op::Link(from, to) => {
            let ino = find(from)?;
            if overlay.attr(ino)?.mode & S_IFMT == S_IFDIR {
                return Err(Errno::EPERM);
            }
            let (dir, name) = split(overlay, to)?;
            overlay.link(&request, ino, dir, name, false).map(drop)
        }
        Op::Unlink(path) => split(overlay, path).and_then(|(dir, name)| overlay.unlink(&request, dir, name)),
        Op::Rmdir(path) => split(overlay, path).and_then(|(dir, name)| overlay.rmdir(&request, dir, name)),
        Op::Rename(from, to, exchange) => {
            find(from)?;
            let how = RenameHow { exchange: *exchange, ..RenameHow::default() };
            overlay.rename(&request, split(overlay, from)?, split(overlay, to)?, how)
        }
        Op::Write(path, at, byte) => overlay.write_data(&root, find(path)?, *at as u64, &[*byte], false).map(drop),
        Op::Truncate(path, size) => {
            set(path, SetAttr { size: Some(*size as u64), kill_privileges: true, ..SetAttr::default() })
        }
        Op::Chown(path, uid) => set(path, SetAttr { uid: Some(*uid), ..SetAttr::default() }),
        Op::Chmod(path, mode) => set(path, SetAttr { mode: Some(*mode), ..SetAttr::default() }),
        Op::Xattr(path, Some(value)) => {
            overlay.set_xattr(&request, find(path)?, b"user.x", &[*value], SetXattrHow::default())
        }
        Op::Xattr(path, None) => overlay.remove_xattr(&request, find(path)?, b"user.x"),
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_crash_leaves_a_prefix(ops in ops()) {
        let work = tempfile::tempdir().unwrap();
        let upper = work.path().join("upper");
        fs::create_dir(&upper).unwrap();
        let overlay = open(&upper);
        let mut model = Model::of(&observe(&overlay));
        prop_assert_eq!(&model.view(), &observe(&overlay));
        let crashes: Arc<Mutex<Vec<PathBuf>>> = Arc::default();
        let (sink, from, base) = (Arc::clone(&crashes), upper.clone(), work.path().to_owned());
        let mut number = 0;
        overlay.after_append(Box::new(move || {
            number += 1;
            let to = base.join(format!("crash{number}"));
            copy_tree(&from, &to);
            sink.lock().unwrap().push(to);
        }));
        for op in &ops {
            let before = model.view();
            let expected = model.apply(op);
            prop_assert_eq!(run(&overlay, op), expected, "{:?}", op);
            let after = model.view();
            prop_assert_eq!(&after, &observe(&overlay), "{:?}", op);
            // A truncation takes set-id bits before it takes contents, in a record of its own.
            let mut between = before.clone();
            if let Op::Truncate(..) = op {
                between.iter_mut().zip(after.values()).for_each(|((_, seen), after)| seen.mode = after.mode);
            }
            for crash in crashes.lock().unwrap().drain(..) {
                let seen = observe(&open(&crash));
                prop_assert!(seen == before || seen == between || seen == after, "{:?}: {:#?}", op, seen);
                fs::remove_dir_all(&crash).unwrap();
            }
        }
        overlay.write().compact(&overlay.files, Policy::Durable);
        prop_assert_eq!(&model.view(), &observe(&open(&upper)), "compacted");
    }
}

#[test]
fn attributes_copy_nothing_and_a_write_copies_once() {
    let work = tempfile::tempdir().unwrap();
    let overlay = open(work.path());
    let (root, big) = (Request::default(), overlay.lookup(3, b"big").unwrap());
    let dir = overlay.lookup(ROOT, b"d").unwrap().unwrap().ino;
    let big = big.or(overlay.lookup(dir, b"big").unwrap()).unwrap();
    overlay.setattr(&root, big.ino, &SetAttr { mode: Some(0o777), uid: Some(5), ..SetAttr::default() }).unwrap();
    overlay.set_xattr(&root, big.ino, b"user.x", b"y", SetXattrHow { create: true, ..SetXattrHow::default() }).unwrap();
    assert_eq!(fs::read_dir(work.path().join("up")).unwrap().count(), 0);
    overlay.write_data(&root, big.ino, 3, b"XYZ", false).unwrap();
    let now = overlay.attr(big.ino).unwrap();
    assert_eq!((now.ino, now.size, now.nlink), (big.ino, BIG.len() as u64, 2));
    let mut buffer = [0; 8];
    assert_eq!(overlay.read_data(big.ino, 0, &mut buffer).unwrap(), b"conXYZts");
    overlay.fsync(big.ino).unwrap();
}

#[test]
fn an_unlinked_file_lives_until_it_is_forgotten() {
    let work = tempfile::tempdir().unwrap();
    let overlay = open(work.path());
    let root = Request::default();
    let file =
        overlay.create(&root, ROOT, b"f", &Make { mode: S_IFREG, umask: 0, rdev: 0, target: &[] }, true).unwrap();
    overlay.write_data(&root, file.ino, 0, b"data", false).unwrap();
    overlay.unlink(&root, ROOT, b"f").unwrap();
    assert_eq!(overlay.read_data(file.ino, 0, &mut [0; 9]).unwrap(), b"data");
    assert_eq!(overlay.attr(file.ino).unwrap().nlink, 0);
    overlay.forget(file.ino, 1);
    assert_eq!(overlay.attr(file.ino).unwrap_err(), Errno::ENOENT);
    let left = walk(&work.path().join("up"));
    assert_eq!(left, 0);
}

#[test]
fn a_file_without_a_name_gets_one_or_goes() {
    let work = tempfile::tempdir().unwrap();
    let overlay = open(work.path());
    let root = Request::default();
    let make = Make { mode: S_IFREG | 0o666, umask: 0o022, rdev: 0, target: &[] };
    let [kept, dropped] = [(); 2].map(|()| {
        let file = overlay.create_unnamed(&root, ROOT, &make, true).unwrap();
        assert_eq!((file.mode, file.nlink), (S_IFREG | 0o644, 0));
        overlay.write_data(&root, file.ino, 0, b"data", false).unwrap();
        file.ino
    });
    assert_eq!(overlay.link(&root, kept, ROOT, b"named", true).unwrap().nlink, 1);
    overlay.forget(dropped, 1);
    assert_eq!(overlay.attr(dropped).unwrap_err(), Errno::ENOENT);
    overlay.forget(kept, 2);
    overlay.create_unnamed(&root, ROOT, &make, true).unwrap();
    drop(overlay);
    let overlay = open(work.path());
    assert_eq!(overlay.lookup(ROOT, b"named").unwrap().unwrap().ino, kept);
    assert_eq!(overlay.read_data(kept, 0, &mut [0; 9]).unwrap(), b"data");
    assert_eq!(walk(&work.path().join("up")), 1);
}

#[test]
fn an_acl_takes_the_set_group_id_bit_where_it_must() {
    let work = tempfile::tempdir().unwrap();
    let overlay = open(work.path());
    let root = Request::default();
    let make = Make { mode: S_IFREG | 0o2755, umask: 0, rdev: 0, target: &[] };
    let entries = [[1_u16, 7], [4, 5], [0x20, 5]]
        .map(|[tag, bits]| [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &u32::MAX.to_le_bytes()].concat());
    let list = [&2_u32.to_le_bytes()[..], &entries.concat()].concat();
    for (name, kill_sgid, mode) in [(&b"stays"[..], false, 0o2755), (b"goes", true, 0o755)] {
        let ino = overlay.create(&root, ROOT, name, &make, false).unwrap().ino;
        let how = SetXattrHow { kill_sgid, ..SetXattrHow::default() };
        overlay.set_xattr(&root, ino, crate::acl::ACCESS, &list, how).unwrap();
        assert_eq!(overlay.attr(ino).unwrap().mode, S_IFREG | mode);
    }
}

/// As after `kill -9` of the process that had it open.
fn resume(dir: &Path) -> Overlay {
    let dir = File::open(dir).unwrap().into();
    Overlay::resume(dir, chain(), Arc::new(OneObject), Policy::Durable).unwrap()
}

/// One request of each kind that cannot be done twice, by their numbers. What they are answered with.
fn once(overlay: &Overlay, first: u64, resent: bool) -> Vec<std::result::Result<u64, Errno>> {
    let request = |number: u64| Request { unique: first + number, resent, ..Request::default() };
    let make = Make { mode: S_IFREG | 0o644, umask: 0, rdev: 0, target: &[] };
    let file = overlay.create(&request(0), ROOT, b"f", &make, true).map(|attr| attr.ino);
    let ino = file.unwrap_or(ROOT);
    let how = SetXattrHow { create: true, ..SetXattrHow::default() };
    let none = |result: Result<()>| result.map(|()| 0);
    vec![
        file,
        overlay.link(&request(1), ino, ROOT, b"g", true).map(|attr| attr.ino),
        none(overlay.rename(&request(2), (ROOT, b"g"), (ROOT, b"h"), RenameHow::default())),
        none(overlay.unlink(&request(3), ROOT, b"f")),
        none(overlay.set_xattr(&request(4), ino, b"user.x", b"y", how)),
        none(overlay.remove_xattr(&request(5), ino, b"user.x")),
        overlay.create_unnamed(&request(6), ROOT, &make, true).map(|attr| attr.ino),
    ]
}

#[test]
fn a_request_that_comes_again_is_done_once() {
    for compacted in [false, true] {
        let work = tempfile::tempdir().unwrap();
        let overlay = open(work.path());
        let answers = once(&overlay, 10, false);
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        let seen = observe(&overlay);
        if compacted {
            overlay.write().compact(&overlay.files, Policy::Durable);
        }
        drop(overlay);
        for _ in 0..2 {
            let overlay = resume(work.path());
            assert_eq!(once(&overlay, 10, true), answers);
            assert_eq!(observe(&overlay), seen);
        }
        // The numbers of another connection are others.
        drop(open(work.path()));
        let overlay = resume(work.path());
        assert_ne!(once(&overlay, 10, true), answers);
    }
}

/// Written anew, it would be empty for a moment, and a server killed in that moment would look like a host that crashed.
#[test]
fn a_successor_leaves_the_mark_of_a_volatile_upper_alone() {
    let work = tempfile::tempdir().unwrap();
    let dir = || File::open(work.path()).unwrap().into();
    drop(Overlay::open(dir(), chain(), Arc::new(OneObject), Policy::Volatile).unwrap());
    let marker = work.path().join("volatile");
    let before = fs::metadata(&marker).unwrap().modified().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let overlay = Overlay::resume(dir(), chain(), Arc::new(OneObject), Policy::Volatile).unwrap();
    assert!(!overlay.recovery().unsynced);
    assert_eq!(fs::metadata(&marker).unwrap().modified().unwrap(), before);
}

#[test]
fn a_file_without_a_name_outlives_its_server() {
    let work = tempfile::tempdir().unwrap();
    let up = work.path().join("up");
    let overlay = open(work.path());
    let (root, make) = (Request::default(), Make { mode: S_IFREG, umask: 0, rdev: 0, target: &[] });
    let [open_one, forgotten] = [b"a1", b"a2"].map(|name| {
        let ino = overlay.create(&root, ROOT, name, &make, true).unwrap().ino;
        overlay.write_data(&root, ino, 0, b"data", false).unwrap();
        overlay.unlink(&root, ROOT, name).unwrap();
        ino
    });
    overlay.forget(forgotten, 1);
    drop(overlay);
    let overlay = resume(work.path());
    assert_eq!(overlay.recovery().lost_files, 0);
    assert_eq!(overlay.attr(forgotten).unwrap_err(), Errno::ENOENT);
    overlay.write_data(&root, open_one, 4, b"more", false).unwrap();
    // How often it was looked up before nobody knows.
    overlay.forget(open_one, 1);
    assert_eq!(overlay.read_data(open_one, 0, &mut [0; 9]).unwrap(), b"datamore");
    // Of what is made now it is known.
    let new = overlay.create(&root, ROOT, b"a3", &make, true).unwrap().ino;
    overlay.write_data(&root, new, 0, b"data", false).unwrap();
    overlay.unlink(&root, ROOT, b"a3").unwrap();
    assert_eq!(walk(&up), 2);
    overlay.forget(new, 1);
    assert_eq!(walk(&up), 1);
    drop(overlay);
    drop(open(work.path()));
    assert_eq!(walk(&up), 0);
}

fn walk(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().map(|bucket| fs::read_dir(bucket.unwrap().path()).unwrap().count()).sum()
}

#[test]
fn a_listing_goes_on_behind_what_was_removed() {
    let work = tempfile::tempdir().unwrap();
    let overlay = open(work.path());
    let root = Request::default();
    for number in 0..100 {
        let make = Make { mode: S_IFREG, umask: 0, rdev: 0, target: &[] };
        overlay.create(&root, ROOT, format!("n{number}").as_bytes(), &make, false).unwrap();
    }
    let (mut cookie, mut removed) = (0, 0);
    loop {
        let mut next = None;
        let one = |listed: &crate::Listed<'_>| {
            next.is_none() && {
                next = Some((listed.cookie, listed.name.to_vec(), listed.attr.mode));
                true
            }
        };
        overlay.list(ROOT, cookie, false, one).unwrap();
        let Some((at, name, mode)) = next else { break };
        cookie = at;
        if mode & S_IFMT != S_IFDIR {
            overlay.unlink(&root, ROOT, &name).unwrap();
            removed += 1;
        }
    }
    assert_eq!(removed, 102); // the hundred, and `a` and `l` of the chain
}

#[test]
fn differences_are_told_from_the_tree() {
    let work = tempfile::tempdir().unwrap();
    let overlay = open(work.path());
    let path = |path: &str| format!("/{path}");
    let told = |list: Vec<Difference>| -> Vec<String> {
        list.iter().map(|one| format!("{:?} {}", one.change, String::from_utf8_lossy(&one.path))).collect()
    };
    let all = |_: &[u8]| false;
    // What is touched and is as before is no difference.
    run(&overlay, &Op::Chmod(path("d/a"), 0o600)).unwrap();
    run(&overlay, &Op::Chmod(path("d/a"), 0o4755)).unwrap();
    assert_eq!(told(overlay.diff(&all).unwrap()), Vec::<String>::new());
    run(&overlay, &Op::Unlink(path("l"))).unwrap();
    run(&overlay, &Op::Rename(path("d"), path("e/moved"), false)).unwrap();
    run(&overlay, &Op::Chmod(path("e/d/a"), 0o600)).unwrap();
    run(&overlay, &Op::Chmod(path("a"), 0o600)).unwrap();
    let expected = [
        "Changed /a",
        "Deleted /d",
        "Changed /e",
        "Changed /e/d",
        "Changed /e/d/a",
        "Added /e/moved",
        "Added /e/moved/a",
        "Added /e/moved/big",
        "Deleted /l",
    ];
    assert_eq!(told(overlay.diff(&all).unwrap()), expected);
    let dir = File::open(work.path()).unwrap().into();
    assert_eq!(told(crate::diff(dir, chain(), &all).unwrap()), expected);
    let but = |path: &[u8]| path == b"/e/moved" || path == b"/l";
    assert_eq!(
        told(overlay.diff(&but).unwrap()),
        ["Changed /a", "Deleted /d", "Changed /e", "Changed /e/d", "Changed /e/d/a"]
    );
}

#[test]
fn a_layer_has_all_that_has_a_node_of_its_own() {
    let work = tempfile::tempdir().unwrap();
    let overlay = open(work.path());
    let path = |path: &str| format!("/{path}");
    let changed = |by_looks: &dyn Fn(&[u8]) -> bool| -> (Vec<String>, bool) {
        let reader =
            crate::Reader::open(File::open(work.path()).unwrap().into(), chain(), Arc::new(OneObject)).unwrap();
        let list = reader.changed(&|_| false, by_looks).unwrap();
        (
            list.iter().map(|one| String::from_utf8_lossy(&one.path).into_owned()).collect(),
            reader.root_differs().unwrap(),
        )
    };
    assert_eq!(changed(&|_| false), (vec![], false));
    // As before for whoever looks.
    run(&overlay, &Op::Chmod(path("d/a"), 0o600)).unwrap();
    run(&overlay, &Op::Chmod(path("d/a"), 0o4755)).unwrap();
    run(&overlay, &Op::Chmod(path("e"), 0o700)).unwrap();
    let (names, root) = changed(&|_| false);
    assert_eq!((names.join(" "), root), ("/d /d/a /e".to_owned(), false));
    let request = Request::default();
    let mode = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
    let old = overlay.attr(ROOT).unwrap().mode & 0o7777;
    overlay.setattr(&request, ROOT, &mode(0o1777)).unwrap();
    assert!(changed(&|_| false).1);
    overlay.setattr(&request, ROOT, &mode(old)).unwrap();
    assert!(!changed(&|_| false).1);
}

#[test]
fn a_directory_in_place_of_another_is_compared_by_its_names() {
    let work = tempfile::tempdir().unwrap();
    let overlay = open(work.path());
    let request = Request::default();
    let d = overlay.lookup(ROOT, b"d").unwrap().unwrap();
    for name in [&b"a"[..], b"big"] {
        overlay.unlink(&request, d.ino, name).unwrap();
    }
    overlay.rmdir(&request, ROOT, b"d").unwrap();
    let owner = Request { uid: 3, gid: 4, ..Request::default() };
    let make = |mode| Make { mode, umask: 0, rdev: 0, target: &[] };
    let again = overlay.create(&owner, ROOT, b"d", &make(S_IFDIR | 0o755), false).unwrap();
    overlay.create(&owner, again.ino, b"new", &make(S_IFREG | 0o644), false).unwrap();
    // A file in place of a directory: only itself.
    let e = overlay.lookup(ROOT, b"e").unwrap().unwrap();
    let inner = overlay.lookup(e.ino, b"d").unwrap().unwrap();
    overlay.unlink(&request, inner.ino, b"a").unwrap();
    overlay.rmdir(&request, e.ino, b"d").unwrap();
    overlay.create(&owner, e.ino, b"d", &make(S_IFREG | 0o644), false).unwrap();
    let told: Vec<String> = overlay
        .diff(&|_| false)
        .unwrap()
        .iter()
        .map(|one| format!("{:?} {}", one.change, String::from_utf8_lossy(&one.path)))
        .collect();
    let expected = ["Changed /d", "Deleted /d/a", "Deleted /d/big", "Added /d/new", "Changed /e", "Changed /e/d"];
    assert_eq!(told, expected);
}

#[test]
fn other_contents_take_privileges_away() {
    let work = tempfile::tempdir().unwrap();
    let overlay = open(work.path());
    let request = Request::default();
    let make = Make { mode: S_IFREG | 0o6755, umask: 0, rdev: 0, target: &[] };
    let source = overlay.create(&request, ROOT, b"source", &make, false).unwrap().ino;
    overlay.write_data(&request, source, 0, b"bytes", false).unwrap();
    let privileged = |name: &[u8]| {
        let ino = overlay.create(&request, ROOT, name, &make, false).unwrap().ino;
        overlay.set_xattr(&request, ino, CAPABILITY, b"any", SetXattrHow::default()).unwrap();
        assert_eq!(overlay.attr(ino).unwrap().mode & 0o7777, 0o6755);
        ino
    };
    let unprivileged = |ino| {
        assert_eq!(overlay.attr(ino).unwrap().mode & 0o7777, 0o755);
        assert_eq!(overlay.xattr(ino, CAPABILITY, &mut [0; 8]).unwrap_err(), Errno::ENODATA);
    };
    let allocated = privileged(b"allocated");
    overlay.allocate(&request, allocated, 0, 0, 5).unwrap();
    unprivileged(allocated);
    let copied = privileged(b"copied");
    match overlay.copy_range(&request, (source, 0), (copied, 0), 5) {
        // A file system that cannot: the caller writes instead, which takes them away too.
        Ok(5) | Err(Errno::EXDEV) => unprivileged(copied),
        other => panic!("{other:?}"),
    }
    assert_eq!(overlay.attr(source).unwrap().mode & 0o7777, 0o6755);
}

#[test]
fn a_chown_to_nobody_takes_privileges_away_from_the_owners_file() {
    let work = tempfile::tempdir().unwrap();
    let overlay = open(work.path());
    let [owner, other, root] = [7, 8, 0].map(|uid| Request { uid, gid: uid, ..Request::default() });
    for (kind, caller, mode) in [
        (S_IFREG, &owner, 0o755),
        (S_IFREG, &root, 0o755),
        (nix::libc::S_IFIFO, &root, 0o755),
        // Only a write, if anything, is allowed to somebody else.
        (S_IFREG, &other, 0o6755),
        (S_IFDIR, &owner, 0o6755),
    ] {
        let make = Make { mode: kind | 0o6755, umask: 0, rdev: 0, target: &[] };
        let name = format!("{kind:o} of {}", caller.uid);
        let ino = overlay.create(&owner, ROOT, name.as_bytes(), &make, false).unwrap().ino;
        let attr = overlay.setattr(caller, ino, &SetAttr::default()).unwrap();
        assert_eq!((attr.mode & 0o7777, attr.uid, attr.gid), (mode, 7, 7), "{name}");
    }
}

#[test]
fn a_damaged_tail_is_cut_and_the_rest_stands() {
    let work = tempfile::tempdir().unwrap();
    let overlay = open(work.path());
    run(&overlay, &Op::Unlink("/a".to_owned())).unwrap();
    let before = observe(&overlay);
    run(&overlay, &Op::Unlink("/l".to_owned())).unwrap();
    drop(overlay);
    let log = File::options().write(true).read(true).open(work.path().join("log.1")).unwrap();
    let end = log.metadata().unwrap().len();
    log.write_all_at(&[0xff], end - 1).unwrap();
    let overlay = open(work.path());
    assert!(overlay.recovery().cut_bytes > 0);
    assert_eq!(observe(&overlay), before);
}
