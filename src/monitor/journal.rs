//! The log driver journald: lines of a container as entries of systemd's journal, by its native protocol
//! (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram an entry, of fields with their lengths.
//!
//! Nobody waits for the journal. An entry that it does not take at once is lost to it and counted; the container's own log, of
//! which `logs` reads, has it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use crate::log::Stream;

/// Where the journal listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// A connection to the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    address: PathBuf,
    /// What each entry has.
    fields: Vec<u8>,
    entry: Vec<u8>,
}

impl Journal {
    /// Entries with these fields go to who listens at `address`; nobody need be there yet.
    pub fn open(address: PathBuf, fields: &BTreeMap<String, String>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let mut encoded = Vec::new();
        for (name, value) in fields {
            field(&mut encoded, name, value.as_bytes());
        }
        Ok(Journal { socket, address, fields: encoded, entry: Vec::new() })
    }

    /// Sends a line, or a piece of one that has no newline at its end; false where it was not taken.
    pub fn send(&mut self, stream: Stream, text: &[u8]) -> bool {
        // Informational, and error (syslog(3)), as with Docker.
        let priority = match stream {
            Stream::Stdout => b"6",
            Stream::Stderr => b"3",
        };
        self.entry.clear();
        self.entry.extend_from_slice(&self.fields);
        field(&mut self.entry, "PRIORITY", priority);
        let text = text.strip_suffix(b"\n").unwrap_or_else(|| {
            field(&mut self.entry, "CONTAINER_PARTIAL_MESSAGE", b"true");
            text
        });
        field(&mut self.entry, "MESSAGE", text);
        // By its address each time: a journal that was started again has another socket.
        self.socket.send_to(&self.entry, &self.address).is_ok()
    }
}

fn field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_its_fields_and_a_journal_that_is_gone_costs_nothing() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let address = directory.path().join("socket");
        let listener = UnixDatagram::bind(&address).expect("a socket");
        let fields = BTreeMap::from([("CONTAINER_NAME".to_owned(), "web".to_owned())]);
        let mut journal = Journal::open(address.clone(), &fields).expect("a socket");
        assert!(journal.send(Stream::Stdout, b"a\n") && journal.send(Stream::Stderr, b"bc"));
        let mut buffer = [0; 512];
        let mut next = || listener.recv(&mut buffer).map(|length| buffer[..length].to_vec()).expect("an entry");
        let head = b"CONTAINER_NAME\n\x03\0\0\0\0\0\0\0web\nPRIORITY\n\x01\0\0\0\0\0\0\0";
        assert_eq!(next(), [&head[..], b"6\nMESSAGE\n\x01\0\0\0\0\0\0\0a\n"].concat());
        let partial = b"3\nCONTAINER_PARTIAL_MESSAGE\n\x04\0\0\0\0\0\0\0true\nMESSAGE\n\x02\0\0\0\0\0\0\0bc\n";
        assert_eq!(next(), [&head[..], partial].concat());
        drop(listener);
        assert!(!journal.send(Stream::Stdout, b"d\n"));
        std::fs::remove_file(&address).expect("the socket's name");
        let again = UnixDatagram::bind(&address).expect("a socket");
        assert!(journal.send(Stream::Stdout, b"e\n"));
        assert!(again.recv(&mut [0; 512]).is_ok());
    }
}
