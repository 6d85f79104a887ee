//! `cargo xtask docs --check`: links in documents lead somewhere, and the commands in their code blocks are valid. Those
//! that need nothing are run, against a service of the tests.

use anyhow::{Result, ensure};
use clap::Parser;

use crate::{
    packages,
    run::{cargo, repository, run},
    tidy,
};

/// The tests of the commands in documents.
const TESTS: [&str; 6] = ["nextest", "run", "--package", "banger-cli", "-E", "test(documented)"];

/// Arguments of `cargo xtask docs`.
#[derive(Parser)]
pub struct Arguments {
    /// Check the documents
    #[arg(long)]
    check: bool,
}

/// Checks all documents.
pub fn check(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.check, "documents are only checked; run: cargo xtask docs --check");
    packages::ensure()?;
    tidy::run()?;
    run(cargo(TESTS).current_dir(repository()))
}
