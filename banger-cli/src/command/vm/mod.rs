//! `banger vm`.

mod agents;
mod ask;
mod attach;
pub mod change;
pub mod commands;
mod commit;
pub mod cp;
mod create;
pub mod created;
mod delete;
mod egress;
pub mod exec;
mod exec_args;
pub mod files;
mod fork;
mod forward;
mod from_snapshot;
mod health;
mod history;
pub mod idle_policy;
pub mod kill;
pub mod list;
mod logs;
mod lookups;
mod loopback;
pub mod numbers;
mod pause;
mod port_spec;
pub mod ports;
mod proxy;
mod prune;
pub mod publish;
mod pulls;
mod restart;
mod restart_args;
pub mod run;
pub mod run_detached;
pub mod sessions;
mod set;
mod shell;
mod show;
pub mod size_args;
pub mod snapshot;
mod ssh;
mod start;
pub mod stats;
mod stop;
mod stop_args;
mod suspend;
pub mod vm_args;
mod wait;
mod wait_exit;
mod workspace;
pub mod workspace_args;

use clap::Subcommand;

pub use self::wait::Wait;
use super::rename::RenameArgs;
use crate::{
    client::service::Kind,
    error::{FAILURE, OWN_FAILURE, Result},
};

/// Exit status of ssh when ssh itself fails.
const SSH_FAILURE: u8 = 255;

/// The subcommands of `banger vm`.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    Run(Box<run::Run>),
    Create(create::Create),
    Start(start::Start),
    Stop(stop::Stop),
    Restart(restart::Restart),
    Pause(pause::Pause),
    Unpause(pause::Unpause),
    Suspend(suspend::Suspend),
    Resume(suspend::Resume),
    Kill(kill::Kill),
    Delete(delete::Delete),
    #[command(visible_aliases = ["ls", "ps"])]
    List(list::List),
    #[command(visible_alias = "inspect")]
    Show(show::Show),
    Set(set::Set),
    Publish(publish::Publish),
    Unpublish(publish::Unpublish),
    Egress(egress::Egress),
    Logs(logs::Logs),
    Commit(commit::Commit),
    Fork(fork::Fork),
    /// Create, list, restore and delete snapshots of sandboxes
    ///
    /// A snapshot keeps a sandbox as it was: its files, and its programs if it ran. `banger vm fork --from-snapshot` makes
    /// sandboxes of it, as often as you like.
    #[command(
        subcommand,
        after_long_help = "\
Examples:
  banger vm snapshot create web clean        keep web as it is now
  banger vm fork --from-snapshot clean web   make web-1 as web was then
  banger vm snapshot delete web clean"
    )]
    Snapshot(snapshot::SnapshotCommand),
    /// Rename a sandbox
    ///
    /// The host uses the new name at once. The host name in the guest changes at its next boot.
    #[command(after_long_help = "\
Example:
  banger vm rename calm-otter web")]
    Rename(RenameArgs),
    Wait(wait_exit::WaitExit),
    Prune(prune::Prune),
    Ports(ports::Ports),
    Forward(forward::Forward),
    Stats(stats::Stats),
    Top(stats::Top),
    Health(health::Health),
    Ping(health::Ping),
    Cp(cp::Cp),
    Files(files::Files),
    Shell(shell::Shell),
    Exec(exec::ExecCommand),
    Commands(commands::Commands),
    Attach(attach::AttachCommand),
    Sessions(sessions::Sessions),
    Ssh(ssh::Ssh),
    /// Send a repository into a sandbox, and bring the work back
    #[command(
        subcommand,
        after_long_help = "\
Examples:
  banger vm workspace prepare web          send the repository in this directory
  banger vm exec web -- make test          run a command in it
  banger vm workspace export web --apply   bring the changes back into this directory"
    )]
    Workspace(workspace::WorkspaceCommand),
}

impl VmCommand {
    pub async fn run(&self) -> Result<u8> {
        match self {
            VmCommand::Run(run) => run.run().await,
            VmCommand::Create(create) => create.run().await,
            VmCommand::Start(start) => start.run().await,
            VmCommand::Stop(stop) => stop.run().await,
            VmCommand::Restart(restart) => restart.run().await,
            VmCommand::Pause(pause) => pause.run().await,
            VmCommand::Unpause(unpause) => unpause.run().await,
            VmCommand::Suspend(suspend) => suspend.run().await,
            VmCommand::Resume(resume) => resume.run().await,
            VmCommand::Kill(kill) => kill.run().await,
            VmCommand::Delete(delete) => delete.run().await,
            VmCommand::List(list) => list.run().await,
            VmCommand::Show(show) => show.run().await,
            VmCommand::Set(set) => set.run().await,
            VmCommand::Publish(publish) => publish.run().await,
            VmCommand::Unpublish(unpublish) => unpublish.run().await,
            VmCommand::Egress(egress) => egress.run().await,
            VmCommand::Logs(logs) => logs.run().await,
            VmCommand::Rename(rename) => rename.run(Kind::Vm).await,
            VmCommand::Commit(commit) => commit.run().await,
            VmCommand::Fork(fork) => fork.run().await,
            VmCommand::Snapshot(snapshot) => snapshot.run().await,
            VmCommand::Wait(wait) => wait.run().await,
            VmCommand::Prune(prune) => prune.run().await,
            VmCommand::Ports(ports) => ports.run().await,
            VmCommand::Forward(forward) => forward.run().await,
            VmCommand::Stats(stats) => stats.run().await,
            VmCommand::Top(top) => top.run().await,
            VmCommand::Health(health) => health.run().await,
            VmCommand::Ping(ping) => ping.run().await,
            VmCommand::Cp(cp) => cp.run().await,
            VmCommand::Files(files) => files.run().await,
            VmCommand::Shell(shell) => shell.run().await,
            VmCommand::Exec(exec) => exec.run().await,
            VmCommand::Commands(commands) => commands.run().await,
            VmCommand::Attach(attach) => attach.run().await,
            VmCommand::Sessions(sessions) => sessions.run().await,
            VmCommand::Ssh(ssh) => ssh.run().await,
            VmCommand::Workspace(workspace) => workspace.run().await,
        }
    }

    /// Returns the exit status for a failure of banger itself.
    pub fn own_failure(&self) -> u8 {
        match self {
            VmCommand::Run(_) | VmCommand::Exec(_) | VmCommand::Shell(_) | VmCommand::Attach(_) => {
                OWN_FAILURE
            }
            VmCommand::Ssh(_) => SSH_FAILURE,
            _ => FAILURE,
        }
    }
}
