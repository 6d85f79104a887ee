//! `banger vm exec`.

use std::{
    io::{self, IsTerminal},
    os::fd::OwnedFd,
    pin::pin,
    time::Duration,
};

use banger_proto::{
    bus::{ErrorName, names::VM_INTERFACE, option::agent},
    guest::{Exec, FailureKind},
};
use clap::Args;
use serde_json::json;
use zbus::OwnedObjectPath;

use super::{
    attach::{finish, session_name},
    created::reminder,
    exec_args::{ExecArgs, is_owner},
    lookups::Lookups,
    numbers::whole,
    proxy::ProxyRelays,
    workspace_args::guest_path,
};
use crate::{
    client::{
        bus::Bus,
        service::{Kind, id_of},
    },
    error::{Error, Result},
    guest::{agent::Guest, attach, terminfo},
    mount::{self, Mounts},
    share::{self, Shares},
    ui::{
        output,
        progress::{Progress, ProgressArgs},
        signals::{Listener, Signals, unless_ended},
    },
    user::settings::Settings,
    workspace::{
        changed::ChangedFiles,
        devcontainer::lifecycle::Lifecycle,
        record::{Record, Records, StoredWorkspace, reference},
        sync::{self, OnConflict},
        tooling,
    },
};

/// The longest timeout that the service accepts.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// When to report the wait for a stream. A busy guest may also take a while to answer.
const NOTE_AFTER: Duration = Duration::from_secs(3);

/// Run a command or a shell in a running sandbox
///
/// Without a command, this opens a login shell. Input, output, signals and the size of the terminal are
/// passed on, and the exit status is the command's. A second Ctrl-C ends a command that runs without a terminal.
///
/// If you sent a repository, the command runs in it, and a warning says which files have changed on the host
/// since.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm exec web                        a shell
  banger vm exec web -- uname -a
  banger vm exec -w /srv -e PORT=80 web -- ./serve
  banger vm exec -it web sh                 as in `docker exec`
  while read f; do banger vm exec -n web -- wc \"$f\"; done < files
  banger vm exec -d web -- ./serve          in the background; prints the number of the command
  banger vm logs --exec web                 its output
  banger vm commands web                    all detached commands, and how they ended
  banger vm exec --session work web         a shell that survives the connection
  banger vm attach web work                 the same shell again

Exit status:
  that of the command, or 128 plus the number of the signal that ended it
  125  banger itself failed
  126  the command cannot be run in the sandbox
  127  the command was not found
  2    wrong usage")]
pub struct ExecCommand {
    #[command(flatten)]
    target: Target,
    /// Command and its arguments [default: a login shell]
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Run it in the background and print its number. It gets no input, and the sandbox keeps the end of its output
    #[arg(short, long, conflicts_with_all = ["tty", "session"], requires = "command")]
    detach: bool,
    /// With --detach, print a JSON object with that number
    #[arg(long, requires = "detach")]
    json: bool,
}

/// The sandbox and directory of a command.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Run it in the workspace at this path [default: the one that was sent last]
    #[arg(long, value_name = "PATH", value_parser = guest_path, conflicts_with = "workdir")]
    guest_path: Option<String>,
    /// How long to wait if the sandbox already runs as many commands as it can [default: as long as it takes]
    #[arg(long, value_name = "SECONDS", value_parser = whole::<u32>)]
    timeout: Option<u32>,
    /// Run it in a session with this name, which continues when the client is gone; `banger vm attach` attaches again.
    /// Without a command, attach to the session if it runs already. Ctrl-P Ctrl-Q detaches a terminal
    #[arg(long, value_name = "SESSION", value_parser = session_name)]
    session: Option<String>,
    /// First send the changes in the repository on the host [default: your setting `auto_prepare`]
    #[arg(long, overrides_with = "no_auto_prepare")]
    auto_prepare: bool,
    /// Do not send changes first
    #[arg(long, overrides_with = "auto_prepare")]
    no_auto_prepare: bool,
    #[command(flatten)]
    exec: ExecArgs,
}

impl ExecCommand {
    pub async fn run(&self) -> Result<u8> {
        let target = self.target.with_settings()?;
        let exec = &target.exec;
        if self.detach && !exec.shares().is_empty() {
            return Err(share::not_detached("--detach"));
        }
        if self.detach && !exec.mounts().is_empty() {
            return Err(mount::not_detached("--detach"));
        }
        if self.detach {
            let mut listener = Signals::catch()?.listen();
            let ready = target.prepare(exec.detached(&self.command), &mut listener).await?;
            ready.proxies.check_detached("--detach")?;
            let detached = unless_ended(&mut listener, attach::detach(ready.stream, &ready.exec)).await;
            match detached.map_err(hint_missing_workspace)? {
                Some(id) if self.json => output::json(&json!({ "id": id }))?,
                Some(id) => output::text(&format!("{id}\n"))?,
                None => eprintln!(
                    "warning: the guest was started by an earlier version of banger, and does not keep what the command \
                     writes"
                ),
            }
            return Ok(0);
        }
        target.run(exec.exec(&self.command)).await
    }
}

/// A command that can start.
struct Ready {
    bus: Bus,
    vm: OwnedObjectPath,
    stream: OwnedFd,
    exec: Exec,
    proxies: ProxyRelays,
}

impl Target {
    /// Returns the same target, with the user's defaults for options that were not given.
    fn with_settings(&self) -> Result<Self> {
        let settings = Settings::of_caller()?;
        Ok(Self { exec: self.exec.with(&settings), ..self.clone() })
    }

    /// Runs a command there.
    async fn run(&self, exec: Exec) -> Result<u8> {
        if self.session.is_some() && !self.exec.shares().is_empty() {
            return Err(share::not_detached("--session"));
        }
        if self.session.is_some() && !self.exec.mounts().is_empty() {
            return Err(mount::not_detached("--session"));
        }
        let sources = mount::open(&self.exec.mounts())?;
        // One listener for everything, because another one would miss the signals before it.
        let mut listener = Signals::catch()?.listen();
        unless_ended(&mut listener.resubscribe(), share::check(self.exec.shares())).await?;
        let Ready { bus, vm, stream, mut exec, proxies } = self.prepare(exec, &mut listener).await?;
        let shares = Shares::start((&bus, &vm, &listener), self.exec.shares(), exec.user.as_deref());
        let shares = unless_ended(&mut listener.resubscribe(), shares).await?;
        shares.add_to(&mut exec);
        let mounts = Mounts::start((&bus, &vm), sources, exec.user.as_deref());
        let mounts = unless_ended(&mut listener.resubscribe(), mounts).await?;
        if self.session.is_some() {
            proxies.check_detached("--session")?;
        }
        let is_shell = exec.argv.is_empty();
        let beginning = async { Ok(Lookups::begin(&bus, &vm).await) };
        let lookups = unless_ended(&mut listener, beginning).await?;
        let status = match &self.session {
            Some(session) => {
                let ended = attach::run_session(stream, exec, self.exec.stdin(), &mut listener).await;
                finish(bus.why(ended).await, &self.sandbox, session)
            }
            None => bus.why(attach::run(stream, exec, self.exec.stdin(), &mut listener).await).await,
        };
        drop((proxies, shares, mounts));
        if let Some(explanation) = lookups.explain(&status, is_shell, true).await {
            eprintln!("{explanation}");
        }
        status.map_err(hint_missing_workspace)
    }

    /// Opens a stream for a command, and adapts the command to the workspace. Signals end it, as they end any program.
    async fn prepare(&self, mut exec: Exec, listener: &mut Listener) -> Result<Ready> {
        let (bus, vm) = unless_ended(listener, self.find()).await?;
        let kept = Records::of(&id_of(&vm))?.find(self.guest_path.as_deref());
        if kept.is_none() && (self.auto_prepare || self.guest_path.is_some()) {
            return Err(Error::Refused(format!("you sent no repository to {}", self.sandbox))
                .with_hint(format!("`banger vm workspace prepare {} PATH` sends one.", self.sandbox)));
        }
        exec.wait = self.exec.phase(&Settings::of_caller()?);
        exec.session.clone_from(&self.session);
        let about = |error: Error| add_hint(error).about(&self.sandbox);
        let starting = ProxyRelays::start(&bus, &vm, &self.exec);
        let proxies = unless_ended(listener, starting).await.map_err(about)?;
        proxies.add_to(&mut exec);
        if let Some(kept) = kept {
            put_into_workspace(&mut exec, &kept.record);
            let is_shell = exec.argv.is_empty() && !exec.of_image;
            self.sync_workspace(&bus, &vm, kept.clone(), listener.resubscribe()).await?;
            set_up(&bus, &vm, &kept, &proxies, (is_shell, &*listener)).await?;
        }
        let opening = async {
            if let Some(terminal) = &mut exec.terminal {
                terminal.term = terminfo::prepare(&bus, &vm, &terminal.term).await;
            }
            self.open(&bus, &vm).await
        };
        let stream = unless_ended(listener, opening).await.map_err(about)?;
        Ok(Ready { bus, vm, stream, exec, proxies })
    }

    async fn find(&self) -> Result<(Bus, OwnedObjectPath)> {
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await.map_err(|error| error.about(&self.sandbox))?;
        Ok((bus, vm))
    }

    /// Opens a stream for the command. Reports when that takes long.
    async fn open(&self, bus: &Bus, vm: &OwnedObjectPath) -> Result<OwnedFd> {
        let timeout = self.timeout.map_or(MAX_TIMEOUT, |seconds| Duration::from_secs(seconds.into()));
        let mut opening = pin!(bus.open_agent(vm, agent::COMMAND, Some(timeout)));
        tokio::select! {
            stream = &mut opening => return stream,
            () = tokio::time::sleep(NOTE_AFTER) => {}
        }
        eprintln!("waiting for {}: it is slow, or already runs as many commands as it can", self.sandbox);
        opening.await
    }

    /// Runs a login shell, then reports whether the sandbox is still running.
    pub async fn shell(&self) -> Result<u8> {
        let target = self.with_settings()?;
        let status = target.run(target.exec.exec(&[])).await;
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

    /// Sends what has changed on the host, or warns that something has.
    async fn sync_workspace(
        &self,
        bus: &Bus,
        vm: &OwnedObjectPath,
        kept: StoredWorkspace,
        listener: Listener,
    ) -> Result<()> {
        let reference = reference(&self.sandbox, self.guest_path.as_deref());
        if !self.auto_prepares(&kept)? {
            // A revision that was sent does not follow the work tree. A failure to compare files, for instance
            // because they were moved, must not prevent work in the sandbox.
            if !kept.record.from_commit
                && let Ok(differing) = ChangedFiles::find(&kept)
                && let Some(warning) = sync::warning(&kept, &differing, &reference)
            {
                eprintln!("warning: {warning}");
            }
            return Ok(());
        }
        let mut guest = Guest::new(bus.clone(), vm.clone(), listener);
        let sent = sync::update(&mut guest, kept, OnConflict::Fail).await;
        sent.map(drop).map_err(|error| error.about(&reference))
    }

    /// Returns whether to send changes first.
    fn auto_prepares(&self, kept: &StoredWorkspace) -> Result<bool> {
        Ok(match (self.auto_prepare, self.no_auto_prepare) {
            (true, _) => true,
            (_, true) => false,
            _ => !kept.record.from_commit && Settings::of_caller()?.auto_prepare,
        })
    }
}

/// Makes a command run in a workspace: as its owner, in its directory, and with its variables and tools.
pub fn put_into_workspace(exec: &mut Exec, record: &Record) {
    let is_owners = is_owner(exec.user.as_deref(), record.owner());
    if is_owners {
        exec.cwd.get_or_insert_with(|| record.directory().to_owned());
    }
    exec.user.get_or_insert_with(|| record.owner().to_owned());
    tooling::put_env(exec, record);
    if record.mise && !exec.argv.is_empty() && is_owners {
        exec.argv = tooling::with_mise(&exec.argv);
    }
}

/// Runs what the repository's devcontainer.json asks for after a boot, and before a shell.
async fn set_up(
    bus: &Bus,
    vm: &OwnedObjectPath,
    kept: &StoredWorkspace,
    proxies: &ProxyRelays,
    (is_shell, listener): (bool, &Listener),
) -> Result<()> {
    let setup = &kept.record.setup;
    let attaches = is_shell && !setup.later.attach.is_empty();
    if !setup.needs_boot() && !attaches {
        return Ok(());
    }
    let progress = Progress::new(ProgressArgs { quiet: false });
    let lifecycle = Lifecycle { bus, vm, proxies: proxies.variables(), progress: &progress, listener };
    lifecycle.boot(kept).await.map_err(add_hint)?;
    if attaches { lifecycle.attach(&kept.record).await } else { Ok(()) }
}

/// Adds a hint for a workspace that was removed in the sandbox.
pub fn hint_missing_workspace(error: Error) -> Error {
    match &error {
        Error::Guest(failure) if failure.kind == FailureKind::NoDirectory => {
            error.with_hint("`--workdir /` runs it in another directory.")
        }
        _ => error,
    }
}

/// Adds a hint for a sandbox that is stopped or busy.
pub fn add_hint(error: Error) -> Error {
    match error.name() {
        Some(ErrorName::InvalidState) => error.with_hint("`banger vm start NAME` boots it."),
        Some(ErrorName::TooManyRequests) => {
            error.with_hint("wait until one of its commands ends, or wait longer with `--timeout SECONDS`.")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::parse_args;

    fn check(line: &str, sandbox: &str, command: &[&str]) {
        let parsed = parse_args::<ExecCommand>(line).unwrap();
        assert_eq!(
            (parsed.target.sandbox.as_str(), parsed.command),
            (sandbox, command.iter().map(|w| w.to_string()).collect())
        );
    }

    #[test]
    fn options_after_the_command_belong_to_it() {
        check("web", "web", &[]);
        check("web -- ls -l", "web", &["ls", "-l"]);
        check("web ls -t -d", "web", &["ls", "-t", "-d"]);
        check("-T web -- -odd", "web", &["-odd"]);
        check("web -- env -- x", "web", &["env", "--", "x"]);
    }

    #[test]
    fn shells_and_sessions_cannot_be_detached() {
        for (line, fits) in [
            ("-d --session s web -- ls", false),
            ("--session a/b web", false),
            ("--session s web -- ls", true),
            ("--session s web", true),
            ("-d web", false),
            ("-d -t web -- ls", false),
            ("-d web -- ls", true),
        ] {
            assert_eq!(parse_args::<ExecCommand>(line).is_ok(), fits, "{line}");
        }
    }

    #[test]
    fn hints_of_exec() {
        use banger_proto::guest::Failure;

        use crate::ui::wording::{check, of_service, shown};

        let message = "there is no directory /root/repo in the guest".to_owned();
        let missing = Error::Guest(Failure { kind: FailureKind::NoDirectory, message });
        let by_name = [ErrorName::InvalidState, ErrorName::TooManyRequests];
        let errors = by_name.map(|name| (name.as_str(), add_hint(of_service(name)).about("web")));
        let missing = [("missing workspace", hint_missing_workspace(missing))];
        check("hints_of_exec", &shown(errors.into_iter().chain(missing)));
    }
}
