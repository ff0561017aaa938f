//! Whether the store is whole, and its repair.
//!
//! Every blob and object is hashed again, every index is verified to its last record and held against the objects it names,
//! and each name and container is followed to its manifest, its configuration and its layers. *Faults* are contents that
//! are not what their name says or cannot be read, and what a name or a container needs and lacks. What nothing leads to, what killed
//! commands left and downloads that were interrupted are no faults, since a prune removes them and a pull goes on with
//! them: they are told as notes.
//!
//! The check takes no lock: what goes or comes meanwhile is passed over. The repair ([`mend`]) works under a lease.

mod damage;
mod mend;

use base::{Kind, Report};
use oci::Digest;
use store::{Family, ImageRecord, Named, Store, StoreError};

use crate::Engine;
use crate::image::offline::documents;
use crate::image::sweep::{User, objects_of, sweep, users};
use crate::image::{open_store, require_additional};
use damage::{Damage, Wrong};

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Manifests, configurations and layer blobs.
    pub blobs: usize,
    /// Objects.
    pub objects: usize,
    /// Indexes of layers.
    pub layers: usize,
    /// Merged indexes.
    pub chains: usize,
    /// Names of images, of all stores.
    pub names: usize,
    /// Bytes that were read.
    pub bytes: u64,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What, and how.
    pub what: String,
    /// What the repair did about it.
    pub done: Option<String>,
}

/// The answer to `system fsck`.
#[derive(Clone, Debug, Default)]
pub struct Checkup {
    /// What was looked at.
    pub checked: Checked,
    /// What is wrong, or was.
    pub faults: Vec<Fault>,
    /// What is worth knowing.
    pub notes: Vec<String>,
    /// Images that need a new pull; after a repair, those that it could not complete.
    pub to_pull: Vec<String>,
    /// The same of images that were made here: to be loaded or built again.
    pub to_make: Vec<String>,
}

/// Checks the store; with `repair` mends what can be mended and removes the rest of what is broken.
pub fn fsck(engine: &Engine, repair: bool) -> Result<Checkup, Report> {
    if repair {
        require_additional(engine)?;
    }
    let Some(store) = open_store(engine)? else { return Ok(Checkup::default()) };
    let lease = if repair { Some(store.lease()?) } else { None };
    if repair {
        // What a repair that was killed was about to delete is found again where it was.
        store.bring_back()?;
    }
    let mut checkup = Checkup::default();
    let damage = damage::find(&store, &mut checkup.checked)?;
    let needs = Needs::of(engine, &store)?;
    checkup.checked.names = needs.names.len() + needs.unreadable.len();
    let mended = if repair { mend::mend(&store, &damage, &needs)? } else { mend::Mended::default() };
    checkup.tell(&damage, &needs, &mended);
    // What was mended is looked for in the store as it is now.
    let left = if repair { damage::find(&store, &mut Checked::default())? } else { damage };
    checkup.tell_incomplete(engine, &store, &left, &needs)?;
    drop(lease);
    // What a lost name, list, manifest or configuration led to is not known any more, and the next pull goes on with it; nor
    // is it known of what cannot be read.
    if repair && needs.unreadable.is_empty() && left.is_empty() && checkup.is_complete() {
        sweep(engine, &store, &[])?;
    }
    checkup.note(&store, &left, &needs)?;
    Ok(checkup)
}

/// Who needs content.
struct Needs {
    /// Names with their records, of all stores.
    names: Vec<(String, ImageRecord)>,
    /// What the lists of images of all stores lead to.
    listed: Vec<Digest>,
    /// Names and lists whose file cannot be read.
    unreadable: Vec<Unreadable>,
    /// Containers of all machines and stores.
    users: Vec<User>,
}

/// A name or list whose file cannot be read.
struct Unreadable {
    is_list: bool,
    store: Option<String>,
    file: String,
    wrong: Wrong,
}

impl Needs {
    fn of(engine: &Engine, store: &Store) -> Result<Self, Report> {
        let (names, unreadable) = (Vec::new(), Vec::new());
        let mut needs = Needs { names, listed: Vec::new(), unreadable, users: users(engine)? };
        for Named { store, file, record } in store.all_names()? {
            match record {
                Ok(record) => needs.names.push((shown(store.as_deref(), &record.familiar()), record)),
                Err(error) => needs.unreadable.push(Unreadable::new(false, store, file, error)),
            }
        }
        for Named { store, file, record } in store.all_lists()? {
            match record {
                Ok(record) => needs.listed.extend(record.leads_to()),
                Err(error) => needs.unreadable.push(Unreadable::new(true, store, file, error)),
            }
        }
        Ok(needs)
    }

    /// What names, lists and containers lead to directly.
    fn roots(&self) -> Vec<Digest> {
        let names = self.names.iter().flat_map(|(_, record)| record.leads_to());
        names.chain(self.listed.iter().copied()).chain(self.users.iter().flat_map(User::needs)).collect()
    }
}

impl Unreadable {
    fn new(is_list: bool, store: Option<String>, file: String, error: StoreError) -> Self {
        Unreadable { is_list, store, file, wrong: error.into() }
    }
}

/// A name with the further store that has it.
fn shown(store: Option<&str>, reference: &str) -> String {
    match store {
        Some(store) => format!("{reference} (store {store})"),
        None => reference.to_owned(),
    }
}

impl Checkup {
    /// Whether every image has all that it needs.
    fn is_complete(&self) -> bool {
        self.to_pull.is_empty() && self.to_make.is_empty()
    }

    fn tell(&mut self, damage: &Damage, needs: &Needs, mended: &mend::Mended) {
        for (key, wrong) in damage {
            let what = format!("{} {}: {}", damage::words(key.0), key.1, wrong.why());
            self.faults.push(Fault { what, done: mended.contents.get(key).cloned() });
        }
        for (key, done) in mended.contents.iter().filter(|(key, _)| !damage.contains_key(*key)) {
            let what = format!("{} {} was missing", damage::words(key.0), key.1);
            self.faults.push(Fault { what, done: Some(done.clone()) });
        }
        for (number, Unreadable { is_list, store, file, wrong }) in needs.unreadable.iter().enumerate() {
            // The file's name is the reference with its slashes escaped.
            let reference = shown(store.as_deref(), &file.replace("%2F", "/"));
            let word = if *is_list { "list of images" } else { "name" };
            let what = format!("{word} {reference}: {}", wrong.why());
            self.faults.push(Fault { what, done: mended.names.get(&number).cloned() });
            if !is_list && wrong.is_damage() {
                self.to_pull.push(reference);
            }
        }
    }

    /// Images and containers that lack something.
    fn tell_incomplete(
        &mut self,
        engine: &Engine,
        store: &Store,
        damage: &Damage,
        needs: &Needs,
    ) -> Result<(), Report> {
        let (mut images, mut users) = (Vec::new(), Vec::new());
        for name in &needs.names {
            let is_whole = lacks(store, damage, &name.1)?.is_empty();
            images.extend(Some(name).filter(|_| !is_whole));
        }
        for user in &needs.users {
            let lacks = lacks_layers(store, damage, user)?;
            users.extend(Some((user, lacks)).filter(|(_, lacks)| !lacks.is_empty()));
        }
        if images.is_empty() && users.is_empty() {
            return Ok(());
        }
        // What was removed meanwhile needs nothing any more.
        let now = Needs::of(engine, store)?;
        for (name, record) in images.into_iter().filter(|name| now.names.contains(name)) {
            // One that was pulled again meanwhile looks the same, and has all.
            let lacks = lacks(store, damage, record)?;
            if lacks.is_empty() {
                continue;
            }
            self.faults.push(Fault { what: format!("image {name} lacks {}", join(&lacks)), done: None });
            let again = if record.made_here { &mut self.to_make } else { &mut self.to_pull };
            again.push(name.clone());
        }
        let is_there = |user: &User| now.users.iter().any(|other| other.id == user.id);
        for (user, lacks) in users.into_iter().filter(|(user, _)| is_there(user)) {
            let what = format!("container {} lacks layers {} of its image", user.id.short(), join(&lacks));
            self.faults.push(Fault { what, done: None });
        }
        Ok(())
    }

    /// What is left over, which is no fault.
    fn note(&mut self, store: &Store, damage: &Damage, needs: &Needs) -> Result<(), Report> {
        // What a damaged index or an unreadable name leads to is not known.
        let hides = |((family, _), wrong): (&(Family, Digest), &Wrong)| *family == Family::Layers || !wrong.is_damage();
        if needs.unreadable.is_empty() && !damage.iter().any(hides) {
            let mut roots = needs.roots();
            roots.extend(store.leases()?.into_iter().filter(|lease| lease.living).flat_map(|lease| lease.pins));
            let reached = store.reach(roots, &mut |layer| objects_of(store, layer))?;
            let (mut count, mut bytes) = (0, 0);
            for family in Family::ALL {
                for stored in store.shelf(family).contents()?.iter().filter(|stored| !reached.contains(&stored.digest))
                {
                    count += 1;
                    bytes += stored.disk_bytes;
                }
            }
            if count > 0 {
                let size = base::units::human_size(bytes);
                self.notes.push(format!("nothing leads to {count} contents ({size}): image prune removes them"));
            }
        }
        let left = store.leftovers()?;
        if left != store::Leftovers::default() {
            self.notes.push(format!(
                "killed commands left {} unfinished files, {} leases and {} contents in the trash: image prune removes them",
                left.temporary, left.leases, left.trash
            ));
        }
        for partial in store.partials()?.into_iter().filter(|partial| !partial.active) {
            let size = base::units::human_size(partial.done_bytes);
            self.notes.push(format!("the download of {} was interrupted after {size}: a pull goes on", partial.digest));
        }
        Ok(())
    }
}

/// What an image lacks of what its containers need: documents, or layers as the registry has them.
fn lacks(store: &Store, damage: &Damage, record: &ImageRecord) -> Result<Vec<Digest>, Report> {
    for document in [record.manifest, record.config] {
        // It is told as what cannot be read.
        if damage.get(&(Family::Blobs, document)).is_some_and(|wrong| !wrong.is_damage()) {
            return Ok(Vec::new());
        }
        if !is_there(store, damage, Family::Blobs, &document)? {
            return Ok(vec![document]);
        }
    }
    let (manifest, config) = match documents(store, record) {
        Ok(Some(documents)) => documents,
        Ok(None) => return Ok(vec![record.manifest]),
        // Removed between two looks.
        Err(error) if error.kind() == Kind::NotFound => return Ok(vec![record.manifest]),
        Err(error) => return Err(error),
    };
    let mut lacks = Vec::new();
    for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
        if !is_there(store, damage, Family::Layers, &diff_id.0)? {
            lacks.push(layer.digest);
        }
    }
    Ok(lacks)
}

/// What a container lacks of the layers of its image.
fn lacks_layers(store: &Store, damage: &Damage, user: &User) -> Result<Vec<Digest>, Report> {
    let mut lacks = Vec::new();
    for layer in &user.layers {
        if !is_there(store, damage, Family::Layers, &layer.0)? {
            lacks.push(layer.0);
        }
    }
    Ok(lacks)
}

fn is_there(store: &Store, damage: &Damage, family: Family, digest: &Digest) -> Result<bool, Report> {
    let is_damaged = damage.get(&(family, *digest)).is_some_and(Wrong::is_damage);
    Ok(!is_damaged && store.shelf(family).has(digest)?)
}

fn join(digests: &[Digest]) -> String {
    digests.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
