//! The records of the log: each one whole change of the tree, with absolute values, so that replay needs no clock and
//! no question to the outside.
//!
//! Payload encoding: little endian; times are i64 seconds and u32 nanoseconds; byte strings are a u32 length and the
//! bytes. Numbers of operations are never reused. Every decoder is bounds-checked: a log may be damaged.

use crate::attr::Time;

/// Version of records and layout; a log with a later one is refused. Whoever opens a log to write says its version in it.
pub(crate) const VERSION: u32 = 2;
/// The one before had no files without a name and kept no requests.
pub(crate) const OLDEST: u32 = 1;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// First of every log, and wherever another connection begins: what the log stands on.
    Begin { version: u32, lower_inodes: u32, next_ino: u64 },
    /// A new inode under a name, or under none (`O_TMPFILE`) if that is empty.
    Create { parent: u64, name: Vec<u8>, ino: u64, mode: u32, uid: u32, gid: u32, rdev: u32, target: Vec<u8>, at: Time },
    /// Another name for an inode.
    Link { ino: u64, parent: u64, name: Vec<u8>, at: Time },
    /// `unlink` or `rmdir`; a name of the lower is hidden by it.
    Unlink { parent: u64, name: Vec<u8>, at: Time },
    /// `renameat2`: replaces what is there, exchanges, or leaves a whiteout with the given number behind.
    Rename { parent: u64, name: Vec<u8>, to: u64, to_name: Vec<u8>, exchange: bool, whiteout: u64, at: Time },
    /// All changeable attributes but the size, after the change.
    Attributes { ino: u64, mode: u32, uid: u32, gid: u32, atime: Time, mtime: Time, ctime: Time, drop_caps: bool },
    /// One extended attribute; `None` removes it.
    Xattr { ino: u64, name: Vec<u8>, value: Option<Vec<u8>>, at: Time },
    /// The contents are in `up/` from now on; size and modification time are those of that file.
    Data { ino: u64 },
    /// The file became empty without ever having data in `up/`.
    Emptied { ino: u64, at: Time },
    /// Compacted logs: an inode as it is. `xattrs` is `None` while they are the lower's.
    Inode(Box<Inode>),
    /// Compacted logs: one slot of a directory; number 0 hides a lower name.
    Slot { dir: u64, name: Vec<u8>, ino: u64, serial: u64 },
    /// Compacted logs: a request that was done, and what it is answered with (`done`).
    Done { ino: u64 },
}

impl Record {
    /// Whether it may take the room that is kept on a full disk: it gives more of it back, or nothing can be done without it.
    pub(crate) fn takes_the_last(&self) -> bool {
        matches!(self, Record::Unlink { .. } | Record::Begin { .. })
    }
}

/// A whole inode in a compacted log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub ino: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub rdev: u32,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub xattrs: Option<Vec<(Vec<u8>, Vec<u8>)>>,
    /// Files: 0 empty, 1 lower, 2 upper.
    pub data: u8,
    /// Directories: the parent and the next serial; the lower directory follows from the number.
    pub parent: u64,
    pub next_serial: u64,
    /// Symbolic links.
    pub target: Vec<u8>,
}

struct Encoder<'a>(&'a mut Vec<u8>);

impl Encoder<'_> {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn time(&mut self, at: Time) -> &mut Self {
        self.u64(at.seconds as u64).u32(at.nanos)
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
        self
    }
}

struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn bool(&mut self) -> Option<bool> {
        self.u8().map(|byte| byte != 0)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Option<Time> {
        Some(Time { seconds: self.u64()? as i64, nanos: self.u32()? })
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let length = self.u32()?;
        self.take(length as usize).map(<[u8]>::to_vec)
    }
}

impl Record {
    /// Appends the operation's number and the payload.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut to = Encoder(out);
        match self {
            Record::Begin { version, lower_inodes, next_ino } => {
                to.u8(1).u32(*version).u32(*lower_inodes).u64(*next_ino);
            }
            Record::Create { parent, name, ino, mode, uid, gid, rdev, target, at } => {
                to.u8(2).u64(*parent).bytes(name).u64(*ino).u32(*mode).u32(*uid).u32(*gid).u32(*rdev);
                to.bytes(target).time(*at);
            }
            Record::Link { ino, parent, name, at } => {
                to.u8(3).u64(*ino).u64(*parent).bytes(name).time(*at);
            }
            Record::Unlink { parent, name, at } => {
                to.u8(4).u64(*parent).bytes(name).time(*at);
            }
            Record::Rename { parent, name, to: to_parent, to_name, exchange, whiteout, at } => {
                to.u8(5).u64(*parent).bytes(name).u64(*to_parent).bytes(to_name);
                to.u8(u8::from(*exchange)).u64(*whiteout).time(*at);
            }
            Record::Attributes { ino, mode, uid, gid, atime, mtime, ctime, drop_caps } => {
                to.u8(6).u64(*ino).u32(*mode).u32(*uid).u32(*gid).time(*atime).time(*mtime).time(*ctime);
                to.u8(u8::from(*drop_caps));
            }
            Record::Xattr { ino, name, value, at } => {
                to.u8(7).u64(*ino).bytes(name).u8(u8::from(value.is_some()));
                to.bytes(value.as_deref().unwrap_or_default()).time(*at);
            }
            Record::Data { ino } => {
                to.u8(8).u64(*ino);
            }
            Record::Emptied { ino, at } => {
                to.u8(9).u64(*ino).time(*at);
            }
            Record::Inode(inode) => inode.encode(to.u8(10)),
            Record::Slot { dir, name, ino, serial } => {
                to.u8(11).u64(*dir).bytes(name).u64(*ino).u64(*serial);
            }
            Record::Done { ino } => {
                to.u8(12).u64(*ino);
            }
        }
    }

    /// Reads what [`Self::encode`] wrote; `None` when it is anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Record> {
        let mut from = Decoder(bytes);
        let op = from.u8()?;
        let record = Self::decode_payload(op, &mut from)?;
        from.0.is_empty().then_some(record)
    }

    fn decode_payload(op: u8, from: &mut Decoder<'_>) -> Option<Record> {
        Some(match op {
            1 => Record::Begin { version: from.u32()?, lower_inodes: from.u32()?, next_ino: from.u64()? },
            2 => Record::Create {
                parent: from.u64()?,
                name: from.bytes()?,
                ino: from.u64()?,
                mode: from.u32()?,
                uid: from.u32()?,
                gid: from.u32()?,
                rdev: from.u32()?,
                target: from.bytes()?,
                at: from.time()?,
            },
            3 => Record::Link { ino: from.u64()?, parent: from.u64()?, name: from.bytes()?, at: from.time()? },
            4 => Record::Unlink { parent: from.u64()?, name: from.bytes()?, at: from.time()? },
            5 => Record::Rename {
                parent: from.u64()?,
                name: from.bytes()?,
                to: from.u64()?,
                to_name: from.bytes()?,
                exchange: from.bool()?,
                whiteout: from.u64()?,
                at: from.time()?,
            },
            6 => Record::Attributes {
                ino: from.u64()?,
                mode: from.u32()?,
                uid: from.u32()?,
                gid: from.u32()?,
                atime: from.time()?,
                mtime: from.time()?,
                ctime: from.time()?,
                drop_caps: from.bool()?,
            },
            7 => {
                let (ino, name, some, value) = (from.u64()?, from.bytes()?, from.bool()?, from.bytes()?);
                Record::Xattr { ino, name, value: some.then_some(value), at: from.time()? }
            }
            8 => Record::Data { ino: from.u64()? },
            9 => Record::Emptied { ino: from.u64()?, at: from.time()? },
            10 => Record::Inode(Box::new(Inode::decode(from)?)),
            11 => Record::Slot { dir: from.u64()?, name: from.bytes()?, ino: from.u64()?, serial: from.u64()? },
            12 => Record::Done { ino: from.u64()? },
            _ => return None,
        })
    }
}

impl Inode {
    fn encode(&self, to: &mut Encoder<'_>) {
        to.u64(self.ino).u32(self.mode).u32(self.uid).u32(self.gid).u32(self.nlink).u32(self.rdev);
        to.time(self.atime).time(self.mtime).time(self.ctime).u8(self.data);
        to.u64(self.parent).u64(self.next_serial).bytes(&self.target);
        // One more than the count, so that "the lower's" differs from "none".
        to.u32(self.xattrs.as_ref().map_or(0, |xattrs| xattrs.len() as u32 + 1));
        for (name, value) in self.xattrs.iter().flatten() {
            to.bytes(name).bytes(value);
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Option<Inode> {
        let mut inode = Inode {
            ino: from.u64()?,
            mode: from.u32()?,
            uid: from.u32()?,
            gid: from.u32()?,
            nlink: from.u32()?,
            rdev: from.u32()?,
            atime: from.time()?,
            mtime: from.time()?,
            ctime: from.time()?,
            data: from.u8()?,
            parent: from.u64()?,
            next_serial: from.u64()?,
            target: from.bytes()?,
            xattrs: None,
        };
        let count = from.u32()?;
        if count > 0 {
            inode.xattrs = Some((1..count).map(|_| Some((from.bytes()?, from.bytes()?))).collect::<Option<_>>()?);
        }
        Some(inode)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test is what an unwrap is for")]
    use super::*;

    #[test]
    fn records_survive_encoding_and_damage_is_refused() {
        let at = Time { seconds: -5, nanos: 7 };
        let inode = Inode {
            ino: 9,
            mode: 0o100_644,
            uid: 1,
            gid: 2,
            nlink: 1,
            rdev: 0,
            atime: at,
            mtime: at,
            ctime: at,
            xattrs: Some(vec![(b"user.a".to_vec(), b"1".to_vec())]),
            data: 2,
            parent: 0,
            next_serial: 0,
            target: Vec::new(),
        };
        let records = [
            Record::Begin { version: VERSION, lower_inodes: 3, next_ino: 4 },
            Record::Xattr { ino: 3, name: b"user.x".to_vec(), value: None, at },
            Record::Rename {
                parent: 1,
                name: b"a".to_vec(),
                to: 2,
                to_name: b"b".to_vec(),
                exchange: false,
                whiteout: 0,
                at,
            },
            Record::Inode(Box::new(inode.clone())),
            Record::Inode(Box::new(Inode { xattrs: None, ..inode })),
        ];
        for record in records {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert_eq!(Record::decode(&bytes).unwrap(), record);
            for cut in 0..bytes.len() {
                assert_eq!(Record::decode(&bytes[..cut]), None);
            }
        }
    }
}
