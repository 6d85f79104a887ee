//! The commands, one file each.

pub mod add;
mod agent;
mod batch;
mod catalog;
pub mod complete;
mod completion;
mod config;
mod context;
mod delete;
mod doctor;
mod events;
mod filter;
pub mod habits;
mod image;
mod kernel;
mod list;
mod manual;
mod mcp;
mod metrics;
mod prune;
mod remote_proxy;
mod rename;
mod schema;
mod show;
mod ssh_config;
mod ssh_proxy;
mod table_args;
mod version;
pub mod vm;

use clap::Subcommand;

pub use image::temporary;

use crate::{
    client::service::Kind,
    error::{FAILURE, OWN_FAILURE, Result},
};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(flatten)]
    Flat(vm::VmCommand),
    /// Run, list and manage sandboxes
    ///
    /// A sandbox is a virtual machine with a kernel of its own, a system disk that is a clone of an image,
    /// and a work disk at /root. It belongs to the user who created it.
    #[command(
        subcommand,
        after_long_help = "\
Examples:
  banger vm run --rm -- make test   one command in a sandbox that is deleted afterwards
  banger vm create --name web       a sandbox that stays
  banger vm exec web                a shell in it
  banger vm delete --force web      delete it, even if it is running

All of these work without `vm`, too: `banger run`, `banger ps`, `banger exec web`."
    )]
    Vm(vm::VmCommand),
    /// Manage the images that sandboxes are cloned from
    ///
    /// An image is a root file system. Sandboxes never change it: each one has a clone of its own.
    #[command(
        subcommand,
        after_long_help = "\
Examples:
  banger image pull alpine
  banger image register --name debian --rootfs ./debian.ext4
  banger image list

Next: `banger vm run --image alpine`."
    )]
    Image(image::ImageCommand),
    /// Manage the kernels that sandboxes boot
    ///
    /// Any distribution's kernel works, with its modules.
    #[command(
        subcommand,
        after_long_help = "\
Examples:
  banger kernel import --name host --host
  banger kernel list

Next: `banger vm run --kernel host`."
    )]
    Kernel(kernel::KernelCommand),
    /// List your images and the shared ones
    #[command(hide = true)]
    Images(list::ListArgs),
    #[command(hide = true)]
    Pull(image::Pull),
    #[command(hide = true)]
    Tag(image::Tag),
    /// Delete images that no sandbox uses
    #[command(hide = true)]
    Rmi(delete::DeleteArgs),
    Agent(Box<agent::Agent>),
    SshConfig(ssh_config::SshConfig),
    #[command(hide = true)]
    SshProxy(ssh_proxy::SshProxy),
    #[command(hide = true)]
    SshKnownHosts(ssh_proxy::SshKnownHosts),
    Events(events::Events),
    /// Show your settings
    #[command(
        subcommand,
        after_long_help = "\
Example:
  banger config show --origin"
    )]
    Config(config::ConfigCommand),
    /// Manage names for other hosts, and choose the one to use
    ///
    /// A context is a name for a host that ssh reaches and that has banger. All commands use the chosen one; `default`
    /// is the local host. `--context` and `--host` before a command, and the variable BANGER_HOST, count first.
    #[command(
        subcommand,
        after_long_help = "\
Examples:
  banger context add lab ssh://alice@lab.example.org
  banger context use lab        from now on, commands run sandboxes there
  banger context use default    back to the local host
  banger --context lab ps       one command"
    )]
    Context(context::ContextCommand),
    #[command(hide = true)]
    RemoteProxy(remote_proxy::RemoteProxy),
    Doctor(doctor::Doctor),
    Metrics(metrics::Metrics),
    Mcp(mcp::Mcp),
    Version(version::Version),
    Schema(schema::Schema),
    Completion(completion::Completion),
    #[command(hide = true)]
    Manual(manual::Manual),
}

impl Command {
    /// Runs the command. Returns its exit status.
    pub async fn run(&self) -> Result<u8> {
        match self {
            Command::Flat(command) | Command::Vm(command) => command.run().await,
            Command::Image(command) => command.run().await,
            Command::Kernel(command) => command.run().await,
            Command::Images(list) => list.run(Kind::Image).await,
            Command::Pull(pull) => pull.run().await,
            Command::Tag(tag) => tag.run().await,
            Command::Rmi(delete) => delete.run(Kind::Image).await,
            Command::Agent(agent) => agent.run().await,
            Command::SshConfig(config) => config.run().await,
            Command::SshProxy(proxy) => proxy.run().await,
            Command::SshKnownHosts(hosts) => hosts.run().await,
            Command::Events(events) => events.run().await,
            Command::Config(config) => config.run().await,
            Command::Context(context) => context.run(),
            Command::RemoteProxy(proxy) => proxy.run().await,
            Command::Doctor(doctor) => doctor.run().await,
            Command::Metrics(metrics) => metrics.run().await,
            Command::Mcp(mcp) => mcp.run().await,
            Command::Version(version) => version.run().await,
            Command::Schema(schema) => schema.run(),
            Command::Completion(completion) => completion.run(),
            Command::Manual(manual) => manual.run(),
        }
    }

    /// Returns the exit status for a failure of banger itself.
    pub fn own_failure(&self) -> u8 {
        match self {
            Command::Flat(command) | Command::Vm(command) => command.own_failure(),
            Command::Agent(_) => OWN_FAILURE,
            _ => FAILURE,
        }
    }
}
