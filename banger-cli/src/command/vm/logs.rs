//! `banger vm logs`.

use std::{
    io::{self, IsTerminal},
    os::fd::OwnedFd,
};

use banger_proto::{
    bus::{option::log, proxy::Options},
    guest::{Exec, FailureKind, Frame, Request},
};
use clap::Args;
use tokio::io::AsyncReadExt;
use zbus::Variant;

use super::exec::LOGS;
use crate::{
    attach::Input,
    bus::Bus,
    error::{Error, Result},
    guest::Guest,
    output,
    plain::Filter,
    service::Kind,
    workspace::tooling::OWNER,
};

/// As much of what goes wrong in the sandbox as is told, in bytes.
const MOST: usize = 4096;

/// Show the console log of a sandbox
///
/// If the output is a terminal, control sequences are removed.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm logs web
  banger vm logs -f --tail 20 web
  banger vm logs --vmm web         the output of the VMM
  banger vm logs --exec -f web     the output of the last detached command")]
pub struct Logs {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Follow the log until the sandbox ends or you press Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Start with the last LINES lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u32>,
    /// Show the output of the VMM instead of the console
    #[arg(long)]
    vmm: bool,
    /// Show the output of a detached command, from the file that `banger vm exec -d` printed [default: that
    /// of the last one]
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        conflicts_with = "vmm"
    )]
    exec: Option<String>,
    /// Keep control sequences, even on a terminal
    #[arg(long)]
    raw: bool,
}

impl Logs {
    pub async fn run(&self) -> Result<u8> {
        if let Some(file) = &self.exec {
            let shown = self.show_command(file).await.map_err(|error| error.about(&self.sandbox));
            return match shown {
                // That is how it is meant to end.
                Err(error) if self.follow && error.is_interrupted() => Ok(0),
                shown => shown.map(|()| 0),
            };
        }
        let pipe = self.open().await.map_err(|error| error.about(&self.sandbox))?;
        let failed = |source| Error::io("read the log", source);
        let mut pipe = Input::new(pipe).map_err(failed)?;
        let mut filter = self.filter();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = pipe.read(&mut buffer).await.map_err(failed)?;
            if count == 0 {
                return Ok(0);
            }
            show(&mut filter, &buffer[..count])?;
        }
    }

    /// What takes out of the text what steers a terminal, where it goes to one.
    fn filter(&self) -> Option<Filter> {
        (io::stdout().is_terminal() && !self.raw).then(Filter::default)
    }

    /// Shows what a detached command has written, which the sandbox keeps.
    async fn show_command(&self, file: &str) -> Result<()> {
        let mut guest = Guest::of(&self.sandbox).await?;
        let file = match file {
            "" => last_log(&mut guest, &self.sandbox).await?,
            file => file.to_owned(),
        };
        let lines = self.tail.map_or("+1".to_owned(), |lines| lines.to_string());
        let mut argv = ["tail", "-n", &lines].map(str::to_owned).to_vec();
        argv.extend(self.follow.then(|| "-f".to_owned()));
        argv.extend(["--".to_owned(), file]);
        let exec = Exec { argv, cwd: Some("/".to_owned()), user: Some(OWNER.to_owned()), ..Exec::default() };
        let mut filter = self.filter();
        guest
            .call(Request::Exec(exec), move |call| {
                call.end_input()?;
                let mut errors = Vec::new();
                loop {
                    match call.frame()? {
                        Frame::Output(bytes) => show(&mut filter, &bytes)?,
                        Frame::ErrorOutput(bytes) if errors.len() < MOST => errors.extend(bytes),
                        Frame::Exit(exit) if exit.status() == 0 => return Ok(()),
                        Frame::Exit(_) => {
                            return Err(Error::Refused(String::from_utf8_lossy(&errors).into_owned()));
                        }
                        Frame::Failed(failure) => return Err(Error::Guest(failure)),
                        _ => {}
                    }
                }
            })
            .await
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

fn show(filter: &mut Option<Filter>, bytes: &[u8]) -> Result<()> {
    match filter {
        Some(filter) => output::bytes(&filter.pass(bytes)),
        None => output::bytes(bytes),
    }
}

/// The file of the command that was detached last: they are called by the time.
async fn last_log(guest: &mut Guest, sandbox: &str) -> Result<String> {
    let none = || {
        Error::Refused(format!("no detached command was started in {sandbox} since it booted"))
            .advise("`banger vm exec -d NAME -- COMMAND` starts one.")
    };
    let entries = match guest.list(LOGS).await {
        Err(Error::Guest(failure)) if failure.kind == FailureKind::NotFound => return Err(none()),
        entries => entries?,
    };
    let names = entries.into_iter().filter_map(|entry| String::from_utf8(entry.name).ok());
    names.filter(|name| name.ends_with(".log")).max().map(|name| format!("{LOGS}/{name}")).ok_or_else(none)
}
