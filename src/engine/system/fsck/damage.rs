//! Contents that are not what their name says, or of which nobody can tell.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base::{Kind, Report};
use index::{Index, OpenError};
use oci::Digest;
use store::{Family, Store, StoreError};
use sys::Call;

use super::Checked;
use crate::file::digest_of;
use crate::workers;

/// What is wrong with a content or a name. Only what is damaged is removed.
#[derive(Clone, Debug)]
pub(super) enum Wrong {
    /// It was read, and is not what it should be.
    Damaged(String),
    /// It could not be read: it may be whole.
    Unreadable(String),
    /// It is in a format of a newer engine.
    Newer(String),
}

impl Wrong {
    pub fn is_damage(&self) -> bool {
        matches!(self, Wrong::Damaged(_))
    }

    /// What is wrong, in words.
    pub fn why(&self) -> &str {
        match self {
            Wrong::Damaged(why) | Wrong::Unreadable(why) | Wrong::Newer(why) => why,
        }
    }

    /// Why the repair leaves it alone; `None` for what is damaged.
    pub fn spared(&self) -> Option<String> {
        match self {
            Wrong::Damaged(_) => None,
            Wrong::Unreadable(_) => Some("left as it is: it may be whole".to_owned()),
            Wrong::Newer(_) => Some("left as it is: a newer engine reads it".to_owned()),
        }
    }
}

impl From<StoreError> for Wrong {
    fn from(error: StoreError) -> Self {
        let (is_damage, is_newer) = (error.is_damage(), matches!(error, StoreError::Newer { .. }));
        let why = Report::from(error).lines().join(": ");
        match (is_damage, is_newer) {
            (true, _) => Wrong::Damaged(why),
            (_, true) => Wrong::Newer(why),
            _ => Wrong::Unreadable(why),
        }
    }
}

impl From<OpenError> for Wrong {
    fn from(error: OpenError) -> Self {
        let is_newer = matches!(error, OpenError::Version { .. });
        let why = Report::from(error).lines().join(": ");
        if is_newer { Wrong::Newer(why) } else { Wrong::Damaged(why) }
    }
}

/// What is wrong, by content.
pub(super) type Damage = BTreeMap<(Family, Digest), Wrong>;

/// What a content is called.
pub(super) fn words(family: Family) -> &'static str {
    match family {
        Family::Chains => "stack of layers",
        Family::Layers => "layer index",
        Family::Objects => "object",
        Family::Blobs => "blob",
    }
}

/// Looks at every content.
pub(super) fn find(store: &Store, checked: &mut Checked) -> Result<Damage, Report> {
    let mut damage = Damage::new();
    // Indexes after the objects they name.
    for family in [Family::Blobs, Family::Objects, Family::Layers, Family::Chains] {
        let digests = store.shelf(family).list()?;
        *match family {
            Family::Chains => &mut checked.chains,
            Family::Layers => &mut checked.layers,
            Family::Objects => &mut checked.objects,
            Family::Blobs => &mut checked.blobs,
        } = digests.len();
        let (found, bytes) = look_at_all(store, family, &digests, &damage)?;
        damage.extend(found);
        checked.bytes += bytes;
    }
    Ok(damage)
}

/// Looks at contents of one kind, with as many threads as there are processors; at indexes one at a time, as each is read
/// whole into memory.
fn look_at_all(store: &Store, family: Family, digests: &[Digest], so_far: &Damage) -> Result<(Damage, u64), Report> {
    let (bytes, found) = (AtomicU64::new(0), Mutex::new(Damage::new()));
    let threads = match family {
        Family::Blobs | Family::Objects => std::thread::available_parallelism().map_or(1, usize::from),
        Family::Layers | Family::Chains => 1,
    };
    workers::each(digests, threads, &AtomicBool::new(false), |digest| {
        let first = look_in_place(store, family, digest, so_far);
        if let Ok(size_bytes) = first {
            bytes.fetch_add(size_bytes, Ordering::Relaxed);
            return Ok(());
        }
        // Once more: a sweep that runs takes an index away before its objects, and nothing is wrong with what is gone by now.
        if let Err(wrong) = look_in_place(store, family, digest, so_far)
            && let Ok(mut found) = found.lock()
        {
            found.insert((family, *digest), wrong);
        }
        Ok(())
    })?;
    let found = found.into_inner().map_err(|_| Report::new(Kind::Internal, "a worker of the check panicked"))?;
    Ok((found, bytes.into_inner()))
}

/// Looks at a content; its size in bytes, 0 of what is gone since it was listed.
fn look_in_place(store: &Store, family: Family, digest: &Digest, damage: &Damage) -> Result<u64, Wrong> {
    let Some(file) = store.shelf(family).open(digest)? else { return Ok(0) };
    look(store, family, digest, &file, damage)?;
    Ok(file.metadata().map_or(0, |metadata| metadata.len()))
}

/// Whether a file is what its name says. An index is also held against the objects that are here and not among the damaged
/// ones.
pub(super) fn look(store: &Store, family: Family, digest: &Digest, file: &File, damage: &Damage) -> Result<(), Wrong> {
    match family {
        Family::Blobs | Family::Objects => {
            let found = digest_of(file).call(|| format!("read({})", digest.hex())).map_err(StoreError::from)?;
            if found == *digest { Ok(()) } else { Err(Wrong::Damaged(format!("its content has the digest {found}"))) }
        }
        Family::Layers | Family::Chains => verify(store, family, digest, file, damage),
    }
}

fn verify(store: &Store, family: Family, digest: &Digest, mut file: &File, damage: &Damage) -> Result<(), Wrong> {
    // Not mapped: a disk that is bad is to give an error.
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).call(|| format!("read({})", digest.hex())).map_err(StoreError::from)?;
    let index = Index::from_bytes(bytes)?;
    if index.id() != *digest || index.is_chain() != (family == Family::Chains) {
        return Err(Wrong::Damaged(format!("it is the index of {}", index.id())));
    }
    index.verify().map_err(|error| Wrong::Damaged(error.to_string()))?;
    for (object, size_bytes) in index.objects() {
        let is_damaged = damage.get(&(Family::Objects, object)).is_some_and(Wrong::is_damage);
        if is_damaged || store.objects().size(&object)? != Some(size_bytes) {
            return Err(Wrong::Damaged(format!("it lacks the object {object}")));
        }
    }
    Ok(())
}
