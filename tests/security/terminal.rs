//! Typing into the caller's terminal: TIOCSTI and TIOCLINUX (CVE-2017-5226, CVE-2019-10063).
//!
//! `script` gives each line a terminal, as a person has one. After the attack the shell of that terminal reads what is
//! there to be read: with the defence missing, the command that the attack has typed.

use std::process::{Command, Stdio};

use nix::libc::SYS_ioctl;
use serde_json::json;

use crate::attack::{Container, bind_programs, has_perl, programs};
use crate::bundle::Bundle;
use crate::support::{Home, LIMIT, busybox, end, skip, start};

/// Types a line into every terminal that it can reach, by the request's number and by one that only its low half equals;
/// prints each errno.
fn attack() -> String {
    format!(
        "for my $path ('/dev/stdin', '/dev/stdout', '/dev/stderr', '/dev/tty', '/dev/console') {{ \
             open(my $file, '<', $path) or next; \
             for my $request (0x5412, 0x5412 | 1 << 32, 0x541c) {{ \
                 for my $key (split //, \"typed\\n\") {{ \
                     my $byte = $request == 0x541c ? \"\\3$key\" : $key; \
                     print STDOUT '[', syscall({SYS_ioctl}, fileno $file, $request, $byte) ? $! + 0 : 'ok', ']'; \
                 }} \
             }} \
         }}"
    )
}

/// Runs the words on a terminal; all that appeared on it, in the end what its shell could read.
pub fn on_a_terminal(home: &Home, words: &Command) -> String {
    let quote = |word: &std::ffi::OsStr| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''"));
    let words: Vec<String> = std::iter::once(words.get_program()).chain(words.get_args()).map(quote).collect();
    // Without echo, so that what is typed appears only where it is read.
    let line = format!("stty -echo; {}; read -t 1 -r line; echo \"<read:$line>\"", words.join(" "));
    let mut script = Command::new("script");
    script.args(["-qec", &format!("bash -c {}", quote(line.as_ref())), "/dev/null"]);
    home.surround(&mut script);
    // Open to the end: its end would be typed as an end of input.
    script.stdin(Stdio::piped());
    let mut child = start(&mut script);
    let stdin = child.stdin.take();
    let done = end(child, LIMIT);
    drop(stdin);
    assert!(done.stdout.contains("<read:"), "{done:#?}");
    done.stdout.replace('\r', "")
}

/// Whether the attack succeeds on a terminal whose session it belongs to; if not, the skip is noted.
fn succeeds_unconfined(home: &Home) -> bool {
    if !has_perl() {
        return false;
    }
    let mut command = Command::new("/usr/bin/perl");
    command.args(["-e", &attack()]);
    let seen = on_a_terminal(home, &command);
    let legacy = std::fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti").unwrap_or_default();
    if legacy.trim() == "0" && !seen.contains("<read:typed>") {
        skip("this kernel refuses TIOCSTI to everybody (dev.tty.legacy_tiocsti)");
        return false;
    }
    assert!(seen.contains("[ok]") && seen.contains("<read:typed>"), "{seen}");
    true
}

#[track_caller]
fn types_nothing(seen: &str) {
    assert!(seen.contains("<read:>"), "{seen}");
}

#[test]
fn the_engines_containers_type_nothing() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    if !succeeds_unconfined(&home) {
        return;
    }
    let (programs, image, attack) = (programs(), busybox(), attack());
    for options in [&[][..], &["-i"], &["-t"], &["-it"]] {
        let mut command = home.command(&["run", "--rm"]);
        command.args(options).args(&programs).args([&image, "perl", "-e", &attack]);
        let seen = on_a_terminal(&home, &command);
        types_nothing(&seen);
        // Into the terminal that is its own it may.
        assert_eq!(seen.contains("[ok]"), options.iter().any(|option| option.contains('t')), "{options:?}: {seen}");
    }
    let container = Container::engine(&home, &[], &["sleep", "600"]);
    for options in [&[][..], &["-i"], &["-t"], &["-it"]] {
        types_nothing(&on_a_terminal(&home, &container.exec(options, &["perl", "-e", &attack])));
    }
}

/// Without a terminal of its own, a bundle's process has the caller's for its streams, but is in another session.
#[test]
fn a_bundles_container_types_nothing() {
    let Some(mut bundle) = Bundle::new() else { return };
    if !succeeds_unconfined(&bundle.home) {
        return;
    }
    bind_programs(&mut bundle);
    bundle.config["process"]["args"] = json!(["perl", "-e", attack()]);
    let at = bundle.at();
    let seen = on_a_terminal(&bundle.home, &bundle.command(&["run", "--bundle", &at, "box"]));
    types_nothing(&seen);
    assert!(seen.contains("[1]") && !seen.contains("[ok]"), "EPERM: {seen}");
    bundle.config["process"]["terminal"] = json!(true);
    types_nothing(&on_a_terminal(&bundle.home, &bundle.command(&["run", "--bundle", &at, "box"])));
    bundle.config["process"]["terminal"] = json!(false);
    let container = Container::runtime(&mut bundle, &["sleep", "600"]);
    for options in [&[][..], &["-t"]] {
        let seen = on_a_terminal(container.home(), &container.exec(options, &["perl", "-e", &attack()]));
        types_nothing(&seen);
    }
}

/// CVE-2019-10063: the kernel looks at the low half of the request alone, so a filter must too.
#[test]
fn a_filter_of_requests_sees_through_high_bits() {
    let Some(mut bundle) = Bundle::new() else { return };
    if !has_perl() {
        return;
    }
    bind_programs(&mut bundle);
    bundle.config["process"]["args"] = json!(["perl", "-e", attack()]);
    let at = bundle.at();
    let refused = |bundle: &Bundle| {
        let seen = on_a_terminal(&bundle.home, &bundle.command(&["run", "--bundle", &at, "box"]));
        (seen.matches("[77]").count(), seen.matches('[').count())
    };
    assert_eq!(refused(&bundle).0, 0, "there is no filter yet");
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [{ "names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77,
                       "args": [{ "index": 1, "value": 0x5412, "op": "SCMP_CMP_EQ" }] }],
    });
    let (filtered, all) = refused(&bundle);
    assert!(all > 0 && filtered * 3 == all * 2, "{filtered} of {all}: both numbers of TIOCSTI, and not TIOCLINUX");
}
