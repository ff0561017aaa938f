//! Spec files in YAML, as `nvidia-ctk` writes them when nothing else is said, become the JSON that they stand for.
//!
//! The schema is the core schema of YAML 1.2, and of 1.1 the octal numbers, `0666`, which the Go package knows. A
//! member without a value is left out, as Go does. Refused are aliases, of which a few lines can stand for more than
//! memory holds, tags, keys that are no text, and files of several documents: no tool writes them.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput};
use serde_json::{Map, Value};

/// Deeper than this is no spec file.
const DEPTH_MAX: usize = 32;

/// The value that the text of one document stands for.
pub fn to_json(text: &str) -> Result<Value, YamlError> {
    let mut reader = Reader { events: Parser::new_from_str(text) };
    let mut value = None;
    loop {
        match reader.next()? {
            Event::StreamEnd => return Ok(value.unwrap_or(Value::Null)),
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if value.is_some() => return Err(YamlError::Documents),
            event => value = Some(reader.value(event, 0)?),
        }
    }
}

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>, YamlError> {
        match self.events.next() {
            Some(event) => Ok(event?.0),
            None => Ok(Event::StreamEnd),
        }
    }

    /// The value that begins with this event.
    fn value(&mut self, event: Event<'a>, depth: usize) -> Result<Value, YamlError> {
        if depth > DEPTH_MAX {
            return Err(YamlError::Depth);
        }
        match event {
            Event::Scalar(text, ScalarStyle::Plain, _, None) => Ok(plain(&text)),
            Event::Scalar(text, _, _, None) => Ok(Value::String(text.into_owned())),
            Event::SequenceStart(_, None) => {
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => return Ok(Value::Array(list)),
                        event => list.push(self.value(event, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(_, None) => {
                let mut map = Map::new();
                loop {
                    let key = match self.next()? {
                        Event::MappingEnd => return Ok(Value::Object(map)),
                        Event::Scalar(text, _, _, None) => text.into_owned(),
                        _ => return Err(YamlError::Key),
                    };
                    let event = self.next()?;
                    let value = self.value(event, depth + 1)?;
                    if map.contains_key(&key) {
                        return Err(YamlError::Duplicate { key });
                    }
                    if !value.is_null() {
                        map.insert(key, value);
                    }
                }
            }
            Event::Alias(_) => Err(YamlError::Alias),
            Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..) => Err(YamlError::Tag),
            _ => Err(YamlError::Cut),
        }
    }
}

/// What a scalar without quotes is.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x', ..] => (&text[2..], 16),
        [b'0', b'o', ..] => (&text[2..], 8),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    let signed = radix == 10 && digits.starts_with(['-', '+']);
    let all_digits = |text: &str| !text.is_empty() && text.chars().all(|digit| digit.is_digit(radix));
    if !all_digits(if signed { &digits[1..] } else { digits }) {
        // No member of a spec file is a number with a point: `0.5.0` and `0.5` are texts.
        return Value::String(text.to_owned());
    }
    i64::from_str_radix(digits, radix).map_or_else(|_| Value::String(text.to_owned()), Value::from)
}

/// A text that is no YAML, or has what is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum YamlError {
    /// No YAML.
    #[error(transparent)]
    Syntax(#[from] ScanError),
    /// An alias.
    #[error("it has an alias")]
    Alias,
    /// A tag.
    #[error("it has a tag")]
    Tag,
    /// A key that is no text.
    #[error("it has a key that is no text")]
    Key,
    /// A key twice.
    #[error("it has the key {key:?} twice")]
    Duplicate {
        /// Which one.
        key: String,
    },
    /// Too deep.
    #[error("it is more than {DEPTH_MAX} deep")]
    Depth,
    /// More than one document.
    #[error("it has several documents")]
    Documents,
    /// It ends early.
    #[error("it ends in the middle")]
    Cut,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_tools_write_is_read() {
        let text = r#"---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      major: 195
      fileMode: 0666
    hooks: []
    env:
- name: 'all'
  containerEdits: {}
containerEdits:
  env: [A=b, "C=d # e"]   # a comment
  mounts:
  - containerPath: /usr/bin/x
    options:
    - ro
    - bind
  hooks:
  - args: [nvidia-ctk, hook, update-ldcache, --folder, /usr/lib]
    timeout: -1
    text: >-
      one
      two
"#;
        let value = to_json(text).unwrap();
        let expected = json!({
            "cdiVersion": "0.5.0", "kind": "nvidia.com/gpu",
            "devices": [
                {"name": "0", "containerEdits": {
                    "deviceNodes": [{"path": "/dev/nvidia0", "major": 195, "fileMode": 0o666}], "hooks": []
                }},
                {"name": "all", "containerEdits": {}},
            ],
            "containerEdits": {
                "env": ["A=b", "C=d # e"],
                "mounts": [{"containerPath": "/usr/bin/x", "options": ["ro", "bind"]}],
                "hooks": [{
                    "args": ["nvidia-ctk", "hook", "update-ldcache", "--folder", "/usr/lib"], "timeout": -1,
                    "text": "one two",
                }],
            },
        });
        assert_eq!(value, expected);
        assert_eq!(
            to_json("{\"a\": [1, \"1\", 0x1f, 0o17, 08, +3, true]}").unwrap(),
            json!({"a": [1, "1", 31, 15, "08", 3, true]})
        );
        assert_eq!(to_json("").unwrap(), Value::Null);
    }

    #[test]
    fn what_no_tool_writes_is_refused() {
        for (text, error) in [
            ("a: &x 1\nb: *x", YamlError::Alias),
            ("a: !!binary aGk=", YamlError::Tag),
            ("? [a]\n: b", YamlError::Key),
            ("a: 1\na: 2", YamlError::Duplicate { key: "a".to_owned() }),
            ("a: 1\n---\nb: 2", YamlError::Documents),
            (&format!("{}1{}", "[".repeat(40), "]".repeat(40)), YamlError::Depth),
        ] {
            assert_eq!(to_json(text), Err(error), "{text}");
        }
        for text in ["a: [1", "a: 'b", "a:\n\t- b", "a: b: c"] {
            assert!(matches!(to_json(text), Err(YamlError::Syntax(_))), "{text}");
        }
    }
}
