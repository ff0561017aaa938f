use base::{Kind, Report};
use clap::Args;
use engine::{Engine, container, image, volume};
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

use crate::commands::network::described;
use crate::commands::volume::Described;
use crate::environment::Globals;
use crate::format;
use crate::output::{Stop, error, line};

/// The exit code of a template that cannot be parsed.
const TEMPLATE_CODE: u8 = 64;

/// Print all that is known about containers, images, networks and volumes
#[derive(Args)]
pub struct Inspect {
    /// A Go template, or json
    #[arg(short, long)]
    format: Option<String>,
    /// Only this kind of object: container, image, network or volume
    #[arg(long, value_parser = ["container", "image", "network", "volume"])]
    r#type: Option<String>,
    /// With what a container has written, and that with its image
    #[arg(short, long)]
    size: bool,
    #[arg(required = true, value_name = "NAME|ID")]
    names: Vec<String>,
}

impl Inspect {
    /// The same for containers alone (`container inspect`).
    pub fn of_containers(self) -> Self {
        Inspect { r#type: Some("container".to_owned()), ..self }
    }

    /// The same for images alone (`image inspect`).
    pub fn of_images(self) -> Self {
        Inspect { r#type: Some("image".to_owned()), ..self }
    }

    /// The same for volumes alone (`volume inspect`).
    pub fn of_volumes(self) -> Self {
        Inspect { r#type: Some("volume".to_owned()), ..self }
    }

    /// The same for networks alone (`network inspect`).
    pub fn of_networks(self) -> Self {
        Inspect { r#type: Some("network".to_owned()), ..self }
    }

    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let (mut found, mut code) = (Vec::new(), 0);
        for name in &self.names {
            match one(&engine, name, self.r#type.as_deref(), self.size) {
                Ok(json) => found.push(json),
                Err(report) => {
                    error(&report);
                    code = 1;
                }
            }
        }
        let Some(template) = &self.format else {
            line(array(&found))?;
            return Ok(code);
        };
        for json in &found {
            let value: Value = serde_json::from_str(json).unwrap_or_default();
            match format::object(template, &value) {
                Ok(text) => line(text)?,
                Err(report) => {
                    error(&report);
                    return Ok(if report.kind() == Kind::Usage { TEMPLATE_CODE } else { 1 });
                }
            }
        }
        Ok(code)
    }
}

/// One object as indented JSON: a container, else an image, else a volume, else a network.
fn one(engine: &Engine, name: &str, only: Option<&str>, size: bool) -> Result<String, Report> {
    if only == Some("volume") {
        return indented(&Described::of(&volume::find(engine, name)?));
    }
    if only == Some("network") {
        return indented(&described(engine, name)?);
    }
    if only != Some("image") {
        match container::find(engine, name) {
            Ok(id) if size => return indented(&container::inspect::inspect_with_size(engine, &id)?),
            Ok(id) => return indented(&container::inspect::inspect(engine, &id)?),
            Err(report) if only.is_some() || report.kind() != Kind::NotFound => return Err(report),
            Err(_) => {}
        }
    }
    match image::inspect(engine, name) {
        Ok(image) => indented(&image),
        Err(report) if only.is_none() && matches!(report.kind(), Kind::NotFound | Kind::Usage) => {
            if let Ok(volume) = volume::find(engine, name) {
                return indented(&Described::of(&volume));
            }
            if let Ok(network) = described(engine, name) {
                return indented(&network);
            }
            Err(Report::new(Kind::NotFound, format!("No such object: {name}")))
        }
        Err(report) => Err(report),
    }
}

/// Docker indents by four, in the order of the members.
fn indented(value: &impl Serialize) -> Result<String, Report> {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut serializer).map_err(|error| Report::of(Kind::Internal, error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn array(objects: &[String]) -> String {
    if objects.is_empty() {
        return "[]".to_owned();
    }
    let shifted: Vec<String> = objects.iter().map(|object| format!("    {}", object.replace('\n', "\n    "))).collect();
    format!("[\n{}\n]", shifted.join(",\n"))
}
