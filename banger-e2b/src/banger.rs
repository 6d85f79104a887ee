//! Runs the command `banger`, without a shell, and reads its replies and its errors.
//!
//! Errors come by way of `--error-file`, as JSON with a code. That file, and the one with the variables of a command in a
//! sandbox, are in memory, and opened through this process's directory in `/proc`: on a command line, every user of the
//! host could read the variables, and in the environment of `banger` they would change what it does.

use std::{
    env, fs,
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::PathBuf,
    process::{self, Stdio},
    time::Duration,
};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time::timeout,
};

use crate::http::{Code, Refusal, Result};

/// How long a reply may take that waits for no boot.
pub const REPLY: Duration = Duration::from_secs(120);
/// How long a reply may take that waits for a boot, for an image to be pulled, or for memory to be written.
pub const LONG_REPLY: Duration = Duration::from_secs(3600);
/// Limit on a reply.
const MAX_REPLY: u64 = 16 << 20;
/// Limit on what is kept of standard error.
const MAX_ERRORS: u64 = 64 << 10;
/// Limit on one argument of a program (MAX_ARG_STRLEN, execve(2)).
const MAX_WORD: usize = 128 << 10;
/// The status of invalid arguments.
const USAGE: i32 = 2;

/// The command.
pub struct Banger {
    program: PathBuf,
}

/// A command in a sandbox.
#[derive(Debug, Default)]
pub struct Exec {
    /// The user who runs it.
    pub user: Option<String>,
    /// The directory in which it runs.
    pub directory: Option<String>,
    /// Its variables.
    pub variables: Vec<(String, String)>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Whether it reads its input.
    pub has_input: bool,
}

/// A command in a sandbox that has started. It ends when this is dropped.
pub struct Running {
    /// The process of `banger`.
    pub child: Child,
    report: Memory,
    _variables: Memory,
}

impl Banger {
    /// Returns the command that is this program.
    pub fn new(program: PathBuf) -> Self {
        Self { program }
    }

    /// Runs a verb with `--json`, and returns what it prints.
    pub async fn json<T: DeserializeOwned>(&self, limit: Duration, words: &[&str]) -> Result<T> {
        let output = self.run(limit, words).await?;
        serde_json::from_slice(&output).map_err(|error| {
            Refusal::new(Code::Internal, format!("banger printed something unexpected: {error}."))
        })
    }

    /// Runs a verb, and returns what it prints.
    pub async fn run(&self, limit: Duration, words: &[&str]) -> Result<Vec<u8>> {
        let report = Memory::new(&[])?;
        let mut child = self.command(&report, words).stdin(Stdio::null()).spawn().map_err(cannot_start)?;
        let (output, errors, status) =
            timeout(limit, ended(&mut child, MAX_REPLY)).await.map_err(|_| {
                Refusal::new(Code::Internal, format!("`banger {}` took too long.", words.join(" ")))
            })??;
        match status {
            Some(0) => Ok(output),
            status => Err(refusal(status, &report.read(), &errors)),
        }
    }

    /// Starts a command in a sandbox.
    pub fn exec(&self, sandbox: &str, exec: &Exec) -> Result<Running> {
        let report = Memory::new(&[])?;
        let variables = Memory::new(&variables(&exec.variables)?)?;
        let mut words = vec!["vm".to_owned(), "exec".into(), "--no-tty".into(), "--no-auto-prepare".into()];
        words.push(format!("--env-file={}", variables.path()));
        words.extend((!exec.has_input).then(|| "--no-stdin".to_owned()));
        words.extend(exec.user.as_ref().map(|user| format!("--user={user}")));
        words.extend(exec.directory.as_ref().map(|directory| format!("--workdir={directory}")));
        words.extend(["--".to_owned(), sandbox.to_owned()]);
        words.extend(exec.argv.iter().cloned());
        if words.iter().any(|word| word.contains('\0')) {
            return Err(Refusal::new(Code::InvalidArgument, "A command, a user or a path has a zero byte."));
        }
        if words.iter().any(|word| word.len() >= MAX_WORD) {
            let message = format!("A command is at most {MAX_WORD} bytes long; write it to a file first.");
            return Err(Refusal::new(Code::InvalidArgument, message));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = self.command(&report, &words);
        command.stdin(if exec.has_input { Stdio::piped() } else { Stdio::null() });
        let child = command.spawn().map_err(cannot_start)?;
        Ok(Running { child, report, _variables: variables })
    }

    fn command(&self, report: &Memory, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--error-file").arg(report.path());
        // Sandboxes of this host, whichever the user chooses for the terminal meanwhile.
        command.args(["--context", "default"]).args(words).env_remove("BANGER_HOST");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }
}

impl Running {
    /// Returns why the command could not run, if `banger` reported an error.
    pub fn failure(&self, status: Option<i32>) -> Option<Refusal> {
        let report = self.report.read();
        let mut failure = (!report.is_empty()).then(|| refusal(status, &report, &[]))?;
        // Only the sandbox itself can be missing: what is in it answers with codes of the guest.
        if failure.code == Code::NotFound {
            failure.code = Code::Unavailable;
        }
        Some(failure)
    }
}

/// Returns the `banger` that is beside this program, else its name, which is looked up in `PATH`.
pub fn beside_this_program() -> PathBuf {
    let beside = env::current_exe().ok().map(|program| program.with_file_name("banger"));
    beside.filter(|program| program.exists()).unwrap_or_else(|| "banger".into())
}

/// Returns the output, the errors, and the exit status if it was no signal.
async fn ended(child: &mut Child, limit: u64) -> io::Result<(Vec<u8>, Vec<u8>, Option<i32>)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (output, errors) = tokio::try_join!(up_to(stdout, limit), up_to(stderr, MAX_ERRORS))?;
    Ok((output, errors, child.wait().await?.code()))
}

/// Reads all, and keeps this much.
pub async fn up_to(from: Option<impl AsyncRead + Unpin>, limit: u64) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return Ok(kept) };
    (&mut from).take(limit).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(kept)
}

fn cannot_start(error: io::Error) -> Refusal {
    Refusal::new(Code::Internal, format!("The command banger cannot be started: {error}."))
}

/// Returns the content of a file of variables.
fn variables(set: &[(String, String)]) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    for (name, value) in set {
        let is_name = !name.is_empty() && !name.starts_with('#');
        if !is_name || name.contains(|letter: char| letter.is_whitespace() || "=\0".contains(letter)) {
            let message = format!("{name:?} is no name of a variable.");
            return Err(Refusal::new(Code::InvalidArgument, message));
        }
        if value.contains('\0') {
            return Err(Refusal::new(Code::InvalidArgument, format!("The value of {name} has a zero byte.")));
        }
        // Values can have line feeds.
        content.extend_from_slice(format!("{name}={value}\0").as_bytes());
    }
    Ok(content)
}

/// Returns the last error that `banger` reported, else what it printed.
fn refusal(status: Option<i32>, report: &[u8], errors: &[u8]) -> Refusal {
    let mut lines = report.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let last = lines.next_back().and_then(|line| serde_json::from_slice::<Value>(line).ok());
    let Some(error) = last else {
        let code = if status == Some(USAGE) { Code::InvalidArgument } else { Code::Internal };
        let text = String::from_utf8_lossy(errors);
        let message = match text.trim() {
            "" => "banger failed and reported no error.",
            text => text,
        };
        return Refusal::new(code, message);
    };
    let causes = error["causes"].as_array().into_iter().flatten();
    let texts = [&error["message"]].into_iter().chain(causes).chain([&error["remedy"]]);
    let message: Vec<&str> = texts.filter_map(Value::as_str).collect();
    Refusal::new(code(error["code"].as_str().unwrap_or_default()), message.join(" "))
}

/// Returns what a code of `banger` means to E2B's SDK.
fn code(code: &str) -> Code {
    match code.strip_prefix("dev.banger.Error.").unwrap_or(code) {
        "NoSuchVM" | "NoSuchImage" => Code::NotFound,
        "QuotaExceeded" | "TooManyRequests" => Code::ResourceExhausted,
        "InvalidName" | "InvalidOption" | "DiskTooSmall" | "UnsupportedImage" => Code::InvalidArgument,
        "NotAuthorized"
        | "org.freedesktop.DBus.Error.AccessDenied"
        | "guest.not-permitted"
        | "not-allowed" => Code::PermissionDenied,
        "InvalidState" | "Paused" | "Suspended" | "NotReady" => Code::Unavailable,
        "guest.not-found" | "guest.bad-request" | "guest.no-directory" | "invalid-arguments" => {
            Code::InvalidArgument
        }
        _ => Code::Internal,
    }
}

/// A file in memory, which the user's programs open by its path while this exists.
struct Memory(fs::File);

impl Memory {
    fn new(content: &[u8]) -> io::Result<Self> {
        let file: OwnedFd = memfd_create("banger-e2b", MemfdFlags::CLOEXEC)?;
        let mut file = fs::File::from(file);
        file.write_all(content)?;
        Ok(Self(file))
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd())
    }

    fn read(&self) -> Vec<u8> {
        let mut content = vec![0; MAX_ERRORS as usize];
        let length = self.0.read_at(&mut content, 0).unwrap_or(0);
        content.truncate(length);
        content
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn variables_are_written_as_banger_reads_them() {
        let set = |name: &str, value: &str| variables(&[(name.into(), value.into())]);
        assert_eq!(set("A", "1\n2=3").unwrap(), b"A=1\n2=3\0");
        assert_eq!(set("A", "").unwrap(), b"A=\0");
        for (name, value) in [("", "1"), ("A B", "1"), ("A=B", "1"), ("#A", "1"), ("A", "\0")] {
            assert_eq!(set(name, value).unwrap_err().code, Code::InvalidArgument, "{name:?}");
        }
    }

    #[test]
    fn an_error_of_banger_keeps_its_words_and_gets_a_code() {
        let report = br#"{"code":"dev.banger.Error.NoSuchImage","message":"there is no image x.","causes":["why."],"remedy":"do it."}
"#;
        let found = refusal(Some(1), report, b"");
        assert_eq!(found, Refusal::new(Code::NotFound, "there is no image x. why. do it."));
        let nothing = br#"{"code":"a-new-one","message":"m.","causes":[],"remedy":null}"#;
        assert_eq!(refusal(Some(1), nothing, b""), Refusal::new(Code::Internal, "m."));
        assert_eq!(
            refusal(Some(2), b"", b"error: what\n"),
            Refusal::new(Code::InvalidArgument, "error: what")
        );
        assert_eq!(refusal(None, b"", b"").code, Code::Internal);
    }

    #[test]
    fn a_file_in_memory_is_opened_by_its_path() {
        let memory = Memory::new(b"a").unwrap();
        assert_eq!(fs::read(memory.path()).unwrap(), b"a");
        fs::OpenOptions::new().append(true).open(memory.path()).unwrap().write_all(b"b").unwrap();
        assert_eq!(memory.read(), b"ab");
    }
}
