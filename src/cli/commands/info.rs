use clap::Args;

use crate::environment::Globals;
use crate::format;
use crate::output::{Stop, line, stdout};

/// Print what this engine holds and where
#[derive(Args)]
pub struct Info {
    /// A Go template, or json
    #[arg(short, long)]
    format: Option<String>,
}

impl Info {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let info = engine::info::info(&engine)?;
        let value = serde_json::to_value(&info).unwrap_or_default();
        if let Some(template) = self.format {
            line(format::object(&template, &value)?)?;
            return Ok(0);
        }
        stdout(&format!(
            "Containers: {}\n Running: {}\n Stopped: {}\nImages: {}\nServer Version: {}\nStorage Driver: {}\nKernel Version: {}\n\
             Operating System: {}\nOSType: {}\nArchitecture: {}\nCPUs: {}\nTotal Memory: {}\nName: {}\n\
             Root Dir: {}\nRuntime Dir: {}\nSignature Policy: {}\n",
            info.containers,
            info.containers_running,
            info.containers_stopped,
            info.images,
            info.server_version,
            info.driver,
            info.kernel_version,
            info.operating_system,
            info.os_type,
            info.architecture,
            info.ncpu,
            base::units::binary_size(info.mem_total),
            info.name,
            info.docker_root_dir,
            info.runtime_dir,
            if info.signature_policy.is_empty() { "none: every image is accepted" } else { &info.signature_policy },
        ))?;
        Ok(0)
    }
}
