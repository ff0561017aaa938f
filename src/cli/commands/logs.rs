use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::SystemTime;

use base::time::parse_moment;
use base::{Kind, Report};
use clap::Args;
use engine::container::{self, logs::LogsRequest};

use crate::environment::Globals;
use crate::output::{Stop, written};

/// Print what a container wrote
#[derive(Args)]
pub struct Logs {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Put the time in front of each line
    #[arg(short, long)]
    timestamps: bool,
    /// Put what --log-opt labels, env and tag name in front of each line
    #[arg(long)]
    details: bool,
    /// How many lines from the end, or all
    #[arg(short = 'n', long, default_value = "all")]
    tail: String,
    /// Nothing older: RFC 3339, seconds since 1970, or a span like 10m
    #[arg(long)]
    since: Option<String>,
    /// Nothing newer
    #[arg(long)]
    until: Option<String>,
    container: String,
}

impl Logs {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let now = SystemTime::now();
        let moment = |text: &Option<String>| text.as_deref().map(|text| parse_moment(text, now)).transpose();
        let tail = match self.tail.as_str() {
            "all" => None,
            // Docker takes a negative number for all.
            number => match number.parse::<i64>() {
                Ok(number) => u64::try_from(number).ok(),
                Err(_) => return Err(Report::new(Kind::Usage, format!("invalid tail: {number}")).into()),
            },
        };
        let request =
            LogsRequest { follow: self.follow, tail, since: moment(&self.since)?, until: moment(&self.until)? };
        let engine = globals.engine()?;
        let id = container::find(&engine, &self.container)?;
        let details = if self.details {
            let attributes = container::logs::attributes(&engine, &id)?;
            let pairs = attributes.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value)));
            pairs.collect::<Vec<_>>().join(",") + " "
        } else {
            String::new()
        };
        let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
        // The reader's end is not a failure of the log: it ends the command by itself.
        let mut end: io::Result<()> = Ok(());
        let read = container::logs::logs(&engine, &id, &request, |entry| {
            let stream: &mut dyn Write = if entry.stream == "stderr" { &mut err } else { &mut out };
            let time = if self.timestamps { format!("{} ", entry.time) } else { String::new() };
            let done = [&time, &details, &entry.log].iter().try_for_each(|text| stream.write_all(text.as_bytes()));
            done.and_then(|()| stream.flush()).inspect_err(|error| end = Err(error.kind().into()))
        });
        written(end)?;
        read?;
        Ok(0)
    }
}

/// As Go writes a part of a query, so that commas, blanks and equals signs part what they are to part.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            b' ' => escaped.push('+'),
            _ => {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "%{byte:02X}");
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_escaped_as_in_a_query() {
        assert_eq!(escaped("a b,c=d/e-._~é"), "a+b%2Cc%3Dd%2Fe-._~%C3%A9");
    }
}
