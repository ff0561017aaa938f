//! Which owners a view may show.
//!
//! An id that the outer user namespace cannot express would be shown as the overflow id, could not be set by `chown`,
//! and would make overlayfs fail a copy-up with `EOVERFLOW`. So a view squashes such owners before the kernel sees
//! them; the truth stays in the index.

use serde::{Deserialize, Serialize};

/// The id that stands for "somebody that this map cannot express": `overflowuid` of the kernel, `nobody` in Debian.
pub(crate) const NOBODY: u32 = 65_534;

/// How many ids, counted from 0, the outer user namespace maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedIds {
    /// User ids 0 .. `uids`.
    pub uids: u32,
    /// Group ids 0 .. `gids`.
    pub gids: u32,
}

impl MappedIds {
    /// The owner to show for `uid`.
    pub fn show_uid(self, uid: u32) -> u32 {
        show(uid, self.uids)
    }

    /// The group to show for `gid`.
    pub fn show_gid(self, gid: u32) -> u32 {
        show(gid, self.gids)
    }
}

/// Itself when mapped, else nobody when that is mapped, else (one id, or a short range) root.
fn show(id: u32, mapped: u32) -> u32 {
    if id < mapped {
        id
    } else if NOBODY < mapped {
        NOBODY
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_map_cannot_express_is_squashed() {
        let one = MappedIds { uids: 1, gids: 1 };
        assert_eq!([0, 33, 70_000].map(|id| one.show_uid(id)), [0, 0, 0]);
        let many = MappedIds { uids: 65_536, gids: 65_536 };
        assert_eq!([0, 33, 65_535, 65_536, u32::MAX].map(|id| many.show_gid(id)), [0, 33, 65_535, 65_534, 65_534]);
    }
}
