//! `banger agent`.

mod list;
mod show;

use std::{
    env,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;

use crate::{
    coding_agent::{self, AgentRun, Apply, Preset},
    command::{
        complete,
        vm::run::{Run, RunOptions},
    },
    error::{Error, Result},
    ui::progress::Progress,
    user::{
        dirs::UserDirs,
        settings::{FileSync, Settings},
    },
};

/// Run a coding agent in a sandbox of its own
///
/// A preset names the image, the agent's command, what it may reach, and which of your files and environment variables
/// it gets. `banger agent list` lists the presets, and `banger agent show NAME` shows one. The image is built once, on
/// the first run.
///
/// The repository in PATH is sent, as with `banger vm run`. At the end, banger shows the changes and asks whether to
/// apply them to the repository. The sandbox stays, unless you give --rm.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_long_help = "\
Examples:
  banger agent claude                          in the repository of this directory
  banger agent codex ~/src/web --rm
  banger agent claude . -- -p 'Fix the tests'  arguments of the agent follow `--`
  banger agent codex --with-credentials        with your login, which is copied into the sandbox
  banger agent opencode --egress github        what its preset allows, and GitHub
  banger agent claude --apply --rm . -- -p 'Add a README'

Options override the preset, and the preset overrides your settings. Entries of --egress are added
to those of the preset; `--egress all`, `--egress none` and --nat replace them.

Your presets are in ~/.config/banger/agents/NAME.toml, those of the administrator in
/etc/banger/agents.d, and those of the package in /usr/share/banger/agents. Of several with the
same name, the first in this order is used.

Exit status:
  that of the agent; for errors of banger itself, see `banger vm run --help`

A sandbox whose changes were neither applied nor declined is kept, even with --rm, and so is one
with commits of its own."
)]
pub struct Agent {
    #[command(subcommand)]
    command: Option<AgentCommand>,
    /// Name of the preset
    #[arg(value_name = "AGENT", required = true, add = ArgValueCompleter::new(complete::agents))]
    preset: Option<String>,
    /// Directory of a repository to send into the sandbox [default: the current directory, if it is in one]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Arguments of the agent
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
    /// Also copy the preset's files with secrets, such as your login, into the sandbox
    #[arg(long)]
    with_credentials: bool,
    /// Apply the changes to the repository at the end without asking
    #[arg(long, conflicts_with_all = ["no_apply", "detach"])]
    apply: bool,
    /// Do not ask, and do not apply the changes; with --rm, they are deleted
    #[arg(long)]
    no_apply: bool,
    /// Build the preset's image again first, with the newest version of the agent
    #[arg(long, conflicts_with = "image")]
    build: bool,
    #[command(flatten)]
    options: RunOptions,
}

/// The subcommands of `banger agent`.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    #[command(visible_alias = "ls")]
    List(list::List),
    #[command(visible_alias = "inspect")]
    Show(show::Show),
}

impl Agent {
    pub async fn run(&self) -> Result<u8> {
        match (&self.command, &self.preset) {
            (Some(AgentCommand::List(list)), _) => list.run(),
            (Some(AgentCommand::Show(show)), _) => show.run(),
            (None, Some(name)) => self.start(name).await,
            (None, None) => Ok(0),
        }
    }

    async fn start(&self, name: &str) -> Result<u8> {
        if self.options.is_deleted_unseen() {
            return Err(Error::Usage("--detach and --rm would delete the agent's changes unseen".to_owned())
                .with_hint("leave out `--rm`; `banger vm workspace export NAME` shows the changes later."));
        }
        let preset = coding_agent::named(name)?.preset;
        let mut settings = self.options.settings()?;
        let progress = self.options.progress();
        let path = match (&self.path, repository_of(&env::current_dir().unwrap_or_default())) {
            (Some(path), _) => Some(path.clone()),
            (None, Some(root)) if is_same(&root, &UserDirs::of_caller()?.home) => {
                progress.note("note: the repository of your home is not sent unless you give its path.");
                None
            }
            (None, Some(_)) => Some(".".into()),
            (None, None) => {
                progress.note("note: this directory is in no git repository, so nothing is sent.");
                None
            }
        };
        let (variables, passed) = preset.variables(|name| env::var(name).ok());
        if !self.options.is_dry_run() {
            self.add_files(&preset, &mut settings, &progress)?;
            if !passed.is_empty() {
                progress.note(&format!("note: the agent gets your {}.", passed.join(", ")));
            }
        }
        let apply = match (self.apply, self.no_apply) {
            (true, _) => Apply::Always,
            (_, true) => Apply::Never,
            _ => Apply::Ask,
        };
        // Its files are root's.
        let options = self.options.with_preset(&preset, variables, &settings, &progress).with_user("root");
        let image_is_given = self.options.has_image();
        let agent = AgentRun { preset, build: self.build, image_is_given, apply };
        Run::of_agent(path, options, agent, &self.arguments).run_in(&settings).await
    }

    /// Adds the files of the preset to those that the sandbox gets.
    fn add_files(&self, preset: &Preset, settings: &mut Settings, progress: &Progress) -> Result<()> {
        let home = UserDirs::of_caller()?.home;
        let (mut withheld, mut copied) = (Vec::new(), Vec::new());
        for file in &preset.files {
            match file.on_host(&home)? {
                None => {}
                Some(_) if file.secret && !self.with_credentials => withheld.push(file.path.as_str()),
                Some(found) => {
                    let host = found.into_os_string().into_string();
                    let host = host.map_err(|_| Error::Refused(format!("{} is not UTF-8", file.path)))?;
                    let mode =
                        file.secret.then(|| SECRET_MODE.to_owned()).filter(|_| Path::new(&host).is_file());
                    copied.push(file.path.as_str());
                    settings.file_sync.push(FileSync { host, guest: file.path.clone(), mode });
                }
            }
        }
        if !copied.is_empty() {
            progress.note(&format!("note: the sandbox gets your {}.", copied.join(", ")));
        }
        if !withheld.is_empty() {
            progress.note(&format!(
                "note: {} {} not copied; `--with-credentials` copies files with secrets.",
                withheld.join(", "),
                if withheld.len() == 1 { "is" } else { "are" }
            ));
        }
        Ok(())
    }
}

/// Permissions of a file with secrets in the sandbox.
const SECRET_MODE: &str = "0600";

/// Returns the root of the repository that a directory is in. Problems with it are reported later.
fn repository_of(directory: &Path) -> Option<PathBuf> {
    directory.ancestors().find(|directory| directory.join(".git").exists()).map(Path::to_owned)
}

/// Returns whether two paths are the same directory.
fn is_same(one: &Path, other: &Path) -> bool {
    one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

#[cfg(test)]
mod tests {
    use crate::cli::try_parse;

    #[test]
    fn options_and_verbs_do_not_mix() {
        let fits = |line: &str| try_parse(line.split_whitespace().map(Into::into)).is_ok();
        for line in [
            "banger agent claude",
            "banger agent claude --rm . -- -p x --list",
            "banger agent claude --apply --rm -q",
            "banger agent claude -d",
            "banger agent list --json",
            "banger agent ls",
            "banger agent show claude",
            "banger agent claude --egress github,a.example -e A=b --name x",
        ] {
            assert!(fits(line), "{line}");
        }
        for line in [
            "banger agent",
            "banger agent claude . x",
            "banger agent claude --apply --no-apply",
            "banger agent claude --apply -d",
            "banger agent claude --build --image x",
            "banger agent show",
        ] {
            assert!(!fits(line), "{line}");
        }
    }
}
