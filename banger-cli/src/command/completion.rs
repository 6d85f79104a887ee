//! `banger completion`.

use clap::Args;

use crate::{
    command::complete::{self, VARIABLE},
    error::{Error, Result},
    ui::output,
};

/// The name of this program, wherever it is installed.
const PROGRAM: &str = "banger";
/// The shells with a completion script.
const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

/// Print the completion script of a shell
///
/// The script also completes the names of your sandboxes, images and kernels, and paths in a running sandbox.
/// The banger package installs it for bash, fish and zsh.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  source <(banger completion bash)           # in ~/.bashrc
  source <(banger completion zsh)            # in ~/.zshrc, after compinit
  banger completion fish | source            # in ~/.config/fish/config.fish")]
pub struct Completion {
    /// The shell
    #[arg(value_parser = SHELLS)]
    shell: String,
}

impl Completion {
    pub fn run(&self) -> Result<u8> {
        let mut script = Vec::new();
        if let Some(shell) = complete::SHELLS.completer(&self.shell) {
            let written = shell.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script);
            written.map_err(|source| Error::io("write the script", source))?;
        }
        output::bytes(&script)?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offered_shell_has_a_script() {
        let mut known: Vec<&str> = complete::SHELLS.names().collect();
        known.sort_unstable();
        assert_eq!(known, SHELLS);
    }
}
