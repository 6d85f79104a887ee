//! `cargo xtask sqlx`: records in `.sqlx` how SQLite describes each query of banger-system, so that builds check the
//! queries without a database. With `--check` it changes nothing, and fails if the record is out of date.
//!
//! A query that was never recorded does not compile. Only this command notices a migration that changes the meaning of
//! a recorded query, and records of queries that no longer exist.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    build::WITH_FEATURES_OF_TESTS,
    packages,
    run::{cargo, repository},
};

/// Arguments of `cargo xtask sqlx`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Change nothing, and fail if the record is out of date
    #[arg(long)]
    check: bool,
}

/// Records the queries, or checks the record.
pub fn run(args: &Args) -> Result<()> {
    packages::ensure()?;
    let root = repository();
    let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
    let database = scratch.path().join("schema.sqlite");
    migrate(&root.join("banger-system/migrations"), &database)?;
    let fresh = record(&root, scratch.path(), &database)?;

    let kept = root.join(".sqlx");
    let recorded = read(&kept)?;
    if recorded == fresh {
        println!("the record of {} queries is up to date", fresh.len());
        return Ok(());
    }
    if args.check {
        bail!("the record in .sqlx is out of date; run `cargo xtask sqlx` and commit its changes");
    }
    fs::create_dir_all(&kept).context("cannot create .sqlx")?;
    for name in recorded.keys().filter(|name| !fresh.contains_key(*name)) {
        fs::remove_file(kept.join(name)).with_context(|| format!("cannot remove .sqlx/{name}"))?;
    }
    for (name, content) in &fresh {
        fs::write(kept.join(name), content).with_context(|| format!("cannot write .sqlx/{name}"))?;
    }
    println!("recorded {} queries", fresh.len());
    Ok(())
}

/// Creates a database with the current schema.
fn migrate(migrations: &Path, database: &Path) -> Result<()> {
    let mut files: Vec<PathBuf> = fs::read_dir(migrations)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
        .with_context(|| format!("cannot read {}", migrations.display()))?;
    files.sort();
    for file in files {
        let script = File::open(&file).with_context(|| format!("cannot open {}", file.display()))?;
        let status = Command::new("sqlite3")
            .args(["-batch", "-bail"])
            .arg(database)
            .stdin(script)
            .stdout(Stdio::null())
            .status()
            .context("cannot run sqlite3; install the package sqlite3")?;
        ensure!(status.success(), "sqlite3 rejects {}", file.display());
    }
    Ok(())
}

/// Compiles banger-system against the database, and returns what the compiler recorded.
fn record(root: &Path, scratch: &Path, database: &Path) -> Result<BTreeMap<String, String>> {
    // Queries are only recorded while the crate that contains them is compiled.
    let source = root.join("banger-system/src/lib.rs");
    File::options()
        .append(true)
        .open(&source)
        .and_then(|file| file.set_modified(SystemTime::now()))
        .with_context(|| format!("cannot touch {}", source.display()))?;
    let directory = scratch.join("record");
    fs::create_dir(&directory).context("cannot create a temporary directory")?;
    // With the features of every other build, no dependency is built again.
    let status = cargo(["check", "--quiet", "--workspace", "--lib"])
        .args(WITH_FEATURES_OF_TESTS)
        .current_dir(root)
        .env("SQLX_OFFLINE", "false")
        .env("SQLX_OFFLINE_DIR", &directory)
        .env("DATABASE_URL", format!("sqlite://{}?mode=ro", database.display()))
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "banger-system does not compile against the current schema");
    read(&directory)
}

/// Reads the files of a record by name. A missing directory has none.
fn read(directory: &Path) -> Result<BTreeMap<String, String>> {
    if !directory.exists() {
        return Ok(BTreeMap::new());
    }
    fs::read_dir(directory)
        .and_then(|entries| {
            entries
                .map(|entry| {
                    let entry = entry?;
                    Ok((entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path())?))
                })
                .collect()
        })
        .with_context(|| format!("cannot read {}", directory.display()))
}
