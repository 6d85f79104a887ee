//! Who is asked, and with which credentials: never a guest, never what a manifest names.

use super::*;

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
        let registries =
            Registries::new(home.path(), Bytes::gib(1), PATIENT, LocalPorts::where_port(|_| true));
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
async fn a_port_of_the_host_that_is_not_allowed_is_never_connected_to() {
    let bench = Bench::new().await;
    bench.lab.image("a/b", "1", &layers());
    let reference = bench.lab.reference("a/b:1");
    // The port was allowed until somebody published it.
    let allowed = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&allowed);
    let local = LocalPorts::where_port(move |_| asked.load(Ordering::Relaxed));
    let registries = Registries::new(&bench.home.path().join("other"), Bytes::gib(1), PATIENT, local);
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
