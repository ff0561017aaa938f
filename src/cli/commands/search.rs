use base::{Kind, Report};
use clap::Args;
use engine::image::search::{self, Found};

use crate::environment::Globals;
use crate::format::{self, Row};
use crate::output::{Stop, stdout};
use crate::registry_options::RegistryOptions;

const TABLE: &str = "{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}";
/// How much of a description the table shows.
const DESCRIPTION_MAX: usize = 45;

/// Find repositories at a registry
#[derive(Args)]
pub struct Search {
    /// Only those with stars=NUMBER or more, or with is-official=true|false
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
    /// The most to show, 100 at most
    #[arg(long, default_value = "25")]
    limit: usize,
    /// Whole descriptions
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    registry: RegistryOptions,
    /// What to look for; with a registry's host in front, there
    #[arg(value_name = "[HOST/]TERM")]
    term: String,
}

impl Search {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let filters: Vec<Filter> = self.filter.iter().map(|text| filter(text)).collect::<Result<_, _>>()?;
        let mut found = search::search(&self.registry.engine(globals)?, &self.term, self.limit)?;
        found.retain(|one| filters.iter().all(|filter| filter.passes(one)));
        // Stable: of equals the registry's order stays.
        found.sort_by_key(|one| std::cmp::Reverse(one.stars));
        let rows: Vec<Row> = found.iter().map(|one| row(one, self.no_trunc)).collect();
        let empty = cells(std::array::from_fn(|_| String::new()));
        stdout(&format::rows(self.format.as_deref(), TABLE, &empty, &rows)?)?;
        Ok(0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    Stars(u64),
    Official(bool),
    /// Docker's registry builds none any more.
    Automated(bool),
}

impl Filter {
    fn passes(self, found: &Found) -> bool {
        match self {
            Filter::Stars(least) => found.stars >= least,
            Filter::Official(wanted) => found.official == wanted,
            Filter::Automated(wanted) => !wanted,
        }
    }
}

fn filter(text: &str) -> Result<Filter, Report> {
    let invalid = || Report::new(Kind::Usage, format!("invalid filter '{text}'"));
    match text.split_once('=').ok_or_else(invalid)? {
        ("stars", number) => number.parse().map(Filter::Stars).map_err(|_| invalid()),
        ("is-official", word) => word.parse().map(Filter::Official).map_err(|_| invalid()),
        ("is-automated", word) => word.parse().map(Filter::Automated).map_err(|_| invalid()),
        _ => Err(invalid()),
    }
}

fn cells([name, description, stars, official]: [String; 4]) -> Row {
    Row::default()
        .cell("Name", "NAME", name)
        .cell("Description", "DESCRIPTION", description)
        .cell("StarCount", "STARS", stars)
        .cell("IsOfficial", "OFFICIAL", official)
}

fn row(found: &Found, whole: bool) -> Row {
    let mut description = found.description.trim().to_owned();
    if !whole && description.chars().count() > DESCRIPTION_MAX {
        description = description.chars().take(DESCRIPTION_MAX - 1).chain(['…']).collect();
    }
    let official = if found.official { "[OK]" } else { "" };
    cells([found.name.clone(), description, found.stars.to_string(), official.to_owned()])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn filters_are_dockers() {
        let found = Found { stars: 3, official: true, ..Found::default() };
        for (text, passes) in [
            ("stars=3", true),
            ("stars=4", false),
            ("is-official=true", true),
            ("is-official=false", false),
            ("is-automated=true", false),
            ("is-automated=false", true),
        ] {
            assert_eq!(filter(text).unwrap().passes(&found), passes, "{text}");
        }
        for text in ["stars", "stars=many", "is-official=perhaps", "colour=red"] {
            assert!(filter(text).is_err(), "{text}");
        }
    }
}
