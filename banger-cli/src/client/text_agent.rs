//! The agent that asks for a password on the terminal: polkit's `pkttyagent`.

use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    process::Stdio,
    time::Duration,
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, kill_process},
};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    process::{Child, Command},
    time::timeout,
};

use crate::error::{Error, Result};

const PROGRAM: &str = "/usr/bin/pkttyagent";
/// How long it may take to register with polkit, which may have to be started.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to restore the terminal.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// A running agent. It answers for this process only.
#[derive(Debug)]
pub struct TextAgent(Child);

impl TextAgent {
    /// Starts an agent. Returns when polkit knows it.
    pub async fn start() -> Result<Self> {
        let subject = subject()?;
        Self::start_program(Path::new(PROGRAM), &subject, in_session()).await
    }

    async fn start_program(program: &Path, subject: &str, session: bool) -> Result<Self> {
        let failed = |source| Error::io(format!("start {}", program.display()), source);
        let (ready, notify) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|errno| failed(errno.into()))?;
        let ready = pipe::Receiver::from_owned_fd(ready).map_err(failed)?;
        let mut command = Command::new(program);
        command.arg("--notify-fd").arg(notify.as_raw_fd().to_string());
        command.arg("--process").arg(subject);
        if session {
            // The desktop's agent is asked first. Without a session, polkit accepts no fallback.
            command.arg("--fallback");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let child = spawn_with(&mut command, notify).map_err(failed)?;
        match timeout(START_TIMEOUT, closed(ready)).await {
            Ok(Ok(())) => Ok(Self(child)),
            Ok(Err(source)) => Err(failed(source)),
            Err(_) => Err(failed(std::io::ErrorKind::TimedOut.into())),
        }
    }

    /// Ends the agent.
    pub async fn end(mut self) {
        let pid = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            // It may have ended already. If it does not end, dropping it kills it.
            let _ = kill_process(pid, Signal::TERM);
            let _ = timeout(END_TIMEOUT, self.0.wait()).await;
        }
    }
}

/// Spawns a child that inherits `keep`, which is then closed in this process.
fn spawn_with(command: &mut Command, keep: OwnedFd) -> std::io::Result<Child> {
    fcntl_setfd(&keep, FdFlags::empty())?;
    command.spawn()
}

/// Waits until the other end is closed.
async fn closed(mut ready: pipe::Receiver) -> std::io::Result<()> {
    ready.read_to_end(&mut Vec::new()).await.map(drop)
}

/// Identifies this process for polkit: its id and its start time, field 22 of `/proc/self/stat` (proc(5)).
fn subject() -> Result<String> {
    let stat =
        fs::read_to_string("/proc/self/stat").map_err(|source| Error::io("read /proc/self/stat", source))?;
    let start = start_time(&stat)
        .ok_or_else(|| Error::Refused("cannot read /proc/self/stat: unexpected content".into()))?;
    Ok(format!("{},{start}", std::process::id()))
}

fn start_time(stat: &str) -> Option<u64> {
    // The second field is the name in parentheses, which may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// Returns whether this process belongs to a logind session.
fn in_session() -> bool {
    fs::read_to_string("/proc/self/cgroup").is_ok_and(|cgroup| is_in_session_scope(&cgroup))
}

fn is_in_session_scope(cgroup: &str) -> bool {
    cgroup
        .split(['/', '\n'])
        .any(|part| part.starts_with("user@") || (part.starts_with("session-") && part.ends_with(".scope")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(start_time(&format!("77 (a) b) (c) {fields}")), Some(4242));
        assert_eq!(start_time("nonsense"), None);
        assert!(subject().unwrap().starts_with(&format!("{},", std::process::id())));
    }

    #[test]
    fn a_session_is_known_by_its_cgroup() {
        assert!(is_in_session_scope("0::/user.slice/user-1000.slice/session-3.scope\n"));
        assert!(is_in_session_scope("0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope\n"));
        assert!(!is_in_session_scope("0::/system.slice/cron.service\n"));
    }

    /// Starts a program that behaves like the agent, and records its arguments.
    async fn agent(script: &str, session: bool) -> (tempfile::TempDir, Result<TextAgent>) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("agent");
        fs::write(&program, format!("#!/bin/bash\ncd {}\n{script}\n", dir.path().display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let agent = TextAgent::start_program(&program, "12,34", session).await;
        (dir, agent)
    }

    const SERVE: &str = "echo \"$@\" > args; trap 'echo ended > end; exit' TERM; \
        eval \"exec $2>&-\"; while :; do sleep 0.02; done";

    #[tokio::test]
    async fn an_agent_is_ready_when_it_closes_its_pipe_and_ends_on_request() {
        let (dir, agent) = agent(SERVE, true).await;
        agent.unwrap().end().await;
        let args = fs::read_to_string(dir.path().join("args")).unwrap();
        assert!(
            args.starts_with("--notify-fd ") && args.ends_with(" --process 12,34 --fallback\n"),
            "{args}"
        );
        assert_eq!(fs::read_to_string(dir.path().join("end")).unwrap(), "ended\n");
    }

    #[tokio::test]
    async fn without_a_session_there_is_no_fallback() {
        let (dir, agent) = agent(SERVE, false).await;
        agent.unwrap().end().await;
        assert!(!fs::read_to_string(dir.path().join("args")).unwrap().contains("--fallback"));
    }

    #[tokio::test]
    async fn an_agent_that_is_not_installed_is_an_error() {
        assert!(TextAgent::start_program(Path::new("/nonexistent/agent"), "1,2", false).await.is_err());
    }
}
