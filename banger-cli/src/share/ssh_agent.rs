//! Keys of the user's ssh-agent (draft-ietf-sshm-ssh-agent): the sandbox learns which there are, and gets signatures.
//! Everything else that an agent can do is refused, such as adding, removing and locking keys.

use std::{
    collections::HashSet,
    env, io,
    path::{Path, PathBuf},
    time::Duration,
};

use ssh_key::{HashAlg, PublicKey};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::UnixStream,
};

use super::Uses;
use crate::error::{Error, Result};

/// Limit on a message, as in OpenSSH.
const MAX_MESSAGE: usize = 256 << 10;
/// How long the agent may take to list its keys.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;

/// The keys that may be used.
#[derive(Debug, Default)]
pub struct Keys {
    all: bool,
    fingerprints: HashSet<String>,
}

impl Keys {
    /// Adds a key, or all.
    pub fn allow(&mut self, fingerprint: Option<&str>) {
        match fingerprint {
            Some(fingerprint) => drop(self.fingerprints.insert(fingerprint.to_owned())),
            None => self.all = true,
        }
    }

    fn has(&self, key: &[u8]) -> bool {
        self.all || self.fingerprints.contains(&name(key))
    }
}

/// Returns the fingerprint of a key.
fn name(key: &[u8]) -> String {
    match PublicKey::from_bytes(key) {
        Ok(key) => key.fingerprint(HashAlg::Sha256).to_string(),
        Err(_) => "a key of an unknown kind".to_owned(),
    }
}

/// Returns the socket of the caller's agent.
pub fn socket_of_caller() -> Result<PathBuf> {
    let path = env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).map(PathBuf::from);
    path.ok_or_else(|| {
        Error::Refused("cannot share the ssh-agent: none is running".to_owned())
            .with_hint("`eval $(ssh-agent)` starts one, and `ssh-add` gives it your key.")
    })
}

/// Checks that an agent listens there, and that it has the keys.
pub async fn check(path: &Path, keys: &Keys) -> Result<()> {
    let listed = tokio::time::timeout(CHECK_TIMEOUT, list(path)).await;
    let listed = listed.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
    let listed = listed.map_err(|source| Error::io("use the ssh-agent", source))?;
    let missing = keys.fingerprints.iter().find(|key| !listed.contains(*key));
    missing.map_or(Ok(()), |key| {
        Err(Error::Refused(format!("cannot share the key {key}: the ssh-agent does not have it"))
            .with_hint("`ssh-add -l` lists its keys; `ssh-add FILE` adds one."))
    })
}

/// Returns the fingerprints of an agent's keys.
async fn list(path: &Path) -> io::Result<HashSet<String>> {
    let mut agent = UnixStream::connect(path).await?;
    let answer = ask(&mut agent, &[REQUEST_IDENTITIES]).await?;
    Ok(fingerprints(&answer).unwrap_or_default())
}

fn fingerprints(answer: &[u8]) -> Option<HashSet<String>> {
    let mut rest = answer.strip_prefix(&[IDENTITIES_ANSWER])?;
    let mut found = HashSet::new();
    for _ in 0..number(&mut rest)? {
        let (key, _comment) = (string(&mut rest)?, string(&mut rest)?);
        found.insert(name(key));
    }
    Some(found)
}

/// Answers one connection.
pub async fn answer(mut sandbox: DuplexStream, path: &Path, keys: &Keys, uses: &impl Uses) -> Result<()> {
    let failed = |source| Error::io("use the ssh-agent", source);
    let mut agent = UnixStream::connect(path).await.map_err(failed)?;
    while let Some(request) = read(&mut sandbox).await.map_err(failed)? {
        let reply = reply(&mut agent, &request, keys, uses).await.map_err(failed)?;
        write(&mut sandbox, &reply).await.map_err(failed)?;
    }
    Ok(())
}

async fn reply(
    agent: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &[u8],
    keys: &Keys,
    uses: &impl Uses,
) -> io::Result<Vec<u8>> {
    match request.split_first() {
        Some((&REQUEST_IDENTITIES, [])) => {
            let answer = ask(agent, request).await?;
            Ok(shared(&answer, keys).unwrap_or_else(|| vec![FAILURE]))
        }
        Some((&SIGN_REQUEST, mut rest)) => match string(&mut rest) {
            Some(key) if !keys.has(key) => {
                uses.refuse(&format!("a signature of {}", name(key)));
                Ok(vec![FAILURE])
            }
            Some(key) if uses.allow(&format!("{} of your ssh-agent", name(key))) => ask(agent, request).await,
            _ => Ok(vec![FAILURE]),
        },
        _ => Ok(vec![FAILURE]),
    }
}

async fn ask(agent: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8]) -> io::Result<Vec<u8>> {
    write(agent, request).await?;
    read(agent).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Returns an answer with only the shared ones of these keys.
fn shared(answer: &[u8], keys: &Keys) -> Option<Vec<u8>> {
    let mut rest = answer.strip_prefix(&[IDENTITIES_ANSWER])?;
    let count = number(&mut rest)?;
    let (mut left, mut bytes) = (0_u32, Vec::new());
    for _ in 0..count {
        let (key, comment) = (string(&mut rest)?, string(&mut rest)?);
        if keys.has(key) {
            left += 1;
            put(&mut bytes, key);
            put(&mut bytes, comment);
        }
    }
    Some([&[IDENTITIES_ANSWER], &left.to_be_bytes()[..], &bytes].concat())
}

fn number(from: &mut &[u8]) -> Option<u32> {
    let (number, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(u32::from_be_bytes(*number))
}

fn string<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(number(from)?).ok()?;
    let (string, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(string)
}

fn put(to: &mut Vec<u8>, string: &[u8]) {
    to.extend(u32::try_from(string.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend(string);
}

/// Reads a message, or the end.
async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let length = match from.read_u32().await {
        Ok(length) => usize::try_from(length).unwrap_or(usize::MAX),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if !(1..=MAX_MESSAGE).contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::new();
    put(&mut bytes, message);
    to.write_all(&bytes).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use super::*;

    /// Two keys, and the answer of an agent with both.
    fn agent_with_two_keys() -> ([Vec<u8>; 2], Vec<u8>) {
        let key = |last: &str| {
            let text = format!(
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSq{last} x"
            );
            text.parse::<PublicKey>().unwrap().to_bytes().unwrap()
        };
        let keys = [key("ti"), key("ta")];
        let mut answer = vec![IDENTITIES_ANSWER, 0, 0, 0, 2];
        for key in &keys {
            put(&mut answer, key);
            put(&mut answer, b"comment");
        }
        (keys, answer)
    }

    #[derive(Default)]
    struct Told(Mutex<Vec<String>>);

    impl Uses for Told {
        fn allow(&self, what: &str) -> bool {
            self.0.lock().unwrap().push(format!("uses {what}"));
            true
        }

        fn refuse(&self, what: &str) {
            self.0.lock().unwrap().push(format!("refused {what}"));
        }
    }

    fn sign(key: &[u8]) -> Vec<u8> {
        let mut request = vec![SIGN_REQUEST];
        put(&mut request, key);
        put(&mut request, b"data");
        request.extend([0; 4]);
        request
    }

    #[tokio::test]
    async fn only_shared_keys_are_listed_and_sign() {
        let ([mine, other], all) = agent_with_two_keys();
        let mut keys = Keys::default();
        keys.allow(Some(&name(&mine)));
        let told = Told::default();
        let (mut here, mut agent) = tokio::io::duplex(1 << 20);
        let answers = tokio::spawn(async move {
            let mut asked = Vec::new();
            while let Some(request) = read(&mut agent).await.unwrap() {
                asked.push(request[0]);
                let answer = if request[0] == REQUEST_IDENTITIES { all.clone() } else { vec![14, 1] };
                write(&mut agent, &answer).await.unwrap();
            }
            asked
        });
        let mut listed = vec![IDENTITIES_ANSWER, 0, 0, 0, 1];
        put(&mut listed, &mine);
        put(&mut listed, b"comment");
        for (request, expect) in [
            (vec![REQUEST_IDENTITIES], listed),
            (sign(&mine), vec![14, 1]),
            (sign(&other), vec![FAILURE]),
            // A key whose length is a lie, and no key at all.
            (vec![SIGN_REQUEST, 255, 255, 255, 255, 1], vec![FAILURE]),
            (vec![SIGN_REQUEST], vec![FAILURE]),
            (vec![REQUEST_IDENTITIES, 1], vec![FAILURE]),
            // Adding, removing, locking, and extensions.
            (vec![17, 0], vec![FAILURE]),
            (vec![19], vec![FAILURE]),
            (vec![22, 0], vec![FAILURE]),
            (vec![27, 0], vec![FAILURE]),
        ] {
            assert_eq!(reply(&mut here, &request, &keys, &told).await.unwrap(), expect, "{request:?}");
        }
        drop(here);
        assert_eq!(answers.await.unwrap(), [REQUEST_IDENTITIES, SIGN_REQUEST]);
        let told = told.0.into_inner().unwrap();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("uses SHA256:") && told[1].starts_with("refused a signature of SHA256:"));
    }

    #[tokio::test]
    async fn messages_without_end_are_not_read() {
        for bytes in [&[0xff; 8][..], &[0, 0, 0, 0]] {
            let (mut here, mut there) = tokio::io::duplex(64);
            here.write_all(bytes).await.unwrap();
            drop(here);
            assert!(read(&mut there).await.is_err());
        }
    }
}
