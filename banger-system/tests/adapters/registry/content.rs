//! What arrives, from the registry and from the cache.

use super::*;

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
    let again = bench.registries.resolve(&source).await.unwrap();
    let fetched = bench.registries.fetch(&source, &again.layers, Arc::new(NoProgress)).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruning_breaks_no_pull_and_takes_the_oldest_first() {
    let bench = Bench::new().await;
    bench.lab.image("old", "1", &[noise(11, 100_000)]);
    bench.lab.image("new", "1", &[noise(12, 2_000_000)]);
    bench.pull("old:1").await.unwrap();
    let before = size(bench.home.path());
    bench.lab.send_at_most(1_000_000);
    let source = bench.source("new:1");
    let (registries, running) = (bench.registries.clone(), source.clone());
    let running = tokio::spawn(async move { pull(&registries, &running).await });
    bench.until_cached(before + 1_000_000).await;
    let dry = bench.registries.prune(Prune { dry_run: true, older_than: None }).await.unwrap();
    let pruned = bench.registries.prune(Prune::default()).await.unwrap();
    assert_eq!((dry, pruned.blobs >= 2), (pruned, true));
    bench.lab.send_all();
    assert_eq!(running.await.unwrap().unwrap(), [noise(12, 2_000_000)]);

    // Recently used blobs stay.
    let hour = Prune { older_than: Some(Duration::from_secs(3600)), ..Prune::default() };
    assert_eq!(bench.registries.prune(hour).await.unwrap(), Pruned::default());
    let small = Registries::new(bench.home.path(), Bytes::mib(1), PATIENT, LocalPorts::where_port(|_| true));
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

    /// Starts it. Somebody else may take its port before it does; then it ends, and gets another one.
    async fn start(program: &Path) -> Self {
        loop {
            if let Some(started) = Self::try_start(program).await {
                return started;
            }
        }
    }

    async fn try_start(program: &Path) -> Option<Self> {
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
        let mut started = Self { process, port, _home: home };
        loop {
            let is_there = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
            match (started.process.try_wait().unwrap(), is_there) {
                (Some(_), _) => return None,
                (None, true) => return Some(started),
                (None, false) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
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
    let registries = Registries::new(home.path(), Bytes::gib(1), PATIENT, LocalPorts::where_port(|_| true));
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
