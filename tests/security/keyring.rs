//! Keys of the caller's session.

use crate::attack::{Container, bind_programs, has_perl, perl, programs};
use crate::bundle::Bundle;
use crate::support::{Done, Home, LIMIT, busybox, finish};

use nix::libc::{SYS_add_key, SYS_keyctl};
use serde_json::json;

/// Joins a new session keyring, puts a key into it, and executes the arguments.
fn with_a_key(home: &Home, command: &std::process::Command) -> Done {
    let program = format!(
        "my ($type, $name, $secret) = ('user', 'sublet-probe', 'secret'); \
         syscall({SYS_keyctl}, 1, 0) >= 0 && syscall({SYS_add_key}, $type, $name, $secret, 6, -3) >= 0 \
             or print STDERR \"no keys: $!\\n\" and exit 99; \
         exec @ARGV"
    );
    let program_of = command.get_program().to_string_lossy().into_owned();
    let words: Vec<String> =
        std::iter::once(program_of).chain(command.get_args().map(|word| word.to_string_lossy().into_owned())).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    finish(&mut perl(home, &program, &words), b"", LIMIT)
}

/// Prints the errno of looking for the key, or `found`.
fn probe() -> String {
    format!(
        "my ($type, $name) = ('user', 'sublet-probe'); \
         print syscall({SYS_keyctl}, 10, -3, $type, $name, 0) > 0 ? 'found' : $! + 0"
    )
}

/// There is no such key in one's keyring: ENOKEY.
const NO_KEY: &str = "126";
/// The call is refused: EPERM.
const REFUSED: &str = "1";

#[test]
fn the_engines_containers_have_none_of_the_callers_keys() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    if !has_perl() {
        return;
    }
    let (programs, image, probe) = (programs(), busybox(), probe());
    let programs: Vec<&str> = programs.iter().map(String::as_str).collect();
    for (options, expected) in [(&[][..], REFUSED), (&["--security-opt", "seccomp=unconfined"], NO_KEY)] {
        let run = [&["run", "--rm"][..], options, &programs, &[&image, "perl", "-e", &probe]].concat();
        let done = with_a_key(&home, &home.command(&run));
        assert_eq!((done.code, done.stdout.as_str()), (0, expected), "{options:?}: {done:#?}");
        // An exec is started by the monitor, which has the keyring of the command that started the container.
        let run = [&["run", "-d", "--name", "box"][..], options, &programs, &[&image, "sleep", "600"]].concat();
        let done = with_a_key(&home, &home.command(&run));
        assert_eq!(done.code, 0, "{done:#?}");
        let done = with_a_key(&home, &home.command(&["exec", "box", "perl", "-e", &probe]));
        assert_eq!((done.code, done.stdout.as_str()), (0, expected), "{options:?}: {done:#?}");
        home.ok(&["rm", "-f", "box"]);
    }
}

#[test]
fn a_bundles_container_has_them_only_when_it_keeps_the_keyring() {
    let Some(mut bundle) = Bundle::new() else { return };
    if !has_perl() {
        return;
    }
    bind_programs(&mut bundle);
    bundle.config["process"]["args"] = json!(["perl", "-e", probe()]);
    let at = bundle.at();
    for (options, expected) in [(&[][..], NO_KEY), (&["--no-new-keyring"], "found")] {
        let run = [&["run"][..], options, &["--bundle", &at, "box"]].concat();
        let done = with_a_key(&bundle.home, &bundle.command(&run));
        assert_eq!((done.code, done.stdout.as_str()), (0, expected), "{options:?}: {done:#?}");
    }
    let container = Container::runtime(&mut bundle, &["sleep", "600"]);
    let done = with_a_key(container.home(), &container.exec(&[], &["perl", "-e", &probe()]));
    assert_eq!((done.code, done.stdout.as_str()), (0, NO_KEY), "{done:#?}");
}
