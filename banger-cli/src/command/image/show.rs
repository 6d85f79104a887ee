//! `banger image show`.

use clap::Args;

use crate::{client::service::Kind, command::show::ShowArgs, error::Result};

/// Show all details of an image
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger image show debian")]
pub struct Show {
    #[command(flatten)]
    show: ShowArgs,
}

impl Show {
    pub async fn run(&self) -> Result<u8> {
        self.show.run(Kind::Image).await
    }
}
