//! Archives that are written: as the reader reads them, as GNU tar reads them, and the same each time.
#![allow(clippy::unwrap_used, reason = "a refused input is a failed test")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::process::Command;

use index::{DeviceNumber, Entry, Index, Metadata, Time, TreeBuilder};
use layer::{
    Compression, LayerError, Limits, Objects, TarContent, TarEntry, TarWriter, apply, create, open_layer, take,
    write_tree,
};
use oci::{DiffId, Digest};
use proptest::prelude::*;
use store::{Durability, Store};

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store"), true).unwrap();
    (directory, store)
}

fn metadata(permissions: u16, uid: u32, gid: u32, seconds: i64) -> Metadata {
    Metadata { permissions, uid, gid, mtime: Time { seconds, nanoseconds: 0 }, xattrs: BTreeMap::new() }
}

fn archive_of(index: &Index, store: &Store) -> Vec<u8> {
    let mut to = TarWriter::new(Vec::new(), None);
    write_tree(index, &mut Objects::of(store), &mut to).unwrap();
    to.finish().unwrap()
}

fn applied(archive: &[u8], store: &Store) -> Index {
    let applied = apply(archive, None, store, Durability::Later, &Limits::default()).unwrap();
    open_layer(store, applied.diff_id).unwrap()
}

/// The index without the id and the checksum over it.
fn tree_of(index: &Index) -> Vec<u8> {
    let mut bytes = index.as_bytes().to_vec();
    bytes[index::format::at::ID..index::format::at::AFTER_CHECKSUM].fill(0);
    bytes
}

/// What a layer is made of, for the generator.
#[derive(Clone, Debug)]
enum Made {
    Entry(Entry),
    HardLink(Vec<u8>),
    Whiteout,
    Opaque,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => "[abc]".prop_map(String::into_bytes),
        1 => Just(vec![b'n'; 120]),
        1 => Just(b"caf\xc3\xa9 \xff\n".to_vec()),
    ]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(name(), 1..4).prop_map(|names| names.join(&b'/'))
}

fn any_metadata() -> impl Strategy<Value = Metadata> {
    let id = || proptest::sample::select(vec![0, 33, 2_097_151, 2_097_152, 4_000_000_000, u32::MAX - 1]);
    let time = (proptest::sample::select(vec![-5, 0, 1, 1 << 33, (1 << 33) - 1, i64::MAX]), 0..3u32);
    let xattr = (proptest::sample::select(vec!["user.a", "user.a=b%c", "security.capability"]), 0..600usize);
    (0..0o10000u16, id(), id(), time, proptest::collection::vec(xattr, 0..3)).prop_map(
        |(permissions, uid, gid, (seconds, half), xattrs)| Metadata {
            permissions,
            uid,
            gid,
            mtime: Time { seconds, nanoseconds: half * 250_000_001 },
            xattrs: xattrs.into_iter().map(|(name, size)| (name.as_bytes().to_vec(), vec![b'='; size])).collect(),
        },
    )
}

fn made() -> impl Strategy<Value = Made> {
    let device = |major, minor| DeviceNumber { major, minor };
    prop_oneof![
        4 => Just(Made::Entry(Entry::Directory)),
        1 => Just(Made::Entry(Entry::EmptyFile)),
        4 => (1..3000usize).prop_map(|size| Made::Entry(Entry::InlineFile(vec![7; size]))),
        2 => prop_oneof![Just(b"b".to_vec()), Just(vec![b'/'; 200])].prop_map(|to| Made::Entry(Entry::Symlink(to))),
        1 => Just(Made::Entry(Entry::CharDevice(device(1, 3)))),
        1 => Just(Made::Entry(Entry::BlockDevice(device(u32::MAX, 1 << 20)))),
        1 => Just(Made::Entry(Entry::Fifo)),
        3 => path().prop_map(Made::HardLink),
        2 => Just(Made::Whiteout),
        1 => Just(Made::Opaque),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_and_written_again(
        entries in proptest::collection::vec((path(), any_metadata(), made()), 0..24)
    ) {
        let (_directory, store) = store();
        let mut builder = TreeBuilder::new();
        for (path, metadata, made) in entries {
            // What cannot be there is not there.
            let _ = match made {
                Made::Entry(entry) => builder.insert(&path, &metadata, entry),
                Made::HardLink(target) => {
                    builder.hard_link(&path, &target).and_then(|()| builder.describe(&path, &metadata))
                }
                Made::Whiteout => builder.whiteout(&path),
                Made::Opaque => builder.opaque(&path),
            };
        }
        let index = Index::from_bytes(builder.write(DiffId(Digest::of(b"")), None).unwrap()).unwrap();
        let first = archive_of(&index, &store);
        let again = match apply(&first[..], None, &store, Durability::Later, &Limits::default()) {
            Ok(applied) => open_layer(&store, applied.diff_id).unwrap(),
            // A link whose target became a directory, or whose way a circle of links, only later: such a layer cannot be
            // stacked either.
            Err(LayerError::Entry(index::BuildError::LinkToDirectory { .. } | index::BuildError::Place { .. })) => {
                return Ok(());
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        let second = archive_of(&again, &store);
        prop_assert_eq!(&first, &second);
        prop_assert_eq!(tree_of(&again), tree_of(&applied(&second, &store)));
    }
}

/// An archive with everything that needs an extended header.
fn rich() -> Vec<u8> {
    let mut to = TarWriter::new(Vec::new(), None);
    let plain = metadata(0o755, 0, 0, 1_700_000_000);
    to.entry(b"", &plain, &TarEntry::Directory).unwrap();
    to.entry(b"d", &metadata(0o1777, 0, 0, 1_700_000_000), &TarEntry::Directory).unwrap();
    let mut owned = metadata(0o4755, 4_000_000_000, 2_097_152, 1_700_000_000);
    owned.xattrs.insert(b"user.k".to_vec(), b"v".to_vec());
    to.file(b"d/setuid", &owned, &TarContent::Bytes(b"content\n")).unwrap();
    to.entry(b"d/again", &owned, &TarEntry::HardLink(b"d/setuid")).unwrap();
    to.entry(b"d/link", &metadata(0o777, 0, 0, 1_700_000_000), &TarEntry::Symlink(b"/nowhere")).unwrap();
    let device = DeviceNumber { major: 1, minor: 3 };
    to.entry(b"d/null", &metadata(0o666, 0, 0, 1_700_000_000), &TarEntry::CharDevice(device)).unwrap();
    to.entry(b"d/pipe", &metadata(0o600, 1, 2, 1_700_000_000), &TarEntry::Fifo).unwrap();
    let long = [vec![b'x'; 200], b"/".to_vec(), vec![b'y'; 150]].concat();
    to.file(&long, &plain, &TarContent::Bytes(b"")).unwrap();
    to.whiteout(b"d/gone").unwrap();
    to.opaque(b"d").unwrap();
    to.finish().unwrap()
}

#[test]
fn gnu_tar_reads_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive.tar");
    std::fs::write(&path, rich()).unwrap();
    let mut listing = Command::new("tar");
    listing.env("TZ", "UTC").env("LC_ALL", "C.UTF-8").args(["--numeric-owner", "-tvf"]).arg(&path);
    let done = listing.output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
    let lines: Vec<String> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let long = format!("{}/{}", "x".repeat(200), "y".repeat(150));
    let at = "2023-11-14 22:13";
    let expected = [
        format!("drwxr-xr-x 0/0 0 {at} ./"),
        format!("drwxrwxrwt 0/0 0 {at} d/"),
        format!("-rwsr-xr-x 4000000000/2097152 8 {at} d/setuid"),
        format!("hrwsr-xr-x 4000000000/2097152 0 {at} d/again link to d/setuid"),
        format!("lrwxrwxrwx 0/0 0 {at} d/link -> /nowhere"),
        format!("crw-rw-rw- 0/0 1,3 {at} d/null"),
        format!("prw------- 1/2 0 {at} d/pipe"),
        format!("-rwxr-xr-x 0/0 0 {at} {long}"),
        "---------- 0/0 0 1970-01-01 00:00 d/.wh.gone".to_owned(),
        "---------- 0/0 0 1970-01-01 00:00 d/.wh..wh..opq".to_owned(),
    ];
    assert_eq!(lines, expected);
}

/// Docker and containerd chown a file by the header of each link, by which it loses its capabilities, and then set what
/// attributes that header has.
#[test]
fn each_name_of_a_file_has_its_attributes() {
    let (_directory, store) = store();
    let mut capable = metadata(0o755, 0, 0, 0);
    capable.xattrs.insert(b"security.capability".to_vec(), vec![1, 0, 0, 2]);
    let mut builder = TreeBuilder::default();
    builder.insert(b"a", &capable, Entry::EmptyFile).unwrap();
    builder.hard_link(b"b", b"a").unwrap();
    let index = Index::from_bytes(builder.write(DiffId(Digest::of(b"")), None).unwrap()).unwrap();
    let written = archive_of(&index, &store);
    let mut archive = tar::Archive::new(&written[..]);
    let names = archive.entries().unwrap().filter_map(|entry| {
        let mut entry = entry.unwrap();
        let mut records = entry.pax_extensions().unwrap()?;
        let has = records.any(|record| record.unwrap().key() == Ok("SCHILY.xattr.security.capability"));
        has.then(|| (entry.path().unwrap().display().to_string(), entry.header().entry_type()))
    });
    let wanted = [("a".to_owned(), tar::EntryType::Regular), ("b".to_owned(), tar::EntryType::Link)];
    assert_eq!(names.collect::<Vec<_>>(), wanted);
}

#[test]
fn holes_are_those_of_the_content() {
    let directory = tempfile::tempdir().unwrap();
    let (_kept, store) = store();
    let size = (9 << 20) + 17;
    let mut content = vec![0u8; size];
    content[(3 << 20) + 5..(3 << 20) + 9].copy_from_slice(b"data");
    content[(5 << 20) - 1] = 1;
    // The same bytes, once with holes on the disk and once without.
    let (solid, sparse) = (directory.path().join("solid"), directory.path().join("sparse"));
    std::fs::write(&solid, &content).unwrap();
    let mut file = File::create(&sparse).unwrap();
    file.set_len(size as u64).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", (3 << 20) + 5).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1], (5 << 20) - 1).unwrap();
    file.flush().unwrap();
    let archive = |path| {
        let file = File::open(path).unwrap();
        let mut to = TarWriter::new(Vec::new(), None);
        let content = TarContent::File { file: &file, offset: 0, size: size as u64 };
        to.file(b"holes", &metadata(0o644, 0, 0, 0), &content).unwrap();
        to.finish().unwrap()
    };
    let written = archive(&solid);
    assert_eq!(written, archive(&sparse));
    assert!(written.len() < 200 << 10, "{} bytes", written.len());
    let index = applied(&written, &store);
    let node = index.lookup(index.root(), b"holes").unwrap().unwrap().node;
    let mut objects = Objects::of(&store);
    let TarContent::File { file, offset, size: read } = objects.content(&index, node).unwrap() else { panic!() };
    let mut back = vec![1; read as usize];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut back, offset).unwrap();
    assert!(back == content);
    let path = directory.path().join("archive.tar");
    std::fs::write(&path, &written).unwrap();
    let out = Command::new("tar").args(["-xOf"]).arg(&path).arg("holes").output().unwrap();
    assert!(out.status.success() && out.stdout == content, "{}", String::from_utf8_lossy(&out.stderr));
}

/// A hole takes no time, however long it is, and one that a layer may not have is refused at once. (To read it takes an hour.)
#[test]
fn holes_are_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let (_kept, store) = store();
    let size = 1 << 40;
    let file = File::create_new(directory.path().join("sparse")).unwrap();
    file.set_len(size).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", (1 << 39) + 5).unwrap();
    let file = File::open(directory.path().join("sparse")).unwrap();
    let content = TarContent::File { file: &file, offset: 0, size };
    let mut to = TarWriter::new(Vec::new(), None);
    to.file(b"holes", &metadata(0o644, 0, 0, 0), &content).unwrap();
    let written = to.finish().unwrap();
    let map = format!("2\n{}\n65536\n{size}\n0\n", 1u64 << 39);
    assert!(written.len() < 80 << 10 && written.windows(map.len()).any(|part| part == map.as_bytes()));
    let refused = create(&store, Compression::Gzip, Durability::Later, &Limits::default(), |out| {
        TarWriter::new(out, None).file(b"holes", &metadata(0o644, 0, 0, 0), &content)
    });
    assert!(matches!(refused, Err(LayerError::Limit { what: "bytes of holes in files", .. })), "{refused:?}");
    // One that became shorter is not filled up with zeros.
    let longer = TarContent::File { file: &file, offset: 0, size: size + (1 << 30) };
    let refused = TarWriter::new(Vec::new(), None).file(b"holes", &metadata(0o644, 0, 0, 0), &longer);
    assert!(matches!(refused, Err(LayerError::Unwritable { .. })), "{refused:?}");
}

#[test]
fn a_blob_is_the_same_each_time_and_is_applied() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let digests: Vec<_> = (0..2)
            .map(|_| {
                let (_directory, store) = store();
                let created = create(&store, compression, Durability::Later, &Limits::default(), |out| {
                    out.write_all(&rich()).map_err(|source| LayerError::Write { what: "test", source })
                });
                let created = created.unwrap();
                assert_eq!(store.blobs().size(&created.digest).unwrap(), Some(created.size));
                assert_eq!(created.applied.diff_id, DiffId(Digest::of(&rich())));
                open_layer(&store, created.applied.diff_id).unwrap().verify().unwrap();
                // What was made can be taken.
                let (_other, second) = self::store();
                let blob = store.blobs().open(&created.digest).unwrap().unwrap();
                let diff_id = Some(created.applied.diff_id);
                let taken = take(&second, blob, Some(created.digest), diff_id, Durability::Now, &Limits::default());
                assert_eq!(taken.unwrap(), created);
                created.digest
            })
            .collect();
        assert_eq!(digests[0], digests[1], "{compression:?}");
    }
}

#[test]
fn what_is_not_written_to_its_end_is_not_there() {
    let (_directory, store) = store();
    let failing = |out: &mut dyn Write| {
        out.write_all(&rich()[..5000]).unwrap();
        Err(LayerError::Whiteout { path: "mine".to_owned() })
    };
    let error = create(&store, Compression::Gzip, Durability::Later, &Limits::default(), failing).unwrap_err();
    assert!(matches!(error, LayerError::Whiteout { .. }), "{error}");
    // A reader that refuses is why the writer cannot go on.
    let refused = |out: &mut dyn Write| {
        let written = (0..10_000).try_for_each(|_| out.write_all(&[b'x'; 4096]));
        written.map_err(|source| LayerError::Write { what: "test", source })
    };
    let error = create(&store, Compression::Gzip, Durability::Later, &Limits::default(), refused).unwrap_err();
    assert!(matches!(error, LayerError::Malformed { .. }), "{error}");
    assert!(store.layers().list().unwrap().is_empty() && store.blobs().list().unwrap().is_empty());
    let error = take(&store, &rich()[..], Some(Digest::of(b"x")), None, Durability::Later, &Limits::default());
    assert!(matches!(error, Err(LayerError::Digest { .. })), "{error:?}");
    assert!(store.blobs().list().unwrap().is_empty());
}

/// Of a stream that is refused the rest is not fetched, unless its digest could tell why.
#[test]
fn the_rest_of_what_is_refused_is_not_read() {
    struct Failing;
    impl std::io::Read for Failing {
        fn read(&mut self, _buffer: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the rest was read"))
        }
    }
    let (_directory, store) = store();
    let reader = || std::io::Read::chain(std::io::Read::take(std::io::repeat(b'x'), 64 << 20), Failing);
    let taken = |digest| take(&store, reader(), digest, None, Durability::Later, &Limits::default());
    let error = taken(None).unwrap_err();
    assert!(matches!(error, LayerError::Malformed { .. }), "{error}");
    let error = taken(Some(Digest::of(b"x"))).unwrap_err();
    assert!(matches!(error, LayerError::Read { .. }), "{error}");
}

#[test]
fn times_are_limited_and_names_are_checked() {
    let mut to = TarWriter::new(Vec::new(), Some(100));
    let late = Metadata { mtime: Time { seconds: 100, nanoseconds: 1 }, ..metadata(0o644, 0, 0, 0) };
    to.file(b"late", &late, &TarContent::Bytes(b"")).unwrap();
    to.file(b"early", &metadata(0o644, 0, 0, 99), &TarContent::Bytes(b"")).unwrap();
    let (_directory, store) = store();
    let error = to.file(b"a/.wh.b", &late, &TarContent::Bytes(b"")).unwrap_err();
    assert!(matches!(error, LayerError::Unwritable { .. }), "{error}");
    let mut heavy = metadata(0o644, 0, 0, 0);
    for number in 0..17 {
        heavy.xattrs.insert(format!("user.{number}").into_bytes(), vec![0; 65_536]);
    }
    assert!(matches!(to.file(b"heavy", &heavy, &TarContent::Bytes(b"")), Err(LayerError::Unwritable { .. })));
    let index = applied(&to.finish().unwrap(), &store);
    let time = |name: &[u8]| index.inode(index.lookup(index.root(), name).unwrap().unwrap().node).unwrap().mtime;
    assert_eq!(time(b"late"), Time { seconds: 100, nanoseconds: 0 });
    assert_eq!(time(b"early"), Time { seconds: 99, nanoseconds: 0 });
    assert!(index.lookup(index.root(), b"heavy").unwrap().is_none());
}
