//! Catalogs: the stored copy of each, whether it is still valid, and the entries in it.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use banger_domain::{
    id::{JobId, Timestamp, Uid},
    name::Name,
};
use banger_image::catalog::index::{Entry, ImageTarget, Index, KernelTarget};

use super::{
    Engine, Shared,
    error::{Error, Kind, Result, one_line},
    job::{JobHandle, Stages},
    now,
    pipeline::{run_job, unless_canceled},
    view::{Fact, JobKind},
};
use crate::ports::catalogs::FetchedIndex;

/// Age from which a stored copy is fetched again before a look-up.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Pause after a failure before the next implicit refresh.
const RETRY_AFTER: Duration = Duration::from_secs(300);

const REFRESH: Stages = &["fetch"];

/// The known state of all catalogs.
#[derive(Default)]
pub(in crate::engine) struct CatalogCache {
    catalogs: RwLock<Vec<Catalog>>,
    /// Held while catalogs are fetched.
    refreshing: tokio::sync::Mutex<()>,
}

/// A catalog.
#[derive(Clone)]
pub(super) struct Catalog {
    pub(super) name: Name,
    edition: Option<FetchedIndex>,
    /// Why the last attempt to fetch or read it failed.
    problem: Option<String>,
    tried_at: Timestamp,
}

impl Catalog {
    fn is_due(&self, older_than: Duration, now: Timestamp) -> bool {
        let since = |then: Timestamp| Duration::from_micros(now.0.saturating_sub(then.0));
        let is_old = self.edition.as_ref().is_none_or(|edition| since(edition.fetched_at) >= older_than);
        let is_refused =
            self.problem.is_some() && !older_than.is_zero() && since(self.tried_at) < RETRY_AFTER;
        is_old && !is_refused
    }

    /// Returns the index, unless it has expired.
    pub(super) fn index(&self, now: Timestamp) -> Result<Option<&Arc<Index>>, String> {
        match &self.edition {
            None => Ok(None),
            Some(FetchedIndex { index, .. }) => match index.check_age(now) {
                Ok(()) => Ok(Some(index)),
                Err(why) => Err(format!("the catalog {} cannot be used: {why}", self.name)),
            },
        }
    }
}

impl CatalogCache {
    pub(super) fn all(&self) -> Vec<Catalog> {
        self.catalogs.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, name: &Name, change: impl FnOnce(&mut Catalog)) {
        let mut catalogs = self.catalogs.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(catalog) = catalogs.iter_mut().find(|catalog| catalog.name == *name) {
            change(catalog);
        }
    }
}

/// An entry, and the catalog that has it.
pub(super) struct Found<T> {
    pub(super) catalog: Name,
    pub(super) entry: Entry<T>,
}

impl<T> Found<T> {
    /// Returns the error of an entry without files for this host's architecture.
    pub(super) fn not_published(&self) -> Error {
        Error::NotPublished {
            name: self.entry.name.to_string(),
            catalog: self.catalog.to_string(),
            note: self.entry.note.clone(),
        }
    }
}

impl Engine {
    /// Reads the stored copies of catalogs. One that cannot be read is reported as a problem.
    pub(in crate::engine) async fn recover_catalogs(&self) {
        let (ports, mut all) = (&self.shared.ports, Vec::new());
        for name in ports.catalogs.names() {
            let (edition, problem) = match ports.catalogs.stored(&name).await {
                Ok(edition) => (edition, None),
                Err(error) => {
                    let problem = one_line(&error);
                    tracing::error!(catalog = %name, error = %problem, "cannot use a stored catalog");
                    (None, Some(problem))
                }
            };
            all.push(Catalog { name, edition, problem, tried_at: Timestamp::default() });
        }
        *self.shared.library.catalogs.catalogs.write().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// Starts to fetch the catalogs whose stored copy is at least this old.
    pub fn refresh_catalogs(&self, owner: Uid, older_than: Duration) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        let job = shared.jobs.begin(JobKind::CatalogRefresh, owner, Vec::new(), REFRESH)?;
        Ok(run_job(shared, job, move |shared, job| Box::pin(run_refresh(shared, job, older_than))))
    }
}

async fn run_refresh(shared: &Shared, job: &JobHandle, older_than: Duration) -> Result<()> {
    job.stage("fetch", "fetching catalogs".to_owned());
    let refreshed = unless_canceled(job, refresh(shared, older_than)).await;
    job.add_result("catalogs", Fact::Number(shared.library.catalogs.all().len() as u64));
    job.add_result("problems", Fact::Text(problems(shared).join("\n")));
    refreshed
}

/// Finds an image by name in the first catalog that has it.
pub(super) async fn find_image(shared: &Shared, name: &Name) -> Result<Option<Found<ImageTarget>>> {
    find(shared, |index| index.image(name)).await
}

/// Finds a kernel by name in the first catalog that has it.
pub(super) async fn find_kernel(shared: &Shared, name: &Name) -> Result<Option<Found<KernelTarget>>> {
    find(shared, |index| index.kernel(name)).await
}

/// Returns the error for a name that no catalog has. If a catalog cannot be used, that is the error.
pub(super) fn not_found(shared: &Shared, kind: Kind, name: &Name) -> Error {
    match problems(shared).into_iter().next() {
        Some(message) => Error::Catalog { message },
        None => Error::NotInCatalogs { kind, name: name.to_string() },
    }
}

async fn find<T: Clone>(
    shared: &Shared,
    lookup: impl Fn(&Index) -> Option<&Entry<T>>,
) -> Result<Option<Found<T>>> {
    refresh(shared, MAX_AGE).await;
    let now = now(&*shared.ports.clock);
    for catalog in shared.library.catalogs.all() {
        let Some(edition) = &catalog.edition else { continue };
        let Some(entry) = lookup(&edition.index) else { continue };
        // Later catalogs may have another entry of this name, which must not stand in for it.
        catalog.index(now).map_err(|message| Error::Catalog { message })?;
        return Ok(Some(Found { catalog: catalog.name, entry: entry.clone() }));
    }
    Ok(None)
}

/// Fetches the catalogs whose stored copy is at least this old. A failure is recorded, and the stored copy stays.
async fn refresh(shared: &Shared, older_than: Duration) {
    let is_due = |shared: &Shared| {
        let now = now(&*shared.ports.clock);
        shared.library.catalogs.all().into_iter().filter(move |catalog| catalog.is_due(older_than, now))
    };
    if is_due(shared).next().is_none() {
        return;
    }
    let _refreshing = shared.library.catalogs.refreshing.lock().await;
    for Catalog { name, .. } in is_due(shared) {
        let at = now(&*shared.ports.clock);
        let fetched = shared.ports.catalogs.refresh(&name, at).await;
        shared.library.catalogs.change(&name, |catalog| {
            catalog.tried_at = at;
            match fetched {
                Ok(edition) => {
                    tracing::info!(catalog = %name, serial = edition.index.serial, "fetched a catalog");
                    (catalog.edition, catalog.problem) = (Some(edition), None);
                }
                Err(error) => {
                    let problem = one_line(&error);
                    tracing::warn!(catalog = %name, error = %problem, "cannot fetch a catalog");
                    catalog.problem = Some(problem);
                }
            }
        });
    }
}

/// Returns a sentence for each catalog that has a problem.
pub(super) fn problems(shared: &Shared) -> Vec<String> {
    let now = now(&*shared.ports.clock);
    let problem = |catalog: &Catalog| match (&catalog.problem, catalog.index(now)) {
        (_, Err(expired)) => Some(expired),
        (Some(problem), Ok(Some(_))) => {
            Some(format!("using the stored copy of the catalog {}: {problem}", catalog.name))
        }
        (problem, Ok(_)) => problem.clone(),
    };
    shared.library.catalogs.all().iter().filter_map(problem).collect()
}
