//! The configuration of an image: what it runs on, what it runs, and the diff ids of its layers.

use oci_spec::image as spec;
use serde::Deserialize;
use serde_json::Value;

use crate::digest::{ChainId, DiffId, Digest};
use crate::document::{DOCUMENT_MAX, DocumentError, LAYERS_MAX, Manifest, convert};
use crate::health::HealthCheck;
use crate::platform::Platform;

/// An image configuration with the bytes its digest (the image's id) is of.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    /// The bytes as they came. Docker's own members (`Healthcheck`, `Shell`, `OnBuild`) are only here.
    pub raw: Vec<u8>,
    /// The digest of `raw`: the id of the image.
    pub digest: Digest,
    /// What the image runs on.
    pub platform: Platform,
    /// The diff ids of its layers, lowest first.
    pub diff_ids: Vec<DiffId>,
    /// All members that the specification knows.
    pub spec: spec::ImageConfiguration,
}

/// The members of a configuration that the specification leaves to Docker. `OnBuild` means nothing to a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DockerConfig {
    /// How its containers are asked whether they work.
    #[serde(rename = "Healthcheck")]
    pub health_check: Option<HealthCheck>,
    /// What runs the lines that are for a shell; without it `/bin/sh -c`.
    pub shell: Option<Vec<String>>,
}

impl ImageConfig {
    /// Reads a configuration.
    pub fn read(raw: Vec<u8>) -> Result<Self, DocumentError> {
        if raw.len() as u64 > DOCUMENT_MAX {
            return Err(DocumentError::TooLarge { size_bytes: raw.len() as u64 });
        }
        let json: Value = serde_json::from_slice(&raw).map_err(|cause| DocumentError::Json { cause })?;
        let spec: spec::ImageConfiguration = convert(json)?;
        let texts = spec.rootfs().diff_ids();
        if texts.len() > LAYERS_MAX {
            return Err(DocumentError::TooMany { what: "layers", count: texts.len(), max: LAYERS_MAX });
        }
        let diff_ids: Result<_, _> = texts.iter().map(|text| text.parse().map(DiffId)).collect();
        let diff_ids = diff_ids.map_err(|cause| DocumentError::Digest { cause })?;
        let platform =
            Platform::new(&spec.os().to_string(), &spec.architecture().to_string(), spec.variant().as_deref());
        Ok(ImageConfig { digest: Digest::of(&raw), raw, platform, diff_ids, spec })
    }

    /// Reads the configuration of this manifest: its digest and its number of layers must be the manifest's.
    pub fn read_for(manifest: &Manifest, raw: Vec<u8>) -> Result<Self, DocumentError> {
        let found = Digest::of(&raw);
        if found != manifest.config.digest {
            return Err(DocumentError::Mismatch { wanted: manifest.config.digest, found });
        }
        let config = ImageConfig::read(raw)?;
        let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
        if layers == diff_ids { Ok(config) } else { Err(DocumentError::LayerCount { layers, diff_ids }) }
    }

    /// What Docker alone knows of it.
    pub fn docker(&self) -> Result<DockerConfig, DocumentError> {
        #[derive(Deserialize)]
        struct Document {
            config: Option<DockerConfig>,
        }
        let document: Document = serde_json::from_slice(&self.raw).map_err(|cause| DocumentError::Json { cause })?;
        Ok(document.config.unwrap_or_default())
    }

    /// The name of the image's stack of layers; `None` if it has none.
    pub fn chain_id(&self) -> Option<ChainId> {
        ChainId::of(&self.diff_ids)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;
    use crate::document::Document;
    use crate::media;

    fn config(diff_ids: &str) -> Vec<u8> {
        format!(
            r#"{{"os":"linux","architecture":"arm64","variant":"v8","config":{{"Env":["A=b"],"Cmd":["sh"],"Labels":null,
            "ExposedPorts":{{"80/tcp":{{}}}},"Healthcheck":{{"Test":["CMD","x"]}},"Shell":["/bin/ash","-c"]}},"rootfs":{{"type":"layers","diff_ids":{diff_ids}}}}}"#
        )
        .into_bytes()
    }

    fn manifest_of(config: &[u8], layers: usize) -> Manifest {
        let digest = Digest::of(config);
        let layer = format!(r#"{{"mediaType":"x","digest":"{digest}","size":1}}"#);
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{}","digest":"{digest}","size":{}}},"layers":[{}]}}"#,
            media::OCI_CONFIG,
            config.len(),
            vec![layer; layers].join(",")
        );
        match Document::read(text.into_bytes(), None).unwrap() {
            Document::Manifest(manifest) => manifest,
            Document::Index(_) => panic!("not an index"),
        }
    }

    #[test]
    fn reads_what_a_container_needs() {
        let diff = DiffId(Digest::of(b"layer"));
        let raw = config(&format!("[\"{diff}\"]"));
        let config = ImageConfig::read_for(&manifest_of(&raw, 1), raw.clone()).unwrap();
        assert_eq!(config.digest, Digest::of(&raw));
        assert_eq!(config.platform.to_string(), "linux/arm64");
        assert_eq!(config.chain_id(), Some(ChainId(diff.0)));
        let run = config.spec.config().as_ref().unwrap();
        assert_eq!(run.env().as_deref(), Some(&["A=b".to_owned()][..]));
        assert_eq!(run.exposed_ports().as_deref(), Some(&["80/tcp".to_owned()][..]));
        let docker = config.docker().unwrap();
        assert_eq!(docker.health_check.unwrap().test, ["CMD", "x"]);
        assert_eq!(docker.shell.unwrap(), ["/bin/ash", "-c"]);
    }

    #[test]
    fn an_image_without_layers_has_no_chain() {
        for empty in ["null", "[]"] {
            assert_eq!(ImageConfig::read(config(empty)).unwrap().chain_id(), None);
        }
    }

    #[test]
    fn manifest_and_configuration_must_agree() {
        let raw = config(&format!("[\"{}\"]", Digest::of(b"layer")));
        let wrong_count = ImageConfig::read_for(&manifest_of(&raw, 2), raw.clone());
        assert!(matches!(wrong_count, Err(DocumentError::LayerCount { layers: 2, diff_ids: 1 })));
        let other = config("[]");
        assert!(matches!(ImageConfig::read_for(&manifest_of(&raw, 1), other), Err(DocumentError::Mismatch { .. })));
        assert!(matches!(ImageConfig::read(config("[\"x\"]")), Err(DocumentError::Digest { .. })));
    }
}
