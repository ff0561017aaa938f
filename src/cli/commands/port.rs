use std::net::IpAddr;

use base::{Kind, Report};
use clap::Args;
use engine::container;
use engine::container::record::PortMapping;
use engine::container::state::condition;

use crate::environment::Globals;
use crate::output::{Stop, line};

/// List where the ports of a container are published
#[derive(Args)]
pub struct Port {
    container: String,
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

impl Port {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let id = container::find(&engine, &self.container)?;
        let mut published = condition(&engine, &id)?.published();
        published.sort_by_key(|port| (port.container_port, port.protocol, port.host_ip, port.host_port));
        let Some(wanted) = &self.port else {
            for port in &published {
                line(format_args!("{} -> {}", inside(port), outside(port)))?;
            }
            return Ok(0);
        };
        let named = if wanted.contains('/') { wanted.clone() } else { format!("{wanted}/tcp") };
        published.retain(|port| inside(port) == named);
        if published.is_empty() {
            let text = format!("no public port '{wanted}' published for {}", self.container);
            return Err(Report::new(Kind::NotFound, text).into());
        }
        published.iter().try_for_each(|port| line(outside(port)))?;
        Ok(0)
    }
}

/// `80/tcp`.
fn inside(port: &PortMapping) -> String {
    format!("{}/{}", port.container_port, port.protocol.as_str())
}

/// `0.0.0.0:8080`, `[::]:8080`.
fn outside(port: &PortMapping) -> String {
    match port.host_ip {
        Some(IpAddr::V6(ip)) => format!("[{ip}]:{}", port.host_port),
        Some(ip) => format!("{ip}:{}", port.host_port),
        None => format!("0.0.0.0:{}", port.host_port),
    }
}
