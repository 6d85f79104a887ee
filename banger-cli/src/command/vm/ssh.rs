//! `banger vm ssh`.

use std::{os::unix::process::CommandExt, process::Command};

use banger_proto::bus::{ErrorName, names::VM_INTERFACE};
use clap::Args;

use crate::{
    client::{bus::Bus, object::Object, service::Kind},
    error::{Error, Result},
    remote::{self, choice::VARIABLE, trust},
    ssh::{config, host_of, hosts::Session, keys},
    user::dirs::UserDirs,
    workspace::record::shell_word,
};

/// Log in to a sandbox with ssh
///
/// This runs the ssh of your system with the address and the host key of the sandbox, so it asks no questions. The
/// image needs an ssh server; `banger vm exec` needs none. If you sent a repository, the session has its user,
/// directory and environment. Options of ssh go after --.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm ssh web                           a shell
  banger vm ssh web uname -a                  a command, with its exit status
  banger vm ssh -t web htop                   in a terminal
  banger vm ssh web -- -N -L 8080:localhost:80

Exit status:
  that of ssh, which is 255 if ssh itself failed
  255  banger itself failed

For scp, rsync and editors, run `banger ssh-config --install` once; then they know web.vm.")]
pub struct Ssh {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Command and its arguments, which ssh joins by spaces for the shell of the sandbox [default: a login shell]. After
    /// --, options of ssh can come first
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    arguments: Vec<String>,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
}

impl Ssh {
    pub async fn run(&self) -> Result<u8> {
        let dirs = UserDirs::of_caller()?;
        let (host, session) = self.host().await.map_err(|error| error.about(&self.sandbox))?;
        keys::ensure(&dirs)?;
        let mut ssh = Command::new("ssh");
        // ssh takes the first value of a setting.
        for (keyword, value) in session.settings().into_iter().chain(config::settings(&dirs)?) {
            ssh.arg("-o").arg(format!("{keyword}={value}"));
        }
        if self.tty {
            ssh.arg("-t");
        }
        if let Some(server) = remote::chosen()? {
            // Its ProxyCommand is this program.
            ssh.env(VARIABLE, server.to_string());
        }
        // An option may also follow the host.
        let error = ssh.arg(host).args(in_directory(&session, &self.arguments)).exec();
        let failed = Error::io("run ssh", error);
        Err(failed.with_hint("install the ssh client: the package openssh-client or openssh-clients."))
    }

    /// Returns the host name by which ssh-proxy finds the sandbox, and how a session there begins.
    async fn host(&self) -> Result<(String, Session)> {
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await?;
        let sandbox = bus.properties(&vm, VM_INTERFACE).await?;
        require_running(&sandbox)?;
        let host = host(&sandbox, bus.is_own(&sandbox))?;
        Ok((host, Session::of(sandbox.text("Id"))))
    }
}

/// Returns the host name for ssh. One that begins with a hyphen would be an option.
fn host(sandbox: &Object, is_own: bool) -> Result<String> {
    let (text, is_plain) = match is_own {
        true => (sandbox.name(), trust::is_name(sandbox.name())),
        false => (sandbox.text("Id"), trust::is_id(sandbox.text("Id"))),
    };
    match is_plain {
        true => Ok(host_of(text)),
        false => Err(Error::Refused("the name or the id of the sandbox is not a valid host name".to_owned())),
    }
}

/// Makes a command start in the workspace. A login shell does that by itself, and options of ssh stay as they are.
fn in_directory(session: &Session, arguments: &[String]) -> Vec<String> {
    match (&session.directory, arguments.first()) {
        (Some(directory), Some(first)) if !first.starts_with('-') => {
            let prefix = ["cd".to_owned(), shell_word(directory), "&&".to_owned()];
            prefix.into_iter().chain(arguments.iter().cloned()).collect()
        }
        _ => arguments.to_vec(),
    }
}

/// Checks that a sandbox is running. This is done here, because ssh adds a confusing line to an error of its proxy.
fn require_running(sandbox: &Object) -> Result<()> {
    match sandbox.text("State") {
        // A suspended one is resumed by the connection.
        "running" | "starting" | "suspended" | "resuming" => Ok(()),
        _ => {
            let message = format!("{} is not running", sandbox.name());
            let error = Error::Service { name: ErrorName::InvalidState, message };
            Err(error.with_hint("`banger vm start NAME` boots it."))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::parse_args;

    #[test]
    fn a_command_follows_the_sandbox_as_with_ssh() {
        let (plain, workspace) = (
            Session::default(),
            Session { directory: Some("/root/my repo".to_owned()), ..Session::default() },
        );
        for (line, session, tty, expect) in [
            ("web", &plain, false, vec![]),
            ("web uname -a", &plain, false, vec!["uname", "-a"]),
            ("web -- uname -a", &plain, false, vec!["uname", "-a"]),
            ("-t web htop -d 5", &plain, true, vec!["htop", "-d", "5"]),
            ("web htop -t", &plain, false, vec!["htop", "-t"]),
            ("web -- -N -L 1:localhost:2", &workspace, false, vec!["-N", "-L", "1:localhost:2"]),
            ("web", &workspace, false, vec![]),
            ("web make -j4", &workspace, false, vec!["cd", "'/root/my repo'", "&&", "make", "-j4"]),
        ] {
            let ssh = parse_args::<Ssh>(line).unwrap();
            assert_eq!((ssh.sandbox.as_str(), ssh.tty), ("web", tty), "{line}");
            assert_eq!(in_directory(session, &ssh.arguments), expect, "{line}");
        }
        assert!(parse_args::<Ssh>("web -N").is_err());
    }

    #[test]
    fn a_sandbox_is_no_option_of_ssh() {
        use zbus::{OwnedVariant, Variant};

        let host = |property: &str, text: &str, is_own| {
            let value = OwnedVariant::try_from(Variant::from(text.to_owned())).unwrap();
            host(&Object::new([(property.to_owned(), value)].into()), is_own).ok()
        };
        assert_eq!(host("Name", "web", true).as_deref(), Some("web.vm"));
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(host("Id", id, false), Some(format!("{id}.vm")));
        for text in ["-oProxyCommand=reboot", "-", "", "a b", "x@y", "a\nb"] {
            assert_eq!((host("Name", text, true), host("Id", text, false)), (None, None), "{text:?}");
        }
    }
}
