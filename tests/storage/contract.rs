//! What a container may rely on, whichever driver it has.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{DRIVERS, Home, Need, busybox, debian, df, each_file, eventually, parent_of};

/// Runs a script in a container of the small image with this driver that is kept under the driver's name.
fn kept(home: &Home, driver: &str, script: &str) -> String {
    let image = busybox();
    let options = ["run", "--name", driver, "--network", "none", "--storage-driver", driver];
    home.ok(&[&options[..], &[&image, "sh", "-c", script]].concat())
}

#[test]
fn owners_are_true_and_can_be_changed() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    let script = "stat -c '%u %g %a' /var/owned/file; echo x >>/var/owned/file; stat -c '%u %g %a %s' /var/owned/file; \
                  chown -R 33:44 /var/owned; stat -c '%u %g %a' /var/owned /var/owned/again; echo mine >/m; chown 65534 /m; \
                  stat -c '%u %g' /m; mknod /p p; chown 7:8 /p; stat -c '%F %u %g' /p; ln -s x /l; chown -h 9:9 /l; \
                  stat -c '%F %u' /l; mknod /dev0 c 1 3 2>/dev/null || echo refused";
    // Writing takes the set-id bit, by the container's root too: it has no right over the host.
    let expected =
        "1234 5678 4750\n1234 5678 750 8\n33 44 2775\n33 44 750\n65534 0\nfifo 7 8\nsymbolic link 9\nrefused\n";
    for driver in DRIVERS {
        assert_eq!(kept(&home, driver, script), expected, "{driver}");
    }
}

#[test]
fn nothing_is_anybody_elses_and_plain_removal_works() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "mkdir -p /data/shut; echo x >/data/shut/f; chmod 0 /data/shut/f; chmod 0 /data/shut; chmod 555 /data; \
                  echo y >/set; chmod 6755 /set; chown -R 33:33 /set /data 2>/dev/null; echo done; rm -r /var/www; sleep 1000";
    for driver in DRIVERS {
        let options = ["run", "-d", "--name", driver, "--network", "none", "--storage-driver", driver];
        home.ok(&[&options[..], &[&busybox(), "sh", "-c", script]].concat());
        eventually("the payload has written", || home.ok(&["logs", driver]) == "done\n");
        if driver == "fuse" {
            home.assert_store_is_ours();
        }
        home.ok(&["kill", driver]);
        home.ok(&["wait", driver]);
        eventually("the files are given back", || home.foreign_files() == 0);
        home.assert_store_is_ours();
    }
    // As a user who has had enough of it does: not with our help, and with containers in it.
    let removed = Command::new("rm").arg("-rf").arg(home.store()).status().unwrap();
    assert!(removed.success() && !home.store().exists());
}

#[test]
fn removal_leaves_nothing_of_a_container() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let files = || {
        let mut files: Vec<PathBuf> = Vec::new();
        for place in [home.store().join("hosts"), home.directory.join("run/sublet")] {
            each_file(&place, &mut |path, _| files.push(path.to_owned()));
        }
        files.sort();
        files
    };
    // Makes what outlives a container: directories, the image's server and its tree, the mark that overlayfs works.
    for driver in DRIVERS {
        kept(&home, driver, "true");
        home.ok(&["rm", driver]);
    }
    let id = home.ok(&["run", "--rm", "-d", "--network", "none", &busybox(), "sleep", "100"]);
    home.ok(&["kill", id.trim()]);
    // Lists do not show it from the first moment of its removal on; its directory goes last.
    eventually("it is removed", || {
        home.containers().is_empty() && !files().iter().any(|path| path.to_string_lossy().contains("/.gone-"))
    });
    let before = files();
    for driver in DRIVERS {
        kept(&home, driver, "echo x >/x; mkdir /d; rm -r /var/www");
        home.ok(&["rm", driver]);
        assert_eq!(files(), before, "{driver}");
        home.sh(&["--storage-driver", driver, "--network", "none"], "echo x >/x");
        eventually("--rm has removed all", || files() == before);
    }
}

#[test]
fn what_is_written_is_kept_counted_and_taken_out() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "echo line >>/kept; rm -rf /var/www; dd if=/dev/zero of=/big bs=64k count=16 2>/dev/null; cat /kept";
    for driver in DRIVERS {
        let before = df(&home, "Containers", "SizeBytes");
        assert_eq!(kept(&home, driver, script), "line\n", "{driver}");
        let size = df(&home, "Containers", "SizeBytes");
        assert!(size >= before + (1 << 20), "{driver}: {before} {size}");
        assert_eq!(home.ok(&["start", "-a", driver]), "line\nline\n", "{driver}");
        // In and out while it does not run.
        let (file, place) = (home.path("file"), format!("{driver}:/kept"));
        home.ok(&["cp", &place, file.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(&file).unwrap(), "line\nline\n", "{driver}");
        fs::write(&file, "mine\n").unwrap();
        home.ok(&["cp", file.to_str().unwrap(), &place]);
        assert_eq!(home.ok(&["start", "-a", driver]), "mine\nline\n", "{driver}");
        let archive = home.path("export.tar");
        home.ok(&["export", "-o", archive.to_str().unwrap(), driver]);
        let listed = Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.contains("\nkept\n") && listed.contains("bin/busybox\n"), "{driver}: {listed}");
        assert!(!listed.contains("var/www"), "{driver}: {listed}");
        let image = format!("of-{driver}");
        home.ok(&["commit", driver, &image]);
        for other in DRIVERS {
            let options = ["run", "--rm", "--network", "none", "--storage-driver", other, image.as_str()];
            let seen =
                home.ok(&[&options[..], &["sh", "-c", "cat /kept; ls /var/www 2>/dev/null; ls /bin/sh"]].concat());
            assert_eq!(seen, "mine\nline\n/bin/sh\n", "{driver}, then {other}");
        }
        home.ok(&["rm", driver]);
    }
    home.assert_store_is_ours();
}

/// Two run over one image, and each sees the owners of the image until its own end.
#[test]
fn containers_share_an_image_to_the_end_of_the_last() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    for driver in DRIVERS {
        let run = |name: &str| {
            let options = ["run", "-d", "--name", name, "--network", "none", "--storage-driver", driver];
            home.ok(&[&options[..], &[&busybox(), "sleep", "1000"]].concat());
        };
        let owner = |name: &str| home.ok(&["exec", name, "stat", "-c", "%u %g %a", "/var/owned/file"]);
        run("one");
        run("two");
        assert_eq!(owner("one"), "1234 5678 4750\n", "{driver}");
        home.ok(&["rm", "-f", "one"]);
        assert_eq!(owner("two"), "1234 5678 4750\n", "{driver}");
        run("three");
        home.ok(&["rm", "-f", "two"]);
        assert_eq!(owner("three"), "1234 5678 4750\n", "{driver}");
        // Its monitor too, so that the next command has to tidy up.
        let pid = home.inspect("three", "{{.State.Pid}}").parse().unwrap();
        kill(Pid::from_raw(parent_of(pid)), Signal::SIGKILL).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually("its end is seen", || home.inspect("three", "{{.State.Status}}") == "exited");
        home.ok(&["rm", "three"]);
        home.assert_store_is_ours();
    }
}

#[test]
fn the_tree_of_an_image_goes_with_it() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    kept(&home, "tree", "true");
    let count = || {
        let mut trees = 0;
        each_file(&home.store(), &mut |path, _| trees += u32::from(path.ends_with("tree/bin/busybox")));
        trees
    };
    assert_eq!(count(), 1);
    home.ok(&["rm", "tree"]);
    assert_eq!(count(), 1, "the next container needs no new one");
    home.ok(&["rmi", &busybox()]);
    assert_eq!(count(), 0);
}

#[test]
fn the_root_directory_can_be_read_only() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for driver in DRIVERS {
        let seen = home.sh(
            &["--storage-driver", driver, "--read-only"],
            "touch /x 2>/dev/null || echo refused; cat /etc/replaced",
        );
        assert_eq!(seen, "refused\nsecond\n", "{driver}");
    }
}

#[test]
fn ids_can_be_arranged_in_any_way() {
    let Some(home) = Home::with_busybox(&[Need::PlainUser, Need::Subids]) else { return };
    let me = nix::unistd::getuid();
    for driver in DRIVERS {
        let script = "id -u; stat -c '%u %g' /var/owned/file; echo x >/tmp/f; stat -c %u /tmp/f; touch /f 2>/dev/null || echo refused";
        let seen = home.sh(&["--storage-driver", driver, "--userns", "keep-id"], script);
        assert_eq!(seen, format!("{me}\n1234 5678\n{me}\nrefused\n"), "{driver}");
        let owner = home.sh(
            &["--storage-driver", driver, "--userns", "keep-id", "-u", "0"],
            "chown 33 /var/owned/file; stat -c %u /var/owned/file",
        );
        assert_eq!(owner, "33\n", "{driver}");
        let seen = home.sh(&["--storage-driver", driver, "--userns", "single"], "id -u; echo x >/f; stat -c %u /f");
        assert_eq!(seen, "0\n0\n", "{driver}");
    }
}

/// System calls that no small program makes, by perl's `syscall`: a write through a shared mapping, a file without a name,
/// a capability, a hole, an exchange of names. Numbers of x86_64.
const CALLS: &str = r#"
use strict; use Errno;
my ($mapped, $capable, $dir, $cap_name, $note, $text) =
    ('/var/lib/mapped', '/var/lib/capable', '/var/lib', 'security.capability', 'user.note', 'text');
my ($f, $in, $r); my $got = "\0" x 64;
open($f, '>', $mapped); print $f 'a' x 9000; close $f;
open($f, '+<', $mapped); open($in, '<', '/etc/sublet-source');
my $at = syscall(9, 0, 9000, 3, 1, fileno($f), 0); die "mmap: $!" if $at == -1;
$r = syscall(0, fileno($in), $at + 5000, 4); print "mapped $r ";
syscall(26, $at, 9000, 4) == 0 or die "msync: $!"; syscall(11, $at, 9000);
open($in, '<', $mapped); seek($in, 4998, 0); read($in, my $read, 8); print "$read\n";
my $cap = pack('V5', 0x02000001, 0x2000, 0, 0, 0);
open($f, '>', $capable); print $f 'x'; close $f; chmod 0755, $capable;
$r = syscall(188, $capable, $cap_name, $cap, 20, 0); print "setxattr $r ";
$r = syscall(191, $capable, $cap_name, $got, 64); print "getxattr $r ", unpack('H*', substr($got, 4, 4)), "\n";
open($f, '>>', $capable); print $f 'y'; close $f;
$r = syscall(191, $capable, $cap_name, $got, 64); print "after a write $r\n";
$r = syscall(316, -100, $mapped, -100, $capable, 2); print "exchange $r ", -s $mapped, ' ', -s $capable, "\n";
$r = syscall(188, $mapped, $note, $text, 4, 0); my $n = syscall(191, $mapped, $note, $got, 64);
print "user.note $r $n ", substr($got, 0, 4), "\n";
$r = syscall(2, $dir, 0x410002, 0600); print $r >= 0 ? "O_TMPFILE\n" : "O_TMPFILE: $!\n";
"#;

#[test]
fn rare_calls_do_what_they_do_on_a_disk() {
    let Some(home) = Home::new(&[Need::Registry, Need::Debian]) else { return };
    if !cfg!(target_arch = "x86_64") {
        return crate::support::skip("the numbers of system calls are x86_64's");
    }
    crate::support::finish(&mut home.command(&["pull", &debian()]), b"", std::time::Duration::from_mins(3));
    fs::write(home.path("calls.pl"), CALLS).unwrap();
    let volume = format!("{}:/calls:ro", home.directory.join("home").display());
    for driver in DRIVERS {
        let image = debian();
        let options = ["run", "--rm", "--network", "none", "--storage-driver", driver, "-v", &volume];
        let command = "printf MAPP >/etc/sublet-source && perl /calls/calls.pl && seq 4000 | head -c 16384 >/plain && \
            dd if=/plain of=/direct bs=4096 oflag=direct 2>&1 >/dev/null | grep -v -e records -e copied; \
            dd if=/direct bs=8192 iflag=direct 2>/dev/null | cmp - /plain && echo O_DIRECT";
        let done = home.run(&[&options[..], &[&image, "sh", "-c", command]].concat());
        let expected = "mapped 4 aaMAPPaa\nsetxattr 0 getxattr 20 00200000\nafter a write -1\nexchange 0 2 9000\n\
                        user.note 0 4 text\nO_TMPFILE\nO_DIRECT\n";
        assert_eq!((done.code, done.stdout.as_str()), (0, expected), "{driver}: {done:#?}");
    }
}
