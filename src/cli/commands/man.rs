use std::fs;
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use clap::{Arg, Args, Command as Grammar};

use crate::args;
use crate::environment::Globals;
use crate::output::Stop;

/// Write the pages for man(1), one a command, for packages
#[derive(Args)]
pub struct Man {
    /// Where to; it must be there
    directory: PathBuf,
}

impl Man {
    pub fn execute(self, _: &Globals) -> Result<u8, Stop> {
        let grammar = args::whole();
        write_below(&grammar, grammar.get_name(), &self.directory)?;
        Ok(0)
    }
}

/// Writes the page of a command and those of the commands below it.
fn write_below(grammar: &Grammar, name: &str, directory: &Path) -> Result<(), Report> {
    let path = directory.join(format!("{name}.1"));
    let written = fs::write(&path, page(grammar, name)).map_err(|error| Report::of(Kind::Usage, error));
    written.step(|| format!("writing {}", path.display()))?;
    let visible = grammar.get_subcommands().filter(|below| !below.is_hide_set());
    visible.into_iter().try_for_each(|below| write_below(below, &format!("{name}-{}", below.get_name()), directory))
}

/// A page in the macros of man(7).
fn page(grammar: &Grammar, name: &str) -> String {
    let about = grammar.get_about().map(ToString::to_string).unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let words = name.replace('-', " ");
    let usage = grammar.clone().bin_name(words).disable_help_flag(true).render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage);
    let mut page = format!(
        ".TH {} 1 \"\" \"sublet {version}\" \"User Commands\"\n.SH NAME\n{} \\- {}\n.SH SYNOPSIS\n{}\n",
        escaped(&name.to_uppercase()),
        escaped(name),
        escaped(&about),
        escaped(usage)
    );
    let entry = |head: &str, text: &str| format!(".TP\n{head}\n{}\n", escaped(text));
    let visible: Vec<&Grammar> = grammar.get_subcommands().filter(|below| !below.is_hide_set()).collect();
    if !visible.is_empty() {
        page.push_str(".SH COMMANDS\n");
    }
    for below in visible {
        let about = below.get_about().map(ToString::to_string).unwrap_or_default();
        page.push_str(&entry(&format!(".BR {} (1)", escaped(&format!("{name}-{}", below.get_name()))), &about));
    }
    let options: Vec<&Arg> =
        grammar.get_arguments().filter(|option| !option.is_positional() && !option.is_hide_set()).collect();
    if !options.is_empty() {
        page.push_str(".SH OPTIONS\n");
    }
    for option in options {
        let help = option.get_help().map(ToString::to_string).unwrap_or_default();
        page.push_str(&entry(&head(option), &help));
    }
    if name.contains('-') {
        page.push_str(".SH SEE ALSO\n.BR sublet (1)\n");
    }
    page
}

/// `-e, --env NAME[=VALUE]`.
fn head(option: &Arg) -> String {
    let short = option.get_short().map(|short| format!("\\fB\\-{short}\\fR"));
    let long = option.get_long().map(|long| format!("\\fB\\-\\-{}\\fR", escaped(long)));
    let names: Vec<String> = [short, long].into_iter().flatten().collect();
    let value = option.get_action().takes_values().then(|| option.get_value_names()?.first()).flatten();
    let value = value.map(|name| format!(" \\fI{}\\fR", escaped(name))).unwrap_or_default();
    format!("{}{value}", names.join(", "))
}

/// A text of which troff obeys nothing.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let lines =
        text.lines().map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_a_request() {
        assert_eq!(escaped(".x\n'y\na-b\\c"), "\\&.x\n\\&'y\na\\-b\\ec");
    }
}
