//! The command line.

use clap::Parser;

use crate::command::Command;

/// Sandboxes with a kernel of their own, in one command
///
/// Each sandbox is a microVM. With `--rm` it is deleted when you leave it; otherwise it stays until you delete it.
/// You need no password, no container runtime, and no image that you build by hand.
#[derive(Debug, Parser)]
#[command(
    name = "banger",
    version,
    max_term_width = 100,
    after_long_help = "\
Examples:
  banger vm run --rm               a shell in a fresh sandbox, which is deleted when you leave it
  banger vm run --rm -- make test  one command in a fresh sandbox, with its output and exit status
  banger ps                        your sandboxes
  banger doctor                    whether this host is ready, and what it lacks

Exit status:
  0      success
  1      failure
  2      wrong usage: the command line is invalid
  128+N  interrupted by the signal N, such as 130 by Ctrl-C
  `vm run` and `vm exec` exit with the status of the command; see their help."
)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}
