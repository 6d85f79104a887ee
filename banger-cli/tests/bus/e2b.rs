//! `banger-e2b`, which serves E2B's API: what clients of its SDKs send, and what they get.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    host::{Host, skip, until},
    real::host_with_image,
};

/// A running server, and what a client knows of it.
struct Server {
    process: Child,
    socket: PathBuf,
    key: String,
}

/// A response.
#[derive(Debug)]
struct Response {
    status: u16,
    body: Vec<u8>,
}

impl Response {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// Returns the messages of a stream, and the last one.
    fn messages(&self) -> (Vec<Value>, Value) {
        let (mut rest, mut messages) = (&self.body[..], Vec::new());
        while let Some((head, after)) = rest.split_first_chunk::<5>() {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let message: Value = serde_json::from_slice(&after[..length]).unwrap();
            rest = &after[length..];
            if head[0] == 2 {
                assert!(rest.is_empty());
                return (messages, message);
            }
            messages.push(message);
        }
        panic!("the stream has no end: {messages:?}");
    }
}

impl Server {
    /// Starts a server on this host. Returns `None` if it was not built.
    fn start(host: &Host) -> Option<Self> {
        let program = Path::new(env!("CARGO_BIN_EXE_banger")).with_file_name("banger-e2b");
        if !program.exists() {
            skip("banger-e2b: build the whole workspace first");
            return None;
        }
        let socket = host.path("e2b.socket");
        let banger = host.command(&[]);
        let mut command = Command::new(program);
        command.arg("serve").arg("--listen").arg(&socket).stdin(Stdio::null());
        for (name, value) in banger.get_envs().filter_map(|(name, value)| Some((name, value?))) {
            command.env(name, value);
        }
        command.env_remove("XDG_STATE_HOME");
        let process = command.env("XDG_RUNTIME_DIR", host.path("runtime")).spawn().unwrap();
        until("it listens", || UnixStream::connect(&socket).is_ok());
        let key = fs::read_to_string(host.path("runtime/banger/e2b.key")).unwrap().trim().to_owned();
        Some(Self { process, socket, key })
    }

    fn request(&self, request: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        let mut head = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let body = &answer[end..];
        let body = if head.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_vec() };
        Response { status: head[9..12].parse().unwrap(), body }
    }

    /// Calls E2B's API.
    fn api(&self, request: &str, body: &Value) -> Response {
        self.request(request, &[("X-API-Key", &self.key)], body.to_string().as_bytes())
    }

    /// Calls the inside of a sandbox.
    fn inside(&self, sandbox: &Value, request: &str, kind: &str, body: &[u8]) -> Response {
        let headers = [
            ("E2b-Sandbox-Id", sandbox["sandboxID"].as_str().unwrap()),
            ("X-Access-Token", sandbox["envdAccessToken"].as_str().unwrap()),
            ("Content-Type", kind),
        ];
        self.request(request, &headers, body)
    }

    fn call(&self, sandbox: &Value, method: &str, body: &Value) -> Response {
        let text = body.to_string();
        self.inside(sandbox, &format!("POST /{method}"), "application/json", text.as_bytes())
    }

    /// Makes a call whose reply is a stream.
    fn stream(&self, sandbox: &Value, method: &str, body: &Value) -> Response {
        let text = body.to_string();
        let head = [&[0][..], &(text.len() as u32).to_be_bytes()].concat();
        let body = [&head[..], text.as_bytes()].concat();
        self.inside(sandbox, &format!("POST /{method}"), "application/connect+json", &body)
    }

    fn create(&self, body: &Value) -> Value {
        let created = self.api("POST /v2/sandboxes", body);
        assert_eq!(created.status, 201, "{}", created.text());
        created.json()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|window| window == b"\r\n").unwrap();
        let length = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return whole;
        }
        whole.extend(&body[end + 2..end + 2 + length]);
        body = &body[end + 4 + length..];
    }
}

fn bash(script: &str) -> Value {
    json!({ "process": { "cmd": "/bin/sh", "args": ["-c", script], "envs": { "B": "2" } }, "stdin": false })
}

#[test]
fn commands_and_files_of_e2b_clients_reach_the_sandbox() {
    let host = Host::new();
    let Some(server) = Server::start(&host) else { return };
    let sandbox = server.create(&json!({ "templateID": "debian", "envVars": { "A": "1", "B": "0" } }));

    let started = server.stream(&sandbox, "process.Process/Start", &bash("echo $A$B; echo e >&2; exit 3"));
    let (messages, end) = started.messages();
    assert_eq!(end, json!({}));
    assert!(messages[0]["event"]["start"]["pid"].is_u64(), "{messages:?}");
    let output = messages.iter().find_map(|message| message["event"]["data"]["stdout"].as_str());
    let errors = messages.iter().find_map(|message| message["event"]["data"]["stderr"].as_str());
    assert_eq!((output, errors), (Some("MTIK"), Some("ZQo=")));
    assert_eq!(messages.last().unwrap()["event"]["end"]["exitCode"], 3);
    let wrong = json!({ "process": { "cmd": "/nonexistent/program" }, "stdin": false });
    let (_, end) = server.stream(&sandbox, "process.Process/Start", &wrong).messages();
    assert_eq!(end["error"]["code"], "invalid_argument");

    let path = host.path("guest/sub/a b");
    let path = path.to_str().unwrap();
    let form = format!(
        "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{path}\"\r\n\r\nhello\r\n--x--\r\n"
    );
    let written = server.inside(&sandbox, "POST /files", "multipart/form-data; boundary=x", form.as_bytes());
    assert_eq!((written.status, written.json()[0]["path"].as_str()), (200, Some(path)), "{}", written.text());
    assert_eq!(fs::read(path).unwrap(), b"hello");
    let query = format!("/files?path={}", path.replace(' ', "%20"));
    assert_eq!(server.inside(&sandbox, &format!("GET {query}"), "", b"").text(), "hello");
    let large = vec![7; 3 << 20];
    let written = server.inside(&sandbox, &format!("POST {query}"), "application/octet-stream", &large);
    assert_eq!(written.status, 200, "{}", written.text());
    assert!(server.inside(&sandbox, &format!("GET {query}"), "", b"").body == large);
    assert_eq!(server.inside(&sandbox, "GET /files?path=/nonexistent", "", b"").status, 404);

    let stat = server.call(&sandbox, "filesystem.Filesystem/Stat", &json!({ "path": path })).json();
    assert_eq!(stat["entry"]["size"], "3145728");
    let list = server.call(&sandbox, "filesystem.Filesystem/ListDir", &json!({ "path": host.path("guest") }));
    assert_eq!(list.json()["entries"][0]["type"], "FILE_TYPE_DIRECTORY");
    let absent = server.call(&sandbox, "filesystem.Filesystem/Stat", &json!({ "path": "/nonexistent" }));
    assert_eq!((absent.status, absent.json()["code"].as_str()), (404, Some("not_found")));
}

#[test]
fn commands_of_e2b_clients_get_input_and_signals() {
    let host = Host::new();
    let Some(server) = Server::start(&host) else { return };
    let sandbox = server.create(&json!({ "templateID": "debian" }));
    let processes = || {
        let list = server.call(&sandbox, "process.Process/List", &json!({}));
        list.json()["processes"].as_array().unwrap().clone()
    };
    let begin = |script: &str| {
        let mut call = bash(script);
        call["stdin"] = true.into();
        std::thread::scope(|scope| {
            let started = scope.spawn(|| server.stream(&sandbox, "process.Process/Start", &call).messages());
            until("it runs", || !processes().is_empty());
            let selected = json!({ "process": { "pid": processes()[0]["pid"] } });
            let with = |more: Value| {
                let mut call = selected.clone();
                call.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                call
            };
            if script == "cat" {
                let input = with(json!({ "input": { "stdin": "aGVsbG8=" } }));
                assert_eq!(server.call(&sandbox, "process.Process/SendInput", &input).status, 200);
                assert_eq!(server.call(&sandbox, "process.Process/CloseStdin", &selected).status, 200);
            } else {
                let signal = with(json!({ "signal": "SIGNAL_SIGKILL" }));
                assert_eq!(server.call(&sandbox, "process.Process/SendSignal", &signal).status, 200);
            }
            let messages = started.join().unwrap().0;
            assert!(processes().is_empty());
            assert_eq!(server.call(&sandbox, "process.Process/SendSignal", &selected).status, 404);
            messages
        })
    };
    let messages = begin("cat");
    assert_eq!(messages[1]["event"]["data"]["stdout"], "aGVsbG8=");
    assert_eq!(messages[2]["event"]["end"]["exitCode"], 0);
    let messages = begin("sleep 1000");
    assert_eq!(messages.last().unwrap()["event"]["end"]["status"], "signal: killed");
}

#[test]
fn nobody_without_the_key_gets_in_and_what_is_not_served_says_so() {
    let host = Host::new();
    let Some(server) = Server::start(&host) else { return };
    let wrong = format!("{}0", server.key);
    for headers in [&[][..], &[("X-API-Key", "")], &[("X-API-Key", &*wrong)]] {
        assert_eq!(server.request("GET /v2/sandboxes", headers, b"").status, 401);
        assert_eq!(server.request("POST /sandboxes", headers, b"{}").status, 401);
    }
    assert!(host.calls("CreateVM").is_empty());
    let mut sandbox = server.create(&json!({ "templateID": "debian" }));
    let stat = json!({ "path": "/" });
    assert_eq!(server.call(&sandbox, "filesystem.Filesystem/Stat", &stat).status, 200);
    let host_sandbox = sandbox.clone();
    sandbox["sandboxID"] = "another".into();
    let refused = server.call(&sandbox, "filesystem.Filesystem/Stat", &stat);
    assert_eq!((refused.status, refused.json()["code"].as_str()), (401, Some("unauthenticated")));
    assert_eq!(server.inside(&sandbox, "GET /files?path=/etc/passwd", "", b"").status, 401);

    for request in ["GET /templates", "POST /sandboxes/x/fork", "GET /nothing"] {
        let answer = server.api(request, &json!({}));
        assert_eq!(answer.status, 501, "{request}");
        assert!(answer.json()["message"].as_str().unwrap().contains("does not serve"), "{request}");
    }
    let watch = server.call(&sandbox, "filesystem.Filesystem/CreateWatcher", &json!({ "path": "/" }));
    assert_eq!(watch.status, 401);
    sandbox = host_sandbox.clone();
    let watch = server.call(&sandbox, "filesystem.Filesystem/CreateWatcher", &json!({ "path": "/" }));
    assert_eq!((watch.status, watch.json()["code"].as_str()), (501, Some("unimplemented")));
    let (_, end) =
        server.stream(&sandbox, "filesystem.Filesystem/WatchDir", &json!({ "path": "/" })).messages();
    assert_eq!(end["error"]["code"], "unimplemented");
    let refused = server.api("POST /sandboxes", &json!({ "templateID": "debian", "mcp": { "a": {} } }));
    assert_eq!(refused.status, 501);
    assert_eq!(host.calls("CreateVM").len(), 1);
}

#[test]
fn sandboxes_of_e2b_clients_live_and_end_also_after_a_restart() {
    let Some(host) = host_with_image() else { return };
    let Some(server) = Server::start(&host) else { return };
    let metadata = json!({ "user": "abc", "a=b": "c d" });
    let sandbox = server.create(&json!({ "templateID": "base", "metadata": metadata, "timeout": 1000 }));
    let id = sandbox["sandboxID"].as_str().unwrap();
    assert_eq!(host.banger(&["vm", "create", "--name", "other"]).status, 0);
    let list = |server: &Server, query: &str| {
        server.api(&format!("GET /v2/sandboxes{query}"), &json!({})).json().as_array().unwrap().clone()
    };
    assert_eq!(list(&server, "").len(), 1);
    assert_eq!(list(&server, "?metadata=user%3Dabc")[0]["metadata"], metadata);
    assert!(list(&server, "?metadata=user%3Dabd").is_empty());
    assert!(list(&server, "?state=paused").is_empty());
    let end = |server: &Server| {
        server.api(&format!("GET /sandboxes/{id}"), &json!({})).json()["endAt"].as_str().unwrap().to_owned()
    };
    let before = end(&server);
    let timeout = json!({ "timeout": 5000 });
    assert_eq!(server.api(&format!("POST /sandboxes/{id}/timeout"), &timeout).status, 204);
    let after = end(&server);
    assert!(after > before, "{before} {after}");
    let timeout = json!({ "timeout": 1u64 << 40 });
    assert_eq!(server.api(&format!("POST /sandboxes/{id}/timeout"), &timeout).status, 400);
    // Not even its owner's other sandboxes are reached, nor by a part of an id.
    for other in ["other", &id[..8], "nothing"] {
        assert_eq!(server.api(&format!("GET /sandboxes/{other}"), &json!({})).status, 404, "{other}");
        assert_eq!(server.api(&format!("DELETE /sandboxes/{other}"), &json!({})).status, 404, "{other}");
    }

    drop(server);
    let server = Server::start(&host).unwrap();
    assert_eq!(end(&server), after);
    assert_eq!(server.inside(&sandbox, "GET /health", "", b"").status, 204);
    assert_eq!(server.api(&format!("DELETE /sandboxes/{id}"), &json!({})).status, 204);
    assert_eq!(server.api(&format!("DELETE /sandboxes/{id}"), &json!({})).status, 404);
    assert_eq!(server.inside(&sandbox, "GET /health", "", b"").status, 502);

    server.create(&json!({ "templateID": "base", "timeout": 0 }));
    until("its time is over", || list(&server, "").is_empty());
    assert!(host.banger(&["vm", "list", "-q"]).output.contains("other"));
}
