//! `banger image delete`.

use clap::Args;

use crate::{
    client::service::Kind,
    command::{batch::ResultArgs, remove},
    error::Result,
};

/// Delete images that no sandbox uses
#[derive(Debug, Args)]
#[command(
    visible_alias = "rm",
    after_long_help = "\
Example:
  banger image delete debian"
)]
pub struct Delete {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    output: ResultArgs,
}

impl Delete {
    pub async fn run(&self) -> Result<u8> {
        remove::each(Kind::Image, &self.images, self.output).await
    }
}
