//! `banger vm logs`.

use std::{
    io::{self, IsTerminal},
    os::fd::OwnedFd,
};

use banger_proto::{
    bus::{option::log, proxy::Options},
    guest::{Request, facts::Detached, message::DetachedLog},
};
use clap::Args;
use tokio::io::AsyncReadExt;
use zbus::Variant;

use super::{commands::last_without_session, numbers::whole};
use crate::{
    client::{bus::Bus, service::Kind},
    error::{Error, Result},
    guest::{agent::Guest, attach::Input},
    ui::{
        output,
        sanitize::{self, Filter},
        time::point_in_time,
    },
};

/// Show the console log of a sandbox
///
/// If the output is a terminal, control sequences are removed.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm logs web
  banger vm logs -f --tail 20 web
  banger vm logs --since 10m web   what was written in the last 10 minutes
  banger vm logs --since yesterday --until '2026-01-31 12:00' web
  banger vm logs --vmm web         the output of the VMM
  banger vm logs --exec -f web     the output of the last detached command, until it ends")]
pub struct Logs {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Follow the log until the sandbox ends or you press Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Start with the last LINES lines
    #[arg(short = 'n', long, value_name = "LINES", value_parser = whole::<u32>)]
    tail: Option<u32>,
    /// Start at this time, to the second: a period before now such as 10m or 1h30m, a date and time such as
    /// 2026-01-31T12:00, `today`, `yesterday`, or seconds since the Unix epoch
    #[arg(long, value_name = "TIME", value_parser = point_in_time, conflicts_with = "exec")]
    since: Option<u64>,
    /// End at this time
    #[arg(long, value_name = "TIME", value_parser = point_in_time, conflicts_with_all = ["exec", "follow"])]
    until: Option<u64>,
    /// Show the output of the VMM instead of the console
    #[arg(long)]
    vmm: bool,
    /// Show the output of the detached command with this number [default: the last one]
    #[arg(long, value_name = "NUMBER", num_args = 0..=1, require_equals = true, conflicts_with = "vmm",
        value_parser = whole::<u64>)]
    exec: Option<Option<u64>>,
    /// Keep control sequences, even on a terminal
    #[arg(long)]
    raw: bool,
}

impl Logs {
    pub async fn run(&self) -> Result<u8> {
        if let Some(id) = self.exec {
            let shown = self.show_command(id).await.map_err(|error| error.about(&self.sandbox));
            return match shown {
                // The normal way to end.
                Err(error) if self.follow && error.is_interrupted() => Ok(0),
                shown => shown.map(|()| 0),
            };
        }
        let (bus, pipe) = self.open().await.map_err(|error| error.about(&self.sandbox))?;
        let failed = |source| Error::io("read the log", source);
        let mut pipe = Input::new(pipe).map_err(failed)?;
        let mut filter = self.filter();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = pipe.read(&mut buffer).await.map_err(failed)?;
            if count == 0 {
                bus.check_stream().await.map_err(|error| error.about(&self.sandbox))?;
                return Ok(0);
            }
            show(&mut filter, &buffer[..count])?;
        }
    }

    /// Returns a filter for control sequences, if the output is a terminal.
    fn filter(&self) -> Option<Filter> {
        (io::stdout().is_terminal() && !self.raw).then(Filter::default)
    }

    /// Shows the output of a detached command, which the sandbox keeps.
    async fn show_command(&self, id: Option<u64>) -> Result<()> {
        let mut guest = Guest::of(&self.sandbox).await?;
        let id = match id {
            Some(id) => id,
            None => last(&mut guest, &self.sandbox).await?,
        };
        let request = Request::DetachedLog(DetachedLog { id, lines: self.tail, follow: self.follow });
        let mut filter = self.filter();
        let notes = guest
            .call(request, move |call| {
                while let Some(bytes) = call.output()? {
                    show(&mut filter, &bytes)?;
                }
                Ok(call.notes())
            })
            .await?;
        for remark in notes {
            eprintln!("note: {}", sanitize::line(&remark));
        }
        Ok(())
    }

    async fn open(&self) -> Result<(Bus, OwnedFd)> {
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await?;
        let mut options = Options::from([(log::FOLLOW, Variant::from(self.follow))]);
        if let Some(lines) = self.tail {
            options.insert(log::TAIL, Variant::from(lines));
        }
        for (key, time) in [(log::SINCE, self.since), (log::UNTIL, self.until)] {
            if let Some(time) = time {
                options.insert(key, Variant::from(time));
            }
        }
        let which = if self.vmm { log::VMM } else { log::CONSOLE };
        let log = bus.open_log(&vm, which, &options).await?;
        Ok((bus, log))
    }
}

fn show(filter: &mut Option<Filter>, bytes: &[u8]) -> Result<()> {
    match filter {
        Some(filter) => output::bytes(&filter.pass(bytes)),
        None => output::bytes(bytes),
    }
}

/// Returns the number of the last detached command that is no session.
async fn last(guest: &mut Guest, sandbox: &str) -> Result<u64> {
    let commands: Vec<Detached> = guest.query(Request::Detached).await?;
    last_without_session(commands).map(|command| command.id).ok_or_else(|| {
        Error::Refused(format!("no detached command was started in {sandbox}"))
            .with_hint("`banger vm exec -d NAME -- COMMAND` starts one.")
    })
}
