//! The command lines of `commands.txt` under podman and under us: what scripts read must be the same.
//!
//! Compared are standard output, after what no two engines have in common (ids, moments) is replaced by words, the exit code,
//! and whether a failure says something. Podman's code for a failure of its own is 125 where Docker's and ours is 1, which is no
//! difference here. Where Podman is not Docker, or we are neither, the line begins with `~NAME`, and the table in
//! `docs/testing.md` gives the reason for that name; such a line has to differ, so that the list can only shrink.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use crate::support::oracle::{end_podman, podman_of};
use crate::support::{Home, Need, busybox, finish, skip};

const TABLE: &str = include_str!("commands.txt");
const REASONS: &str = include_str!("../../docs/testing.md");
/// Podman takes some tenths of a second for each line.
const LIMIT: Duration = Duration::from_mins(4);

/// A line of the table.
struct Line {
    script: &'static str,
    /// The name of the difference that is known.
    differs: Option<&'static str>,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    output: String,
    code: i32,
    says_why: bool,
}

/// The lines of a section, `= NAME` in the table.
fn lines(section: &str) -> Vec<Line> {
    let after = TABLE.split_once(&format!("\n= {section}\n")).expect("a section of the table").1;
    let lines = after.split("\n= ").next().unwrap_or_default().lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let line = |line: &'static str| match line.strip_prefix('~').and_then(|rest| rest.split_once(' ')) {
        Some((name, script)) => Line { script, differs: Some(name) },
        None => Line { script: line, differs: None },
    };
    lines.map(line).collect()
}

/// All lines in one shell, whose function `e` is the engine.
fn answers(home: &Home, engine: &Command, lines: &[Line]) -> Vec<Answer> {
    let words = std::iter::once(engine.get_program()).chain(engine.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    // What hangs is a difference, and the others are compared all the same.
    let mut script = format!("e() {{ timeout 30 {} \"$@\"; }}\n", words.join(" "));
    for Line { script: line, .. } in lines {
        let _ = write!(
            script,
            "{{ {line}\n}} >out 2>err </dev/null\ncode=$?; cat out; said=0; [ -s err ] && said=1\n\
             printf '\\001%s %s\\001' $code $said\n"
        );
    }
    let mut shell = Command::new("sh");
    home.surround(shell.args(["-c", &script]));
    let done = finish(shell.env("IMAGE", busybox()), b"", LIMIT);
    let fields: Vec<&str> = done.stdout.split('\u{1}').collect();
    let answer = |fields: &[&str]| {
        let (code, said) = fields[1].split_once(' ').expect("two numbers");
        let code: i32 = code.parse().expect("a number");
        Answer { output: without_chance(fields[0]), code, says_why: code == 0 || said == "1" }
    };
    let (answers, _) = fields.as_chunks::<2>();
    assert_eq!(answers.len(), lines.len(), "{done:#?}");
    answers.iter().map(|fields| answer(fields)).collect()
}

/// Ids and moments become words, and blanks between columns one.
fn without_chance(text: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_start_matches("sha256:");
        let is_hex = bare.bytes().all(|byte| byte.is_ascii_hexdigit());
        match bare.len() {
            64 if is_hex => word.replace(bare, "<ID>"),
            12 if is_hex => word.replace(bare, "<id>"),
            _ => word.to_owned(),
        }
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn is_same(podman: &Answer, ours: &Answer) -> bool {
    let same_code = podman.code == ours.code || (podman.code, ours.code) == (125, 1);
    same_code && podman.output == ours.output && podman.says_why == ours.says_why
}

/// A section under both.
#[track_caller]
fn compare(section: &str) {
    let Some(home) = Home::with_busybox(&[Need::Subids, Need::PlainUser]) else { return };
    if Command::new("podman").arg("--version").output().is_err() {
        return skip("podman is not installed");
    }
    let image = busybox();
    let podman = |arguments: &[&str]| finish(podman_of(&home).args(arguments), b"", LIMIT).code;
    if podman(&["pull", "-q", "--tls-verify=false", &image]) != 0 || podman(&["run", "--rm", &image, "true"]) != 0 {
        end_podman(&home);
        return skip("podman cannot run containers here");
    }
    let lines = lines(section);
    let theirs = answers(&home, &podman_of(&home), &lines);
    podman(&["rm", "-fa"]);
    end_podman(&home);
    let ours = answers(&home, &home.command(&[]), &lines);
    let mut wrong = String::new();
    for ((Line { script, differs }, theirs), ours) in lines.iter().zip(&theirs).zip(&ours) {
        let _ = match differs {
            None if !is_same(theirs, ours) => writeln!(wrong, "{script}\n  podman: {theirs:?}\n  ours:   {ours:?}"),
            Some(name) if is_same(theirs, ours) => writeln!(wrong, "{script}\n  does not differ any more ({name})"),
            Some(name) if !REASONS.contains(&format!("`{name}`")) => {
                writeln!(wrong, "{script}\n  docs/testing.md has no reason {name}")
            }
            _ => continue,
        };
    }
    assert!(wrong.is_empty(), "of {} lines:\n{wrong}", lines.len());
}

#[test]
fn containers_are_made_and_run_as_by_podman() {
    compare("run");
}

#[test]
fn running_containers_are_handled_as_by_podman() {
    compare("running");
}

#[test]
fn containers_are_listed_as_by_podman() {
    compare("list");
}

#[test]
fn files_of_containers_are_moved_as_by_podman() {
    compare("files");
}

#[test]
fn images_volumes_and_networks_are_handled_as_by_podman() {
    compare("objects");
}

#[test]
fn the_table_is_long_enough_to_mean_something() {
    let count: usize = ["run", "running", "list", "files", "objects"].into_iter().map(|name| lines(name).len()).sum();
    assert!(count >= 300, "{count} lines");
}
