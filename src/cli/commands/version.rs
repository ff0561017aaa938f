use clap::Args;

use crate::environment::Globals;
use crate::format;
use crate::output::{Stop, line, stdout};

/// Print the version of this program
#[derive(Args)]
pub struct Version {
    /// A Go template, or json
    #[arg(short, long)]
    format: Option<String>,
}

impl Version {
    pub fn execute(self, _globals: &Globals) -> Result<u8, Stop> {
        let version = engine::info::version();
        if let Some(template) = self.format {
            let mut value = serde_json::to_value(&version).unwrap_or_default();
            // Docker's template sees two programs; here both are one.
            (value["Client"], value["Server"]) = (value.clone(), value.clone());
            line(format::object(&template, &value)?)?;
            return Ok(0);
        }
        stdout(&format!(
            "sublet:\n Version:  {}\n OS/Arch:  {}/{}\n Kernel:   {}\n",
            version.version, version.os, version.arch, version.kernel_version
        ))?;
        Ok(0)
    }
}
