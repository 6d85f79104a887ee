//! Credentials of registries: the sandbox has a helper of docker and podman, which asks here, and the user's own files and
//! helpers answer, as for pulls.
//!
//! The helper sends `get SERVER`, and gets the JSON object that clients expect of it (docker/docker-credential-helpers,
//! README.md), or nothing.

use std::{str::FromStr, sync::Arc, time::Duration};

use docker_credential::DockerCredential;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::Semaphore,
};

use super::{HELPER_TIMEOUT, Uses, too_long};
use crate::{
    error::{Error, Result},
    user::credentials,
    workspace::stop::in_time,
};

/// Limit on a request.
const MAX_REQUEST: u64 = 8 << 10;
/// The name of Docker's own registry in references.
const DOCKER_IO: &str = "docker.io";
/// What clients take for the user name of a token.
const TOKEN: &str = "<token>";

/// A registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry(String);

impl FromStr for Registry {
    type Err = String;

    /// Parses the name of a registry, with a port if it has one.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        if text.is_empty() || !text.bytes().all(is_host) {
            return Err("name a registry without a path, such as docker:ghcr.io".to_owned());
        }
        let name = text.to_ascii_lowercase();
        let is_dockers = credentials::DOCKER_HUB.contains(&name.as_str()) || name == "registry-1.docker.io";
        Ok(Self(if is_dockers { DOCKER_IO.to_owned() } else { name }))
    }
}

impl Registry {
    /// Returns the keys that clients look it up by. docker has one of its own for Docker's.
    pub fn keys(&self) -> Vec<String> {
        match self.0.as_str() {
            DOCKER_IO => credentials::DOCKER_HUB.map(str::to_owned).to_vec(),
            name => vec![name.to_owned()],
        }
    }

    /// Returns whether a client means it by this name.
    fn is_meant(&self, server: &str) -> bool {
        let server = server.to_ascii_lowercase();
        let plain = credentials::plain_key(&server);
        self.keys().iter().any(|key| credentials::plain_key(key) == plain)
    }
}

/// Looks the credentials of one registry up after the other: a helper of the user is a program that may hang.
#[derive(Debug, Clone)]
pub struct LookUp(Arc<Semaphore>);

impl Default for LookUp {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl LookUp {
    async fn of(&self, registry: &Registry) -> Result<Option<DockerCredential>> {
        let Registry(name) = registry.clone();
        self.during(HELPER_TIMEOUT, move || credentials::of_registry(&name)).await
    }

    /// Runs one look-up. Its helper is ended after this time, and when the request is given up. Only then does the next one begin.
    async fn during<T: Send + 'static>(
        &self,
        limit: Duration,
        look: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        // It is never closed.
        let slot = Arc::clone(&self.0).acquire_owned().await;
        let looked = in_time(limit, move || {
            let found = look();
            drop(slot);
            found
        });
        looked.await?.ok_or_else(too_long)?
    }
}

/// Checks that the user has credentials for a registry.
pub async fn check(registry: &Registry) -> Result<()> {
    match LookUp::default().of(registry).await? {
        Some(_) => Ok(()),
        None => {
            let Registry(name) = registry;
            Err(Error::Refused(format!("cannot share credentials for {name}: you have none"))
                .with_hint(format!("`docker login {name}` or `podman login {name}` stores them.")))
        }
    }
}

/// Answers one connection.
pub async fn answer(
    mut connection: DuplexStream,
    registries: &[Registry],
    look_up: &LookUp,
    uses: &impl Uses,
) -> Result<()> {
    let failed = |source| Error::io("answer a client of registries in the sandbox", source);
    let mut request = Vec::new();
    (&mut connection).take(MAX_REQUEST).read_to_end(&mut request).await.map_err(failed)?;
    let reply = match asked(&String::from_utf8_lossy(&request), registries) {
        Asked::For(registry) => match uses.allow(&format!("your credentials for {}", registry.0)) {
            true => match look_up.of(registry).await {
                Ok(Some(found)) => reply(registry, &found),
                Ok(None) => {
                    uses.explain(&format!("got no credentials for {}: you have none any more", registry.0));
                    String::new()
                }
                Err(error) => {
                    uses.explain(&format!("got no credentials for {}: {error}", registry.0));
                    String::new()
                }
            },
            false => String::new(),
        },
        Asked::Other(server) => {
            uses.refuse(&format!("credentials for {server}"));
            String::new()
        }
        Asked::Nothing => String::new(),
    };
    connection.write_all(reply.as_bytes()).await.map_err(failed)?;
    connection.shutdown().await.map_err(failed)
}

/// What a sandbox asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked<'a> {
    For(&'a Registry),
    /// A registry that is not shared.
    Other(String),
    Nothing,
}

fn asked<'a>(request: &str, registries: &'a [Registry]) -> Asked<'a> {
    let server = request.trim_end().strip_prefix("get ").map(str::trim);
    let Some(server) = server.filter(|server| !server.is_empty() && !server.contains('\n')) else {
        return Asked::Nothing;
    };
    match registries.iter().find(|registry| registry.is_meant(server)) {
        Some(registry) => Asked::For(registry),
        None => Asked::Other(server.to_owned()),
    }
}

fn reply(Registry(name): &Registry, credential: &DockerCredential) -> String {
    let (user, secret) = match credential {
        DockerCredential::IdentityToken(token) => (TOKEN, token),
        DockerCredential::UsernamePassword(user, password) => (user.as_str(), password),
    };
    json!({"ServerURL": name, "Username": user, "Secret": secret}).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::process::CommandExt;

    use super::*;
    use crate::workspace::stop::killable;

    fn registry(text: &str) -> Registry {
        text.parse().unwrap()
    }

    #[test]
    fn a_registry_has_no_path_and_no_line_end() {
        for wrong in ["", "ghcr.io/org", "https://ghcr.io", "a b", "a\nb", "ann@ghcr.io"] {
            assert!(wrong.parse::<Registry>().is_err(), "{wrong:?}");
        }
        for name in ["docker.io", "index.docker.io", "Registry-1.docker.io"] {
            assert_eq!(registry(name), registry("docker.io"), "{name}");
        }
    }

    #[test]
    fn dockers_own_registry_has_its_odd_key() {
        assert_eq!(
            registry("docker.io").keys(),
            ["https://index.docker.io/v1/", "docker.io", "index.docker.io"]
        );
        assert_eq!(registry("GHCR.io:443").keys(), ["ghcr.io:443"]);
    }

    #[test]
    fn only_the_shared_registries_are_answered() {
        let registries = [registry("ghcr.io"), registry("docker.io"), registry("localhost:5000")];
        for (request, expect) in [
            ("get ghcr.io\n", Asked::For(&registries[0])),
            ("get https://GHCR.io/", Asked::For(&registries[0])),
            ("get https://index.docker.io/v1/\n", Asked::For(&registries[1])),
            ("get docker.io", Asked::For(&registries[1])),
            ("get http://localhost:5000/v2/", Asked::For(&registries[2])),
            ("get localhost:5001\n", Asked::Other("localhost:5001".to_owned())),
            ("get localhost\n", Asked::Other("localhost".to_owned())),
            ("get ghcr.io.evil.test\n", Asked::Other("ghcr.io.evil.test".to_owned())),
            ("get ghcr.io/org\n", Asked::Other("ghcr.io/org".to_owned())),
            ("get \n", Asked::Nothing),
            ("get a\nb\n", Asked::Nothing),
            ("list\n", Asked::Nothing),
            ("", Asked::Nothing),
        ] {
            assert_eq!(asked(request, &registries), expect, "{request:?}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_ended_and_the_next_one_begins() {
        let look_up = LookUp::default();
        let hangs = |program: &'static str| {
            move || {
                let mut command = std::process::Command::new("sh");
                command.args(["-c", program]).stdout(std::process::Stdio::piped()).process_group(0);
                let child = command.spawn().unwrap();
                let _killable = killable(&child);
                // Its end is seen when all that has its output has ended.
                Ok(child.wait_with_output().unwrap().status.success())
            }
        };
        let short = Duration::from_millis(100);
        let late = look_up.during(short, hangs("sleep 1000 & sleep 1000")).await.unwrap_err().to_string();
        assert_eq!(late, "your credential helper took longer than 30 seconds, and was ended");
        // Nobody waits for this one any more.
        let gone = look_up.during(Duration::from_secs(100), hangs("sleep 1000 & sleep 1000"));
        assert!(tokio::time::timeout(short, gone).await.is_err());
        let next = look_up.during(Duration::from_secs(100), hangs("true"));
        assert!(tokio::time::timeout(Duration::from_secs(60), next).await.unwrap().unwrap());
    }

    #[test]
    fn the_reply_is_what_clients_expect_of_a_helper() {
        let of = |credential: DockerCredential| {
            serde_json::from_str::<serde_json::Value>(&reply(&registry("ghcr.io"), &credential)).unwrap()
        };
        assert_eq!(
            of(DockerCredential::UsernamePassword("ann".into(), "se\"cret".into())),
            json!({"ServerURL": "ghcr.io", "Username": "ann", "Secret": "se\"cret"})
        );
        let token = of(DockerCredential::IdentityToken("t".into()));
        assert_eq!((&token["Username"], &token["Secret"]), (&json!("<token>"), &json!("t")));
    }
}
