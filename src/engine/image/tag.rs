//! Names of images that are here: given, and taken away.

use base::{Kind, Report};
use oci::Reference;
use store::ImageRecord;

use crate::Engine;
use crate::events;
use crate::image::assemble::keep_replaced;
use crate::image::remove::refuse_below;
use crate::image::{find_pinned, images_of, open_store};

/// Gives an image a further name, in place of what had it.
pub fn tag(engine: &Engine, text: &str, name: &Reference) -> Result<(), Report> {
    if name.digest().is_some() {
        return Err(Report::new(Kind::Usage, "refusing to create a tag with a digest reference"));
    }
    let missing = || Report::new(Kind::NotFound, format!("No such image: {text}"));
    let store = open_store(engine)?.ok_or_else(missing)?;
    let mut lease = store.lease()?;
    let record = find_pinned(engine, &store, text, &mut lease)?.ok_or_else(missing)?;
    let name = name.clone().or_latest();
    let names = store.lock_names()?;
    keep_replaced(&store, &names, &name, &record.config)?;
    names.put(&ImageRecord { reference: name.clone(), ..record.clone() })?;
    events::of_image(engine, &record.config.to_string(), "tag", &name.familiar());
    if record.is_unnamed() {
        names.remove(&record.reference)?;
    }
    Ok(())
}

/// Takes names of an image away, all of them if none is given, and keeps the image.
pub fn untag(engine: &Engine, text: &str, wanted: &[Reference]) -> Result<(), Report> {
    let missing = || Report::new(Kind::NotFound, format!("No such image: {text}"));
    let store = open_store(engine)?.ok_or_else(missing)?;
    let mut lease = store.lease()?;
    let record = find_pinned(engine, &store, text, &mut lease)?.ok_or_else(missing)?;
    let names = store.lock_names()?;
    let all = images_of(&store, &record.config)?;
    if all.is_empty() {
        // Removed since it was found.
        return Err(missing());
    }
    let going: Vec<&ImageRecord> = match wanted {
        [] => all.iter().filter(|record| !record.is_unnamed()).collect(),
        wanted => wanted
            .iter()
            .map(|name| {
                let name = name.clone().or_latest();
                all.iter().find(|record| record.reference == name).ok_or_else(|| {
                    Report::new(Kind::NotFound, format!("{}: tag not known of image {text}", name.familiar()))
                })
            })
            .collect::<Result<_, _>>()?,
    };
    going.iter().try_for_each(|name| refuse_below(&store, name))?;
    if all.iter().all(|record| going.contains(&record))
        && let Some(unnamed) = ImageRecord::unnamed(record.manifest)
    {
        // First: there is no moment in which nothing leads to it.
        names.put(&ImageRecord { reference: unnamed, ..record.clone() })?;
    }
    for record in going {
        names.remove(&record.reference)?;
        events::of_image(engine, &record.config.to_string(), "untag", &record.reference.familiar());
    }
    Ok(())
}
