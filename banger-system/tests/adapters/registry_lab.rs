//! A registry on loopback that misbehaves as ordered, and records its requests.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, with these headers.
    Status(u16, Vec<(&'static str, String)>),
    /// This status, with this message.
    Says(u16, &'static str),
    /// The connection breaks after this many bytes of the body.
    Cut(usize),
    /// One byte at a time, with this pause.
    Drip(Duration),
    /// No response.
    Hang,
    /// The body stops after this many bytes.
    HangAfter(usize),
    /// The range is ignored.
    Whole,
    /// Another range is sent.
    OtherPart,
    /// Other bytes of the same number.
    Flipped,
    /// Too many bytes.
    Longer,
    /// This length is announced, and zeros are sent without end.
    Endless(Option<u64>),
}

/// Who has access.
#[derive(Clone, Debug, Default)]
pub enum Gate {
    #[default]
    Open,
    /// `alice` with `secret`.
    Basic,
    /// Clients with a token, for `alice` with `secret` or for the refresh token `refresh`. A token is valid for this
    /// many requests.
    Token(u32),
}

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

#[derive(Default)]
struct State {
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, (String, Vec<u8>)>,
    files: HashMap<String, Vec<u8>>,
    faults: Vec<(&'static str, u32, Fault)>,
    gate: Gate,
    /// How often each token was used.
    tokens: Vec<u32>,
    asked: Vec<Asked>,
    pace: Option<(usize, Duration)>,
    /// How many more bytes of blobs are sent, if there is a limit. Earlier connections have limits of their own.
    limit: Option<watch::Sender<u64>>,
}

pub struct Lab {
    pub port: u16,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

/// A certificate authority.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// Returns its certificate as PEM, for clients that trust it.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Returns the TLS configuration of a server of this name, with a changed certificate.
    pub fn identity(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key);
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// Returns bytes that look random and are the same each time.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}

impl Lab {
    pub async fn new() -> Self {
        Self::at("127.0.0.1", None).await
    }

    /// Starts a registry at an address of this host, with TLS if there is a configuration for it.
    pub async fn at(address: &str, identity: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (identity, shared) = (identity.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    match identity {
                        None => serve(stream, port, shared).await,
                        Some(identity) => {
                            // A client that does not trust us hangs up.
                            let Ok(stream) = identity.accept(stream).await else { return };
                            serve(stream, port, shared).await;
                        }
                    }
                });
            }
        });
        Self { port, state, task }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Returns a reference to an image of this registry.
    pub fn reference(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.port)
    }

    pub fn blob(&self, bytes: Vec<u8>) -> String {
        let digest = digest(&bytes);
        self.lock().blobs.insert(digest.clone(), bytes);
        digest
    }

    /// Adds a file outside of the registry protocol, and returns its address.
    pub fn file(&self, path: &str, bytes: &[u8]) -> String {
        self.lock().files.insert(path.to_owned(), bytes.to_vec());
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Adds a document that is found by `wanted` and by its digest.
    pub fn document(&self, repository: &str, wanted: &str, kind: &str, value: &Value) -> String {
        let bytes = serde_json::to_vec(value).unwrap();
        let digest = digest(&bytes);
        for wanted in [wanted, &digest] {
            let entry = (kind.to_owned(), bytes.clone());
            self.lock().manifests.insert(format!("{repository}/{wanted}"), entry);
        }
        digest
    }

    /// Adds the manifest of an image of these layers, which only their media type declares to be tars.
    pub fn manifest(&self, layers: &[Vec<u8>]) -> Value {
        let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids },
            "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"] },
        });
        let config = serde_json::to_vec(&config).unwrap();
        let described: Vec<Value> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config), "layers": described,
        });
        for blob in layers.iter().chain([&config]) {
            self.blob(blob.clone());
        }
        manifest
    }

    /// Adds an image of these layers.
    pub fn image(&self, repository: &str, tag: &str, layers: &[Vec<u8>]) -> String {
        let manifest = self.manifest(layers);
        self.document(repository, tag, MANIFEST, &manifest)
    }

    /// Makes this many requests with this in their path fail like this.
    pub fn fault(&self, part: &'static str, times: u32, fault: Fault) {
        self.lock().faults.push((part, times, fault));
    }

    pub fn no_faults(&self) {
        self.lock().faults.clear();
    }

    pub fn gate(&self, gate: Gate) {
        self.lock().gate = gate;
    }

    /// From now on sends bodies in pieces of this many bytes, with this pause.
    pub fn pace(&self, piece: usize, pause: Duration) {
        self.lock().pace = Some((piece, pause));
    }

    /// Sends as many bytes of blobs to those who connect from now on, and the rest after [`Lab::send_all`].
    pub fn send_at_most(&self, bytes: u64) {
        self.lock().limit = Some(watch::Sender::new(bytes));
    }

    pub fn send_all(&self) {
        if let Some(limit) = self.lock().limit.take() {
            limit.send_replace(u64::MAX);
        }
    }

    pub fn asked(&self, part: &str) -> Vec<Asked> {
        self.lock().asked.iter().filter(|asked| asked.path.contains(part)).cloned().collect()
    }

    pub fn forget(&self) {
        self.lock().asked.clear();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, port: u16, state: Arc<Mutex<State>>) {
    let mut stream = BufReader::new(stream);
    let Some((path, headers, body)) = request(&mut stream).await else { return };
    let get = |name: &str| headers.get(name).cloned();
    let range = get("range");
    let authorization = get("authorization");
    let (fault, pace, limit) = {
        let mut state = state.lock().unwrap();
        state.asked.push(Asked {
            path: path.clone(),
            range: range.clone(),
            authorization: authorization.clone(),
        });
        let fault = state.faults.iter_mut().find(|(part, times, _)| *times > 0 && path.contains(part));
        let fault = fault.map(|(_, times, fault)| {
            *times -= 1;
            fault.clone()
        });
        (fault, state.pace, state.limit.clone().filter(|_| path.contains("/blobs/")))
    };
    if matches!(fault, Some(Fault::Hang)) {
        return std::future::pending().await;
    }
    let mut answer = match &fault {
        Some(Fault::Status(status, headers)) => {
            let headers =
                headers.iter().map(|(name, value)| (*name, value.replace("PORT", &port.to_string())));
            Answer { status: *status, headers: headers.collect(), body: b"{\"errors\":[]}".to_vec() }
        }
        Some(Fault::Says(status, message)) => {
            let body = json!({ "errors": [{ "code": "TOOMANYREQUESTS", "message": message, "detail": {} }] });
            Answer { status: *status, headers: Vec::new(), body: body.to_string().into_bytes() }
        }
        _ => answer(&path, authorization.as_deref(), &body, port, &mut state.lock().unwrap()),
    };
    let length = answer.body.len();
    if let (200, Some(range)) = (answer.status, range)
        && !matches!(fault, Some(Fault::Whole))
    {
        let from: usize = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
        let from = if matches!(fault, Some(Fault::OtherPart)) { from + 1 } else { from };
        answer.body.drain(..from);
        answer.status = 206;
        answer.headers.push(("Content-Range", format!("bytes {from}-{}/{length}", length - 1)));
    }
    let mut announced = Some(answer.body.len() as u64);
    match fault {
        Some(Fault::Flipped) => answer.body[length / 2] ^= 1,
        Some(Fault::Longer) => {
            answer.body.push(0);
            announced = None;
        }
        Some(Fault::Endless(length)) => announced = length,
        _ => {}
    }
    let mut head = format!("HTTP/1.1 {} Whatever\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(announced) = announced {
        head.push_str(&format!("Content-Length: {announced}\r\n"));
    }
    head.push_str("\r\n");
    // The client has hung up.
    let _ = match (&fault, limit) {
        (None, Some(limit)) => speak_within(limit, stream.into_inner(), &head, &answer.body).await,
        _ => speak(stream.into_inner(), &head, &answer.body, fault, pace).await,
    };
}

/// What is sent at a time within a limit. A client that is gone takes two of them, and then the connection fails.
pub const PIECE: usize = 8 << 10;

/// Sends no more of the body than the limit allows.
async fn speak_within(
    limit: watch::Sender<u64>,
    mut stream: impl AsyncWrite + Unpin,
    head: &str,
    body: &[u8],
) -> std::io::Result<()> {
    stream.write_all(head.as_bytes()).await?;
    let (mut rest, mut allowed) = (body, limit.subscribe());
    while !rest.is_empty() {
        let _ = allowed.wait_for(|bytes| *bytes > 0).await;
        let mut count = 0;
        limit.send_modify(|bytes| {
            count = rest.len().min(PIECE).min(usize::try_from(*bytes).unwrap_or(usize::MAX));
            *bytes -= count as u64;
        });
        let piece;
        (piece, rest) = rest.split_at(count);
        stream.write_all(piece).await?;
    }
    stream.shutdown().await
}

async fn speak(
    mut stream: impl AsyncWrite + Unpin,
    head: &str,
    body: &[u8],
    fault: Option<Fault>,
    pace: Option<(usize, Duration)>,
) -> std::io::Result<()> {
    stream.write_all(head.as_bytes()).await?;
    say(&mut stream, body, fault, pace).await?;
    stream.shutdown().await
}

async fn say(
    stream: &mut (impl AsyncWrite + Unpin),
    body: &[u8],
    fault: Option<Fault>,
    pace: Option<(usize, Duration)>,
) -> std::io::Result<()> {
    match (fault, pace) {
        (Some(Fault::Cut(n)), _) => stream.write_all(&body[..n.min(body.len())]).await,
        (Some(Fault::HangAfter(n)), _) => {
            stream.write_all(&body[..n.min(body.len())]).await?;
            std::future::pending().await
        }
        (Some(Fault::Drip(pause)), _) => {
            for byte in body {
                stream.write_all(&[*byte]).await?;
                tokio::time::sleep(pause).await;
            }
            Ok(())
        }
        (Some(Fault::Endless(_)), _) => loop {
            stream.write_all(&[b' '; 65536]).await?;
        },
        (_, Some((piece, pause))) => {
            for piece in body.chunks(piece) {
                stream.write_all(piece).await?;
                tokio::time::sleep(pause).await;
            }
            Ok(())
        }
        _ => stream.write_all(body).await,
    }
}

async fn request(
    stream: &mut BufReader<impl AsyncRead + Unpin>,
) -> Option<(String, HashMap<String, String>, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let header =
        |line: &str| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let headers: HashMap<String, String> = lines.filter_map(header).collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((path, headers, body))
}

fn answer(path: &str, authorization: Option<&str>, body: &[u8], port: u16, state: &mut State) -> Answer {
    // `alice:secret`.
    const ALICE: &str = "Basic YWxpY2U6c2VjcmV0";
    let json = |status, value: Value| Answer {
        status,
        headers: Vec::new(),
        body: serde_json::to_vec(&value).unwrap(),
    };
    let error = |status, code: &str, message: &str| {
        json(status, json!({ "errors": [{ "code": code, "message": message, "detail": {} }] }))
    };
    let challenge = |how: String| Answer {
        headers: vec![("WWW-Authenticate", how)],
        ..error(401, "UNAUTHORIZED", "authentication required")
    };
    if let Some(bytes) = state.files.get(path) {
        return Answer { status: 200, headers: Vec::new(), body: bytes.clone() };
    }
    if let Some(query) = path.strip_prefix("/token") {
        let body = String::from_utf8_lossy(body);
        let is_alice = authorization == Some(ALICE) || body.contains("refresh_token=refresh");
        let is_right = query.contains("scope=repository%3A") || body.contains("scope=repository%3A");
        return match is_alice && is_right {
            true => {
                state.tokens.push(0);
                json(200, json!({ "token": format!("token-{}", state.tokens.len() - 1), "expires_in": 60 }))
            }
            false => error(401, "UNAUTHORIZED", "who are you"),
        };
    }
    match state.gate {
        Gate::Open => {}
        Gate::Basic if authorization == Some(ALICE) => {}
        Gate::Basic => return challenge("Basic realm=\"lab\"".to_owned()),
        Gate::Token(uses) => {
            let number =
                authorization.and_then(|text| text.strip_prefix("Bearer token-")?.parse::<usize>().ok());
            let used = number.and_then(|number| state.tokens.get_mut(number));
            let is_good = used.is_some_and(|used| {
                *used += 1;
                *used <= uses
            });
            if !is_good {
                return challenge(format!(
                    "Bearer realm=\"http://localhost:{port}/token\",service=\"lab\",scope=\"ignored\""
                ));
            }
        }
    }
    let path = path.strip_prefix("/v2/").unwrap_or_default();
    if let Some((repository, wanted)) = path.split_once("/manifests/") {
        return match state.manifests.get(&format!("{repository}/{wanted}")) {
            Some((kind, bytes)) => {
                Answer { status: 200, headers: vec![("Content-Type", kind.clone())], body: bytes.clone() }
            }
            None => error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
        };
    }
    let blob = path.rsplit("/blobs/").next().unwrap_or_default();
    match state.blobs.get(blob.split('?').next().unwrap()) {
        Some(bytes) => Answer { status: 200, headers: Vec::new(), body: bytes.clone() },
        None => error(404, "BLOB_UNKNOWN", "blob unknown"),
    }
}
