//! The API socket of slirp4netns: one request a connection, JSON both ways.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sys::{Call, SysError};

use crate::{NetError, Published, Transport};

/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The most of an answer that is read.
const ANSWER_MAX: u64 = 64 << 10;

/// Has a port of the host's lead to the container.
pub fn publish(socket: &Path, container: Ipv4Addr, port: &Published) -> Result<(), NetError> {
    let request = json!({
        "execute": "add_hostfwd",
        "arguments": {
            "proto": match port.transport { Transport::Tcp => "tcp", Transport::Udp => "udp" },
            "host_addr": port.host_ip.to_string(),
            "host_port": port.host_port,
            "guest_addr": container.to_string(),
            "guest_port": port.container_port,
        },
    });
    let answer = ask(socket, request.to_string().as_bytes())?;
    match serde_json::from_str::<Value>(&answer).map_err(NetError::Protocol)?.get("error") {
        None => Ok(()),
        Some(error) => {
            let why = error.get("desc").and_then(Value::as_str).unwrap_or(&answer);
            let address = std::net::SocketAddr::new(port.host_ip, port.host_port);
            Err(NetError::Refused(format!("slirp4netns does not publish {address}: {why}")))
        }
    }
}

fn ask(socket: &Path, request: &[u8]) -> Result<String, SysError> {
    let mut answer = String::new();
    let asked = UnixStream::connect(socket).and_then(|mut stream| {
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(request)?;
        stream.shutdown(Shutdown::Write)?;
        stream.take(ANSWER_MAX).read_to_string(&mut answer)
    });
    asked.call(|| format!("asking slirp4netns at {socket:?}"))?;
    Ok(answer)
}
