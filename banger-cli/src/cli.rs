//! The command line.

use clap::Parser;

use crate::command::Command;

/// Sandboxes with a kernel of their own, in one command
///
/// banger runs throw-away or lasting Linux machines for your work: each one has its own kernel, and none of
/// them needs a password, a container runtime or an image that you build by hand.
#[derive(Debug, Parser)]
#[command(
    name = "banger",
    version,
    max_term_width = 100,
    after_long_help = "\
Examples:
  banger vm run --rm               a shell in a fresh sandbox, which is gone afterwards
  banger vm run --rm -- make test  one command in it, with its output and its exit status
  banger ps                        your sandboxes
  banger doctor                    what this host lacks, if anything

Exit status:
  0    it is done
  1    it failed
  2    it was called the wrong way
  `vm run` and `vm exec` end with the status of the command; see there."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}
