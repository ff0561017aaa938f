//! Instructions of a Dockerfile that change an image's configuration, as `commit -c` and `import -c` take them.
//!
//! The grammar is that of a Dockerfile's line (BuildKit's parser): the JSON form counts only if the whole rest is an array
//! of strings, else it is the shell's; `ENV` and `LABEL` have `key=value` words with quotes and escapes, or the old form
//! `key rest`. Variables are those that the instructions before have set, and the container or the image; they mean nothing
//! in `CMD`, `ENTRYPOINT` and `ONBUILD`, whose shell knows its own.

use base::time::parse_span;
use base::{Kind, Report};
use oci::HealthCheck;
use serde_json::{Map, Value, json};

use crate::image::expand::{expand, split};

/// Applies instructions to the member `config` of an image's configuration. As in a Dockerfile, an entrypoint takes away the
/// command that was there before, but not one that these instructions set.
pub(crate) fn apply(config: &mut Map<String, Value>, lines: &[String]) -> Result<(), Report> {
    let mut has_command = false;
    for line in lines {
        let changed = apply_one(config, line)?;
        has_command |= changed == "CMD";
        if changed == "ENTRYPOINT" && !has_command {
            config.remove("Cmd");
        }
    }
    Ok(())
}

/// Applies one instruction; its name.
fn apply_one(config: &mut Map<String, Value>, line: &str) -> Result<String, Report> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let (name, rest) = (word.to_ascii_uppercase(), rest.trim());
    let wrong = |why: &str| Report::new(Kind::Usage, format!("{line:?}: {why}"));
    if rest.is_empty() {
        return Err(wrong("the instruction has no arguments"));
    }
    let env = texts(config.get("Env"));
    let expanded = |word: &str| expand(word, &env).map_err(|why| wrong(&why));
    match name.as_str() {
        "CMD" => set(config, "Cmd", command(rest)),
        "ENTRYPOINT" => set(config, "Entrypoint", command(rest)),
        "HEALTHCHECK" => set(config, "Healthcheck", json!(health_check(rest).map_err(|why| wrong(&why))?)),
        "USER" => set(config, "User", expanded(rest)?.into()),
        "WORKDIR" => {
            let old = config.get("WorkingDir").and_then(Value::as_str).unwrap_or_default();
            let path = expanded(rest)?;
            let path = if path.starts_with('/') { path } else { format!("{old}/{path}") };
            set(config, "WorkingDir", cleaned(&path).into());
        }
        "ENV" => {
            let pairs = pairs(rest).ok_or_else(|| wrong("ENV must have two arguments, or words NAME=VALUE"))?;
            let mut new = env.clone();
            for (key, value) in pairs {
                let (key, value) = (expanded(&key)?, expanded(&value)?);
                new.retain(|old| old.split('=').next() != Some(&key));
                new.push(format!("{key}={value}"));
            }
            set(config, "Env", new.into());
        }
        "LABEL" => {
            let pairs = pairs(rest).ok_or_else(|| wrong("LABEL must have two arguments, or words NAME=VALUE"))?;
            for (key, value) in pairs {
                put(config, "Labels", expanded(&key)?, expanded(&value)?.into());
            }
        }
        "EXPOSE" => {
            for word in split(rest) {
                for port in expanded(&word)?.split_whitespace() {
                    for port in ports(port).ok_or_else(|| wrong(&format!("invalid containerPort: {port}")))? {
                        put(config, "ExposedPorts", port, json!({}));
                    }
                }
            }
        }
        "VOLUME" => {
            for path in array(rest).unwrap_or_else(|| split(rest)) {
                put(config, "Volumes", expanded(&path)?, json!({}));
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
                .with_hint("CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, USER, VOLUME and WORKDIR are"));
        }
    }
    Ok(name)
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

/// `NONE`, or options and `CMD` with either form of a command.
fn health_check(rest: &str) -> Result<HealthCheck, String> {
    let mut check = HealthCheck::default();
    let mut rest = rest;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        rest = after.trim_start();
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let wrong = || format!("invalid value {value:?} of --{key}");
        let place = match key {
            "interval" => &mut check.interval_ns,
            "timeout" => &mut check.timeout_ns,
            "start-period" => &mut check.start_period_ns,
            "start-interval" => &mut check.start_interval_ns,
            "retries" => {
                check.retries = value.parse().map_err(|_| wrong())?;
                continue;
            }
            _ => return Err(format!("unknown flag: {key}")),
        };
        *place = parse_span(value).and_then(|span| u64::try_from(span.as_nanos()).ok()).ok_or_else(wrong)?;
    }
    let (word, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    match (word.to_ascii_uppercase().as_str(), rest.trim()) {
        ("NONE", "") if check == HealthCheck::default() => return Ok(HealthCheck::none()),
        ("NONE", _) => return Err("HEALTHCHECK NONE takes no arguments".to_owned()),
        ("CMD", "") => return Err("Missing command after HEALTHCHECK CMD".to_owned()),
        ("CMD", rest) => {
            let words = array(rest);
            let kind = if words.is_some() { "CMD" } else { "CMD-SHELL" };
            check.test.push(kind.to_owned());
            check.test.extend(words.unwrap_or_else(|| vec![rest.to_owned()]));
        }
        _ => return Err(format!("Unknown type {word:?} in HEALTHCHECK (try CMD)")),
    }
    Ok(check)
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
    split(rest).into_iter().map(pair).collect()
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
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        apply(&mut config, &lines).unwrap();
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
    fn a_health_check_has_options_and_a_command() {
        let check = |line: &str| changed(&[line])["Healthcheck"].clone();
        let second = 1_000_000_000_u64;
        assert_eq!(
            check(
                "HEALTHCHECK --interval=5s --timeout=3s --start-period=1m --start-interval=1s --retries=2 CMD [\"a\", \"b c\"]"
            ),
            json!({"Test": ["CMD", "a", "b c"], "Interval": 5 * second, "Timeout": 3 * second, "StartPeriod": 60 * second,
                "StartInterval": second, "Retries": 2})
        );
        assert_eq!(check("healthcheck cmd curl $A || exit 1"), json!({"Test": ["CMD-SHELL", "curl $A || exit 1"]}));
        assert_eq!(check("HEALTHCHECK NONE"), json!({"Test": ["NONE"]}));
        for line in
            ["x", "NONE x", "--interval=5s NONE", "CMD", "--interval=5 CMD x", "--nope=1 CMD x", "--retries=x CMD x"]
        {
            assert!(health_check(line).is_err(), "{line}");
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for line in ["", "CMD", "RUN x", "ENV A", "ENV =b", "EXPOSE x", "EXPOSE 9-8", "ONBUILD FROM x", "LABEL a"] {
            assert!(apply(&mut Map::new(), &[line.to_owned()]).is_err(), "{line}");
        }
    }

    #[test]
    fn variables_are_those_of_the_instructions_before() {
        let found = changed(&[
            "ENV A=1 PORTS=\"80 81\" NAME=k",
            "ENV A=2 B=$A C='$A' D=\"x $A\"",
            "ENV OLD form of $A \"quoted\"",
            "WORKDIR /${B}/${NONE:-d}",
            "EXPOSE $PORTS 90/${P:-udp}",
            "USER ${U:-me}",
            "VOLUME [\"/v$A\"]",
            "VOLUME /w$A",
            "LABEL $NAME=${A:+set}",
            "CMD echo $A",
        ]);
        let expected = json!({
            "Env": ["PORTS=80 81", "NAME=k", "A=2", "B=1", "C=$A", "D=x 1", "OLD=form of 2 quoted"],
            "WorkingDir": "/1/d",
            "ExposedPorts": {"80/tcp": {}, "81/tcp": {}, "90/udp": {}},
            "User": "me",
            "Volumes": {"/v2": {}, "/w2": {}},
            "Labels": {"k": "set"},
            "Cmd": ["/bin/sh", "-c", "echo $A"],
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn an_entrypoint_takes_an_older_command_away() {
        let lines = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut config = Map::from_iter([("Cmd".to_owned(), json!(["old"]))]);
        apply(&mut config, &lines(&["ENTRYPOINT x"])).unwrap();
        assert_eq!(config.get("Cmd"), None);
        apply(&mut config, &lines(&["CMD y", "ENTRYPOINT x"])).unwrap();
        assert!(config.contains_key("Cmd"));
    }
}
