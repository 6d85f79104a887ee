//! `banger image delete`.

use clap::Args;

use crate::{command::remove, error::Result, service::Kind};

/// Remove images that no sandbox uses
#[derive(Debug, Args)]
#[command(
    visible_alias = "rm",
    after_long_help = "\
Example:
  banger image delete debian"
)]
pub struct Delete {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Delete {
    pub async fn run(&self) -> Result<u8> {
        remove::each(Kind::Image, &self.images).await
    }
}
