//! A name in a directory of a tree that is being made. There may be millions, so short ones, which most are, take no memory
//! beside their place in the directory.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::Deref;

/// As many bytes as fit without making the others' place larger.
const SHORT_MAX: usize = 22;

/// The bytes of a name; ordered and found by them.
#[derive(Clone, Debug)]
pub(crate) enum Name<'a> {
    Short {
        length: u8,
        bytes: [u8; SHORT_MAX],
    },
    Long(Box<[u8]>),
    /// In the map of a layer.
    Borrowed(&'a [u8]),
}

const _: () = assert!(size_of::<Name<'_>>() == size_of::<std::borrow::Cow<'_, [u8]>>());

impl Name<'_> {
    /// A copy of these bytes.
    pub fn copy(name: &[u8]) -> Self {
        if name.len() > SHORT_MAX {
            return Name::Long(name.into());
        }
        let mut bytes = [0; SHORT_MAX];
        bytes[..name.len()].copy_from_slice(name);
        Name::Short { length: name.len() as u8, bytes }
    }

    /// Memory that it takes beside itself.
    pub fn bytes(&self) -> u64 {
        match self {
            Name::Long(bytes) => bytes.len() as u64,
            Name::Short { .. } | Name::Borrowed(_) => 0,
        }
    }
}

impl Deref for Name<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Name::Short { length, bytes } => &bytes[..usize::from(*length)],
            Name::Long(bytes) => bytes,
            Name::Borrowed(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Name<'_> {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Name<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Name<'_> {}

impl PartialOrd for Name<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_its_bytes_however_it_is_kept() {
        for length in [0, 1, SHORT_MAX, SHORT_MAX + 1, 255] {
            let bytes = vec![0xff; length];
            let (copied, borrowed) = (Name::copy(&bytes), Name::Borrowed(&bytes));
            assert_eq!((&*copied, &copied), (&bytes[..], &borrowed), "{length}");
            assert_eq!(copied.bytes() > 0, length > SHORT_MAX, "{length}");
        }
        assert!(Name::copy(b"a") < Name::copy(&[b'a'; 30]) && Name::copy(&[b'a'; 30]) < Name::copy(b"b"));
    }
}
