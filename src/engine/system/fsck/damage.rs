//! Contents that are not what their name says.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base::{Kind, Report};
use index::Index;
use oci::Digest;
use store::{Family, Store};

use super::Checked;
use crate::file::digest_of;
use crate::workers;

/// What is damaged, and how.
pub(super) type Damage = BTreeMap<(Family, Digest), String>;

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

/// Looks at contents of one kind, with as many threads as there are processors.
fn look_at_all(store: &Store, family: Family, digests: &[Digest], so_far: &Damage) -> Result<(Damage, u64), Report> {
    let (bytes, found) = (AtomicU64::new(0), Mutex::new(Damage::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    workers::each(digests, threads, &AtomicBool::new(false), |digest| {
        // What is gone since it was listed is not there.
        let Some(file) = store.shelf(family).open(digest)? else { return Ok(()) };
        bytes.fetch_add(file.metadata().map_or(0, |metadata| metadata.len()), Ordering::Relaxed);
        if let Some(why) = look(store, family, digest, file, so_far)
            && let Ok(mut found) = found.lock()
        {
            found.insert((family, *digest), why);
        }
        Ok(())
    })?;
    let found = found.into_inner().map_err(|_| Report::new(Kind::Internal, "a worker of the check panicked"))?;
    Ok((found, bytes.into_inner()))
}

/// Why a file is not what its name says; `None` when it is. An index is also held against the objects that are here and
/// not among the damaged ones.
pub(super) fn look(store: &Store, family: Family, digest: &Digest, file: File, damage: &Damage) -> Option<String> {
    let result = match family {
        Family::Blobs | Family::Objects => digest_of(file).map_err(|error| error.to_string()).and_then(|found| {
            if found == *digest { Ok(()) } else { Err(format!("its content has the digest {found}")) }
        }),
        Family::Layers | Family::Chains => verify(store, family, digest, file, damage),
    };
    result.err()
}

fn verify(store: &Store, family: Family, digest: &Digest, file: File, damage: &Damage) -> Result<(), String> {
    let index = Index::open(file).map_err(|error| Report::from(error).lines().join(": "))?;
    if index.id() != *digest || index.is_chain() != (family == Family::Chains) {
        return Err(format!("it is the index of {}", index.id()));
    }
    index.verify().map_err(|error| error.to_string())?;
    for (object, size_bytes) in index.objects() {
        let found = store.objects().size(&object).map_err(|error| error.to_string())?;
        if found != Some(size_bytes) || damage.contains_key(&(Family::Objects, object)) {
            return Err(format!("it lacks the object {object}"));
        }
    }
    Ok(())
}
