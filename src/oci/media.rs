//! Media types: what a document or layer says it is. A layer's word is not believed (its bytes are sniffed when it is
//! unpacked); a manifest's is, because its digest covers it.

/// An image index (image-spec).
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An image manifest (image-spec).
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An image configuration (image-spec).
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The two bytes `{}` that stand where an artifact has no configuration (image-spec).
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Docker's name for an index.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's name for a manifest, schema version 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's name for an image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// A layer that is not compressed (image-spec); its compression stands behind a plus sign.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's name for a layer that is not compressed; gzip stands behind a full stop.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// The documents a tag may point to, in the order in which we ask for them.
pub const DOCUMENTS: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// A media type without its parameters (`; charset=utf-8`).
pub fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

/// Whether this names an index or Docker's list.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Whether this names a manifest of either kind.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether this names the configuration of an image that can run.
pub fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

/// Whether this names Docker's first manifest format, which carries no usable digest of its configuration.
pub fn is_schema1(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.docker.distribution.manifest.v1+")
}

/// Whether a layer is encrypted (`…+encrypted`).
pub fn is_encrypted(media_type: &str) -> bool {
    media_type.ends_with("+encrypted")
}
