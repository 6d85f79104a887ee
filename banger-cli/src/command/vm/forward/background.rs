//! `banger vm forward -d`: forwarding in the background, by a process that this command starts again.
//!
//! Each such process has a file in the user's runtime directory, and locks it. So the lock tells whether the process is
//! alive, whatever its number means by then, and nothing is left to clean up after a crash.

use std::{
    env,
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    error::{Error, FAILURE, Result},
    ui::{age, output, table::Table},
    user::dirs::UserDirs,
};

/// The option of the process in the background.
pub const IN_BACKGROUND: &str = "in-background";
/// What that process says once it forwards.
const READY: &str = "ready";
/// How long a process may take to end, on a host that does many other things.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Poll interval for its end.
const STOP_INTERVAL: Duration = Duration::from_millis(20);
/// Limit on a file that is read.
const MAX_RECORD: u64 = 64 << 10;

/// A process that forwards in the background.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its process id.
    pub pid: i32,
    /// The host of the sandbox, if it is not the local one.
    #[serde(default)]
    pub host: Option<String>,
    /// The sandbox, as given.
    pub sandbox: String,
    /// The id of the sandbox.
    pub vm: String,
    /// What it forwards, one sentence each.
    pub forwards: Vec<String>,
    /// When it began, in microseconds since the Unix epoch.
    pub started_at: u64,
}

/// Starts this command again in the background. Returns once it forwards, with 0, or with its exit status.
pub fn start() -> Result<u8> {
    let failed = |source| Error::io("start a process in the background", source);
    let program = env::current_exe().map_err(failed)?;
    let mut child = Command::new(program)
        .args(in_background(env::args_os().skip(1).collect()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut said = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut said).map_err(failed)?;
    }
    if said.trim_end() == READY {
        return Ok(0);
    }
    // It has printed why.
    let status = child.wait().map_err(failed)?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILURE))
}

/// Adds the option to the arguments: before a `--`, behind which there are only names.
fn in_background(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    arguments.insert(end, format!("--{IN_BACKGROUND}").into());
    arguments
}

/// Leaves the terminal, and records this process until the result is dropped.
pub fn enter(record: &Record) -> Result<Entered> {
    let entered = Entered::of(&directory()?, record)?;
    let leave = || {
        println!("{READY}");
        rustix::process::setsid()?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        Ok(())
    };
    leave().map_err(|source: io::Error| Error::io("leave the terminal", source))?;
    Ok(entered)
}

/// The locked file of this process.
#[derive(Debug)]
pub struct Entered {
    path: PathBuf,
    _locked: File,
}

impl Entered {
    fn of(directory: &Path, record: &Record) -> Result<Self> {
        let path = directory.join(format!("{}.json", record.pid));
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            serde_json::to_writer(&mut file, record)?;
            file.flush()?;
            // Locked before others can see it.
            flock(file.as_file(), FlockOperation::NonBlockingLockExclusive)?;
            file.persist(&path).map_err(|error| error.error)
        };
        let locked = write().map_err(|source| Error::io(format!("write {}", path.display()), source))?;
        Ok(Self { path, _locked: locked })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // Without its lock it counts as gone anyway.
        let _ = fs::remove_file(&self.path);
    }
}

/// Lists the processes of one sandbox, or of all.
pub fn list(sandbox: Option<&str>, host: Option<&str>, json: bool) -> Result<u8> {
    let found = running(&directory()?, sandbox);
    // Those of one sandbox are of the host in use; a list of all names the host of each.
    let found = if sandbox.is_some() { of_host(found, host) } else { found };
    let records: Vec<Record> = found.into_iter().map(|(record, _)| record).collect();
    if json {
        output::json(&json!(records))?;
        return Ok(0);
    }
    let mut table = Table::new(["PID", "HOST", "SANDBOX", "STARTED", "FORWARDS"]);
    for Record { pid, host, sandbox, forwards, started_at, .. } in records {
        let host = host.unwrap_or_else(|| "local".to_owned());
        table.row([pid.to_string(), host, sandbox, age::ago(started_at, age::now()), forwards.join(" ")]);
    }
    output::text(&table.text())?;
    Ok(0)
}

/// Ends the processes of a sandbox of this host.
pub fn stop(sandbox: &str, host: Option<&str>) -> Result<u8> {
    let found = of_host(running(&directory()?, Some(sandbox)), host);
    if found.is_empty() {
        let error = Error::Refused(format!("nothing is forwarded in the background for {sandbox}"));
        return Err(error.with_hint("`banger vm forward --list` shows what is."));
    }
    found.iter().try_for_each(|(record, file)| end(record, file)).map(|()| 0)
}

/// Keeps the processes for one host: others may have sandboxes of the same name.
fn of_host(mut found: Vec<(Record, File)>, host: Option<&str>) -> Vec<(Record, File)> {
    found.retain(|(record, _)| record.host.as_deref() == host);
    found
}

fn end(record: &Record, file: &File) -> Result<()> {
    let failed = |source| Error::io(format!("end the process {}", record.pid), source);
    let signal = || {
        let pid = Pid::from_raw(record.pid).ok_or(rustix::io::Errno::SRCH)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        // The process that has the lock is alive, and so this is still its id.
        match is_locked(file) {
            true => pidfd_send_signal(&process, Signal::TERM),
            false => Ok(()),
        }
    };
    match signal() {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(failed(error.into())),
    }
    let begun = Instant::now();
    while is_locked(file) {
        if begun.elapsed() > STOP_TIMEOUT {
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(STOP_INTERVAL);
    }
    Ok(())
}

/// Returns the running processes with their files, the oldest first. Removes the files of others.
fn running(directory: &Path, sandbox: Option<&str>) -> Vec<(Record, File)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut all: Vec<(Record, File)> = entries
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json"))
        .filter_map(|entry| {
            let file = File::open(entry.path()).ok()?;
            if !is_locked(&file) {
                let _ = fs::remove_file(entry.path());
                return None;
            }
            let record = serde_json::from_reader(io::Read::take(&file, MAX_RECORD)).ok()?;
            Some((record, file))
        })
        .collect();
    let is_of = |record: &Record, wanted: &str| {
        record.sandbox == wanted || (wanted.len() >= 6 && record.vm.starts_with(wanted))
    };
    all.retain(|(record, _)| sandbox.is_none_or(|wanted| is_of(record, wanted)));
    all.sort_by_key(|(record, _)| (record.started_at, record.pid));
    all
}

fn is_locked(file: &File) -> bool {
    match flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            let _ = flock(file, FlockOperation::Unlock);
            false
        }
        Err(_) => true,
    }
}

/// Returns the directory of the files: of the login session, so that it is empty after a boot.
fn directory() -> Result<PathBuf> {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    Ok(match runtime {
        Some(runtime) => runtime.join("banger/forwards"),
        None => UserDirs::of_caller()?.forwards(),
    })
}

/// Returns the process id of this process.
pub fn own_pid() -> i32 {
    i32::try_from(process::id()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::ffi::OsStr;

    use super::*;

    fn record(pid: i32, sandbox: &str) -> Record {
        let forwards = vec!["127.0.0.1:8080 reaches 80.".to_owned()];
        Record {
            pid,
            host: None,
            sandbox: sandbox.to_owned(),
            vm: format!("{pid:032x}"),
            forwards,
            started_at: 1,
        }
    }

    #[test]
    fn the_option_of_the_background_is_not_taken_for_a_name() {
        for (line, expect) in [
            ("forward -d --auto web", "forward -d --auto web --in-background"),
            ("forward -d --auto -- web", "forward -d --auto --in-background -- web"),
        ] {
            let arguments = in_background(line.split(' ').map(OsString::from).collect());
            assert_eq!(arguments.join(OsStr::new(" ")), expect);
        }
    }

    #[test]
    fn a_process_is_listed_while_it_holds_its_file() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("forwards");
        assert!(running(&directory, None).is_empty());
        let web = Entered::of(&directory, &record(11, "web")).unwrap();
        let _db = Entered::of(&directory, &record(12, "db")).unwrap();
        // Left over, and not a record.
        fs::write(directory.join("13.json"), serde_json::to_vec(&record(13, "old")).unwrap()).unwrap();
        let listed = |sandbox: Option<&str>| {
            running(&directory, sandbox).into_iter().map(|(record, _)| record.pid).collect::<Vec<_>>()
        };
        assert_eq!(listed(None), [11, 12]);
        assert_eq!(listed(Some("db")), [12]);
        assert_eq!(listed(Some(&record(11, "").vm)), [11]);
        assert!(listed(Some("0")).is_empty() && !directory.join("13.json").exists());
        drop(web);
        assert_eq!(listed(None), [12]);
    }

    #[test]
    fn a_sandbox_of_another_host_is_another_one() {
        let place = tempfile::tempdir().unwrap();
        let there = Record { host: Some("ssh://lab".to_owned()), ..record(12, "web") };
        let _here = Entered::of(place.path(), &record(11, "web")).unwrap();
        let _there = Entered::of(place.path(), &there).unwrap();
        let found = |host: Option<&str>| {
            let found = of_host(running(place.path(), Some("web")), host);
            found.into_iter().map(|(record, _)| record.pid).collect::<Vec<_>>()
        };
        assert_eq!(
            (found(None), found(Some("ssh://lab")), found(Some("ssh://x"))),
            (vec![11], vec![12], vec![])
        );
        let mut old = serde_json::to_value(record(13, "web")).unwrap();
        old.as_object_mut().unwrap().remove("host");
        assert_eq!(serde_json::from_value::<Record>(old).unwrap(), record(13, "web"));
    }

    #[test]
    fn a_process_that_is_gone_is_not_signalled() {
        let place = tempfile::tempdir().unwrap();
        // The number of this process, whose file is not locked.
        let path = place.path().join("x.json");
        fs::write(&path, "{}").unwrap();
        end(&record(own_pid(), "web"), &File::open(path).unwrap()).unwrap();
    }
}
