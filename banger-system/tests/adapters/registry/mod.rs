//! Registries on loopback: content arrives whole or not at all, once, and from nowhere else.

mod access;
mod content;
mod interruptions;

use std::{
    fs::{self, File},
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use banger_image::oci::{LayerFacts, RemoteImage, credentials::Credentials, platform::Platform};
use banger_proto::size::Bytes;
use banger_system::{
    host::registry::{LocalPorts, Registries, Timeouts},
    ports::{
        HostError, NoProgress, Progress,
        registry::{Error, Prune, Pruned, Registry, Result, Source},
    },
};
use serde_json::json;

use crate::net_lab::Space;
use crate::registry_lab::{self, Authority, Fault, Gate, INDEX, Lab, descriptor, digest, noise};
use crate::scratch::{Scratch, is_root, require};

/// For registries that answer, on a machine that does many other things.
const PATIENT: Timeouts = Timeouts {
    connect: PATIENCE,
    answer: PATIENCE,
    silence: PATIENCE,
    document: PATIENCE,
    window: PATIENCE,
    slowest: 1,
    attempts: 3,
    pause: Duration::from_millis(5),
};
const PATIENCE: Duration = Duration::from_secs(120);
/// Short timeouts, for registries that do not answer.
const QUICK: Timeouts = Timeouts {
    answer: SHORT,
    silence: SHORT,
    document: SHORT,
    window: SHORT,
    slowest: 1 << 10,
    attempts: 2,
    ..PATIENT
};
const SHORT: Duration = Duration::from_secs(3);

struct Bench {
    lab: Lab,
    home: tempfile::TempDir,
    registries: Registries,
}

impl Bench {
    async fn new() -> Self {
        Self::with(PATIENT).await
    }

    async fn with(timeouts: Timeouts) -> Self {
        let home = tempfile::tempdir().unwrap();
        let registries =
            Registries::new(home.path(), Bytes::gib(1), timeouts, LocalPorts::where_port(|_| true));
        Self { lab: Lab::new().await, home, registries }
    }

    fn source(&self, name: &str) -> Source {
        source(&self.lab.reference(name))
    }

    async fn pull(&self, name: &str) -> Result<Vec<Vec<u8>>> {
        pull(&self.registries, &self.source(name)).await
    }

    /// Waits until the cache has this many bytes.
    async fn until_cached(&self, bytes: u64) {
        let cached = async {
            while size(self.home.path()) < bytes {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, cached).await.unwrap();
    }

    /// Returns how many files of the cache are whole, and how many are not.
    fn cached(&self) -> (usize, usize) {
        let names = files(self.home.path());
        let partial = names.iter().filter(|name| name.ends_with(".partial")).count();
        (names.len() - partial, partial)
    }
}

fn files(root: &Path) -> Vec<String> {
    let registries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let files = registries.flat_map(|path| fs::read_dir(path).unwrap());
    files.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Returns how many bytes a cache has, whether it is there yet or not.
fn size(root: &Path) -> u64 {
    let registries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let files = registries.flat_map(|path| fs::read_dir(path).unwrap());
    files.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}

fn source(reference: &str) -> Source {
    Source {
        reference: reference.parse().unwrap(),
        platform: Platform::of_host("x86_64"),
        credentials: Credentials::Anonymous,
    }
}

fn alice(source: Source) -> Source {
    let credentials = Credentials::Password { user: "alice".into(), secret: "secret".into() };
    Source { credentials, ..source }
}

/// Reads the layers as an importer would, each while it arrives.
async fn fetch(registries: &Registries, source: &Source, image: &RemoteImage) -> Result<Vec<Vec<u8>>> {
    let fetch = registries.fetch(source, &image.layers, Arc::new(NoProgress)).await?;
    let readers: Vec<_> = fetch.blobs.into_iter().map(reader).collect();
    let worked = fetch.work.await;
    let mut layers = Vec::new();
    for reader in readers {
        layers.push(reader.await.unwrap());
    }
    worked.map(|()| layers)
}

fn reader(blob: OwnedFd) -> tokio::task::JoinHandle<Vec<u8>> {
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        File::from(blob).read_to_end(&mut bytes).unwrap();
        bytes
    })
}

async fn pull(registries: &Registries, source: &Source) -> Result<Vec<Vec<u8>>> {
    let image = registries.resolve(source).await?;
    fetch(registries, source, &image).await
}

fn layers() -> Vec<Vec<u8>> {
    vec![noise(1, 700_000), noise(2, 3_000_000), noise(3, 10)]
}

/// The process that tests start, and end.
#[tokio::test]
#[ignore = "another test runs it in a process of its own"]
async fn a_pull_in_a_process_of_its_own() {
    let Ok(words) = std::env::var("BANGER_TEST_PULL") else { return };
    let [attempts, cache, reference] = words.split(' ').collect::<Vec<_>>()[..] else { panic!("{words}") };
    let timeouts = Timeouts { attempts: attempts.parse().unwrap(), ..Timeouts::default() };
    let registries =
        Registries::new(Path::new(cache), Bytes::gib(1), timeouts, LocalPorts::where_port(|_| true));
    if let Err(error) = pull(&registries, &source(reference)).await {
        panic!("{error}");
    }
}

/// Returns a command that pulls in a process of its own.
fn puller(cache: &Path, reference: &str, attempts: u32) -> Command {
    let mut pull = Command::new(std::env::current_exe().unwrap());
    pull.args(["--ignored", "--exact", "registry::a_pull_in_a_process_of_its_own"]);
    pull.env("BANGER_TEST_PULL", format!("{attempts} {} {reference}", cache.display()));
    pull
}
