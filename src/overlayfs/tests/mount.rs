//! The overlay under the kernel: a script of everyday commands in a real mount must leave the very tree that it leaves
//! in a plain directory. Runs as any user: the test starts itself again in a user and mount namespace of its own.
#![allow(clippy::unwrap_used, reason = "a failed test is what an unwrap is for")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use fuse::Session;
use index::{Content, Entry, Index, Metadata, Time, TreeBuilder, merge};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::linkat;
use oci::{DiffId, Digest};
use overlayfs::{Contents, Overlay, Policy, View};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use sys::mount::{Attr, FsContext};

#[global_allocator]
static COUNTING: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// Contents of the chain: files of the source tree, numbered.
struct Sources(Vec<PathBuf>);

impl Contents for Sources {
    fn open(&self, _index: &Index, content: &Content<'_>) -> overlayfs::Result<Arc<File>> {
        let Content::Object { digest, .. } = content else { return Err(Errno::EIO) };
        let number = u32::from_le_bytes(digest.as_bytes()[..4].try_into().unwrap());
        Ok(Arc::new(File::open(&self.0[number as usize]).map_err(|_| Errno::EIO)?))
    }
}

/// The chain index of a real tree of files, directories and links, all owned by root.
fn chain(source: &Path) -> (Arc<Index>, Sources) {
    let mut builder = TreeBuilder::new();
    let mut sources = Vec::new();
    let mut linked: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut pending = vec![source.to_owned()];
    while let Some(path) = pending.pop() {
        let inside = path.strip_prefix(source).unwrap().as_os_str().as_bytes().to_owned();
        let stat = fs::symlink_metadata(&path).unwrap();
        let mtime = Time { seconds: stat.mtime(), nanoseconds: stat.mtime_nsec() as u32 };
        let metadata =
            Metadata { permissions: stat.permissions().mode() as u16 & 0o7777, mtime, ..Metadata::default() };
        let entry = if stat.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Entry::Directory
        } else if stat.is_symlink() {
            Entry::Symlink(fs::read_link(&path).unwrap().as_os_str().as_bytes().to_owned())
        } else if let Some(first) = linked.get(&stat.ino()) {
            builder.hard_link(&inside, first.strip_prefix(source).unwrap().as_os_str().as_bytes()).unwrap();
            continue;
        } else if stat.len() < 64 {
            linked.insert(stat.ino(), path.clone());
            Entry::InlineFile(fs::read(&path).unwrap())
        } else {
            linked.insert(stat.ino(), path.clone());
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&(sources.len() as u32).to_le_bytes());
            sources.push(path.clone());
            Entry::ObjectFile { digest: Digest::from_bytes(digest), size: stat.len() }
        };
        builder.insert(&inside, &metadata, entry).unwrap();
    }
    let layer = Index::from_bytes(builder.write(DiffId(Digest::from_bytes([1; 32])), None).unwrap()).unwrap();
    (Arc::new(Index::from_bytes(merge(&[&layer]).unwrap()).unwrap()), Sources(sources))
}

fn mount(overlay: &Arc<Overlay>, at: &Path) {
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let context = FsContext::open(c"fuse").unwrap();
    let number = CString::new(device.as_raw_fd().to_string()).unwrap();
    let options = [(c"fd", number.as_c_str()), (c"rootmode", c"40000"), (c"user_id", c"0"), (c"group_id", c"0")];
    for (key, value) in options {
        context.set(key, value).unwrap();
    }
    context.set_flag(c"default_permissions").unwrap();
    let mount = context.mount(Attr::NODEV).unwrap();
    sys::mount::attach(mount.as_fd(), File::open(at).unwrap().as_fd()).unwrap();
    let view = Arc::new(View::new(Arc::clone(overlay)));
    std::thread::spawn(move || {
        let session = Session::open(device.into(), view, &View::features(2, false, false)).unwrap();
        assert_eq!(session.serve().unwrap().panics, 0);
    });
}

fn shell(script: &str, dir: &Path) -> String {
    let output = Command::new("sh").arg("-c").arg(script).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}: {}", dir.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The whole tree in words: type, mode, links, owner, size, target, digest; times except those of the test itself.
fn tree(dir: &Path, since: u64) -> String {
    let list =
        shell("find . -printf '%p %y %m %n %U %G %l %T@ ' \\( -type f -printf '%s\\n' -o -printf '\\n' \\)", dir);
    let mut lines: Vec<String> = list
        .lines()
        .map(|line| {
            let fields = line.split(' ').map(|field| match field.split_once('.') {
                Some((seconds, rest)) if rest.len() == 10 && seconds.parse::<u64>().is_ok_and(|at| at >= since) => {
                    "now"
                }
                _ => field,
            });
            fields.collect::<Vec<_>>().join(" ")
        })
        .collect();
    lines.sort();
    lines.join("\n") + &shell("find . -type f -print0 | sort -z | xargs -0 sha256sum", dir)
}

/// Equal line by line; shows only the lines that differ.
fn same(ours: &str, expected: &str, when: &str) {
    let only = |a: &str, b: &str| {
        let known: std::collections::HashSet<String> = b.lines().map(str::to_owned).collect();
        a.lines().filter(|line| !known.contains(*line)).collect::<Vec<_>>().join("\n")
    };
    assert!(ours == expected, "{when}: ours\n{}\nexpected\n{}", only(ours, expected), only(expected, ours));
}

const LOWER: &str = "mkdir -p lower/deep/a/b/c lower/moved/sub lower/gone/x lower/links; cd lower
    for f in file big grow emptied open edited mapped deep/a/one deep/a/b/two deep/a/b/c/three moved/inside moved/sub/leaf gone/x/y; do
        echo \"contents of $f\" >$f; done
    seq 20000 >big; seq 3000 >mapped; seq 100 >grow; seq 50000 >deep/a/big; seq 99 >open
    echo twice >links/one; ln links/one links/two; ln -s ../file links/soft; chmod 2755 deep/a; chmod 600 deep/a/one
    find . -exec touch -h -d 2020-01-01T00:00:00.5 {} +";

/// Files without a name, of which one gets one.
fn unnamed(dir: &Path) {
    let make = || {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR;
        let file = File::from(nix::fcntl::open(dir, flags, Mode::from_bits_truncate(0o640)).unwrap());
        file.write_at(b"written before it had a name", 0).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file
    };
    let (kept, _dropped) = (make(), make());
    let path = format!("/proc/self/fd/{}", kept.as_raw_fd());
    linkat(AT_FDCWD, path.as_str(), AT_FDCWD, &dir.join("named"), AtFlags::AT_SYMLINK_FOLLOW).unwrap();
    kept.write_at(b"!", 28).unwrap();
    assert_eq!(kept.metadata().unwrap().nlink(), 1);
}

/// Runs in the namespaces that the other tests make.
#[test]
#[ignore = "started by the others in a user namespace"]
fn inside() {
    let work = PathBuf::from(std::env::var_os("OVERLAYFS_TEST_DIR").unwrap());
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - 1;
    for dir in ["source", "upper", "merged"] {
        fs::create_dir(work.join(dir)).unwrap();
    }
    shell(LOWER, &work.join("source"));
    shell("cp -a source plain", &work);
    let (index, sources) = chain(&work.join("source"));
    let sources: Arc<dyn Contents> = Arc::new(sources);
    let upper = || File::open(work.join("upper")).unwrap().into();
    let overlay = Arc::new(Overlay::open(upper(), Arc::clone(&index), Arc::clone(&sources), Policy::Durable).unwrap());
    let merged = work.join("merged");
    mount(&overlay, &merged);
    same(&tree(&merged, since), &tree(&work.join("plain"), since), "before anything");
    let script = include_str!("script.sh");
    let (ours, plain) = (shell(script, &merged), shell(script, &work.join("plain")));
    assert_eq!(ours, plain);
    for dir in [&merged, &work.join("plain")] {
        unnamed(dir);
    }
    let expected = tree(&work.join("plain"), since);
    same(&tree(&merged, since), &expected, "after the script");
    // The same again from the log alone.
    let again = Arc::new(Overlay::open(upper(), index, sources, Policy::Durable).unwrap());
    let second = work.join("second");
    fs::create_dir(&second).unwrap();
    mount(&again, &second);
    same(&tree(&second, since), &expected, "after replay");
    for dir in ["merged", "second"] {
        nix::mount::umount(&work.join(dir)).unwrap();
    }
}

/// The most allocations that a request may cost, in all threads: the wire's and the file system's. The one of a read is
/// [`Sources`]' own, which opens its file anew each time.
const ALLOCATIONS_MAX: [(&str, usize); 3] = [("lookup", 0), ("open and read", 1), ("write", 0)];

/// Runs in the namespaces that [`a_request_allocates_nothing`] makes.
#[test]
#[ignore = "started by another in a user namespace"]
fn inside_counting() {
    const FILES: usize = 1000;
    let work = PathBuf::from(std::env::var_os("OVERLAYFS_TEST_DIR").unwrap());
    for dir in ["source", "upper", "merged"] {
        fs::create_dir(work.join(dir)).unwrap();
    }
    for at in 0..2 * FILES {
        fs::write(work.join(format!("source/{at}")), [b'x'; 200]).unwrap();
    }
    let (index, sources) = chain(&work.join("source"));
    let upper = File::open(work.join("upper")).unwrap().into();
    let overlay = Arc::new(Overlay::open(upper, index, Arc::new(sources), Policy::Volatile).unwrap());
    let merged = work.join("merged");
    mount(&overlay, &merged);
    let paths: Vec<PathBuf> = (0..2 * FILES).map(|at| merged.join(at.to_string())).collect();
    let written = File::create(merged.join("written")).unwrap();
    // The first half warms up. The test's own allocations are counted too: it makes none in these loops.
    let count = |work: &mut dyn FnMut(usize)| {
        (0..FILES).for_each(&mut *work);
        let region = Region::new(COUNTING);
        (FILES..2 * FILES).for_each(&mut *work);
        let change = region.change();
        change.allocations + change.reallocations
    };
    let mut buffer = [0; 256];
    let found = [
        count(&mut |at| assert_eq!(fs::symlink_metadata(&paths[at]).unwrap().len(), 200)),
        count(&mut |at| assert_eq!(File::open(&paths[at]).unwrap().read_at(&mut buffer, 0).unwrap(), 200)),
        count(&mut |at| assert_eq!(written.write_at(&[1; 100], at as u64 * 4096).unwrap(), 100)),
    ];
    drop(written);
    nix::mount::umount(&merged).unwrap();
    for ((what, most), found) in ALLOCATIONS_MAX.into_iter().zip(found) {
        println!("{what}: {found} allocations in {FILES} requests");
        assert!(found <= most * FILES, "{what}: {found} allocations in {FILES} requests, more than {most} in each");
    }
}

/// Runs in the namespaces that [`a_full_disk_costs_one_call`] makes.
#[test]
#[ignore = "started by another in a user namespace"]
fn inside_full() {
    let work = PathBuf::from(std::env::var_os("OVERLAYFS_TEST_DIR").unwrap());
    for dir in ["source", "upper", "merged"] {
        fs::create_dir(work.join(dir)).unwrap();
    }
    let contents: Vec<u8> = (0..1_500_000_u32).map(|at| (at / 7) as u8).collect();
    fs::write(work.join("source/large"), &contents).unwrap();
    let disk = FsContext::open(c"tmpfs").unwrap();
    disk.set(c"size", c"2m").unwrap();
    let disk = disk.mount(Attr::NODEV).unwrap();
    sys::mount::attach(disk.as_fd(), File::open(work.join("upper")).unwrap().as_fd()).unwrap();
    let (index, sources) = chain(&work.join("source"));
    let upper = || File::open(work.join("upper")).unwrap().into();
    let sources: Arc<dyn Contents> = Arc::new(sources);
    let open = || Arc::new(Overlay::open(upper(), Arc::clone(&index), Arc::clone(&sources), Policy::Durable).unwrap());
    let merged = work.join("merged");
    mount(&open(), &merged);
    let (large, new) = (merged.join("large"), merged.join("new"));
    let is_full = |written: std::io::Result<usize>| written.unwrap_err().raw_os_error() == Some(Errno::ENOSPC as i32);

    // In the middle of a write: what there was room for is written, and everybody agrees on how much that is.
    let file = File::create(&new).unwrap();
    let (mut written, piece) = (0, vec![b'n'; 300_000]);
    while let Ok(count) = file.write_at(&piece, written) {
        written += count as u64;
    }
    assert!(is_full(file.write_at(b"n", written)) && written % 300_000 != 0, "{written}");
    assert_eq!(file.metadata().unwrap().len(), written);
    let data = shell("find upper/up -type f -printf '%s\n'", &work);
    assert_eq!(data.trim().parse(), Ok(written));
    drop(file);
    // In the middle of a copy-up: the file is as it was, and can be changed when there is room again.
    let file = File::options().write(true).open(&large).unwrap();
    assert!(is_full(file.write_at(b"x", 5)));
    assert!(fs::read(&large).unwrap() == contents, "the lower contents are shown");
    fs::remove_file(&new).unwrap();
    file.write_all_at(b"x", 5).unwrap();
    drop(file);
    // Names until there is no room for another one, and data until there is none at all: all of it can be removed.
    let names = merged.join("names");
    fs::create_dir(&names).unwrap();
    let made = (0..1_000_000).take_while(|at| fs::write(names.join(at.to_string()), [b'y'; 50]).is_ok()).count();
    let rest = File::options().append(true).create(true).open(names.join("0")).unwrap();
    while (&rest).write(&[b'z'; 4096]).is_ok() {}
    assert!(made > 20 && fs::read_dir(&names).unwrap().count() >= made, "{made}");
    fs::remove_dir_all(&names).unwrap();
    drop(rest);
    fs::write(&new, "again").unwrap();
    nix::mount::umount(&merged).unwrap();

    mount(&open(), &merged);
    let mut expected = contents;
    expected[5] = b'x';
    assert!(fs::read(&large).unwrap() == expected && !names.exists());
    assert_eq!(fs::read(&new).unwrap(), b"again");
    nix::mount::umount(&merged).unwrap();
}

#[test]
fn a_full_disk_costs_one_call() {
    run_inside("inside_full");
}

#[test]
fn a_mount_behaves_like_a_plain_directory() {
    run_inside("inside");
}

#[test]
fn a_request_allocates_nothing() {
    run_inside("inside_counting");
}

/// Runs a test of this binary in a user and a mount namespace.
fn run_inside(test: &str) {
    if File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return fixture::skip("/dev/fuse cannot be opened");
    }
    let work = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["-Urm"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test, "--nocapture"])
        .env("OVERLAYFS_TEST_DIR", work.path())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    // A name that fits no test passes too.
    assert!(text(&output.stdout).contains("1 passed"), "{}", text(&output.stdout));
    println!("{}", text(&output.stdout));
}
