use std::time::SystemTime;

use base::time::{human_span, rfc3339};
use base::units::human_size;
use clap::{ArgAction, Args};
use engine::image::history::{Step, history};

use crate::environment::Globals;
use crate::format::{self, Row};
use crate::output::{Stop, stdout};

const TABLE: &str = "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
const TABLE_EXACT: &str = "{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
/// Docker cuts commands at this length, the dots included.
const COMMAND_WIDTH: usize = 45;

/// Show how an image was made
#[derive(Args)]
pub struct History {
    /// Sizes and times for people
    #[arg(short = 'H', long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = true,
        default_missing_value = "true")]
    human: bool,
    /// Whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
    image: String,
}

impl History {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let steps = history(&globals.engine()?, &self.image)?;
        let now = SystemTime::now();
        let rows: Vec<Row> = steps.iter().map(|step| self.row(step, now)).collect();
        let format = match (&self.format, self.quiet) {
            (None, true) => Some("{{.ID}}"),
            (format, _) => format.as_deref(),
        };
        let table = if self.human { TABLE } else { TABLE_EXACT };
        stdout(&format::rows(format, table, &cells(std::array::from_fn(|_| String::new())), &rows)?)?;
        Ok(0)
    }

    fn row(&self, step: &Step, now: SystemTime) -> Row {
        let id = match &step.id {
            None => "<missing>".to_owned(),
            Some(id) if self.no_trunc => id.to_string(),
            Some(id) => id.hex()[..12].to_owned(),
        };
        let since = step.created.map(|at| format!("{} ago", human_span(now.duration_since(at).unwrap_or_default())));
        let command = step.created_by.replace('\t', " ");
        cells([
            id,
            since.unwrap_or_else(|| "N/A".to_owned()),
            step.created.map_or_else(|| "N/A".to_owned(), whole_seconds),
            if self.no_trunc { command } else { shortened(&command) },
            if self.human { human_size(step.size_bytes) } else { step.size_bytes.to_string() },
            step.comment.clone(),
        ])
    }
}

/// RFC 3339 without a fraction.
fn whole_seconds(moment: SystemTime) -> String {
    format!("{}Z", rfc3339(moment).split('.').next().unwrap_or_default())
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= COMMAND_WIDTH {
        return text.to_owned();
    }
    text.chars().take(COMMAND_WIDTH - 1).chain(['…']).collect()
}

fn cells([id, since, created, command, size, comment]: [String; 6]) -> Row {
    Row::default()
        .cell("ID", "IMAGE", id)
        .cell("CreatedSince", "CREATED", since)
        .cell("CreatedAt", "CREATED AT", created)
        .cell("CreatedBy", "CREATED BY", command)
        .cell("Size", "SIZE", size)
        .cell("Comment", "COMMENT", comment)
}
