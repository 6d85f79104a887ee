//! `banger completion`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::{cli::Cli, error::Result, output};

/// Print the completion script of a shell
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger completion bash > ~/.local/share/bash-completion/completions/banger")]
pub struct Completion {
    /// The shell
    shell: Shell,
}

impl Completion {
    pub fn run(&self) -> Result<u8> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "banger", &mut script);
        output::bytes(&script)?;
        Ok(0)
    }
}
