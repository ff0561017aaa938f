//! What the attacks share: containers of both faces, and the host's Perl in them, which can make any system call.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::bundle::Bundle;
use crate::support::{Done, Home, LIMIT, busybox, finish, skip};

/// The directories of the host that its Perl needs.
const PROGRAMS: [&str; 3] = ["/usr", "/lib", "/lib64"];

/// Whether the host has Perl; if not, the skip is noted.
pub fn has_perl() -> bool {
    let there = Path::new("/usr/bin/perl").exists();
    if !there {
        skip("the host has no /usr/bin/perl");
    }
    there
}

/// A running container, of the engine or of the OCI runtime.
pub enum Container<'a> {
    /// Its name there.
    Engine(&'a Home, &'static str),
    /// Its name in the bundle.
    Runtime(&'a Bundle, &'static str),
}

impl<'a> Container<'a> {
    /// Starts one of the small image, with the host's programs.
    #[track_caller]
    pub fn engine(home: &'a Home, options: &[&str], words: &[&str]) -> Self {
        let programs = programs();
        let image = busybox();
        let mut arguments = vec!["run", "-d", "--name", "box"];
        arguments.extend(programs.iter().map(String::as_str));
        arguments.extend(options);
        arguments.push(&image);
        arguments.extend(words);
        home.ok(&arguments);
        Container::Engine(home, "box")
    }

    /// Creates and starts that of a bundle, with the host's programs.
    #[track_caller]
    pub fn runtime(bundle: &'a mut Bundle, words: &[&str]) -> Self {
        bundle.config["process"]["args"] = json!(words);
        bind_programs(bundle);
        bundle.create("box");
        bundle.ok(&["start", "box"]);
        Container::Runtime(bundle, "box")
    }

    /// One more command in it, ready to be started.
    pub fn exec(&self, options: &[&str], words: &[&str]) -> Command {
        let (mut command, name) = match self {
            Container::Engine(home, name) => (home.command(&["exec"]), (*name).to_owned()),
            Container::Runtime(bundle, name) => (bundle.command(&["exec"]), bundle.id(name)),
        };
        command.args(options).arg(name).args(words);
        command
    }

    /// Runs one more command in it to its end.
    pub fn run(&self, options: &[&str], words: &[&str]) -> Done {
        finish(&mut self.exec(options, words), b"", LIMIT)
    }

    /// The home that its commands have.
    pub fn home(&self) -> &'a Home {
        match self {
            Container::Engine(home, _) => home,
            Container::Runtime(bundle, _) => &bundle.home,
        }
    }
}

/// The options of `run` that bind the host's programs.
pub fn programs() -> Vec<String> {
    let there = PROGRAMS.into_iter().filter(|path| Path::new(path).exists());
    there.flat_map(|path| ["-v".to_owned(), format!("{path}:{path}:ro")]).collect()
}

/// Binds the host's programs into a bundle.
pub fn bind_programs(bundle: &mut Bundle) {
    for path in PROGRAMS.into_iter().filter(|path| Path::new(path).exists()) {
        bundle.push(
            "/mounts",
            json!({ "destination": path, "type": "bind", "source": path, "options": ["rbind", "ro", "rslave"] }),
        );
    }
}

/// A Perl program to be run on the host.
pub fn perl(home: &Home, program: &str, words: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/perl");
    command.args(["-e", program]).args(words);
    home.surround(&mut command);
    command
}
