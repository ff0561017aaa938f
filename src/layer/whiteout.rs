//! Names with a meaning of their own (image-spec, "Whiteouts"; eStargz). The type of such an entry does not matter:
//! there are whiteouts that are hard links or have content.

use index::BuildError;
use index::path::{self, PathError};

use crate::error::{LayerError, Result};

/// What the name of a whiteout begins with.
pub(crate) const PREFIX: &[u8] = b".wh.";
/// Names of the union file system that whiteouts come from.
const META_PREFIX: &[u8] = b".wh..wh.";
/// The name of the mark of an opaque directory.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
/// What eStargz adds to an archive for its own reader.
const ESTARGZ: [&[u8]; 3] = [b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"];

/// What a path in an archive stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// Itself.
    Plain,
    /// This path is hidden.
    Whiteout(Vec<u8>),
    /// All in this directory is hidden.
    Opaque(Vec<u8>),
    /// Nothing that an image has.
    Ignored,
}

/// Whether an extended attribute is a mark of another engine's overlay: it means nothing here and something to the
/// kernel's.
pub(crate) fn is_overlay_mark(attribute: &[u8]) -> bool {
    attribute.starts_with(b"user.overlay.") || attribute.starts_with(b"trusted.overlay.")
}

pub(crate) fn classify(path: &[u8]) -> Result<Name> {
    let names = path::names(path).map_err(|reason: PathError| BuildError::Path { path: path.to_vec(), reason })?;
    let Some((last, parents)) = names.split_last() else { return Ok(Name::Plain) };
    if parents.is_empty() && ESTARGZ.contains(last) {
        return Ok(Name::Ignored);
    }
    if *last == OPAQUE && !parents.iter().any(|name| name.starts_with(PREFIX)) {
        return Ok(Name::Opaque(parents.join(&b'/')));
    }
    if names.iter().any(|name| name.starts_with(META_PREFIX)) {
        return Ok(Name::Ignored);
    }
    let malformed = || LayerError::Whiteout { path: String::from_utf8_lossy(path).into_owned() };
    if parents.iter().any(|name| name.starts_with(PREFIX)) {
        return Err(malformed());
    }
    match last.strip_prefix(PREFIX) {
        None => Ok(Name::Plain),
        Some(b"" | b"." | b"..") => Err(malformed()),
        Some(hidden) => {
            let mut names = parents.to_vec();
            names.push(hidden);
            Ok(Name::Whiteout(names.join(&b'/')))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a refused name is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn tells_what_a_name_means() {
        assert_eq!(classify(b"./usr/lib").unwrap(), Name::Plain);
        assert_eq!(classify(b"/").unwrap(), Name::Plain);
        assert_eq!(classify(b"./usr/.wh.lib").unwrap(), Name::Whiteout(b"usr/lib".to_vec()));
        assert_eq!(classify(b".wh.lib/").unwrap(), Name::Whiteout(b"lib".to_vec()));
        assert_eq!(classify(b"usr/.wh..wh..opq").unwrap(), Name::Opaque(b"usr".to_vec()));
        assert_eq!(classify(b".wh..wh..opq").unwrap(), Name::Opaque(b"".to_vec()));
        assert_eq!(classify(b".wh..wh.plnk/17.4").unwrap(), Name::Ignored);
        assert_eq!(classify(b"stargz.index.json").unwrap(), Name::Ignored);
        assert_eq!(classify(b"a/stargz.index.json").unwrap(), Name::Plain);
        assert_eq!(classify(b"a.wh.b").unwrap(), Name::Plain);
    }

    #[test]
    fn refuses_whiteouts_of_nothing() {
        for path in [&b".wh."[..], b"a/.wh..", b".wh...", b".wh.a/b"] {
            assert!(matches!(classify(path), Err(LayerError::Whiteout { .. })), "{}", String::from_utf8_lossy(path));
        }
    }
}
