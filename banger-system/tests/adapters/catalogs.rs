//! Catalogs in files and on a server on loopback: signatures, refused content, and files, which arrive whole or not
//! at all.

use std::{
    fs::{self, File},
    io::Read,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    time::Duration,
};

use banger_domain::{id::Timestamp, name::Name};
use banger_image::catalog::{RemoteFile, Source, index::ImageTarget, signature::Keys};
use banger_proto::size::Bytes;
use banger_system::{
    host::{
        catalogs::SignedCatalogs,
        registry::{LocalPorts, Registries, Timeouts},
    },
    ports::{
        HostError, NoProgress,
        catalogs::{Catalogs, Error, FetchedIndex, Result},
        registry,
    },
};
use serde_json::{Value, json};

use crate::publisher::{Publisher, edition, file, index};
use crate::registry_lab::{Fault, Lab, noise};

/// Long enough for servers that answer, on a machine that does many other things.
const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(60),
    answer: Duration::from_secs(60),
    silence: Duration::from_secs(60),
    document: Duration::from_secs(60),
    window: Duration::from_secs(60),
    slowest: 1,
    attempts: 3,
    pause: Duration::from_millis(5),
};
const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

/// A host with one catalog, and its published content.
struct Bench {
    lab: Lab,
    home: tempfile::TempDir,
    publisher: Publisher,
}

impl Bench {
    async fn new() -> Self {
        Self { lab: Lab::new().await, home: tempfile::tempdir().unwrap(), publisher: Publisher::new() }
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    /// Returns the catalog at this location, with these keys.
    fn of(&self, location: &str, keys: Keys) -> SignedCatalogs {
        let source = Source { name: name(), location: location.parse().unwrap(), keys };
        let registries =
            Registries::new(&self.at("cache"), Bytes::gib(1), TIMEOUTS, LocalPorts::where_port(|_| true));
        SignedCatalogs::new(vec![source], self.at("kept"), vec![self.at("keys")], registries)
    }

    /// Returns the catalog of the server.
    fn catalogs(&self) -> SignedCatalogs {
        let location = format!("http://127.0.0.1:{}/c/index.json", self.lab.port);
        self.of(&location, self.publisher.keys())
    }

    fn publish(&self, index: &[u8]) {
        self.publish_signed(index, &self.publisher.sign(index));
    }

    fn publish_signed(&self, index: &[u8], signature: &[u8]) {
        self.lab.file("/c/index.json", index);
        self.lab.file("/c/index.json.minisig", signature);
    }

    async fn refused(&self, expect: &str) {
        let error = self.catalogs().refresh(&name(), NOW).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expect), "{text}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }

    /// Returns the serial number of the stored edition.
    async fn stored_serial(&self) -> Option<u64> {
        self.catalogs().stored(&name()).await.unwrap().map(|edition| edition.index.serial)
    }
}

fn name() -> Name {
    "lab".parse().unwrap()
}

fn empty(serial: u64) -> Vec<u8> {
    index(serial, json!([]), json!([]))
}

fn image(file: Value) -> Value {
    json!([{ "name": "base", "targets": { "x86_64": { "archive": file } } }])
}

fn archive(edition: &FetchedIndex) -> RemoteFile {
    match &edition.index.images[0].target {
        Some(ImageTarget::Archive(file)) => file.clone(),
        other => panic!("{other:?}"),
    }
}

async fn fetch(catalogs: &SignedCatalogs, edition: &FetchedIndex) -> Result<Vec<u8>> {
    catalogs.fetch(&name(), &archive(edition), Arc::new(NoProgress)).await.map(content)
}

fn content(file: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes).unwrap();
    bytes
}

fn partials(cache: &Path) -> usize {
    let files = fs::read_dir(cache.join("@lab")).unwrap().map(|entry| entry.unwrap().file_name());
    files.filter(|name| name.to_str().unwrap().ends_with(".partial")).count()
}

#[tokio::test]
async fn a_fetched_catalog_stays_when_its_server_goes() {
    let bench = Bench::new().await;
    assert_eq!(bench.stored_serial().await, None);
    bench.publish(&empty(7));
    let edition = bench.catalogs().refresh(&name(), NOW).await.unwrap();
    assert_eq!((edition.index.serial, edition.fetched_at), (7, NOW));
    bench.publish(&empty(8));
    bench.lab.fault("/c/", 9, Fault::Cut(0));
    let lost = bench.catalogs().refresh(&name(), NOW).await.unwrap_err();
    assert!(matches!(lost, Error::Fetch(registry::Error::Unreachable { .. })), "{lost}");
    // Another run of the service finds it again.
    assert_eq!(bench.catalogs().stored(&name()).await.unwrap(), Some(edition));
    bench.lab.no_faults();
    bench.catalogs().refresh(&name(), NOW).await.unwrap();
    assert_eq!(bench.stored_serial().await, Some(8));
}

#[tokio::test]
async fn an_index_without_a_valid_signature_is_not_parsed() {
    let bench = Bench::new().await;
    bench.publish(&empty(7));
    bench.catalogs().refresh(&name(), NOW).await.unwrap();

    let newer = empty(8);
    bench.publish_signed(&newer, &Publisher::new().sign(&newer));
    bench.refused("not signed by a key").await;
    let mut changed = newer.clone();
    *changed.iter_mut().find(|byte| **byte == b'8').unwrap() = b'9';
    bench.publish_signed(&changed, &bench.publisher.sign(&newer));
    bench.refused("not signed by a key").await;
    bench.publish_signed(&newer, b"trust me");
    bench.refused("its signature is not a minisign signature").await;
    // The message is not the parser's, which never saw the text.
    bench.publish_signed(b"{ not json", &bench.publisher.sign(b"something else"));
    bench.refused("not signed by a key").await;
    assert_eq!(bench.stored_serial().await, Some(7));
}

#[tokio::test]
async fn an_older_edition_never_takes_the_place_of_a_newer_one() {
    let bench = Bench::new().await;
    bench.publish(&empty(7));
    bench.catalogs().refresh(&name(), NOW).await.unwrap();
    bench.publish(&empty(6));
    bench.refused("its edition 6 is older than 7, which is stored").await;
    bench.publish(&index(7, json!([{ "name": "other" }]), json!([])));
    bench.refused("differs from the stored edition 7").await;
    // Not even if a new key signed it.
    let other = Publisher::new();
    let older = empty(5);
    bench.publish_signed(&older, &other.sign(&older));
    let location = format!("http://127.0.0.1:{}/c/index.json", bench.lab.port);
    let error = bench.of(&location, other.keys()).refresh(&name(), NOW).await.unwrap_err();
    assert!(error.to_string().contains("older than 7"), "{error}");
    assert!(error.to_string().contains(bench.at("kept/lab").to_str().unwrap()), "{error}");
    // The same edition is accepted again.
    bench.publish(&empty(7));
    bench.catalogs().refresh(&name(), NOW).await.unwrap();
    assert_eq!(bench.stored_serial().await, Some(7));
}

#[tokio::test]
async fn keys_change_while_both_count() {
    let bench = Bench::new().await;
    let next = Publisher::new();
    bench.publish(&empty(1));
    bench.catalogs().refresh(&name(), NOW).await.unwrap();
    let location = format!("http://127.0.0.1:{}/c/index.json", bench.lab.port);
    let without = || bench.of(&location, Keys::default());
    let error = without().refresh(&name(), NOW).await.unwrap_err();
    assert!(error.to_string().contains("no key is configured"), "{error}");
    // A key that was removed invalidates what it signed.
    assert!(without().stored(&name()).await.is_err());

    fs::create_dir(bench.at("keys")).unwrap();
    let write = |keys: &[&Publisher]| {
        let lines: String = keys.iter().map(|key| format!("untrusted comment: x\n{}\n", key.key())).collect();
        fs::write(bench.at("keys/lab.pub"), lines).unwrap();
    };
    write(&[&bench.publisher, &next]);
    assert_eq!(without().stored(&name()).await.unwrap().unwrap().index.serial, 1);
    let second = empty(2);
    bench.publish_signed(&second, &next.sign(&second));
    without().refresh(&name(), NOW).await.unwrap();
    write(&[&next]);
    assert_eq!(without().stored(&name()).await.unwrap().unwrap().index.serial, 2);
    fs::write(bench.at("keys/lab.pub"), "nonsense").unwrap();
    let error = without().refresh(&name(), NOW).await.unwrap_err();
    assert!(error.to_string().contains("keys/lab.pub: nonsense is not a public key"), "{error}");
}

#[tokio::test]
async fn a_catalog_that_is_too_large_too_new_or_too_old_is_refused() {
    let bench = Bench::new().await;
    let with = |key: &str, value: Value| {
        let mut index: Value = serde_json::from_slice(&empty(7)).unwrap();
        index[key] = value;
        edition(index)
    };
    bench.publish(&with("schema", json!(2)));
    bench.refused("it uses version 2 of the format").await;
    bench.publish(&with("expires", json!("2026-12-31")));
    bench.refused("it expired on 2026-12-31").await;
    bench.publish(&with("padding", json!("x".repeat(1 << 20))));
    bench.refused("larger than 1048576 bytes").await;
    bench.publish_signed(&empty(7), &[b'x'; 5000]);
    bench.refused("larger than 4096 bytes").await;
    bench.publish(&empty(7));
    bench.lab.fault("/c/index.json", 9, Fault::Endless(None));
    bench.refused("the answer is larger than").await;
    bench.lab.no_faults();
    bench.lab.fault("/c/index.json", 9, Fault::Status(404, Vec::new()));
    bench.refused("404").await;
    assert_eq!(bench.stored_serial().await, None);
}

#[tokio::test]
async fn a_web_server_may_redirect_no_further_than_a_registry() {
    let bench = Bench::new().await;
    bench.publish(&empty(7));
    for target in
        ["http://169.254.169.254/x", "http://example.org/x", "file:///etc/passwd", "https://0.0.0.0/"]
    {
        let redirect = Fault::Status(302, vec![("Location", target.to_owned())]);
        bench.lab.fault("/c/index.json", 1, redirect);
        bench.refused("refusing to connect to").await;
    }
}

#[tokio::test]
async fn a_file_of_a_catalog_is_fetched_once_and_continues_after_a_failure() {
    let bench = Bench::new().await;
    let bytes = noise(4, 3_000_000);
    bench.publish(&index(1, image(file("files/base.tar", &bytes)), json!([])));
    bench.lab.file("/c/files/base.tar", &bytes);
    let catalogs = bench.catalogs();
    let edition = catalogs.refresh(&name(), NOW).await.unwrap();

    bench.lab.fault("base.tar", 3, Fault::Cut(400_000));
    assert!(matches!(
        fetch(&catalogs, &edition).await,
        Err(Error::Fetch(registry::Error::Unreachable { .. }))
    ));
    assert_eq!(partials(&bench.at("cache")), 1);
    bench.lab.forget();
    assert!(fetch(&bench.catalogs(), &edition).await.unwrap() == bytes);
    let asked = bench.lab.asked("base.tar");
    assert_eq!(asked[0].range.as_deref(), Some("bytes=1200000-"), "{asked:?}");
    bench.lab.forget();
    assert!(fetch(&bench.catalogs(), &edition).await.unwrap() == bytes);
    assert!(bench.lab.asked("").is_empty());
}

#[tokio::test]
async fn a_file_that_is_not_what_the_index_says_leaves_nothing() {
    let bench = Bench::new().await;
    let bytes = noise(5, 300_000);
    bench.publish(&index(1, image(file("base.tar", &bytes)), json!([])));
    bench.lab.file("/c/base.tar", &bytes);
    let catalogs = bench.catalogs();
    let edition = catalogs.refresh(&name(), NOW).await.unwrap();
    for fault in [Fault::Flipped, Fault::Longer] {
        bench.lab.fault("base.tar", 1, fault);
        let error = fetch(&catalogs, &edition).await.unwrap_err();
        assert!(matches!(error, Error::Fetch(registry::Error::Mismatch { .. })), "{error}");
    }
    assert!(fetch(&catalogs, &edition).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_catalog_may_be_a_directory_of_the_host() {
    let bench = Bench::new().await;
    let bytes = noise(6, 2_500_000);
    let files = bench.at("catalog");
    fs::create_dir_all(files.join("files")).unwrap();
    fs::write(files.join("files/base.tar"), &bytes).unwrap();
    let publish = |index: &[u8]| {
        fs::write(files.join("index.json"), index).unwrap();
        fs::write(files.join("index.json.minisig"), bench.publisher.sign(index)).unwrap();
    };
    publish(&index(1, image(file("files/base.tar", &bytes)), json!([])));
    for location in
        [files.join("index.json").display().to_string(), format!("file://{}/index.json", files.display())]
    {
        let catalogs = bench.of(&location, bench.publisher.keys());
        let edition = catalogs.refresh(&name(), NOW).await.unwrap();
        assert!(fetch(&catalogs, &edition).await.unwrap() == bytes);
        fs::remove_dir_all(bench.at("cache")).unwrap();
        for other in [&bytes[1..], &[&bytes[..], b"x"].concat(), &[b"x", &bytes[1..]].concat()] {
            fs::write(files.join("files/base.tar"), other).unwrap();
            let error = fetch(&catalogs, &edition).await.unwrap_err();
            assert!(error.to_string().contains("does not match its catalog"), "{error}");
            assert_eq!(fs::read_dir(bench.at("cache/@lab")).unwrap().count(), 0);
        }
        fs::remove_file(files.join("files/base.tar")).unwrap();
        assert!(matches!(
            fetch(&catalogs, &edition).await,
            Err(Error::Fetch(registry::Error::Host(HostError::Os { .. })))
        ));
        fs::create_dir(files.join("files/base.tar")).unwrap();
        assert!(matches!(
            fetch(&catalogs, &edition).await,
            Err(Error::Fetch(registry::Error::BadFile { .. }))
        ));
        fs::remove_dir(files.join("files/base.tar")).unwrap();
        fs::write(files.join("files/base.tar"), &bytes).unwrap();
    }
}

#[tokio::test]
async fn a_damaged_stored_edition_is_an_error() {
    let bench = Bench::new().await;
    bench.publish(&empty(7));
    bench.catalogs().refresh(&name(), NOW).await.unwrap();
    for content in ["", "banger catalog 2\n", "banger catalog 1\n7\n0\n99999\nx"] {
        fs::write(bench.at("kept/lab"), content).unwrap();
        assert!(bench.catalogs().stored(&name()).await.is_err());
        // Otherwise somebody who can damage a file could restore an old edition.
        assert!(bench.catalogs().refresh(&name(), NOW).await.is_err());
    }
}
