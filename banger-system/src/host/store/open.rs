//! Opening the database. One that is damaged, of another program, of a newer version, or missing although
//! there are disks, is refused and left exactly as it is: whoever repairs it has to find it so.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use banger_domain::resource::Places;
use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

/// How long to wait for another program that has the database open, such as an administrator's `sqlite3`.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// What the first migration writes into the header.
const APPLICATION_ID: i64 = 0x626e_6772;

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Why the database cannot be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is no database, or its structure does not hold together.
    #[error("the database {} is damaged ({finding}); it was left as it is, restore a copy of it", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says of it.
        finding: String,
    },
    /// The file is the database of another program.
    #[error("{} is not a database of banger", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A newer version has written it.
    #[error("the database {} has version {version}, but this banger supports only versions up to {known}; install the newer banger again", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: i64,
        /// The newest version that we know.
        known: i64,
    },
    /// There is no database, but there is what only a database can explain.
    #[error("the database {} is missing, but {} is not empty; restore the database, or remove that directory if nothing in it is needed", .path.display(), .directory.display())]
    Missing {
        /// Where the database should be.
        path: PathBuf,
        /// A directory with disks or images.
        directory: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {doing} {}", .path.display())]
    Os {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// SQLite refused.
    #[error("cannot open the database {}", .path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Opens the database of `places`, made when this is the first start, and brings it to the present version.
pub(super) async fn open(places: &Places) -> Result<SqlitePool, Error> {
    let path = places.database();
    match prepare(places, &path)? {
        Found::Database => inspect(&path).await?,
        Found::Nothing => {}
    }
    let options = options(&path).journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    // One connection: SQLite has one writer, and with one connection there is nobody to be busy for. It is
    // never closed for being idle or old, so that a call never pays for opening it.
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_with(options)
        .await
        .map_err(|source| refused(&path, source))?;
    MIGRATIONS.run(&pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) | MigrateError::VersionMismatch(version) => {
            Error::Newer { path: path.clone(), version, known: known() }
        }
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => refused(&path, source),
        other => Error::Sqlite { path: path.clone(), source: other.into() },
    })?;
    Ok(pool)
}

/// What is at the path of the database.
enum Found {
    Database,
    Nothing,
}

/// Makes the directory, and the file when there is none, so that both are the superuser's alone: SQLite
/// gives the files beside it the same mode.
fn prepare(places: &Places, path: &Path) -> Result<Found, Error> {
    let os = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Os { doing, path, source }
    };
    let restrict = || fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(os("restrict", path));
    if fs::metadata(path).is_ok_and(|file| file.len() > 0) {
        restrict()?;
        return Ok(Found::Database);
    }
    for directory in [places.vms(), places.images(), places.kernels()] {
        if fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Error::Missing { path: path.to_owned(), directory });
        }
    }
    if let Some(directory) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(os("create the directory", directory))?;
    }
    // An empty file is what a crash before the first commit leaves.
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    file.map_err(os("make", path))?;
    restrict()?;
    Ok(Found::Nothing)
}

/// Looks at an existing database through a connection that cannot write.
async fn inspect(path: &Path) -> Result<(), Error> {
    let refused = |source| refused(path, source);
    let mut connection = options(path).read_only(true).connect().await.map_err(refused)?;
    let found = look(path, &mut connection).await;
    connection.close().await.map_err(refused)?;
    found
}

async fn look(path: &Path, connection: &mut SqliteConnection) -> Result<(), Error> {
    let refused = |source| refused(path, source);
    // These are about the file and not about our tables, so the compiler has nothing to check them against.
    let finding: String = sqlx::query("PRAGMA quick_check(1)")
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(refused)?;
    if finding != "ok" {
        return Err(Error::Damaged { path: path.to_owned(), finding });
    }
    let application: i64 = sqlx::query("PRAGMA application_id")
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(refused)?;
    if application != APPLICATION_ID {
        // A crash during the first start leaves the table of versions at most.
        let tables = sqlx::query("SELECT name FROM sqlite_schema WHERE tbl_name <> '_sqlx_migrations'")
            .fetch_all(&mut *connection)
            .await
            .map_err(refused)?;
        return match tables.is_empty() {
            true => Ok(()),
            false => Err(Error::Foreign { path: path.to_owned() }),
        };
    }
    let version: i64 = sqlx::query("SELECT coalesce(max(version), 0) FROM _sqlx_migrations")
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(refused)?;
    if version > known() {
        return Err(Error::Newer { path: path.to_owned(), version, known: known() });
    }
    Ok(())
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).foreign_keys(true).busy_timeout(BUSY_TIMEOUT)
}

/// The newest version that we know.
fn known() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}

fn refused(path: &Path, source: sqlx::Error) -> Error {
    match super::primary_code(&source) {
        Some(super::SQLITE_CORRUPT | super::SQLITE_NOTADB) => {
            Error::Damaged { path: path.to_owned(), finding: source.to_string() }
        }
        _ => Error::Sqlite { path: path.to_owned(), source: source.into() },
    }
}
