//! The options that say which variables a container has.

use std::env::{self, VarError};
use std::fs;

use base::{Context, Kind, Report};
use clap::{ArgAction, Args};
use engine::container::CreateRequest;

use crate::docker_config::proxy_variables;
use crate::environment::docker_config;
use crate::output::warning;
use crate::parse;

/// Variables, from the environment and beside those of the image.
#[derive(Args)]
pub struct VariableOptions {
    /// NAME=VALUE, or NAME for its value here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// A file of such lines
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// All variables of your environment, where the image has no others
    #[arg(long)]
    env_host: bool,
    /// A variable of the image that is left out
    #[arg(long, value_name = "NAME")]
    unsetenv: Vec<String>,
    /// All variables of the image are left out
    #[arg(long)]
    unsetenv_all: bool,
    /// Tell the container of the proxies that Docker's config.json names
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = true,
        default_missing_value = "true")]
    http_proxy: bool,
}

impl VariableOptions {
    /// Writes what is asked for into a request.
    pub fn apply(self, request: &mut CreateRequest) -> Result<(), Report> {
        let mut env = variables(&self.env_file, &self.env)?;
        if self.http_proxy {
            // A file that others have made unreadable, as `sudo docker login` does, stops no container; Docker goes on as well.
            match docker_config().and_then(|file| proxy_variables(file, &env)) {
                Ok(proxies) => drop(env.splice(0..0, proxies)),
                Err(report) => warning(&format!("the container is told of no proxies: {}", report.lines().join(": "))),
            }
        }
        // What is asked for by name is there whatever is left out.
        if let Some(wrong) = self.unsetenv.iter().find(|name| name.is_empty() || name.contains('=')) {
            return Err(parse::wrong(format!("--unsetenv {wrong}: it is no name of a variable")));
        }
        drop(env.splice(0..0, self.unsetenv));
        request.env = env;
        request.without_image_env = self.unsetenv_all;
        if self.env_host {
            // What is no text cannot be in a container's record.
            let texts =
                env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
            request.env_below = texts.map(|(name, value)| format!("{name}={value}")).collect();
        }
        Ok(())
    }
}

/// Files of variables, then single ones; a name without a value takes ours, or takes the image's out.
pub fn variables(files: &[String], single: &[String]) -> Result<Vec<String>, Report> {
    let mut list = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).map_err(|error| Report::of(Kind::Usage, error));
        list.extend(
            text.and_then(|text| parse::env_file(&text, value_here)).step(|| format!("reading --env-file {file}"))?,
        );
    }
    for entry in single {
        if entry.is_empty() || entry.starts_with('=') {
            return Err(Report::new(Kind::Usage, format!("invalid environment variable: {entry}")));
        }
        list.push(entry.clone());
    }
    let resolve = |entry: String| {
        let value = if entry.contains('=') { None } else { value_here(&entry)? };
        Ok(value.map_or_else(|| entry.clone(), |value| format!("{entry}={value}")))
    };
    list.into_iter().map(resolve).collect()
}

/// A variable of our own environment.
fn value_here(name: &str) -> Result<Option<String>, Report> {
    match env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        // An image's variable of this name would be taken out in silence.
        Err(VarError::NotUnicode(_)) => {
            Err(Report::new(Kind::Usage, format!("the value of {name} in the environment is not UTF-8")))
        }
    }
}
