//! `banger vm show`.

use clap::Args;

use crate::{command::show::ShowArgs, error::Result, service::Kind};

/// Show all details of a sandbox
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm show web
  banger vm show --json web | jq -r .state_reason")]
pub struct Show {
    #[command(flatten)]
    show: ShowArgs,
}

impl Show {
    pub async fn run(&self) -> Result<u8> {
        self.show.run(Kind::Vm).await
    }
}
