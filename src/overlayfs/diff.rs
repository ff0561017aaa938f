//! What differs from the chain: the answer to `diff` and the work list of `commit`.

use index::Kind;

use crate::attr::{Attr, ROOT, Result, S_IFDIR, S_IFMT};
use crate::lower::damaged;
use crate::overlay::{Overlay, State};

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Was in the chain and is not any more, with all below it.
    Deleted,
    /// Was not there.
    Added,
    /// Another file, or the same with other contents or attributes; a directory with other names or attributes.
    Changed,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// From the root, with a leading slash.
    pub path: Vec<u8>,
    /// How it differs.
    pub change: Change,
    /// The inode to take contents and attributes from; 0 when deleted.
    pub ino: u64,
}

/// A directory still to be looked through.
struct Pending {
    ino: u64,
    path: Vec<u8>,
    /// Nothing of it was there before, whatever its inode.
    added: bool,
}

struct Walk<'a> {
    state: &'a State,
    pending: Vec<Pending>,
    found: Vec<Difference>,
}

fn is_dir(attr: &Attr) -> bool {
    attr.mode & S_IFMT == S_IFDIR
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    [dir, b"/", name].concat()
}

impl Overlay {
    /// Every path that differs from the chain, sorted, parents first. A directory in whose place something else stands
    /// (or the other way round) is reported deleted and then added, with everything below. The tree stands still
    /// meanwhile.
    pub fn diff(&self) -> Result<Vec<Difference>> {
        let state = self.read();
        let root = Pending { ino: ROOT, path: Vec::new(), added: false };
        let mut walk = Walk { state: &state, pending: vec![root], found: Vec::new() };
        while let Some(dir) = walk.pending.pop() {
            walk.directory(&dir)?;
        }
        walk.found.sort_by(|a, b| (&a.path, a.change).cmp(&(&b.path, b.change)));
        Ok(walk.found)
    }
}

impl Walk<'_> {
    fn directory(&mut self, dir: &Pending) -> Result<()> {
        let view = self.state.tree.dir(dir.ino)?;
        if let Some(lower) = view.lower {
            for entry in self.state.tree.lower.index().dirents(lower).map_err(damaged)?.iter() {
                let entry = entry.map_err(damaged)?;
                let path = join(&dir.path, entry.name);
                let slot = view.over.and_then(|over| over.slot(entry.name));
                match slot.map(|slot| slot.child) {
                    None => self.lower_name(entry.node.ino(), entry.kind, path, dir.added)?,
                    Some(_) if dir.added => {}
                    Some(Some(child)) if child == entry.node.ino() => {
                        self.lower_name(child, entry.kind, path, false)?;
                    }
                    Some(Some(child)) => self.replaced(entry.kind, child, path)?,
                    Some(None) => self.add(path, Change::Deleted, 0),
                }
            }
        }
        for (_, name, child) in view.over.into_iter().flat_map(|over| over.children_from(0)) {
            let shadows = view.over.and_then(|over| over.slot(name)).is_some_and(|slot| slot.shadows);
            if dir.added || !shadows {
                self.added(child, join(&dir.path, name))?;
            }
        }
        Ok(())
    }

    /// A name of the chain that is still there.
    fn lower_name(&mut self, ino: u64, kind: Kind, path: Vec<u8>, added: bool) -> Result<()> {
        if added {
            return self.added(ino, path);
        }
        if self.state.tree.nodes.contains_key(&ino) {
            self.add(path.clone(), Change::Changed, ino);
        }
        if kind == Kind::Directory {
            self.pending.push(Pending { ino, path, added: false });
        }
        Ok(())
    }

    fn replaced(&mut self, old: Kind, child: u64, path: Vec<u8>) -> Result<()> {
        if old != Kind::Directory && !is_dir(&self.state.tree.attr(child)?) {
            self.add(path, Change::Changed, child);
            return Ok(());
        }
        self.add(path.clone(), Change::Deleted, 0);
        self.added(child, path)
    }

    fn added(&mut self, ino: u64, path: Vec<u8>) -> Result<()> {
        self.add(path.clone(), Change::Added, ino);
        if is_dir(&self.state.tree.attr(ino)?) {
            self.pending.push(Pending { ino, path, added: true });
        }
        Ok(())
    }

    fn add(&mut self, path: Vec<u8>, change: Change, ino: u64) {
        self.found.push(Difference { path, change, ino });
    }
}
