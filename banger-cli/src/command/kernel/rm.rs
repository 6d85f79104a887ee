//! `banger kernel rm`.

use clap::Args;

use crate::{
    client::service::Kind,
    command::{batch::ResultArgs, remove},
    error::Result,
};

/// Delete kernels that no image and no sandbox uses
#[derive(Debug, Args)]
#[command(
    visible_alias = "delete",
    after_long_help = "\
Example:
  banger kernel rm host"
)]
pub struct Rm {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "KERNEL")]
    kernels: Vec<String>,
    #[command(flatten)]
    output: ResultArgs,
}

impl Rm {
    pub async fn run(&self) -> Result<u8> {
        remove::each(Kind::Kernel, &self.kernels, self.output).await
    }
}
