//! `banger kernel pull`.

use banger_proto::bus::{names::KERNEL_INTERFACE, option::pull_kernel as option, proxy::Options};
use clap::Args;
use zbus::Variant;

use crate::{
    bus::Bus,
    error::Result,
    job::Jobs,
    output,
    progress::{Progress, ProgressArgs},
    pull,
    signals::Signals,
};

/// Fetch a kernel from a catalog
///
/// Its files are kept as layers of images are, so that a fetch that was interrupted goes on where it was.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger kernel list --available
  banger kernel pull debian

Next: `banger vm run --kernel debian`.")]
pub struct Pull {
    /// What the catalog calls it
    #[arg(value_name = "ENTRY")]
    entry: String,
    /// The name that it gets [default: that of the entry]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Let every user of this host use it, which an administrator has to allow
    #[arg(long)]
    shared: bool,
    /// Take the place of another kernel that has the name
    #[arg(long)]
    force: bool,
    /// Print it as an object instead of its name
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
