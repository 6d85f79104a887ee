//! `banger vm run`.

use std::{path::PathBuf, time::Duration};

use banger_proto::{
    bus::{
        ErrorName,
        names::VM_INTERFACE,
        option::{agent, create, delete, lifetime},
        proxy::Options,
    },
    guest::message::Placement,
};
use clap::Args;
use zbus::{OwnedObjectPath, Variant};

use super::{
    exec_args::ExecArgs,
    forward,
    vm_args::VmArgs,
    wait::{self, Wait},
    workspace_args::{WorkspaceArgs, note_left, print_plan},
};
use crate::{
    client::{bus::Bus, job::Jobs, object::Object, service::id_of},
    error::{Error, Result},
    guest::{agent::Guest, attach},
    ui::{
        output,
        progress::{Progress, ProgressArgs},
        sanitize,
        signals::{Listener, Signals, unless_ended},
    },
    user::{settings::Settings, user_files},
    workspace::{
        devcontainer::Devcontainer,
        prepare::{self, Plan, Target},
        record::Record,
        tooling,
    },
};

/// How long to wait for the deletion; then the service completes it alone.
const DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// Hint for an error in a sandbox that is deleted at the end.
const NOT_KEPT: &str = "without `--rm` the sandbox stays, and `banger vm logs` shows its console.";

/// Create a sandbox and run a shell or a command in it
///
/// Without a command, this opens a login shell. Input, output, signals and the size of the terminal are
/// passed on, and the exit status is the command's. The sandbox keeps running afterwards, unless you give
/// --rm.
///
/// With PATH, the repository there is sent: the files that git tracks, with their uncommitted changes. The
/// shell or command starts in it. Supported devcontainer.json settings are applied; banger lists the ones it
/// ignores.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm run --rm                  a shell in a fresh sandbox, which is deleted when you leave it
  banger vm run --rm . -- make test   one command in the repository of this directory
  banger vm run --name web ~/src/web  a shell in a repository, in a sandbox that stays
  banger vm workspace export web      the changes made there, as a patch
  echo hello | banger vm run --rm -- cat
  banger vm run -d --name db          a sandbox in the background

Exit status:
  that of the command, or 128 plus the number of the signal that ended it
  125  banger itself failed
  126  the command cannot be run in the sandbox
  127  the command was not found
  2    wrong usage

A sandbox that does not become ready is kept, even with --rm, so that `banger vm logs` can show why.")]
pub struct Run {
    /// Directory of a repository to send into the sandbox
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Command and its arguments [default: a login shell]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Delete the sandbox at the end, even if banger is killed
    #[arg(long)]
    rm: bool,
    /// Return once the sandbox is ready, and print its name
    #[arg(short, long, conflicts_with_all = ["rm", "command"])]
    detach: bool,
    /// With --detach or --dry-run, print a JSON object instead of names
    #[arg(long)]
    json: bool,
    /// Skip `mise install` and postCreateCommand
    #[arg(long)]
    no_bootstrap: bool,
    /// Ignore the repository's devcontainer.json
    #[arg(long)]
    no_devcontainer: bool,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    vm_args: VmArgs,
    #[command(flatten)]
    workspace: WorkspaceArgs,
    #[command(flatten)]
    exec: ExecArgs,
}

impl Run {
    /// Returns whether to install the tools of the repository.
    fn installs_tools(&self) -> bool {
        !self.no_bootstrap && self.command.is_empty()
    }

    /// Refuses options about a repository without one.
    fn require_path(&self) -> Result<()> {
        match self.workspace.is_requested() {
            false => Ok(()),
            true => Err(Error::Usage("these options need a repository, but no PATH is given".to_owned())
                .with_hint("`banger vm run . …` sends the repository in this directory.")),
        }
    }

    /// Lists the settings of devcontainer.json that are ignored.
    fn note_unsupported(&self, container: &Devcontainer, progress: &Progress) {
        let mut left = container.unsupported.clone();
        if container.image.is_some() && self.vm_args.image().is_some() {
            left.push("image".to_owned());
        }
        match (left.is_empty(), container.file.as_str()) {
            (true, _) => {}
            (false, "") => progress.note(&format!("note: ignored {}.", left.join(", "))),
            (false, file) => progress.note(&format!("note: ignored in {file}: {}.", left.join(", "))),
        }
    }

    pub async fn run(&self) -> Result<u8> {
        if self.json && !self.detach && !self.workspace.dry_run {
            return Err(Error::Usage("--json needs --detach or --dry-run".to_owned()));
        }
        let progress = Progress::new(self.progress);
        // Problems with the repository are reported before a sandbox is created.
        let mut plan = match &self.path {
            Some(path) => Some(self.workspace.plan(path)?),
            None => self.require_path().map(|()| None)?,
        };
        let container = match &plan {
            Some(plan) if !self.no_devcontainer => Devcontainer::of(plan)?,
            _ => Devcontainer::default(),
        };
        self.note_unsupported(&container, &progress);
        if let Some(plan) = &plan {
            if self.workspace.dry_run {
                print_plan(plan, self.workspace.guest_path(container.folder.as_deref()), self.json)?;
                note_left(plan, &progress, true);
                return Ok(0);
            }
            // Commands do not need the tools by default.
            if self.installs_tools() {
                tooling::check(plan, self.vm_args.nat())?;
            }
            note_left(plan, &progress, false);
        }
        // Reads the settings first, so that mistakes are reported before a sandbox is created.
        let settings = Settings::of_caller()?;
        let bus = Bus::connect().await?;
        let jobs = Jobs::of(&bus);
        let lifetime = if self.rm { lifetime::CALLER } else { lifetime::PERSISTENT };
        let mut listener = Signals::catch()?.listen();
        let lifetime = Options::from([(create::LIFETIME, Variant::from(lifetime))]);
        let vm_args = self.vm_args.or_image(container.image.as_deref());
        let (vm, job) = vm_args.create(&bus, &jobs, &progress, &mut listener, lifetime).await?;
        if let Err(error) = jobs.finish(&bus, &job, progress.track(None), &mut listener).await {
            return Err(explain(&bus, &vm, error).await);
        }
        let sandbox = Sandbox { bus: &bus, jobs: &jobs, vm, progress };
        if let Err(error) = sandbox.send_user_files(&settings, &mut listener).await {
            let error = sandbox.about(error, self.rm).await;
            sandbox.clean_up(self.rm, &mut listener).await;
            return Err(error);
        }
        let prepared = match plan.take() {
            Some(plan) => sandbox.prepare(self, plan, &container, &mut listener).await.map(Some),
            None => Ok(None),
        };
        let status = match prepared {
            Err(error) => Err(error),
            Ok(_) if self.detach => {
                if let Err(error) = sandbox.wait(self.exec.wait(), &mut listener).await {
                    sandbox.clean_up(false, &mut listener).await;
                    return Err(sandbox.about(error, self.rm).await);
                }
                sandbox.note_ports(&container.ports).await;
                return print_created(&bus, &sandbox.vm, self.json).await;
            }
            Ok(workspace) => sandbox.attach(self, workspace, &container.ports, &mut listener).await,
        };
        let status = match status {
            Err(error) => Err(sandbox.about(error, self.rm).await),
            status => status,
        };
        sandbox.clean_up(self.rm, &mut listener).await;
        status
    }
}

/// A workspace in the new sandbox.
struct Workspace {
    /// The directory in which a command starts.
    directory: String,
    record: Record,
}

/// A sandbox that is ready.
struct Sandbox<'a> {
    bus: &'a Bus,
    jobs: &'a Jobs,
    vm: OwnedObjectPath,
    progress: Progress,
}

impl Sandbox<'_> {
    /// Makes the hint of an error fit this sandbox, which may be about to be deleted.
    async fn about(&self, error: Error, deleted: bool) -> Error {
        match deleted {
            true if error.hints_at_sandbox() => error.with_hint(NOT_KEPT),
            true if error.is_interrupted() => error.with_hint("`--rm` deletes the sandbox."),
            true => error,
            false => about(self.bus, &self.vm, error).await,
        }
    }

    /// Copies the user's files into it.
    async fn send_user_files(&self, settings: &Settings, listener: &mut Listener) -> Result<()> {
        let mut guest = Guest::new(self.bus.clone(), self.vm.clone(), listener.resubscribe());
        for problem in user_files::send(&mut guest, settings).await? {
            self.progress.note(&format!("warning: {problem}"));
        }
        Ok(())
    }

    /// Waits for a boot phase of its guest.
    async fn wait(&self, wait: Option<Wait>, listener: &mut Listener) -> Result<()> {
        let mut guest = Guest::new(self.bus.clone(), self.vm.clone(), listener.resubscribe());
        wait::until(&mut guest, wait, &self.progress.track(None)).await
    }

    /// Sends the repository, and sets it up as it requests.
    async fn prepare(
        &self,
        run: &Run,
        plan: Plan,
        container: &Devcontainer,
        listener: &mut Listener,
    ) -> Result<Workspace> {
        let path = run.workspace.guest_path(container.folder.as_deref()).to_owned();
        let directory = plan.start_directory(&path);
        let track = self.progress.track(None);
        track.stage("copy", &prepare::summary(plan.files.len(), plan.bytes(), &path));
        let meter = track.meter(plan.bytes());
        let target = Target { vm_id: id_of(&self.vm), path: path.clone(), placement: Placement::New };
        let mut guest = Guest::new(self.bus.clone(), self.vm.clone(), listener.resubscribe());
        let tools = tooling::tool_file(&plan).filter(|_| run.installs_tools());
        let mut kept = prepare::send(&mut guest, plan, target, meter).await?;
        kept.record.env.clone_from(&container.env);
        if let Some(user) = &container.user {
            match tooling::change_owner(&mut guest, &path, user).await? {
                true => kept.record.user = Some(user.clone()),
                false => {
                    self.progress.note(&format!("note: the image has no user {user}; commands run as root."))
                }
            }
        }
        if let Some(file) = tools {
            track.stage("tools", &format!("mise install, for {file}"));
            kept.record.mise = self.install_tools(&mut guest, &kept.record).await?;
        }
        kept.save()?;
        if !run.no_bootstrap {
            for command in &container.commands {
                track.stage("setup", &shown(command));
                self.set_up(&mut guest, &kept.record, command, run.vm_args.nat()).await?;
            }
        }
        Ok(Workspace { directory, record: kept.record })
    }

    /// Runs a setup command of the repository. A failure is reported, and the sandbox stays, so that the user can
    /// examine it there.
    async fn set_up(&self, guest: &mut Guest, record: &Record, command: &[String], nat: bool) -> Result<()> {
        let said = match tooling::run(guest, record, command).await {
            Ok((0, _)) => return Ok(()),
            Ok((status, said)) => format!(
                "{}warning: the postCreateCommand failed with status {status}",
                tooling::last_lines(&said)
            ),
            Err(Error::Guest(failure)) => {
                format!("warning: the postCreateCommand failed: {}", failure.message)
            }
            Err(error) => return Err(error),
        };
        let hint = if nat { "" } else { " Without `--nat` the sandbox has no internet access." };
        self.progress.note(&format!("{said}: `{}`.{hint}", shown(command)));
        Ok(())
    }

    /// Suggests how to forward ports, because this process does not stay.
    async fn note_ports(&self, ports: &[u16]) {
        let Ok(sandbox) = self.bus.properties(&self.vm, VM_INTERFACE).await else { return };
        if !ports.is_empty() {
            let options: String = ports.iter().map(|port| format!("-L {port} ")).collect();
            let name = sandbox.name();
            self.progress.note(&format!("note: `banger vm forward {options}{name}` forwards its ports."));
        }
    }

    /// Installs the tools. Returns whether there are any. A failure is reported, and does not end the run.
    async fn install_tools(&self, guest: &mut Guest, record: &Record) -> Result<bool> {
        let (status, said) = tooling::install(guest, record).await?;
        match status {
            0 => {}
            tooling::MISE_MISSING => {
                self.progress.note(
                    "note: the image has no mise, so the tools that the repository asks for are not \
                     installed.",
                );
            }
            _ => self.progress.note(&format!(
                "{}warning: not all tools could be installed; ~/{} in the sandbox has the output of mise.",
                tooling::last_lines(&said),
                tooling::LOG
            )),
        }
        Ok(status == 0)
    }

    async fn attach(
        &self,
        run: &Run,
        workspace: Option<Workspace>,
        ports: &[u16],
        listener: &mut Listener,
    ) -> Result<u8> {
        // They are forwarded until this returns.
        let _ports = forward::forward_ports(self.bus, &self.vm, &self.progress, ports).await?;
        let stream = unless_ended(listener, self.bus.open_agent(&self.vm, agent::COMMAND, None)).await?;
        let mut exec = run.exec.exec(&run.command);
        exec.wait = run.exec.phase(&Settings::of_caller()?);
        if let Some(Workspace { directory, record }) = workspace {
            exec.user.get_or_insert_with(|| record.owner().to_owned());
            exec.cwd.get_or_insert(directory);
            tooling::put_env(&mut exec, &record.env);
        }
        attach::run(stream, exec, run.exec.stdin(), listener).await
    }

    /// Cleans up. A failure is reported, and does not change the exit status of the command.
    async fn clean_up(&self, remove: bool, listener: &mut Listener) {
        if !remove {
            return self.remind().await;
        }
        let removal = tokio::time::timeout(DELETE_TIMEOUT, self.remove(listener));
        let error = match removal.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => Error::Refused("deleting the sandbox takes long".to_owned()).with_hint(
                "the service continues the work: `banger vm list` shows the state of your sandboxes.",
            ),
        };
        error.print(Some("--rm"));
    }

    async fn remove(&self, listener: &mut Listener) -> Result<()> {
        let options = Options::from([(delete::FORCE, Variant::from(true))]);
        let gone =
            |error: &Error| matches!(error.name(), Some(ErrorName::NoSuchVm | ErrorName::UnknownObject));
        let job = match self.bus.change_vm(&self.vm, "Delete", &options).await {
            Err(error) if gone(&error) => return Ok(()),
            job => job?,
        };
        match self.jobs.finish(self.bus, &job, self.progress.track(None), listener).await {
            Err(error) if !gone(&error) => Err(error),
            _ => Ok(()),
        }
    }

    async fn remind(&self) {
        // If it cannot be read, there is nothing to report.
        let Ok(sandbox) = self.bus.properties(&self.vm, VM_INTERFACE).await else { return };
        if let Some(line) = reminder(&sandbox) {
            self.progress.note(&line);
        }
    }
}

/// Formats a command as one line of limited length.
fn shown(command: &[String]) -> String {
    const MAX_LENGTH: usize = 60;
    let arguments = match command {
        [shell, option, script] if shell == "sh" && option == "-c" => script.clone(),
        arguments => arguments.join(" "),
    };
    let line = sanitize::line(&arguments);
    match line.char_indices().nth(MAX_LENGTH) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Returns a note about a sandbox that is still running, and what to do about it.
pub(super) fn reminder(sandbox: &Object) -> Option<String> {
    let name = sandbox.name();
    match sandbox.text("State") {
        "running" => Some(format!(
            "{name} is still running: `banger vm exec {name}` opens a shell, `banger vm delete --force \
             {name}` deletes it."
        )),
        "" | "deleting" => None,
        _ => Some(format!(
            "{name} has stopped: `banger vm start {name}` boots it, `banger vm delete {name}` deletes it."
        )),
    }
}

/// Puts the name of the new sandbox into the hint of an error.
pub(super) async fn about(bus: &Bus, vm: &OwnedObjectPath, error: Error) -> Error {
    match bus.properties(vm, VM_INTERFACE).await {
        Ok(sandbox) => error.about(sandbox.name()),
        Err(_) => error,
    }
}

/// Adds a hint about the sandbox of a creation that has failed: whether it still exists.
pub(super) async fn explain(bus: &Bus, vm: &OwnedObjectPath, error: Error) -> Error {
    let sandbox = bus.properties(vm, VM_INTERFACE).await.unwrap_or_default();
    explain_state(sandbox.name(), sandbox.text("State"), error)
}

fn explain_state(name: &str, state: &str, error: Error) -> Error {
    match (name, state) {
        // Its logs are gone, too.
        ("", _) if error.name() == Some(ErrorName::VmmFailed) => error.with_hint(
            "the sandbox was not kept; `banger doctor` and `journalctl -u banger-system` show more.",
        ),
        ("", _) if error.is_interrupted() => error.with_hint("no sandbox was kept."),
        ("", _) => error,
        // The service has ended the job, and removes what it has created so far.
        (name, _) if error.is_interrupted() => error.with_hint(format!("the service deletes {name}.")),
        (_, "deleting") => error,
        (name, _) if error.is_detached() => error.with_hint(format!(
            "the service continues with {name}: `banger vm exec {name}` opens a shell once it is ready, \
             `banger vm delete --force {name}` deletes it."
        )),
        (name, _) => error.with_hint(format!(
            "it was kept: `banger vm logs {name}` shows its console, `banger vm delete --force {name}` \
             deletes it."
        )),
    }
}

/// Adds the hint that a new sandbox runs, to an error of what follows its boot.
pub(super) fn kept(error: Error) -> Error {
    match error.hint() {
        Some(_) => error,
        None => error.with_hint(
            "the sandbox is running: `banger vm exec NAME` opens a shell in it, `banger vm delete --force NAME` deletes \
             it.",
        ),
    }
}

/// Prints a created sandbox: its name, or all of it.
pub(super) async fn print_created(bus: &Bus, vm: &OwnedObjectPath, json: bool) -> Result<u8> {
    let sandbox = bus.properties(vm, VM_INTERFACE).await?;
    if json {
        output::json(&sandbox.json())?;
    } else {
        output::text(&format!("{}\n", sandbox.name()))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use clap::Parser;
    use zbus::OwnedVariant;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn the_reminder_matches_the_state() {
        let sandbox = |state: &'static str| {
            let text = |text| OwnedVariant::try_from(Variant::from(text)).unwrap();
            Object::new(HashMap::from([
                ("Name".to_owned(), text("calm-otter")),
                ("State".to_owned(), text(state)),
            ]))
        };
        assert!(reminder(&sandbox("running")).unwrap().starts_with("calm-otter is still running"));
        assert!(reminder(&sandbox("stopped")).unwrap().starts_with("calm-otter has stopped"));
        assert_eq!(reminder(&sandbox("deleting")), None);
        assert_eq!(reminder(&Object::default()), None);
    }

    #[test]
    fn a_failed_creation_says_what_became_of_the_sandbox() {
        use crate::ui::wording::{check, of_service, shown};

        let interrupted = || Error::Interrupted { signal: 2 };
        let detached = || Error::Detached { signal: 2 };
        let late = || of_service(ErrorName::GuestTimeout);
        let errors = [
            ("interrupted, still running", explain_state("web", "running", interrupted())),
            ("interrupted, deleting", explain_state("web", "deleting", interrupted())),
            ("interrupted, gone", explain_state("", "", interrupted())),
            ("detached", explain_state("web", "starting", detached())),
            ("not ready", explain_state("web", "running", late())),
            ("interrupted after the boot", kept(interrupted()).about("web")),
            ("failed, gone", explain_state("", "", of_service(ErrorName::VmmFailed))),
        ];
        check("hints_of_create", &shown(errors));
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let fits = |line: &str| Cli::try_parse_from(line.split_whitespace()).is_ok();
        assert!(fits("banger vm run"));
        assert!(fits("banger vm run --rm -- make -j4 test"));
        assert!(fits("banger vm run -d --json"));
        assert!(fits("banger vm run . --dry-run --json"));
        assert!(!fits("banger vm run -d --rm"));
        assert!(!fits("banger vm run -d -- make"));
        assert!(fits("banger vm run . -- make"));
        assert!(fits("banger vm run . --branch x --from HEAD~2"));
        assert!(!fits("banger vm run . --from HEAD~2"));
        assert!(!fits("banger vm run . make"));
    }
}
