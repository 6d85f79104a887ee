//! Commands in a sandbox: the service `process.Process` of envd.
//!
//! A command is a run of `banger exec`, and its number one of this program's own. It goes on when the client that
//! started it leaves, and other clients can follow what it writes from then on. A client that reads slowly slows the
//! command down, as a pipe would.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::OwnedFd,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{StatusCode, body::Incoming, http::request::Parts};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::ChildStdin,
    sync::mpsc,
    time::{sleep, timeout},
};

use super::user;
use crate::{
    banger::{Exec, Running},
    connect::{self, Decoder},
    http::{Body, Code, Refusal, Response, Result, Stream, header, read, read_json, with_type},
    server::Server,
};

/// Limit on commands at a time.
const MAX_PROCESSES: usize = 128;
/// Limit on clients that follow one command.
const MAX_LISTENERS: usize = 16;
/// How many messages wait for a client.
const QUEUE: usize = 16;
/// How many pieces of input wait for a command.
const INPUTS: usize = 16;
/// How much output is read at once.
const PIECE: usize = 32 << 10;
/// How long a client may read nothing before it counts as gone.
const STALL: Duration = Duration::from_secs(300);
/// How long input may wait for a command that does not read.
const INPUT: Duration = Duration::from_secs(60);
/// The shortest interval of messages that keep a connection alive.
const MIN_KEEPALIVE: Duration = Duration::from_secs(1);
/// The first number of a command.
const FIRST: u32 = 1000;

#[derive(Deserialize)]
struct Start {
    process: Config,
    pty: Option<Value>,
    tag: Option<String>,
    // Older SDKs leave it out and expect an input.
    stdin: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
struct Config {
    cmd: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    envs: BTreeMap<String, String>,
    cwd: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Selector {
    pid: Option<u32>,
    tag: Option<String>,
}

#[derive(Deserialize)]
struct Selected {
    #[serde(default)]
    process: Selector,
    signal: Option<Value>,
    input: Option<Input>,
}

#[derive(Deserialize)]
struct Input {
    stdin: Option<String>,
}

/// A message of a stream of input.
#[derive(Deserialize)]
struct Streamed {
    start: Option<Selected>,
    data: Option<Selected>,
}

/// The commands that run.
#[derive(Default)]
pub struct Processes(Mutex<Table>);

#[derive(Default)]
struct Table {
    running: HashMap<u32, Arc<Process>>,
    last: u32,
}

struct Process {
    pid: u32,
    sandbox: String,
    config: Config,
    tag: Option<String>,
    /// The process of `banger`.
    handle: OwnedFd,
    killed: AtomicBool,
    late: AtomicBool,
    /// None once the input is closed.
    input: Mutex<Option<mpsc::Sender<Bytes>>>,
    /// None once the command has ended.
    listeners: Mutex<Option<Vec<Stream>>>,
}

/// Locks what no panic can leave half-changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers a call.
pub async fn answer(server: &Server, sandbox: &str, method: &str, parts: &Parts, body: Incoming) -> Response {
    match method {
        "Start" => streamed(start(server, sandbox, parts, body).await),
        "Connect" => streamed(follow(server, sandbox, parts, body).await),
        "StreamInput" => {
            let result = stream_input(server, sandbox, parts, body).await;
            let messages = match result {
                Ok(()) => [connect::message(&json!({})), connect::end(Ok(()))].concat(),
                Err(refusal) => connect::end(Err(refusal)).to_vec(),
            };
            with_type(StatusCode::OK, connect::STREAM, Body::Whole(messages.into()))
        }
        _ => connect::reply(reply(server, sandbox, method, parts, body).await),
    }
}

/// Returns a stream of replies. Errors are messages in it.
fn streamed(result: Result<mpsc::Receiver<io::Result<Bytes>>>) -> Response {
    let body = match result {
        Ok(receiver) => Body::Stream(receiver),
        Err(refusal) => Body::Whole(connect::end(Err(refusal))),
    };
    with_type(StatusCode::OK, connect::STREAM, body)
}

async fn reply(server: &Server, sandbox: &str, method: &str, parts: &Parts, body: Incoming) -> Result<Value> {
    if !matches!(method, "List" | "SendInput" | "SendSignal" | "CloseStdin") {
        return Err(Refusal::unimplemented(format!("{method} of commands")));
    }
    connect::check(parts, false)?;
    if method == "List" {
        server.sandboxes.check_running(sandbox).await?;
        return Ok(json!({ "processes": server.processes.list(sandbox) }));
    }
    let call: Selected = read_json(body).await?;
    let process = server.processes.find(sandbox, &call.process)?;
    match method {
        "SendInput" => process.send_input(call.input).await?,
        "CloseStdin" => drop(locked(&process.input).take()),
        _ => match call.signal.as_ref().map(|signal| (signal.as_str(), signal.as_u64())) {
            Some((Some("SIGNAL_SIGKILL"), _) | (_, Some(9))) => process.kill(),
            // `banger` passes it on.
            Some((Some("SIGNAL_SIGTERM"), _) | (_, Some(15))) => process.signal(Signal::TERM),
            _ => {
                return Err(Refusal::new(
                    Code::InvalidArgument,
                    "The signal is neither SIGTERM nor SIGKILL.",
                ));
            }
        },
    }
    Ok(json!({}))
}

/// Reads the one message of a call whose replies are a stream.
async fn first_message<T: for<'a> Deserialize<'a>>(parts: &Parts, body: Incoming) -> Result<T> {
    connect::check(parts, true)?;
    let mut decoder = Decoder::default();
    decoder.push(&read(body).await?);
    let missing = || Refusal::new(Code::InvalidArgument, "The call has no message.");
    parsed(&decoder.next_message()?.ok_or_else(missing)?)
}

fn parsed<T: for<'a> Deserialize<'a>>(message: &[u8]) -> Result<T> {
    serde_json::from_slice(message)
        .map_err(|error| Refusal::new(Code::InvalidArgument, format!("The message cannot be read: {error}.")))
}

async fn start(
    server: &Server,
    sandbox: &str,
    parts: &Parts,
    body: Incoming,
) -> Result<mpsc::Receiver<io::Result<Bytes>>> {
    let user = user(parts)?;
    let limit = milliseconds(parts, "connect-timeout-ms")?;
    let keepalive = milliseconds(parts, "keepalive-ping-interval")?;
    let call: Start = first_message(parts, body).await?;
    if call.pty.is_some() {
        return Err(Refusal::unimplemented("terminals"));
    }
    server.sandboxes.check_running(sandbox).await?;
    let mut variables = server.sandboxes.variables(sandbox)?;
    variables.extend(call.process.envs.clone());
    let argv = [&[call.process.cmd.clone()][..], &call.process.args].concat();
    let exec = Exec {
        user,
        directory: call.process.cwd.clone().filter(|directory| !directory.is_empty()),
        variables: variables.into_iter().collect(),
        argv,
        has_input: call.stdin.unwrap_or(true),
    };
    let begun = |running: &mut Running| {
        let pid = running.child.id().and_then(|pid| Pid::from_raw(pid as i32));
        let gone = || io::Error::other("the command is gone");
        Ok::<_, io::Error>(pidfd_open(pid.ok_or_else(gone)?, PidfdFlags::empty())?)
    };
    let new = |pid: u32| {
        let mut running = server.banger.exec(sandbox, &exec)?;
        let handle = begun(&mut running)?;
        let input = running.child.stdin.take().map(|stdin| {
            let (sender, receiver) = mpsc::channel(INPUTS);
            tokio::spawn(write_input(stdin, receiver));
            sender
        });
        let process = Process {
            pid,
            sandbox: sandbox.to_owned(),
            config: call.process.clone(),
            tag: call.tag.clone(),
            handle,
            killed: AtomicBool::new(false),
            late: AtomicBool::new(false),
            input: Mutex::new(input),
            listeners: Mutex::new(Some(Vec::new())),
        };
        Ok((process, running))
    };
    let (process, running) = server.processes.add(new)?;
    let receiver = process.listen(keepalive)?;
    tokio::spawn(pump(Arc::clone(&server.processes), process, running, limit));
    Ok(receiver)
}

async fn follow(
    server: &Server,
    sandbox: &str,
    parts: &Parts,
    body: Incoming,
) -> Result<mpsc::Receiver<io::Result<Bytes>>> {
    let call: Selected = first_message(parts, body).await?;
    server.processes.find(sandbox, &call.process)?.listen(milliseconds(parts, "keepalive-ping-interval")?)
}

/// Reads a header with a time: in milliseconds, or in seconds for the interval of messages.
fn milliseconds(parts: &Parts, name: &str) -> Result<Option<Duration>> {
    let Some(text) = header(parts, name) else { return Ok(None) };
    let invalid = |_| Refusal::new(Code::InvalidArgument, format!("The header {name} is no number."));
    let number: u32 = text.parse().map_err(invalid)?;
    let time = if name.ends_with("-ms") { Duration::from_millis } else { Duration::from_secs };
    Ok((number > 0).then(|| time(number.into())))
}

async fn stream_input(server: &Server, sandbox: &str, parts: &Parts, mut body: Incoming) -> Result<()> {
    connect::check(parts, true)?;
    let (mut decoder, mut process) = (Decoder::default(), None);
    while let Some(frame) = body.frame().await {
        let broken = |error| Refusal::new(Code::InvalidArgument, format!("The stream ended early: {error}."));
        let Ok(bytes) = frame.map_err(broken)?.into_data() else { continue };
        decoder.push(&bytes);
        while let Some(message) = decoder.next_message()? {
            let message: Streamed = parsed(&message)?;
            if let Some(start) = message.start {
                process = Some(server.processes.find(sandbox, &start.process)?);
            }
            if let Some(data) = message.data {
                let missing = || Refusal::new(Code::InvalidArgument, "The stream names no command.");
                process.as_ref().ok_or_else(missing)?.send_input(data.input).await?;
            }
        }
    }
    decoder.finish()
}

impl Processes {
    /// Starts a command under a number of its own, if there is room for it.
    fn add(&self, new: impl FnOnce(u32) -> Result<(Process, Running)>) -> Result<(Arc<Process>, Running)> {
        let mut table = locked(&self.0);
        if table.running.len() >= MAX_PROCESSES {
            let message = format!("{MAX_PROCESSES} commands run, which is the limit of banger-e2b.");
            return Err(Refusal::new(Code::ResourceExhausted, message));
        }
        let mut pid = table.last;
        loop {
            pid = pid.wrapping_add(1).max(FIRST);
            if !table.running.contains_key(&pid) {
                break;
            }
        }
        let (process, running) = new(pid)?;
        let process = Arc::new(process);
        table.last = pid;
        table.running.insert(pid, Arc::clone(&process));
        Ok((process, running))
    }

    fn find(&self, sandbox: &str, selector: &Selector) -> Result<Arc<Process>> {
        let matches = |process: &&Arc<Process>| {
            let is_it = match (selector.pid, &selector.tag) {
                (Some(pid), _) => process.pid == pid,
                (None, Some(tag)) => process.tag.as_ref() == Some(tag),
                (None, None) => false,
            };
            is_it && process.sandbox == sandbox
        };
        let found = locked(&self.0).running.values().find(matches).cloned();
        found.ok_or_else(|| Refusal::new(Code::NotFound, "There is no such command, or it has ended."))
    }

    fn list(&self, sandbox: &str) -> Vec<Value> {
        let table = locked(&self.0);
        let mut of_sandbox: Vec<_> =
            table.running.values().filter(|process| process.sandbox == sandbox).collect();
        of_sandbox.sort_by_key(|process| process.pid);
        of_sandbox.into_iter().map(|process| process.described()).collect()
    }
}

impl Process {
    fn described(&self) -> Value {
        let Config { cmd, args, envs, cwd } = &self.config;
        let mut described = json!({ "pid": self.pid, "config": { "cmd": cmd, "args": args, "envs": envs } });
        if let Some(cwd) = cwd {
            described["config"]["cwd"] = json!(cwd);
        }
        if let Some(tag) = &self.tag {
            described["tag"] = json!(tag);
        }
        described
    }

    /// Returns what the command writes from now on.
    fn listen(&self, keepalive: Option<Duration>) -> Result<mpsc::Receiver<io::Result<Bytes>>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        {
            let mut listeners = locked(&self.listeners);
            let ended = || Refusal::new(Code::NotFound, "The command has ended.");
            let listeners = listeners.as_mut().ok_or_else(ended)?;
            listeners.retain(|listener| !listener.is_closed());
            if listeners.len() >= MAX_LISTENERS {
                let message = format!("{MAX_LISTENERS} clients follow the command, which is the limit.");
                return Err(Refusal::new(Code::ResourceExhausted, message));
            }
            // There is room: nothing was sent before.
            let _ = sender.try_send(Ok(event(&json!({ "start": { "pid": self.pid } }))));
            listeners.push(sender.clone());
        }
        if let Some(interval) = keepalive {
            let sender = sender.downgrade();
            tokio::spawn(async move {
                loop {
                    sleep(interval.max(MIN_KEEPALIVE)).await;
                    let Some(sender) = sender.upgrade() else { return };
                    // A full queue keeps the connection alive too.
                    if let Err(mpsc::error::TrySendError::Closed(_)) =
                        sender.try_send(Ok(event(&json!({ "keepalive": {} }))))
                    {
                        return;
                    }
                }
            });
        }
        Ok(receiver)
    }

    /// Sends a message to every client that follows. One that has gone, or reads nothing, is left out from then on.
    async fn send(&self, message: &Bytes) {
        let listeners = locked(&self.listeners).clone().unwrap_or_default();
        for listener in listeners {
            let sent = timeout(STALL, listener.send(Ok(message.clone()))).await;
            if !matches!(sent, Ok(Ok(()))) {
                let mut all = locked(&self.listeners);
                all.iter_mut().for_each(|all| all.retain(|one| !one.same_channel(&listener)));
            }
        }
    }

    async fn send_input(&self, input: Option<Input>) -> Result<()> {
        let Some(text) = input.and_then(|input| input.stdin) else {
            return Err(Refusal::unimplemented("input for terminals"));
        };
        let invalid = |_| Refusal::new(Code::InvalidArgument, "The input is no base64.");
        let bytes = BASE64_STANDARD.decode(text).map_err(invalid)?;
        let closed = || Refusal::new(Code::InvalidArgument, "The input of the command is closed.");
        let sender = locked(&self.input).clone().ok_or_else(closed)?;
        match timeout(INPUT, sender.send(bytes.into())).await {
            Ok(sent) => sent.map_err(|_| closed()),
            Err(_) => Err(Refusal::new(Code::DeadlineExceeded, "The command does not read its input.")),
        }
    }

    /// Ends `banger`, whereupon the guest ends everything that the command has started.
    fn kill(&self) {
        self.killed.store(true, Relaxed);
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // If it has ended, there is nothing to do.
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    /// Returns how the command ended: the event, and the end of the stream.
    fn ending(&self, status: Option<i32>, failure: Option<Refusal>) -> (Option<Bytes>, Result<()>) {
        if self.late.load(Relaxed) {
            return (None, Err(Refusal::new(Code::DeadlineExceeded, "The command took too long.")));
        }
        if self.killed.load(Relaxed) {
            let end = json!({
                "exitCode": -1, "exited": false, "status": "signal: killed", "error": "signal: killed",
            });
            return (Some(event(&json!({ "end": end }))), Ok(()));
        }
        match (failure, status) {
            (Some(failure), _) => (None, Err(failure)),
            (None, Some(code)) => {
                let mut end =
                    json!({ "exitCode": code, "exited": true, "status": format!("exit status {code}") });
                if code != 0 {
                    end["error"] = end["status"].clone();
                }
                (Some(event(&json!({ "end": end }))), Ok(()))
            }
            (None, None) => (None, Err(Refusal::new(Code::Internal, "The command banger was killed."))),
        }
    }
}

fn event(event: &Value) -> Bytes {
    connect::message(&json!({ "event": event }))
}

fn output(stream: &str, bytes: &[u8]) -> Bytes {
    event(&json!({ "data": { stream: BASE64_STANDARD.encode(bytes) } }))
}

/// Passes a command's output on until it has ended.
async fn pump(
    processes: Arc<Processes>,
    process: Arc<Process>,
    mut running: Running,
    limit: Option<Duration>,
) {
    let (stdout, stderr) = (running.child.stdout.take(), running.child.stderr.take());
    let status = {
        let mut outputs = pin!(async {
            tokio::join!(pass_on(&process, "stdout", stdout), pass_on(&process, "stderr", stderr));
            running.child.wait().await.ok().and_then(|status| status.code())
        });
        match limit {
            Some(limit) => match timeout(limit, &mut outputs).await {
                Ok(status) => status,
                Err(_) => {
                    process.late.store(true, Relaxed);
                    process.signal(Signal::KILL);
                    outputs.await
                }
            },
            None => outputs.await,
        }
    };
    let (end, result) = process.ending(status, running.failure(status));
    locked(&processes.0).running.remove(&process.pid);
    drop(locked(&process.input).take());
    if let Some(end) = end {
        process.send(&end).await;
    }
    process.send(&connect::end(result)).await;
    drop(locked(&process.listeners).take());
}

async fn pass_on(process: &Process, stream: &str, from: Option<impl AsyncRead + Unpin>) {
    let Some(mut from) = from else { return };
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        process.send(&output(stream, &piece[..length])).await;
    }
}

/// Writes input to a command until it is closed or the command reads no more.
async fn write_input(mut stdin: ChildStdin, mut input: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = input.recv().await {
        if stdin.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;

    use super::*;

    fn process() -> Process {
        Process {
            pid: 7,
            sandbox: "a".into(),
            config: Config { cmd: "sh".into(), args: Vec::new(), envs: BTreeMap::new(), cwd: None },
            tag: Some("t".into()),
            handle: File::open("/dev/null").unwrap().into(),
            killed: AtomicBool::new(false),
            late: AtomicBool::new(false),
            input: Mutex::new(None),
            listeners: Mutex::new(Some(Vec::new())),
        }
    }

    fn text(message: &Bytes) -> Value {
        serde_json::from_slice(&message[5..]).unwrap()
    }

    #[tokio::test]
    async fn each_client_gets_what_is_written_from_its_arrival_on() {
        let process = process();
        let mut first = process.listen(None).unwrap();
        process.send(&output("stdout", b"1")).await;
        let mut second = process.listen(None).unwrap();
        drop(process.listen(None).unwrap());
        process.send(&output("stderr", b"2")).await;
        let all = async |receiver: &mut mpsc::Receiver<io::Result<Bytes>>| {
            let mut all = Vec::new();
            while let Ok(message) = receiver.try_recv() {
                all.push(text(&message.unwrap())["event"].clone());
            }
            all
        };
        let start = json!({ "start": { "pid": 7 } });
        let (one, two) = (json!({ "data": { "stdout": "MQ==" } }), json!({ "data": { "stderr": "Mg==" } }));
        assert_eq!(all(&mut first).await, [start.clone(), one, two.clone()]);
        assert_eq!(all(&mut second).await, [start, two]);
        assert_eq!(locked(&process.listeners).as_ref().unwrap().len(), 2);
    }

    #[test]
    fn a_command_that_has_ended_or_that_many_follow_has_no_new_client() {
        let process = process();
        let all: Vec<_> = (0..MAX_LISTENERS).map(|_| process.listen(None).unwrap()).collect();
        assert_eq!(process.listen(None).unwrap_err().code, Code::ResourceExhausted);
        drop(all);
        process.listen(None).unwrap();
        drop(locked(&process.listeners).take());
        assert_eq!(process.listen(None).unwrap_err().code, Code::NotFound);
    }

    #[test]
    fn how_a_command_ended_is_told_as_envd_does() {
        let process = process();
        let (end, result) = process.ending(Some(3), None);
        let expected = json!({
            "exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3",
        });
        assert_eq!((text(&end.unwrap())["event"]["end"].clone(), result), (expected, Ok(())));
        let failure = Refusal::new(Code::InvalidArgument, "there is no program x.");
        assert_eq!(process.ending(Some(127), Some(failure.clone())), (None, Err(failure)));
        process.killed.store(true, Relaxed);
        let (end, _) = process.ending(None, None);
        assert_eq!(text(&end.unwrap())["event"]["end"]["error"], "signal: killed");
        process.late.store(true, Relaxed);
        assert_eq!(process.ending(None, None).1.unwrap_err().code, Code::DeadlineExceeded);
    }

    #[test]
    fn commands_are_found_in_their_own_sandbox_only() {
        let processes = Processes::default();
        locked(&processes.0).running.insert(7, Arc::new(process()));
        let find = |sandbox: &str, pid: Option<u32>, tag: Option<&str>| {
            processes.find(sandbox, &Selector { pid, tag: tag.map(str::to_owned) }).is_ok()
        };
        assert!(find("a", Some(7), None) && find("a", None, Some("t")));
        assert!(!find("b", Some(7), None) && !find("b", None, Some("t")) && !find("a", None, None));
        assert_eq!(processes.list("a")[0]["config"], json!({ "cmd": "sh", "args": [], "envs": {} }));
        assert!(processes.list("b").is_empty());
    }
}
