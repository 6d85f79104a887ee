//! Tests of a session with a guest, against an agent in the same process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::time::Duration;

use banger_proto::guest::{Failure, FailureKind, Terminal, message::Started};
use tokio::{
    io::{DuplexStream, duplex, empty},
    sync::broadcast,
    task::JoinHandle,
    time::timeout,
};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(120);
const SIZE: WindowSize = WindowSize { rows: 5, columns: 7 };

/// The agent's end of a stream.
struct Agent {
    reader: Frames,
    writer: OwnedWriteHalf,
}

impl Agent {
    async fn next(&mut self) -> Frame {
        timeout(TIMEOUT, self.reader.next()).await.expect("nothing came").unwrap()
    }

    async fn send(&mut self, frame: Frame) {
        self.writer.write_all(&frame.encode()).await.unwrap();
    }

    async fn request(&mut self) -> Exec {
        match self.next().await {
            Frame::Request(Request::Exec(exec)) => exec,
            other => panic!("{other:?}"),
        }
    }

    /// Returns whether the client has hung up.
    async fn hung_up(mut self) -> bool {
        loop {
            match timeout(TIMEOUT, self.reader.next()).await.expect("the client holds on") {
                Ok(_) => {}
                Err(error) => return matches!(error, error::Error::Attach(Error::HungUp)),
            }
        }
    }
}

/// The user's side of a running session.
struct User {
    session: JoinHandle<Result<u8>>,
    input: Option<DuplexStream>,
    output: DuplexStream,
    errors: DuplexStream,
    events: broadcast::Sender<Event>,
}

impl User {
    fn run(exec: Exec) -> (Self, Agent) {
        Self::run_with(|stream| Session::new(stream, &exec).unwrap())
    }

    /// Attaches to a session.
    fn attach(part: Part) -> (Self, Agent) {
        let wanted = Attach { session: "work".to_owned(), size: None };
        Self::run_with(|stream| Session::resume(stream, wanted, true, part))
    }

    fn run_with(session: impl FnOnce(UnixStream) -> Session) -> (Self, Agent) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, writer) = theirs.into_split();
        let agent = Agent { reader: Frames::new(reader), writer };
        let (input, their_input) = duplex(64);
        let (output, their_output) = duplex(1 << 20);
        let (errors, their_errors) = duplex(1 << 20);
        let (events, mut listener) = broadcast::channel(8);
        let session = session(ours);
        let ends = Streams { input: their_input, output: their_output, errors: their_errors };
        let session =
            tokio::spawn(async move { session.run(ends, &mut listener, || SIZE).await.map(Ended::status) });
        (Self { session, input: Some(input), output, errors, events }, agent)
    }

    async fn status(self) -> Result<u8> {
        timeout(TIMEOUT, self.session).await.expect("the session goes on").unwrap()
    }

    async fn type_in(&mut self, text: &[u8]) {
        self.input.as_mut().unwrap().write_all(text).await.unwrap();
    }
}

fn command(argv: &[&str]) -> Exec {
    Exec { argv: argv.iter().map(|&word| word.to_owned()).collect(), ..Exec::default() }
}

async fn read(from: &mut DuplexStream) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn output_and_errors_stay_apart_and_the_status_is_exact() {
    for (exit, expect) in
        [(Exit::Code(0), 0), (Exit::Code(42), 42), (Exit::Code(255), 255), (Exit::Signal(9), 137)]
    {
        let (mut user, mut agent) = User::run(command(&["make", "test"]));
        assert_eq!(agent.request().await.argv, ["make", "test"]);
        agent.send(Frame::Started(Started::new(7))).await;
        agent.send(Frame::Output(b"out".to_vec())).await;
        agent.send(Frame::ErrorOutput(b"err".to_vec())).await;
        agent.send(Frame::Output(b"put".to_vec())).await;
        agent.send(Frame::Exit(exit)).await;
        let session = user.session.await.unwrap().unwrap();
        assert_eq!(session, expect);
        assert_eq!(read(&mut user.output).await, "output");
        assert_eq!(read(&mut user.errors).await, "err");
    }
}

#[tokio::test]
async fn the_request_carries_the_command() {
    let exec = Exec {
        env: vec![("A".into(), "b".into())],
        cwd: Some("/tmp".into()),
        user: Some("dev".into()),
        terminal: Some(Terminal { term: "vt100".into(), size: SIZE }),
        ..command(&["sh"])
    };
    let (_user, mut agent) = User::run(exec.clone());
    assert_eq!(agent.request().await, exec);
}

#[tokio::test]
async fn input_is_sent_at_once_and_so_is_its_end() {
    let (mut user, mut agent) = User::run(command(&["cat"]));
    agent.request().await;
    for text in [&b"first"[..], b"second"] {
        user.type_in(text).await;
        assert_eq!(agent.next().await, Frame::Input(text.to_vec()));
    }
    user.input = None;
    assert_eq!(agent.next().await, Frame::InputEnd);
    agent.send(Frame::Exit(Exit::Code(0))).await;
    assert_eq!(user.status().await.unwrap(), 0);
}

#[tokio::test]
async fn input_respects_the_window_and_a_signal_overtakes_it() {
    let (mut user, mut agent) = User::run(command(&["sleep"]));
    agent.request().await;
    let mut input = user.input.take().unwrap();
    let writer = tokio::spawn(async move {
        // Fails when the session ends.
        let _ = input.write_all(&vec![b'x'; 3 * STDIN_WINDOW as usize]).await;
    });
    let mut sent = 0;
    while sent < STDIN_WINDOW as usize {
        match agent.next().await {
            Frame::Input(bytes) => sent += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sent, STDIN_WINDOW as usize);
    user.events.send(Event::Signal(15)).unwrap();
    assert_eq!(agent.next().await, Frame::Signal(15));

    // More than the window is ignored.
    agent.send(Frame::Window(1000)).await;
    agent.send(Frame::Window(u32::MAX)).await;
    sent = 0;
    while sent < 1000 {
        match agent.next().await {
            Frame::Input(bytes) => sent += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    agent.send(Frame::Exit(Exit::Signal(15))).await;
    assert_eq!(user.status().await.unwrap(), 143);
    writer.await.unwrap();
}

#[tokio::test]
async fn signals_and_sizes_are_forwarded_and_a_second_interrupt_ends_the_session() {
    let (user, mut agent) = User::run(command(&["sleep"]));
    agent.request().await;
    for (event, frame) in [
        (Event::Resized, Frame::Resize(SIZE)),
        (Event::Signal(10), Frame::Signal(10)),
        (Event::Signal(10), Frame::Signal(10)),
        (Event::Signal(2), Frame::Signal(2)),
    ] {
        user.events.send(event).unwrap();
        assert_eq!(next_but_input(&mut agent).await, frame);
    }
    user.events.send(Event::Signal(2)).unwrap();
    assert!(agent.hung_up().await);
    assert_eq!(user.status().await.unwrap_err().status(125), 130);
}

async fn next_but_input(agent: &mut Agent) -> Frame {
    loop {
        match agent.next().await {
            Frame::Input(_) | Frame::InputEnd => {}
            frame => return frame,
        }
    }
}

#[tokio::test]
async fn a_command_whose_output_is_closed_gets_sigpipe() {
    let (user, mut agent) = User::run(command(&["yes"]));
    agent.request().await;
    drop(user.output);
    agent.send(Frame::Output(b"y\n".to_vec())).await;
    assert_eq!(agent.next().await, Frame::Signal(SIGPIPE));
    agent.send(Frame::Exit(Exit::Signal(SIGPIPE))).await;
    assert_eq!(timeout(TIMEOUT, user.session).await.unwrap().unwrap().unwrap(), 141);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_ignores_sigpipe_is_left_after_a_while() {
    let (user, mut agent) = User::run(command(&["yes"]));
    agent.request().await;
    drop(user.output);
    agent.send(Frame::Output(b"y\n".to_vec())).await;
    assert_eq!(user.session.await.unwrap().unwrap(), 141);
    assert!(agent.hung_up().await);
}

#[tokio::test(start_paused = true)]
async fn only_an_agent_that_promised_heartbeats_can_time_out() {
    let begun = Instant::now();
    let (user, mut agent) = User::run(command(&["make"]));
    agent.request().await;
    agent.send(Frame::Started(Started { pid: 7, alive_sec: 5 })).await;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_secs(20)).await;
        agent.send(Frame::Window(0)).await;
    }
    let error = user.session.await.unwrap().unwrap_err();
    assert_eq!(error.status(125), 125);
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "the agent of the sandbox has said nothing for 30 seconds");
    assert_eq!(begun.elapsed().as_secs(), 100 * 20 + 30);

    let (user, mut agent) = User::run(command(&["make"]));
    agent.request().await;
    agent.send(Frame::Started(Started::new(7))).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    agent.send(Frame::Exit(Exit::Code(3))).await;
    assert_eq!(user.session.await.unwrap().unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_does_not_wait_for_a_dead_agent() {
    for started in [None, Some(Started { pid: 7, alive_sec: 5 })] {
        let (user, mut agent) = User::run(command(&["make"]));
        agent.request().await;
        if let Some(started) = started {
            agent.send(Frame::Started(started)).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        user.events.send(Event::Signal(15)).unwrap();
        assert_eq!(next_but_input(&mut agent).await, Frame::Signal(15));
        let begun = Instant::now();
        assert_eq!(user.session.await.unwrap().unwrap_err().status(125), 143);
        assert!(begun.elapsed() <= END_TIMEOUT, "{started:?}");
    }
    // A slow command is waited for.
    let (user, mut agent) = User::run(command(&["make"]));
    agent.request().await;
    agent.send(Frame::Started(Started { pid: 7, alive_sec: 5 })).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    user.events.send(Event::Signal(15)).unwrap();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        agent.send(Frame::Window(0)).await;
    }
    agent.send(Frame::Exit(Exit::Code(7))).await;
    assert_eq!(user.session.await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn refusals_of_the_guest_have_the_status_of_a_shell() {
    for (kind, expect) in [(FailureKind::NotFound, 127), (FailureKind::NotPermitted, 126)] {
        let (user, mut agent) = User::run(command(&["nope"]));
        agent.request().await;
        agent.send(Frame::Failed(Failure { kind, message: "cannot run nope".into() })).await;
        let error = user.status().await.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.status(125)), ("cannot run nope", expect));
    }
}

#[tokio::test]
async fn hangups_and_invalid_frames_are_client_errors() {
    let check = async |bytes: &[u8], expect: &str| {
        let (user, mut agent) = User::run(command(&["true"]));
        agent.request().await;
        agent.writer.write_all(bytes).await.unwrap();
        drop(agent);
        let error = user.status().await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(expect), "{cause}");
        assert_eq!(error.status(125), 125);
    };
    check(b"", "closed the connection").await;
    check(b"\xff\xff\xff\xff\xff\xff", "protocol").await;
    check(&Frame::Signal(9).encode(), "unexpected message").await;
    check(&Frame::Output(vec![1; 100]).encode()[..50], "closed the connection").await;
}

#[tokio::test]
async fn a_detached_command_is_left_once_it_runs() {
    let check = async |answers: &[Frame]| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, writer) = theirs.into_split();
        let mut agent = Agent { reader: Frames::new(reader), writer };
        let exec = Exec { detach: true, ..command(&["sleep", "9"]) };
        let session = tokio::spawn(Session::new(ours, &exec).unwrap().detached());
        assert!(agent.request().await.detach);
        for answer in answers {
            agent.send(answer.clone()).await;
        }
        session.await.unwrap()
    };
    assert_eq!(check(&[Frame::Output(b"12".to_vec()), Frame::Done]).await.unwrap(), Some(12));
    assert_eq!(check(&[Frame::Done]).await.unwrap(), None);
    let failure = Failure { kind: FailureKind::NotFound, message: "no".into() };
    assert_eq!(check(&[Frame::Failed(failure)]).await.unwrap_err().status(125), 127);
    assert!(check(&[Frame::InputEnd]).await.is_err());
}

#[tokio::test]
async fn an_oversized_command_line_is_refused_before_anything_is_sent() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let long = "x".repeat(MAX_MESSAGE);
    let error = Session::new(ours, &command(&["echo", &long])).unwrap_err();
    assert!(error.to_string().contains("256 KiB"), "{error}");
    assert_eq!(error.status(125), 125);
}

#[tokio::test]
async fn without_input_the_end_is_sent_at_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (reader, writer) = theirs.into_split();
    let mut agent = Agent { reader: Frames::new(reader), writer };
    let (_events, mut listener) = broadcast::channel(8);
    let session = Session::new(ours, &command(&["true"])).unwrap();
    let ends = Streams { input: empty(), output: tokio::io::sink(), errors: tokio::io::sink() };
    let session = tokio::spawn(async move { session.run(ends, &mut listener, || SIZE).await });
    agent.request().await;
    assert_eq!(agent.next().await, Frame::InputEnd);
    agent.send(Frame::Exit(Exit::Code(3))).await;
    assert_eq!(session.await.unwrap().unwrap(), Ended::Exit(3));
}

fn session(terminal: bool) -> Exec {
    let terminal = terminal.then(|| Terminal { term: "vt100".into(), size: SIZE });
    Exec { session: Some("work".into()), terminal, ..command(&["vi"]) }
}

#[tokio::test]
async fn the_detach_keys_leave_a_session_and_reach_no_command() {
    let (mut user, mut agent) = User::run(session(true));
    assert_eq!(agent.request().await.session.as_deref(), Some("work"));
    agent.send(Frame::Started(Started::new(7))).await;
    user.type_in(b"a\x10b").await;
    assert_eq!(agent.next().await, Frame::Input(b"a\x10b".to_vec()));
    user.type_in(b"\x10").await;
    user.type_in(b"\x11").await;
    assert_eq!(user.status().await.unwrap(), 0);
    assert!(agent.hung_up().await);
}

#[tokio::test]
async fn the_detach_keys_mean_nothing_elsewhere() {
    let of_terminal = Exec { session: None, ..session(true) };
    for exec in [session(false), of_terminal] {
        let (mut user, mut agent) = User::run(exec);
        agent.request().await;
        user.type_in(b"\x10\x11").await;
        assert_eq!(agent.next().await, Frame::Input(b"\x10\x11".to_vec()));
        agent.send(Frame::Exit(Exit::Code(3))).await;
        assert_eq!(user.status().await.unwrap(), 3);
    }
}

#[tokio::test]
async fn an_agent_without_sessions_is_recognized() {
    let (user, mut agent) = User::run(session(false));
    agent.request().await;
    drop(agent);
    let error = user.status().await.unwrap_err();
    assert!(error.hint().is_some(), "{error:?}");
    assert!(error.to_string().contains("earlier version of banger"), "{error}");
    // After the first frame, it is the connection that is lost.
    let (user, mut agent) = User::run(session(false));
    agent.request().await;
    agent.send(Frame::Started(Started::new(7))).await;
    drop(agent);
    assert!(matches!(user.status().await, Err(error::Error::Attach(Error::HungUp))));
}

#[tokio::test]
async fn a_client_without_input_does_not_end_the_session() {
    for part in [Part::Use, Part::Watch] {
        let (mut user, mut agent) = User::attach(part);
        assert!(matches!(agent.next().await, Frame::Request(Request::Attach(_))));
        user.input = None;
        // The end of the input would be sent before a signal.
        tokio::time::sleep(Duration::from_millis(50)).await;
        user.events.send(Event::Signal(10)).unwrap();
        if part == Part::Use {
            assert_eq!(agent.next().await, Frame::Signal(10));
        } else {
            user.events.send(Event::Signal(2)).unwrap();
            assert!(matches!(agent.reader.next().await, Err(error::Error::Attach(Error::HungUp))));
            assert_eq!(user.session.await.unwrap().unwrap(), 0);
        }
    }
    let (mut user, mut agent) = User::attach(Part::Use);
    agent.next().await;
    user.type_in(b"x").await;
    user.input = None;
    assert_eq!(agent.next().await, Frame::Input(b"x".to_vec()));
    assert_eq!(agent.next().await, Frame::InputEnd);
}

#[tokio::test]
async fn a_terminal_that_is_gone_does_not_end_the_session() {
    let (mut user, mut agent) =
        User::run_with(|stream| Session::new(stream, &session(true)).unwrap().with_raw_input());
    agent.request().await;
    user.type_in(b"x").await;
    assert_eq!(agent.next().await, Frame::Input(b"x".to_vec()));
    user.input = None;
    tokio::time::sleep(Duration::from_millis(50)).await;
    user.events.send(Event::Signal(10)).unwrap();
    assert_eq!(agent.next().await, Frame::Signal(10));
}

#[tokio::test]
async fn a_session_whose_output_is_closed_continues() {
    let (user, mut agent) = User::attach(Part::Watch);
    agent.next().await;
    drop(user.output);
    agent.send(Frame::Output(b"y\n".to_vec())).await;
    assert!(matches!(agent.reader.next().await, Err(error::Error::Attach(Error::HungUp))));
    assert_eq!(user.session.await.unwrap().unwrap(), 128 + SIGPIPE);
}
