//! The loopback registry: Debian's docker-registry on a free port of 127.0.0.1, plain HTTP, storage in a given directory.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::shell::{Fallible, which};

/// How long the registry may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running registry; it ends with this value.
pub struct Registry {
    child: Child,
    /// `127.0.0.1:port`.
    pub address: String,
}

impl Registry {
    /// Starts it; `None` when docker-registry is not installed.
    pub fn start(directory: &Path) -> Fallible<Option<Self>> {
        let Some(program) = which("docker-registry") else { return Ok(None) };
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let storage = directory.join("registry");
        fs::create_dir_all(&storage)?;
        let config = directory.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  delete:\n    enabled: true\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            storage.display()
        );
        fs::write(&config, text)?;
        let log = File::create(directory.join("registry.log"))?;
        let mut serve = Command::new(program);
        serve.arg("serve").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut registry = Registry { child: serve.spawn()?, address };
        registry.wait_until_it_listens()?;
        Ok(Some(registry))
    }

    fn wait_until_it_listens(&mut self) -> Fallible<()> {
        let began = Instant::now();
        // There is no event for "another process listens now"; the limit is what matters.
        while TcpStream::connect(&self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("docker-registry ended at once: {status}").into());
            }
            if began.elapsed() > START_LIMIT {
                return Err(format!("docker-registry does not listen after {} s", START_LIMIT.as_secs()).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing more to do about it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
