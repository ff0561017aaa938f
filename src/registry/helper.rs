//! Credential helpers: programs that keep passwords (the protocol of docker-credential-helpers). A helper gets one action as
//! its argument and a server or a document at its standard input, and answers at its standard output.
//!
//! A helper may ask its user, so it has time; what it says is limited. At the limit it is killed. What it writes to standard
//! error is for the user and goes there.

use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::Result;
use crate::auth::{Credential, server_key};
use crate::error::{RegistryError, json_trouble};
use crate::notes::printable;

/// A user may have to find a key or a finger.
const LIMIT: Duration = Duration::from_mins(1);
/// The most that is read from a helper.
const ANSWER_MAX: u64 = 64 << 10;
/// How long a helper may take to end once it has said all.
const END_LIMIT: Duration = Duration::from_secs(2);
/// What every helper says when it has nothing for a server; the exit code is that of any error.
const NOT_FOUND: &str = "credentials not found in native keychain";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The credential of a host; `None` if the helper has none.
pub(crate) fn get(name: &str, host: &str) -> Result<Option<Credential>> {
    let said = match run(name, "get", server_key(host).as_bytes(), LIMIT)? {
        Ok(said) => said,
        Err(said) if said.contains(NOT_FOUND) => return Ok(None),
        Err(said) => return Err(failed(name, "get", said)),
    };
    let answer: Answer = serde_json::from_str(&said)
        .map_err(|error| failed(name, "get", format!("its answer is malformed: {}", json_trouble(&error))))?;
    Ok(Credential::of_user(answer.username, answer.secret))
}

/// Gives a helper a password to keep.
pub fn store(name: &str, server: &str, user: &str, password: &str) -> Result<()> {
    let document = serde_json::json!({ "ServerURL": server_key(server), "Username": user, "Secret": password });
    let done = run(name, "store", document.to_string().as_bytes(), LIMIT)?;
    done.map(drop).map_err(|said| failed(name, "store", said))
}

/// Makes a helper forget a password; whether it had one.
pub fn erase(name: &str, server: &str) -> Result<bool> {
    match run(name, "erase", server_key(server).as_bytes(), LIMIT)? {
        Ok(_) => Ok(true),
        Err(said) if said.contains(NOT_FOUND) => Ok(false),
        Err(said) => Err(failed(name, "erase", said)),
    }
}

fn failed(name: &str, action: &'static str, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> RegistryError {
    RegistryError::Helper { program: program(name), action, cause: why.into() }
}

fn program(name: &str) -> String {
    format!("docker-credential-{name}")
}

/// Runs a helper to its end; what it said, as an error if it failed.
fn run(name: &str, action: &'static str, input: &[u8], limit: Duration) -> Result<std::result::Result<String, String>> {
    // The name is a word for the search path, not a path.
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(failed(name, action, "a helper's name is of letters, digits, - _ and ."));
    }
    let mut command = Command::new(program(name));
    command.arg(action).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(name, action, error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // By a thread that ends with the helper at the latest: one that does not read has no more time than others. One
        // that ends without reading says why by its output.
        let input = input.to_vec();
        std::thread::spawn(move || drop(stdin.write_all(&input)));
    }
    let said = child.stdout.take().map_or(Some(Vec::new()), |stdout| read(stdout, limit));
    let status = match said {
        Some(_) => end(&mut child, END_LIMIT),
        None => end(&mut child, Duration::ZERO),
    };
    let status = status.map_err(|error| failed(name, action, error))?;
    match (said, status) {
        (Some(said), Some(status)) => {
            let said = String::from_utf8_lossy(&said).trim().to_owned();
            Ok(if status.success() { Ok(said) } else { Err(printable(&format!("{status}: {}", reason(&said)))) })
        }
        _ => Err(failed(name, action, format!("it did not end within {} s", limit.as_secs()))),
    }
}

/// What a helper that failed said. A document is no reason, and may hold a password.
fn reason(said: &str) -> &str {
    said.lines().next().filter(|line| !line.contains(['{', '"'])).unwrap_or_default()
}

/// Reads to the end, by a thread that may outlive the limit; `None` at the limit.
fn read(stdout: ChildStdout, limit: Duration) -> Option<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut said = Vec::new();
        // Half an answer is malformed, which is told.
        let _ = stdout.take(ANSWER_MAX).read_to_end(&mut said);
        // Nobody waits any more after the limit.
        let _ = send.send(said);
    });
    receive.recv_timeout(limit).ok()
}

/// Waits for the end of a child that has said all, and kills it at the limit; `None` if it was killed.
fn end(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if began.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        // Its output is closed, so it ends within moments; this library has no event for that.
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_path() {
        for name in ["", "../x", "a/b", "a b", "a\nb", "ä"] {
            assert!(matches!(get(name, "a.io"), Err(RegistryError::Helper { .. })), "{name}");
        }
        assert!(get("there-is-no-such-helper", "a.io").is_err());
    }

    #[test]
    fn a_document_is_no_reason() {
        for (said, shown) in [("locked\nmore", "locked"), (r#"{"Secret":"x"}"#, ""), ("", "")] {
            assert_eq!(reason(said), shown);
        }
    }
}
