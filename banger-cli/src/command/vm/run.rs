//! `banger vm run`.

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    time::Duration,
};

use banger_proto::{
    bus::{
        names::VM_INTERFACE,
        option::{agent, create, delete, lifetime},
        proxy::Options,
    },
    guest::{Exec, message::Placement},
};
use clap::{Args, ValueHint};
use tokio::task::JoinSet;
use zbus::{OwnedObjectPath, Variant};

use super::{
    ask,
    created::{about, explain, print, reminder},
    exec_args::ExecArgs,
    forward,
    from_snapshot::SnapshotName,
    lookups::Lookups,
    loopback,
    proxy::{self, ProxyRelays},
    run_detached,
    vm_args::VmArgs,
    wait::{self, Wait},
    workspace_args::{WorkspaceArgs, note_left, print_plan},
};
use crate::{
    cli,
    client::{bus::Bus, job::Jobs, service::id_of},
    coding_agent::{self, AgentRun, Apply, Preset, Work},
    command::habits,
    error::{Error, OWN_FAILURE, Result},
    guest::{agent::Guest, attach, terminfo},
    mount::{self, Mounts},
    share::{self, Shares},
    ssh::installed,
    ui::{
        progress::{Progress, ProgressArgs},
        signals::{Listener, Signals, unless_ended},
    },
    user::{defaults::Key, proxy::Proxies, settings::Settings, user_files},
    workspace::{
        devcontainer::{Devcontainer, Wishes, lifecycle::Lifecycle, setup},
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
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  banger vm run --rm                  a shell in a fresh sandbox, which is deleted when you leave it
  banger vm run --rm . -- make test   one command in the repository of this directory
  banger vm run --name web ~/src/web  a shell in a repository, in a sandbox that stays
  banger vm workspace export web      the changes made there, as a patch
  echo hello | banger vm run --rm -- cat
  banger vm run -d --name db          a sandbox in the background
  banger vm run -d --rm . -- make     a command in the background; the sandbox is deleted at its end

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
    /// Make the sandbox of this snapshot, instead of an image
    #[arg(long, value_name = "SANDBOX/SNAPSHOT")]
    from_snapshot: Option<SnapshotName>,
    #[command(flatten)]
    options: RunOptions,
    /// What `banger agent` adds.
    #[arg(skip)]
    agent: Option<AgentRun>,
}

/// The options of a command that creates a sandbox and runs something in it.
#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// Delete the sandbox at the end, even if banger is killed; with --detach, when its command ends or it stops
    #[arg(long, conflicts_with_all = ["restart", "autostart"])]
    rm: bool,
    /// Return once the sandbox is ready and the command, if any, runs; print the name of the sandbox
    #[arg(short, long)]
    detach: bool,
    /// Ask on this terminal whether the sandbox may reach what its egress policy denies: Ctrl-] y adds it to the policy
    #[arg(long, conflicts_with_all = ["detach", "dry_run"])]
    ask: bool,
    /// With --detach or --dry-run, print a JSON object instead of names
    #[arg(long)]
    json: bool,
    /// Skip `mise install` and the commands of devcontainer.json
    #[arg(long, overrides_with = "bootstrap")]
    no_bootstrap: bool,
    /// Run `mise install` and the commands of devcontainer.json. This is the default, unless your settings say
    /// `bootstrap = false`
    #[arg(long, overrides_with = "no_bootstrap")]
    bootstrap: bool,
    /// Use this devcontainer.json: a path, or the name of a directory in .devcontainer
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, conflicts_with = "no_devcontainer")]
    devcontainer: Option<PathBuf>,
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
    /// Returns the path of the repository.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Returns whether to install the tools of the repository.
    fn installs_tools(&self) -> bool {
        !self.options.no_bootstrap && self.command.is_empty()
    }

    /// Returns whether commands in the sandbox can reach the internet, directly or through the user's proxy.
    fn has_internet(&self) -> bool {
        // What the sandbox of a snapshot had is not known here.
        let may_have = self.from_snapshot.is_some() && !self.options.vm_args.chooses_egress();
        self.options.vm_args.has_egress() || self.options.exec.proxy() || may_have
    }

    /// Refuses --ask if there is nobody to ask, or nothing to ask about.
    fn check_ask(&self) -> Result<()> {
        let has_terminal = || {
            let stdin_is_terminal =
                self.options.exec.stdin() == attach::Stdin::Ours && io::stdin().is_terminal();
            stdin_is_terminal && io::stderr().is_terminal() && self.options.exec.exec(&[]).terminal.is_some()
        };
        let may_be_restricted = self.from_snapshot.is_some() && !self.options.vm_args.chooses_egress();
        match (self.options.ask, self.options.vm_args.is_restricted() || may_be_restricted) {
            (false, _) => Ok(()),
            (true, false) => Err(Error::Usage("--ask needs an egress policy".to_owned()).with_hint(
                "`--egress packages` allows the package registries, and `--ask` asks about the rest.",
            )),
            (true, true) if has_terminal() => Ok(()),
            (true, true) => Err(Error::Usage("--ask needs a terminal".to_owned())),
        }
    }

    /// Refuses options about a repository without one.
    fn require_path(&self) -> Result<()> {
        match self.options.workspace.is_requested() || self.options.devcontainer.is_some() {
            false => Ok(()),
            true => Err(Error::Usage("these options need a repository, but no PATH is given".to_owned())
                .with_hint("`banger vm run . …` sends the repository in this directory.")),
        }
    }

    /// Reads the repository's devcontainer.json, and notes what is not applied.
    fn read_devcontainer(&self, plan: &Plan, progress: &Progress) -> Result<Devcontainer> {
        let of_agent = self.agent.as_ref().and_then(AgentRun::image_name);
        let of_snapshot = self.from_snapshot.as_ref().map(SnapshotName::sandbox);
        let given = self.options.vm_args.image().or(of_snapshot);
        let image = of_agent.or_else(|| given.map(str::to_owned));
        // What the record of a workspace has is written to a file, and variables of a preset may be secrets.
        let mut passed = self.options.exec.variables();
        if let Some(agent) = &self.agent {
            passed.retain(|name, _| !agent.preset.pass_env.contains(name));
        }
        let wishes = Wishes {
            file: self.options.devcontainer.as_deref(),
            image: image.as_deref(),
            guest_path: self.options.workspace.given_path(),
            passed,
        };
        let container = Devcontainer::of(plan, wishes)?;
        container.notes(image.is_some()).iter().for_each(|note| progress.note(note));
        Ok(container)
    }

    /// Returns the run of a coding agent.
    pub fn of_agent(
        path: Option<PathBuf>,
        options: RunOptions,
        agent: AgentRun,
        arguments: &[String],
    ) -> Self {
        let command = [&agent.preset.command, arguments].concat();
        Self { path, command, options, from_snapshot: None, agent: Some(agent) }
    }

    pub async fn run(&self) -> Result<u8> {
        // Reads the settings first, so that mistakes are reported before a sandbox is created.
        self.run_in(&self.options.settings()?).await
    }

    /// Runs it with these settings.
    pub async fn run_in(&self, settings: &Settings) -> Result<u8> {
        self.with(settings).run_with(settings).await
    }

    /// Returns the same options, with the user's defaults for those that were not given.
    fn with(&self, settings: &Settings) -> Self {
        let bootstrap = settings.defaults.switch(Key::Bootstrap).unwrap_or(true);
        let options = RunOptions {
            no_bootstrap: self.options.no_bootstrap || !(self.options.bootstrap || bootstrap),
            // A snapshot has what its sandbox had.
            vm_args: match self.from_snapshot {
                Some(_) => self.options.vm_args.clone(),
                None => self.options.vm_args.with(settings),
            },
            exec: self.options.exec.with(settings),
            ..self.options.clone()
        };
        Self { options, ..self.clone() }
    }

    /// Makes the sandbox, and starts it.
    async fn create(
        &self,
        container: &Devcontainer,
        bus: &Bus,
        jobs: &Jobs,
        progress: &Progress,
        listener: &mut Listener,
    ) -> Result<OwnedObjectPath> {
        let options = &self.options;
        if let Some(snapshot) = &self.from_snapshot {
            return snapshot.start(&options.vm_args, bus, jobs, progress, listener, options.rm).await;
        }
        let lifetime = if options.rm { lifetime::CALLER } else { lifetime::PERSISTENT };
        let lifetime = Options::from([(create::LIFETIME, Variant::from(lifetime))]);
        let built = match &self.agent {
            Some(agent) => agent.image(bus, jobs, progress, listener, &options.vm_args).await?,
            None => None,
        };
        let vm_args = match built {
            Some(image) => options.vm_args.with_image(image),
            None => options.vm_args.or_image(container.image.as_deref()),
        };
        let vm_args = match container.sizes() {
            Some(sizes) => vm_args.or_sizes(sizes),
            None => vm_args,
        };
        let (vm, job) = vm_args.create(bus, jobs, progress, listener, lifetime).await?;
        match jobs.finish(bus, &job, progress.track(None), listener).await {
            Ok(_) => Ok(vm),
            Err(error) => Err(explain(bus, &vm, error).await),
        }
    }

    async fn run_with(&self, settings: &Settings) -> Result<u8> {
        if self.options.json && !self.options.detach && !self.options.workspace.dry_run {
            return Err(Error::Usage("--json needs --detach or --dry-run".to_owned()));
        }
        if self.options.detach && !self.options.exec.shares().is_empty() {
            return Err(share::not_detached("--detach"));
        }
        if self.options.detach && !self.options.exec.mounts().is_empty() {
            return Err(mount::not_detached("--detach"));
        }
        self.check_ask()?;
        if self.from_snapshot.is_some() {
            self.options.vm_args.changes()?;
        }
        share::check(self.options.exec.shares()).await?;
        let sources = mount::open(&self.options.exec.mounts())?;
        if self.options.exec.proxy() {
            // Reported before a sandbox is created.
            let proxies = Proxies::of_caller()?;
            let leaves_command = self.options.detach && !self.command.is_empty();
            if leaves_command && !proxies.unreachable(self.options.vm_args.nat()).is_empty() {
                return Err(proxy::not_detached("--detach"));
            }
        }
        let progress = Progress::new(self.options.progress);
        // Problems with the repository are reported before a sandbox is created.
        let mut plan = match &self.path {
            Some(path) => Some(self.options.workspace.plan(path).map_err(|error| explain_path(path, error))?),
            None => self.require_path().map(|()| None)?,
        };
        let container = match &plan {
            Some(plan) if !self.options.no_devcontainer => self.read_devcontainer(plan, &progress)?,
            _ => Devcontainer::default(),
        };
        if let Some(plan) = &plan {
            if self.options.workspace.dry_run {
                print_plan(plan, self.options.workspace.guest_path(container.root()), self.options.json)?;
                note_left(plan, &progress, true);
                return Ok(0);
            }
            // Commands do not need the tools by default.
            if self.installs_tools() {
                tooling::check(plan, self.has_internet())?;
            }
            note_left(plan, &progress, false);
        }
        let bus = Bus::connect().await?;
        let jobs = Jobs::of(&bus);
        let mut listener = Signals::catch()?.listen();
        let vm = self.create(&container, &bus, &jobs, &progress, &mut listener).await?;
        let proxies = ProxyRelays::default();
        let mut sandbox = Sandbox { bus: &bus, jobs: &jobs, vm, progress, proxies };
        if let Err(error) = sandbox.equip(self, settings, &mut listener).await {
            let error = sandbox.about(error, self.options.rm).await;
            sandbox.clean_up(self.options.rm, &mut listener).await;
            return Err(error);
        }
        let plan_path = plan.as_ref().map(|_| self.options.workspace.guest_path(container.root()).to_owned());
        let prepared = match plan.take() {
            Some(plan) => sandbox.prepare(self, plan, &container, &mut listener).await.map(Some),
            None => Ok(None),
        };
        installed::refresh(&bus).await;
        let status = match prepared {
            Err(error) => Err(error),
            Ok(workspace) if self.options.detach => {
                // Read first: with --rm, a short command may be over, and the sandbox gone, in a moment.
                let created = bus.properties(&sandbox.vm, VM_INTERFACE).await?;
                if let Err(error) = sandbox.detach((self, settings), workspace, &mut listener).await {
                    let error = sandbox.about(error, self.options.rm).await;
                    sandbox.clean_up(self.options.rm, &mut listener).await;
                    return Err(error);
                }
                sandbox.note_ports(&container.ports).await;
                return print(&created, self.options.json);
            }
            Ok(workspace) => {
                let begins = (workspace, container.ports.as_slice(), sources);
                sandbox.attach((self, settings), begins, &mut listener).await
            }
        };
        let (kept, failed) = match (&self.agent, &plan_path) {
            (Some(agent), Some(path)) => {
                // What was broken off is not applied without a question.
                let is_broken_off = status.is_err() && agent.apply == Apply::Always;
                let when = if is_broken_off { Apply::Ask } else { agent.apply };
                sandbox.bring_back(when, path, (self.options.rm, &listener)).await
            }
            _ => (false, false),
        };
        let removes = self.options.rm && !kept;
        let status = match status {
            Err(error) => Err(sandbox.about(error, removes).await),
            Ok(0) if failed => Ok(OWN_FAILURE),
            status => status,
        };
        sandbox.clean_up(removes, &mut listener).await;
        status
    }
}

impl RunOptions {
    /// Reads the user's settings, with the profile that was given.
    pub fn settings(&self) -> Result<Settings> {
        self.vm_args.settings()
    }

    /// Returns whether an image was given.
    pub fn has_image(&self) -> bool {
        self.vm_args.image().is_some()
    }

    /// Returns the same options with this user of the command, if none was given.
    pub fn with_user(&self, user: &str) -> Self {
        Self { exec: self.exec.with_user(user), ..self.clone() }
    }

    /// Returns whether the sandbox is deleted without a client that looks at it first.
    pub fn is_deleted_unseen(&self) -> bool {
        self.detach && self.rm
    }

    /// Returns whether nothing is created.
    pub fn is_dry_run(&self) -> bool {
        self.workspace.dry_run
    }

    /// Returns where progress is shown.
    pub fn progress(&self) -> Progress {
        Progress::new(self.progress)
    }

    /// Returns the same options, with those of a preset where none were given. Its entries of an egress policy are added to
    /// those that were.
    ///
    /// Tells the user which settings do not count: another policy, and proxies that reach more than the sandbox.
    pub fn with_preset(
        &self,
        preset: &Preset,
        variables: Vec<(String, String)>,
        settings: &Settings,
        progress: &Progress,
    ) -> Self {
        let vm_args = self.vm_args.with_preset(preset.sizes.args(), &preset.egress);
        let mut exec = self.exec.with_variables(variables);
        if let Some(policy) = settings.defaults.text(Key::Egress).filter(|_| !self.vm_args.chooses_egress()) {
            let preset = &preset.name;
            progress.note(&format!(
                "note: the preset {preset} replaces the egress policy of your settings, {policy}."
            ));
        }
        let has_proxies = || !Proxies::of_caller().is_ok_and(|proxies| proxies.is_empty());
        if !vm_args.nat() && exec.with(settings).proxy() && !exec.asks_for_proxy() && has_proxies() {
            progress.note("note: your proxies reach more than the preset allows; `--proxy` passes them on.");
            exec = exec.without_proxy();
        }
        Self { vm_args, exec, ..self.clone() }
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
    proxies: ProxyRelays,
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

    /// Copies the user's files into it, and passes on the user's proxies.
    async fn equip(&mut self, run: &Run, settings: &Settings, listener: &mut Listener) -> Result<()> {
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
    async fn prepare(
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

    fn lifecycle<'a>(&'a self, listener: &'a Listener) -> Lifecycle<'a> {
        Lifecycle {
            bus: self.bus,
            vm: &self.vm,
            proxies: self.proxies.variables(),
            progress: &self.progress,
            listener,
        }
    }

    /// Suggests how to forward ports, because this process does not stay.
    async fn note_ports(&self, ports: &[(u16, u16)]) {
        let Ok(sandbox) = self.bus.properties(&self.vm, VM_INTERFACE).await else { return };
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
    async fn detach(
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

    async fn attach(
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
    async fn bring_back(&self, when: Apply, path: &str, (rm, listener): (bool, &Listener)) -> (bool, bool) {
        // A signal that has ended the command must not end this, too.
        let mut guest = Guest::new(self.bus.clone(), self.vm.clone(), listener.resubscribe());
        let name = match self.bus.properties(&self.vm, VM_INTERFACE).await {
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
                self.progress.note(&format!("note: {name} is kept, in spite of `--rm`, for its changes."));
                (true, failed)
            }
            Err(error) => {
                error.print(Some(&name));
                (false, true)
            }
        }
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
        let Ok(sandbox) = self.bus.properties(&self.vm, VM_INTERFACE).await else { return };
        if let Some(line) = reminder(&sandbox) {
            self.progress.note(&line);
        }
    }
}

/// Explains an error about a missing directory: the user may have meant a command or an image.
fn explain_path(path: &Path, error: Error) -> Error {
    if path.exists() { error } else { habits::forgotten_separator(&cli::line()).unwrap_or(error) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::Cli;

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let fits = |line: &str| Cli::try_parse_from(line.split_whitespace()).is_ok();
        assert!(fits("banger vm run"));
        assert!(fits("banger vm run --rm -- make -j4 test"));
        assert!(fits("banger vm run -d --json"));
        assert!(fits("banger vm run . --dry-run --json"));
        assert!(fits("banger vm run -d --rm"));
        assert!(fits("banger run -d --rm --json . -- make"));
        assert!(fits("banger vm run . -- make"));
        assert!(fits("banger vm run --ask --egress packages"));
        assert!(!fits("banger vm run --ask -d --egress packages"));
        assert!(fits("banger vm run . --branch x --from HEAD~2"));
        assert!(!fits("banger vm run . --from HEAD~2"));
        assert!(!fits("banger vm run . make"));
    }
}
