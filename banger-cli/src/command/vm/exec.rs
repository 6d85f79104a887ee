//! `banger vm exec`.

use std::os::fd::OwnedFd;

use banger_proto::bus::ErrorName;
use clap::Args;

use super::exec_args::ExecArgs;
use crate::{
    attach,
    bus::Bus,
    error::{Error, Result},
    service::Kind,
    signals::Signals,
};

/// Run a command or a shell in a sandbox that is running
///
/// Without a command it is a login shell. Input, output, signals and the size of the terminal are passed on,
/// and the exit status is the command's. A second interrupt leaves the command, which is then ended.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm exec web                        a shell
  banger vm exec web -- uname -a
  banger vm exec -w /srv -e PORT=80 web -- ./serve
  banger vm exec -d web -- sleep 1000       goes on without this command

Exit status:
  that of the command; 128 and the signal's number when a signal ended it
  125  banger itself failed
  126  the command cannot be run in the sandbox
  127  the command is not there
  2    banger was called the wrong way")]
pub struct ExecCommand {
    /// A name, an id, or the beginning of an id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// The command and its arguments [default: a login shell]
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Return once the command runs; it has no input, and its output is lost
    #[arg(short, long, conflicts_with = "tty", requires = "command")]
    detach: bool,
    #[command(flatten)]
    exec: ExecArgs,
}

impl ExecCommand {
    pub async fn run(&self) -> Result<u8> {
        let stream = self.open().await.map_err(|error| advise(error).about(&self.sandbox))?;
        let exec =
            if self.detach { self.exec.detached(&self.command) } else { self.exec.exec(&self.command) };
        // Until here a signal ends us as it ends any program.
        attach::run(stream, exec, &mut Signals::catch()?.listen()).await
    }

    async fn open(&self) -> Result<OwnedFd> {
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await?;
        bus.open_agent(&vm).await
    }
}

/// Who wants to go into what is down has to boot it.
fn advise(error: Error) -> Error {
    match error.name() {
        Some(ErrorName::InvalidState) => error.advise("`banger vm start NAME` boots it."),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Test {
        #[command(flatten)]
        exec: ExecCommand,
    }

    fn check(line: &str, sandbox: &str, command: &[&str]) {
        let parsed = Test::try_parse_from(format!("exec {line}").split_whitespace()).unwrap().exec;
        assert_eq!(
            (parsed.sandbox.as_str(), parsed.command),
            (sandbox, command.iter().map(|w| w.to_string()).collect())
        );
    }

    #[test]
    fn the_options_of_the_command_are_not_ours() {
        check("web", "web", &[]);
        check("web -- ls -l", "web", &["ls", "-l"]);
        check("web ls -t -d", "web", &["ls", "-t", "-d"]);
        check("-T web -- -odd", "web", &["-odd"]);
        check("web -- env -- x", "web", &["env", "--", "x"]);
    }

    #[test]
    fn a_shell_cannot_be_detached() {
        assert!(Test::try_parse_from(["exec", "-d", "web"]).is_err());
        assert!(Test::try_parse_from(["exec", "-d", "-t", "web", "--", "ls"]).is_err());
        assert!(Test::try_parse_from(["exec", "-d", "web", "--", "ls"]).is_ok());
    }
}
