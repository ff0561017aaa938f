//! What images, containers and volumes take on the disk, and what of it a prune would free.
//!
//! The sum of images is what the store takes as a whole, as du(1) counts it: what nothing leads to any more, interrupted
//! downloads and directories too. What an image takes is shared or its own: shared is what another image of the store
//! leads to as well, whatever its name. No lock is taken; what changes meanwhile is seen as it was before or after.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::SystemTime;

use base::Report;
use base::time::parse_rfc3339;
use oci::{Digest, Reference};
use store::{Family, ImageRecord, Store};

use crate::Engine;
use crate::container::list::{Summary, list};
use crate::container::prune::usage;
use crate::container::{record, tree};
use crate::image::sweep::{User, objects_of, users};
use crate::image::{load_config, open_store};
use crate::system::du;
use crate::system::limits::{self, Limits};
use crate::volume::list::links;
use crate::volume::{self, Volume};

/// One kind of thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// How many there are.
    pub count: usize,
    /// How many of them are in use.
    pub active: usize,
    /// Bytes on the disk.
    pub size_bytes: u64,
    /// Bytes that go with those that are not in use.
    pub reclaimable_bytes: u64,
}

/// One image.
#[derive(Clone, Debug)]
pub struct ImageUsage {
    /// Its names, if it has any.
    pub names: Vec<Reference>,
    /// Its id.
    pub id: Digest,
    /// When it was built, if it says.
    pub created: Option<SystemTime>,
    /// Bytes on the disk that it shares with other images.
    pub shared_bytes: u64,
    /// Bytes on the disk that only it needs.
    pub unique_bytes: u64,
    /// How many containers stand on it.
    pub containers: usize,
}

/// One container.
#[derive(Clone, Debug)]
pub struct ContainerUsage {
    /// What `ps` says of it.
    pub summary: Summary,
    /// How many volumes it has.
    pub volumes: usize,
    /// Bytes on the disk.
    pub size_bytes: u64,
}

/// One volume.
#[derive(Clone, Debug)]
pub struct VolumeUsage {
    /// Its name.
    pub name: String,
    /// How many containers have it.
    pub links: usize,
    /// Bytes on the disk.
    pub size_bytes: u64,
}

/// The answer to `system df`.
#[derive(Clone, Debug, Default)]
pub struct DiskUsage {
    /// Images: the whole store.
    pub images: Total,
    /// Containers, with everything that belongs to this machine but volumes: images that were written out for them too.
    pub containers: Total,
    /// Volumes.
    pub volumes: Total,
    /// Every image.
    pub each_image: Vec<ImageUsage>,
    /// Every container.
    pub each_container: Vec<ContainerUsage>,
    /// Every volume.
    pub each_volume: Vec<VolumeUsage>,
    /// Inodes of the store.
    pub store_inodes: u64,
    /// What the store may still take; `None` before there is one.
    pub limits: Option<Limits>,
}

/// What the engine's things take on the disk.
pub fn df(engine: &Engine) -> Result<DiskUsage, Report> {
    let mut answer = DiskUsage::default();
    containers_and_volumes(engine, &mut answer)?;
    if let Some(store) = open_store(engine)? {
        images(engine, &store, &mut answer)?;
        answer.limits = Some(limits::of(store.root().path())?);
    }
    Ok(answer)
}

/// What each image takes, by its id.
pub fn of_images(engine: &Engine) -> Result<HashMap<Digest, ImageUsage>, Report> {
    let mut answer = DiskUsage::default();
    if let Some(store) = open_store(engine)? {
        images(engine, &store, &mut answer)?;
    }
    Ok(answer.each_image.into_iter().map(|image| (image.id, image)).collect())
}

fn containers_and_volumes(engine: &Engine, answer: &mut DiskUsage) -> Result<(), Report> {
    let (containers, broken) = list(engine, SystemTime::now())?;
    for report in broken {
        engine.notice(&report.to_string());
    }
    let links = links(engine)?;
    let mut chains = HashSet::new();
    for summary in containers {
        let record = record::try_load(engine, &summary.id)?;
        let named = record.as_ref().map_or(0, |record| record.volume_names().len());
        let size_bytes = usage(engine, &summary.id)?.bytes;
        answer.containers.count += 1;
        if summary.life.is_active() {
            answer.containers.active += 1;
            chains.extend(record.and_then(|record| record.image.chain));
        } else {
            answer.containers.reclaimable_bytes += size_bytes;
        }
        answer.each_container.push(ContainerUsage { summary, volumes: named, size_bytes });
    }
    answer.containers.reclaimable_bytes += tree::others_bytes(engine, &chains)?;
    for Volume { name, .. } in volume::list::list(engine)? {
        let size_bytes = du::of(&engine.paths().volumes().join(&name))?.bytes;
        let links = links.get(&name).copied().unwrap_or(0);
        answer.volumes.count += 1;
        if links > 0 {
            answer.volumes.active += 1;
        } else {
            answer.volumes.reclaimable_bytes += size_bytes;
        }
        answer.each_volume.push(VolumeUsage { name, links, size_bytes });
    }
    answer.volumes.size_bytes = du::of(&engine.paths().volumes())?.bytes;
    let host = du::of(&engine.paths().host())?.bytes;
    answer.containers.size_bytes = host.saturating_sub(answer.volumes.size_bytes);
    Ok(())
}

fn images(engine: &Engine, store: &Store, answer: &mut DiskUsage) -> Result<(), Report> {
    let users = users(engine)?;
    let here = users.iter().filter(|user| user.engine.paths().store_name() == engine.paths().store_name());
    let mut containers: HashMap<Digest, usize> = HashMap::new();
    here.for_each(|user| *containers.entry(user.image).or_default() += 1);
    let followed = Followed::of(engine, store, &users, &containers)?;
    let on_disk = on_disk(store)?;
    for (id, records) in &followed.records {
        let (shared_bytes, unique_bytes) = followed.bytes(id, &on_disk);
        let config = load_config(store, id).ok();
        let created = config.and_then(|config| config.spec.created().clone());
        let containers = containers.get(id).copied().unwrap_or(0);
        answer.images.count += 1;
        answer.images.active += usize::from(containers > 0);
        answer.each_image.push(ImageUsage {
            names: records
                .iter()
                .filter(|record| !record.is_unnamed())
                .map(|record| record.reference.clone())
                .collect(),
            id: *id,
            created: created.and_then(|text| parse_rfc3339(&text).ok()),
            shared_bytes,
            unique_bytes,
            containers,
        });
    }
    answer.each_image.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.names.cmp(&b.names)));
    let usage = du::of(store.root().path())?;
    (answer.images.size_bytes, answer.store_inodes) = (usage.bytes, usage.inodes);
    let going = on_disk.iter().filter(|(digest, _)| !followed.stays.contains(digest)).map(|(_, bytes)| bytes);
    let partials = store.partials()?.into_iter().filter(|partial| !partial.active).map(|partial| partial.done_bytes);
    answer.images.reclaimable_bytes = (going.sum::<u64>() + partials.sum::<u64>()).min(usage.bytes);
    Ok(())
}

/// What names and containers lead to.
#[derive(Default)]
struct Followed {
    /// The names of this store's images, by their ids.
    records: BTreeMap<Digest, Vec<ImageRecord>>,
    /// What each image leads to, whatever the store that names it.
    reached: HashMap<Digest, HashSet<Digest>>,
    /// How many images lead to a content.
    shares: HashMap<Digest, usize>,
    /// What stays when all images of this store go on which none of its containers stands.
    stays: HashSet<Digest>,
}

impl Followed {
    fn of(engine: &Engine, store: &Store, users: &[User], containers: &HashMap<Digest, usize>) -> Result<Self, Report> {
        let reach = |digests: Vec<Digest>| store.reach(digests, &mut |layer| objects_of(store, layer));
        let mut followed = Followed::default();
        let mut staying: Vec<Digest> = users.iter().flat_map(User::needs).collect();
        for list in store.all_lists()? {
            staying.extend(list.record?.leads_to());
        }
        for name in store.all_names()? {
            let record = name.record?;
            let ours = name.store.as_deref() == engine.paths().store_name();
            if !ours || containers.contains_key(&record.config) {
                staying.extend(record.leads_to());
            }
            followed.reached.entry(record.config).or_default().extend(reach(record.leads_to())?);
            if ours {
                followed.records.entry(record.config).or_default().push(record);
            }
        }
        for digest in followed.reached.values().flatten() {
            *followed.shares.entry(*digest).or_default() += 1;
        }
        followed.stays = reach(staying)?;
        Ok(followed)
    }

    /// What an image takes that others lead to as well, and what it alone does.
    fn bytes(&self, id: &Digest, on_disk: &HashMap<Digest, u64>) -> (u64, u64) {
        let (mut shared, mut unique) = (0, 0);
        for digest in self.reached.get(id).into_iter().flatten() {
            let bytes = on_disk.get(digest).copied().unwrap_or(0);
            if self.shares.get(digest).is_some_and(|count| *count > 1) { shared += bytes } else { unique += bytes }
        }
        (shared, unique)
    }
}

/// The bytes that each content takes. A layer that is not compressed has one digest as a blob and as an index.
fn on_disk(store: &Store) -> Result<HashMap<Digest, u64>, Report> {
    let mut on_disk: HashMap<Digest, u64> = HashMap::new();
    for family in Family::ALL {
        for stored in store.shelf(family).contents()? {
            *on_disk.entry(stored.digest).or_default() += stored.disk_bytes;
        }
    }
    Ok(on_disk)
}
