//! `banger kernel pull`.

use banger_proto::bus::{names::KERNEL_INTERFACE, option::pull_kernel as option, proxy::Options};
use clap::Args;
use zbus::Variant;

use crate::{
    client::{bus::Bus, job::Jobs, pull},
    error::Result,
    ui::{
        output,
        progress::{Progress, ProgressArgs},
        signals::Signals,
    },
};

/// Pull a kernel from a catalog
///
/// An interrupted pull resumes where it stopped.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger kernel list --available
  banger kernel pull debian

Next: `banger vm run --kernel debian`.")]
pub struct Pull {
    /// Name in the catalog
    #[arg(value_name = "ENTRY")]
    entry: String,
    /// Name for the kernel [default: its name in the catalog]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Share it with all users of this host (needs an administrator)
    #[arg(long)]
    shared: bool,
    /// Replace another kernel of the same name
    #[arg(long)]
    force: bool,
    /// Print the kernel as a JSON object instead of its name
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl Pull {
    pub async fn run(&self) -> Result<u8> {
        let progress = Progress::new(self.progress);
        let bus = Bus::connect().await?;
        let jobs = Jobs::of(&bus);
        let mut listener = Signals::catch()?.listen();
        let kernel = pull::kernel(&bus, &jobs, &progress, &mut listener, &self.entry, self.options()).await?;
        let kernel = bus.properties(&kernel, KERNEL_INTERFACE).await?;
        if self.json {
            output::json(&kernel.json())?;
        } else {
            output::text(&format!("{}\n", kernel.name()))?;
        }
        Ok(0)
    }

    fn options(&self) -> Options<'_> {
        let mut options = Options::new();
        if let Some(name) = &self.name {
            options.insert(option::NAME, Variant::from(name.as_str()));
        }
        for (key, flag) in [(option::SHARED, self.shared), (option::FORCE, self.force)] {
            if flag {
                options.insert(key, Variant::from(true));
            }
        }
        options
    }
}
