//! The files of `/etc` that every container has of its own: `hosts`, `hostname`, `resolv.conf`.

use std::fmt::Write as _;
use std::fs;

use base::Report;

use crate::Engine;
use crate::container::record::{NetworkMode, Record};
use crate::file::replace;

/// Name in the container's directory, path in the container.
pub(crate) const BOUND: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

/// Writes the files anew, as the machine's resolvers may have changed since the last start. The container writes to
/// them through the bind, so a file that exists is replaced in place of its name only while nothing runs.
pub(crate) fn write(engine: &Engine, record: &Record) -> Result<(), Report> {
    let directory = engine.paths().container(&record.id);
    let contents = [hosts(record), format!("{}\n", record.settings.hostname), resolv_conf(record)];
    for ((name, _), content) in BOUND.iter().zip(contents) {
        replace(&directory.join(name), content.as_bytes(), false)?;
    }
    Ok(())
}

fn hosts(record: &Record) -> String {
    let mut text = match record.host.network {
        NetworkMode::Host => fs::read_to_string("/etc/hosts").unwrap_or_default(),
        NetworkMode::Builtin | NetworkMode::None => {
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\n\
             ff02::2\tip6-allrouters\n"
                .to_owned()
        }
    };
    for (name, address) in &record.host.add_hosts {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}

fn resolv_conf(_record: &Record) -> String {
    fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
}
