//! The guest protocol as earlier versions spoke it: guests that were started before an upgrade still have their agent.
//!
//! `tests/records` has a file for each version that was released, with one frame on each line: who sends it, its type,
//! and its payload. `BANGER_RECORD=0.2.0 cargo test -p banger-proto --test records` writes that of a release.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{env, fs, path::PathBuf};

use banger_proto::guest::{
    Decoder, Exec, Failure, FailureKind, Frame, GuestInfo, REVISION, Request, Terminal, VERSION,
    hello::{HostHello, Verdict, answer, take_answer},
    message::{
        Algorithm, CopyIn, CopyOut, CopyOwner, DetachedLog, Endpoint, Exit, Phase, Phases, Placement,
        RegistryHelper, Started, WindowSize,
    },
    mount::Mount,
};
use serde_json::Value;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const NONCE: [u8; 16] = *b"a recorded nonce";

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/records")
}

/// What clients and the service ask of an agent. A configuration is missing: the service that sends it has also put the
/// agent into the guest.
fn requests() -> Vec<Request> {
    let text = str::to_owned;
    let terminal = Terminal { term: text("xterm"), size: WindowSize { rows: 24, columns: 80 } };
    let all_of_exec = Exec {
        argv: ["sh", "-c", "exit 42"].map(text).into(),
        of_image: true,
        env: vec![(text("A"), text("b c"))],
        unset: vec![text("B")],
        path: vec![text("/run/a/bin")],
        cwd: Some(text("/tmp")),
        user: Some(text("root")),
        terminal: Some(terminal),
        detach: true,
        power_off: true,
        locale: vec![(text("LANG"), text("C.UTF-8"))],
        wait: Phase::Boot,
        session: Some(text("work")),
    };
    vec![
        Request::Exec(Exec { argv: vec![text("true")], ..Exec::default() }),
        Request::Exec(all_of_exec),
        Request::Shutdown,
        Request::Info,
        Request::PutTar { directory: text("/root"), placement: Placement::Merge },
        Request::PutTar { directory: text("/root"), placement: Placement::Replace },
        Request::CopyIn(CopyIn { to: text("~/a"), top: None, owner: CopyOwner::Login }),
        Request::CopyIn(CopyIn {
            to: text("/a/"),
            top: Some(text("b")),
            owner: CopyOwner::User(text("a:b")),
        }),
        Request::CopyOut(CopyOut { path: text("/a"), top: None, follow: false }),
        Request::CopyOut(CopyOut { path: text("/a"), top: Some(text("b")), follow: true }),
        Request::List { directory: text("/root") },
        Request::Digest { directory: text("/root"), algorithm: Algorithm::Sha256 },
        Request::GetFiles { directory: text("/root") },
        Request::Remove { directory: text("/root") },
        Request::Connect(Endpoint::Tcp(text("localhost"), 80)),
        Request::Connect(Endpoint::Unix(text("/run/a"))),
        Request::Listen(Endpoint::Tcp(text("localhost"), 80)),
        Request::Accept(7),
        Request::RegistryHelper(RegistryHelper {
            directory: text("/run/a"),
            registries: vec![text("ghcr.io")],
            user: text("root"),
        }),
        Request::Ports,
        Request::Stats,
        Request::SetTime { unix_usec: 7 },
        Request::Wait(Phase::Init),
        Request::Clock,
        Request::Detached,
        Request::DetachedLog(DetachedLog { id: 7, lines: None, follow: false }),
        Request::DetachedLog(DetachedLog { id: 7, lines: Some(8), follow: true }),
        Request::WaitDetached(7),
        Request::StopDetached(7),
        Request::PrepareCommit,
        Request::Complete { path: text("/a/b") },
        Request::Mount(Mount { path: text("/a"), read_only: true, user: Some(text("b")) }),
        Request::Mount(Mount { path: text("/a"), read_only: false, user: None }),
    ]
}

fn of_host() -> Vec<Frame> {
    let mut frames: Vec<Frame> = requests().into_iter().map(Frame::Request).collect();
    frames.extend([
        Frame::Input(vec![0, 1, 255]),
        Frame::InputEnd,
        Frame::Resize(WindowSize { rows: 1, columns: 2 }),
        Frame::Signal(15),
    ]);
    frames
}

fn of_agent() -> Vec<Frame> {
    let info = GuestInfo {
        boot_id: "a-boot".into(),
        kernel_release: "6.1.0".into(),
        agent_version: "0.1.0".into(),
        problems: vec!["no /dev/vdc".into()],
        stopping: true,
        phases: Phases { agent: Some(1), init: Some(2), boot: None },
        ..GuestInfo::default()
    };
    vec![
        Frame::Started(Started { pid: 12, alive_sec: 5 }),
        Frame::Output(b"out\n".to_vec()),
        Frame::ErrorOutput(Vec::new()),
        Frame::Window(1 << 20),
        Frame::Exit(Exit::Code(42)),
        Frame::Exit(Exit::Signal(9)),
        Frame::Info(info),
        Frame::Done,
        Frame::Failed(Failure { kind: FailureKind::NotFound, message: "no such program".into() }),
    ]
}

/// Who sends a frame of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Host,
    Agent,
}

/// A line of a record.
struct Recorded {
    line: String,
    sender: Sender,
    kind: u8,
    payload: Vec<u8>,
}

impl Recorded {
    fn parse(line: &str) -> Self {
        let mut words = line.splitn(3, ' ');
        let sender = match words.next().unwrap() {
            "host" => Sender::Host,
            "agent" => Sender::Agent,
            other => panic!("{other} sends nothing"),
        };
        let kind = u8::from_str_radix(words.next().unwrap(), 16).unwrap();
        let payload = match words.next().unwrap() {
            hex if hex.starts_with('x') => bytes(&hex[1..]),
            json => json.as_bytes().to_vec(),
        };
        Self { line: line.to_owned(), sender, kind, payload }
    }

    fn frame(&self) -> Frame {
        let mut bytes = (self.payload.len() as u32).to_be_bytes().to_vec();
        bytes.push(self.kind);
        bytes.extend(&self.payload);
        let frame = Decoder::new(bytes).next_frame().unwrap_or_else(|error| panic!("{}: {error}", self.line));
        frame.unwrap_or_else(|| panic!("{} is not complete", self.line))
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the line of a frame: messages as they are sent, and other bytes in hexadecimal digits after an `x`.
fn line(sender: &str, frame: &Frame) -> String {
    let encoded = frame.encode();
    let (kind, payload) = (encoded[4], &encoded[5..]);
    let text = match payload.first() {
        Some(b'{' | b'"') => String::from_utf8(payload.to_vec()).unwrap(),
        _ => format!("x{}", hex(payload)),
    };
    format!("{sender} {kind:02x} {text}\n")
}

fn records() -> Vec<(String, String)> {
    if let Ok(version) = env::var("BANGER_RECORD") {
        let host = of_host().iter().map(|frame| line("host", frame)).collect::<String>();
        let agent = of_agent().iter().map(|frame| line("agent", frame)).collect::<String>();
        fs::write(directory().join(version), host + &agent).unwrap();
    }
    let files = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    let mut records: Vec<(String, String)> = files
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap())
        })
        .collect();
    records.sort();
    records
}

/// Whether everything in one value is in another, which may have more keys.
fn is_within(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|other| is_within(value, other)))
        }
        (part, whole) => part == whole,
    }
}

#[test]
fn frames_of_earlier_versions_are_understood_and_requests_are_still_sent_like_that() {
    let records = records();
    assert!(records.iter().any(|(version, _)| version == "0.1.0"));
    for (version, text) in records {
        let (mut of_host, mut of_agent) = (0, 0);
        for recorded in text.lines().map(Recorded::parse) {
            let encoded = recorded.frame().encode();
            assert_eq!(encoded[4], recorded.kind, "{version}: {}", recorded.line);
            let message: Option<Value> = serde_json::from_slice(&recorded.payload).ok();
            let again: Option<Value> = serde_json::from_slice(&encoded[5..]).ok();
            match recorded.sender {
                // An earlier agent refuses keys that it does not know.
                Sender::Host => {
                    of_host += 1;
                    assert_eq!(again, message, "{version}: {}", recorded.line);
                }
                Sender::Agent => {
                    of_agent += 1;
                    let is_kept = match (message, again) {
                        (Some(message), Some(again)) => is_within(&message, &again),
                        _ => recorded.payload == encoded[5..],
                    };
                    assert!(is_kept, "{version}: {} is not fully understood", recorded.line);
                }
            }
        }
        assert!(of_host >= 34 && of_agent >= 9, "{version}: {of_host} and {of_agent} frames");
    }
}

#[test]
fn greetings_of_earlier_versions_are_understood() {
    assert_eq!(VERSION, 1, "a new version of the protocol serves the greetings of this one, too");
    let host = "0062616e67657248000161207265636f72646564206e6f6e63653031323334353637383961626364656630313233343536373839616263646566";
    let hello = HostHello::take(&mut bytes(host)).unwrap();
    assert_eq!(hello.judge(TOKEN), Verdict::Welcome);
    assert_eq!(hex(&HostHello::new(NONCE, TOKEN).unwrap().encode()), host);
    for (verdict, last) in [
        (Verdict::Welcome, "00"),
        (Verdict::WrongToken, "01"),
        (Verdict::WrongVersion, "02"),
        (Verdict::Busy, "03"),
        (Verdict::Unconfigured, "04"),
    ] {
        let of_revision =
            |revision| format!("0062616e67657241{revision:04x}61207265636f72646564206e6f6e6365{last}");
        assert_eq!(hex(&answer(&hello, verdict)), of_revision(REVISION));
        for revision in 1..=REVISION {
            let answered = take_answer(&mut bytes(&of_revision(revision)), &hello);
            assert_eq!(answered.is_ok(), verdict == Verdict::Welcome);
        }
    }
}
