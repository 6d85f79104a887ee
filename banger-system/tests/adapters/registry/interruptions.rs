//! Registries that break, hang or are busy, pulls that are cancelled or killed, and full disks.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_is_given_up_leaves_the_rest_to_others() {
    let bench = Bench::new().await;
    bench.lab.image("a", "1", &layers());
    bench.lab.send_at_most(1_000_000);
    let source = bench.source("a:1");
    let image = bench.registries.resolve(&source).await.unwrap();
    let first = bench.registries.fetch(&source, &image.layers, Arc::new(NoProgress)).await.unwrap();
    let first = tokio::spawn(first.work);
    let (registries, second_source, second_image) = (bench.registries.clone(), source.clone(), image.clone());
    let second = tokio::spawn(async move { fetch(&registries, &second_source, &second_image).await });
    bench.until_cached(1_000_000).await;
    first.abort();
    bench.lab.send_all();
    assert_eq!(second.await.unwrap().unwrap(), layers());
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
    let bench = Bench::with(Timeouts { silence: SHORT, ..PATIENT }).await;
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
async fn a_registry_that_hangs_or_drips_is_given_up() {
    let cases = [
        ("/manifests/", Fault::Hang, "did not answer"),
        ("/manifests/", Fault::HangAfter(3), "small answer"),
        ("/manifests/", Fault::Drip(Duration::from_millis(50)), "small answer"),
        ("/blobs/", Fault::Hang, "did not answer"),
        ("/blobs/", Fault::HangAfter(1), "silent"),
        ("/blobs/", Fault::Drip(Duration::from_millis(5)), "too slowly"),
    ];
    // All at once, since each takes its time.
    let given_up = cases.map(async |(part, fault, why)| {
        let bench = Bench::with(QUICK).await;
        bench.lab.image("a", "1", &layers());
        bench.lab.fault(part, 1000, fault.clone());
        let pulled = tokio::time::timeout(PATIENCE, bench.pull("a:1")).await.unwrap();
        let error = pulled.unwrap_err();
        assert!(
            matches!(&error, Error::Unreachable { message } if message.contains(why)),
            "{fault:?}: {error}"
        );
        bench.lab.no_faults();
        assert_eq!(bench.pull("a:1").await.unwrap(), layers(), "{fault:?}");
    });
    futures_util::future::join_all(given_up).await;
}

#[tokio::test]
async fn a_missing_registry_cannot_be_reached() {
    let bench = Bench::new().await;
    // Nobody else gets the port, and nobody listens on it.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = held.local_addr().unwrap().port();
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
async fn a_full_disk_is_reported_before_anything_is_fetched() {
    require!(is_root(), "root");
    let scratch = Scratch::on_small_file_system(66 << 20);
    let lab = Lab::new().await;
    lab.image("a", "1", &[noise(13, 4_000_000)]);
    let registries = Registries::new(
        &scratch.paths.state.join("cache"),
        Bytes::gib(1),
        PATIENT,
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
    let registries = Registries::new(&cache, Bytes::gib(1), PATIENT, LocalPorts::where_port(|_| true));
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
    let bench = Bench::with(Timeouts { silence: SHORT, ..PATIENT }).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_is_killed_twenty_times_comes_to_the_same_digest() {
    let bench = Bench::new().await;
    let layers = [noise(21, 6_000_000), noise(22, 3_000_000)];
    bench.lab.image("a", "1", &layers);
    let mut puller = puller(bench.home.path(), &bench.lab.reference("a:1"), 5);
    let mut child = || -> Child { puller.stdout(std::process::Stdio::null()).spawn().unwrap() };
    let mut last = 0;
    for n in 0..20u64 {
        // A different point each time: somewhere in the next 300 kB.
        let more = 1 + u64::from_le_bytes(noise(n + 1, 8).try_into().unwrap()) % 300_000;
        // The registry may read two requests of the pull before only now, and answers them.
        bench.lab.send_at_most(more + 4 * registry_lab::PIECE as u64);
        let mut child = child();
        bench.until_cached(last + more).await;
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "it ended before it was killed: {ended:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        let now = size(bench.home.path());
        assert!(now >= last, "what was fetched is kept");
        last = now;
    }
    bench.lab.send_all();
    assert_eq!(bench.pull("a:1").await.unwrap(), layers);
    assert_eq!(bench.cached(), (3, 0));
    let fetched: u64 = bench.lab.asked("/blobs/").len() as u64;
    assert!(fetched >= 20, "{fetched}");
    // Each attempt continued where the one before ended.
    assert!(bench.lab.asked("/blobs/").iter().filter(|asked| asked.range.is_some()).count() >= 19);
}
