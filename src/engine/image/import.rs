//! An image out of the archive of a root file system, such as `export` writes.

use std::io::{self, Read};

use base::{Context, Kind, Report};
use layer::{Compression, Limits};
use oci::{Digest, Platform, Reference};
use serde_json::{Map, json};
use store::{Durability, Store};

use crate::container::commit::created_at;
use crate::image::progress::{Listener, Teller, Told};
use crate::image::{assemble, change, make_store};
use crate::system::limits;
use crate::{Engine, events, registries};

/// As many first bytes as tell how layers are compressed.
const MAGIC_BYTES: u64 = 4;

/// What is to be made.
#[derive(Clone, Debug, Default)]
pub struct ImportRequest {
    /// Its name; without one it has only its id.
    pub name: Option<Reference>,
    /// Why, or from where.
    pub message: String,
    /// Instructions of a Dockerfile.
    pub changes: Vec<String>,
    /// What the files are for.
    pub platform: Option<Platform>,
    /// In place of now, in seconds since 1970 (`SOURCE_DATE_EPOCH`).
    pub epoch_s: Option<i64>,
}

/// Makes an image of the archive at a web address, like [`import`].
pub fn import_url(
    engine: &Engine,
    url: &str,
    request: &ImportRequest,
    listener: Listener<'_>,
) -> Result<Digest, Report> {
    let registry = registries::anonymous(engine).step(|| "cannot fetch the archive".to_owned())?;
    let opened = registry.fetch(url).step(|| "cannot fetch the archive".to_owned());
    registries::tell_notes(engine, &registry);
    let (reader, size_bytes) = opened?;
    import(engine, reader, size_bytes, request, listener)
}

/// Makes an image of one layer; its id. `size_bytes` is the archive's length where that is known. A gzip or zstd archive stays as
/// it is; another one becomes gzip.
pub fn import(
    engine: &Engine,
    reader: impl Read + Send,
    size_bytes: Option<u64>,
    request: &ImportRequest,
    listener: Listener<'_>,
) -> Result<Digest, Report> {
    let store = make_store(engine)?;
    let reader = Told::new(reader, Teller::new(listener, None, size_bytes));
    let made = imported(&store, reader, request);
    made.inspect(|id| events::of_image(engine, &id.to_string(), "import", &id.to_string()))
        .map_err(|report| limits::explain(store.root().path(), report))
        .step(|| "cannot import the archive".to_owned())
}

fn imported(store: &Store, mut reader: Told<'_, impl Read + Send>, request: &ImportRequest) -> Result<Digest, Report> {
    let mut config = Map::new();
    change::apply(&mut config, &request.changes)?;
    let mut lease = store.lease()?;
    let mut magic = Vec::new();
    let reading = |error| Report::of(Kind::Usage, error).with_step("reading the archive");
    (&mut reader).take(MAGIC_BYTES).read_to_end(&mut magic).map_err(reading)?;
    if magic.is_empty() {
        return Err(Report::new(Kind::Usage, "the archive is empty"));
    }
    let compression = Compression::of_magic(&magic);
    let mut whole = io::Cursor::new(magic).chain(&mut reader);
    let limits = Limits::default();
    let made = match compression {
        Compression::None => layer::create(store, Compression::Gzip, Durability::Later, &limits, |out| {
            // Plain, or compressed in a way that layers are not.
            let unpacked = layer::unpacked(&mut whole, &limits).map_err(|source| layer::LayerError::Read { source })?;
            layer::copy_plain(unpacked, out).map(drop)
        })?,
        _ => layer::take(store, whole, None, None, Durability::Later, &limits)?,
    };
    reader.moved();
    // What is in the archive does not depend on this machine's processor.
    let platform = request.platform.clone().unwrap_or_else(|| Platform::host().of_any_level());
    let created = created_at(request.epoch_s);
    let mut image = json!({
        "architecture": platform.architecture(),
        "os": platform.os(),
        "created": created,
        "config": config,
        "history": [{ "created": created, "comment": request.message }],
        "rootfs": { "type": "layers", "diff_ids": [made.applied.diff_id.0.to_string()] },
    });
    if let Some(variant) = platform.variant() {
        image["variant"] = variant.into();
    }
    let config = serde_json::to_vec(&image).map_err(|error| Report::of(Kind::Internal, error))?;
    let image = assemble::assemble(store, &mut lease, config, &[assemble::descriptor(&made, false)], false)?;
    assemble::set_name(store, &image, request.name.as_ref())?;
    Ok(image.config.digest)
}
