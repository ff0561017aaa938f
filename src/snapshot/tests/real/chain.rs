//! The view of an image chain against the tree that its archives were made of, bare and below the kernel's overlayfs.
//!
//! The oracle is a tree on the host's file system, made and read as root of the outer user namespace, archived by the
//! installed `tar`.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use layer::{Limits, apply, merge_chain};
use snapshot::fs_client::{FsClientError, FsConnection, FsSpec, connect_or_spawn};
use snapshot::fs_role::{FsConfig, View};
use snapshot::native::{self, ChainLower, Truth};
use snapshot::{Change, ChangeKind, Driver, owner_client};
use store::{Durability, Store};
use sys::xattr::{self, Existing};

use crate::Test;
use crate::native::assert_ours;
use crate::support::{Outer, clone_view, inside, inside_with, keeper_of, kill_role, overlay, pid_of_server, until};

pub const TESTS: &[Test] = &[
    ("chain_view_shows_what_the_archives_hold", shows_what_the_archives_hold),
    ("chain_view_below_overlayfs", below_overlayfs),
    ("servers_are_confined", are_confined),
    ("a_walk_costs_no_memory_for_each_file", walk_costs_no_memory),
    ("overlay_view_is_written_and_found_again", is_written_and_found_again),
    ("overlay_view_keeps_what_was_written_before_a_kill", keeps_what_was_written_before_a_kill),
    ("an_upper_has_one_server", an_upper_has_one_server),
];

/// A two-layer image of everything that a tree can have: `T` becomes the merged tree, `L2` the second layer.
const MAKE: &str = r#"
set -e; umask 022; rm -rf T L2; mkdir -p T/usr/share T/etc/conf.d T/var/lib/db T/srv/deep T/gone/below T/turned T/links T/big
id() { if [ "$IDS" -gt 1 ]; then chown -h "$1" "$2"; else chown -h 0:0 "$2"; fi; }
find /usr/share/doc -mindepth 1 -maxdepth 1 -name '[a-c]*' -exec cp -r --preserve=mode,timestamps,links {} T/usr/share/ \;
mkdir T/dev T/proc T/sys; : > T/etc/hostname; : > T/etc/hosts; : > T/etc/resolv.conf; ln -s /proc/mounts T/etc/mtab # as in every chain
echo conf > T/etc/conf.d/a; echo old > T/etc/conf.d/b; : > T/etc/empty; ln -s ../etc/empty T/srv/link; id 33:34 T/srv/link
ln -s /nowhere/at/all T/srv/dangling
head -c 3000000 /dev/urandom > T/big/random; truncate -s 5000000 T/big/holes; echo end >> T/big/holes; id 7:8 T/big/random
head -c 100 /dev/urandom > T/big/tiny; head -c 131072 /dev/urandom > T/big/bound; head -c 131073 /dev/urandom > T/big/over
echo db > T/var/lib/db/file; id 999:999 T/var/lib/db/file; chmod 600 T/var/lib/db/file; id 999:998 T/var/lib/db; chmod 700 T/var/lib/db
echo x > T/usr/setid; id 33:33 T/usr/setid; chmod 6755 T/usr/setid; echo y > T/usr/none; chmod 000 T/usr/none
echo linked > T/links/one; ln T/links/one T/links/two; ln T/links/one T/usr/three
mkfifo T/srv/pipe; chmod 1777 T/srv; mkdir T/closed; chmod 555 T/closed
n=$(printf 'n%.0s' $(seq 255)); echo long > "T/srv/$n"; printf 'odd' > "T/srv/$(printf 'new\nline\377')"
d=T/srv/deep; for i in $(seq 60); do d=$d/d$i; done; mkdir -p $d; echo bottom > $d/file
echo a > T/gone/below/file; echo b > T/gone/file; echo plain > T/turned/file; mkdir T/turned/dir; echo i > T/turned/dir/inner
mkdir T/covered; for i in $(seq 500); do echo $i > T/covered/f$i; done
find T -exec touch -h -d '2020-02-03 04:05:06.789' {} +; touch -d '1960-01-01 00:00:00.25' T/etc/conf.d/a
"#;

/// Archives `T` as the first layer, then changes `T` and writes the same change as an archive with whiteouts.
const STACK: &str = r"
set -e; umask 022
tar --format=pax --xattrs --xattrs-include='*' --sort=name -C T -cf base.tar .
mkdir -p L2/gone L2/turned L2/covered L2/etc/conf.d L2/new
rm -r T/gone/below; : > L2/gone/.wh.below; touch -h -r T/gone L2/gone
rm T/etc/conf.d/b; echo new > T/etc/conf.d/b; cp -p T/etc/conf.d/b L2/etc/conf.d/
rm -r T/turned/dir; echo now-a-file > T/turned/dir; cp -p T/turned/dir L2/turned/; rm T/turned/file; mkdir T/turned/file; mkdir L2/turned/file
rm -r T/covered; mkdir T/covered; echo only > T/covered/only; : > L2/covered/.wh..wh..opq; cp -p T/covered/only L2/covered/
mkdir -p T/new; echo new > T/new/file; cp -p T/new/file L2/new/
for d in gone turned turned/file covered etc etc/conf.d new .; do touch -d '2021-01-01' T/$d L2/$d; done
tar --format=pax --sort=name -C L2 -cf top.tar .
";

/// Everything that can be seen of a tree. Sizes of directories are a file system's own affair.
const PICTURE: &str = r"
find . ! -type d -printf '%p %y %m %U %G %s %n %T@ %l\n' -o -printf '%p %y %m %U %G %n %T@\n' | LC_ALL=C sort
find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
";

/// `struct vfs_cap_data` of revision 2 with `cap_net_raw` permitted and effective.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An image in a store, and its oracle.
pub struct Image {
    pub work: PathBuf,
    chain: PathBuf,
    objects: PathBuf,
    trash: PathBuf,
}

pub fn shell(outer: &Outer, script: &str, dir: &Path) -> String {
    let script = format!("IDS={}; {script}", outer.ids.uids);
    let out = Command::new("bash").args(["-c", &script]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
}

/// The difference of two pictures as `diff` shows it.
fn assert_same(outer: &Outer, left: &str, right: &str) {
    if left != right {
        let dir = outer.scratch.path();
        std::fs::write(dir.join("left"), left).unwrap();
        std::fs::write(dir.join("right"), right).unwrap();
        let out = Command::new("diff").args(["left", "right"]).current_dir(dir).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        panic!("{}", text.lines().take(40).collect::<Vec<_>>().join("\n"));
    }
}

/// A directory in which root of the outer user namespace can work.
fn work_of(outer: &Outer, key: &str) -> PathBuf {
    let work = outer.scratch.path().join(key);
    std::fs::create_dir(&work).unwrap();
    if let Some((uid, gid)) = Outer::container_root() {
        std::os::unix::fs::chown(&work, Some(uid), Some(gid)).unwrap();
    }
    work
}

pub fn image(outer: &Outer, key: &str) -> Image {
    let work = work_of(outer, key);
    inside(&outer.user_namespace, None, || {
        shell(outer, MAKE, &work);
        let capable = File::open(work.join("T/etc/empty")).unwrap();
        xattr::set(&capable, c"security.capability", &CAPABILITY, Existing::Any).unwrap();
        xattr::set(&capable, c"user.note", b"value", Existing::Any).unwrap();
        shell(outer, STACK, &work);
    });
    stored(outer, key, work, &["base.tar", "top.tar"])
}

/// Applies archives to a store of their own.
fn stored(outer: &Outer, key: &str, work: PathBuf, archives: &[&str]) -> Image {
    let root = outer.scratch.path().join(format!("{key}-store"));
    let store = Store::open(&root, true).unwrap();
    let apply = |name: &&str| {
        let archive = std::io::BufReader::new(File::open(work.join(name)).unwrap());
        apply(archive, None, &store, Durability::Later, &Limits::default()).unwrap().diff_id
    };
    let layers: Vec<_> = archives.iter().map(apply).collect();
    let chain = merge_chain(&store, &layers).unwrap();
    let chain = store.chains().dir().path().join(store.chains().path_of(&chain.0));
    Image { work, chain, objects: root.join("objects"), trash: root.join("trash") }
}

/// Starts a server, or finds it.
pub fn connect(outer: &Outer, image: &Image, key: &str, view: View, upper: Option<&File>) -> FsConnection {
    try_connect(outer, image, key, view, upper).unwrap()
}

fn try_connect(
    outer: &Outer,
    image: &Image,
    key: &str,
    view: View,
    upper: Option<&File>,
) -> Result<FsConnection, FsClientError> {
    // One that was joined may still be there for a moment, and only a process with one thread starts a server.
    until("the end of other threads", 5, || std::fs::read_dir("/proc/self/task").unwrap().count() == 1);
    let config = FsConfig { view, linger_ms: 100, note: String::new() };
    let [index, objects, trash] = [&image.chain, &image.objects, &image.trash].map(|path| File::open(path).unwrap());
    let closed = outer.closed_list(key);
    let mut fds = vec![("index", index.as_fd()), ("objects", objects.as_fd()), ("trash", trash.as_fd())];
    // A view of the host takes this one alone.
    fds.push((snapshot::host_closed::NAME, closed.as_fd()));
    fds.extend(upper.map(|upper| ("upper", upper.as_fd())));
    let spec = FsSpec { key, config: &config, user_namespace: outer.user_namespace.as_fd(), fds: &fds };
    connect_or_spawn(&outer.places(), &spec)
}

fn shows_what_the_archives_hold(outer: &Outer) {
    let image = image(outer, "shown");
    let connection = connect(outer, &image, "shown", View::Chain { ids: outer.ids }, None);
    let view = clone_view(&connection);
    inside_with(&outer.user_namespace, [], |[]| {
        let mounted = mounted_at(&view, &image.work.join("L2"));
        let expected = shell(outer, PICTURE, &image.work.join("T"));
        assert!(expected.lines().count() > 300);
        // Twice: cold, then from the kernel's caches.
        for _ in 0..2 {
            assert_same(outer, &shell(outer, PICTURE, &mounted), &expected);
        }
        let capable = File::open(mounted.join("etc/empty")).unwrap();
        assert_eq!(xattr::get(&capable, c"security.capability").unwrap().as_deref(), Some(&CAPABILITY[..]));
        assert_eq!(xattr::get(&capable, c"user.note").unwrap().as_deref(), Some(&b"value"[..]));
        assert_eq!(xattr::get(&capable, c"user.other").unwrap(), None);
    });
}

/// Attaches a detached mount; a path that needs no right on the way there.
pub fn mounted_at(mount: &OwnedFd, target: &Path) -> PathBuf {
    let target = File::open(target).unwrap();
    sys::mount::attach(mount.as_fd(), target.as_fd()).unwrap();
    PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()))
}

/// What a container does to a tree: every way of change, none on files with several names (overlayfs parts those).
const CHANGE: &str = r#"
set -e; umask 022
id() { if [ "$IDS" -gt 1 ]; then chown -h "$1" "$2"; else chown -h 0:0 "$2"; fi; }
echo more >> etc/conf.d/a; chmod 640 big/tiny; id 5:6 big/bound; id 5:6 srv/dangling; mv srv/link srv/moved; mv big/over big/renamed
touch -d '2019-01-01' etc/empty; truncate -s 10 big/random; printf x | dd of=big/holes bs=1 seek=4000000 conv=notrunc status=none
rm -r gone; mkdir gone; echo again > gone/again; rm usr/none; mkfifo usr/none; mkdir -p made/dir; echo z > made/dir/z; id 40:40 made/dir/z
rm -r covered; ln etc/conf.d/b links/b2; rm srv/pipe; ln -s target srv/pipe; rm -r turned; : > turned; chmod -R o-r var
chown : usr/setid
"#;

fn below_overlayfs(outer: &Outer) {
    let image = image(outer, "below");
    let connection = connect(outer, &image, "below", View::Chain { ids: outer.ids }, None);
    let view = clone_view(&connection);
    let snaps = outer.scratch.path().join("snaps");
    let maps = (&outer.identity(), &outer.identity());
    let places =
        native::prepare(Driver::Overlay, (&snaps, "below"), maps, Outer::container_root(), None, false).unwrap();
    inside_with(&outer.user_namespace, [&places.upper, &places.work], |[upper, work]| {
        let picture = PICTURE.replace("%G %n %T@\\n", "%G %T@\\n").replace("find . !", "find . -mindepth 1 !");
        let lower = mounted_at(&view, &image.work.join("L2"));
        let merged = overlay(&lower, &upper, &work);
        let merged = mounted_at(&merged, &image.work.join("L2"));
        let oracle = image.work.join("T");
        assert_same(outer, &shell(outer, &picture, &merged), &shell(outer, &picture, &oracle));
        for tree in [&merged, &oracle] {
            shell(outer, CHANGE, tree);
            // Times of what was made or changed just now.
            shell(outer, "find . -newermt '2022-01-01' -exec touch -h -d '2023-01-01' {} +", tree);
        }
        assert_same(outer, &shell(outer, &picture, &merged), &shell(outer, &picture, &oracle));
        // One device for all, so that `du -x` and `find -xdev` see all of it.
        let devices = shell(outer, "find . -xdev -printf '%D\\n' | sort -u | wc -l; find . | wc -l", &merged);
        let seen = shell(outer, "echo 1; find . -xdev | wc -l", &merged);
        assert_eq!(devices, seen);
        // Listings go on where they stopped, over whiteouts and names of both layers.
        shell(
            outer,
            "set -e; cd usr/share; n=$(ls | wc -l); for f in *; do rm -r \"$f\"; done; test $n -gt 5; test -z \"$(ls)\"",
            &merged,
        );
    });
    owner_client::reclaim(outer.user_namespace.as_fd(), places.upper.parent().unwrap()).unwrap();
    let meta = snapshot::meta(&snaps, "below").unwrap().unwrap();
    let truth = Truth::read(&snaps.join("below"), &meta, None).unwrap();
    let index = index::Index::open(File::open(&image.chain).unwrap()).unwrap();
    let lower = ChainLower { index: &index, ids: outer.ids, objects: None };
    let changes = native::changes(&places.upper, &lower, &truth, &|_| false).unwrap();
    let (share, changes): (Vec<_>, Vec<_>) =
        changes.into_iter().partition(|change| change.path.starts_with("/usr/share"));
    assert!(share.len() > 5 && share[1..].iter().all(|change| change.kind == ChangeKind::Deleted), "{share:?}");
    assert_eq!(in_words(&changes), expected_changes(outer));
    snapshot::remove(&snaps, "below", None).unwrap();
}

fn in_words(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|change| format!("{:?} {}", change.kind, change.path.display())).collect()
}

/// What [`CHANGE`] and the new times of all recent files change, by Docker's rules: what was copied up or linked and looks
/// as before is not in it.
fn expected_changes(outer: &Outer) -> Vec<String> {
    let list = "Changed /big, Changed /big/bound, Changed /big/holes, Deleted /big/over, Changed /big/random, \
        Added /big/renamed, Changed /big/tiny, Deleted /covered, Changed /etc, Changed /etc/conf.d, \
        Changed /etc/conf.d/a, Changed /etc/conf.d/b, Changed /etc/empty, Changed /gone, Added /gone/again, Deleted /gone/file, \
        Changed /links, Added /links/b2, Added /made, Added /made/dir, Added /made/dir/z, Changed /new, Changed /new/file, Changed /srv, \
        Changed /srv/dangling, Deleted /srv/link, Added /srv/moved, Changed /srv/pipe, Changed /turned, Changed /usr, \
        Changed /usr/none, Changed /usr/setid, Changed /var, Changed /var/lib";
    // With one id an owner cannot change.
    let same = |line: &str| outer.ids.uids == 1 && (line.ends_with("/bound") || line.ends_with("/dangling"));
    list.split(", ").filter(|line| !same(line)).map(str::to_owned).collect()
}

/// The driver `fuse`: the same changes on our own overlay, which a second server finds again.
fn is_written_and_found_again(outer: &Outer) {
    let image = image(outer, "own");
    let snaps = outer.scratch.path().join("snaps");
    let upper =
        File::from(snapshot::own::prepare(&snaps, "own", (&outer.identity(), &outer.identity()), false).unwrap());
    let marker = snaps.join("own/upper/volatile");
    let view = View::Overlay { ids: outer.ids, volatile: true, shifted: false, size_bytes: None };
    let index = || index::Index::open(File::open(&image.chain).unwrap()).unwrap();
    let changes = || snapshot::own::changes(&snaps, "own", index(), &|_| false).unwrap();
    assert_eq!(in_words(&changes()), Vec::<String>::new());
    let oracle = image.work.join("T");
    // The root directory has no changes in it and its own time is that of the last one.
    let picture = PICTURE.replace("find . !", "find . -mindepth 1 !");
    for round in 0..2 {
        let connection = connect(outer, &image, "own", view.clone(), Some(&upper));
        let view = clone_view(&connection);
        inside_with(&outer.user_namespace, [], |[]| {
            let mounted = mounted_at(&view, &image.work.join("L2"));
            assert_same(outer, &shell(outer, &picture, &mounted), &shell(outer, &picture, &oracle));
            if round == 0 {
                for tree in [&mounted, &oracle] {
                    shell(outer, CHANGE, tree);
                    shell(outer, "find . -newermt '2022-01-01' -exec touch -h -d '2023-01-01' {} +", tree);
                }
                assert_same(outer, &shell(outer, &picture, &mounted), &shell(outer, &picture, &oracle));
            }
        });
        assert!(marker.exists());
        // While its server runs, and after.
        assert_eq!(in_words(&changes()), expected_changes(outer));
        drop((view, connection));
        until("the server's end", 5, || pid_of_server("own").is_none());
        assert!(!marker.exists(), "the upper was closed");
        assert_eq!(in_words(&changes()), expected_changes(outer));
    }
    snapshot::remove(&snaps, "own", None).unwrap();
}

/// `kill -9` of server and keeper of a durable overlay: its users get errors, the next server has all that was acknowledged.
fn keeps_what_was_written_before_a_kill(outer: &Outer) {
    let image = image(outer, "killed-own");
    let snaps = outer.scratch.path().join("snaps");
    let key = "killed-own";
    let upper = File::from(snapshot::own::prepare(&snaps, key, (&outer.identity(), &outer.identity()), false).unwrap());
    let view = View::Overlay { ids: outer.ids, volatile: false, shifted: false, size_bytes: None };
    let connection = connect(outer, &image, key, view.clone(), Some(&upper));
    let mount = clone_view(&connection);
    inside_with(&outer.user_namespace, [], |[]| {
        let mounted = mounted_at(&mount, &image.work.join("L2"));
        let script = "set -e; for i in $(seq 200); do echo $i >made$i; done; sync made1; echo more >>etc/conf.d/a; \
            dd if=/dev/zero of=large bs=1M count=3 conv=fsync status=none; mv made2 moved; rm made3; mkdir -p d/e; chmod 2750 d";
        shell(outer, script, &mounted);
    });
    kill_role(key);
    inside(&connection.user_namespace, Some(&connection.mount_namespace), || {
        let errno = std::fs::write("/after", "x").unwrap_err().raw_os_error();
        assert!(matches!(errno, Some(nix::libc::ENOTCONN | nix::libc::ECONNABORTED)), "{errno:?}");
    });
    drop((mount, connection));
    // What a torn last record looks like: it is cut off, and whoever starts the server is told.
    let mut log = File::options().append(true).open(snaps.join(key).join("upper/log.1")).unwrap();
    log.write_all(b"torn").unwrap();
    let (terminal, told) = (std::io::stderr().as_fd().try_clone_to_owned().unwrap(), tempfile::tempfile().unwrap());
    sys::process::place(told.as_fd(), 2).unwrap();
    let connection = connect(outer, &image, key, view, Some(&upper));
    sys::process::place(terminal.as_fd(), 2).unwrap();
    let mut text = [0; 512];
    let length = told.read_at(&mut text, 0).unwrap();
    let text = String::from_utf8_lossy(&text[..length]);
    assert!(text.starts_with("warning: the last 4 bytes of the log") && text.lines().count() == 1, "{text}");
    let mount = clone_view(&connection);
    inside_with(&outer.user_namespace, [], |[]| {
        let mounted = mounted_at(&mount, &image.work.join("L2"));
        let script = "cat made1 moved made4 made200; ls | grep -c '^made'; tail -n 1 etc/conf.d/a; stat -c %s large; \
            stat -c '%a %F' d d/e; ls made2 made3 after 2>/dev/null || echo gone";
        let expected = "1\n2\n4\n200\n198\nmore\n3145728\n2750 directory\n755 directory\ngone\n";
        assert_eq!(shell(outer, script, &mounted), expected);
    });
    drop((mount, connection));
    until("the server's end", 5, || pid_of_server(key).is_none());
    assert_ours(&snaps.join(key));
    snapshot::remove(&snaps, key, None).unwrap();
}

/// One that finds another at work waits for its end, which does not come, and says who has it.
fn an_upper_has_one_server(outer: &Outer) {
    let image = image(outer, "twice");
    let snaps = outer.scratch.path().join("snaps");
    let maps = (&outer.identity(), &outer.identity());
    let upper = File::from(snapshot::own::prepare(&snaps, "twice", maps, false).unwrap());
    let view = View::Overlay { ids: outer.ids, volatile: false, shifted: false, size_bytes: None };
    let first = connect(outer, &image, "twice", view.clone(), Some(&upper));
    let refused = try_connect(outer, &image, "twice-again", view, Some(&upper)).unwrap_err();
    assert!(refused.to_string().contains("which another server has"), "{refused}");
    let mount = clone_view(&first);
    inside_with(&outer.user_namespace, [], |[]| {
        let mounted = mounted_at(&mount, &image.work.join("L2"));
        assert_eq!(shell(outer, "echo x >made; cat made", &mounted), "x\n");
    });
    drop((mount, first));
    until("the server's end", 5, || pid_of_server("twice").is_none());
    snapshot::remove(&snaps, "twice", None).unwrap();
}

/// Files of the tree that is walked, and how much more memory of their own the servers may have afterwards, in KiB: the four
/// bytes of each file's lookup count, and what the threads' first requests need.
const WALKED: u32 = 20_000;
const WALK_KIB: u64 = 512;

fn walk_costs_no_memory(outer: &Outer) {
    let work = work_of(outer, "walked");
    let script = format!(
        "mkdir -p T L2; for d in $(seq 40); do mkdir T/d$d; (cd T/d$d; seq -f file-%g {} | xargs touch); done; tar -C T -cf base.tar .",
        WALKED / 40
    );
    inside(&outer.user_namespace, None, || drop(shell(outer, &script, &work)));
    let image = stored(outer, "walked", work, &["base.tar"]);
    let snaps = outer.scratch.path().join("snaps");
    let maps = (&outer.identity(), &outer.identity());
    let upper = File::from(snapshot::own::prepare(&snaps, "walked-own", maps, true).unwrap());
    let own = View::Overlay { ids: outer.ids, volatile: true, shifted: false, size_bytes: None };
    for (key, view, upper) in [("walked", View::Chain { ids: outer.ids }, None), ("walked-own", own, Some(&upper))] {
        let connection = connect(outer, &image, key, view, upper);
        let mount = clone_view(&connection);
        let memory = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", pid_of_server(key).unwrap())).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = memory();
        inside_with(&outer.user_namespace, [], |[]| {
            let mounted = mounted_at(&mount, &image.work.join("L2"));
            let count = shell(outer, "find . -type f -size -1 -name 'file-*' | wc -l", &mounted);
            assert_eq!(count.trim().parse(), Ok(WALKED));
        });
        let more = memory().saturating_sub(before);
        println!("  {key}: {more} KiB more after {WALKED} files");
        assert!(more <= WALK_KIB, "{key}: {more} KiB more after {WALKED} files");
        drop((mount, connection));
        until("the server's end", 5, || pid_of_server(key).is_none());
    }
    snapshot::remove(&snaps, "walked-own", None).unwrap();
}

/// What the kernel says about a server of each kind. That each can do its work under it the other tests show.
fn are_confined(outer: &Outer) {
    let image = image(outer, "confined");
    let snaps = outer.scratch.path().join("snaps");
    let maps = (&outer.identity(), &outer.identity());
    let upper = File::from(snapshot::own::prepare(&snaps, "confined", maps, false).unwrap());
    let own = View::Overlay { ids: outer.ids, volatile: true, shifted: false, size_bytes: None };
    let host = View::Host(snapshot::view_host::HostViewConfig::new(outer.ids, false, &[]));
    for (key, view, upper) in [
        ("confined-image", View::Chain { ids: outer.ids }, None),
        ("confined-own", own, Some(&upper)),
        ("confined-host", host, None),
    ] {
        let connection = connect(outer, &image, key, view, upper);
        let pid = pid_of_server(key).unwrap();
        let tasks: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap()).collect();
        assert!(tasks.len() >= 3, "{key}: one that waits, and two that serve");
        for task in tasks {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap();
            for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
                assert!(status.contains(line), "{key}: {line} in {status}");
            }
        }
        // The files of a process that is not dumpable are the real root's.
        assert_eq!(std::fs::metadata(format!("/proc/{pid}/status")).unwrap().uid(), 0, "{key} can be inspected");
        // The keeper makes servers, so no filter can hold it; it speaks with clients of ours alone.
        let keeper = keeper_of(key).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{keeper}/status")).unwrap();
        for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"] {
            assert!(status.contains(line), "{key}: {line} in {status}");
        }
        assert_eq!(std::fs::metadata(format!("/proc/{keeper}/status")).unwrap().uid(), 0, "{key} can be inspected");
        drop(connection);
        until("the server's end", 5, || pid_of_server(key).is_none());
    }
    snapshot::remove(&snaps, "confined", None).unwrap();
}
