//! A proxy and mirrors on loopback: who is asked, in which order, and what is never asked.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use banger_image::oci::{
    credentials::Credentials,
    platform::Platform,
    reach::{Mirror, Proxy},
};
use banger_proto::size::Bytes;
use banger_system::{
    host::registry::{LocalPorts, Registries, Timeouts},
    ports::{
        NoProgress,
        registry::{Error, Registry, Result, Source},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::registry_lab::{Fault, Gate, Lab, noise};

const PATIENT: Timeouts = Timeouts {
    connect: Duration::from_secs(60),
    answer: Duration::from_secs(60),
    silence: Duration::from_secs(60),
    document: Duration::from_secs(60),
    window: Duration::from_secs(60),
    slowest: 1,
    attempts: 2,
    pause: Duration::from_millis(5),
};
/// `user:secret`.
const PASSWORD: &str = "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=";
/// A name that no name server knows (RFC 6761).
const NOWHERE: &str = "registry.invalid";

/// A proxy that records its requests, and resolves every name to one server.
struct TestProxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl TestProxy {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let record = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(forward(client, port, Arc::clone(&record)));
            }
        });
        Self { address, heads, task }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// Returns its address with a password, as a configuration has it.
    fn configured(&self, no_proxy: &[&str]) -> Proxy {
        let except: Vec<String> = no_proxy.iter().map(|entry| (*entry).to_owned()).collect();
        Proxy::parse(&format!("http://user:secret@{}", self.address), &except).unwrap()
    }
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(mut client: TcpStream, port: u16, record: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    record.lock().unwrap().push(head.clone());
    if head.starts_with("CONNECT ") {
        // The test has no certificate for the name: what it wants is the request.
        client.write_all(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n").await.ok()?;
        return None;
    }
    let (line, rest) = head.split_once("\r\n")?;
    let url = reqwest::Url::parse(line.split(' ').nth(1)?).ok()?;
    let mut server = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {} HTTP/1.1\r\nConnection: close\r\n{rest}", url.path());
    server.write_all(request.as_bytes()).await.ok()?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.ok()?;
    Some(())
}

struct Bench {
    home: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    fn registries(&self, proxy: Option<&Proxy>, mirrors: Vec<Mirror>) -> Registries {
        let local = LocalPorts::where_port(|_| true);
        Registries::new(self.home.path(), Bytes::gib(1), PATIENT, local).reached_by(proxy, mirrors)
    }
}

fn mirror(registry: &str, location: &str, only: bool) -> Mirror {
    Mirror::parse(registry, location, only).unwrap()
}

async fn pull(registries: &Registries, reference: &str) -> Result<Vec<u64>> {
    let credentials = Credentials::Password { user: "alice".into(), secret: "secret".into() };
    let platform = Platform::of_host("x86_64");
    let source = Source { reference: reference.parse().unwrap(), platform, credentials };
    let image = registries.resolve(&source).await?;
    let fetch = registries.fetch(&source, &image.layers, Arc::new(NoProgress)).await?;
    let readers: Vec<_> = fetch
        .blobs
        .into_iter()
        .map(|blob| {
            tokio::task::spawn_blocking(move || {
                std::io::copy(&mut std::fs::File::from(blob), &mut std::io::sink()).unwrap()
            })
        })
        .collect();
    fetch.work.await?;
    let mut lengths = Vec::new();
    for reader in readers {
        lengths.push(reader.await.unwrap());
    }
    Ok(lengths)
}

fn layers() -> [Vec<u8>; 2] {
    [noise(1, 30_000), noise(2, 70_000)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_through_the_proxy_and_its_password_to_nobody_else() {
    let (bench, lab) = (Bench::new(), Lab::new().await);
    lab.image("prefix/a", "1", &layers());
    let proxy = TestProxy::to(lab.port).await;
    let configured = proxy.configured(&[]);
    let only = vec![mirror(NOWHERE, &format!("http://{NOWHERE}/prefix"), true)];
    let registries = bench.registries(Some(&configured), only);
    assert_eq!(pull(&registries, &format!("{NOWHERE}/a:1")).await.unwrap(), [30_000, 70_000]);
    let heads = proxy.heads();
    assert!(heads.iter().all(|head| head.starts_with(&format!("GET http://{NOWHERE}/v2/prefix/a/"))));
    assert!(
        heads.len() >= 4 && heads.iter().all(|head| head.to_lowercase().contains(&PASSWORD.to_lowercase()))
    );
    assert!(lab.asked("/v2/").iter().all(|asked| asked.authorization.is_none()));

    // With encryption, the proxy is asked for a tunnel.
    let error =
        pull(&bench.registries(Some(&configured), Vec::new()), "other.invalid/a:1").await.unwrap_err();
    let tunnel = proxy.heads().pop().unwrap();
    assert!(tunnel.starts_with("CONNECT other.invalid:443 "), "{tunnel}");
    let text = error.to_string();
    let expect = format!("other.invalid cannot be reached through the proxy {}", proxy.address);
    assert!(matches!(error, Error::Unreachable { .. }) && text.contains(&expect), "{text}");
    assert!(!text.contains("secret"), "{text}");
    assert!(!format!("{registries:?}").contains("secret"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_and_the_exceptions_are_reached_without_the_proxy() {
    let (bench, lab) = (Bench::new(), Lab::new().await);
    lab.image("a", "1", &layers());
    let proxy = TestProxy::to(lab.port).await;
    let local = bench.registries(Some(&proxy.configured(&[])), Vec::new());
    assert!(pull(&local, &lab.reference("a:1")).await.is_ok());
    let except = bench.registries(Some(&proxy.configured(&["invalid"])), Vec::new());
    let error = pull(&except, &format!("{NOWHERE}/a:1")).await.unwrap_err();
    assert!(!error.to_string().contains("proxy"), "{error}");
    assert!(proxy.heads().is_empty(), "{:?}", proxy.heads());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_is_never_asked_for_the_host_or_its_link() {
    let (bench, lab) = (Bench::new(), Lab::new().await);
    let proxy = TestProxy::to(lab.port).await;
    let registries = bench.registries(Some(&proxy.configured(&[])), Vec::new());
    registries.forbid_guests("172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap());
    for registry in
        ["0.0.0.0:443", "169.254.169.254:443", "172.30.0.2:443", "[::ffff:127.0.0.1]:443", "127.1:443"]
    {
        let error = pull(&registries, &format!("{registry}/a:1")).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{registry}: {error}");
    }
    assert!(proxy.heads().is_empty(), "{:?}", proxy.heads());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_is_asked_first_and_the_registry_for_what_it_lacks() {
    let (bench, lab, twin) = (Bench::new(), Lab::new().await, Lab::new().await);
    let registry = format!("localhost:{}", lab.port);
    lab.image("a", "1", &layers());
    lab.image("b", "1", &layers());
    lab.gate(Gate::Basic);
    twin.image("a", "1", &layers());
    let location = format!("http://127.0.0.1:{}", twin.port);
    let registries = bench.registries(None, vec![mirror(&registry, &location, false)]);
    assert_eq!(pull(&registries, &lab.reference("a:1")).await.unwrap(), [30_000, 70_000]);
    assert!(lab.asked("/v2/").is_empty(), "{:?}", lab.asked("/v2/"));
    assert!(pull(&registries, &lab.reference("b:1")).await.is_ok());
    assert!(!lab.asked("/v2/b/").is_empty());
    assert!(twin.asked("").iter().all(|asked| asked.authorization.is_none()), "a mirror got credentials");

    // A mirror that is down, and one that breaks off in the middle of a layer.
    let gone = vec![mirror(&registry, "http://127.0.0.1:1", false)];
    assert!(pull(&Bench::new().registries(None, gone), &lab.reference("a:1")).await.is_ok());
    twin.fault("/blobs/", 9, Fault::Cut(1000));
    let other = Bench::new();
    let registries = other.registries(None, vec![mirror(&registry, &location, false)]);
    lab.forget();
    assert_eq!(pull(&registries, &lab.reference("a:1")).await.unwrap(), [30_000, 70_000]);
    assert!(lab.asked("/blobs/").iter().any(|asked| asked.range.is_some()), "{:?}", lab.asked("/blobs/"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_only_mirror_stands_alone_and_is_checked_like_a_registry() {
    let (bench, lab, twin) = (Bench::new(), Lab::new().await, Lab::new().await);
    let registry = format!("localhost:{}", lab.port);
    for lab in [&lab, &twin] {
        lab.image("a", "1", &layers());
    }
    lab.image("b", "1", &layers());
    let location = format!("http://127.0.0.1:{}", twin.port);
    let registries = bench.registries(None, vec![mirror(&registry, &location, true)]);
    let error = pull(&registries, &lab.reference("b:1")).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    twin.fault("/blobs/", 9, Fault::Flipped);
    let error = pull(&registries, &lab.reference("a:1")).await.unwrap_err();
    assert!(
        matches!(&error, Error::Mismatch { message } if message.starts_with("127.0.0.1 sent data")),
        "{error}"
    );
    assert!(lab.asked("").is_empty(), "{:?}", lab.asked(""));
}
