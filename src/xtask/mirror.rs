//! The mirror of the host's apt, which tests install packages from.

use std::net::TcpStream;

/// Whether this mirror can be asked from inside a container, which has none of the host's keys and certificates; if not,
/// why not.
pub fn reach(mirror: Option<&str>) -> Result<(), &'static str> {
    let mirror = mirror.ok_or("the host's apt has no mirror")?;
    let host = mirror.strip_prefix("http://").and_then(|rest| rest.split('/').next());
    let host = host.ok_or("the host's mirror is not plain HTTP")?;
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    TcpStream::connect(&address).map(drop).map_err(|_| "the host's mirror cannot be reached")
}
