//! What a layer may cost.

/// Limits of one layer. The defaults are far above any real one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many entries an archive may have.
    pub entries: u64,
    /// How many bytes the holes of all files may have. They take no room, but each is hashed: this much takes minutes.
    pub hole_bytes: u64,
    /// How many bytes an archive may have when it is uncompressed, whatever its compressed size is …
    pub base_bytes: u64,
    /// … and how many more for each compressed byte.
    pub ratio: u64,
    /// How much memory names, attributes and small files of all entries may take while the layer is applied, in bytes.
    /// The index that is written out of them, and then merged with others, takes about as much.
    pub tree_bytes: u64,
    /// Contents up to this size are kept in the index itself, as long as there are few.
    pub inline_bytes: u64,
    /// Contents up to this size are kept in the pack of the layer, larger ones alone.
    pub pack_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            entries: 10_000_000,
            hole_bytes: 128 << 30,
            base_bytes: 16 << 30,
            ratio: 200,
            tree_bytes: index::TREE_BYTES_MAX,
            inline_bytes: 512,
            pack_bytes: 128 << 10,
        }
    }
}

impl Limits {
    /// How many bytes an archive may have when so many compressed ones of it were read.
    pub fn stream_bytes(&self, compressed: u64) -> u64 {
        self.base_bytes.saturating_add(compressed.saturating_mul(self.ratio))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who changes a number changes docs/specification.md.
    #[test]
    fn the_limits_are_those_of_the_specification() {
        let limits = Limits::default();
        assert_eq!(limits.entries, 10_000_000);
        assert_eq!(limits.stream_bytes(1000), (16 << 30) + 200_000);
        assert_eq!((limits.hole_bytes, limits.tree_bytes), (128 << 30, 3 << 30));
    }
}
