//! Registry credentials of the user's container tools, as written by `docker login` and `podman login`. The service
//! gets them in a sealed memory file, for one pull only.

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::credential_helper::{self, Terminal};
use crate::error::{Error, Result};

/// Names of Docker's own registry in credential files.
pub const DOCKER_HUB: [&str; 3] = ["https://index.docker.io/v1/", "docker.io", "index.docker.io"];
/// Its name in references.
const DOCKER_IO: &str = "docker.io";
/// More than any file of credentials has.
const MAX_FILE: u64 = 4 << 20;

/// What the user's files have for a registry.
#[derive(Debug, Default)]
pub struct Found {
    /// The credentials, in a sealed memory file.
    pub file: Option<OwnedFd>,
    /// Files that cannot be read, and why.
    pub notes: Vec<String>,
}

/// The user's login at a registry.
pub type Login = DockerCredential;

/// Returns the credentials for the registry of a reference, if there are any.
pub async fn of_reference(reference: &str) -> Result<Found> {
    let (found, notes) = login_at(reference).await?;
    Ok(Found { file: found.map(|credential| sealed(&credential)).transpose()?, notes })
}

/// Returns the login at the registry of a reference, if there is one, and why files of credentials cannot be read.
pub async fn login_at(reference: &str) -> Result<(Option<Login>, Vec<String>)> {
    let servers = servers(reference);
    // A credential helper is a program, and may take long.
    let found = tokio::task::spawn_blocking(move || {
        let (files, notes) = read_files(&paths());
        look_up(&files, &servers, Terminal::Shared).map(|found| (found, notes))
    });
    let found = found.await;
    found.map_err(|error| Error::io("read your registry credentials", io::Error::other(error)))?
}

/// Returns the credentials for a registry, if there are any, while another program has the terminal. A credential helper may
/// take long. Files that cannot be read are ignored, as a pull says.
pub fn of_registry(name: &str) -> Result<Option<DockerCredential>> {
    let servers = match name {
        DOCKER_IO => DOCKER_HUB.map(str::to_owned).to_vec(),
        name => vec![name.to_owned()],
    };
    look_up(&read_files(&paths()).0, &servers, Terminal::Taken)
}

/// Returns the keys under which credentials for a reference may be stored, the most specific first.
fn servers(reference: &str) -> Vec<String> {
    let name = reference.strip_prefix("docker://").unwrap_or(reference);
    let name = name.split('@').next().unwrap_or_default();
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

/// A file of credentials: its content, the keys in it, and the helpers for keys and for everything else.
struct CredentialFile {
    bytes: Vec<u8>,
    keys: Vec<String>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

impl CredentialFile {
    fn parse(bytes: Vec<u8>) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Config {
            auths: Option<Map<String, Value>>,
            cred_helpers: Option<BTreeMap<String, String>>,
            creds_store: Option<String>,
        }
        let Config { auths, cred_helpers, creds_store: store } = serde_json::from_slice(&bytes)?;
        let auths = auths.unwrap_or_default();
        let keys = auths.keys().cloned().collect();
        // Helpers are run here, and not by who reads this.
        let bytes = serde_json::to_vec(&json!({ "auths": auths }))?;
        Ok(Self { bytes, keys, helpers: cred_helpers.unwrap_or_default(), store })
    }

    /// Looks a key up as docker does: in its own helper, in the file, and in the helper for everything else.
    fn get(&self, key: &str, terminal: Terminal) -> Result<DockerCredential, CredentialRetrievalError> {
        if let Some(helper) = self.helpers.get(key) {
            return credential_helper::ask(helper, key, terminal);
        }
        match (get_credential_from_reader(&self.bytes[..], key), &self.store) {
            (Err(CredentialRetrievalError::NoCredentialConfigured), Some(helper)) => {
                credential_helper::ask(helper, key, terminal)
            }
            (found, _) => found,
        }
    }

    /// Returns the key that means a registry, as the file has it, or else the registry itself, which a helper knows.
    fn key<'a>(&'a self, server: &'a str) -> &'a str {
        let is_it = |key: &&String| plain_key(key) == plain_key(server);
        self.keys
            .iter()
            .find(|key| *key == server)
            .or_else(|| self.keys.iter().find(is_it))
            .map_or(server, |key| key)
    }
}

/// Returns a key without what programs add to the name of a registry: a scheme, the version of the API, a slash.
pub fn plain_key(key: &str) -> &str {
    let name = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let name = name.trim_end_matches('/');
    let name = name.strip_suffix("/v1").or_else(|| name.strip_suffix("/v2")).unwrap_or(name);
    name.trim_end_matches('/')
}

/// Reads the files that exist, and says which of them cannot be read.
fn read_files(paths: &[PathBuf]) -> (Vec<CredentialFile>, Vec<String>) {
    let (mut files, mut notes) = (Vec::new(), Vec::new());
    for path in paths {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
        let why = match read {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
            Err(error) => error.to_string(),
            Ok(_) => match CredentialFile::parse(bytes) {
                Ok(file) => {
                    files.push(file);
                    continue;
                }
                // The error has a position and no content.
                Err(error) => {
                    format!("it is not valid JSON at line {}, column {}", error.line(), error.column())
                }
            },
        };
        notes.push(format!("the registry credentials in {} are not used: {why}", path.display()));
    }
    (files, notes)
}

fn look_up(
    files: &[CredentialFile],
    servers: &[String],
    terminal: Terminal,
) -> Result<Option<DockerCredential>> {
    for server in servers {
        for file in files {
            match file.get(file.key(server), terminal) {
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
            format!("docker-credential-{} failed", helper.trim_start_matches("docker-credential-"))
        }
        other => other.to_string(),
    };
    Err(Error::Refused(format!("cannot read your registry credentials: {why}"))
        .with_hint("`docker logout REGISTRY` and `docker login REGISTRY` write them again."))
}

/// Returns where Docker and podman store credentials, in the order in which they are asked.
fn paths() -> Vec<PathBuf> {
    let of = |variable: &str, rest: &str| env::var_os(variable).map(|value| PathBuf::from(value).join(rest));
    let docker = of("DOCKER_CONFIG", "config.json").or(of("HOME", ".docker/config.json"));
    let named = env::var_os("REGISTRY_AUTH_FILE").map(PathBuf::from);
    let config = of("XDG_CONFIG_HOME", "containers/auth.json").or(of("HOME", ".config/containers/auth.json"));
    [docker, named, of("XDG_RUNTIME_DIR", "containers/auth.json"), config].into_iter().flatten().collect()
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
        for reference in ["alpine", "org/tool:1", "docker.io/library/alpine", "docker://alpine"] {
            assert_eq!(servers(reference), DOCKER_HUB, "{reference}");
        }
        assert_eq!(servers("ghcr.io/org/tool:1"), ["ghcr.io/org/tool", "ghcr.io/org", "ghcr.io"]);
        assert_eq!(servers("localhost:5000/a@sha256:00"), ["localhost:5000/a", "localhost:5000"]);
        assert_eq!(servers("localhost/a"), ["localhost/a", "localhost"]);
        assert_eq!(servers("docker://ghcr.io/tool:1"), ["ghcr.io/tool", "ghcr.io"]);
    }

    /// The password that a file with one key has for a reference.
    fn password(key: &str, reference: &str) -> Option<String> {
        let text = json!({ "auths": { key: { "username": "alice", "password": key } } }).to_string();
        let file = CredentialFile::parse(text.into_bytes()).unwrap();
        match look_up(&[file], &servers(reference), Terminal::Taken).unwrap() {
            Some(DockerCredential::UsernamePassword(_, password)) => Some(password),
            _ => None,
        }
    }

    #[test]
    fn a_key_means_a_registry_however_it_is_written() {
        for key in ["host:5000", "host:5000/", "http://host:5000", "https://host:5000/v2/", "host:5000/v1/"] {
            assert_eq!(password(key, "host:5000/a/b:1").as_deref(), Some(key));
            assert_eq!(password(key, "host:5001/a/b:1"), None);
        }
        for key in ["https://index.docker.io/v1/", "docker.io", "index.docker.io/"] {
            assert_eq!(password(key, "alpine").as_deref(), Some(key));
        }
        assert_eq!(password("ghcr.io/org/", "ghcr.io/org/tool").as_deref(), Some("ghcr.io/org/"));
        assert_eq!(password("ghcr.io/org", "ghcr.io/other/tool"), None);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = home.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (files, notes) = read_files(&[home.path().join("none"), path("good", "{}")]);
        assert_eq!((files.len(), notes), (1, Vec::new()));
        let (files, notes) = read_files(&[path("bad", "{\"auths\": \"geheim"), home.path().to_owned()]);
        assert_eq!((files.len(), notes.len()), (0, 2));
        assert!(notes[0].contains("bad are not used: it is not valid JSON at line 1"), "{notes:?}");
        assert!(!notes[0].contains("geheim"), "{notes:?}");
    }

    #[test]
    fn a_helper_has_its_name_once() {
        let helper = "docker-credential-pass".to_owned();
        let failure =
            CredentialRetrievalError::HelperFailure { helper, stdout: "secret".into(), stderr: "".into() };
        let error = ignore_missing(failure).unwrap_err().to_string();
        assert!(error.contains(": docker-credential-pass failed") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn credentials_are_sealed() {
        let credential = DockerCredential::UsernamePassword("alice".into(), "se\"cret".into());
        let file = File::from(sealed(&credential).unwrap());
        let mut bytes = [0; 100];
        let length = file.read_at(&mut bytes, 0).unwrap();
        let read: Value = serde_json::from_slice(&bytes[..length]).unwrap();
        assert_eq!(read, json!({ "username": "alice", "password": "se\"cret" }));
        assert!(file.write_at(b"x", 0).is_err() && file.set_len(0).is_err());
    }
}
