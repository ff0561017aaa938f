//! Images made by us: deterministic layers, their config and manifest, as bytes.
//!
//! The same input gives the same digest on every machine: entries come in the order they are given, times are fixed,
//! and the gzip header carries no name and no time.

use std::io::{self, Read, Write};

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// Media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a gzip layer.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Modification time of every entry we make, seconds since 1970.
pub const MTIME_S: u64 = 1_700_000_000;

/// `sha256:` and the digest of these bytes in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// One layer: the compressed bytes and the digest of the tar stream inside.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The gzip stream, as a registry holds it.
    pub gzip: Vec<u8>,
    /// Digest of the uncompressed tar stream.
    pub diff_id: String,
}

impl Layer {
    /// Compresses a tar stream as it comes.
    pub fn from_tar(mut tar: impl Read) -> io::Result<Self> {
        let mut hash = Sha256::new();
        let mut gzip: GzEncoder<Vec<u8>> = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
        let mut buffer = vec![0; 256 << 10];
        loop {
            let length = tar.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            hash.update(&buffer[..length]);
            gzip.write_all(&buffer[..length])?;
        }
        Ok(Layer { gzip: gzip.finish()?, diff_id: format!("sha256:{}", hex(&hash.finalize())) })
    }
}

/// Owner and mode of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Numeric owner.
    pub uid: u64,
    /// Numeric group.
    pub gid: u64,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
}

impl Meta {
    /// Root's, with this mode.
    pub const fn root(mode: u32) -> Self {
        Meta { uid: 0, gid: 0, mode }
    }
}

/// A layer under construction.
pub struct LayerBuilder {
    tar: tar::Builder<Vec<u8>>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        LayerBuilder { tar: tar::Builder::new(Vec::new()) }
    }
}

impl LayerBuilder {
    /// Adds a directory.
    pub fn dir(mut self, path: &str, meta: Meta) -> io::Result<Self> {
        self.entry(path, EntryType::Directory, meta, &[])?;
        Ok(self)
    }

    /// Adds a regular file.
    pub fn file(mut self, path: &str, meta: Meta, content: &[u8]) -> io::Result<Self> {
        self.entry(path, EntryType::Regular, meta, content)?;
        Ok(self)
    }

    /// Adds a symbolic link.
    pub fn symlink(mut self, path: &str, target: &str) -> io::Result<Self> {
        let mut header = header(EntryType::Symlink, Meta::root(0o777), 0);
        self.tar.append_link(&mut header, path, target)?;
        Ok(self)
    }

    /// Adds a hard link to an earlier entry; `meta` is the file's, which unpackers set again.
    pub fn hardlink(mut self, path: &str, meta: Meta, target: &str) -> io::Result<Self> {
        let mut header = header(EntryType::Link, meta, 0);
        self.tar.append_link(&mut header, path, target)?;
        Ok(self)
    }

    /// Hides `name` of the directory `dir` of the layers below.
    pub fn whiteout(self, dir: &str, name: &str) -> io::Result<Self> {
        self.file(&format!("{dir}/.wh.{name}"), Meta::root(0o644), &[])
    }

    /// Ends the tar stream and compresses it.
    pub fn finish(self) -> io::Result<Layer> {
        Layer::from_tar(self.tar.into_inner()?.as_slice())
    }

    fn entry(&mut self, path: &str, kind: EntryType, meta: Meta, content: &[u8]) -> io::Result<()> {
        let mut header = header(kind, meta, content.len() as u64);
        self.tar.append_data(&mut header, path, content)
    }
}

fn header(kind: EntryType, meta: Meta, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(meta.mode);
    header.set_uid(meta.uid);
    header.set_gid(meta.gid);
    header.set_mtime(MTIME_S);
    header.set_size(size);
    header
}

/// An image ready to be pushed: the blobs by digest and the manifest.
#[derive(Clone, Debug)]
pub struct Image {
    /// Layers and config: (digest, bytes).
    pub blobs: Vec<(String, Vec<u8>)>,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
}

impl Image {
    /// An amd64 Linux image of these layers, lowest first. `config` is the object `config` of the image configuration
    /// (`Env`, `Cmd`, …).
    pub fn new(layers: Vec<Layer>, config: &Value) -> Self {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2023-11-14T22:13:20Z", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string()
        .into_bytes();
        let config_digest = digest(&config);
        let mut blobs: Vec<(String, Vec<u8>)> =
            layers.into_iter().map(|layer| (digest(&layer.gzip), layer.gzip)).collect();
        let descriptors: Vec<Value> = blobs.iter().map(|(digest, bytes)| descriptor(LAYER, digest, bytes)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config_digest, &config),
            "layers": descriptors,
        });
        blobs.push((config_digest, config));
        Image { blobs, manifest: manifest.to_string().into_bytes() }
    }

    /// The digest by which the image can be named.
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }
}

fn descriptor(media_type: &str, digest: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn layer() -> Layer {
        LayerBuilder::default()
            .dir("etc", Meta::root(0o755))
            .unwrap()
            .file("etc/owned", Meta { uid: 1234, gid: 5678, mode: 0o640 }, b"x\n")
            .unwrap()
            .whiteout("etc", "gone")
            .unwrap()
            .finish()
            .unwrap()
    }

    #[test]
    fn the_same_entries_give_the_same_digests() {
        let image = |layer| Image::new(vec![layer], &json!({ "Cmd": ["sh"] }));
        assert_eq!(image(layer()).digest(), image(layer()).digest());
    }

    #[test]
    fn owners_and_modes_survive_the_way_through_gzip_and_tar() {
        let gzip = layer().gzip;
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(gzip.as_slice()));
        let seen: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                let (uid, gid, mode) = (header.uid().unwrap(), header.gid().unwrap(), header.mode().unwrap());
                format!("{} {uid}:{gid} {mode:o}", entry.path().unwrap().display())
            })
            .collect();
        assert_eq!(seen, ["etc 0:0 755", "etc/owned 1234:5678 640", "etc/.wh.gone 0:0 644"]);
    }
}
