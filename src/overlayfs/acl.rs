//! POSIX access control lists: what the kernel leaves to a FUSE server that has them enforced (`FUSE_POSIX_ACL`).
//!
//! Their form is that of the attributes `system.posix_acl_access` and `system.posix_acl_default`: a version, 2, and
//! entries of tag, permissions and id (`struct posix_acl_xattr_header`, `linux/posix_acl_xattr.h`). The kernel checks them
//! before they are set and decides by them; ours is what couples a list to a mode, in both directions, and inheritance
//! (acl(5); `fs/posix_acl.c`). All of it follows from the tree and one record, so that replay does it again.

/// The list that decides about access.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The list that what is made in a directory begins with.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Whether an attribute of this name is such a list.
pub fn is_one(name: &[u8]) -> bool {
    matches!(name, ACCESS | DEFAULT)
}

const HEADER: [u8; 4] = 2_u32.to_le_bytes();
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The bits of a mode that a list says.
const PERMISSIONS: u32 = 0o777;

/// One list, with as many entries as it has bytes for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<u8>);

impl Acl {
    /// `None` when this is no list that decides anything: the attribute is a string of bytes like any other then.
    pub(crate) fn parse(value: &[u8]) -> Option<Acl> {
        let entries = value.strip_prefix(&HEADER)?;
        let acl = Acl(entries.to_vec());
        let has = |tag| acl.tags().filter(|other| *other == tag).count() == 1;
        (entries.len().is_multiple_of(ENTRY) && has(USER_OBJ) && has(GROUP_OBJ) && has(OTHER)).then_some(acl)
    }

    /// As the value of an attribute.
    pub(crate) fn bytes(&self) -> Box<[u8]> {
        [&HEADER, self.0.as_slice()].concat().into()
    }

    fn tags(&self) -> impl Iterator<Item = u16> {
        self.0.chunks_exact(ENTRY).map(|entry| u16::from_le_bytes([entry[0], entry[1]]))
    }

    /// Permissions of the one entry with this tag.
    fn permissions(&mut self, tag: u16) -> Option<&mut u8> {
        let at = self.tags().position(|other| other == tag)?;
        self.0.get_mut(at * ENTRY + 2)
    }

    /// The tag that the group bits of a mode stand for.
    fn group_class(&self) -> u16 {
        if self.tags().any(|tag| tag == MASK) { MASK } else { GROUP_OBJ }
    }

    /// The entries that a mode has too, each with the place of its bits.
    fn classes(&self) -> [(u16, u32); 3] {
        [(USER_OBJ, 6), (self.group_class(), 3), (OTHER, 0)]
    }

    /// A mode with this list's permissions.
    pub(crate) fn mode(&mut self, mode: u32) -> u32 {
        let mut bits = 0;
        for (tag, shift) in self.classes() {
            bits |= self.permissions(tag).map_or(0, |bits| u32::from(*bits) & 7) << shift;
        }
        mode & !PERMISSIONS | bits
    }

    /// Whether it says more than a mode can.
    pub(crate) fn says_more(&self) -> bool {
        self.tags().any(|tag| matches!(tag, USER | GROUP | MASK))
    }

    /// Takes over the permissions of a new mode (`chmod`).
    pub(crate) fn follow(&mut self, mode: u32) {
        for (tag, shift) in self.classes() {
            if let Some(bits) = self.permissions(tag) {
                *bits = (mode >> shift & 7) as u8;
            }
        }
    }

    /// The list of something new, for which `mode` was asked for: both allow only what the other does.
    pub(crate) fn inherit(mut self, mode: u32) -> (Acl, u32) {
        let allowed = self.mode(mode) & mode;
        self.follow(allowed);
        (self, mode & !PERMISSIONS | allowed & PERMISSIONS)
    }
}

/// Shows the owners that a list names as others, `show` a user and a group at a time: who is not mapped would make the
/// list one that the kernel refuses, and with it every access.
pub fn show(value: &mut [u8], show: impl Fn(u32, u32) -> (u32, u32)) {
    let Some(entries) = value.get_mut(HEADER.len()..) else { return };
    for entry in entries.chunks_exact_mut(ENTRY) {
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let shown = match u16::from_le_bytes([entry[0], entry[1]]) {
            USER => show(id, 0).0,
            GROUP => show(0, id).1,
            _ => id,
        };
        entry[4..].copy_from_slice(&shown.to_le_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test is what an unwrap is for")]
mod tests {
    use super::*;

    #[test]
    fn named_users_and_groups_of_an_acl_are_mapped() {
        let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &6_u16.to_le_bytes(), &id.to_le_bytes()].concat();
        let acl = |user: u32, group: u32| {
            let entries =
                [entry(1, u32::MAX), entry(2, user), entry(4, u32::MAX), entry(8, group), entry(0x10, u32::MAX)];
            [2_u32.to_le_bytes().to_vec(), entries.concat()].concat()
        };
        let mut mapped = acl(5, 6);
        show(&mut mapped, |uid, gid| (uid + 100, gid + 200));
        assert_eq!(mapped, acl(105, 206));
        show(&mut [1, 2], |_, _| unreachable!());
    }

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = HEADER.to_vec();
        for (tag, permissions, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    const NONE: u32 = u32::MAX;

    #[test]
    fn a_list_and_a_mode_say_the_same() {
        let plain = list(&[(USER_OBJ, 7, NONE), (GROUP_OBJ, 5, NONE), (OTHER, 1, NONE)]);
        let mut plain = Acl::parse(&plain).unwrap();
        assert_eq!((plain.mode(0o104_000), plain.says_more()), (0o104_751, false));
        let value = list(&[(USER_OBJ, 6, NONE), (USER, 7, 5), (GROUP_OBJ, 7, NONE), (MASK, 4, NONE), (OTHER, 0, NONE)]);
        let mut named = Acl::parse(&value).unwrap();
        assert_eq!((named.mode(0), named.says_more()), (0o640, true));
        named.follow(0o751);
        let changed =
            list(&[(USER_OBJ, 7, NONE), (USER, 7, 5), (GROUP_OBJ, 7, NONE), (MASK, 5, NONE), (OTHER, 1, NONE)]);
        assert_eq!(*named.bytes(), changed);
    }

    #[test]
    fn what_is_made_gets_what_the_list_and_the_mode_allow() {
        let value = list(&[(USER_OBJ, 7, NONE), (USER, 7, 5), (GROUP_OBJ, 5, NONE), (MASK, 7, NONE), (OTHER, 5, NONE)]);
        let (acl, mode) = Acl::parse(&value).unwrap().inherit(0o100_666);
        assert_eq!(mode, 0o100_664);
        // Once more with its own result, as replay does.
        assert_eq!(Acl::parse(&value).unwrap().inherit(mode), (acl.clone(), mode));
        let made = list(&[(USER_OBJ, 6, NONE), (USER, 7, 5), (GROUP_OBJ, 5, NONE), (MASK, 6, NONE), (OTHER, 4, NONE)]);
        assert_eq!(*acl.bytes(), made);
    }

    #[test]
    fn what_is_no_list_is_none() {
        let whole = list(&[(USER_OBJ, 7, NONE), (GROUP_OBJ, 5, NONE), (OTHER, 1, NONE)]);
        for cut in 0..whole.len() {
            assert_eq!(Acl::parse(&whole[..cut]), None);
        }
        assert_eq!(Acl::parse(&list(&[(USER_OBJ, 7, NONE), (USER_OBJ, 5, NONE), (OTHER, 1, NONE)])), None);
        assert_eq!(Acl::parse(&[&[3, 0, 0, 0], &whole[4..]].concat()), None);
    }

    #[test]
    fn owners_are_shown_as_others() {
        let mut value = list(&[(USER_OBJ, 7, NONE), (USER, 7, 5), (GROUP, 5, 6), (OTHER, 1, NONE)]);
        show(&mut value, |uid, gid| (uid + 10, gid + 20));
        assert_eq!(value, list(&[(USER_OBJ, 7, NONE), (USER, 7, 15), (GROUP, 5, 26), (OTHER, 1, NONE)]));
        show(&mut value[..3], |_, _| unreachable!());
    }
}
