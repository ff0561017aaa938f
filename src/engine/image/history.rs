//! How an image came to be, as its configuration tells it, and what each step weighs.

use std::time::SystemTime;

use base::Report;
use base::time::parse_rfc3339;
use oci::{DiffId, Digest};

use crate::Engine;
use crate::image::{find, open_store};

/// One step, the youngest first.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The image's id at the youngest step; the others have none any more.
    pub id: Option<Digest>,
    /// When.
    pub created: Option<SystemTime>,
    /// By what.
    pub created_by: String,
    /// What was said of it.
    pub comment: String,
    /// Bytes of the files of its layer; 0 without one.
    pub size_bytes: u64,
    /// The names of the image, at the youngest step.
    pub tags: Vec<String>,
    /// Its layer, if it has one.
    pub layer: Option<DiffId>,
}

impl Step {
    fn of_layer(layer: DiffId, created: Option<SystemTime>) -> Self {
        Step { created, layer: Some(layer), ..Step::default() }
    }
}

/// The steps of an image, the youngest first.
pub fn history(engine: &Engine, text: &str) -> Result<Vec<Step>, Report> {
    let image = find(engine, text)?;
    let store = open_store(engine)?;
    let entries: Vec<_> = image.config.spec.history().iter().flatten().collect();
    let mut layers = image.config.diff_ids.iter().copied();
    // A history that knows fewer layers than there are lacks the oldest.
    let known = entries.iter().filter(|entry| !entry.empty_layer().unwrap_or(false)).count();
    let created = image.config.spec.created().as_deref().and_then(|text| parse_rfc3339(text).ok());
    let unknown = image.config.diff_ids.len().saturating_sub(known);
    let mut steps: Vec<Step> = layers.by_ref().take(unknown).map(|layer| Step::of_layer(layer, created)).collect();
    for entry in entries {
        steps.push(Step {
            created: entry.created().as_deref().and_then(|text| parse_rfc3339(text).ok()),
            created_by: entry.created_by().clone().unwrap_or_default(),
            comment: entry.comment().clone().unwrap_or_default(),
            layer: if entry.empty_layer().unwrap_or(false) { None } else { layers.next() },
            ..Step::default()
        });
    }
    for step in &mut steps {
        if let (Some(store), Some(layer)) = (&store, step.layer) {
            step.size_bytes = layer::open_layer(store, layer)?.content_bytes();
        }
    }
    if let Some(youngest) = steps.last_mut() {
        youngest.id = Some(image.config.digest);
        let named = image.names.iter().filter(|record| !record.is_unnamed());
        youngest.tags = named.map(|record| record.reference.familiar()).collect();
    }
    steps.reverse();
    Ok(steps)
}
