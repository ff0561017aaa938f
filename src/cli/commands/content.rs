use std::io;

use base::units::human_size;
use clap::{Args, Subcommand};
use engine::content;

use super::lease::ago;
use crate::environment::Globals;
use crate::format::{self, Row};
use crate::output::{Stop, for_each, line, stdout, written};

const TABLE: &str = "{{.Digest}}\t{{.Kind}}\t{{.Size}}\t{{.Used}}";
const TABLE_ACTIVE: &str = "{{.Digest}}\t{{.Done}}\t{{.Size}}\t{{.Modified}}\t{{.State}}";

/// Look at the contents of the store
#[derive(Subcommand)]
pub enum Content {
    Active(Active),
    Get(Get),
    Ls(Ls),
    Put(Put),
    Rm(Rm),
    Verify(Verify),
}

impl Content {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self {
            Content::Active(command) => command.execute(globals),
            Content::Get(command) => command.execute(globals),
            Content::Ls(command) => command.execute(globals),
            Content::Put(command) => command.execute(globals),
            Content::Rm(command) => command.execute(globals),
            Content::Verify(command) => command.execute(globals),
        }
    }
}

/// List blobs
#[derive(Args)]
pub struct Ls {
    /// Indexes and the contents of files too
    #[arg(short, long)]
    all: bool,
    /// Digests only
    #[arg(short, long)]
    quiet: bool,
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
}

impl Ls {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let rows: Vec<Row> = content::list(&globals.engine()?, self.all)?
            .into_iter()
            .map(|content::Content { kind, stored }| {
                cells([
                    stored.digest.to_string(),
                    kind.to_owned(),
                    human_size(stored.size_bytes),
                    stored.size_bytes.to_string(),
                    ago(stored.used.0),
                ])
            })
            .collect();
        let format = if self.quiet && self.format.is_none() { Some("{{.Digest}}") } else { self.format.as_deref() };
        stdout(&format::rows(format, TABLE, &cells(std::array::from_fn(|_| String::new())), &rows)?)?;
        Ok(0)
    }
}

fn cells([digest, kind, size, bytes, used]: [String; 5]) -> Row {
    Row::default()
        .cell("Digest", "DIGEST", digest)
        .cell("Kind", "KIND", kind)
        .cell("Size", "SIZE", size)
        .cell("SizeBytes", "BYTES", bytes)
        .cell("Used", "USED", used)
}

/// List blobs on their way
#[derive(Args)]
pub struct Active {
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
}

impl Active {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let rows: Vec<Row> = content::active(&globals.engine()?)?
            .into_iter()
            .map(|partial| {
                active_cells([
                    partial.digest.to_string(),
                    human_size(partial.done_bytes),
                    partial.size_bytes.map_or_else(|| "N/A".to_owned(), human_size),
                    ago(partial.modified_s),
                    if partial.active { "active" } else { "interrupted" }.to_owned(),
                ])
            })
            .collect();
        let empty = active_cells(std::array::from_fn(|_| String::new()));
        stdout(&format::rows(self.format.as_deref(), TABLE_ACTIVE, &empty, &rows)?)?;
        Ok(0)
    }
}

fn active_cells([digest, done, size, modified, state]: [String; 5]) -> Row {
    Row::default()
        .cell("Digest", "DIGEST", digest)
        .cell("Done", "DONE", done)
        .cell("Size", "SIZE", size)
        .cell("Modified", "MODIFIED", modified)
        .cell("State", "STATE", state)
}

/// Write a blob to standard output
#[derive(Args)]
pub struct Get {
    #[arg(value_name = "DIGEST")]
    digest: String,
}

impl Get {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let mut file = content::get(&globals.engine()?, &self.digest)?;
        written(io::copy(&mut file, &mut io::stdout().lock()).map(drop))?;
        Ok(0)
    }
}

/// Take a blob from standard input; the next sweep removes it unless something leads to it by then
#[derive(Args)]
pub struct Put {
    /// What its digest must be
    #[arg(long)]
    digest: Option<String>,
}

impl Put {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        line(content::put(&globals.engine()?, io::stdin().lock(), self.digest.as_deref())?)?;
        Ok(0)
    }
}

/// Remove blobs
#[derive(Args)]
pub struct Rm {
    /// Those that images and containers need too
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "DIGEST")]
    digests: Vec<String>,
}

impl Rm {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        for_each(&self.digests, |digest| line(content::remove(&engine, digest, self.force)?))
    }
}

/// Hash blobs again, all or those that are named
#[derive(Args)]
pub struct Verify {
    #[arg(value_name = "DIGEST")]
    digests: Vec<String>,
}

impl Verify {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let mut code = 0;
        for (digest, found) in content::verify(&globals.engine()?, &self.digests)? {
            match found {
                None => line(format_args!("{digest}: ok"))?,
                Some(found) => {
                    line(format_args!("{digest}: damaged, its content has the digest {found}"))?;
                    code = 1;
                }
            }
        }
        Ok(code)
    }
}
