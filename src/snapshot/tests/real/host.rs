//! The `host:` view against the host itself, and the life of its server.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use snapshot::fs_client::{FsConnection, FsSpec, connect_or_spawn, try_connect};
use snapshot::fs_role::{FsConfig, View};
use snapshot::host_closed;
use snapshot::view_host::HostViewConfig;

use crate::Test;
use crate::support::{Outer, exists, inside, kill_role, lines, pid_of_server, until};

pub const TESTS: &[Test] = &[
    ("host_view_shows_the_host", shows_the_host),
    ("host_view_hides_what_is_private", hides_what_is_private),
    ("fs_role_lives_as_long_as_its_users", lives_as_long_as_its_users),
    ("fs_role_is_replaced_after_kill", is_replaced_after_kill),
];

fn connect(outer: &Outer, key: &str) -> FsConnection {
    let private = [outer.scratch.path()];
    let view = View::Host(HostViewConfig::new(outer.ids, false, &private));
    let config = FsConfig { view, linger_ms: 100, note: String::new() };
    let user_namespace = outer.user_namespace.as_fd();
    let closed = outer.closed_list(key);
    let fds = [(host_closed::NAME, closed.as_fd())];
    let spec = FsSpec { key, config: &config, user_namespace, fds: &fds };
    // As in `chain::connect`.
    until("the end of other threads", 5, || std::fs::read_dir("/proc/self/task").unwrap().count() == 1);
    connect_or_spawn(&outer.places(), &spec).unwrap()
}

/// Type, mode, size, link count, modification time and target of everything below a directory.
fn listing(dir: &str) -> Vec<String> {
    let mut all = lines(Command::new("find").args([dir, "-xdev", "-printf", "%P %y %m %s %n %T@ %l\\n"]));
    all.retain(|line| !line.contains(" d "));
    all.sort();
    all
}

fn shows_the_host(outer: &Outer) {
    let tree = "/usr/share/doc";
    let sums = |dir: &str| {
        lines(Command::new("sh").args(["-c", &format!("find {dir} -type f -name c\\* | sort | xargs cat | cksum")]))
    };
    let expected = (listing(tree), sums(tree), listing("/etc/alternatives"));
    assert!(expected.0.len() > 100);
    let owner = std::fs::metadata("/etc/passwd").unwrap();
    let connection = connect(outer, "host-tree");
    inside(&connection.user_namespace, Some(&connection.mount_namespace), || {
        assert_eq!((listing(tree), sums(tree), listing("/etc/alternatives")), expected);
        let shown = std::fs::metadata("/etc/passwd").unwrap();
        assert_eq!((shown.uid(), shown.len(), shown.mtime_nsec()), (0, owner.len(), owner.mtime_nsec()));
        // Devices, and everything else in hidden places, are not there.
        assert!(!exists("/dev/null"));
        let shadow = std::fs::read("/etc/shadow");
        if std::env::var_os("HOME").is_some_and(|home| home != "/root") {
            assert_eq!(shadow.unwrap_err().raw_os_error(), Some(nix::libc::EACCES));
        }
        assert_eq!(std::fs::write("/etc/new", "x").unwrap_err().raw_os_error(), Some(nix::libc::EROFS));
    });
}

fn hides_what_is_private(outer: &Outer) {
    let scratch = outer.scratch.path().to_owned();
    let connection = connect(outer, "host-private");
    inside(&connection.user_namespace, Some(&connection.mount_namespace), || {
        for dir in ["/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/var/tmp"] {
            assert!(exists(dir), "{dir}");
            assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0, "{dir}");
        }
        for home in std::fs::read_dir("/home").unwrap() {
            assert_eq!(std::fs::read_dir(home.unwrap().path()).unwrap().count(), 0);
        }
        assert!(!exists(scratch));
    });
}

fn lives_as_long_as_its_users(outer: &Outer) {
    let first = connect(outer, "host-life");
    let pid = pid_of_server("host-life").unwrap();
    let second = connect(outer, "host-life");
    assert_eq!(pid_of_server("host-life"), Some(pid));
    drop(first);
    std::thread::sleep(std::time::Duration::from_millis(300));
    inside(&second.user_namespace, Some(&second.mount_namespace), || assert!(exists("/etc/passwd")));
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    drop(second);
    until("the server's end", 5, || pid_of_server("host-life").is_none());
    assert!(try_connect(&outer.places(), "host-life").unwrap().is_none());
}

fn is_replaced_after_kill(outer: &Outer) {
    let first = connect(outer, "host-kill");
    kill_role("host-kill");
    inside(&first.user_namespace, Some(&first.mount_namespace), || {
        let errno = std::fs::read_dir("/etc").unwrap_err().raw_os_error();
        // The second when the request came before the last thread of the server had gone.
        assert!(matches!(errno, Some(nix::libc::ENOTCONN | nix::libc::ECONNABORTED)), "{errno:?}");
    });
    let second = connect(outer, "host-kill");
    inside(&second.user_namespace, Some(&second.mount_namespace), || assert!(exists("/etc/passwd")));
    drop((first, second));
    until("the server's end", 5, || pid_of_server("host-kill").is_none());
}
