//! `banger vm run`.

mod sandbox;

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use banger_proto::bus::{
    option::{create, lifetime},
    proxy::Options,
};
use clap::{Args, ValueHint};
use zbus::{OwnedObjectPath, Variant};

use sandbox::Sandbox;

use super::{
    created::{explain, print},
    exec_args::ExecArgs,
    from_snapshot::SnapshotName,
    proxy,
    vm_args::VmArgs,
    workspace_args::{WorkspaceArgs, note_left, print_plan},
};
use crate::{
    cli,
    client::{bus::Bus, job::Jobs},
    coding_agent::{AgentRun, Apply, Preset},
    command::habits,
    error::{Error, OWN_FAILURE, Result},
    guest::attach,
    mount, share,
    ssh::installed,
    ui::{
        progress::{Progress, ProgressArgs},
        signals::{Listener, Signals},
    },
    user::{defaults::Key, proxy::Proxies, settings::Settings},
    workspace::{
        devcontainer::{Devcontainer, Wishes},
        prepare::Plan,
        tooling,
    },
};

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
    /// Make the sandbox from this snapshot instead of from an image
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

    /// Refuses what cannot be done together, and what is not there, before a sandbox is created. Returns the directories to mount.
    async fn check(&self) -> Result<Vec<mount::Source>> {
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
        Ok(sources)
    }

    /// Reads the repository, so that problems with it are reported before a sandbox is created.
    fn read_repository(&self, progress: &Progress) -> Result<(Option<Plan>, Devcontainer)> {
        let plan = match &self.path {
            Some(path) => Some(self.options.workspace.plan(path).map_err(|error| explain_path(path, error))?),
            None => self.require_path().map(|()| None)?,
        };
        let container = match &plan {
            Some(plan) if !self.options.no_devcontainer => self.read_devcontainer(plan, progress)?,
            _ => Devcontainer::default(),
        };
        Ok((plan, container))
    }

    async fn run_with(&self, settings: &Settings) -> Result<u8> {
        let sources = self.check().await?;
        let progress = Progress::new(self.options.progress);
        let (mut plan, container) = self.read_repository(&progress)?;
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
        let mut sandbox = Sandbox::new(&bus, &jobs, vm, progress);
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
                let created = sandbox.properties().await?;
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
