//! `banger vm ssh`.

use std::{os::unix::process::CommandExt, process::Command};

use banger_proto::bus::{ErrorName, names::VM_INTERFACE};
use clap::Args;

use crate::{
    client::{bus::Bus, object::Object, service::Kind},
    error::{Error, Result},
    ssh::{config, host_of, keys},
    user::dirs::UserDirs,
};

/// Log in to a sandbox with ssh
///
/// This runs the ssh of your system with the address and the host key of the sandbox, so it asks no questions. The
/// image needs an ssh server; `banger vm exec` needs none. Arguments after -- go to ssh.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm ssh web                           a shell
  banger vm ssh web -- uname -a               a command, with its exit status
  banger vm ssh web -- -N -L 8080:localhost:80

Exit status:
  that of ssh, which is 255 if ssh itself failed
  255  banger itself failed

For scp, rsync and editors, run `banger ssh-config --install` once; then they know web.vm.")]
pub struct Ssh {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Options of ssh, then a command and its arguments [default: a login shell]
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

impl Ssh {
    pub async fn run(&self) -> Result<u8> {
        let dirs = UserDirs::of_caller()?;
        let host = self.host().await.map_err(|error| error.about(&self.sandbox))?;
        keys::ensure(&dirs)?;
        let mut ssh = Command::new("ssh");
        for (keyword, value) in config::settings(&dirs)? {
            ssh.arg("-o").arg(format!("{keyword}={value}"));
        }
        // An option may also follow the host.
        let error = ssh.arg(host).args(&self.arguments).exec();
        let failed = Error::io("run ssh", error);
        Err(failed.with_hint("install the ssh client: the package openssh-client or openssh-clients."))
    }

    /// Returns the host name by which ssh-proxy finds the sandbox.
    async fn host(&self) -> Result<String> {
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await?;
        let sandbox = bus.properties(&vm, VM_INTERFACE).await?;
        require_running(&sandbox)?;
        let is_own = sandbox.number("OwnerUid") == u64::from(rustix::process::getuid().as_raw());
        Ok(host_of(if is_own { sandbox.name() } else { sandbox.text("Id") }))
    }
}

/// Checks that a sandbox is running. This is done here, because ssh adds a confusing line to an error of its proxy.
fn require_running(sandbox: &Object) -> Result<()> {
    match sandbox.text("State") {
        "running" | "starting" => Ok(()),
        _ => {
            let message = format!("{} is not running", sandbox.name());
            let error = Error::Service { name: ErrorName::InvalidState, message };
            Err(error.with_hint("`banger vm start NAME` boots it."))
        }
    }
}
