//! Runs credential helpers of docker and podman, which are programs of the user (docker/docker-credential-helpers,
//! README.md). The work that waits for one can be stopped: then it is killed with what it has started.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    thread,
};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;

use crate::workspace::stop::killable;

/// What a helper writes for the user name of a token.
const TOKEN: &str = "<token>";

/// Whether a helper may use the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// It may ask the user.
    Shared,
    /// Another program has it. The helper leads a process group of its own.
    Taken,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Reply {
    username: String,
    secret: String,
}

/// Asks the helper of this name, without `docker-credential-`.
pub fn ask(
    helper: &str,
    server: &str,
    terminal: Terminal,
) -> Result<DockerCredential, CredentialRetrievalError> {
    let name = format!("docker-credential-{helper}");
    let mut command = Command::new(&name);
    command.arg("get");
    run(command, &name, server, terminal)
}

fn run(
    mut command: Command,
    name: &str,
    server: &str,
    terminal: Terminal,
) -> Result<DockerCredential, CredentialRetrievalError> {
    let failed = |_| CredentialRetrievalError::HelperCommunicationError;
    if terminal == Terminal::Taken {
        command.process_group(0);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let _killable = killable(&child);
    let stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        // If it stops reading early, its status says why.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(server.as_bytes())));
        child.wait_with_output()
    });
    let output = output.map_err(failed)?;
    if !output.status.success() {
        return Err(CredentialRetrievalError::HelperFailure {
            helper: name.to_owned(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    let reply = serde_json::from_slice(&output.stdout);
    let Reply { username, secret } = reply.map_err(|_| CredentialRetrievalError::MalformedHelperResponse)?;
    Ok(match username.as_str() {
        TOKEN => DockerCredential::IdentityToken(secret),
        _ => DockerCredential::UsernamePassword(username, secret),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_helper_answers_fails_or_talks_nonsense() {
        let helped = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script, "helper", "get"]);
            run(command, "docker-credential-x", "ghcr.io", Terminal::Taken)
        };
        let of = |name: &str| format!("printf '{{\"Username\":\"{name}\",\"Secret\":\"%s %s\"}}' $1 $(cat)");
        let password = DockerCredential::UsernamePassword("ann".into(), "get ghcr.io".into());
        assert_eq!(helped(&of("ann")).unwrap(), password);
        assert_eq!(helped(&of(TOKEN)).unwrap(), DockerCredential::IdentityToken("get ghcr.io".into()));
        assert_eq!(helped("echo x").unwrap_err(), CredentialRetrievalError::MalformedHelperResponse);
        let CredentialRetrievalError::HelperFailure { helper, stdout, .. } =
            helped("echo not found; exit 1").unwrap_err()
        else {
            panic!("it did not fail");
        };
        assert_eq!((helper.as_str(), stdout.as_str()), ("docker-credential-x", "not found\n"));
    }
}
