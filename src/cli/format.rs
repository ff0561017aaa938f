//! `--format`: tables, JSON lines and Go templates over rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Kind, Report};
use gotmpl::{MissingKey, Template, Value};

use crate::output::printable_part;

/// How wide a column of a table is at least.
const COLUMN_MIN: usize = 10;

/// One row: every key that a template may name, with its column's header.
#[derive(Clone, Debug, Default)]
pub struct Row {
    cells: Vec<(&'static str, &'static str, String)>,
    labels: BTreeMap<String, String>,
}

impl Row {
    /// Adds a key.
    #[must_use]
    pub fn cell(mut self, key: &'static str, header: &'static str, text: impl Into<String>) -> Self {
        self.cells.push((key, header, text.into()));
        self
    }

    /// The labels for `{{.Label "key"}}`.
    #[must_use]
    pub fn labels(mut self, labels: BTreeMap<String, String>) -> Self {
        self.labels = labels;
        self
    }

    /// For a table, which people read at a terminal: no cell has what that obeys.
    fn printable(&self) -> Row {
        let cells = self.cells.iter().map(|(key, header, text)| (*key, *header, printable_part(text)));
        let labels = self.labels.iter().map(|(name, text)| (name.clone(), printable_part(text)));
        Row { cells: cells.collect(), labels: labels.collect() }
    }

    fn value(&self) -> Value {
        let cells = self.cells.iter().map(|(key, _, text)| (Arc::from(*key), Value::String(text.as_str().into())));
        let mut map: BTreeMap<Arc<str>, Value> = cells.collect();
        let labels = self.labels.clone();
        map.insert(
            "Label".into(),
            Value::Function(Arc::new(move |arguments: &[Value]| {
                let name = arguments.first().and_then(Value::as_str).unwrap_or_default();
                Ok(Value::String(labels.get(name).cloned().unwrap_or_default().into()))
            })),
        );
        Value::Map(Arc::new(map))
    }

    fn headers(&self) -> Value {
        let cells = self.cells.iter().map(|(key, header, _)| (Arc::from(*key), Value::String((*header).into())));
        let mut map: BTreeMap<Arc<str>, Value> = cells.collect();
        let head = |arguments: &[Value]| Ok(Value::String(label_header(arguments).into()));
        map.insert("Label".into(), Value::Function(Arc::new(head)));
        Value::Map(Arc::new(map))
    }

    /// The cells by their keys.
    pub fn value_as_json(&self) -> serde_json::Value {
        let cells = self.cells.iter().map(|(key, _, text)| ((*key).to_owned(), text.as_str().into()));
        serde_json::Value::Object(cells.collect())
    }

    fn json(&self) -> String {
        self.value_as_json().to_string()
    }
}

/// The header of a column of a label: its last part.
fn label_header(arguments: &[Value]) -> String {
    let name = arguments.first().and_then(Value::as_str).unwrap_or_default();
    name.rsplit('.').next().unwrap_or_default().to_owned()
}

/// Renders rows by a `--format`; `default` is the table's template, `empty` a row with no content for its headers.
pub fn rows(format: Option<&str>, default: &str, empty: &Row, rows: &[Row]) -> Result<String, Report> {
    let format = format.filter(|format| !format.is_empty()).unwrap_or("table");
    let lines = |render: &dyn Fn(&Row) -> Result<String, Report>| -> Result<String, Report> {
        rows.iter().map(|row| render(row).map(|text| text + "\n")).collect()
    };
    if format == "json" {
        return lines(&|row| Ok(row.json()));
    }
    let Some(table) = format.strip_prefix("table") else {
        let template = parse(&unescape(format), Functions::Real, MissingKey::Error)?;
        return lines(&|row| execute(&template, &row.value()));
    };
    let source = if table.trim().is_empty() { default.to_owned() } else { unescape(table.trim_start()) };
    let head = parse(&source, Functions::Header, MissingKey::Error)?;
    let body = parse(&source, Functions::Real, MissingKey::Error)?;
    let mut text = vec![execute(&head, &empty.headers())?];
    for row in rows {
        text.push(execute(&body, &row.printable().value())?);
    }
    Ok(tabulate(&text, COLUMN_MIN))
}

/// Whether a `--format` may show one of these keys: it names it, or a row as a whole. The default table shows all that it may.
pub fn shows(format: Option<&str>, keys: &[&str]) -> bool {
    let Some(format) = format.filter(|format| !matches!(*format, "" | "table" | "json")) else { return true };
    let word = |rest: &str| rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
    format.match_indices('.').any(|(at, _)| {
        let rest = &format[at + 1..];
        let name = &rest[..word(rest)];
        name.is_empty() || keys.contains(&name)
    })
}

/// Renders one JSON value by a template, for `inspect --format`.
pub fn object(format: &str, value: &serde_json::Value) -> Result<String, Report> {
    if format == "json" {
        return Ok(value.to_string());
    }
    execute(&parse(&unescape(format), Functions::Real, MissingKey::Error)?, &from_json(value))
}

/// Lines with tabs as columns, three apart and so wide at least, the last one as it is (Docker's tabwriter).
pub fn tabulate(lines: &[String], least: usize) -> String {
    let cells: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for line in &cells {
        for (column, cell) in line.iter().take(line.len() - 1).enumerate() {
            if widths.len() == column {
                widths.push(least);
            }
            widths[column] = widths[column].max(cell.chars().count() + 3);
        }
    }
    let mut text = String::new();
    for line in &cells {
        for (column, cell) in line.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < line.len() {
                text.extend(std::iter::repeat_n(' ', widths[column] - cell.chars().count()));
            }
        }
        text.push('\n');
    }
    text
}

#[derive(Clone, Copy, PartialEq)]
enum Functions {
    Real,
    /// All but `pad` leave their argument, so that the headers stay what they are.
    Header,
}

fn parse(source: &str, functions: Functions, missing: MissingKey) -> Result<Template, Report> {
    let real = functions == Functions::Real;
    let text = |change: fn(&str) -> String| {
        move |arguments: &[Value]| {
            let text = arguments.last().map(ToString::to_string).unwrap_or_default();
            Ok(Value::String(if real { change(&text) } else { text }.into()))
        }
    };
    let template = Template::new("format")
        .missing_key(missing)
        .func("lower", text(str::to_lowercase))
        .func("upper", text(str::to_uppercase))
        .func("title", text(title))
        .func("json", move |arguments| {
            let value = arguments.last().unwrap_or(&Value::Nil);
            Ok(if real { Value::String(to_json(value).to_string().into()) } else { value.clone() })
        })
        .func("split", move |arguments| {
            let word = |position: usize| arguments.get(position).map(ToString::to_string).unwrap_or_default();
            let (text, separator) = (word(0), word(1));
            let parts = text.split(separator.as_str()).map(|part| Value::String(part.into()));
            Ok(if real { Value::List(parts.collect()) } else { Value::String(text.into()) })
        })
        .func("join", |arguments| {
            let separator = arguments.get(1).map(ToString::to_string).unwrap_or_default();
            Ok(match arguments.first() {
                Some(Value::List(list)) => {
                    let parts: Vec<String> = list.iter().map(ToString::to_string).collect();
                    Value::String(parts.join(&separator).into())
                }
                other => other.cloned().unwrap_or(Value::Nil),
            })
        })
        .func("truncate", move |arguments| {
            let text = arguments.first().map(ToString::to_string).unwrap_or_default();
            let length = arguments.get(1).and_then(Value::as_int).unwrap_or(0).max(0) as usize;
            Ok(Value::String(if real { text.chars().take(length).collect() } else { text }.into()))
        })
        .func("pad", |arguments| {
            let text = arguments.first().map(ToString::to_string).unwrap_or_default();
            let blanks = |position: usize| {
                " ".repeat(arguments.get(position).and_then(Value::as_int).unwrap_or(0).clamp(0, 1000) as usize)
            };
            Ok(Value::String(if text.is_empty() { text } else { blanks(1) + &text + &blanks(2) }.into()))
        });
    template
        .parse(&call_methods(source))
        .map_err(|error| Report::new(Kind::Usage, error.to_string()).with_step("template parsing error"))
}

fn execute(template: &Template, value: &Value) -> Result<String, Report> {
    template
        .execute_to_string(value)
        .map_err(|error| Report::new(Kind::NotFound, error.to_string()).with_step("template execution error"))
}

/// Go calls a method that is given arguments, `{{.Label "key"}}`; gotmpl wants the word `call` before it.
fn call_methods(source: &str) -> String {
    let mut text = String::new();
    let mut rest = source;
    while let Some(start) = rest.find("{{") {
        let end = rest[start..].find("}}").map_or(rest.len(), |length| start + length);
        let (before, action) = (&rest[..start], &rest[start..end]);
        text.push_str(before);
        let mut action_rest = action;
        while let Some(at) = action_rest.find(".Label ") {
            let head = &action_rest[..at];
            let root = head.strip_suffix('$').unwrap_or(head);
            text.push_str(root);
            text.push_str("call ");
            text.push_str(&action_rest[root.len()..at + ".Label ".len()]);
            action_rest = &action_rest[at + ".Label ".len()..];
        }
        text.push_str(action_rest);
        rest = &rest[end..];
    }
    text + rest
}

fn title(text: &str) -> String {
    let mut begins = true;
    let word = |character: char| {
        let upper = begins;
        begins = character.is_whitespace();
        if upper { character.to_uppercase().to_string() } else { character.to_string() }
    };
    text.chars().map(word).collect()
}

/// A shell hands `\t` and `\n` on as two characters.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn from_json(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::Nil,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::Int(value),
            (None, Some(value)) => Value::Uint(value),
            _ => Value::Float(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::String(text.as_str().into()),
        Json::Array(list) => Value::List(list.iter().map(from_json).collect()),
        Json::Object(map) => {
            Value::Map(Arc::new(map.iter().map(|(key, value)| (key.as_str().into(), from_json(value))).collect()))
        }
    }
}

fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Nil | Value::Function(_) => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Uint(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::String(text) => text.as_ref().into(),
        Value::List(list) => list.iter().map(to_json).collect(),
        Value::Map(map) => {
            // A method is no field.
            let fields = map.iter().filter(|(_, value)| !matches!(value, Value::Function(_)));
            serde_json::Value::Object(fields.map(|(key, value)| (key.to_string(), to_json(value))).collect())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed rendering is a failed test")]
mod tests {
    use super::*;

    fn row(id: &str, image: &str) -> Row {
        let labels = BTreeMap::from([("com.example.tier".to_owned(), "web".to_owned())]);
        Row::default().cell("ID", "CONTAINER ID", id).cell("Image", "IMAGE", image).labels(labels)
    }

    fn render(format: &str) -> String {
        rows(Some(format), "{{.ID}}\t{{.Image}}", &row("", ""), &[row("abc", "a-long-image-name"), row("d", "x")])
            .unwrap()
    }

    #[test]
    fn the_three_modes() {
        assert_eq!(render("table"), "CONTAINER ID   IMAGE\nabc            a-long-image-name\nd              x\n");
        assert_eq!(
            render("table {{.Image}}\\t{{.ID}}"),
            "IMAGE               CONTAINER ID\na-long-image-name   abc\nx                   d\n"
        );
        assert_eq!(render("json").lines().next().unwrap(), r#"{"ID":"abc","Image":"a-long-image-name"}"#);
        assert_eq!(render("{{.ID}}:{{upper .Image}}"), "abc:A-LONG-IMAGE-NAME\nd:X\n");
        assert_eq!(render("{{json .ID}}"), "\"abc\"\n\"d\"\n");
        assert_eq!(render("table {{upper .ID}}").lines().next().unwrap(), "CONTAINER ID");
    }

    #[test]
    fn what_a_template_shows_is_known_before() {
        for (format, is_shown) in [
            (None, true),
            (Some("json"), true),
            (Some("table"), true),
            (Some("{{.ID}}"), false),
            (Some("{{.Size}}"), true),
            (Some("table {{.ID}}\\t{{upper .Size}}"), true),
            (Some("{{.SizeOf}}"), false),
            (Some("{{json .}}"), true),
            (Some("{{$.Size}}"), true),
        ] {
            assert_eq!(shows(format, &["Size", "VirtualSize"]), is_shown, "{format:?}");
        }
    }

    #[test]
    fn labels_are_called() {
        assert_eq!(render(r#"{{.Label "com.example.tier"}}"#), "web\nweb\n");
        assert_eq!(render(r#"{{if .Label "com.example.tier"}}y{{end}}{{$.Label "none"}}"#), "y\ny\n");
        assert_eq!(render(r#"table {{.Label "com.example.tier"}}"#).lines().next().unwrap(), "tier");
    }

    #[test]
    fn objects_keep_their_numbers_and_refuse_unknown_keys() {
        let value = serde_json::json!([{"a": {"b.c": 12_345_678_901_i64, "l": ["x", "y"]}}]);
        assert_eq!(object(r#"{{index .a "b.c"}} {{.a.l}}"#, &value[0]).unwrap(), "12345678901 [x y]");
        assert_eq!(object(r#"{{join .a.l ","}}"#, &value[0]).unwrap(), "x,y");
        assert_eq!(object("{{json .a.l}}", &value[0]).unwrap(), r#"["x","y"]"#);
        assert_eq!(object("{{.nothing}}", &value[0]).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(object("{{.a", &value[0]).unwrap_err().kind(), Kind::Usage);
    }
}
