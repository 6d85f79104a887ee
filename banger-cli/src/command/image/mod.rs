//! `banger image`.

mod delete;
mod list;
mod register;
mod show;

use clap::Subcommand;

use crate::error::Result;

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    Register(register::Register),
    List(list::List),
    Show(show::Show),
    Delete(delete::Delete),
}

impl ImageCommand {
    pub async fn run(&self) -> Result<u8> {
        match self {
            ImageCommand::Register(register) => register.run().await,
            ImageCommand::List(list) => list.run().await,
            ImageCommand::Show(show) => show.run().await,
            ImageCommand::Delete(delete) => delete.run().await,
        }
    }
}
