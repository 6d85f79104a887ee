//! Attaches the caller's input, output, terminal and signals to a command in a sandbox.

pub mod answer_keys;
mod detach_keys;
mod input;
mod raw_mode;
mod session;

use std::{
    env,
    fs::File,
    io::{self, IsTerminal, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
};

use banger_proto::guest::{
    Exec, Terminal,
    message::{Attach, WindowSize},
};
use rustix::termios::tcgetwinsize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    sync::broadcast,
};

use answer_keys::AnswerKeys;
pub use input::Input;
use raw_mode::RawMode;
pub use session::{Ended, Error, Streams};
use session::{Part, Session};

use crate::{error::Result, ui::signals::Listener};

/// Default size, for terminals that do not report one.
const SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };
/// Ends what a program in a session may have asked of the terminal: the alternate screen, a hidden cursor, reports of the
/// mouse, bracketed paste, colours (ctlseqs of xterm).
const RESET: &str = "\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[0m\r\n";

/// Whether a command runs in a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminalUse {
    /// If standard input and output are terminals.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl TerminalUse {
    /// Returns the terminal for the command, if it gets one.
    pub fn terminal(self) -> Option<Terminal> {
        let ours = io::stdin().is_terminal() && io::stdout().is_terminal();
        let wanted = match self {
            TerminalUse::Auto => ours,
            TerminalUse::Always => true,
            TerminalUse::Never => false,
        };
        wanted.then(|| {
            let term = env::var("TERM").ok().filter(|term| !term.is_empty());
            Terminal { term: term.unwrap_or_else(|| "xterm".to_owned()), size: window_size() }
        })
    }
}

/// The standard input of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    /// The caller's standard input.
    Ours,
    /// None. The caller's stays untouched for another reader, such as the loop of a script.
    Null,
}

impl Stdin {
    fn open(self) -> io::Result<Input> {
        match self {
            Stdin::Ours => Input::stdin(),
            Stdin::Null => Input::new(File::open("/dev/null")?.into()),
        }
    }
}

/// Runs a command on a stream that waits for a request. Returns its exit status as a shell would. Restores the
/// terminal.
pub async fn run(stream: OwnedFd, exec: Exec, stdin: Stdin, listener: &mut Listener) -> Result<u8> {
    let session = Session::new(connect(stream)?, &exec)?;
    let ended = attach(session, exec.terminal.is_some(), stdin, listener).await;
    ended.map(Ended::status)
}

/// Does the same, and looks for answers in what the user types.
pub async fn run_asking(
    stream: OwnedFd,
    exec: Exec,
    stdin: Stdin,
    listener: &mut Listener,
    keys: AnswerKeys,
) -> Result<u8> {
    let session = Session::new(connect(stream)?, &exec)?.with_answers(keys);
    let ended = attach(session, exec.terminal.is_some(), stdin, listener).await;
    ended.map(Ended::status)
}

/// Runs a command in the session that it names, or attaches to that.
pub async fn run_session(
    stream: OwnedFd,
    exec: Exec,
    stdin: Stdin,
    listener: &mut Listener,
) -> Result<Ended> {
    attach(Session::new(connect(stream)?, &exec)?, exec.terminal.is_some(), stdin, listener).await
}

/// Attaches to a session that has started.
pub async fn resume(
    stream: OwnedFd,
    session: &str,
    has_terminal: bool,
    stdin: Stdin,
    listener: &mut Listener,
) -> Result<Ended> {
    let ours = io::stdin().is_terminal() && io::stdout().is_terminal();
    let size = (has_terminal && ours).then(window_size);
    let wanted = Attach { session: session.to_owned(), size };
    let part = if stdin == Stdin::Null { Part::Watch } else { Part::Use };
    attach(Session::resume(connect(stream)?, wanted, has_terminal, part), has_terminal, stdin, listener).await
}

async fn attach(
    session: Session,
    has_terminal: bool,
    stdin: Stdin,
    listener: &mut Listener,
) -> Result<Ended> {
    let continues = has_terminal && session.is_kept();
    let raw = match has_terminal {
        true if stdin == Stdin::Ours && io::stdin().is_terminal() => Some(enter_raw_mode()?),
        _ => None,
    };
    let session = if raw.is_some() { session.with_raw_input() } else { session };
    let input = stdin.open().map_err(|source| crate::error::Error::io("read standard input", source))?;
    let ends = Streams { input, output: tokio::io::stdout(), errors: tokio::io::stderr() };
    let ended = session.run(ends, listener, window_size).await;
    drop(raw);
    if continues && !matches!(ended, Ok(Ended::Exit(_))) && io::stdout().is_terminal() {
        // A terminal that is gone needs nothing.
        let _ = io::stdout().write_all(RESET.as_bytes());
    }
    ended
}

/// Runs a command without a terminal on other streams than the caller's. Returns its exit status as a shell would.
/// Dropping the future hangs up, and the agent ends the command.
pub async fn run_on<I, O, E>(stream: OwnedFd, exec: &Exec, ends: Streams<I, O, E>) -> Result<u8>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    let session = Session::new(connect(stream)?, exec)?;
    // No signal of this process is for the command.
    let (_signals, mut listener) = broadcast::channel(1);
    session.run(ends, &mut listener, window_size).await.map(Ended::status)
}

/// Starts a detached command. Returns its number, or `None` if the agent is older than that.
pub async fn detach(stream: OwnedFd, exec: &Exec) -> Result<Option<u64>> {
    Session::new(connect(stream)?, exec)?.detached().await
}

fn connect(stream: OwnedFd) -> Result<UnixStream> {
    let stream = StdStream::from(stream);
    stream
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(stream))
        .map_err(|source| crate::error::Error::io("use the connection to the sandbox", source))
}

fn enter_raw_mode() -> Result<RawMode> {
    RawMode::enter(io::stdin())
        .map_err(|source| crate::error::Error::io("put the terminal into raw mode", source))
}

/// Returns the size of the caller's terminal.
fn window_size() -> WindowSize {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            WindowSize { rows: size.ws_row, columns: size.ws_col }
        }
        _ => SIZE,
    }
}
