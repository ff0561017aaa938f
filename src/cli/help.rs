//! The help of the program as a whole: its commands in Docker's groups.

use clap::Command as Grammar;

/// What most people need, in Docker's order.
const COMMON: [&str; 11] =
    ["run", "exec", "ps", "pull", "push", "images", "login", "logout", "search", "version", "info"];

/// The same grammar with a help that groups its commands.
pub fn grouped(grammar: Grammar) -> Grammar {
    let common = COMMON.iter().filter_map(|name| grammar.find_subcommand(name));
    let visible = || grammar.get_subcommands().filter(|below| !below.is_hide_set());
    let (groups, single): (Vec<&Grammar>, Vec<&Grammar>) = visible()
        .filter(|below| !COMMON.contains(&below.get_name()))
        .partition(|below| below.get_subcommands().next().is_some());
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\nCommon commands:\n{}\n\nManagement commands:\n{}\n\n\
         Commands:\n{}\n\nGlobal options:\n{{options}}\n\n`{name} COMMAND --help` tells more of a command.\n",
        list(common),
        list(groups),
        list(single),
        name = grammar.get_name(),
    );
    grammar.help_template(template)
}

/// A line for each command, as clap writes it.
fn list<'a>(commands: impl IntoIterator<Item = &'a Grammar>) -> String {
    let commands = commands.into_iter().enumerate().map(|(place, command)| command.clone().display_order(place));
    let alone = Grammar::new("").disable_help_subcommand(true).subcommands(commands);
    alone.help_template("{subcommands}").render_help().to_string().trim_end().to_owned()
}
