//! `banger vm logs`.

use std::{
    io::{self, IsTerminal},
    os::fd::OwnedFd,
};

use banger_proto::bus::{option::log, proxy::Options};
use clap::Args;
use tokio::io::AsyncReadExt;
use zbus::Variant;

use crate::{
    attach::Input,
    bus::Bus,
    error::{Error, Result},
    output,
    plain::Filter,
    service::Kind,
};

/// Show what the guest of a sandbox has written to its console
///
/// What steers a terminal is left out when the output goes to one.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm logs web
  banger vm logs -f --tail 20 web
  banger vm logs --vmm web         what the machine monitor itself says")]
pub struct Logs {
    /// A name, an id, or the beginning of an id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Go on with what comes, until the sandbox ends or you interrupt
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last so many lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u32>,
    /// Show what the machine monitor says, not the guest
    #[arg(long)]
    vmm: bool,
    /// Leave everything as it is, also on a terminal
    #[arg(long)]
    raw: bool,
}

impl Logs {
    pub async fn run(&self) -> Result<u8> {
        let pipe = self.open().await.map_err(|error| error.about(&self.sandbox))?;
        let failed = |source| Error::io("read the log", source);
        let mut pipe = Input::new(pipe).map_err(failed)?;
        let mut filter = (io::stdout().is_terminal() && !self.raw).then(Filter::default);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = pipe.read(&mut buffer).await.map_err(failed)?;
            match (&mut filter, count) {
                (_, 0) => return Ok(0),
                (Some(filter), count) => output::bytes(&filter.pass(&buffer[..count]))?,
                (None, count) => output::bytes(&buffer[..count])?,
            }
        }
    }

    async fn open(&self) -> Result<OwnedFd> {
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await?;
        let mut options = Options::from([(log::FOLLOW, Variant::from(self.follow))]);
        if let Some(lines) = self.tail {
            options.insert(log::TAIL, Variant::from(lines));
        }
        let which = if self.vmm { log::VMM } else { log::CONSOLE };
        bus.open_log(&vm, which, &options).await
    }
}
