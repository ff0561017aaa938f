//! The contents of the store one by one, for those who look into it: by digest, whatever leads to them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use base::{Context, Kind, Report};
use oci::document::DOCUMENT_MAX;
use oci::{Digest, Document, Hasher, ImageConfig};
use store::{Durability, Family, Partial, Store, Stored};

use crate::Engine;
use crate::file::digest_of;
use crate::image::sweep::{objects_of, users};
use crate::image::{make_store, open_store};

/// The beginning of a digest must have this many digits at least.
const PREFIX_MIN: usize = 4;

/// One content.
#[derive(Clone, Debug)]
pub struct Content {
    /// What it is: `manifest`, `index`, `config`, `layer` or `blob`; of other kinds `layer-index`, `stack`, `object`.
    pub kind: &'static str,
    /// As it lies on the disk.
    pub stored: Stored,
}

/// The blobs of the store, the youngest first; with `all` indexes and objects too.
pub fn list(engine: &Engine, all: bool) -> Result<Vec<Content>, Report> {
    let Some(store) = open_store(engine)? else { return Ok(Vec::new()) };
    let families: &[Family] = if all { &Family::ALL } else { &[Family::Blobs] };
    let mut contents = Vec::new();
    for family in families {
        for stored in store.shelf(*family).contents()? {
            contents.push(Content { kind: kind(&store, *family, &stored)?, stored });
        }
    }
    contents.sort_by(|a, b| b.stored.used.cmp(&a.stored.used).then_with(|| a.stored.digest.cmp(&b.stored.digest)));
    Ok(contents)
}

fn kind(store: &Store, family: Family, stored: &Stored) -> Result<&'static str, Report> {
    match family {
        Family::Chains => return Ok("stack"),
        Family::Layers => return Ok("layer-index"),
        Family::Objects => return Ok("object"),
        Family::Blobs => {}
    }
    // Opened once: what is removed meanwhile can still be read.
    let Some(mut file) = store.blobs().open(&stored.digest)? else { return Ok("blob") };
    let mut start = [0; 2];
    // What is too short for its first bytes to tell anything is no layer.
    let length = file.read(&mut start).unwrap_or(0);
    match start[..length] {
        [0x1f, 0x8b] | [0x28, 0xb5] => return Ok("layer"),
        [b'{', ..] if stored.size_bytes <= DOCUMENT_MAX => {}
        _ => return Ok("blob"),
    }
    let mut raw = start[..length].to_vec();
    let read = file.take(DOCUMENT_MAX).read_to_end(&mut raw);
    read.map_err(|error| Report::of(Kind::Internal, error)).step(|| format!("reading blob {}", stored.digest))?;
    Ok(match Document::read(raw.clone(), None) {
        Ok(Document::Index(_)) => "index",
        Ok(Document::Manifest(_)) => "manifest",
        Err(_) if ImageConfig::read(raw).is_ok() => "config",
        Err(_) => "blob",
    })
}

/// The blobs on their way, the youngest first.
pub fn active(engine: &Engine) -> Result<Vec<Partial>, Report> {
    let Some(store) = open_store(engine)? else { return Ok(Vec::new()) };
    let mut partials = store.partials()?;
    partials.sort_by(|a, b| b.modified_s.cmp(&a.modified_s).then_with(|| a.digest.cmp(&b.digest)));
    Ok(partials)
}

/// A blob, by its digest or the unique beginning of it.
pub fn get(engine: &Engine, text: &str) -> Result<File, Report> {
    let (store, digest) = find(engine, text)?;
    let file = store.blobs().open(&digest)?;
    file.ok_or_else(|| missing(text))
}

/// Writes a stream into the store as a blob; with `expected` another content is refused. Nothing leads to it yet, so that
/// it goes with the next sweep unless something does by then.
pub fn put(engine: &Engine, mut content: impl Read, expected: Option<&str>) -> Result<Digest, Report> {
    let expected = expected.map(str::parse::<Digest>).transpose()?;
    let store = make_store(engine)?;
    let _lease = store.lease()?;
    let mut file = store.blobs().create()?;
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 256 << 10]);
    loop {
        let count = match content.read(&mut buffer) {
            Ok(0) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => {
                read.map_err(|error| Report::of(Kind::Internal, error)).step(|| "reading the content".to_owned())?
            }
        };
        hasher.update(&buffer[..count]);
        let written = file.write_all(&buffer[..count]);
        written.map_err(|error| Report::of(Kind::Internal, error)).step(|| "writing the content".to_owned())?;
    }
    let found = hasher.finish();
    if let Some(wanted) = expected.filter(|wanted| *wanted != found) {
        return Err(store::StoreError::Mismatch { wanted, found }.into());
    }
    store.blobs().publish(file, &found, Durability::Now)?;
    Ok(found)
}

/// Removes a blob. One that a name, a list, a container or a command at work leads to is refused unless `force`.
pub fn remove(engine: &Engine, text: &str, force: bool) -> Result<Digest, Report> {
    let (store, digest) = find(engine, text)?;
    // Before the look for who needs it: an eviction takes it only if it was not used since.
    let stored = store.blobs().stored(&digest)?.ok_or_else(|| missing(text))?;
    if !force && let Some(needed_by) = needed_by(engine, &store, &digest)? {
        let message = format!("conflict: unable to remove {digest} (must be forced) - it is needed by {needed_by}");
        return Err(Report::new(Kind::Conflict, message)
            .with_hint("rmi and image prune remove images with all that only they need"));
    }
    let removed =
        if force { store.blobs().remove(&digest)? } else { store.evict(&[(Family::Blobs, stored)])?.count > 0 };
    if removed {
        return Ok(digest);
    }
    if !store.blobs().has(&digest)? {
        return Err(missing(text));
    }
    let message = format!("conflict: unable to remove {digest} (must be forced) - it came while a command is at work");
    Err(Report::new(Kind::Conflict, message)
        .with_hint("that command may need it (lease ls); it goes when that has ended"))
}

/// Hashes blobs again, those that are named or all. For each its digest, and what it has become if it is damaged.
pub fn verify(engine: &Engine, texts: &[String]) -> Result<Vec<(Digest, Option<Digest>)>, Report> {
    let Some(store) = open_store(engine)? else {
        return texts.first().map_or_else(|| Ok(Vec::new()), |text| Err(missing(text)));
    };
    let digests = match texts {
        [] => store.blobs().list()?,
        texts => texts.iter().map(|text| find_in(&store, text)).collect::<Result<_, _>>()?,
    };
    let mut verified = Vec::new();
    for digest in digests {
        // What is gone since it was listed is not there.
        let Some(file) = store.blobs().open(&digest)? else { continue };
        let found = digest_of(file).map_err(|error| Report::of(Kind::Internal, error));
        let found = found.step(|| format!("reading blob {digest}"))?;
        verified.push((digest, (found != digest).then_some(found)));
    }
    Ok(verified)
}

/// The first name, list, container or living lease that leads to a content.
pub(crate) fn needed_by(engine: &Engine, store: &Store, digest: &Digest) -> Result<Option<String>, Report> {
    let leads = |roots: Vec<Digest>| {
        Ok::<_, Report>(store.reach(roots, &mut |layer| objects_of(store, layer))?.contains(digest))
    };
    let of = |store: Option<String>| store.map(|store| format!(" of the store {store}")).unwrap_or_default();
    for name in store.all_names()? {
        let (record, of_store) = (name.record?, of(name.store));
        if leads(record.leads_to())? {
            return Ok(Some(format!("image {}{of_store}", record.familiar())));
        }
    }
    for list in store.all_lists()? {
        let (record, of_store) = (list.record?, of(list.store));
        if leads(record.leads_to().collect())? {
            return Ok(Some(format!("the list {}{of_store}", record.reference.familiar())));
        }
    }
    for user in users(engine)? {
        if leads(user.needs())? {
            return Ok(Some(format!("container {}", user.id.short())));
        }
    }
    for lease in store.leases()?.into_iter().filter(|lease| lease.living) {
        if leads(lease.pins)? {
            let process = lease.pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"));
            return Ok(Some(format!("{process}, which is at work")));
        }
    }
    Ok(None)
}

fn missing(text: &str) -> Report {
    Report::new(Kind::NotFound, format!("No such content: {text}"))
}

fn find(engine: &Engine, text: &str) -> Result<(Arc<Store>, Digest), Report> {
    let store = open_store(engine)?.ok_or_else(|| missing(text))?;
    let digest = find_in(&store, text)?;
    Ok((store, digest))
}

fn find_in(store: &Store, text: &str) -> Result<Digest, Report> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    if hex.len() < PREFIX_MIN || !hex.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f')) {
        return Err(Report::new(Kind::Usage, format!("invalid digest: {text}"))
            .with_hint("name a blob by sha256: and 64 digits, or by the first four digits or more"));
    }
    let mut matching = store.blobs().list()?.into_iter().filter(|digest| digest.hex().starts_with(hex));
    match (matching.next(), matching.next()) {
        (None, _) => Err(missing(text)),
        (Some(digest), None) => Ok(digest),
        (Some(_), Some(_)) => {
            Err(Report::new(Kind::Usage, format!("multiple contents found with provided prefix: {text}")))
        }
    }
}
