//! Lists catalog entries, for `image list` and `kernel list`.

use std::time::Duration;

use banger_proto::{
    bus::{
        ErrorName,
        option::{catalog, refresh},
        proxy::Options,
    },
    size::Bytes,
};
use clap::Args;
use zbus::Variant;

use crate::{
    client::{bus::Bus, job::Jobs, object::Object, service::Kind},
    error::Result,
    ui::{
        output,
        progress::{Progress, ProgressArgs},
        signals::Signals,
        table::Table,
    },
};

/// Catalogs fetched more recently than this are not fetched again.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// The options of a list that can show catalogs.
#[derive(Debug, Args)]
pub struct AvailableArgs {
    /// Show what the catalogs have, and whether this host has it
    #[arg(long)]
    available: bool,
    /// Fetch the catalogs first, even if they were fetched less than a day ago
    #[arg(long, requires = "available")]
    refresh: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl AvailableArgs {
    /// Returns whether to list catalogs.
    pub fn is_requested(&self) -> bool {
        self.available
    }

    /// Lists the entries of this kind.
    pub async fn run(&self, kind: Kind, json: bool) -> Result<u8> {
        let bus = Bus::connect().await?;
        let progress = Progress::new(self.progress);
        self.fetch(&bus, &progress).await?;
        let word = match kind {
            Kind::Kernel => catalog::KERNEL_KIND,
            _ => catalog::IMAGE,
        };
        let options = Options::from([(catalog::KIND, Variant::from(word))]);
        let entries: Vec<Object> = bus.list_catalog(&options).await?.into_iter().map(Object::new).collect();
        if json {
            output::json(&entries.iter().map(Object::json).collect())?;
        } else {
            output::text(&table(&entries))?;
        }
        Ok(0)
    }

    /// Lets the service fetch old catalogs. If that fails, the cached ones are shown.
    async fn fetch(&self, bus: &Bus, progress: &Progress) -> Result<()> {
        let age = if self.refresh { Duration::ZERO } else { FRESH };
        let age = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        let jobs = Jobs::of(bus);
        let mut listener = Signals::catch()?.listen();
        let options = Options::from([(refresh::OLDER_THAN, Variant::from(age))]);
        let job = match bus.refresh_catalog(&options).await {
            Err(error) if !self.refresh && is_denied(error.name()) => return Ok(()),
            job => job?,
        };
        let facts = Object::new(jobs.finish(bus, &job, progress.track(None), &mut listener).await?);
        for problem in facts.text("problems").lines() {
            progress.note(&format!("warning: {problem}."));
        }
        if facts.number("catalogs") == 0 {
            progress.note("note: no catalog is configured.");
        }
        Ok(())
    }
}

/// Returns whether the caller may not refresh catalogs; the cached ones are still visible.
fn is_denied(name: Option<ErrorName>) -> bool {
    matches!(name, Some(ErrorName::AccessDenied | ErrorName::InteractiveAuthorizationRequired))
}

fn table(entries: &[Object]) -> String {
    let mut table = Table::new(["NAME", "VERSION", "SIZE", "ON HOST", "CATALOG", "DESCRIPTION"]);
    for entry in entries {
        let here = match (entry.flag(catalog::PUBLISHED), entry.flag(catalog::HERE)) {
            (false, _) => "not published",
            (true, true) => "yes",
            (true, false) => "no",
        };
        let size = match entry.number(catalog::SIZE) {
            0 => String::new(),
            size => Bytes(size).to_string(),
        };
        table.row([
            entry.text(catalog::NAME).to_owned(),
            entry.text(catalog::VERSION).to_owned(),
            size,
            here.to_owned(),
            entry.text(catalog::CATALOG).to_owned(),
            entry.text(catalog::DESCRIPTION).to_owned(),
        ]);
    }
    table.text()
}
