//! `banger image cache`.

use std::time::Duration;

use banger_proto::{
    bus::{option::prune, proxy::Options},
    count::counted,
    size::Bytes,
};
use clap::{Args, Subcommand};
use serde_json::json;
use zbus::{OwnedVariant, Variant};

use crate::{
    client::{bus::Bus, job::Jobs},
    command::vm::numbers::time,
    error::Result,
    ui::{
        output,
        progress::{Progress, ProgressArgs},
        signals::Signals,
    },
};

/// The subcommands of `banger image cache`.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    Prune(Prune),
}

impl CacheCommand {
    pub async fn run(&self) -> Result<u8> {
        match self {
            CacheCommand::Prune(prune) => prune.run().await,
        }
    }
}

/// Remove cached downloads that no running pull needs
///
/// Images are not affected, but later pulls of the same layers have to fetch them again.
///
/// All users share the cache, so this needs an administrator.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image cache prune --dry-run
  banger image cache prune --older-than 7d")]
pub struct Prune {
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove only what nobody has used for this long, such as 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = time)]
    older_than: Option<Duration>,
    /// Print the result as a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl Prune {
    async fn run(&self) -> Result<u8> {
        let mut options = Options::new();
        if self.dry_run {
            options.insert(prune::DRY_RUN, Variant::from(true));
        }
        if let Some(time) = self.older_than {
            let usec = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            options.insert(prune::OLDER_THAN, Variant::from(usec));
        }
        let bus = Bus::connect().await?;
        let jobs = Jobs::of(&bus);
        let mut listener = Signals::catch()?.listen();
        let job = bus.prune_cache(&options).await?;
        let track = Progress::new(self.progress).track(None);
        let facts = jobs.finish(&bus, &job, track, &mut listener).await?;
        let number = |key: &str| facts.get(key).and_then(as_number).unwrap_or_default();
        let (blobs, bytes) = (number("blobs"), number("bytes"));
        if self.json {
            output::json(&json!({ "blobs": blobs, "bytes": bytes, "dry_run": self.dry_run }))?;
        } else {
            let done = if self.dry_run { "would remove" } else { "removed" };
            output::text(&format!("{done} {} in {}\n", Bytes(bytes), counted(blobs, "file")))?;
        }
        Ok(0)
    }
}

fn as_number(value: &OwnedVariant) -> Option<u64> {
    u64::try_from(value.clone()).ok()
}
