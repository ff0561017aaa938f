//! Owners that the kernel cannot keep, as an attribute tells of them: in a container with one id (role notify).
//!
//! The value is the user and the group, four bytes each in the machine's order; [`KEEP`] for what it says nothing of.

use std::ffi::CStr;

/// The attribute that our own overlay takes for a change of owner. It is never listed.
pub const OURS: &CStr = c"system.sublet.owner";
/// The attribute that stands beside a file or directory of a native upper.
pub const BESIDE: &CStr = c"user.sublet.owner";
/// As in chown(2): leaves one as it is.
const KEEP: u32 = u32::MAX;

/// An owner and group, as far as they are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
}

impl Owner {
    /// Of the value of an attribute; `None` for one of another form.
    pub fn of(value: &[u8]) -> Option<Owner> {
        let (uid, gid) = value.split_first_chunk::<4>()?;
        let gid = <[u8; 4]>::try_from(gid).ok()?;
        Some(Owner::of_call(u32::from_ne_bytes(*uid).into(), u32::from_ne_bytes(gid).into()))
    }

    /// Of the arguments of a call of the family of chown(2), of which the kernel takes the low halves.
    pub fn of_call(uid: u64, gid: u64) -> Owner {
        let told = |id: u64| Some(id as u32).filter(|id| *id != KEEP);
        Owner { uid: told(uid), gid: told(gid) }
    }

    /// The value of an attribute.
    pub fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.uid.unwrap_or(KEEP).to_ne_bytes());
        bytes[4..].copy_from_slice(&self.gid.unwrap_or(KEEP).to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for owner in [Owner::default(), Owner { uid: Some(33), gid: None }, Owner { uid: Some(0), gid: Some(7) }] {
            assert_eq!(Owner::of(&owner.to_bytes()), Some(owner));
        }
        assert_eq!(Owner::of_call(0xffff_ffff_ffff_ffff, 0x1_0000_0000), Owner { uid: None, gid: Some(0) });
        assert_eq!([Owner::of(b""), Owner::of(b"1234567"), Owner::of(b"123456789")], [None, None, None]);
    }
}
