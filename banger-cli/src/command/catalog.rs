//! Lists catalog entries, for `image list` and `kernel list`.

use std::time::Duration;

use banger_proto::bus::{
    ErrorName,
    option::{catalog, refresh},
    proxy::Options,
};
use clap::Args;
use serde_json::Value;
use zbus::Variant;

use crate::{
    client::{bus::Bus, job::Jobs, object::Object, service::Kind},
    command::table_args::TableArgs,
    error::Result,
    ui::{
        column::{self, Cell, Column, List},
        progress::{Progress, ProgressArgs},
        signals::Signals,
    },
};

const COLUMNS: &[Column] = &[
    Column::new("NAME", catalog::NAME, column::text),
    Column::new("VERSION", catalog::VERSION, column::text).drop(2),
    Column::new("SIZE", catalog::SIZE, size).drop(4),
    Column::new("ON HOST", catalog::HERE, on_host).drop(3),
    Column::new("CATALOG", catalog::CATALOG, column::text).drop(5),
    Column::new("DESCRIPTION", catalog::DESCRIPTION, column::text).drop(1).elastic(),
];

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
    pub async fn run(&self, kind: Kind, table: &TableArgs, json: bool) -> Result<u8> {
        let verb = if kind == Kind::Kernel { "kernel list" } else { "image list" };
        let view = table.view(List { verb, columns: COLUMNS })?;
        let bus = Bus::connect().await?;
        let progress = Progress::new(self.progress);
        self.fetch(&bus, &progress).await?;
        let word = match kind {
            Kind::Kernel => catalog::KERNEL_KIND,
            _ => catalog::IMAGE,
        };
        let options = Options::from([(catalog::KIND, Variant::from(word))]);
        let entries = bus.list_catalog(&options).await?.into_iter().map(Object::new);
        view.print(entries.map(|entry| entry.json()).collect(), json)?;
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

/// Returns whether the host has an entry.
fn on_host(entry: Cell<'_>) -> String {
    match (entry.of(catalog::PUBLISHED) == &Value::Bool(true), entry.of(catalog::HERE) == &Value::Bool(true))
    {
        (false, _) => "not published",
        (true, true) => "yes",
        (true, false) => "no",
    }
    .to_owned()
}

/// Returns the size of an entry, if it is known.
fn size(entry: Cell<'_>) -> String {
    if entry.number(catalog::SIZE) == 0 { String::new() } else { column::size(entry) }
}
