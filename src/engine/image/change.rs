//! Instructions of a Dockerfile that change an image's configuration, as `commit -c` and `import -c` take them.
//!
//! The grammar is that of a Dockerfile's line (BuildKit's parser): the JSON form counts only if the whole rest is an array
//! of strings, else it is the shell's; `ENV` and `LABEL` have `key=value` words with quotes and escapes, or the old form
//! `key rest`. Variables are not expanded: there is no build whose they could be.

use base::{Kind, Report};
use serde_json::{Map, Value, json};

/// Applies one instruction to the member `config` of an image's configuration.
pub(crate) fn apply(config: &mut Map<String, Value>, line: &str) -> Result<(), Report> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let (name, rest) = (word.to_ascii_uppercase(), rest.trim());
    let wrong = |why: &str| Report::new(Kind::Usage, format!("{line:?}: {why}"));
    if rest.is_empty() {
        return Err(wrong("the instruction has no arguments"));
    }
    match name.as_str() {
        "CMD" => set(config, "Cmd", command(rest)),
        "ENTRYPOINT" => set(config, "Entrypoint", command(rest)),
        "USER" => set(config, "User", rest.into()),
        "WORKDIR" => {
            let old = config.get("WorkingDir").and_then(Value::as_str).unwrap_or_default();
            let path = if rest.starts_with('/') { rest.to_owned() } else { format!("{old}/{rest}") };
            set(config, "WorkingDir", cleaned(&path).into());
        }
        "ENV" => {
            let pairs = pairs(rest).ok_or_else(|| wrong("ENV must have two arguments, or words NAME=VALUE"))?;
            let mut env: Vec<String> = texts(config.get("Env"));
            for (key, value) in pairs {
                env.retain(|old| old.split('=').next() != Some(&key));
                env.push(format!("{key}={value}"));
            }
            set(config, "Env", env.into());
        }
        "LABEL" => {
            let pairs = pairs(rest).ok_or_else(|| wrong("LABEL must have two arguments, or words NAME=VALUE"))?;
            for (key, value) in pairs {
                put(config, "Labels", key, value.into());
            }
        }
        "EXPOSE" => {
            for port in words(rest) {
                for port in ports(&port).ok_or_else(|| wrong(&format!("invalid containerPort: {port}")))? {
                    put(config, "ExposedPorts", port, json!({}));
                }
            }
        }
        "VOLUME" => {
            for path in array(rest).unwrap_or_else(|| words(rest)) {
                put(config, "Volumes", path, json!({}));
            }
        }
        "ONBUILD" => {
            let trigger = rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
            if ["ONBUILD", "FROM", "MAINTAINER"].contains(&trigger.as_str()) {
                return Err(wrong(&format!("{trigger} isn't allowed as an ONBUILD trigger")));
            }
            let mut triggers: Vec<String> = texts(config.get("OnBuild"));
            triggers.push(rest.to_owned());
            set(config, "OnBuild", triggers.into());
        }
        _ => {
            return Err(wrong(&format!("{name} is not a valid change command"))
                .with_hint("CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, USER, VOLUME and WORKDIR are"));
        }
    }
    Ok(())
}

fn set(config: &mut Map<String, Value>, member: &str, value: Value) {
    config.insert(member.to_owned(), value);
}

/// Puts a key into a member that is an object, or becomes one.
fn put(config: &mut Map<String, Value>, member: &str, key: String, value: Value) {
    let object = config.entry(member).or_insert_with(|| json!({}));
    if !object.is_object() {
        *object = json!({});
    }
    if let Some(object) = object.as_object_mut() {
        object.insert(key, value);
    }
}

fn texts(list: Option<&Value>) -> Vec<String> {
    let list = list.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The JSON form.
fn array(rest: &str) -> Option<Vec<String>> {
    serde_json::from_str(rest).ok()
}

/// The JSON form, or a line for the shell.
fn command(rest: &str) -> Value {
    match array(rest) {
        Some(words) => words.into(),
        None => json!(["/bin/sh", "-c", rest]),
    }
}

/// Words with quotes and escapes taken out.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote, mut begun) = (String::new(), None, false);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (None, '\'' | '"') => (quote, begun) = (Some(character), true),
            (Some(open), _) if open == character => quote = None,
            // Nothing is special between single quotes.
            (None | Some('"'), '\\') => {
                word.extend(characters.next());
                begun = true;
            }
            (None, blank) if blank.is_whitespace() => {
                if std::mem::take(&mut begun) {
                    words.push(std::mem::take(&mut word));
                }
            }
            _ => {
                word.push(character);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// `key=value` words, or one key and the rest of the line.
fn pairs(rest: &str) -> Option<Vec<(String, String)>> {
    let first = rest.split_whitespace().next()?;
    if !first.contains('=') {
        let (key, value) = rest.split_once(char::is_whitespace)?;
        return Some(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| {
        let (key, value) = word.split_once('=')?;
        (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
    };
    words(rest).into_iter().map(pair).collect()
}

/// `80`, `80/udp`, `8000-8010`, each port with its protocol.
fn ports(text: &str) -> Option<Vec<String>> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    let known = ["tcp", "udp", "sctp"].contains(&protocol.to_ascii_lowercase().as_str());
    (known && first <= last && first > 0)
        .then(|| (first..=last).map(|port| format!("{port}/{}", protocol.to_ascii_lowercase())).collect())
}

/// An absolute path without `.` and `..`.
fn cleaned(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a refused line is a failed test")]
mod tests {
    use super::*;

    fn changed(lines: &[&str]) -> Value {
        let mut config = Map::new();
        for line in lines {
            apply(&mut config, line).unwrap();
        }
        config.into()
    }

    #[test]
    fn every_instruction_is_taken() {
        let found = changed(&[
            "CMD [\"a\", \"b c\"]",
            "entrypoint run me",
            "ENV A=1 B=\"x y\" C=x\\ y",
            "ENV A 2 and more",
            "EXPOSE 80 53/udp 7000-7001",
            "LABEL a.b='c d' e=f",
            "ONBUILD RUN x",
            "USER 1:2",
            "VOLUME /a /b",
            "VOLUME [\"/c d\"]",
            "WORKDIR /x",
            "WORKDIR y/../z",
        ]);
        let expected = json!({
            "Cmd": ["a", "b c"],
            "Entrypoint": ["/bin/sh", "-c", "run me"],
            "Env": ["B=x y", "C=x y", "A=2 and more"],
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "7000/tcp": {}, "7001/tcp": {}},
            "Labels": {"a.b": "c d", "e": "f"},
            "OnBuild": ["RUN x"],
            "User": "1:2",
            "Volumes": {"/a": {}, "/b": {}, "/c d": {}},
            "WorkingDir": "/x/z",
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for line in ["", "CMD", "RUN x", "ENV A", "ENV =b", "EXPOSE x", "EXPOSE 9-8", "ONBUILD FROM x", "LABEL a"] {
            assert!(apply(&mut Map::new(), line).is_err(), "{line}");
        }
    }
}
