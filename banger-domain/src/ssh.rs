//! SSH keys: the host key of a sandbox, and the user keys that it accepts.

use std::{fmt, str::FromStr};

use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey, rand_core::OsRng};

/// The most keys that a sandbox accepts.
pub const MAX_AUTHORIZED_KEYS: usize = 16;
/// The longest key in bytes, comment included. An RSA key of 16384 bits has less than 3 KiB.
pub const MAX_AUTHORIZED_KEY: usize = 8 << 10;

/// The SSH host key of a sandbox. It is made with the sandbox, so that clients know it before the first boot, and
/// stays the same across boots.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey {
    secret: String,
    public: String,
}

/// The text is not an unencrypted ed25519 key pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the text is not an ssh key pair")]
pub struct NotAHostKey;

impl HostKey {
    /// Generates an ed25519 key pair.
    pub fn random() -> Result<Self, NotAHostKey> {
        let pair = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(|_| NotAHostKey)?;
        Self::of(&pair)
    }

    fn of(pair: &PrivateKey) -> Result<Self, NotAHostKey> {
        if pair.algorithm() != Algorithm::Ed25519 || pair.is_encrypted() {
            return Err(NotAHostKey);
        }
        let secret = pair.to_openssh(LineEnding::LF).map_err(|_| NotAHostKey)?;
        // The comment that follows the key is not compared.
        let public = PublicKey::from(pair.public_key().key_data().clone());
        let public = public.to_openssh().map_err(|_| NotAHostKey)?;
        Ok(Self { secret: secret.to_string(), public })
    }

    /// Returns the private key in the format of OpenSSH, as in a server's host key file.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// Returns the public key, such as `ssh-ed25519 AAAA…`.
    pub fn public(&self) -> &str {
        &self.public
    }
}

/// Parses a private key in the format of OpenSSH, as it was stored.
impl FromStr for HostKey {
    type Err = NotAHostKey;

    fn from_str(text: &str) -> Result<Self, NotAHostKey> {
        Self::of(&PrivateKey::from_openssh(text).map_err(|_| NotAHostKey)?)
    }
}

/// Omits the private key.
impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey({})", self.public)
    }
}

/// A public key that a sandbox accepts: one line of an `authorized_keys` file, without options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizedKey(String);

/// Why a text is not an acceptable key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAKey {
    /// It is longer than any key.
    #[error("a public key has at most {MAX_AUTHORIZED_KEY} bytes")]
    TooLong,
    /// It has more than one line, or is not text.
    #[error("a public key is one line of text")]
    NotALine,
    /// It does not begin with a key of a type that ssh knows.
    #[error("it is not a public key such as the one in ~/.ssh/id_ed25519.pub; options are not supported")]
    Unknown,
    /// There are more keys than a sandbox accepts.
    #[error("there may be at most {MAX_AUTHORIZED_KEYS} keys")]
    TooMany,
}

impl AuthorizedKey {
    /// Parses these texts as keys and drops repetitions.
    pub fn parse_all<T: AsRef<str>>(texts: &[T]) -> Result<Vec<Self>, NotAKey> {
        if texts.len() > MAX_AUTHORIZED_KEYS {
            return Err(NotAKey::TooMany);
        }
        let mut keys = Vec::with_capacity(texts.len());
        for text in texts {
            let key: Self = text.as_ref().parse()?;
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// Returns the line, without a line feed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AuthorizedKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        if text.len() > MAX_AUTHORIZED_KEY {
            return Err(NotAKey::TooLong);
        }
        let line = text.trim();
        if line.contains(char::is_control) {
            return Err(NotAKey::NotALine);
        }
        // Options come before the key type, so that the first word is not a known type.
        let key = PublicKey::from_openssh(line).map_err(|_| NotAKey::Unknown)?;
        if matches!(key.algorithm(), Algorithm::Other(_) | Algorithm::Dsa) {
            return Err(NotAKey::Unknown);
        }
        key.to_openssh().map(Self).map_err(|_| NotAKey::Unknown)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2\
         SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=";

    #[test]
    fn a_host_key_is_new_each_time_and_reads_back() {
        let key = HostKey::random().unwrap();
        assert_ne!(key, HostKey::random().unwrap());
        assert_eq!(key.secret().parse(), Ok(key.clone()));
        assert!(key.secret().starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
        assert_eq!(key.public().split(' ').collect::<Vec<_>>().len(), 2, "{}", key.public());
        assert!(key.public().starts_with("ssh-ed25519 AAAA"));
    }

    #[test]
    fn the_private_key_is_never_printed() {
        let key = HostKey::random().unwrap();
        assert_eq!(format!("{key:?}"), format!("HostKey({})", key.public()));
    }

    #[test]
    fn an_invalid_host_key_is_refused() {
        for text in ["", "nonsense", ED25519] {
            assert_eq!(text.parse::<HostKey>(), Err(NotAHostKey), "{text}");
        }
    }

    fn check(text: &str, expect: Result<&str, NotAKey>) {
        let parsed = text.parse::<AuthorizedKey>();
        assert_eq!(parsed.as_ref().map(AuthorizedKey::as_str), expect.as_ref().copied(), "{text}");
    }

    #[test]
    fn keys_are_one_line_with_or_without_a_comment() {
        check(ED25519, Ok(ED25519));
        check(ECDSA, Ok(ECDSA));
        let commented = format!("{ED25519} alice at home");
        check(&format!("{commented}\n"), Ok(&commented));
    }

    #[test]
    fn options_and_nonsense_are_refused() {
        check("", Err(NotAKey::Unknown));
        check("ssh-ed25519", Err(NotAKey::Unknown));
        check("ssh-ed25519 AAAA", Err(NotAKey::Unknown));
        check(&format!("command=\"sh\" {ED25519}"), Err(NotAKey::Unknown));
        check(&format!("restrict,pty {ED25519}"), Err(NotAKey::Unknown));
        check(&format!("# {ED25519}"), Err(NotAKey::Unknown));
        check(&ED25519.replacen("ssh-ed25519", "ssh-rsa", 1), Err(NotAKey::Unknown));
        check(&format!("{ED25519}\n{ED25519}"), Err(NotAKey::NotALine));
        check(&format!("{ED25519} \u{1b}[2J"), Err(NotAKey::NotALine));
        check(&format!("{ED25519} {}", "x".repeat(MAX_AUTHORIZED_KEY)), Err(NotAKey::TooLong));
    }

    #[test]
    fn a_list_of_keys_is_bounded_and_has_each_once() {
        let keys = AuthorizedKey::parse_all(&[ED25519, ECDSA, ED25519]).unwrap();
        assert_eq!(keys.iter().map(AuthorizedKey::as_str).collect::<Vec<_>>(), [ED25519, ECDSA]);
        assert_eq!(AuthorizedKey::parse_all::<&str>(&[]), Ok(Vec::new()));
        assert_eq!(AuthorizedKey::parse_all(&[ED25519; 17]), Err(NotAKey::TooMany));
        assert_eq!(AuthorizedKey::parse_all(&[ED25519, "x"]), Err(NotAKey::Unknown));
    }
}
