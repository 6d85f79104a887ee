//! `banger vm exec`.

use std::{
    io::{self, IsTerminal},
    os::fd::OwnedFd,
    pin::pin,
    time::Duration,
};

use banger_proto::{
    bus::{ErrorName, names::VM_INTERFACE, option::agent},
    guest::Exec,
};
use clap::Args;
use serde_json::json;
use zbus::OwnedObjectPath;

use super::{exec_args::ExecArgs, run::reminder};
use crate::{
    attach,
    bus::Bus,
    error::{Error, Result},
    guest::Guest,
    output,
    service::{Kind, id_of},
    settings::Settings,
    signals::Signals,
    workspace::{
        changed::Differing,
        record::{Kept, Records, reference},
        source::Repository,
        sync::{self, Changes},
        tooling,
    },
};

/// Where in a sandbox what detached commands write goes, until its next boot.
pub const LOGS: &str = "/run/banger/exec";
/// The longest time that the service lets anything take.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// When it is said that a stream is waited for. A guest that is busy may take a while to answer, too.
const TELL_AFTER: Duration = Duration::from_secs(3);

/// Run a command or a shell in a sandbox that is running
///
/// Without a command it is a login shell. Input, output, signals and the size of the terminal are passed on,
/// and the exit status is the command's. A second interrupt leaves the command, which is then ended.
///
/// Where a repository was sent from here, the command runs in it, and you are told when files here have changed since.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm exec web                        a shell
  banger vm exec web -- uname -a
  banger vm exec -w /srv -e PORT=80 web -- ./serve
  banger vm exec -it web sh                 as in `docker exec`
  while read f; do banger vm exec -n web -- wc \"$f\"; done < files
  banger vm exec -d web -- ./serve          goes on without this command
  banger vm logs --exec web                 and what it has written

Exit status:
  that of the command; 128 and the signal's number when a signal ended it
  125  banger itself failed
  126  the command cannot be run in the sandbox
  127  the command is not there
  2    banger was called the wrong way")]
pub struct ExecCommand {
    #[command(flatten)]
    target: Target,
    /// The command and its arguments [default: a login shell]
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Return once the command runs; it has no input, and its output goes into a file there whose name is printed
    #[arg(short, long, conflicts_with = "tty", requires = "command")]
    detach: bool,
    /// With --detach, print an object with the name of that file
    #[arg(long, requires = "detach")]
    json: bool,
}

/// Where a command runs.
#[derive(Debug, Args)]
pub struct Target {
    /// A name, an id, or the beginning of an id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Run it in the workspace at this path [default: the one that was sent last]
    #[arg(long, value_name = "PATH", conflicts_with = "workdir")]
    guest_path: Option<String>,
    /// How long to wait while as many commands run in the sandbox as can at once [default: as long as it takes]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Send what has changed in the repository here before [default: as `auto_prepare` is set]
    #[arg(long, overrides_with = "no_auto_prepare")]
    auto_prepare: bool,
    /// Leave the workspace as it is
    #[arg(long, overrides_with = "auto_prepare")]
    no_auto_prepare: bool,
    #[command(flatten)]
    exec: ExecArgs,
}

impl ExecCommand {
    pub async fn run(&self) -> Result<u8> {
        let exec = &self.target.exec;
        if self.detach {
            let log = format!("{LOGS}/{}.log", crate::age::now());
            let request = Exec { log: Some(log.clone()), ..exec.detached(&self.command) };
            let status = self.target.run(request).await?;
            match self.json {
                true => output::json(&json!({ "log": log }))?,
                false => output::text(&format!("{log}\n"))?,
            }
            return Ok(status);
        }
        self.target.run(exec.exec(&self.command)).await
    }
}

impl Target {
    /// Runs a command there.
    pub async fn run(&self, mut exec: Exec) -> Result<u8> {
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await.map_err(|error| error.about(&self.sandbox))?;
        let kept = Records::of(&id_of(&vm))?.find(self.guest_path.as_deref());
        if kept.is_none() && (self.auto_prepare || self.guest_path.is_some()) {
            return Err(Error::Refused(format!("no repository was sent to {} from here", self.sandbox))
                .advise(format!("`banger vm workspace prepare {} PATH` sends one.", self.sandbox)));
        }
        if let Some(kept) = kept {
            let owner = kept.record.owner().to_owned();
            let is_owners = self.exec.is_of(&owner);
            let place = Some(kept.record.guest_path.clone()).filter(|_| is_owners);
            exec.user.get_or_insert(owner);
            exec.cwd = exec.cwd.or(place);
            tooling::put_env(&mut exec, &kept.record.env);
            if kept.record.mise && !exec.argv.is_empty() && is_owners {
                exec.argv = tooling::wrapped(&exec.argv);
            }
            self.settle(&bus, &vm, kept).await?;
        }
        let stream = self.open(&bus, &vm).await.map_err(|error| advise(error).about(&self.sandbox))?;
        // Until here a signal ends us as it ends any program.
        let listener = &mut Signals::catch()?.listen();
        attach::run(stream, exec, self.exec.stdin(), listener).await.map_err(advise_elsewhere)
    }

    /// A stream for the command. Who has to wait for one is told so.
    async fn open(&self, bus: &Bus, vm: &OwnedObjectPath) -> Result<OwnedFd> {
        let timeout = self.timeout.map_or(FOREVER, |seconds| Duration::from_secs(seconds.into()));
        let mut opening = pin!(bus.open_agent(vm, agent::COMMAND, Some(timeout)));
        tokio::select! {
            stream = &mut opening => return stream,
            () = tokio::time::sleep(TELL_AFTER) => {}
        }
        eprintln!(
            "waiting for a stream to {}: it is slow, or as many commands run in it as can",
            self.sandbox
        );
        opening.await
    }

    /// A login shell, and then a word on whether the sandbox goes on.
    pub async fn shell(&self) -> Result<u8> {
        let status = self.run(self.exec.exec(&[])).await;
        let bus = Bus::connect().await?;
        if let Ok(vm) = bus.find(Kind::Vm, &self.sandbox).await
            && let Ok(sandbox) = bus.properties(&vm, VM_INTERFACE).await
            && let Some(line) = reminder(&sandbox)
            && io::stderr().is_terminal()
        {
            eprintln!("{line}");
        }
        status
    }

    /// Sends what has changed here, or says that something has.
    async fn settle(&self, bus: &Bus, vm: &OwnedObjectPath, kept: Kept) -> Result<()> {
        let reference = reference(&self.sandbox, self.guest_path.as_deref());
        if !self.prepares(&kept)? {
            // A revision that was sent instead of the work tree does not follow it. That files here cannot be
            // compared, as when they were moved elsewhere, keeps nobody from working in the sandbox.
            if !kept.record.from_commit
                && let Ok(differing) = Differing::find(&kept)
                && let Some(warning) = sync::warning(&kept, &differing, &reference)
            {
                eprintln!("warning: {warning}");
            }
            return Ok(());
        }
        let differing = Differing::find(&kept)?;
        if differing.is_empty() && Repository::head_now(&kept.record.source)? == kept.record.commit {
            return Ok(());
        }
        let changes = Changes::find(&kept, differing)?;
        let listener = Signals::catch()?.listen();
        let mut guest = Guest::new(bus.clone(), vm.clone(), listener);
        sync::send(&mut guest, kept, changes).await.map_err(|error| error.about(&reference))
    }

    /// Whether what has changed here is sent before.
    fn prepares(&self, kept: &Kept) -> Result<bool> {
        Ok(match (self.auto_prepare, self.no_auto_prepare) {
            (true, _) => true,
            (_, true) => false,
            _ => !kept.record.from_commit && Settings::of_caller()?.auto_prepare,
        })
    }
}

/// The workspace may have been removed there.
fn advise_elsewhere(error: Error) -> Error {
    match &error {
        Error::Guest(failure) if failure.message.contains("there is no directory") => {
            error.advise("`--workdir /` runs it elsewhere.")
        }
        _ => error,
    }
}

/// Who wants to go into what is down has to boot it.
fn advise(error: Error) -> Error {
    match error.name() {
        Some(ErrorName::InvalidState) => error.advise("`banger vm start NAME` boots it."),
        Some(ErrorName::TooManyRequests) => {
            error.advise("wait until one of its commands ends, or wait longer with `--timeout SECONDS`.")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Test {
        #[command(flatten)]
        exec: ExecCommand,
    }

    fn check(line: &str, sandbox: &str, command: &[&str]) {
        let parsed = Test::try_parse_from(format!("exec {line}").split_whitespace()).unwrap().exec;
        assert_eq!(
            (parsed.target.sandbox.as_str(), parsed.command),
            (sandbox, command.iter().map(|w| w.to_string()).collect())
        );
    }

    #[test]
    fn the_options_of_the_command_are_not_ours() {
        check("web", "web", &[]);
        check("web -- ls -l", "web", &["ls", "-l"]);
        check("web ls -t -d", "web", &["ls", "-t", "-d"]);
        check("-T web -- -odd", "web", &["-odd"]);
        check("web -- env -- x", "web", &["env", "--", "x"]);
    }

    #[test]
    fn a_shell_cannot_be_detached() {
        assert!(Test::try_parse_from(["exec", "-d", "web"]).is_err());
        assert!(Test::try_parse_from(["exec", "-d", "-t", "web", "--", "ls"]).is_err());
        assert!(Test::try_parse_from(["exec", "-d", "web", "--", "ls"]).is_ok());
    }
}
