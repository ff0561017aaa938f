//! The images in a source, in whichever of the three forms: Docker's archive (`manifest.json` is a list), an OCI layout
//! (`index.json`), or the form of `dir:` (`manifest.json` is one manifest).
//!
//! An archive that is both an OCI layout and Docker's, as Docker has written them since version 25, is read as a layout:
//! there the manifests are as they were pushed.

use base::{Context, Kind, Report};
use oci::document::DOCUMENT_MAX;
use oci::packed::{DockerEntry, docker_entries, layout_entries, name_of};
use oci::{Digest, Document, Entries, Entry, Reference, entries, media};

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
    /// The manifest itself.
    Document(Box<Document>),
    /// Manifests and indexes of a layout; of several the one for the platform is meant. They are read when they are needed:
    /// together they may be larger than the memory.
    Listed(Vec<Entry>),
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
        (Some(layout), _) => of_layout(&layout).step(|| "reading index.json".to_owned())?,
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
        return Ok(vec![Packed { names: Vec::new(), form: Form::Document(Box::new(document)) }]);
    };
    let packed = |entry: DockerEntry| Packed {
        names: entry.repo_tags,
        form: Form::Docker { config: entry.config, layers: entry.layers },
    };
    Ok(entries.into_iter().map(packed).collect())
}

/// The entries of an OCI layout: several of one name are one image for several platforms, several names of the same
/// content are one image.
fn of_layout(text: &[u8]) -> Result<Vec<Packed>, Report> {
    let Entries { list, unreadable } = layout_entries(text)?;
    if unreadable > 0 {
        let text = format!("{unreadable} entries have no sha256 digest, size or media type");
        return Err(Report::new(Kind::Unsupported, text));
    }
    let mut found: Vec<Packed> = Vec::new();
    let (named, unnamed): (Vec<Entry>, Vec<Entry>) = list.into_iter().partition(|entry| name_of(entry).is_some());
    for entry in named {
        let name = name_of(&entry).unwrap_or_default().to_owned();
        match found.iter_mut().find(|packed| packed.names == [&name[..]]) {
            Some(Packed { form: Form::Listed(entries), .. }) => entries.push(entry),
            _ => found.push(Packed { names: vec![name], form: Form::Listed(vec![entry]) }),
        }
    }
    for entry in unnamed {
        if !found.iter().any(|packed| packed.digests().any(|digest| *digest == entry.digest)) {
            found.push(Packed { names: Vec::new(), form: Form::Listed(vec![entry]) });
        }
    }
    Ok(joined(found))
}

/// Puts the names of the same content together.
fn joined(all: Vec<Packed>) -> Vec<Packed> {
    let mut found: Vec<Packed> = Vec::new();
    for packed in all {
        match found.iter_mut().find(|known| known.digests().eq(packed.digests())) {
            Some(known) => known.names.extend(packed.names),
            None => found.push(packed),
        }
    }
    found
}

/// The document of entries of a layout: of one its own, of several an index of them.
pub(crate) fn document(source: &Source, list: &[Entry]) -> Result<Document, Report> {
    let document = match list {
        [entry] => {
            let raw = blob(source, Blobs::Layout, &entry.digest, entry.size)?;
            Document::read(raw, Some(&entry.media_type))
        }
        several => Document::read(entries::write(media::OCI_INDEX, several), None),
    };
    Ok(document?)
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
    /// What its entries in a layout lead to.
    fn digests(&self) -> impl Iterator<Item = &Digest> {
        let entries = match &self.form {
            Form::Listed(entries) => &entries[..],
            Form::Document(_) | Form::Docker { .. } => &[],
        };
        entries.iter().map(|entry| &entry.digest)
    }

    /// What it is called in messages.
    pub fn shown(&self) -> String {
        let digest = || self.digests().next().map(ToString::to_string);
        self.names.first().cloned().or_else(digest).unwrap_or_else(|| "the image".to_owned())
    }

    /// Where its blobs lie.
    pub fn blobs(&self) -> Blobs {
        if matches!(self.form, Form::Listed(_)) { Blobs::Layout } else { Blobs::Dir }
    }

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

    #[test]
    fn entries_of_a_layout_are_put_together_by_name_and_by_content() {
        let entry = |content: &[u8], name: &str| {
            let names = if name.is_empty() {
                String::new()
            } else {
                format!(r#","annotations":{{"{}":"{name}"}}"#, oci::packed::REF_NAME)
            };
            format!(r#"{{"mediaType":"{}","digest":"{}","size":1{names}}}"#, media::OCI_MANIFEST, Digest::of(content))
        };
        let list = [
            entry(b"1", "a:1"),
            entry(b"2", "a:1"),
            entry(b"3", "b:1"),
            entry(b"3", "b:2"),
            entry(b"3", ""),
            entry(b"4", ""),
        ];
        let found = of_layout(format!(r#"{{"manifests":[{}]}}"#, list.join(",")).as_bytes()).unwrap();
        let names: Vec<String> = found.iter().map(|packed| packed.names.join(" ")).collect();
        let counts: Vec<usize> = found.iter().map(|packed| packed.digests().count()).collect();
        assert_eq!((names.join("|").as_str(), &counts[..]), ("a:1|b:1 b:2|", &[2, 1, 1][..]));
        assert!(of_layout(br#"{"manifests":[{"mediaType":"x","digest":"sha512:00","size":1}]}"#).is_err());
    }
}
