//! The values of `--share`.

use std::{env, path::PathBuf, str::FromStr};

use ssh_key::{HashAlg, PublicKey};

use super::{git::Site, registry::Registry};

/// How the name of a key begins that is given by its hash.
const FINGERPRINT: &str = "SHA256:";

/// Credentials that a command may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    /// Passwords of git for one host.
    Git(Site),
    /// Credentials of docker and podman for one registry.
    Registry(Registry),
    /// Keys of the ssh-agent: the one with this fingerprint, or all.
    SshAgent(Option<String>),
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, value) = text.split_once(':').map_or((text, None), |(kind, value)| (kind, Some(value)));
        match (kind, value) {
            ("git", Some(site)) => site.parse().map(Self::Git),
            ("git", None) => Err("name the host, such as git:github.com".to_owned()),
            ("docker", Some(registry)) => registry.parse().map(Self::Registry),
            ("docker", None) => Err("name the registry, such as docker:ghcr.io".to_owned()),
            ("ssh-agent", None) => Ok(Self::SshAgent(None)),
            ("ssh-agent", Some(key)) => fingerprint(key).map(|key| Self::SshAgent(Some(key))),
            _ => Err("it must be git:HOST, docker:REGISTRY or ssh-agent[:KEY]".to_owned()),
        }
    }
}

/// Returns the fingerprint of a key, given by that or by the file with its public half.
fn fingerprint(key: &str) -> Result<String, String> {
    if key.starts_with(FINGERPRINT) {
        return Ok(key.to_owned());
    }
    // A shell leaves `~` as it is in the middle of a word.
    let path = match (key.strip_prefix("~/"), env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(key),
    };
    let public = PublicKey::read_openssh_file(&path);
    let public = public.map_err(|_| {
        format!("{key} is neither a fingerprint, as `ssh-add -l` prints it, nor a file with a public key")
    })?;
    Ok(public.fingerprint(HashAlg::Sha256).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_kind_names_what_it_shares() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti ann\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), key).unwrap();
        let expect = key.parse::<PublicKey>().unwrap().fingerprint(HashAlg::Sha256).to_string();
        let of_file = format!("ssh-agent:{}", file.path().display());
        for (text, shared) in [
            ("ssh-agent", Share::SshAgent(None)),
            ("ssh-agent:SHA256:abc", Share::SshAgent(Some("SHA256:abc".to_owned()))),
            (of_file.as_str(), Share::SshAgent(Some(expect))),
            ("git:github.com", Share::Git("github.com".parse().unwrap())),
            ("docker:ghcr.io", Share::Registry("ghcr.io".parse().unwrap())),
        ] {
            assert_eq!(text.parse::<Share>(), Ok(shared), "{text}");
        }
        for wrong in [
            "",
            "git",
            "git:",
            "ssh-agent:/nonexistent",
            "docker",
            "docker:a/b",
            "podman:x",
            "github.com",
            "git:a b",
        ] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }
}
