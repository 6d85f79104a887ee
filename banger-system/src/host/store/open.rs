//! Opens the database. A database that is damaged, of another program, of a newer version, or missing although there
//! are disks is refused and left untouched, so that it can be repaired.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use banger_domain::resource::Paths;
use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

/// How long to wait for another program that has the database open, such as `sqlite3`.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The application id that the first migration writes.
const APPLICATION_ID: i64 = 0x626e_6772;

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Why the database cannot be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not a database or is corrupt.
    #[error("the database {} is damaged ({finding}); it was left as it is, restore a copy of it", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// SQLite's finding.
        finding: String,
    },
    /// The file is the database of another program.
    #[error("{} is not a database of banger", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It was written by a newer version.
    #[error("the database {} has version {version}, but this banger supports only versions up to {known}; install the newer banger again", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: i64,
        /// The newest version that this service knows.
        known: i64,
    },
    /// The database is missing, although there are disks or images.
    #[error("the database {} is missing, but {} is not empty; restore the database, or remove that directory if nothing in it is needed", .path.display(), .directory.display())]
    Missing {
        /// Where the database should be.
        path: PathBuf,
        /// A directory with disks or images.
        directory: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {doing} {}", .path.display())]
    Os {
        /// What was being done.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// SQLite failed.
    #[error("cannot open the database {}", .path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Opens the database below `paths`, creates it at the first start, and migrates it.
pub(super) async fn open(paths: &Paths) -> Result<SqlitePool, Error> {
    let path = paths.database();
    match prepare(paths, &path)? {
        Found::Database => inspect(&path).await?,
        Found::Nothing => {}
    }
    let options = options(&path).journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    // SQLite has one writer, and with one connection nothing can be busy. The connection is never closed for being
    // idle or old, so that no call has to open it.
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

/// Makes the directory, and the file if there is none, accessible to root only: SQLite gives the files beside it the
/// same mode.
fn prepare(paths: &Paths, path: &Path) -> Result<Found, Error> {
    let os = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Os { doing, path, source }
    };
    let restrict = || fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(os("restrict", path));
    if fs::metadata(path).is_ok_and(|file| file.len() > 0) {
        restrict()?;
        return Ok(Found::Database);
    }
    for directory in [paths.vms(), paths.images(), paths.kernels()] {
        if fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Error::Missing { path: path.to_owned(), directory });
        }
    }
    if let Some(directory) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(os("create the directory", directory))?;
    }
    // A crash before the first commit leaves an empty file.
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    file.map_err(os("make", path))?;
    restrict()?;
    Ok(Found::Nothing)
}

/// Inspects an existing database over a read-only connection.
async fn inspect(path: &Path) -> Result<(), Error> {
    let refused = |source| refused(path, source);
    let mut connection = options(path).read_only(true).connect().await.map_err(refused)?;
    let found = look(path, &mut connection).await;
    connection.close().await.map_err(refused)?;
    found
}

async fn look(path: &Path, connection: &mut SqliteConnection) -> Result<(), Error> {
    let refused = |source| refused(path, source);
    // These queries are about the file and not about our tables, so the compiler cannot check them.
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
        // A crash during the first start leaves at most the table of versions.
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

/// Returns the newest version that this service knows.
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
