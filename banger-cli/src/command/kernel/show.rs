//! `banger kernel show`.

use clap::Args;

use crate::{client::service::Kind, command::show::ShowArgs, error::Result};

/// Show all details of a kernel
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger kernel show host")]
pub struct Show {
    #[command(flatten)]
    show: ShowArgs,
}

impl Show {
    pub async fn run(&self) -> Result<u8> {
        self.show.run(Kind::Kernel).await
    }
}
