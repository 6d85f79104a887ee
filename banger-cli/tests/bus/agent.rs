//! An agent that runs commands on this host, and prints what it receives about the terminal.

use std::{
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    path::Path,
    process::Stdio,
};

use banger_proto::guest::{
    Decoder, Exec, Failure, FailureKind, Frame, Request,
    facts::Detached,
    hello::{self, HostHello},
    message::{Exit, Started, WindowSize},
};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, ChildStdin, Command},
    sync::mpsc,
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Returns the command that starts the real agent. It serves a socket, which is its standard input.
fn real_one(socket: impl Into<OwnedFd>) -> std::process::Command {
    let program = Path::new(env!("CARGO_BIN_EXE_banger")).with_file_name("banger-agent");
    let mut agent = std::process::Command::new(program);
    agent.args(["serve-input", TOKEN]).stdin(socket.into());
    agent
}

/// The real agent, which serves one request after another on this host, as in a guest.
pub struct LastingAgent {
    directory: tempfile::TempDir,
    process: std::process::Child,
}

impl LastingAgent {
    pub fn start() -> std::io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let listener = std::os::unix::net::UnixListener::bind(directory.path().join("agent"))?;
        Ok(Self { directory, process: real_one(listener).spawn()? })
    }

    /// Returns a stream on which the agent waits for a request.
    pub fn connect(&self) -> std::io::Result<StdStream> {
        let stream = StdStream::connect(self.directory.path().join("agent"))?;
        greet(&stream)?;
        Ok(stream)
    }
}

impl Drop for LastingAgent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Lets the real agent serve one request, on this host. The client gets `theirs` after the greeting.
pub fn serve_with_the_real_one(ours: StdStream, theirs: &StdStream) -> std::io::Result<()> {
    let mut agent = real_one(ours).spawn()?;
    std::thread::spawn(move || agent.wait());
    greet(theirs)
}

fn greet(mut theirs: &StdStream) -> std::io::Result<()> {
    let hello = HostHello::new([7; 16], TOKEN).unwrap();
    theirs.write_all(&hello.encode())?;
    let mut answer = vec![0; hello::AGENT_LENGTH];
    theirs.read_exact(&mut answer)?;
    assert!(matches!(hello::take_answer(&mut answer, &hello), Ok(Some(_))));
    Ok(())
}

/// Serves one request.
pub async fn serve(stream: UnixStream) {
    let (reader, writer) = stream.into_split();
    let mut agent = Agent { reader, writer, decoder: Decoder::default() };
    let exec = match agent.next().await {
        Some(Frame::Request(Request::Exec(exec))) => exec,
        Some(Frame::Request(Request::CopyOut(copy))) if copy.path == "/hostile" => {
            agent.send(Frame::Output(hostile(&copy.top.unwrap()))).await;
            return agent.send(Frame::Done).await;
        }
        Some(Frame::Request(Request::Detached)) => {
            agent
                .send(Frame::Output(serde_json::to_vec(&[detached(1, false), detached(2, true)]).unwrap()))
                .await;
            return agent.send(Frame::Done).await;
        }
        Some(Frame::Request(Request::WaitDetached(2))) => {
            return agent.send(Frame::Exit(Exit::Signal(9))).await;
        }
        // A guest that starts a file and does not continue.
        Some(Frame::Request(Request::CopyOut(copy))) => {
            let mut archive = tar::Header::new_gnu();
            archive.set_path(copy.top.unwrap()).unwrap();
            archive.set_size(1 << 20);
            archive.set_mode(0o644);
            archive.set_cksum();
            agent.send(Frame::Output([&archive.as_bytes()[..], &[1; 1000]].concat())).await;
            return while agent.next().await.is_some() {};
        }
        _ => return,
    };
    if exec.argv.first().is_some_and(|program| program == "hang-up") {
        return;
    }
    if let Some(terminal) = &exec.terminal {
        agent.send(Frame::Output(format!("{} ", terminal.term).into_bytes())).await;
        return agent.show_terminal(terminal.size).await;
    }
    agent.run(exec).await;
}

fn detached(id: u64, running: bool) -> Detached {
    let exit = (!running).then_some(Exit::Code(7));
    let (command, user) = ("make".to_owned(), "root".to_owned());
    Detached {
        id,
        command,
        user,
        running,
        started_usec: 1,
        ended_usec: 0,
        exit,
        written: 0,
        kept: 0,
        session: None,
        attached: false,
        terminal: false,
    }
}

/// Returns an archive that tries to write outside of its destination.
fn hostile(top: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Directory);
    archive.append_data(&mut header, top, std::io::empty()).unwrap();
    header.set_entry_type(tar::EntryType::Symlink);
    archive.append_link(&mut header, format!("{top}/up"), "..").unwrap();
    header.set_entry_type(tar::EntryType::Regular);
    archive.append_data(&mut header, format!("{top}/up/stolen"), std::io::empty()).unwrap();
    archive.into_inner().unwrap()
}

struct Agent {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    decoder: Decoder,
}

impl Agent {
    async fn next(&mut self) -> Option<Frame> {
        let mut bytes = vec![0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            match self.reader.read(&mut bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&bytes[..count]),
            }
        }
    }

    async fn send(&mut self, frame: Frame) {
        // The client may have hung up.
        let _ = self.writer.write_all(&frame.encode()).await;
    }

    /// Prints each size on a line and input in brackets; Ctrl-D ends it with status 7.
    async fn show_terminal(&mut self, size: WindowSize) {
        let line = |size: WindowSize| Frame::Output(format!("{}x{}\r\n", size.rows, size.columns).into());
        self.send(line(size)).await;
        while let Some(frame) = self.next().await {
            match frame {
                Frame::Resize(size) => self.send(line(size)).await,
                Frame::Input(bytes) if bytes == [4] => return self.send(Frame::Exit(Exit::Code(7))).await,
                Frame::Input(bytes) => {
                    let text = format!("[{}]\r\n", bytes.escape_ascii());
                    self.send(Frame::Output(text.into_bytes())).await;
                }
                // A shell that ignores hangups.
                Frame::Signal(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn run(&mut self, exec: Exec) {
        let mut words = exec.argv.iter();
        let mut command = Command::new(words.next().map_or("sh", String::as_str));
        command.args(words).envs(exec.env).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let message = format!("cannot run {}: {error}", exec.argv[0]);
                return self.send(Frame::Failed(Failure { kind: FailureKind::NotFound, message })).await;
            }
        };
        if exec.detach {
            self.send(Frame::Output(b"1".to_vec())).await;
            self.send(Frame::Done).await;
            child.wait().await.unwrap();
            return;
        }
        let pid = child.id().unwrap();
        self.send(Frame::Started(Started::new(pid))).await;
        let status = self.exchange(&mut child).await;
        // Nothing is left of a session whose client has gone.
        let _ = kill_process_group(Pid::from_raw(pid as i32).unwrap(), Signal::KILL);
        if let Some(status) = status {
            use std::os::unix::process::ExitStatusExt;
            let exit = match status.code() {
                Some(code) => Exit::Code(code as u8),
                None => Exit::Signal(status.signal().unwrap() as u8),
            };
            self.send(Frame::Exit(exit)).await;
        }
    }

    /// Returns `None` if the client has hung up.
    async fn exchange(&mut self, child: &mut Child) -> Option<std::process::ExitStatus> {
        let group = Pid::from_raw(child.id().unwrap() as i32).unwrap();
        let stdin = child.stdin.take().unwrap();
        // The command may write before it reads on: its input must not block its output.
        let (input, pending) = mpsc::unbounded_channel();
        let mut input = Some(input);
        let (taken, mut credit) = mpsc::unbounded_channel();
        let feeder = tokio::spawn(feed(stdin, pending, taken));
        let (mut output, mut errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (mut more_output, mut more_errors) = (true, true);
        while more_output || more_errors {
            tokio::select! {
                bytes = read(&mut output), if more_output => match bytes {
                    Some(bytes) => self.send(Frame::Output(bytes)).await,
                    None => more_output = false,
                },
                bytes = read(&mut errors), if more_errors => match bytes {
                    Some(bytes) => self.send(Frame::ErrorOutput(bytes)).await,
                    None => more_errors = false,
                },
                Some(count) = credit.recv() => self.send(Frame::Window(count)).await,
                frame = self.next() => match frame? {
                    Frame::Input(bytes) => drop(input.as_ref().unwrap().send(bytes)),
                    Frame::InputEnd => input = None,
                    Frame::Signal(number) => {
                        let _ = kill_process_group(group, Signal::from_named_raw(number.into()).unwrap());
                    }
                    other => panic!("{other:?}"),
                },
            }
        }
        feeder.abort();
        child.wait().await.ok()
    }
}

async fn feed(
    mut stdin: ChildStdin,
    mut pending: mpsc::UnboundedReceiver<Vec<u8>>,
    taken: mpsc::UnboundedSender<u32>,
) {
    while let Some(bytes) = pending.recv().await {
        // A command that does not read its input drops it.
        let _ = stdin.write_all(&bytes).await;
        let _ = taken.send(bytes.len() as u32);
    }
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    let count = from.read(&mut bytes).await.ok()?;
    bytes.truncate(count);
    (count > 0).then_some(bytes)
}
