//! `banger metrics`.

use std::io::Read;

use banger_proto::bus::{option::filter, proxy::Options};
use clap::Args;
use zbus::Variant;

use crate::{
    client::bus::Bus,
    error::{Error, Result},
    ui::output,
};

/// Print metrics of your sandboxes and jobs, as OpenMetrics text
///
/// If you may see other users' sandboxes, as root may, this includes metrics of all users, of the service and of the
/// host.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger metrics
  banger metrics | grep sandbox_memory")]
pub struct Metrics {
    /// Print those of all users; this may ask for a password
    #[arg(long)]
    all_users: bool,
}

impl Metrics {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        let options = match self.all_users {
            true => Options::from([(filter::ALL, Variant::from(true))]),
            false => Options::new(),
        };
        let mut stream = std::os::unix::net::UnixStream::from(bus.open_metrics(&options).await?);
        let mut text = String::new();
        // Nothing else happens meanwhile, and the service writes at once.
        stream.read_to_string(&mut text).map_err(|error| Error::io("cannot read the metrics", error))?;
        bus.check_stream().await?;
        output::text(&text)?;
        Ok(0)
    }
}
