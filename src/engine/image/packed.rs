//! The images in a source, in whichever of the three forms: Docker's archive (`manifest.json` is a list), an OCI layout
//! (`index.json`), or the form of `dir:` (`manifest.json` is one manifest).
//!
//! An archive that is both an OCI layout and Docker's, as Docker has written them since version 25, is read as a layout:
//! there the manifests are as they were pushed.

use base::{Context, Kind, Report};
use oci::document::DOCUMENT_MAX;
use oci::packed::{DockerEntry, LayoutEntry, docker_entries, layout_entries};
use oci::{Digest, Document, Reference};

use crate::image::source::Source;

/// An image in a source.
#[derive(Debug)]
pub(crate) struct Packed {
    /// Its names as the source spells them; a whole reference, or merely a tag.
    pub names: Vec<String>,
    pub form: Form,
}

/// What leads to the rest of an image.
#[derive(Debug)]
pub(crate) enum Form {
    /// A manifest or an index, and where blobs lie.
    Document(Box<Document>, Blobs),
    /// Docker's: paths of the configuration and the layers.
    Docker { config: String, layers: Vec<String> },
}

/// How blobs are named.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Blobs {
    Layout,
    Dir,
}

impl Blobs {
    /// The path of a blob in its source.
    pub fn path(self, digest: &Digest) -> String {
        match self {
            Blobs::Layout => format!("blobs/sha256/{}", digest.hex()),
            Blobs::Dir => digest.hex(),
        }
    }
}

/// All images of a source.
pub(crate) fn images(source: &Source) -> Result<Vec<Packed>, Report> {
    let layout = source.read("index.json", DOCUMENT_MAX)?;
    let manifest = source.read("manifest.json", DOCUMENT_MAX)?;
    let found = match (layout, manifest) {
        (Some(layout), _) => of_layout(source, &layout).step(|| "reading index.json".to_owned())?,
        (None, Some(manifest)) => of_manifest(&manifest).step(|| "reading manifest.json".to_owned())?,
        (None, None) => {
            return Err(Report::new(
                Kind::Usage,
                "there is neither an index.json nor a manifest.json: this is no image",
            )
            .with_hint("`sublet import` makes an image of a plain archive of a root file system"));
        }
    };
    if found.is_empty() {
        return Err(Report::new(Kind::NotFound, "there is no image in it"));
    }
    Ok(found)
}

/// Docker's list of images, or one manifest.
fn of_manifest(text: &[u8]) -> Result<Vec<Packed>, Report> {
    let Some(entries) = docker_entries(text)? else {
        let document = Document::read(text.to_vec(), None)?;
        return Ok(vec![Packed { names: Vec::new(), form: Form::Document(Box::new(document), Blobs::Dir) }]);
    };
    let packed = |entry: DockerEntry| Packed {
        names: entry.repo_tags,
        form: Form::Docker { config: entry.config, layers: entry.layers },
    };
    Ok(entries.into_iter().map(packed).collect())
}

/// The entries of an OCI layout; several names of one image are several entries.
fn of_layout(source: &Source, text: &[u8]) -> Result<Vec<Packed>, Report> {
    let mut found: Vec<Packed> = Vec::new();
    for LayoutEntry { media_type, digest, size, name } in layout_entries(text)? {
        let same = |packed: &&mut Packed| matches!(&packed.form, Form::Document(known, _) if known.digest() == digest);
        if let Some(packed) = found.iter_mut().find(same) {
            packed.names.extend(name);
            continue;
        }
        let document = Document::read(blob(source, Blobs::Layout, &digest, size)?, Some(&media_type))?;
        let form = Form::Document(Box::new(document), Blobs::Layout);
        found.push(Packed { names: name.into_iter().collect(), form });
    }
    Ok(found)
}

/// A document or configuration, which must have its digest and size.
pub(crate) fn blob(source: &Source, blobs: Blobs, digest: &Digest, size: u64) -> Result<Vec<u8>, Report> {
    let path = blobs.path(digest);
    let raw = source.read(&path, DOCUMENT_MAX)?;
    let raw = raw.ok_or_else(|| Report::new(Kind::NotFound, format!("{path} is missing")))?;
    let found = Digest::of(&raw);
    if found != *digest || raw.len() as u64 != size {
        return Err(Report::new(Kind::Usage, format!("{path} has the digest {found}, wanted {digest}")));
    }
    Ok(raw)
}

impl Packed {
    /// Its names that are whole references. A mere tag says nothing without the name of its repository.
    pub fn references(&self) -> Vec<Reference> {
        let whole = |name: &&String| name.contains([':', '/']);
        let parsed = |name: &String| name.parse::<Reference>().ok().filter(|name| name.digest().is_none());
        self.names.iter().filter(whole).filter_map(parsed).collect()
    }

    /// Whether it is what a source's user calls so: a name as the source spells it, or a reference that means the same.
    pub fn is_called(&self, wanted: &str) -> bool {
        let reference = wanted.parse::<Reference>().ok().map(Reference::or_latest);
        self.names.iter().any(|name| name == wanted)
            || reference.is_some_and(|wanted| self.references().into_iter().any(|name| name.or_latest() == wanted))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a refused document is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn images_are_called_as_the_source_or_the_user_spells_them() {
        let list = br#"[{"Config":"c.json","RepoTags":["a:1","x/y"]},{"Config":"d","RepoTags":null}]"#;
        let found = of_manifest(list).unwrap();
        assert!(found[0].is_called("a:1") && found[0].is_called("docker.io/library/a:1") && !found[0].is_called("a"));
        assert!(found[0].is_called("x/y:latest"));
        assert!(found[1].references().is_empty());
        assert!(of_manifest(b"{}").is_err());
    }
}
