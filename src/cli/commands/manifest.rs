//! `manifest`: lists of images for several platforms, in the grammar of Docker and of Podman.

use std::collections::BTreeMap;
use std::fmt::Write;

use base::{Kind, Report};
use clap::{Args, Subcommand};
use engine::image::manifest::{self, Annotation};

use crate::environment::Globals;
use crate::output::{Stop, for_each, line};
use crate::progress::{Progress, Work};
use crate::registry_options::{DigestFile, Reach, RegistryOptions};

/// Make and push lists of images for several platforms
#[derive(Args)]
pub struct Manifest {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Add(Add),
    Annotate(Annotate),
    Create(Create),
    Inspect(Inspect),
    Push(Push),
    Rm(Rm),
}

/// Add an image to a list
#[derive(Args)]
struct Add {
    /// All images of an image that is a list itself
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    says: Says,
    #[command(flatten)]
    registry: RegistryOptions,
    list: String,
    image: String,
}

/// Change what a list says of one of its images
#[derive(Args)]
struct Annotate {
    #[command(flatten)]
    says: Says,
    list: String,
    image: String,
}

/// Make a list of images
#[derive(Args)]
struct Create {
    /// Extend a list that is there
    #[arg(short, long)]
    amend: bool,
    /// All images of an image that is a list itself
    #[arg(long)]
    all: bool,
    /// The registry may do without TLS, or have any certificate
    #[arg(long, conflicts_with = "tls_verify")]
    insecure: bool,
    #[command(flatten)]
    reach: Reach,
    list: String,
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
}

/// Print a list, or what a registry has under a name
#[derive(Args)]
struct Inspect {
    /// The registry may do without TLS, or have any certificate
    #[arg(long, conflicts_with = "tls_verify")]
    insecure: bool,
    #[command(flatten)]
    registry: RegistryOptions,
    name: String,
}

/// Send a list, and its images where they are missing
#[derive(Args)]
struct Push {
    /// Remove the list when it was sent
    #[arg(short, long, alias = "rm")]
    purge: bool,
    /// Send the images too (always done)
    #[arg(long)]
    all: bool,
    /// The registry may do without TLS, or have any certificate
    #[arg(long, conflicts_with = "tls_verify")]
    insecure: bool,
    #[command(flatten)]
    digest: DigestFile,
    #[command(flatten)]
    registry: RegistryOptions,
    list: String,
    /// Another name to send it to
    #[arg(value_name = "DESTINATION")]
    destination: Option<String>,
}

/// Remove lists
#[derive(Args)]
struct Rm {
    #[arg(required = true, value_name = "LIST")]
    lists: Vec<String>,
}

/// What an entry of a list says.
#[derive(Args)]
struct Says {
    /// The architecture
    #[arg(long)]
    arch: Option<String>,
    /// The operating system
    #[arg(long)]
    os: Option<String>,
    /// The version of the operating system
    #[arg(long)]
    os_version: Option<String>,
    /// What the operating system must have
    #[arg(long, value_delimiter = ',')]
    os_features: Vec<String>,
    /// The variant of the architecture
    #[arg(long)]
    variant: Option<String>,
    /// A note on the entry
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
}

impl Says {
    fn annotation(self) -> Result<Annotation, Report> {
        let pair = |text: &String| {
            let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
                Report::new(Kind::Usage, format!("invalid annotation '{text}': it must be KEY=VALUE"))
            })?;
            Ok::<_, Report>((key.to_owned(), value.to_owned()))
        };
        Ok(Annotation {
            annotations: self.annotation.iter().map(pair).collect::<Result<BTreeMap<_, _>, _>>()?,
            architecture: self.arch,
            os: self.os,
            os_version: self.os_version,
            os_features: self.os_features,
            variant: self.variant,
        })
    }
}

impl Manifest {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self.verb {
            Verb::Add(add) => {
                let engine = add.registry.engine(globals)?;
                let annotation = add.says.annotation()?;
                line(manifest::add(&engine, &add.list, &add.image, add.all, &annotation)?)?;
            }
            Verb::Annotate(annotate) => {
                let engine = globals.engine()?;
                manifest::annotate(&engine, &annotate.list, &annotate.image, &annotate.says.annotation()?)?;
            }
            Verb::Create(create) => {
                let engine = create.reach.insecure(create.insecure).engine(globals, None)?;
                let list = manifest::create(&engine, &create.list, &create.images, create.all, create.amend)?;
                line(format_args!("Created manifest list {list}"))?;
            }
            Verb::Inspect(inspect) => {
                let engine = inspect.registry.insecure(inspect.insecure).engine(globals)?;
                line(indented(&manifest::inspect(&engine, &inspect.name)?))?;
            }
            Verb::Push(push) => {
                let engine = push.registry.insecure(push.insecure).engine(globals)?;
                let destination =
                    push.destination.as_deref().map(|name| name.strip_prefix("docker://").unwrap_or(name));
                let progress = Progress::new(globals, Work::PushList, false)?;
                let digest = manifest::push(&engine, &push.list, destination, &|event| progress.show(event))?;
                drop(progress);
                push.digest.write(&digest)?;
                line(digest)?;
                if push.purge {
                    manifest::remove(&engine, &push.list)?;
                }
            }
            Verb::Rm(rm) => {
                let engine = globals.engine()?;
                return for_each(&rm.lists, |list| Ok(manifest::remove(&engine, list)?));
            }
        }
        Ok(0)
    }
}

/// JSON with a tab a level, as Docker prints it; members stay in their order and numbers as they are.
fn indented(json: &[u8]) -> String {
    let text = String::from_utf8_lossy(json);
    let (mut out, mut depth, mut in_string, mut escaped) = (String::new(), 0, false, false);
    let mut rest = text.chars().peekable();
    let new_line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n('\t', depth));
    };
    while let Some(next) = rest.next() {
        if in_string {
            // Of the control characters JSON itself refuses only some, and the rest would be the terminal's.
            if next.is_control() {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(next));
            } else {
                out.push(next);
            }
            in_string = escaped || next != '"';
            escaped = !escaped && next == '\\';
            continue;
        }
        match next {
            '{' | '[' => {
                out.push(next);
                while rest.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(close) = rest.next_if(|c| matches!(c, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    new_line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(next);
            }
            ',' => {
                out.push(next);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            '"' => {
                in_string = true;
                out.push(next);
            }
            blank if blank.is_ascii_whitespace() => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_indented_as_it_is() {
        let text = r#"{"b": 1.0, "a":[ ] ,"c":[{"x":"{\"y\\\":["},2e3],"d":{}}"#;
        let wanted = "{\n\t\"b\": 1.0,\n\t\"a\": [],\n\t\"c\": [\n\t\t{\n\t\t\t\"x\": \"{\\\"y\\\\\\\":[\"\n\t\t},\n\t\t2e3\n\t],\n\t\"d\": {}\n}";
        assert_eq!(indented(text.as_bytes()), wanted);
    }
}
