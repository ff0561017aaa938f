//! Pushing an image to a registry that needs no password: the loopback registry of the test bed.

use crate::image::{Image, MANIFEST};

/// A push that failed: which request, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot push to {url}")]
pub struct PushError {
    /// The request's URL.
    pub url: String,
    /// What the HTTP client says.
    #[source]
    pub source: Box<ureq::Error>,
}

/// Uploads the blobs and then the manifest as `repository:tag` to `http://<registry>` (`address:port`).
pub fn push(registry: &str, repository: &str, tag: &str, image: &Image) -> Result<(), PushError> {
    for (digest, bytes) in &image.blobs {
        let url = format!("http://{registry}/v2/{repository}/blobs/uploads/");
        let answer = ureq::post(&url).send_empty().map_err(|source| failed(&url, source))?;
        let location = answer.headers().get("location").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let base = if location.starts_with('/') { format!("http://{registry}{location}") } else { location.to_owned() };
        let joint = if base.contains('?') { '&' } else { '?' };
        let url = format!("{base}{joint}digest={digest}");
        let put = ureq::put(&url).header("Content-Type", "application/octet-stream");
        put.send(bytes.as_slice()).map_err(|source| failed(&url, source))?;
    }
    let url = format!("http://{registry}/v2/{repository}/manifests/{tag}");
    let put = ureq::put(&url).header("Content-Type", MANIFEST);
    put.send(image.manifest.as_slice()).map_err(|source| failed(&url, source))?;
    Ok(())
}

fn failed(url: &str, source: ureq::Error) -> PushError {
    PushError { url: url.to_owned(), source: Box::new(source) }
}
