//! Upper inodes and the overlay map of a directory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::attr::{Attr, S_IFDIR, S_IFMT, Time};

/// An inode that was made or changed here. Lower inodes without a change have none.
pub(crate) struct Node {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub rdev: u32,
    pub size: u64,
    pub blocks: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    /// `None`: those of the lower inode with the same number (or none for a new inode).
    pub xattrs: Option<Xattrs>,
    pub body: Body,
    /// Lookups that the kernel holds; used for new inodes only (lower ones are counted beside the index).
    pub lookups: AtomicU64,
}

/// Extended attributes by full name.
pub(crate) type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What an inode is, beyond its mode.
pub(crate) enum Body {
    File(Data),
    Directory(Box<Directory>),
    Link(Box<[u8]>),
    /// Devices, fifos, sockets.
    Special,
}

/// Where a file's contents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// Nowhere: size 0, no data file.
    Empty,
    /// Still the lower's.
    Lower,
    /// In `up/`; that file's size and modification time are the truth.
    Upper,
}

/// A directory: names changed here, over a lower directory or none.
pub(crate) struct Directory {
    /// Index inode of the lower directory whose names show through.
    pub lower: Option<u32>,
    pub parent: u64,
    slots: HashMap<Arc<[u8]>, Slot>,
    /// Children in the order of their serials, which are never reused.
    order: BTreeMap<u64, Arc<[u8]>>,
    pub next_serial: u64,
    /// Slots that stand over a lower name.
    masked: u32,
}

/// What the overlay says about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The child; `None` hides the lower's.
    pub child: Option<u64>,
    pub serial: u64,
    /// The lower directory has this name too.
    pub shadows: bool,
}

impl Directory {
    pub(crate) fn new(lower: Option<u32>, parent: u64) -> Self {
        Directory { lower, parent, slots: HashMap::new(), order: BTreeMap::new(), next_serial: 0, masked: 0 }
    }

    /// What the overlay says about `name`; `None`: ask the lower.
    pub(crate) fn slot(&self, name: &[u8]) -> Option<Slot> {
        self.slots.get(name).copied()
    }

    /// Whether any lower name may be covered.
    pub(crate) fn masks_nothing(&self) -> bool {
        self.masked == 0
    }

    /// Number of visible names over a lower directory of `lower_names`.
    pub(crate) fn visible(&self, lower_names: u32) -> u32 {
        (lower_names + self.order.len() as u32).saturating_sub(self.masked)
    }

    /// Puts a child under a name, replacing whatever the overlay said. `shadows`: the lower has the name.
    pub(crate) fn insert(&mut self, name: &[u8], child: u64, shadows: bool) {
        let serial = self.next_serial;
        self.place(name, Some(child), serial, shadows);
    }

    /// Takes a name away, hiding it when the lower has it.
    pub(crate) fn remove(&mut self, name: &[u8], shadows: bool) {
        if shadows {
            self.place(name, None, 0, true);
        } else if let Some(slot) = self.slots.remove(name) {
            self.order.remove(&slot.serial);
        }
    }

    /// Sets a slot exactly; used by replay of compacted logs and by the two above.
    pub(crate) fn place(&mut self, name: &[u8], child: Option<u64>, serial: u64, shadows: bool) {
        let name: Arc<[u8]> = name.into();
        if let Some(old) = self.slots.insert(Arc::clone(&name), Slot { child, serial, shadows }) {
            if old.child.is_some() {
                self.order.remove(&old.serial);
            }
            self.masked -= u32::from(old.shadows);
        }
        self.masked += u32::from(shadows);
        if child.is_some() {
            self.order.insert(serial, name);
            self.next_serial = self.next_serial.max(serial + 1);
        }
    }

    /// Children from `serial` on, in order.
    pub(crate) fn children_from(&self, serial: u64) -> impl Iterator<Item = (u64, &[u8], u64)> {
        self.order.range(serial..).filter_map(|(serial, name)| {
            self.slots.get(name).and_then(|slot| slot.child).map(|child| (*serial, &name[..], child))
        })
    }

    /// All slots, in no order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (&[u8], Slot)> {
        self.slots.iter().map(|(name, slot)| (&name[..], *slot))
    }
}

impl Node {
    pub(crate) fn attr(&self, ino: u64) -> Attr {
        Attr {
            ino,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size: self.size,
            blocks: self.blocks,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
        }
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.mode & S_IFMT == S_IFDIR
    }

    pub(crate) fn dir(&self) -> Option<&Directory> {
        if let Body::Directory(dir) = &self.body { Some(dir) } else { None }
    }

    pub(crate) fn dir_mut(&mut self) -> Option<&mut Directory> {
        if let Body::Directory(dir) = &mut self.body { Some(dir) } else { None }
    }

    pub(crate) fn has_upper_data(&self) -> bool {
        matches!(self.body, Body::File(Data::Upper))
    }
}
