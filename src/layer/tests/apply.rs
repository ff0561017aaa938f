//! Archives applied to a real store.
#![allow(clippy::unwrap_used, reason = "a refused input is a failed test")]

mod entries;

use std::io::{Read, Write};

use index::{Content, Index, Kind, Node};
use layer::{LayerError, Limits, apply, merge_chain, open_layer};
use oci::{DiffId, Digest};
use store::{Durability, Store};

use entries::{archive, file, header, padded, record, store};

fn pax(kind: u8, records: &[(&str, &[u8])]) -> Vec<u8> {
    entries::pax(kind, &records.iter().flat_map(|(key, value)| record(key, value)).collect::<Vec<_>>())
}

fn applied(store: &Store, archive: &[u8]) -> Result<Index, LayerError> {
    let applied = apply(archive, None, store, Durability::Later, &Limits::default())?;
    assert_eq!(applied.size, archive.len() as u64);
    assert_eq!(applied.diff_id, DiffId(Digest::of(archive)));
    let index = open_layer(store, applied.diff_id)?;
    index.verify().unwrap();
    Ok(index)
}

fn at(index: &Index, path: &str) -> Option<Node> {
    path.split('/').try_fold(Node::ROOT, |node, name| Some(index.lookup(node, name.as_bytes()).unwrap()?.node))
}

fn content(store: &Store, index: &Index, path: &str) -> Vec<u8> {
    let node = at(index, path).unwrap_or_else(|| panic!("{path} is missing"));
    let size = index.inode(node).unwrap().size as usize;
    match index.content(node).unwrap() {
        Content::Empty => Vec::new(),
        Content::Inline(bytes) => bytes.to_vec(),
        Content::Object { digest, offset, .. } => {
            let mut whole = Vec::new();
            store.objects().open(&digest).unwrap().unwrap().read_to_end(&mut whole).unwrap();
            assert_eq!(Digest::of(&whole), digest);
            whole[offset as usize..][..size].to_vec()
        }
    }
}

#[test]
fn contents_come_back_from_index_pack_and_objects() {
    let (_directory, store) = store();
    let sizes = [0, 1, 512, 513, 5000, 131_072, 131_073, 5 << 20];
    let data: Vec<Vec<u8>> = sizes.iter().map(|size| (0..*size).map(|n: u32| (n % 251) as u8).collect()).collect();
    let files: Vec<_> = data.iter().enumerate().map(|(n, data)| file(&format!("f{n}"), data)).collect();
    let tar = archive(&files);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar[..1000]).unwrap();
    let mut members = gzip.finish().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar[1000..]).unwrap();
    members.extend(gzip.finish().unwrap());
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..]].concat();
    let frames =
        [skippable, zstd::encode_all(&tar[..70_000], 1).unwrap(), zstd::encode_all(&tar[70_000..], 1).unwrap()]
            .concat();
    let expected = DiffId(Digest::of(&tar));
    for stream in [&tar, &members, &frames] {
        let done = apply(&stream[..], Some(expected), &store, Durability::Now, &Limits::default()).unwrap();
        assert_eq!((done.diff_id, done.entries), (expected, sizes.len() as u64));
        let index = open_layer(&store, expected).unwrap();
        for (number, data) in data.iter().enumerate() {
            assert!(content(&store, &index, &format!("f{number}")) == *data, "file {number}");
        }
        // One pack, and the two files above its bound.
        assert_eq!(store.objects().list().unwrap().len(), 3);
        store.layers().remove(&expected.0).unwrap();
    }
}

#[test]
fn pax_and_gnu_extensions_are_read() {
    let (_directory, store) = store();
    let long = "d/".repeat(100) + "name";
    let index = applied(
        &store,
        &archive(&[
            pax(
                b'x',
                &[
                    ("path", b"x/y"),
                    ("uid", b"3000000000"),
                    ("mtime", b"-1.5"),
                    ("SCHILY.xattr.user.k", b"v"),
                    ("SCHILY.xattr.user.overlay.opaque", b"y"),
                ],
            ),
            file("wrong", b"1"),
            [header("././@LongLink", b'L', long.len() as u64 + 1, ""), padded(format!("{long}\0").as_bytes())].concat(),
            file("short", b"22"),
            [header("././@LongLink", b'K', 4, ""), padded(b"abc\0")].concat(),
            header("link", b'2', 0, "zzz"),
        ]),
    )
    .unwrap();
    let node = at(&index, "x/y").unwrap();
    let inode = index.inode(node).unwrap();
    assert_eq!((inode.uid, inode.mtime.seconds, inode.mtime.nanoseconds), (3_000_000_000, -2, 500_000_000));
    let xattrs: Vec<_> = index.xattrs(node).unwrap().map(|x| x.unwrap()).collect();
    assert_eq!(xattrs, [(&b"user.k"[..], &b"v"[..])]);
    let deep = at(&index, &long).unwrap();
    assert_eq!(index.inode(deep).unwrap().mtime.seconds, 1);
    assert_eq!(index.symlink_target(at(&index, "link").unwrap()).unwrap(), Some(&b"abc"[..]));
}

/// As containerd, containers/storage and Moby have it, for which Go's archive/tar hands a global header out as an entry.
#[test]
fn global_headers_mean_nothing() {
    let (_directory, store) = store();
    let records: [(&str, &[u8]); 6] = [
        ("comment", b"a commit"),
        ("path", b"wrong"),
        ("uid", b"no number"),
        ("size", b"0"),
        ("mtime", b"77"),
        ("SCHILY.xattr.user.k", b"v"),
    ];
    let global = pax(b'g', &records);
    // One for a file alone belongs to no file where a global one stands between.
    let own = |path: &'static [u8]| pax(b'x', &[("path", path), ("uid", b"5")]);
    let long = || [header("././@LongLink", b'L', 5, ""), padded(b"long\0")].concat();
    let parts = [global.clone(), file("one", b"1"), own(b"lost"), long(), global.clone(), own(b"two"), file("x", b"2")];
    let index = applied(&store, &archive(&[&parts[..], &[own(b"lost"), global]].concat())).unwrap();
    assert_eq!(index.dirents(Node::ROOT).unwrap().iter().count(), 2);
    for (path, uid, text) in [("one", 0, b"1"), ("two", 5, b"2")] {
        let node = at(&index, path).unwrap();
        let inode = index.inode(node).unwrap();
        assert_eq!((inode.uid, inode.mtime.seconds, content(&store, &index, path)), (uid, 1, text.to_vec()));
        assert_eq!(index.xattrs(node).unwrap().count(), 0);
    }
}

#[test]
fn no_entry_hides_in_the_data_of_another() {
    let (_directory, store) = store();
    let inner = file("smuggled", b"x");
    // The size of the pax header counts, also with a long name between, and not that of the header.
    let mut outer = header("outer", b'0', 0, "");
    outer.extend(padded(&inner));
    let size = inner.len().to_string();
    let long = [header("././@LongLink", b'L', 4, ""), padded(b"long")].concat();
    let tar = archive(&[pax(b'x', &[("size", size.as_bytes())]), long, outer]);
    let index = applied(&store, &tar).unwrap();
    assert!(at(&index, "smuggled").is_none());
    assert_eq!(content(&store, &index, "long"), inner);
    // A link has no data whatever size it claims.
    let index = applied(&store, &archive(&[header("l", b'2', 512, "t"), file("next", b"x")])).unwrap();
    assert!(at(&index, "next").is_some());
}

#[test]
fn sparse_files_of_all_kinds_are_filled() {
    let (_directory, store) = store();
    let expected = [&[0; 1000][..], b"abc", &[0; 997][..]].concat();
    let v00: Vec<(&str, &[u8])> = vec![
        ("GNU.sparse.size", b"2000"),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.offset", b"1000"),
        ("GNU.sparse.numbytes", b"3"),
    ];
    let v01: Vec<(&str, &[u8])> =
        vec![("GNU.sparse.size", b"2000"), ("GNU.sparse.name", b"v01"), ("GNU.sparse.map", b"1000,3")];
    let v10: Vec<(&str, &[u8])> = vec![
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"v10"),
        ("GNU.sparse.realsize", b"2000"),
    ];
    let mut old = tar::Header::new_gnu();
    old.as_old_mut().name[..3].copy_from_slice(b"old");
    old.as_old_mut().linkflag = [b'S'];
    old.set_mode(0o644);
    old.set_uid(0);
    old.set_gid(0);
    old.set_mtime(0);
    old.set_size(3);
    let gnu = old.as_gnu_mut().unwrap();
    gnu.sparse[0].offset.copy_from_slice(b"00000001750\0");
    gnu.sparse[0].numbytes.copy_from_slice(b"00000000003\0");
    gnu.realsize.copy_from_slice(b"00000003720\0");
    old.set_cksum();
    let index = applied(
        &store,
        &archive(&[
            pax(b'x', &v00),
            file("v00", b"abc"),
            pax(b'x', &v01),
            file("x", b"abc"),
            pax(b'x', &v10),
            file("x", &[padded(b"1\n1000\n3\n"), b"abc".to_vec()].concat()),
            old.as_bytes().to_vec(),
            padded(b"abc"),
            file("after", b"1"),
        ]),
    )
    .unwrap();
    for name in ["v00", "v01", "v10", "old"] {
        assert!(content(&store, &index, name) == expected, "{name}");
    }
    assert_eq!(content(&store, &index, "after"), b"1");
}

#[test]
fn whiteouts_and_links_of_archives_reach_the_chain() {
    let (_directory, store) = store();
    let low = archive(&[file("etc/a", b"1"), file("etc/b", b"2"), file("var/x", b"3")]);
    let high = archive(&[
        header("etc/.wh.a", b'1', 0, "etc/b"),
        file("var/.wh..wh..opq", b"content"),
        file(".wh..wh.plnk/1.2", b""),
        header("c", b'1', 0, "etc/b"),
    ]);
    let layers: Vec<DiffId> = [&low, &high]
        .iter()
        .map(|tar| apply(&tar[..], None, &store, Durability::Later, &Limits::default()).unwrap().diff_id)
        .collect();
    let chain = merge_chain(&store, &layers).unwrap();
    assert_eq!(merge_chain(&store, &layers).unwrap(), chain);
    let index = Index::open(store.chains().open(&chain.0).unwrap().unwrap()).unwrap();
    index.verify().unwrap();
    assert!(at(&index, "etc/a").is_none() && at(&index, "var/x").is_none() && at(&index, ".wh..wh.plnk").is_none());
    assert_eq!(at(&index, "c"), at(&index, "etc/b"));
    assert_eq!(index.inode(at(&index, "c").unwrap()).unwrap().nlink, 2);
    assert_eq!(index.inode(at(&index, "var").unwrap()).unwrap().kind, Kind::Directory);
    let missing = DiffId(Digest::of(b"no layer"));
    assert!(matches!(merge_chain(&store, &[missing]), Err(LayerError::MissingLayer { .. })));
}

/// Docker 27, containerd 2 and Podman 4.3 unpack it this way: the header of a link is the last word on its file.
#[test]
fn the_header_of_a_hard_link_describes_the_file() {
    let (_directory, store) = store();
    let mut link = tar::Header::from_byte_slice(&header("b", b'1', 0, "a")).clone();
    link.set_mode(0o4750);
    link.set_uid(12);
    link.set_gid(34);
    link.set_mtime(5);
    link.set_cksum();
    let before = pax(b'x', &[("SCHILY.xattr.user.kept", b"1")]);
    let index = applied(&store, &archive(&[before, file("a", b"x"), link.as_bytes().to_vec()])).unwrap();
    let node = at(&index, "a").unwrap();
    assert_eq!(at(&index, "b"), Some(node));
    let inode = index.inode(node).unwrap();
    let seen = (inode.permissions, inode.uid, inode.gid, inode.mtime.seconds, inode.size);
    assert_eq!(seen, (0o4750, 12, 34, 5, 1));
    assert_eq!(index.xattrs(node).unwrap().get(b"user.kept").unwrap(), Some(&b"1"[..]));
}

#[test]
fn bad_archives_are_refused_and_leave_no_index() {
    let (_directory, store) = store();
    let good = archive(&[file("a", &[7; 3000])]);
    let mut wrong_sum = good.clone();
    wrong_sum[0] = b'b';
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("checksum", wrong_sum),
        ("cut in data", good[..1000].to_vec()),
        ("cut in header", good[..300].to_vec()),
        ("above the root", archive(&[file("../a", b"")])),
        ("link above the root", archive(&[header("a", b'1', 0, "../b")])),
        ("unknown type", archive(&[header("a", b'Z', 0, "")])),
        ("whiteout of nothing", archive(&[file(".wh.", b"")])),
        ("root is a file", archive(&[file("./", b""), file(".", b"x")])),
        ("owner", archive(&[pax(b'x', &[("uid", b"4294967295")]), file("a", b"")])),
        ("huge size", archive(&[pax(b'x', &[("size", b"18446744073709551615")]), file("a", b"")])),
        ("extended header at the end", pax(b'x', &[("path", b"a")])),
        (
            "overlapping segments",
            archive(&[pax(b'x', &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"4,1,0,1")]), file("a", b"ab")]),
        ),
        ("long header", archive(&[header("x", b'x', 2 << 20, "")])),
        ("single zero block", [vec![0; 512], good.clone()].concat()),
        ("gzip cut", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2]),
    ];
    for (name, tar) in cases {
        assert!(applied(&store, &tar).is_err(), "{name}");
    }
    let other = Some(DiffId(Digest::of(b"other")));
    let refused = apply(&good[..], other, &store, Durability::Later, &Limits::default());
    assert!(matches!(refused, Err(LayerError::DiffId { .. })));
    assert_eq!(store.layers().list().unwrap(), []);
}

#[test]
fn bombs_stop_early() {
    let (_directory, store) = store();
    let limits = Limits { base_bytes: 1 << 20, hole_bytes: 1 << 20, ratio: 2, entries: 3, ..Limits::default() };
    let zeros = archive(&[file("zeros", &vec![0; 64 << 20])]);
    let bomb = zstd::encode_all(&zeros[..], 1).unwrap();
    let refused = apply(&bomb[..], None, &store, Durability::Later, &limits);
    assert!(matches!(refused, Err(LayerError::Limit { what: "uncompressed bytes", .. })), "{refused:?}");
    let hole = archive(&[pax(b'x', &[("GNU.sparse.size", b"1000000000000"), ("GNU.sparse.map", b"")]), file("a", b"")]);
    let refused = apply(&hole[..], None, &store, Durability::Later, &limits);
    assert!(matches!(refused, Err(LayerError::Limit { .. })), "{refused:?}");
    let many = archive(&["a", "b", "c", "d"].map(|name| file(name, b"")));
    let refused = apply(&many[..], None, &store, Durability::Later, &limits);
    assert!(matches!(refused, Err(LayerError::Limit { what: "entries", .. })), "{refused:?}");
}

/// An index is in memory while it is made: what it cannot take of small contents goes where the others are.
#[test]
fn small_contents_are_packed_where_they_are_many() {
    let (_directory, store) = store();
    let count = (2 << 20) / 512 + 10;
    let data = |number: usize| [format!("{number} "), "x".repeat(512)].concat()[..512].to_owned().into_bytes();
    let files: Vec<_> = (0..count).map(|number| file(&format!("f{number}"), &data(number))).collect();
    let index = applied(&store, &archive(&files)).unwrap();
    let inline = |number: usize| {
        let node = at(&index, &format!("f{number}")).unwrap();
        matches!(index.content(node).unwrap(), Content::Inline(_))
    };
    assert!(inline(0) && !inline(count - 1));
    for number in [0, 1, count / 2, count - 2, count - 1] {
        assert_eq!(content(&store, &index, &format!("f{number}")), data(number));
    }
}
