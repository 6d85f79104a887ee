//! Registry credentials of the user's container tools, as written by `docker login` and `podman login`. The service
//! gets them in a sealed memory file, for one pull only.

use std::{
    env,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use docker_credential::{
    CredentialRetrievalError, DockerCredential, get_credential, get_credential_from_reader,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde_json::json;

use crate::error::{Error, Result};

/// Names of Docker's own registry in credential files.
const DOCKER_HUB: [&str; 3] = ["https://index.docker.io/v1/", "docker.io", "index.docker.io"];
/// Its name in references.
const DOCKER_IO: &str = "docker.io";

/// Returns the credentials for the registry of a reference, if there are any.
pub async fn of_reference(reference: &str) -> Result<Option<OwnedFd>> {
    let servers = servers(reference);
    // A credential helper is a program, and may take long.
    let found = tokio::task::spawn_blocking(move || look_up(&servers)).await;
    let found =
        found.map_err(|error| Error::io("read your registry credentials", io::Error::other(error)))??;
    found.map(|credential| sealed(&credential)).transpose()
}

/// Returns the keys under which credentials for a reference may be stored, the most specific first.
fn servers(reference: &str) -> Vec<String> {
    let name = reference.split('@').next().unwrap_or_default();
    match name.split_once('/') {
        Some((host, _)) if host != DOCKER_IO && (host.contains(['.', ':']) || host == "localhost") => {
            // podman stores some for a part of a registry.
            let path =
                name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(name, |(path, _)| path);
            let parents = path.rmatch_indices('/').map(|(at, _)| path[..at].to_owned());
            [path.to_owned()].into_iter().chain(parents).collect()
        }
        _ => DOCKER_HUB.map(str::to_owned).to_vec(),
    }
}

fn look_up(servers: &[String]) -> Result<Option<DockerCredential>> {
    let files = podman_files();
    for server in servers {
        let docker = get_credential(server);
        let podman = files.iter().filter_map(|path| File::open(path).ok());
        let podman = podman.map(|file| get_credential_from_reader(io::BufReader::new(file), server));
        for found in std::iter::once(docker).chain(podman) {
            match found {
                Ok(credential) => return Ok(Some(credential)),
                Err(error) => ignore_missing(error)?,
            }
        }
    }
    Ok(None)
}

/// Ignores errors which mean that there are no credentials.
fn ignore_missing(error: CredentialRetrievalError) -> Result<()> {
    let why = match error {
        CredentialRetrievalError::NoCredentialConfigured
        | CredentialRetrievalError::ConfigNotFound
        | CredentialRetrievalError::ConfigReadError => return Ok(()),
        // The output of a helper may contain a secret.
        CredentialRetrievalError::HelperFailure { stdout, .. } if stdout.contains("not found") => {
            return Ok(());
        }
        CredentialRetrievalError::HelperFailure { helper, .. } => {
            format!("docker-credential-{helper} failed")
        }
        other => other.to_string(),
    };
    Err(Error::Refused(format!("cannot read your registry credentials: {why}"))
        .with_hint("`docker logout REGISTRY` and `docker login REGISTRY` write them again."))
}

fn podman_files() -> Vec<PathBuf> {
    let of = |variable: &str, rest: &str| env::var_os(variable).map(|value| PathBuf::from(value).join(rest));
    let named = env::var_os("REGISTRY_AUTH_FILE").map(PathBuf::from);
    let config = of("XDG_CONFIG_HOME", "containers/auth.json").or(of("HOME", ".config/containers/auth.json"));
    [named, of("XDG_RUNTIME_DIR", "containers/auth.json"), config].into_iter().flatten().collect()
}

/// Returns a sealed memory file with a credential.
fn sealed(credential: &DockerCredential) -> Result<OwnedFd> {
    let text = match credential {
        DockerCredential::IdentityToken(token) => json!({ "identity-token": token }),
        DockerCredential::UsernamePassword(user, password) => {
            json!({ "username": user, "password": password })
        }
    };
    let failed = |error: io::Error| Error::io("pass your registry credentials to the service", error);
    let fd = memfd_create("credentials", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|error| failed(error.into()))?;
    let mut file = File::from(fd);
    file.write_all(text.to_string().as_bytes()).map_err(failed)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(file.as_fd(), seals).map_err(|error| failed(error.into()))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn credentials_are_looked_up_by_every_key() {
        for reference in ["alpine", "org/tool:1", "docker.io/library/alpine"] {
            assert_eq!(servers(reference), DOCKER_HUB, "{reference}");
        }
        assert_eq!(servers("ghcr.io/org/tool:1"), ["ghcr.io/org/tool", "ghcr.io/org", "ghcr.io"]);
        assert_eq!(servers("localhost:5000/a@sha256:00"), ["localhost:5000/a", "localhost:5000"]);
        assert_eq!(servers("localhost/a"), ["localhost/a", "localhost"]);
    }

    #[test]
    fn credentials_are_sealed() {
        let credential = DockerCredential::UsernamePassword("alice".into(), "se\"cret".into());
        let file = File::from(sealed(&credential).unwrap());
        let mut bytes = [0; 100];
        let length = file.read_at(&mut bytes, 0).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&bytes[..length]).unwrap();
        assert_eq!(read, json!({ "username": "alice", "password": "se\"cret" }));
        assert!(file.write_at(b"x", 0).is_err() && file.set_len(0).is_err());
    }
}
