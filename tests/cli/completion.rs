//! What shells complete, and the pages of the manual.

use std::fs;
use std::process::Command;

use crate::support::{Home, LIMIT, busybox, finish};

/// What bash offers for a line whose cursor is at its end.
fn offered(home: &Home, line: &str) -> Vec<String> {
    let script = "source <(\"$0\" completion bash); COMP_LINE=\"$0 $1\"; COMP_POINT=${#COMP_LINE}; _sublet; \
                  printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    home.surround(bash.args(["-c", script]).arg(home.bin()).arg(line));
    let done = finish(&mut bash, b"", LIMIT);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:#?}");
    done.stdout.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_names() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["tag", &busybox(), "tiny:one"]);
    home.ok(&["tag", &busybox(), "tiny:two"]);
    home.ok(&["volume", "create", "volume-one"]);
    for name in ["first", "fine", "other"] {
        home.ok(&["create", "--name", name, "--network", "none", &busybox(), "true"]);
    }
    let sorted = |line: &str| {
        let mut words = offered(&home, line);
        words.sort();
        words
    };
    assert_eq!(sorted("pau"), ["pause"]);
    assert_eq!(sorted("system mig"), ["migrate"]);
    assert_eq!(sorted("start f"), ["fine", "first"]);
    assert_eq!(sorted("start other fi"), ["fine", "first"]);
    assert_eq!(sorted("exec -it ot"), ["other"]);
    // Past the container it is a command of its own, and names of files are the shell's.
    assert_eq!(sorted("exec other fi"), Vec::<String>::new());
    assert_eq!(sorted("run --rm tin"), ["tiny:one", "tiny:two"]);
    // bash replaces what stands after the colon alone.
    assert_eq!(sorted("run --rm tiny:t"), ["two"]);
    assert_eq!(sorted("volume rm vol"), ["volume-one"]);
    home.ok(&["network", "create", "net-one"]);
    assert_eq!(sorted("run --network ne"), ["net-one"]);
    assert_eq!(sorted("network connect net-one oth"), ["other"]);
    assert_eq!(sorted("inspect fir"), ["first"]);
    assert_eq!(sorted("run --restart=un"), ["unless-stopped"]);
    assert_eq!(sorted("run --log-driver=x"), Vec::<String>::new());
    let all = home.ok(&["__complete", "--", "sta"]);
    assert!(all.lines().any(|line| line == "start\tStart containers that do not run"), "{all}");
    for shell in ["zsh", "fish"] {
        assert!(home.ok(&["completion", shell]).contains("__complete"));
    }
    assert_eq!(home.run(&["completion", "tcsh"]).code, 125);
}

#[test]
fn there_is_a_page_for_each_command() {
    let Some(home) = Home::new(&[]) else { return };
    let pages = home.path("man");
    fs::create_dir(&pages).unwrap();
    home.ok(&["man", &pages.to_string_lossy()]);
    let page = |name: &str| fs::read_to_string(pages.join(format!("{name}.1"))).unwrap();
    let run = page("sublet-run");
    for part in [
        ".SH NAME\nsublet\\-run \\- Run a command in a new container\n",
        "\nsublet run [OPTIONS] <IMAGE> [COMMAND]...\n",
        ".TP\n\\fB\\-e\\fR, \\fB\\-\\-env\\fR \\fINAME[=VALUE]\\fR\n",
    ] {
        assert!(run.contains(part), "{part:?} in {run}");
    }
    assert!(page("sublet").contains(".BR sublet\\-run (1)") && page("sublet-volume-rm").contains(".SH SYNOPSIS"));
    let hidden = fs::read_dir(&pages).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    assert!(hidden.into_iter().all(|name| !name.contains("complete") && name != "sublet-man.1"));
}
