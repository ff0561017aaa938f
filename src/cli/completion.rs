//! What a shell may complete a command line to, from the grammar itself and from what there is.
//!
//! The scripts for the shells ask for it with the words that were typed, the last of which is being typed. Names are found by the
//! name that the grammar gives to a value: a `CONTAINER` is one of those that there are. Where there is no answer the shell
//! completes names of files.

use clap::builder::{ArgAction, Str};
use clap::{Arg, Command as Grammar};
use engine::image::ListRequest;
use engine::{Engine, container, image, network, volume};

/// A word, and what it stands for where that is known.
#[derive(Debug, PartialEq, Eq)]
pub struct Candidate {
    pub word: String,
    pub help: String,
}

/// What the last word may become.
pub fn candidates(grammar: &Grammar, words: &[String], engine: &dyn Fn() -> Option<Engine>) -> Vec<Candidate> {
    let (typed, before) = words.split_last().map_or(("", &[][..]), |(last, rest)| (last.as_str(), rest));
    let mut place = Place { command: grammar, positionals: 0, pending: None, only_values: false };
    for word in before {
        place.pass(grammar, word);
    }
    let mut found = place.next(grammar, typed, engine);
    found.retain(|candidate| candidate.word.starts_with(typed));
    found
}

/// Where in the grammar the cursor is.
struct Place<'a> {
    command: &'a Grammar,
    /// How many of them have been typed.
    positionals: usize,
    /// The option whose value comes next.
    pending: Option<&'a Arg>,
    /// No options come any more.
    only_values: bool,
}

impl<'a> Place<'a> {
    fn pass(&mut self, grammar: &'a Grammar, word: &str) {
        if self.pending.take().is_some() {
            return;
        }
        if word.starts_with('-') && word != "-" && !self.only_values {
            if word == "--" {
                self.only_values = true;
            } else if !word.contains('=') {
                self.pending = self.option(grammar, word).filter(|option| takes_a_word(option));
            }
            return;
        }
        match self.command.find_subcommand(word) {
            Some(below) if self.positionals == 0 => self.command = below,
            _ => {
                self.positionals += 1;
                // What comes after an image is its own command line.
                self.only_values |= self.command.get_positionals().any(Arg::is_trailing_var_arg_set);
            }
        }
    }

    /// An option by the word by which it was given; of single letters together it is the last.
    fn option(&self, grammar: &'a Grammar, word: &str) -> Option<&'a Arg> {
        let mut known = self.command.get_arguments().chain(grammar.get_arguments());
        match word.strip_prefix("--") {
            Some(name) => known.find(|option| {
                let aliases = option.get_all_aliases().unwrap_or_default();
                option.get_long() == Some(name) || aliases.contains(&name)
            }),
            None => known.find(|option| option.get_short() == word.chars().last()),
        }
    }

    fn next(&self, grammar: &'a Grammar, typed: &str, engine: &dyn Fn() -> Option<Engine>) -> Vec<Candidate> {
        if let Some(option) = self.pending {
            return values(option, 0, engine);
        }
        if typed.starts_with('-') && !self.only_values {
            if let Some((name, _)) = typed.split_once('=') {
                let known = self.option(grammar, name).map(|option| values(option, 0, engine)).unwrap_or_default();
                let whole = |one: Candidate| Candidate { word: format!("{name}={}", one.word), ..one };
                return known.into_iter().map(whole).collect();
            }
            return self.options(grammar);
        }
        let mut found = Vec::new();
        if self.positionals == 0 {
            let visible = self.command.get_subcommands().filter(|below| !below.is_hide_set());
            found.extend(visible.map(|below| of(below.get_name(), below.get_about())));
        }
        let all: Vec<&Arg> = self.command.get_positionals().collect();
        let of_many = || all.last().copied().filter(|last| takes_many(last)).map(|last| (last, all.len() - 1));
        let here = all.get(self.positionals).copied().map(|own| (own, self.positionals)).or_else(of_many);
        found.extend(here.map(|(own, first)| values(own, self.positionals - first, engine)).unwrap_or_default());
        found
    }

    fn options(&self, grammar: &'a Grammar) -> Vec<Candidate> {
        let here = self.command.get_arguments();
        let everywhere = grammar.get_arguments().filter(|option| option.is_global_set());
        let mut found: Vec<Candidate> = Vec::new();
        for option in here.chain(everywhere).filter(|option| !option.is_hide_set()) {
            let Some(long) = option.get_long() else { continue };
            let candidate = of(&format!("--{long}"), option.get_help());
            if !found.contains(&candidate) {
                found.push(candidate);
            }
        }
        found
    }
}

fn of(word: &str, help: Option<&clap::builder::StyledStr>) -> Candidate {
    Candidate { word: word.to_owned(), help: help.map(ToString::to_string).unwrap_or_default() }
}

fn takes_a_word(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::Set | ArgAction::Append) && !option.is_require_equals_set()
}

fn takes_many(positional: &Arg) -> bool {
    positional.get_num_args().is_some_and(|range| range.max_values() > 1)
        || matches!(positional.get_action(), ArgAction::Append)
}

/// What an argument's value of this position may be.
fn values(arg: &Arg, position: usize, engine: &dyn Fn() -> Option<Engine>) -> Vec<Candidate> {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        return possible.iter().map(|value| of(value.get_name(), value.get_help())).collect();
    }
    let names = arg.get_value_names().unwrap_or_default();
    let name = names.get(position).or(names.last()).map_or("", Str::as_str);
    let words: &[&str] = match name {
        "POLICY" => &["no", "on-failure", "always", "unless-stopped"],
        "MODE" => &["private", "host"],
        _ => &[],
    };
    if !words.is_empty() {
        return words.iter().map(|word| of(word, None)).collect();
    }
    let Some(kind) = Named::of(name) else { return Vec::new() };
    engine().map(|engine| kind.all(&engine)).unwrap_or_default()
}

/// What there are names of.
#[derive(Clone, Copy)]
enum Named {
    Container,
    Image,
    Volume,
    Network,
    Any,
}

impl Named {
    fn of(value_name: &str) -> Option<Named> {
        match value_name {
            "CONTAINER" | "CONTAINER[:DESTINATION]" => Some(Named::Container),
            "IMAGE" | "NAME[:TAG]" | "REPOSITORY[:TAG]" => Some(Named::Image),
            "VOLUME" => Some(Named::Volume),
            "NETWORK" => Some(Named::Network),
            "NAME|ID" => Some(Named::Any),
            _ => None,
        }
    }

    /// All of them; what cannot be read has none.
    fn all(self, engine: &Engine) -> Vec<Candidate> {
        let names = match self {
            Named::Container => container::names::all(engine),
            Named::Image => {
                let images = image::list(engine, &ListRequest::default()).unwrap_or_default();
                images.into_iter().filter(|image| !image.unnamed).map(|image| image.reference.familiar()).collect()
            }
            Named::Volume => {
                volume::list::list(engine).unwrap_or_default().into_iter().map(|volume| volume.name).collect()
            }
            Named::Network => {
                let networks = network::list::list(engine).unwrap_or_default();
                let built_in = ["builtin", "host", "none", "pasta", "slirp"].map(str::to_owned);
                built_in.into_iter().chain(networks.into_iter().map(|listed| listed.network.name)).collect()
            }
            Named::Any => {
                let kinds = [Named::Container, Named::Image, Named::Volume, Named::Network];
                return kinds.into_iter().flat_map(|kind| kind.all(engine)).collect();
            }
        };
        names.into_iter().map(|name| of(&name, None)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;

    fn words(line: &str) -> Vec<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        candidates(&args::whole(), &words, &|| None).into_iter().map(|candidate| candidate.word).collect()
    }

    #[test]
    fn commands_options_and_their_values() {
        assert_eq!(words("unp"), ["unpause"]);
        assert_eq!(words("container unp"), ["unpause"]);
        assert_eq!(words("--root /x vol"), ["volume"]);
        assert_eq!(words("run --detach-k"), ["--detach-keys"]);
        assert_eq!(words("run -d --rest"), ["--restart"]);
        assert_eq!(words("run --restart un"), ["unless-stopped"]);
        assert_eq!(words("run -it --restart=un"), ["--restart=unless-stopped"]);
        assert_eq!(words("run --pull al"), ["always"]);
        assert_eq!(words("run --net"), ["--network", "--network-alias", "--net-rate"]);
        assert_eq!(words("ps --off"), ["--offline"]);
        // A command of the container, and a word that is a value.
        assert_eq!(words("run busybox --rest"), Vec::<String>::new());
        assert_eq!(words("run --name ps"), Vec::<String>::new());
        assert_eq!(words("run -- --rest"), Vec::<String>::new());
        assert!(words("").contains(&"run".to_owned()) && !words("").contains(&"__complete".to_owned()));
    }
}
