//! Questions on the terminal. They are written to standard error: standard output is for answers.

use std::io::{self, BufRead, Read};

use base::{Context, Kind, Report};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use crate::output;

/// More than this is no answer.
const ANSWER_MAX: usize = 4096;
const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const ERASE: [u8; 2] = [0x08, 0x7f];
const ERASE_LINE: u8 = 0x15;

/// Asks for a line.
pub fn line(question: &str) -> Result<String, Report> {
    ask(question);
    let mut answer = String::new();
    let read = io::stdin().lock().take(ANSWER_MAX as u64).read_line(&mut answer);
    read.map_err(|error| Report::of(Kind::Usage, error).with_step("reading the answer"))?;
    Ok(answer.trim().to_owned())
}

/// Asks for a line that is not shown. The terminal makes no signal meanwhile: one that ended us would leave it without echo.
pub fn secret(question: &str) -> Result<String, Report> {
    let hidden = Hidden::begin()?;
    ask(question);
    let answer = edited(io::stdin().lock().bytes());
    drop(hidden);
    ask("\n");
    let answer = answer.map_err(|error| Report::of(Kind::Usage, error).with_step("reading the answer"))?;
    answer.ok_or_else(|| Report::new(Kind::Usage, "interrupted"))
}

fn ask(question: &str) {
    // Who cannot see the question can still answer it.
    let _ = output::stderr(question);
}

/// A line from single keys, with the usual ones to correct it; `None` after an interrupt.
fn edited(keys: impl Iterator<Item = io::Result<u8>>) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    for key in keys {
        match key? {
            INTERRUPT => return Ok(None),
            b'\n' | b'\r' => break,
            END if line.is_empty() => break,
            ERASE_LINE => line.clear(),
            key if ERASE.contains(&key) => {
                // A character may have several bytes.
                while line.pop().is_some_and(|byte: u8| byte & 0xc0 == 0x80) {}
            }
            key if line.len() < ANSWER_MAX => line.push(key),
            _ => {}
        }
    }
    String::from_utf8(line).map(Some).map_err(io::Error::other)
}

/// A terminal that shows nothing and gives single keys, until this is dropped.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> Result<Self, Report> {
        let failed = |error| Report::of(Kind::Unsupported, io::Error::from(error));
        let before = tcgetattr(io::stdin()).map_err(failed).step(|| "reading the terminal's settings".to_owned())?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &hidden)
            .map_err(failed)
            .step(|| "hiding what is typed".to_owned())?;
        Ok(Hidden(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &self.0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "the keys of the tests can be read")]
mod tests {
    use super::*;

    #[test]
    fn keys_make_a_line() {
        for (keys, line) in [
            ("secret\nrest", Some("secret")),
            ("sx\u{7f}ecret\r", Some("secret")),
            ("xä\u{7f}\u{8}s\n", Some("s")),
            ("wrong\u{15}right\n", Some("right")),
            ("ab\u{4}c\n", Some("ab\u{4}c")),
            ("\u{4}", Some("")),
            ("ab\u{3}c\n", None),
            ("", Some("")),
        ] {
            assert_eq!(edited(keys.bytes().map(Ok)).unwrap().as_deref(), line, "{keys:?}");
        }
    }
}
