//! Everything known about one image, in the shape of Docker's API.

use base::Report;
use oci::Reference;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Engine;
use crate::image::{find, list, open_store};

/// The answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "the members are Docker's; their meaning is that of its API reference")]
pub struct ImageInspection {
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub parent: String,
    pub comment: String,
    pub created: String,
    pub docker_version: String,
    pub author: String,
    pub config: Value,
    pub architecture: String,
    pub variant: String,
    pub os: String,
    pub size: u64,
    pub virtual_size: u64,
    #[serde(rename = "RootFS")]
    pub root_fs: Value,
}

/// What is known about an image.
pub fn inspect(engine: &Engine, name: &str) -> Result<ImageInspection, Report> {
    let image = find(engine, name)?;
    let tags = image.names.iter().filter(|record| record.reference.tag().is_some());
    let digest_name = |reference: &Reference, digest: &oci::Digest| format!("{}@{digest}", reference.familiar_name());
    let named = image.names.iter().filter(|record| !record.is_unnamed());
    let mut repo_digests: Vec<String> = named.map(|record| digest_name(&record.reference, &record.digest)).collect();
    repo_digests.sort();
    repo_digests.dedup();
    let size = match (open_store(engine)?, image.names.first()) {
        (Some(store), Some(record)) => list::size(&store, record)?,
        _ => 0,
    };
    let raw: Value = serde_json::from_slice(&image.config.raw).unwrap_or_default();
    let spec = &image.config.spec;
    let layers: Vec<String> = image.config.diff_ids.iter().map(|layer| layer.0.to_string()).collect();
    Ok(ImageInspection {
        id: image.config.digest.to_string(),
        repo_tags: tags.map(|record| record.reference.familiar()).collect(),
        repo_digests,
        parent: String::new(),
        comment: String::new(),
        created: spec.created().clone().unwrap_or_default(),
        docker_version: String::new(),
        author: spec.author().clone().unwrap_or_default(),
        config: raw.get("config").cloned().unwrap_or_else(|| json!({})),
        architecture: image.config.platform.architecture().to_owned(),
        variant: image.config.platform.variant().unwrap_or_default().to_owned(),
        os: image.config.platform.os().to_owned(),
        size,
        virtual_size: size,
        root_fs: json!({ "Type": "layers", "Layers": layers }),
    })
}
