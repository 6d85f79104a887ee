//! A registry on loopback that takes pushes, misbehaves as ordered, and records its requests.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use banger_image::fixtures::tar::digest;

/// `alice:secret`, as in a header.
const ALICE: &str = "Basic YWxpY2U6c2VjcmV0";

/// Who may push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gate {
    #[default]
    Open,
    /// `alice` with `secret`.
    Password,
    /// `alice` with `secret` gets a token.
    Token,
}

/// What goes wrong with a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This status, with this message.
    Says(u16, &'static str),
    /// The connection breaks after this many bytes of the body, which are kept.
    Cut(usize),
    /// The connection breaks after this many bytes, and the upload is forgotten.
    Lose(usize),
    /// Another address than its own is named for the upload.
    Away,
    /// Another digest is named for the manifest.
    Other,
}

#[derive(Default)]
struct State {
    gate: Gate,
    /// What is in the line of the request, how often it fails, and how.
    faults: Vec<(&'static str, u32, Fault)>,
    /// By repository and digest.
    blobs: HashMap<(String, String), Vec<u8>>,
    manifests: BTreeMap<String, Vec<u8>>,
    uploads: HashMap<String, Vec<u8>>,
    requests: Vec<String>,
}

/// A registry, which ends with the test's process.
pub struct Registry {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Registry {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                thread::spawn(move || while serve(&stream, port, &shared).is_some() {});
            }
        });
        Self { port, state }
    }

    /// Returns a reference to an image of this registry.
    pub fn reference(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.port)
    }

    pub fn gate(&self, gate: Gate) {
        self.state.lock().unwrap().gate = gate;
    }

    /// Makes this many requests with this in their line fail.
    pub fn fault(&self, part: &'static str, times: u32, fault: Fault) {
        self.state.lock().unwrap().faults.push((part, times, fault));
    }

    /// Returns the lines of the requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    /// Returns the manifest of `REPOSITORY:TAG`.
    pub fn manifest(&self, name: &str) -> Option<Vec<u8>> {
        self.state.lock().unwrap().manifests.get(name).cloned()
    }

    pub fn blob(&self, repository: &str, digest: &str) -> Vec<u8> {
        self.state.lock().unwrap().blobs[&(repository.to_owned(), digest.to_owned())].clone()
    }
}

/// Serves one request. Returns `None` when the connection ends.
fn serve(stream: &TcpStream, port: u16, state: &Mutex<State>) -> Option<()> {
    let mut input = BufReader::new(stream);
    let mut line = String::new();
    input.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length: usize = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let fault = {
        let mut state = state.lock().unwrap();
        state.requests.push(format!("{method} {target}"));
        let line = format!("{method} {target}");
        let fault = state.faults.iter_mut().find(|(part, times, _)| *times > 0 && line.contains(part));
        fault.map(|(_, times, fault)| {
            *times -= 1;
            fault.clone()
        })
    };
    let kept = match fault {
        Some(Fault::Cut(length) | Fault::Lose(length)) => length,
        _ => length,
    };
    let mut body = vec![0; kept];
    input.read_exact(&mut body).ok()?;
    let upload = target.split('?').next()?.rsplit('/').next()?.to_owned();
    match fault {
        Some(Fault::Cut(_)) => {
            state.lock().unwrap().uploads.entry(upload).or_default().extend(body);
            return None;
        }
        Some(Fault::Lose(_)) => {
            state.lock().unwrap().uploads.remove(&upload);
            return None;
        }
        _ => {}
    }
    let mut answer = match fault {
        Some(Fault::Says(status, message)) => Answer::refusal(status, message),
        _ => answer(&method, &target, &headers, body, port, &mut state.lock().unwrap()),
    };
    match fault {
        Some(Fault::Away) => answer.set("Location", "http://registry.example.org/upload"),
        Some(Fault::Other) => answer.set("Docker-Content-Digest", "sha256:00"),
        _ => {}
    }
    let mut text = format!("HTTP/1.1 {} Status\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let mut output = stream;
    output.write_all(text.as_bytes()).ok()?;
    match method.as_str() {
        "HEAD" => Some(()),
        _ => output.write_all(&answer.body).ok(),
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn set(&mut self, name: &'static str, value: &str) {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.to_owned()));
    }

    fn refusal(status: u16, message: &str) -> Self {
        let body = serde_json::json!({ "errors": [{ "code": "DENIED", "message": message }] });
        Self { body: body.to_string().into_bytes(), ..Self::new(status) }
    }
}

fn answer(
    method: &str,
    target: &str,
    headers: &HashMap<String, String>,
    body: Vec<u8>,
    port: u16,
    state: &mut State,
) -> Answer {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let authorization = headers.get("authorization").map(String::as_str);
    if path == "/token" {
        let is_right =
            authorization == Some(ALICE) && query.contains("scope=repository%3Ateam%2Ftool%3Apull%2Cpush");
        return match is_right {
            true => Answer { body: br#"{"token":"token"}"#.to_vec(), ..Answer::new(200) },
            false => Answer::refusal(401, "who are you"),
        };
    }
    let challenge = match state.gate {
        Gate::Password if authorization != Some(ALICE) => Some("Basic realm=\"test\"".to_owned()),
        Gate::Token if authorization != Some("Bearer token") => {
            Some(format!("Bearer realm=\"http://localhost:{port}/token\",service=\"test\""))
        }
        _ => None,
    };
    if let Some(challenge) = challenge {
        return Answer::refusal(401, "authentication required").with("WWW-Authenticate", challenge);
    }
    let path = path.trim_start_matches("/v2/");
    if let Some((repository, tag)) = path.split_once("/manifests/") {
        let named = digest(&body).to_string();
        state.manifests.insert(format!("{repository}:{tag}"), body);
        return Answer::new(201).with("Docker-Content-Digest", named);
    }
    let Some((repository, rest)) = path.split_once("/blobs/") else { return Answer::new(404) };
    let value = |name: &str| {
        let pair = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
        pair.map(|text| text.replace("%3A", ":").replace("%2F", "/"))
    };
    let at = |id: &str| format!("/v2/{repository}/blobs/uploads/{id}?state=x");
    match (method, rest.strip_prefix("uploads/")) {
        ("HEAD", None) => match state.blobs.contains_key(&(repository.to_owned(), rest.to_owned())) {
            true => Answer::new(200),
            false => Answer::new(404),
        },
        ("POST", Some("")) => {
            let known = value("from").zip(value("mount")).and_then(|key| state.blobs.get(&key).cloned());
            if let Some(content) = known {
                state.blobs.insert((repository.to_owned(), value("mount").unwrap()), content);
                return Answer::new(201);
            }
            let id = format!("upload-{}", state.requests.len());
            state.uploads.insert(id.clone(), Vec::new());
            Answer::new(202).with("Location", at(&id))
        }
        (_, Some(id)) => {
            let Some(upload) = state.uploads.get_mut(id) else {
                return Answer::refusal(404, "upload unknown");
            };
            if method == "GET" {
                let last = upload.len().saturating_sub(1);
                return Answer::new(204).with("Range", format!("0-{last}")).with("Location", at(id));
            }
            if method == "PATCH" {
                let begin = headers["content-range"].split('-').next().unwrap().parse::<usize>().unwrap();
                if begin != upload.len() {
                    return Answer::refusal(416, "out of order");
                }
                upload.extend(body);
                return Answer::new(202).with("Location", at(id));
            }
            upload.extend(body);
            let content = state.uploads.remove(id).unwrap();
            match Some(digest(&content).to_string()) == value("digest") {
                true => {
                    state.blobs.insert((repository.to_owned(), digest(&content).to_string()), content);
                    Answer::new(201)
                }
                false => Answer::refusal(400, "digest invalid"),
            }
        }
        _ => Answer::new(405),
    }
}
