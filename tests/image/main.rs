//! Images: pulled from a real registry, seen with true owners under every identity, kept in files of the caller.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod list;
mod remove;

use std::fs;
use std::sync::{Mutex, OnceLock};
use support::{Done, Home, Need, busybox, debian, finish, identity, registry};

/// One home with the Debian image for all tests of this binary: pulling it again would only cost time. The last user
/// removes it.
fn with_debian(test: impl FnOnce(&Home)) {
    static HOME: OnceLock<Mutex<()>> = OnceLock::new();
    let _one_at_a_time = HOME.get_or_init(Mutex::default).lock();
    let Some(home) = Home::new(&[Need::Registry, Need::Debian]) else { return };
    let done: Done = finish(&mut home.command(&["pull", &debian()]), b"", std::time::Duration::from_mins(3));
    assert_eq!(done.code, 0, "{done:#?}");
    test(&home);
}

/// What one id can show of an owner: itself (docs/architecture.md, ladder of ids). The index keeps the truth.
fn shown(owner: &str) -> &str {
    if identity() == "one-id" { "0 0" } else { owner }
}

#[test]
fn debian_runs_with_its_true_owners() {
    with_debian(|home| {
        let script = "cat /etc/os-release; id; stat -c \"%u %g\" /etc/shadow; touch /x && rm /x";
        let seen = home.ok(&["run", "--rm", &debian(), "sh", "-c", script]);
        assert!(seen.contains("VERSION_CODENAME=") && seen.contains("uid=0(root) gid=0(root)"), "{seen}");
        assert!(seen.ends_with(&format!("\n{}\n", shown("0 42"))), "{seen}");
        let owners =
            "stat -c '%u %g %a %n' /etc/sublet-fixture /var/lib/sublet /var/lib/sublet/link /tmp; ls /etc/issue.net";
        let done = home.run(&["run", "--rm", &debian(), "sh", "-c", owners]);
        let (file, directory) = (shown("33 42"), shown("1234 5678"));
        let expected = format!(
            "{file} 640 /etc/sublet-fixture\n{directory} 2775 /var/lib/sublet\n{file} 640 /var/lib/sublet/link\n0 0 1777 /tmp\n"
        );
        assert_eq!(done.stdout, expected, "{done:#?}");
        home.assert_store_is_ours();
    });
}

#[test]
fn packages_are_installed_from_the_hosts_mirror() {
    if let Err(reason) = support::mirror() {
        return support::skip(reason);
    }
    // apt changes to a user of its own, which one id cannot.
    let apt = if identity() == "one-id" { "apt-get -qq -o APT::Sandbox::User=root" } else { "apt-get -qq" };
    with_debian(|home| {
        let script = format!("{apt} update && {apt} install -y curl >/dev/null 2>&1 && curl --version | head -n 1");
        let image = debian();
        let mut command = home.command(&["run", "--rm"]);
        command.args(home.limits(&image)).args([&image, "sh", "-c", &script]);
        let done = finish(&mut command, b"", std::time::Duration::from_mins(4));
        assert!(done.code == 0 && done.stdout.starts_with("curl "), "{done:#?}");
    });
}

const TREE: &str = "find / -xdev \\( -path /proc -o -path /sys -o -path /dev \\) -prune -o -print | grep -v -e '^/bin/' \
                    -e '^/etc/hosts$' -e '^/etc/hostname$' -e '^/etc/resolv.conf$' -e '^/run' | sort | xargs stat -c '%n %u %g %a %F'";

#[test]
fn the_small_image_is_the_one_that_was_pushed() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let expected = "\
/ 0 0 755 directory
/bin 0 0 755 directory
/dev 0 0 755 directory
/etc 0 0 755 directory
/etc/group 0 0 644 regular file
/etc/mtab 0 0 777 symbolic link
/etc/passwd 0 0 644 regular file
/etc/replaced 0 0 600 regular file
/etc/shadow 0 42 640 regular file
/proc 0 0 755 directory
/root 0 0 755 directory
/sys 0 0 755 directory
/tmp 0 0 1777 directory
/var 0 0 755 directory
/var/opaque 0 0 755 directory
/var/opaque/above 0 0 644 regular file
/var/owned 1234 5678 2775 directory
/var/owned/again 1234 5678 4750 regular file
/var/owned/file 1234 5678 4750 regular file
/var/www 0 0 755 directory
/var/www/index.html 0 0 644 regular file
";
    let seen = home.sh(&[], TREE);
    let wanted = |line: &&str| !["/dev ", "/proc ", "/sys "].iter().any(|mount| line.starts_with(mount));
    let pick = |text: &str| text.lines().filter(wanted).map(str::to_owned).collect::<Vec<_>>();
    let expected = expected.replace(" 0 42 ", &format!(" {} ", shown("0 42")));
    let expected = expected.replace(" 1234 5678 ", &format!(" {} ", shown("1234 5678")));
    assert_eq!(pick(&seen), pick(&expected));
    assert_eq!(home.sh(&[], "cat /etc/replaced /var/owned/again; stat -c %h /var/owned/file"), "second\nowned\n2\n");
}

#[test]
fn a_second_pull_finds_everything_there() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let seen = home.ok(&["pull", &busybox()]);
    assert!(seen.contains("Status: Image is up to date for") && seen.contains("Digest: sha256:"), "{seen}");
    assert_eq!(seen.lines().last().unwrap_or_default(), format!("{}:latest", busybox()));
}

#[test]
fn an_image_is_named_by_its_digest_and_by_localhost() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let pulled = home.ok(&["pull", &busybox().replace("127.0.0.1", "localhost")]);
    let digest = pulled.lines().find_map(|line| line.strip_prefix("Digest: ")).unwrap().to_owned();
    let name = format!("{}@{digest}", busybox());
    assert_eq!(home.ok(&["run", "--rm", &name, "echo", "same"]), "same\n");
}

#[test]
fn run_pulls_what_is_not_there() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let done = home.run(&["run", "--rm", &busybox(), "echo", "pulled"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "pulled\n"), "{done:#?}");
    assert!(done.stderr.contains(&format!("Unable to find image '{}:latest' locally", busybox())), "{done:#?}");
}

#[test]
fn two_pulls_at_once_share_the_work_and_both_succeed() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let both = [(), ()].map(|()| support::start(&mut home.command(&["pull", &busybox()])));
    for child in both {
        let done = support::end(child, support::LIMIT);
        assert_eq!(done.code, 0, "{done:#?}");
    }
    assert_eq!(home.sh(&[], "cat /etc/replaced"), "second\n");
}

#[test]
fn the_store_holds_files_of_the_caller_only() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&[
        "run",
        "--name",
        "writer",
        &busybox(),
        "sh",
        "-c",
        "mkdir -p /data/a; echo x >/data/a/b; chown -R 0:0 /data; chown 1234:5678 /data/a/b || true",
    ]);
    support::eventually("the role that returns foreign ids is through", || {
        let mut foreign = false;
        let uid = nix::unistd::getuid().as_raw();
        support::each_file(&home.store(), &mut |_, metadata| {
            foreign |= std::os::unix::fs::MetadataExt::uid(metadata) != uid;
        });
        !foreign
    });
    home.assert_store_is_ours();
    assert!(!registry().is_empty());
}

/// A data directory on a network file system is that of several machines, and so are its images.
#[test]
fn an_image_is_in_use_by_containers_of_every_machine() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "--name", "here", &busybox(), "true"]);
    let id = home.inspect("here", "{{.Id}}");
    let hosts = home.store().join("hosts");
    let here = fs::read_dir(&hosts).unwrap().next().unwrap().unwrap().path().join("containers").join(&id);
    let there = hosts.join("0123456789abcdef0123456789abcdef/containers").join("7".repeat(64));
    fs::create_dir_all(&there).unwrap();
    fs::copy(here.join("config.json"), there.join("config.json")).unwrap();
    home.ok(&["rm", "here"]);
    assert!(home.containers().is_empty(), "containers of other machines are not listed");

    fs::write(there.join("state.json"), r#"{"format":1,"status":"running","pid":1}"#).unwrap();
    let said = home.fails(1, &["rmi", "-f", &busybox()]);
    let words =
        "(cannot be forced) - image is being used by running container 777777777777 of the machine 0123456789abcdef";
    assert!(said.contains(words) && said.contains("hint: "), "{said}");
    fs::write(there.join("state.json"), r#"{"format":1,"status":"exited","exit_code":0}"#).unwrap();
    let said = home.fails(1, &["rmi", &busybox()]);
    assert!(said.contains("(must be forced)"), "{said}");

    let kept = || {
        let mut files = 0;
        let objects = home.store().join("store/objects");
        support::each_file(&objects, &mut |_, metadata| files += u32::from(metadata.is_file()));
        files
    };
    let before = kept();
    home.ok(&["rmi", "-f", &busybox()]);
    assert!(before > 0 && kept() == before, "the sweep keeps what the other machine's container needs");
    fs::remove_dir_all(hosts.join("0123456789abcdef0123456789abcdef")).unwrap();
    home.ok(&["pull", &busybox()]);
    home.ok(&["rmi", &busybox()]);
    assert_eq!(kept(), 0);
}

/// As everywhere, a name goes before the beginning of an id.
#[test]
fn a_name_that_is_the_beginning_of_its_images_id_is_a_name() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let id = home.ok(&["images", "-q", "--no-trunc"]);
    let name = id.trim_end().trim_start_matches("sha256:")[..5].to_owned();
    home.ok(&["tag", &busybox(), &name]);
    let archive = home.path("named.tar").display().to_string();
    home.ok(&["save", "-o", &archive, &name]);
    assert_eq!(home.ok(&["rmi", &name]), format!("Untagged: {name}:latest\n"));
    assert_eq!(home.ok(&["images", "-q", "--no-trunc"]), id);
    assert_eq!(home.ok(&["load", "-q", "-i", &archive]), format!("Loaded image: {name}:latest\n"));
}
