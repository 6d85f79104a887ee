//! The sandbox of a `banger vm run` once it is ready: the user's files and the repository go in, the command runs, the work comes
//! back, and the sandbox is deleted.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use banger_proto::{
    bus::{
        names::VM_INTERFACE,
        option::{agent, delete, lifetime},
        proxy::Options,
    },
    guest::{Exec, message::Placement},
};
use tokio::task::JoinSet;
use zbus::{OwnedObjectPath, Variant};

use super::Run;
use crate::{
    client::{bus::Bus, job::Jobs, object::Object, service::id_of},
    coding_agent::{self, Apply, Work},
    command::vm::{
        ask,
        created::{about, reminder},
        forward,
        lookups::Lookups,
        loopback,
        proxy::ProxyRelays,
        run_detached,
        wait::{self, Wait},
    },
    error::{Error, Result},
    guest::{agent::Guest, attach, terminfo},
    mount::{self, Mounts},
    share::Shares,
    ssh::installed,
    ui::{
        progress::Progress,
        signals::{Listener, unless_ended},
    },
    user::{settings::Settings, user_files},
    workspace::{
        devcontainer::{Devcontainer, lifecycle::Lifecycle, setup},
        prepare::{self, Plan, Target},
        record::Record,
        tooling,
    },
};

/// How long to wait for the deletion; then the service completes it alone.
const DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// Hint for an error in a sandbox that is deleted at the end.
const NOT_KEPT: &str = "without `--rm` the sandbox stays, and `banger vm logs` shows its console.";

/// A workspace in the new sandbox.
pub struct Workspace {
    /// The directory in which a command starts.
    directory: String,
    record: Record,
}

/// A sandbox that is ready.
pub struct Sandbox<'a> {
    bus: &'a Bus,
    jobs: &'a Jobs,
    vm: OwnedObjectPath,
    progress: Progress,
    proxies: ProxyRelays,
}

impl<'a> Sandbox<'a> {
    pub fn new(bus: &'a Bus, jobs: &'a Jobs, vm: OwnedObjectPath, progress: Progress) -> Self {
        Self { bus, jobs, vm, progress, proxies: ProxyRelays::default() }
    }

    pub async fn properties(&self) -> Result<Object> {
        self.bus.properties(&self.vm, VM_INTERFACE).await
    }

    /// Makes the hint of an error fit this sandbox, which may be about to be deleted.
    pub async fn about(&self, error: Error, deleted: bool) -> Error {
        match deleted {
            true if error.hints_at_sandbox() => error.with_hint(NOT_KEPT),
            true if error.is_interrupted() => error.with_hint("`--rm` deletes the sandbox."),
            true => error,
            false => about(self.bus, &self.vm, error).await,
        }
    }

    /// Copies the user's files into it, and passes on the user's proxies.
    pub async fn equip(&mut self, run: &Run, settings: &Settings, listener: &mut Listener) -> Result<()> {
        let mut guest = Guest::new(self.bus.clone(), self.vm.clone(), listener.resubscribe());
        for problem in user_files::send(&mut guest, settings).await? {
            self.progress.note(&format!("warning: {problem}"));
        }
        self.proxies =
            unless_ended(listener, ProxyRelays::start(self.bus, &self.vm, &run.options.exec)).await?;
        Ok(())
    }

    /// Waits for a boot phase of its guest.
    async fn wait(&self, wait: Option<Wait>, listener: &mut Listener) -> Result<()> {
        let mut guest = Guest::new(self.bus.clone(), self.vm.clone(), listener.resubscribe());
        wait::until(&mut guest, wait, &self.progress.track(None)).await
    }

    /// Sends the repository, and sets it up as it requests.
    pub async fn prepare(
        &self,
        run: &Run,
        plan: Plan,
        container: &Devcontainer,
        listener: &mut Listener,
    ) -> Result<Workspace> {
        let path = run.options.workspace.guest_path(container.root()).to_owned();
        let start = plan.start_directory(&path);
        let track = self.progress.track(None);
        track.stage("copy", &prepare::summary(plan.files.len(), plan.bytes(), &path));
        let meter = track.meter(plan.bytes());
        let target = Target { vm_id: id_of(&self.vm), path: path.clone(), placement: Placement::New };
        let mut guest = Guest::new(self.bus.clone(), self.vm.clone(), listener.resubscribe());
        let tools = tooling::tool_file(&plan).filter(|_| run.installs_tools());
        let mut kept = prepare::send(&mut guest, plan, target, meter).await?;
        // The files of a coding agent are root's.
        if let Some(user) = container.user.as_ref().filter(|_| run.agent.is_none()) {
            match tooling::change_owner(&mut guest, &path, user).await? {
                true => kept.record.user = Some(user.clone()),
                false => {
                    self.progress.note(&format!("note: the image has no user {user}; commands run as root."))
                }
            }
        }
        let creation =
            setup::apply(container, &mut guest, &mut kept.record, &self.progress, !run.options.no_bootstrap)
                .await?;
        if let Some(file) = tools {
            track.stage("tools", &format!("mise install, for {file}"));
            kept.record.mise =
                self.install_tools(&mut guest, &kept.record.with_variables(self.proxies.variables())).await?;
        }
        drop(track);
        self.lifecycle(listener).create(&mut kept, creation).await?;
        // A directory that the user has named, below that of the file.
        let directory = if start == path { kept.record.directory().to_owned() } else { start };
        Ok(Workspace { directory, record: kept.record })
    }

    fn lifecycle<'b>(&'b self, listener: &'b Listener) -> Lifecycle<'b> {
        Lifecycle {
            bus: self.bus,
            vm: &self.vm,
            proxies: self.proxies.variables(),
            progress: &self.progress,
            listener,
        }
    }

    /// Suggests how to forward ports, because this process does not stay.
    pub async fn note_ports(&self, ports: &[(u16, u16)]) {
        let Ok(sandbox) = self.properties().await else { return };
        if !ports.is_empty() {
            let option = |&(host, port): &(u16, u16)| match host == port {
                true => format!("-L {port} "),
                false => format!("-L {host}:{port} "),
            };
            let options: String = ports.iter().map(option).collect();
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

    /// Waits for the boot phase, and starts the command without staying for it.
    pub async fn detach(
        &self,
        (run, settings): (&Run, &Settings),
        workspace: Option<Workspace>,
        listener: &mut Listener,
    ) -> Result<()> {
        if run.command.is_empty() {
            self.wait(run.options.exec.wait(), listener).await?;
            return match run.options.rm {
                true => self.bus.set_lifetime(&self.vm, lifetime::UNTIL_STOPPED).await,
                false => Ok(()),
            };
        }
        let exec = Exec { power_off: run.options.rm, ..run.options.exec.detached(&run.command) };
        let exec = self.in_workspace((run, settings), exec, workspace.as_ref());
        run_detached::start(self.bus, &self.vm, &exec, listener).await
    }

    /// Runs the command or shell until it ends. Returns its exit status.
    pub async fn attach(
        &self,
        (run, settings): (&Run, &Settings),
        (workspace, ports, sources): (Option<Workspace>, &[(u16, u16)], Vec<mount::Source>),
        listener: &mut Listener,
    ) -> Result<u8> {
        // They are forwarded until this returns.
        let _ports = forward::forward_ports(self.bus, &self.vm, &self.progress, ports).await?;
        let stream = unless_ended(listener, self.bus.open_agent(&self.vm, agent::COMMAND, None)).await?;
        let _watch = self.watch_published(run, listener);
        let mut exec =
            self.in_workspace((run, settings), run.options.exec.exec(&run.command), workspace.as_ref());
        let sharing = (self.bus, &self.vm, &*listener);
        let shares = Shares::start(sharing, run.options.exec.shares(), exec.user.as_deref());
        let shares = unless_ended(&mut listener.resubscribe(), shares).await?;
        shares.add_to(&mut exec);
        let mounts = Mounts::start((self.bus, &self.vm), sources, exec.user.as_deref());
        let _mounts = unless_ended(&mut listener.resubscribe(), mounts).await?;
        if let Some(terminal) = &mut exec.terminal {
            terminal.term = terminfo::prepare(self.bus, &self.vm, &terminal.term).await;
        }
        let is_shell = exec.argv.is_empty();
        if let Some(workspace) = workspace.filter(|_| is_shell && !exec.of_image) {
            self.lifecycle(listener).attach(&workspace.record).await?;
        }
        let lookups = Lookups::begin(self.bus, &self.vm).await;
        let status = match run.options.ask {
            true => {
                let (keys, _asking) = ask::start(self.bus, &self.vm).await?;
                attach::run_asking(stream, exec, run.options.exec.stdin(), listener, keys).await
            }
            false => attach::run(stream, exec, run.options.exec.stdin(), listener).await,
        };
        let status = self.bus.why(status).await;
        if let Some(explanation) = lookups.explain(&status, is_shell, !run.options.rm).await {
            self.progress.note(&explanation);
        }
        status
    }

    /// Returns a command as it runs in the workspace, and when.
    fn in_workspace(
        &self,
        (run, settings): (&Run, &Settings),
        mut exec: Exec,
        workspace: Option<&Workspace>,
    ) -> Exec {
        exec.wait = run.options.exec.phase(settings);
        self.proxies.add_to(&mut exec);
        if let Some(Workspace { directory, record }) = workspace {
            // Other users may not be able to enter it.
            if run.options.exec.is_of(record.owner()) {
                exec.cwd.get_or_insert_with(|| directory.clone());
            }
            exec.user.get_or_insert_with(|| record.owner().to_owned());
            tooling::put_env(&mut exec, record);
        }
        exec
    }

    /// Prints a note when the guest listens on its loopback for a published port, until the result is dropped.
    fn watch_published(&self, run: &Run, listener: &Listener) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        if !run.options.vm_args.published().is_empty() {
            let guest = Guest::new(self.bus.clone(), self.vm.clone(), listener.resubscribe());
            let progress = self.progress.clone();
            let print = move |note: &str| match io::stderr().is_terminal() {
                true => progress.note_in_raw_mode(note),
                false => progress.note(note),
            };
            tasks.spawn(loopback::watch(guest, print));
        }
        tasks
    }

    /// Brings the work of a coding agent back. Returns whether the sandbox is kept although `--rm` was given, since it has
    /// work that is nowhere else, and whether something failed.
    pub async fn bring_back(
        &self,
        when: Apply,
        path: &str,
        (rm, listener): (bool, &Listener),
    ) -> (bool, bool) {
        // A signal that has ended the command must not end this, too.
        let mut guest = Guest::new(self.bus.clone(), self.vm.clone(), listener.resubscribe());
        let name = match self.properties().await {
            Ok(sandbox) => sandbox.name().to_owned(),
            Err(_) => return (false, false),
        };
        let work = coding_agent::bring_back(&mut guest, path, &self.progress, when).await;
        let failed = work.is_err();
        let is_left = match work {
            Ok(Work::Unchanged | Work::Applied) => return (false, false),
            Ok(Work::Declined) => !rm,
            Ok(Work::Left | Work::Commits) => true,
            Err(error) => {
                error.about(&name).print(None);
                true
            }
        };
        if !is_left {
            return (false, false);
        }
        self.progress.note(&format!(
            "note: the changes are in {name}: `banger vm workspace export {name} --apply` applies them, and `banger vm \
             workspace fetch {name}` fetches its commits."
        ));
        if !rm {
            return (false, failed);
        }
        match self.bus.set_lifetime(&self.vm, lifetime::PERSISTENT).await {
            Ok(()) => {
                self.progress
                    .note(&format!("note: {name} is kept in spite of `--rm`, because of its changes."));
                (true, failed)
            }
            Err(error) => {
                error.print(Some(&name));
                (false, true)
            }
        }
    }

    /// Cleans up. A failure is reported, and does not change the exit status of the command.
    pub async fn clean_up(&self, remove: bool, listener: &mut Listener) {
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
        let job = match self.bus.change_vm(&self.vm, "Delete", &options).await {
            Err(error) if run_detached::is_gone(&error) => return Ok(()),
            job => job?,
        };
        let done = self.jobs.finish(self.bus, &job, self.progress.track(None), listener).await;
        installed::refresh(self.bus).await;
        match done {
            Err(error) if !run_detached::is_gone(&error) => Err(error),
            _ => Ok(()),
        }
    }

    async fn remind(&self) {
        // If it cannot be read, there is nothing to report.
        let Ok(sandbox) = self.properties().await else { return };
        if let Some(line) = reminder(&sandbox) {
            self.progress.note(&line);
        }
    }
}
