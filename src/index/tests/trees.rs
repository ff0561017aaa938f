//! Layers built, stacked, read back and broken, through the public face.
#![allow(clippy::unwrap_used, reason = "a refused input is a failed test")]

use std::collections::BTreeMap;

use index::{
    BuildError, Content, DeviceNumber, Entry, Index, Kind, Metadata, Node, Place, Time, TreeBuilder, merge, merge_to,
};
use oci::{ChainId, DiffId, Digest};
use proptest::prelude::*;

fn id(name: &str) -> DiffId {
    DiffId(Digest::of(name.as_bytes()))
}

fn meta(permissions: u16) -> Metadata {
    Metadata { permissions, uid: 7, gid: 70_000, mtime: Time { seconds: -5, nanoseconds: 9 }, xattrs: BTreeMap::new() }
}

fn file(text: &str) -> Entry {
    Entry::InlineFile(text.as_bytes().to_vec())
}

fn layer(name: &str, build: impl FnOnce(&mut TreeBuilder)) -> Index {
    let mut builder = TreeBuilder::new();
    build(&mut builder);
    let index = Index::from_bytes(builder.write(id(name), None).unwrap()).unwrap();
    index.verify().unwrap();
    index
}

fn chain(layers: &[&Index]) -> Index {
    let index = Index::from_bytes(merge(layers).unwrap()).unwrap();
    index.verify().unwrap();
    assert!(index.is_chain());
    index
}

fn at(index: &Index, path: &str) -> Option<Node> {
    path.split('/').try_fold(Node::ROOT, |node, name| Some(index.lookup(node, name.as_bytes()).unwrap()?.node))
}

/// All paths with contents or targets; directories end in a slash.
fn tree(index: &Index) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![(Node::ROOT, String::new())];
    while let Some((directory, path)) = open.pop() {
        for dirent in index.dirents(directory).unwrap().iter() {
            let dirent = dirent.unwrap();
            let path = format!("{path}{}", String::from_utf8_lossy(dirent.name));
            match dirent.kind {
                Kind::Directory => {
                    found.insert(format!("{path}/"), String::new());
                    open.push((dirent.node, format!("{path}/")));
                }
                Kind::Regular => {
                    let bytes = match index.content(dirent.node).unwrap() {
                        Content::Inline(bytes) => bytes,
                        Content::Empty => b"",
                        Content::Object { .. } => panic!("{path}"),
                    };
                    found.insert(path, String::from_utf8_lossy(bytes).into_owned());
                }
                Kind::Symlink => {
                    let target = index.symlink_target(dirent.node).unwrap().unwrap();
                    found.insert(path, format!("-> {}", String::from_utf8_lossy(target)));
                }
                kind => panic!("{path} is a {kind:?}"),
            }
        }
    }
    found
}

fn paths(index: &Index) -> Vec<String> {
    tree(index).into_keys().collect()
}

#[test]
fn a_layer_comes_back_as_it_was_built() {
    let object = Digest::of(b"object");
    let pack = Digest::of(b"pack");
    let mut builder = TreeBuilder::new();
    let mut with_xattrs = meta(0o4755);
    with_xattrs.xattrs.insert(b"security.capability".to_vec(), vec![1, 2]);
    with_xattrs.xattrs.insert(b"user.a".to_vec(), b"b".to_vec());
    builder.insert(b"./", &meta(0o700), Entry::Directory).unwrap();
    builder.insert(b"bin/tool", &with_xattrs, Entry::ObjectFile { digest: object, size: 100_000 }).unwrap();
    builder.insert(b"bin/small", &meta(0o644), Entry::PackedFile { offset: 512, size: 1000 }).unwrap();
    builder.insert(b"dev/null", &meta(0o666), Entry::CharDevice(DeviceNumber { major: 1, minor: 1 << 20 })).unwrap();
    builder.hard_link(b"bin/alias", b"/bin/tool").unwrap();
    let index = Index::from_bytes(builder.write(id("layer"), Some((pack, 2000))).unwrap()).unwrap();
    index.verify().unwrap();

    let tool = at(&index, "bin/tool").unwrap();
    let inode = index.inode(tool).unwrap();
    assert_eq!((inode.mode(), inode.uid, inode.gid, inode.nlink), (0o104_755, 7, 70_000, 2));
    assert_eq!((inode.size, inode.mtime), (100_000, Time { seconds: -5, nanoseconds: 9 }));
    assert_eq!(at(&index, "bin/alias"), Some(tool));
    assert!(matches!(index.content(tool), Ok(Content::Object { digest, offset: 0, .. }) if digest == object));
    let small = at(&index, "bin/small").unwrap();
    assert!(matches!(index.content(small), Ok(Content::Object { digest, offset: 512, .. }) if digest == pack));
    let mut objects = vec![(object, 100_000), (pack, 2000)];
    objects.sort_unstable();
    assert_eq!(index.objects().collect::<Vec<_>>(), objects);
    assert_eq!(index.xattrs(tool).unwrap().get(b"user.a").unwrap(), Some(&b"b"[..]));
    assert!(index.has_xattrs() && index.has_capabilities() && !index.has_acls());
    let null = index.inode(at(&index, "dev/null").unwrap()).unwrap();
    assert_eq!((null.kind, null.rdev), (Kind::CharDevice, DeviceNumber { major: 1, minor: 1 << 20 }));
    assert!(index.inode(at(&index, "dev").unwrap()).unwrap().implied);
    assert!(!index.inode(Node::ROOT).unwrap().implied);
    assert_eq!(index.parent(at(&index, "dev").unwrap()), Ok(Some(Node::ROOT)));
    assert_eq!(index.inode(Node::ROOT).unwrap().nlink, 4);
    assert_eq!(Node::from_ino(Node::ROOT.ino()), Some(Node::ROOT));
    assert_eq!(Node::from_ino(0), None);
    let names: Vec<_> = index.dirents(at(&index, "bin").unwrap()).unwrap().iter().map(|d| d.unwrap().name).collect();
    assert_eq!(names, [&b"alias"[..], b"small", b"tool"]);
}

#[test]
fn the_order_of_entries_does_not_change_the_bytes() {
    let build = |order: &[&str]| {
        let mut builder = TreeBuilder::new();
        for path in order {
            builder.insert(path.as_bytes(), &meta(0o644), file(path)).unwrap();
        }
        builder.write(id("x"), None).unwrap()
    };
    assert_eq!(build(&["b/1", "a/2", "c"]), build(&["c", "a/2", "b/1"]));
}

#[test]
fn the_last_entry_of_a_path_wins() {
    let index = layer("x", |b| {
        b.insert(b"d", &meta(0o755), Entry::Directory).unwrap();
        b.insert(b"d/f", &meta(0o644), file("1")).unwrap();
        b.insert(b"d", &meta(0o700), Entry::Directory).unwrap();
        b.insert(b"e/f", &meta(0o644), file("2")).unwrap();
        b.insert(b"e", &meta(0o644), file("3")).unwrap();
        b.insert(b"g", &meta(0o644), file("4")).unwrap();
        b.insert(b"g/h", &meta(0o644), file("5")).unwrap();
    });
    assert_eq!(paths(&index), ["d/", "d/f", "e", "g/", "g/h"]);
    assert_eq!(index.inode(at(&index, "d").unwrap()).unwrap().permissions, 0o700);
}

#[test]
fn symlinked_parents_are_followed_inside_the_layer() {
    let index = layer("x", |b| {
        b.insert(b"lib", &meta(0o777), Entry::Symlink(b"/usr/lib".to_vec())).unwrap();
        b.insert(b"up", &meta(0o777), Entry::Symlink(b"../../../lib".to_vec())).unwrap();
        b.insert(b"up/x", &meta(0o644), file("x")).unwrap();
    });
    assert_eq!(paths(&index), ["lib", "up", "usr/", "usr/lib/", "usr/lib/x"]);
    let mut builder = TreeBuilder::new();
    builder.insert(b"a", &meta(0o777), Entry::Symlink(b"a".to_vec())).unwrap();
    assert!(matches!(builder.insert(b"a/x", &meta(0o644), file("x")), Err(BuildError::Place { .. })));
}

#[test]
fn what_cannot_be_is_refused() {
    let mut builder = TreeBuilder::new();
    assert!(matches!(builder.insert(b"../x", &meta(0), file("x")), Err(BuildError::Path { .. })));
    assert!(matches!(builder.insert(b"/", &meta(0), file("x")), Err(BuildError::Root)));
    assert!(matches!(builder.insert(b"l", &meta(0), Entry::Symlink(vec![])), Err(BuildError::Target { .. })));
    builder.insert(b"d/f", &meta(0), file("x")).unwrap();
    assert!(matches!(builder.hard_link(b"x", b"d"), Err(BuildError::LinkToDirectory { .. })));
    assert!(matches!(builder.hard_link(b"x", b"../d"), Err(BuildError::Path { .. })));
    let deep = b"a/".repeat(1025);
    assert!(matches!(builder.insert(&deep, &meta(0), Entry::Directory), Err(BuildError::Place { .. })));
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let low = layer("low", |b| {
        for path in ["a", "d/1", "d/2", "o/1", "o/s/2", "w/1"] {
            b.insert(path.as_bytes(), &meta(0o644), file("low")).unwrap();
        }
    });
    let high = layer("high", |b| {
        b.insert(b"a", &meta(0o644), file("high")).unwrap();
        b.whiteout(b"a").unwrap();
        b.whiteout(b"d/1").unwrap();
        b.insert(b"o/new", &meta(0o644), file("high")).unwrap();
        b.opaque(b"o").unwrap();
        b.whiteout(b"w").unwrap();
        b.insert(b"w/2", &meta(0o644), file("high")).unwrap();
        b.whiteout(b"nothing/here").unwrap();
    });
    let index = chain(&[&low, &high]);
    assert_eq!(paths(&index), ["a", "d/", "d/2", "nothing/", "o/", "o/new", "w/", "w/2"]);
    assert_eq!(tree(&index)["a"], "high");
    assert_eq!(index.id(), ChainId::of(&[id("low"), id("high")]).unwrap().0);
}

#[test]
fn implied_parents_go_through_symlinks_and_explicit_ones_replace_them() {
    let low = layer("low", |b| {
        b.insert(b"usr/lib", &meta(0o750), Entry::Directory).unwrap();
        b.insert(b"usr/lib/a", &meta(0o644), file("a")).unwrap();
        b.insert(b"lib", &meta(0o777), Entry::Symlink(b"usr/lib".to_vec())).unwrap();
        b.insert(b"new", &meta(0o777), Entry::Symlink(b"not/yet".to_vec())).unwrap();
    });
    let through = layer("through", |b| {
        b.insert(b"lib/b", &meta(0o644), file("b")).unwrap();
        b.whiteout(b"lib/a").unwrap();
        b.insert(b"new/c", &meta(0o644), file("c")).unwrap();
    });
    let index = chain(&[&low, &through]);
    assert_eq!(paths(&index), ["lib", "new", "not/", "not/yet/", "not/yet/c", "usr/", "usr/lib/", "usr/lib/b"]);
    assert_eq!(index.inode(at(&index, "usr/lib").unwrap()).unwrap().permissions, 0o750);

    let replacing = layer("replacing", |b| {
        b.insert(b"lib", &meta(0o755), Entry::Directory).unwrap();
        b.insert(b"lib/b", &meta(0o644), file("b")).unwrap();
    });
    assert_eq!(paths(&chain(&[&low, &replacing])), ["lib/", "lib/b", "new", "usr/", "usr/lib/", "usr/lib/a"]);
}

#[test]
fn hard_links_reach_into_lower_layers() {
    let low = layer("low", |b| b.insert(b"d/a", &meta(0o644), file("low")).unwrap());
    let high = layer("high", |b| {
        b.hard_link(b"b", b"d/a").unwrap();
        b.hard_link(b"c", b"b").unwrap();
        b.whiteout(b"d/a").unwrap();
        b.hard_link(b"later", b"z").unwrap();
        b.insert(b"z", &meta(0o644), file("high")).unwrap();
    });
    let index = chain(&[&low, &high]);
    assert_eq!(paths(&index), ["b", "c", "d/", "later", "z"]);
    assert_eq!(at(&index, "b"), at(&index, "c"));
    assert_eq!(at(&index, "later"), at(&index, "z"));
    assert_eq!(index.inode(at(&index, "b").unwrap()).unwrap().nlink, 2);
    assert!(matches!(merge(&[&high]), Err(index::MergeError::MissingTarget { .. })));
}

/// One step of building a layer out of few names, so that they meet often.
#[derive(Clone, Debug)]
enum Step {
    File(String),
    Directory(String),
    Whiteout(String),
    Opaque(String),
}

fn step() -> impl Strategy<Value = Step> {
    let path = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"));
    (0..6u8, path).prop_map(|(kind, path)| match kind {
        0..=2 => Step::File(path),
        3 => Step::Directory(path),
        4 => Step::Whiteout(path),
        _ => Step::Opaque(path),
    })
}

type Model = BTreeMap<String, Option<String>>;

fn below(model: &Model, path: &str) -> Vec<String> {
    let prefix = format!("{path}/");
    model.keys().filter(|key| key.starts_with(&prefix)).cloned().collect()
}

fn remove(model: &mut Model, path: &str) {
    for key in below(model, path) {
        model.remove(&key);
    }
    model.remove(path);
}

fn put(model: &mut Model, path: &str, content: Option<String>) {
    for (place, _) in path.match_indices('/') {
        if !matches!(model.get(&path[..place]), Some(None)) {
            remove(model, &path[..place]);
            model.insert(path[..place].to_owned(), None);
        }
    }
    if content.is_some() || !matches!(model.get(path), Some(None)) {
        remove(model, path);
    }
    model.insert(path.to_owned(), content);
}

/// Overlay semantics in the plainest form: paths in a map, first all hiding, then all entries of each layer.
fn stacked(layers: &[Vec<Step>]) -> Model {
    let mut model = Model::new();
    for (number, steps) in layers.iter().enumerate() {
        // What the layer itself has in the end, and what it hides with a name that did not vanish again.
        let mut own = Model::new();
        let mut hidden: Vec<(String, bool)> = Vec::new();
        for (place, step) in steps.iter().enumerate() {
            let (path, content, opaque) = match step {
                Step::File(path) => (path, Some(format!("{number}.{place}")), None),
                Step::Directory(path) => (path, None, None),
                Step::Whiteout(path) => (path, None, Some(false)),
                Step::Opaque(path) => (path, None, Some(true)),
            };
            let before = own.clone();
            match opaque {
                Some(false) => {
                    if let Some((parent, _)) = path.rsplit_once('/') {
                        put(&mut own, parent, None);
                    }
                }
                _ => put(&mut own, path, content),
            }
            // A directory that was replaced took the marks below it along.
            let gone = |key: &str| before.get(key) == Some(&None) && !matches!(own.get(key), Some(None));
            hidden.retain(|(mark, opaque)| {
                let mut holders: Vec<&str> = mark.match_indices('/').map(|(place, _)| &mark[..place]).collect();
                if *opaque {
                    holders.push(mark);
                }
                !holders.into_iter().any(gone)
            });
            if let Some(opaque) = opaque {
                hidden.push((path.clone(), opaque));
            }
        }
        for (path, opaque) in &hidden {
            if *opaque {
                for key in below(&model, path) {
                    model.remove(&key);
                }
            } else {
                remove(&mut model, path);
            }
        }
        for (path, content) in own {
            put(&mut model, &path, content);
        }
    }
    model
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn merging_is_stacking(layers in prop::collection::vec(prop::collection::vec(step(), 0..12), 1..4)) {
        let built: Vec<Index> = layers.iter().enumerate().map(|(number, steps)| {
            layer(&number.to_string(), |b| for (place, step) in steps.iter().enumerate() {
                match step {
                    Step::File(path) => b.insert(path.as_bytes(), &meta(0o644), file(&format!("{number}.{place}"))),
                    Step::Directory(path) => b.insert(path.as_bytes(), &meta(0o755), Entry::Directory),
                    Step::Whiteout(path) => b.whiteout(path.as_bytes()),
                    Step::Opaque(path) => b.opaque(path.as_bytes()),
                }.unwrap();
            })
        }).collect();
        let index = chain(&built.iter().collect::<Vec<_>>());
        let expected: BTreeMap<String, String> = stacked(&layers).into_iter().map(|(path, content)| match content {
            Some(content) => (path, content),
            None => (format!("{path}/"), String::new()),
        }).collect();
        prop_assert_eq!(tree(&index), expected);
    }

    #[test]
    fn no_byte_makes_the_reader_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8u8), 1..12)) {
        let whole = layer("x", |b| {
            let mut attributes = meta(0o644);
            attributes.xattrs.insert(b"user.a".to_vec(), b"b".to_vec());
            b.insert(b"a/b/c", &attributes, file("text")).unwrap();
            b.insert(b"a/l", &attributes, Entry::Symlink(b"b".to_vec())).unwrap();
            b.insert(b"big", &attributes, Entry::ObjectFile { digest: Digest::of(b"1"), size: 9 }).unwrap();
            b.hard_link(b"link", b"lower").unwrap();
            b.whiteout(b"gone").unwrap();
        });
        let mut bytes = whole.as_bytes().to_vec();
        for (place, bit) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
        }
        if let Ok(index) = Index::from_bytes(bytes.clone()) {
            let changed = bytes != whole.as_bytes();
            prop_assert_eq!(index.verify().is_err(), changed);
            for node in (0..=index.inode_count()).map(Node) {
                let _ = (index.content(node), index.symlink_target(node), index.link_target(node), index.parent(node));
                let _ = index.xattrs(node).map(|xattrs| xattrs.take(1000).count());
                let _ = index.lookup(node, b"b");
                let _ = index.dirents(node).map(|dirents| dirents.iter().count());
            }
            let _ = merge(&[&index]);
        }
    }

    #[test]
    fn cutting_the_file_is_noticed(length in 0usize..600) {
        let whole = layer("x", |b| b.insert(b"a", &meta(0o644), file("text")).unwrap());
        let cut = whole.as_bytes()[..length.min(whole.as_bytes().len() - 8)].to_vec();
        prop_assert!(Index::from_bytes(cut).map_or(true, |index| index.verify().is_err()));
    }
}

#[test]
fn places_are_made_where_the_layers_have_nothing() {
    let with = |layers: &[&Index]| {
        let places = [
            Place::Directory("dev"),
            Place::Directory("etc"),
            Place::File("etc/hosts"),
            Place::Symlink("etc/mtab", "/proc/mounts"),
        ];
        let mut bytes = std::io::Cursor::new(Vec::new());
        merge_to(layers, &places, &mut bytes).unwrap();
        let index = Index::from_bytes(bytes.into_inner()).unwrap();
        index.verify().unwrap();
        index
    };
    let own = Metadata { uid: 0, ..meta(0o700) };
    let bare = layer("bare", |builder| builder.insert(b"./", &own, Entry::Directory).unwrap());
    let index = with(&[&bare]);
    assert_eq!(index.id(), chain(&[&bare]).id());
    let tree_of = |index: &Index| tree(index).into_iter().map(|(path, text)| path + &text).collect::<Vec<_>>();
    assert_eq!(tree_of(&index), ["dev/", "etc/", "etc/hosts", "etc/mtab-> /proc/mounts"]);
    for (path, permissions) in [("dev", 0o755), ("etc/hosts", 0o644)] {
        let inode = index.inode(at(&index, path).unwrap()).unwrap();
        assert_eq!((inode.permissions, inode.uid, inode.gid), (permissions, 0, 0), "{path}");
        assert_eq!(inode.mtime, Time { seconds: -5, nanoseconds: 9 }, "{path}");
    }

    // What is there stays as it is, whatever it is, and links are not followed.
    let full = layer("full", |builder| {
        builder.insert(b"dev", &meta(0o644), file("a file")).unwrap();
        builder.insert(b"elsewhere", &meta(0o755), Entry::Directory).unwrap();
        builder.insert(b"etc", &meta(0o777), Entry::Symlink(b"elsewhere".to_vec())).unwrap();
    });
    assert_eq!(tree_of(&with(&[&full])), ["deva file", "elsewhere/", "etc-> elsewhere"]);
    let hosts = layer("hosts", |builder| {
        builder.insert(b"etc/hosts", &meta(0o600), file("hosts")).unwrap();
    });
    let index = with(&[&hosts]);
    assert_eq!(tree_of(&index), ["dev/", "etc/", "etc/hostshosts", "etc/mtab-> /proc/mounts"]);
    assert_eq!(index.inode(at(&index, "etc/hosts").unwrap()).unwrap().permissions, 0o600);

    // Of a place that an upper layer hides too.
    let hidden = layer("hidden", |builder| builder.whiteout(b"etc/hosts").unwrap());
    let index = with(&[&hosts, &hidden]);
    assert_eq!(tree_of(&index), ["dev/", "etc/", "etc/hosts", "etc/mtab-> /proc/mounts"]);
}
