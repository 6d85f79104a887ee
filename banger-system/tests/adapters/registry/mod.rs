//! Registries on loopback: content arrives whole or not at all, once, and from nowhere else.

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

/// Short timeouts, for registries that do not answer.
const QUICK: Timeouts = Timeouts {
    connect: Duration::from_secs(2),
    answer: Duration::from_millis(400),
    silence: Duration::from_millis(400),
    document: Duration::from_millis(800),
    window: Duration::from_millis(500),
    slowest: 1 << 10,
    attempts: 3,
    pause: Duration::from_millis(5),
};

struct Bench {
    lab: Lab,
    home: tempfile::TempDir,
    registries: Registries,
}

impl Bench {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let registries = Registries::new(home.path(), Bytes::gib(1), QUICK, LocalPorts::where_port(|_| true));
        Self { lab: Lab::new().await, home, registries }
    }

    fn source(&self, name: &str) -> Source {
        source(&self.lab.reference(name))
    }

    async fn pull(&self, name: &str) -> Result<Vec<Vec<u8>>> {
        pull(&self.registries, &self.source(name)).await
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

#[tokio::test]
async fn an_image_comes_whole_and_a_second_time_from_the_cache() {
    let bench = Bench::new().await;
    let manifest = bench.lab.image("a/b", "1", &layers());
    let source = bench.source("a/b:1");
    let image = bench.registries.resolve(&source).await.unwrap();
    assert_eq!(image.manifest.to_string(), manifest);
    assert_eq!(image.config.cmd, ["sh"]);
    assert_eq!(fetch(&bench.registries, &source, &image).await.unwrap(), layers());
    assert_eq!(bench.cached(), (4, 0));

    bench.lab.forget();
    let started = Instant::now();
    let again = bench.registries.resolve(&source).await.unwrap();
    let fetched = bench.registries.fetch(&source, &again.layers, Arc::new(NoProgress)).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(50), "{:?}", started.elapsed());
    for blob in &fetched.blobs {
        assert!(rustix::fs::fstat(blob).unwrap().st_mode & 0o170_000 == 0o100_000, "no regular file");
    }
    fetched.work.await.unwrap();
    assert_eq!(bench.lab.asked("/blobs/").len(), 0);
    // Each pull asks the registry whether this user may have it.
    assert_eq!(bench.lab.asked("/manifests/").len(), 1);
}

#[tokio::test]
async fn an_index_leads_to_the_image_of_the_platform_and_to_nothing_else() {
    let bench = Bench::new().await;
    let manifest = bench.lab.manifest(&layers());
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let chosen = bench.lab.document("a", "x", registry_lab::MANIFEST, &manifest);
    let mut entry = descriptor(registry_lab::MANIFEST, &bytes);
    entry["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let index = |entry| json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    bench.lab.document("a", "1", INDEX, &index(entry.clone()));
    let image = bench.registries.resolve(&bench.source("a:1")).await.unwrap();
    assert_eq!(image.manifest.to_string(), chosen);

    // Signatures and images for other platforms that the index does not tell from this one.
    let artifact = json!({
        "schemaVersion": 2, "mediaType": registry_lab::MANIFEST,
        "config": descriptor("application/vnd.dev.cosign.config.v1+json", b"{}"), "layers": [],
    });
    bench.lab.document("a", "signature", registry_lab::MANIFEST, &artifact);
    let signature = descriptor(registry_lab::MANIFEST, &serde_json::to_vec(&artifact).unwrap());
    let other = json!({ "mediaType": "application/vnd.example+json", "digest": "sha512:00", "size": 1 });
    let mut plain = entry.clone();
    plain.as_object_mut().unwrap().remove("platform");
    let mixed = json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [signature.clone(), other, plain],
    });
    bench.lab.document("a", "mixed", INDEX, &mixed);
    let image = bench.registries.resolve(&bench.source("a:mixed")).await.unwrap();
    assert_eq!(image.manifest.to_string(), chosen);
    bench.lab.document("a", "signatures", INDEX, &index(signature.clone()));
    let error = bench.registries.resolve(&bench.source("a:signatures")).await.unwrap_err();
    assert!(error.to_string().contains("an artifact of the type"), "{error}");
    // A registry cannot make the service ask without end.
    let signatures = (0..40).map(|n| {
        let mut one = artifact.clone();
        one["annotations"] = json!({ "number": n.to_string() });
        bench.lab.document("a", "one of many", registry_lab::MANIFEST, &one);
        descriptor(registry_lab::MANIFEST, &serde_json::to_vec(&one).unwrap())
    });
    let signatures: Vec<_> = signatures.collect();
    let many = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": signatures });
    bench.lab.document("a", "many", INDEX, &many);
    bench.lab.forget();
    assert!(bench.registries.resolve(&bench.source("a:many")).await.is_err());
    assert_eq!(bench.lab.asked("/manifests/").len(), 16);

    entry["size"] = json!(bytes.len() + 1);
    bench.lab.document("a", "lies", INDEX, &index(entry));
    let error = bench.registries.resolve(&bench.source("a:lies")).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");

    let mut nested = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] });
    for depth in 0..4 {
        let mut entry = descriptor(INDEX, &serde_json::to_vec(&nested).unwrap());
        entry["platform"] = json!({ "os": "linux", "architecture": "amd64" });
        nested = index(entry);
        bench.lab.document("a", &format!("deep{depth}"), INDEX, &nested);
    }
    let error = bench.registries.resolve(&bench.source("a:deep3")).await.unwrap_err();
    assert!(error.to_string().contains("nested too deeply"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_pulls_at_once_fetch_each_blob_once() {
    let bench = Bench::new().await;
    bench.lab.image("a", "1", &layers());
    bench.lab.pace(100_000, Duration::from_millis(5));
    let pulls: Vec<_> = (0..8)
        .map(|_| {
            let (registries, source) = (bench.registries.clone(), bench.source("a:1"));
            tokio::spawn(async move { pull(&registries, &source).await })
        })
        .collect();
    for pull in pulls {
        assert_eq!(pull.await.unwrap().unwrap(), layers());
    }
    let mut blobs: Vec<String> = bench.lab.asked("/blobs/").into_iter().map(|asked| asked.path).collect();
    let all = blobs.len();
    blobs.sort();
    blobs.dedup();
    assert_eq!((all, blobs.len()), (4, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_is_given_up_leaves_the_rest_to_others() {
    let bench = Bench::new().await;
    bench.lab.image("a", "1", &layers());
    bench.lab.pace(50_000, Duration::from_millis(5));
    let source = bench.source("a:1");
    let image = bench.registries.resolve(&source).await.unwrap();
    let first = bench.registries.fetch(&source, &image.layers, Arc::new(NoProgress)).await.unwrap();
    let first = tokio::spawn(first.work);
    let (registries, second_source, second_image) = (bench.registries.clone(), source.clone(), image.clone());
    let second = tokio::spawn(async move { fetch(&registries, &second_source, &second_image).await });
    tokio::time::sleep(Duration::from_millis(60)).await;
    first.abort();
    assert_eq!(second.await.unwrap().unwrap(), layers());
}

#[tokio::test]
async fn a_registry_gets_credentials_only_when_it_asks() {
    let bench = Bench::new().await;
    bench.lab.image("a", "1", &layers());
    let source = bench.source("a:1");
    let refresh = Source { credentials: Credentials::RefreshToken("refresh".into()), ..source.clone() };
    for (gate, who) in [
        (Gate::Basic, alice(source.clone())),
        (Gate::Token(100), alice(source.clone())),
        (Gate::Token(2), alice(source.clone())),
        (Gate::Token(100), refresh),
    ] {
        bench.lab.gate(gate.clone());
        bench.lab.forget();
        let home = tempfile::tempdir().unwrap();
        let registries = Registries::new(home.path(), Bytes::gib(1), QUICK, LocalPorts::where_port(|_| true));
        assert_eq!(pull(&registries, &who).await.unwrap(), layers(), "{gate:?}");
        // Credentials are not sent before the registry asks for them.
        assert_eq!(bench.lab.asked("/manifests/")[0].authorization, None);
        let stranger = pull(&registries, &source).await.unwrap_err();
        assert!(
            matches!(&stranger, Error::AuthRequired { message } if message.contains("requires a login")),
            "{stranger}"
        );
        let credentials = Credentials::Password { user: "alice".into(), secret: "wrong".into() };
        let wrong = pull(&registries, &Source { credentials, ..source.clone() }).await.unwrap_err();
        assert!(matches!(wrong, Error::AuthRequired { .. }), "{wrong}");
        assert!(!format!("{wrong:?}").contains("\"wrong\""));
    }
}

#[tokio::test]
async fn a_registry_that_is_busy_is_asked_again_when_it_says() {
    let bench = Bench::new().await;
    bench.lab.image("a", "1", &layers());
    bench.lab.fault("/manifests/", 1, Fault::Status(429, vec![("Retry-After", "1".into())]));
    bench.lab.fault("/manifests/", 1, Fault::Status(503, vec![]));
    bench.lab.fault("/blobs/", 2, Fault::Status(500, vec![]));
    let started = Instant::now();
    assert_eq!(bench.pull("a:1").await.unwrap(), layers());
    assert!(started.elapsed() >= Duration::from_secs(1));

    for fault in [
        Fault::Status(500, vec![]),
        Fault::Status(429, vec![]),
        Fault::Status(503, vec![("Retry-After", "86400".into())]),
    ] {
        bench.lab.no_faults();
        bench.lab.fault("/manifests/", 1000, fault);
        let error = bench.pull("a:1").await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }
    // What the registry says about its limit is shown.
    bench.lab.no_faults();
    bench.lab.fault("/manifests/", 1000, Fault::Says(429, "You have reached your pull rate limit."));
    let error = bench.pull("a:1").await.unwrap_err();
    assert!(
        error.to_string().contains("429") && error.to_string().contains("your pull rate limit"),
        "{error}"
    );
}

#[tokio::test]
async fn a_download_continues_where_the_connection_broke() {
    let bench = Bench::new().await;
    let layers = vec![noise(7, 2_000_000)];
    bench.lab.image("a", "1", &layers);
    let layer: &'static str = Box::leak(digest(&layers[0]).into_boxed_str());
    bench.lab.fault(layer, 1, Fault::Cut(300_000));
    bench.lab.fault(layer, 1, Fault::HangAfter(500_000));
    assert_eq!(bench.pull("a:1").await.unwrap(), layers);
    let ranges: Vec<_> = bench.lab.asked(layer).into_iter().map(|asked| asked.range).collect();
    assert_eq!(ranges, [None, Some("bytes=300000-".to_owned()), Some("bytes=800000-".to_owned())]);
}

#[tokio::test]
async fn parts_that_were_not_asked_for_are_skipped_or_refused() {
    let bench = Bench::new().await;
    let layers = vec![noise(7, 2_000_000)];
    bench.lab.image("a", "1", &layers);
    let layer: &'static str = Box::leak(digest(&layers[0]).into_boxed_str());
    bench.lab.fault(layer, 1, Fault::Cut(300_000));
    bench.lab.fault(layer, 1, Fault::Whole);
    assert_eq!(bench.pull("a:1").await.unwrap(), layers);

    bench.registries.prune(Prune::default()).await.unwrap();
    bench.lab.fault(layer, 1, Fault::Cut(300_000));
    bench.lab.fault(layer, 1, Fault::OtherPart);
    let error = bench.pull("a:1").await.unwrap_err();
    assert!(error.to_string().contains("another part"), "{error}");
}

#[tokio::test]
async fn a_registry_that_hangs_or_drips_is_given_up() {
    let bench = Bench::new().await;
    bench.lab.image("a", "1", &layers());
    for (part, fault, why) in [
        ("/manifests/", Fault::Hang, "did not answer"),
        ("/manifests/", Fault::HangAfter(3), "small answer"),
        ("/manifests/", Fault::Drip(Duration::from_millis(50)), "small answer"),
        ("/blobs/", Fault::Hang, "did not answer"),
        ("/blobs/", Fault::HangAfter(1), "silent"),
        ("/blobs/", Fault::Drip(Duration::from_millis(5)), "too slowly"),
    ] {
        bench.lab.no_faults();
        bench.lab.fault(part, 1000, fault.clone());
        let started = Instant::now();
        let error = bench.pull("a:1").await.unwrap_err();
        assert!(
            matches!(&error, Error::Unreachable { message } if message.contains(why)),
            "{fault:?}: {error}"
        );
        assert!(started.elapsed() < Duration::from_secs(8), "{fault:?} took {:?}", started.elapsed());
    }
    bench.lab.no_faults();
    assert_eq!(bench.pull("a:1").await.unwrap(), layers());
}

#[tokio::test]
async fn content_with_a_wrong_digest_is_discarded() {
    let bench = Bench::new().await;
    let layers = vec![noise(8, 900_000)];
    bench.lab.image("a", "1", &layers);
    let layer: &'static str = Box::leak(digest(&layers[0]).into_boxed_str());
    for (fault, why) in [(Fault::Flipped, "sha256:"), (Fault::Longer, "more of a layer")] {
        bench.lab.fault(layer, 1, fault);
        let error = bench.pull("a:1").await.unwrap_err();
        assert!(matches!(&error, Error::Mismatch { message } if message.contains(why)), "{error}");
        assert_eq!(bench.cached().0, 1, "only the configuration is whole");
    }
    assert_eq!(bench.pull("a:1").await.unwrap(), layers);

    // Manifests with missing or extra data, and a manifest with another digest.
    for (change, variant) in [(-1, "short"), (1, "long")] {
        let mut manifest = bench.lab.manifest(&layers);
        manifest["layers"][0]["size"] = json!(layers[0].len() as i64 + change);
        bench.lab.document("a", variant, registry_lab::MANIFEST, &manifest);
        bench.registries.prune(Prune::default()).await.unwrap();
        let error = bench.pull(&format!("a:{variant}")).await.unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. } | Error::Unreachable { .. }), "{error}");
    }
    let other = format!("a@sha256:{}", "0".repeat(64));
    let manifest = bench.lab.manifest(&layers);
    bench.lab.document("a", &other[2..], registry_lab::MANIFEST, &manifest);
    let error = bench.pull(&other).await.unwrap_err();
    assert!(error.to_string().contains("another manifest"), "{error}");
}

#[tokio::test]
async fn a_document_without_end_is_not_read() {
    let bench = Bench::new().await;
    bench.lab.image("a", "1", &layers());
    for length in [Some(1 << 30), None] {
        bench.lab.no_faults();
        bench.lab.fault("/manifests/", 1, Fault::Endless(length));
        let error = bench.pull("a:1").await.unwrap_err();
        assert!(
            matches!(&error, Error::Refused { message } if message.contains("the answer is larger than")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn redirects_are_limited_and_never_lead_to_the_host() {
    let bench = Bench::new().await;
    bench.lab.image("a", "1", &layers());
    bench.lab.gate(Gate::Basic);
    let to = |target: &str| Fault::Status(307, vec![("Location", target.to_owned())]);
    let who = alice(bench.source("a:1"));
    let layer = digest(&layers()[0]);
    // To another port of the host, where this registry listens too: without credentials.
    let cdn = Lab::new().await;
    cdn.blob(layers()[0].clone());
    let path = format!("http://127.0.0.1:{}/v2/cdn/blobs/{layer}?signature=x", cdn.port);
    let layer: &'static str = Box::leak(layer.into_boxed_str());
    bench.lab.fault(layer, 1, to(&path));
    assert_eq!(pull(&bench.registries, &who).await.unwrap(), layers());
    let [asked] = cdn.asked("/cdn/").try_into().unwrap();
    assert_eq!(asked.authorization, None);

    for (target, why) in [
        ("http://169.254.169.254/latest/meta-data", "without encryption"),
        ("https://169.254.169.254/latest/meta-data", "its link"),
        ("https://[fe80::1]/", "its link"),
        ("file:///etc/shadow", "not http or https"),
        ("http://example.org/", "without encryption"),
        ("https://alice:secret@example.org/", "password"),
        ("/v2/a/manifests/1", "more than 5 times"),
        ("https://", "a valid address"),
    ] {
        bench.lab.no_faults();
        bench.lab.fault("/manifests/", 1000, to(target));
        bench.lab.gate(Gate::Open);
        let error = bench.pull("a:1").await.unwrap_err();
        assert!(matches!(&error, Error::Refused { message } if message.contains(why)), "{target}: {error}");
    }
    // The same for the request for a token.
    bench.lab.no_faults();
    let how = "Bearer realm=\"https://169.254.169.254/token\"".to_owned();
    bench.lab.fault("/manifests/", 1000, Fault::Status(401, vec![("WWW-Authenticate", how)]));
    let error = pull(&bench.registries, &who).await.unwrap_err();
    assert!(error.to_string().contains("its link"), "{error}");
}

#[tokio::test]
async fn no_request_goes_to_a_guest() {
    let bench = Bench::new().await;
    bench.lab.image("a", "1", &layers());
    let guest = Lab::at("127.1.0.1", None).await;
    guest.image("a", "1", &layers());
    // Addresses of this host stand for guests.
    bench.registries.forbid_guests("127.1.0.0/16 fd12:3456:789a::/64".parse().unwrap());
    for address in ["127.1.0.1", "127.1.255.254", "[::ffff:127.1.0.1]", "[fd12:3456:789a::2]"] {
        let reference = format!("{address}:{}/a:1", guest.port);
        let error = pull(&bench.registries, &source(&reference)).await.unwrap_err();
        assert!(
            matches!(&error, Error::Refused { message } if message.contains("a guest of this host")),
            "{address}: {error}"
        );
    }
    let to = format!("https://127.1.0.1:{}/v2/a/manifests/1", guest.port);
    bench.lab.fault("/manifests/", 1, Fault::Status(307, vec![("Location", to)]));
    let error = pull(&bench.registries, &bench.source("a:1")).await.unwrap_err();
    assert!(error.to_string().contains("a guest of this host"), "{error}");
    assert_eq!(bench.lab.asked("").len(), 1);
    assert_eq!(guest.asked("").len(), 0);
}

#[tokio::test]
async fn a_missing_registry_cannot_be_reached() {
    let bench = Bench::new().await;
    let port = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port() };
    for reference in [format!("localhost:{port}/a"), "no-such-host.invalid/a".to_owned()] {
        let error = pull(&bench.registries, &source(&reference)).await.unwrap_err();
        assert!(
            matches!(&error, Error::Unreachable { message } if message.contains("cannot be reached")),
            "{error}"
        );
    }
    let error = bench.pull("none:1").await.unwrap_err();
    assert!(
        matches!(&error, Error::Refused { message } if message.ends_with("404, manifest unknown")),
        "{error}"
    );
}

#[tokio::test]
async fn addresses_in_a_manifest_are_never_asked() {
    let bench = Bench::new().await;
    let trap = Lab::new().await;
    let mut manifest = bench.lab.manifest(&layers());
    let missing = noise(99, 5000);
    let mut layer = descriptor(registry_lab::LAYER, &missing);
    trap.blob(missing.clone());
    layer["urls"] = json!([format!("http://127.0.0.1:{}/v2/x/blobs/{}", trap.port, digest(&missing))]);
    manifest["layers"][0] = layer;
    bench.lab.document("a", "1", registry_lab::MANIFEST, &manifest);
    assert!(bench.pull("a:1").await.is_err());
    assert_eq!(trap.asked("").len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruning_breaks_no_pull_and_takes_the_oldest_first() {
    let bench = Bench::new().await;
    bench.lab.image("old", "1", &[noise(11, 100_000)]);
    bench.lab.image("new", "1", &[noise(12, 2_000_000)]);
    bench.pull("old:1").await.unwrap();
    bench.lab.pace(100_000, Duration::from_millis(10));
    let source = bench.source("new:1");
    let (registries, running) = (bench.registries.clone(), source.clone());
    let running = tokio::spawn(async move { pull(&registries, &running).await });
    tokio::time::sleep(Duration::from_millis(80)).await;
    let dry = bench.registries.prune(Prune { dry_run: true, older_than: None }).await.unwrap();
    let pruned = bench.registries.prune(Prune::default()).await.unwrap();
    assert_eq!((dry, pruned.blobs >= 2), (pruned, true));
    assert_eq!(running.await.unwrap().unwrap(), [noise(12, 2_000_000)]);

    // Recently used blobs stay.
    let hour = Prune { older_than: Some(Duration::from_secs(3600)), ..Prune::default() };
    assert_eq!(bench.registries.prune(hour).await.unwrap(), Pruned::default());
    let small = Registries::new(bench.home.path(), Bytes::mib(1), QUICK, LocalPorts::where_port(|_| true));
    let directory = fs::read_dir(bench.home.path()).unwrap().next().unwrap().unwrap().path();
    for entry in fs::read_dir(directory).unwrap() {
        let long_ago = SystemTime::now() - Duration::from_secs(7200);
        File::open(entry.unwrap().path()).unwrap().set_modified(long_ago).unwrap();
    }
    pull(&small, &bench.source("old:1")).await.unwrap();
    let sizes: Vec<u64> = files(bench.home.path())
        .iter()
        .map(|name| {
            let directory = fs::read_dir(bench.home.path()).unwrap().next().unwrap().unwrap().path();
            fs::metadata(directory.join(name)).unwrap().len()
        })
        .collect();
    assert!(sizes.iter().sum::<u64>() <= 1 << 20, "{sizes:?}");
    assert!(sizes.contains(&100_000), "{sizes:?}");
}

#[tokio::test]
async fn a_full_disk_is_reported_before_anything_is_fetched() {
    require!(is_root(), "root");
    let scratch = Scratch::on_small_file_system(66 << 20);
    let lab = Lab::new().await;
    lab.image("a", "1", &[noise(13, 4_000_000)]);
    let registries = Registries::new(
        &scratch.paths.state.join("cache"),
        Bytes::gib(1),
        QUICK,
        LocalPorts::where_port(|_| true),
    );
    let error = pull(&registries, &source(&lab.reference("a:1"))).await.unwrap_err();
    assert!(matches!(error, Error::Host(HostError::NoSpace { .. })), "{error}");
    assert_eq!(lab.asked(&digest(&noise(13, 4_000_000))).len(), 0);
}

#[tokio::test]
async fn a_full_disk_ends_a_pull_that_continues_when_there_is_space() {
    require!(is_root(), "root");
    let scratch = Scratch::on_small_file_system(80 << 20);
    let (lab, cache) = (Lab::new().await, scratch.paths.state.join("cache"));
    let layers = [noise(14, 8_000_000)];
    lab.image("a", "1", &layers);
    lab.pace(100_000, Duration::from_millis(5));
    let registries = Registries::new(&cache, Bytes::gib(1), QUICK, LocalPorts::where_port(|_| true));
    let asked = source(&lab.reference("a:1"));
    let running = tokio::spawn({
        let (registries, asked) = (registries.clone(), asked.clone());
        async move { pull(&registries, &asked).await }
    });
    let partial =
        cache.join(asked.reference.registry().as_str()).join(format!("{}.partial", &digest(&layers[0])[7..]));
    while fs::metadata(&partial).map_or(0, |partial| partial.len()) < 500_000 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    scratch.fill_up(0);
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Host(HostError::NoSpace { .. })), "{error}");
    fs::remove_file(scratch.paths.state.join("filler")).unwrap();
    assert_eq!(pull(&registries, &asked).await.unwrap(), layers);
    assert!(lab.asked(&digest(&layers[0])).last().unwrap().range.is_some(), "it started over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_fails_or_hangs_does_not_affect_others() {
    let bench = Bench::new().await;
    let (good, flipped, hanging) = (noise(31, 2_000_000), noise(32, 500_000), noise(33, 500_000));
    bench.lab.pace(50_000, Duration::from_millis(5));
    let fault = |layer: &[u8], fault| {
        let part: &'static str = Box::leak(digest(layer).into_boxed_str());
        bench.lab.fault(part, 1000, fault);
    };
    fault(&flipped, Fault::Flipped);
    fault(&hanging, Fault::HangAfter(100_000));
    // A shared layer, and one of its own.
    let shared = noise(34, 700_000);
    let pulls = [("good", &good), ("flipped", &flipped), ("hanging", &hanging)].map(|(name, layer)| {
        bench.lab.image(name, "1", &[shared.clone(), layer.clone()]);
        let (registries, source) = (bench.registries.clone(), bench.source(&format!("{name}:1")));
        tokio::spawn(async move { pull(&registries, &source).await })
    });
    let [pulled, wrong, silent] = pulls;
    assert_eq!(pulled.await.unwrap().unwrap(), [shared, good]);
    let (wrong, silent) = (wrong.await.unwrap().unwrap_err(), silent.await.unwrap().unwrap_err());
    assert!(matches!(wrong, Error::Mismatch { .. }), "{wrong}");
    assert!(matches!(silent, Error::Unreachable { .. }), "{silent}");
}

#[tokio::test]
async fn credentials_are_read_of_a_sealed_memory_file_alone() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let bench = Bench::new().await;
    let memory = |text: &str, seals: SealFlags| {
        let file = memfd_create("credentials", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::io::write(&file, text.as_bytes()).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        bench.registries.credentials(file)
    };
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let text = r#"{"username":"alice","password":"secret"}"#;
    assert!(matches!(memory(text, all), Ok(Credentials::Password { .. })));
    assert!(matches!(memory(text, SealFlags::WRITE), Err(Error::BadFile { .. })));
    assert!(matches!(memory("geheim", all), Err(Error::BadFile { message }) if !message.contains("geheim")));
    assert!(matches!(memory(&" ".repeat(70_000), all), Err(Error::BadFile { .. })));
    let (pipe, _writer) = std::io::pipe().unwrap();
    assert!(matches!(bench.registries.credentials(pipe.into()), Err(Error::BadFile { .. })));
}

/// The process that the test below kills.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_is_killed_twenty_times_comes_to_the_same_digest() {
    let bench = Bench::new().await;
    let layers = [noise(21, 6_000_000), noise(22, 3_000_000)];
    bench.lab.image("a", "1", &layers);
    bench.lab.pace(64 << 10, Duration::from_millis(8));
    let mut puller = puller(bench.home.path(), &bench.lab.reference("a:1"), 5);
    let mut child = || -> Child { puller.stdout(std::process::Stdio::null()).spawn().unwrap() };
    let size = |path: &Path| -> u64 {
        let registries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        let files = registries.flat_map(|path| fs::read_dir(path).unwrap());
        files.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
    };
    let mut last = 0;
    for n in 0..20u64 {
        let mut child = child();
        // A different point each time: somewhere in the next 300 kB.
        let at = last + 1 + u64::from_le_bytes(noise(n + 1, 8).try_into().unwrap()) % 300_000;
        while size(bench.home.path()) < at && child.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "it ended before it was killed, at {at}: {ended:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        let now = size(bench.home.path());
        assert!(now >= last, "what was fetched is kept");
        last = now;
    }
    assert_eq!(bench.pull("a:1").await.unwrap(), layers);
    assert_eq!(bench.cached(), (3, 0));
    let fetched: u64 = bench.lab.asked("/blobs/").len() as u64;
    assert!(fetched >= 20, "{fetched}");
    // Each attempt continued where the one before ended.
    assert!(bench.lab.asked("/blobs/").iter().filter(|asked| asked.range.is_some()).count() >= 19);
}

#[test]
fn a_remote_registry_needs_a_trusted_certificate() {
    const HERE: &str = "192.0.2.1";
    require!(is_root(), "root, for a network of its own");
    Space::enter_new().ip(&format!("address add {HERE}/32 dev lo"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let home = tempfile::tempdir().unwrap();
    let (known, stranger) = (Authority::new(), Authority::new());
    let believed = home.path().join("authorities.pem");
    fs::write(&believed, known.certificate()).unwrap();
    let pull = |lab: &Lab| {
        let cache = tempfile::tempdir_in(home.path()).unwrap();
        let mut pull = puller(cache.path(), &format!("{HERE}:{}/a:1", lab.port), 1);
        let output = pull.env("SSL_CERT_FILE", &believed).env_remove("SSL_CERT_DIR").output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let long_ago =
        |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    for (identity, is_believed) in [
        (Some(known.identity(HERE, |_| ())), true),
        (Some(stranger.identity(HERE, |_| ())), false),
        (Some(known.identity("192.0.2.2", |_| ())), false),
        (Some(known.identity(HERE, long_ago)), false),
        // Without encryption.
        (None, false),
    ] {
        let is_encrypted = identity.is_some();
        let lab = runtime.block_on(Lab::at(HERE, identity));
        lab.image("a", "1", &layers());
        let (is_pulled, said) = pull(&lab);
        assert_eq!(is_pulled, is_believed, "{said}");
        assert_eq!(lab.asked("/v2/").is_empty(), !is_believed);
        if is_encrypted && !is_believed {
            assert!(said.contains("certificate"), "{said}");
        }
    }
}

#[tokio::test]
async fn progress_counts_the_bytes_of_all_layers() {
    struct Last(std::sync::Mutex<Option<(Bytes, Option<Bytes>)>>);
    impl Progress for Last {
        fn advanced(&self, done: Bytes, total: Option<Bytes>) {
            *self.0.lock().unwrap() = Some((done, total));
        }
        fn is_canceled(&self) -> bool {
            false
        }
    }
    let bench = Bench::new().await;
    bench.lab.image("a", "1", &layers());
    let source = bench.source("a:1");
    let image = bench.registries.resolve(&source).await.unwrap();
    let last = Arc::new(Last(std::sync::Mutex::new(None)));
    let fetch = bench.registries.fetch(&source, &image.layers, last.clone()).await.unwrap();
    let readers: Vec<_> = fetch.blobs.into_iter().map(reader).collect();
    fetch.work.await.unwrap();
    for reader in readers {
        reader.await.unwrap();
    }
    let total = Bytes(layers().iter().map(|layer| layer.len() as u64).sum());
    assert_eq!(*last.0.lock().unwrap(), Some((total, Some(total))));
    let _: &[LayerFacts] = &image.layers;
}

/// A server of Debian's package, ended when it is dropped.
struct DockerRegistry {
    process: Child,
    port: u16,
    _home: tempfile::TempDir,
}

impl DockerRegistry {
    /// Returns the program, if a test may run it.
    fn program() -> Option<PathBuf> {
        std::env::var_os("BANGER_TEST_DOCKER_REGISTRY").map(PathBuf::from)
    }

    async fn start(program: &Path) -> Self {
        let home = tempfile::tempdir().unwrap();
        let port = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port() };
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\"}}\n",
            home.path().display()
        );
        let file = home.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let process = Command::new(program).arg("serve").arg(&file).spawn().unwrap();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { process, port, _home: home }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_port_of_the_host_that_is_not_allowed_is_never_connected_to() {
    let bench = Bench::new().await;
    bench.lab.image("a/b", "1", &layers());
    let reference = bench.lab.reference("a/b:1");
    // The port was allowed until somebody published it.
    let allowed = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&allowed);
    let local = LocalPorts::where_port(move |_| asked.load(Ordering::Relaxed));
    let registries = Registries::new(&bench.home.path().join("other"), Bytes::gib(1), QUICK, local);
    let refused = registries.resolve(&source(&reference)).await.unwrap_err();
    assert!(refused.to_string().contains("registry.local_ports"), "{refused}");
    let (_, port) = reference.split_once(':').unwrap();
    for host in ["127.0.0.1", "127.0.1.1", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"] {
        let elsewhere = registries.resolve(&source(&format!("{host}:{port}"))).await;
        assert!(matches!(elsewhere, Err(Error::Refused { .. })), "{host}: {elsewhere:?}");
    }
    assert!(bench.lab.asked("").is_empty(), "the registry was asked");
    allowed.store(true, Ordering::Relaxed);
    registries.resolve(&source(&reference)).await.unwrap();
}

#[tokio::test]
async fn what_oci_client_pushes_to_dockers_registry_is_pulled() {
    use oci_client::{
        Client, Reference,
        client::{ClientConfig, ClientProtocol, Config, ImageLayer},
        secrets::RegistryAuth,
    };
    let program = DockerRegistry::program();
    require!(program.is_some(), "Debian's docker-registry, named by BANGER_TEST_DOCKER_REGISTRY");
    let server = DockerRegistry::start(&program.unwrap()).await;
    let home = tempfile::tempdir().unwrap();
    let registries = Registries::new(home.path(), Bytes::gib(1), QUICK, LocalPorts::where_port(|_| true));
    let name = format!("localhost:{}/a/b:1", server.port);
    let layers = layers();
    let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids }, "config": {},
    });
    // Other tests leave that to the service.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    let pushed: Vec<ImageLayer> =
        layers.iter().map(|layer| ImageLayer::oci_v1(layer.clone(), None)).collect();
    let config = Config::oci_v1(serde_json::to_vec(&config).unwrap(), None);
    let reference: Reference = name.parse().unwrap();
    client.push(&reference, &pushed, config, &RegistryAuth::Anonymous, None).await.unwrap();
    let (_, manifest) = client.pull_manifest(&reference, &RegistryAuth::Anonymous).await.unwrap();

    let image = registries.resolve(&source(&name)).await.unwrap();
    assert_eq!(image.manifest.to_string(), manifest);
    // A partly cached layer is requested from there on.
    let directory = home.path().join(format!("localhost:{}", server.port));
    fs::write(directory.join(format!("{}.partial", &ids[1][7..])), &layers[1][..1_234_567]).unwrap();
    assert_eq!(fetch(&registries, &source(&name), &image).await.unwrap(), layers);
    let missing = registries.resolve(&source(&format!("localhost:{}/none", server.port))).await.unwrap_err();
    assert!(matches!(missing, Error::Refused { .. }), "{missing}");
}
