//! The grammar: options as Docker's users write them.
//!
//! clap parses; this file bends it to Go's flags where they differ: booleans take `=true` and `=false`, an option may
//! be repeated (the last one wins), every option's value may begin with a hyphen, and options end at the first
//! positional of `run` and `exec`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{ArgAction, BoolishValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Command as Grammar, CommandFactory, FromArgMatches, Parser};

use crate::USAGE_CODE;
use crate::commands::{Command, scripted};
use crate::environment::Globals;
use crate::help;
use crate::progress::Choice;

const NAME: &str = "sublet";

/// Runs OCI containers without root and without a daemon.
#[derive(Parser)]
#[command(name = NAME, disable_help_flag = true, args_override_self = true)]
struct Line {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The options of all commands.
#[derive(Args)]
#[command(next_help_heading = "Global options")]
struct Options {
    /// Directory of images, containers and volumes
    #[arg(long, value_name = "DIRECTORY", global = true)]
    root: Option<PathBuf>,
    /// Directory of sockets and process ids
    #[arg(long, value_name = "DIRECTORY", global = true, hide = true)]
    run_root: Option<PathBuf>,
    /// Fail where a better way of doing something is not possible, instead of falling back
    #[arg(long, global = true)]
    strict: bool,
    /// Use the images, names and containers of this store; the content is shared by all stores
    #[arg(long, value_name = "NAME", global = true)]
    store: Option<String>,
    /// Ask no registry; what is missing is an error with its digests
    #[arg(long, global = true)]
    offline: bool,
    /// After a pull, remove what can be fetched or made again until the store takes no more than this
    #[arg(long, value_name = "SIZE", global = true)]
    cache_max: Option<String>,
    /// Another --root, whose images are listed and run and whose contents are used in place; may be given several times
    #[arg(long = "additional-store", value_name = "DIRECTORY", global = true)]
    additional_stores: Vec<PathBuf>,
    /// Whose user id additional stores may have beside root's and one's own
    #[arg(long, value_name = "UID", global = true)]
    additional_store_owner: Option<u32>,
    /// Which images may be brought in, in place of ~/.config/containers/policy.json and /etc/containers/policy.json
    #[arg(long, value_name = "FILE", global = true)]
    signature_policy: Option<PathBuf>,
    /// Directory of spec files of devices (CDI), in place of /etc/cdi and /var/run/cdi; a later one has precedence
    #[arg(long = "cdi-spec-dir", value_name = "DIRECTORY", global = true)]
    cdi_spec_dirs: Vec<PathBuf>,
    /// What is shown while images move
    #[arg(long, value_enum, default_value = "auto", hide_default_value = true, global = true)]
    progress: Choice,
    /// Print the version
    #[arg(short = 'v', long)]
    version: bool,
    /// Print help
    #[arg(long, action = ArgAction::Help, global = true)]
    help: Option<bool>,
}

/// Why there is no command to run: help was asked for, or the line is malformed.
#[derive(Debug)]
pub struct Refused {
    /// What to print.
    pub text: String,
    /// 0 for help.
    pub code: u8,
}

/// Parses a command line with the program's name in front.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<(Globals, Command), Refused> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut grammar = alone(&arguments).unwrap_or_else(|| grammar(&arguments));
    let read = |grammar: &mut Grammar| {
        grammar.try_get_matches_from_mut(&arguments).and_then(|matches| Line::from_arg_matches(&matches))
    };
    let line = read(&mut grammar).or_else(|_| {
        grammar = self::grammar(&arguments);
        read(&mut grammar)
    });
    let Line { options, command } = line.map_err(|mut error| {
        // clap would say that `--` makes a value of it: here it would be the image's name.
        error.insert(ContextKind::Suggested, ContextValue::None);
        Refused { text: error.to_string(), code: code_of(&error) }
    })?;
    if options.version {
        return Err(Refused { text: format!("{NAME} version {}\n", env!("CARGO_PKG_VERSION")), code: 0 });
    }
    let globals = Globals {
        root: options.root,
        run_root: options.run_root,
        strict: options.strict,
        store: options.store,
        offline: options.offline,
        cache_max: options.cache_max,
        additional_stores: options.additional_stores,
        additional_store_owner: options.additional_store_owner,
        signature_policy: options.signature_policy,
        cdi_spec_dirs: options.cdi_spec_dirs,
        progress: options.progress,
    };
    match command {
        Some(command) => Ok((globals, command)),
        None => Err(Refused { text: help::grouped(grammar).render_help().to_string(), code: 0 }),
    }
}

/// Docker's: 125 for an option that does not exist or has a bad value, 1 for the rest.
fn code_of(error: &clap::Error) -> u8 {
    let is_option =
        || matches!(error.get(ContextKind::InvalidArg), Some(ContextValue::String(word)) if word.starts_with('-'));
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        ErrorKind::InvalidValue | ErrorKind::ValueValidation | ErrorKind::NoEquals => USAGE_CODE,
        ErrorKind::UnknownArgument if is_option() => USAGE_CODE,
        _ => 1,
    }
}

/// The grammar of all commands, as it is written.
pub fn whole() -> Grammar {
    <Line as CommandFactory>::command()
}

/// The grammar of one command alone, where the line has the name of one that scripts run often: to make those of all takes
/// a twentieth of a container's start. What it refuses may mean something else, and its help is not the whole.
fn alone(arguments: &[OsString]) -> Option<Grammar> {
    let (name, augment) = arguments.iter().find_map(|word| scripted(word.to_str()?))?;
    let command = bend(augment(Grammar::new(name)).disable_help_flag(true).args_override_self(true));
    let line = Grammar::new(NAME).disable_help_flag(true).args_override_self(true);
    Some(bend(Options::augment_args(line)).subcommand(command))
}

/// Bends only the commands whose names occur, since all of them would cost a twentieth of a container's start.
fn grammar(arguments: &[OsString]) -> Grammar {
    let bent = bend_below(bend(whole()), arguments);
    let asks_for_help = arguments.iter().any(|word| word == "--help" || word == "help");
    if asks_for_help { help::grouped(bent) } else { bent }
}

/// Bends the commands of a group whose names occur, and those of groups among them.
fn bend_below(grammar: Grammar, arguments: &[OsString]) -> Grammar {
    let occurs = |name: &str| arguments.iter().any(|argument| argument == name);
    let named = |sub: &&Grammar| occurs(sub.get_name()) || sub.get_all_aliases().any(occurs);
    let names: Vec<String> = grammar.get_subcommands().filter(named).map(|sub| sub.get_name().to_owned()).collect();
    names.into_iter().fold(grammar, |grammar, name| {
        grammar.mut_subcommand(name, |sub| {
            bend_below(bend(sub.disable_help_flag(true).args_override_self(true)), arguments)
        })
    })
}

fn bend(grammar: Grammar) -> Grammar {
    grammar.mut_args(|arg| match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true")
            .value_parser(BoolishValueParser::new())
            .hide_default_value(true)
            .hide_possible_values(true),
        ArgAction::Set | ArgAction::Append if !arg.is_positional() => arg.allow_hyphen_values(true),
        _ => arg,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Command, Refused> {
        let words = std::iter::once("sublet").chain(text.split_whitespace()).map(OsString::from);
        parse(words).map(|(_, command)| command)
    }

    #[test]
    fn options_end_at_the_image() {
        let Command::Run(run) = line("run -it --rm -e A=-b -e C busybox sh -c -it --rm -- x").unwrap() else {
            panic!()
        };
        assert!(run.options.interactive && run.options.tty && run.options.rm && !run.detach);
        assert_eq!(run.options.words, ["busybox", "sh", "-c", "-it", "--rm", "--", "x"]);
        assert_eq!(run.options.variables.env, ["A=-b", "C"]);
    }

    #[test]
    fn booleans_take_a_value_and_the_last_one_wins() {
        let Command::Run(run) = line("run -d --rm=false --init=true -d=false --name a --name b x").unwrap() else {
            panic!()
        };
        assert!(!run.options.rm && run.options.init && !run.detach);
        assert_eq!(run.options.name.as_deref(), Some("b"));
    }

    #[test]
    fn values_may_begin_with_a_hyphen() {
        let Command::Run(run) = line("run --pids-limit -1 -h host -v a:/b -v c:/d x").unwrap() else { panic!() };
        let options = run.options;
        assert_eq!(
            (options.limits.pids_limit, options.hostname.as_deref(), options.volumes.len()),
            (Some(-1), Some("host"), 2)
        );
    }

    #[test]
    fn what_is_malformed_is_125_and_help_is_0() {
        for (text, code) in [
            ("run --no-such-option x", 125),
            ("run --cpus", 125),
            ("ps --no-trunc=perhaps", 125),
            ("run", 1),
            ("nonsense", 1),
            ("ps extra", 1),
            ("rm", 1),
            ("manifest", 1),
            ("manifest create --amend=perhaps x", 125),
            ("manifest push --help", 0),
            ("run --help", 0),
            ("--help", 0),
            ("help", 0),
            ("help run", 0),
            ("", 0),
            ("--version", 0),
        ] {
            assert_eq!(line(text).err().map(|refused| refused.code), Some(code), "{text}");
        }
    }

    #[test]
    fn help_has_groups() {
        let help = |text: &str| line(text).err().unwrap().text;
        for text in ["--help", "help", "", "--store x --help"] {
            let whole = help(text);
            let heads: Vec<&str> = whole.lines().filter(|line| line.ends_with(':') && !line.starts_with(' ')).collect();
            assert_eq!(heads, ["Common commands:", "Management commands:", "Commands:", "Global options:"], "{whole}");
            let place = |word: &str| whole.find(&format!("\n  {word} ")).unwrap();
            assert!(place("run") < place("exec") && place("exec") < place("container"), "{whole}");
            assert!(place("system") < place("attach") && !whole.contains("__complete"), "{whole}");
        }
        let run = help("run --help");
        let place = |word: &str| run.find(&format!("\n{word}:\n")).unwrap_or_else(|| panic!("{word}: {run}"));
        let heads = ["Options", "Files", "Network", "Limits", "Isolation", "Health check", "Devices", "Global options"];
        assert!(heads.windows(2).all(|pair| place(pair[0]) < place(pair[1])), "{run}");
    }

    #[test]
    fn the_commands_of_a_group_are_bent_too() {
        assert!(matches!(line("manifest create --amend=true --all x y z"), Ok(Command::Manifest(_))));
        assert!(matches!(line("manifest push -p --purge=false x docker://y"), Ok(Command::Manifest(_))));
    }

    #[test]
    fn the_name_of_a_command_may_be_a_value() {
        assert!(matches!(line("--root run ps -q"), Ok(Command::Ps(ps)) if ps.quiet));
        assert!(matches!(line("tag run exec"), Ok(Command::Tag(_))));
        assert!(line("ps --help").is_err_and(|refused| refused.text.contains("Usage: sublet ps")));
    }

    #[test]
    fn globals_stand_before_and_after() {
        for text in ["--root /x ps -aq", "ps -aq --root /x"] {
            let words = std::iter::once("sublet").chain(text.split_whitespace()).map(OsString::from);
            let (globals, command) = parse(words).unwrap();
            assert_eq!(globals.root.as_deref(), Some(std::path::Path::new("/x")));
            assert!(matches!(command, Command::Ps(ps) if ps.all && ps.quiet));
        }
    }
}
