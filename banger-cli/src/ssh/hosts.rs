//! The caller's sandboxes as hosts of ssh, one by one: editors list the hosts that a configuration names, and no patterns.
//!
//! Names, users and variables come from a repository's author, and the configuration of ssh can run programs. So whatever
//! is not plain is left out.

use std::collections::BTreeMap;

use banger_proto::bus::names::VM_INTERFACE;

use super::host_of;
use crate::{
    client::{bus::Bus, object::Object},
    error::Result,
    remote::trust,
    workspace::record::{Record, Records},
};

/// The variable that names the workspace. A login shell in the sandbox starts there.
const WORKSPACE: &str = "BANGER_WORKSPACE";
/// Limit on the variables of a host, in bytes. sshd limits them, too.
const MAX_ENV: usize = 16 << 10;

/// A sandbox as a host of ssh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    name: String,
    key: String,
    session: Session,
}

/// How a session in the workspace of a sandbox begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Session {
    /// The user, if not root.
    pub user: Option<String>,
    /// The variables as arguments of `SetEnv`.
    pub env: Vec<String>,
    /// The directory of the workspace.
    pub directory: Option<String>,
}

impl Session {
    /// Returns the session for the workspace that was last sent to the sandbox with this id.
    pub fn of(id: &str) -> Self {
        let kept = Records::of(id).ok().and_then(|records| records.find(None));
        kept.map(|kept| Self::in_workspace(&kept.record)).unwrap_or_default()
    }

    fn in_workspace(record: &Record) -> Self {
        let Record { user, env, setup, .. } = record;
        let workspace = BTreeMap::from([(WORKSPACE.to_owned(), record.directory().to_owned())]);
        // Others can see the arguments of ssh.
        let public = env.iter().filter(|(name, _)| !setup.private.contains(*name));
        let plain = workspace.iter().chain(public).filter_map(|(name, value)| assignment(name, value));
        let mut left = MAX_ENV;
        let fits = |text: &String| {
            let fits = text.len() <= left;
            left -= if fits { text.len() } else { 0 };
            fits
        };
        Self {
            user: user.clone().filter(|user| is_user(user)),
            env: plain.filter(fits).collect(),
            directory: Some(record.directory().to_owned()),
        }
    }

    /// Returns it as settings of ssh.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let user = self.user.iter().map(|user| ("User", user.clone()));
        let env = Some(self.env.join(" ")).filter(|env| !env.is_empty());
        user.chain(env.map(|env| ("SetEnv", env))).collect()
    }
}

/// Quotes a variable for ssh, if it is plain text.
fn assignment(name: &str, value: &str) -> Option<String> {
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let is_name = name.bytes().all(|byte| is_letter(byte) || byte.is_ascii_digit())
        && name.bytes().next().is_some_and(is_letter);
    // Versions of ssh differ in what they replace or unescape.
    let is_plain = !value.contains(['"', '\'', '\\', '%', '$']) && !value.contains(char::is_control);
    (is_name && is_plain).then(|| format!("\"{name}={value}\""))
}

fn is_user(user: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    user.bytes().all(is_plain)
        && user.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_')
}

/// Returns the caller's own sandboxes as hosts, by name.
pub async fn of_caller(bus: &Bus) -> Result<Vec<Host>> {
    let sandboxes = bus.objects(VM_INTERFACE).await?;
    let own = sandboxes.iter().filter(|sandbox| bus.is_own(sandbox));
    let mut hosts: Vec<Host> =
        own.filter(|sandbox| sandbox.text("State") != "deleting").filter_map(host).collect();
    hosts.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(hosts)
}

/// Returns a sandbox as a host, if what becomes of its name, id and key is plain.
fn host(sandbox: &Object) -> Option<Host> {
    if !trust::is_plain(sandbox) || sandbox.name().is_empty() {
        return None;
    }
    let (name, key) = (sandbox.name().to_owned(), sandbox.text("SshHostKey").to_owned());
    Some(Host { name, key, session: Session::of(sandbox.text("Id")) })
}

/// Returns the blocks of a configuration for these hosts. They come before the block for all sandboxes, because ssh takes
/// the first value of a setting.
pub fn blocks(hosts: &[Host]) -> String {
    let mut text = String::new();
    for Host { name, session, .. } in hosts {
        let host = host_of(name);
        text.push_str(&format!("Host {host}\n    HostName {host}\n"));
        for (keyword, value) in session.settings() {
            text.push_str(&format!("    {keyword} {value}\n"));
        }
        text.push('\n');
    }
    text
}

/// Returns the keys of these hosts, in the format of sshd(8), for clients that cannot ask for them.
pub fn known(hosts: &[Host]) -> String {
    let has_key = |host: &&Host| !host.key.is_empty();
    hosts.iter().filter(has_key).map(|host| format!("{} {}\n", host_of(&host.name), host.key)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use zbus::{OwnedVariant, Variant};

    use super::*;

    fn host(name: &str, session: Session) -> Host {
        Host { name: name.to_owned(), key: "ssh-ed25519 AAAA".to_owned(), session }
    }

    #[test]
    fn each_sandbox_is_a_host() {
        let session = Session {
            user: Some("dev".to_owned()),
            env: vec!["\"BANGER_WORKSPACE=/workspaces/x\"".to_owned(), "\"A=b c\"".to_owned()],
            directory: None,
        };
        let hosts = [host("db", Session::default()), host("web", session)];
        let expect = "\
Host db.vm
    HostName db.vm

Host web.vm
    HostName web.vm
    User dev
    SetEnv \"BANGER_WORKSPACE=/workspaces/x\" \"A=b c\"

";
        assert_eq!(blocks(&hosts), expect);
        assert_eq!(known(&hosts), "db.vm ssh-ed25519 AAAA\nweb.vm ssh-ed25519 AAAA\n");
    }

    #[test]
    fn a_service_writes_nothing_else_into_the_configuration() {
        let host = |name: &str, key: &str| {
            let text = |text: &str| OwnedVariant::try_from(Variant::from(text.to_owned())).unwrap();
            let properties =
                [("Name".to_owned(), text(name)), ("SshHostKey".to_owned(), text(key))].into_iter().collect();
            super::host(&Object::new(properties))
        };
        let good = host("web", "ssh-ed25519 AAAA").unwrap();
        assert_eq!(blocks(&[good]), "Host web.vm\n    HostName web.vm\n\n");
        for (name, key) in [
            ("x\n    ProxyCommand touch /tmp/owned\nHost y", ""),
            ("*", ""),
            ("", ""),
            ("-x", ""),
            ("a b", ""),
            ("web", "ssh-ed25519 AAAA\n* ssh-ed25519 BBBB"),
        ] {
            assert_eq!(host(name, key), None, "{name:?} {key:?}");
        }
    }

    #[test]
    fn a_repository_writes_nothing_else_into_the_configuration() {
        for (name, value, expect) in [
            ("A", "b", Some("\"A=b\"")),
            ("_a1", "", Some("\"_a1=\"")),
            ("A", "b # c", Some("\"A=b # c\"")),
            ("A", "b\"\nProxyCommand evil", None),
            ("A", "b\nProxyCommand evil", None),
            ("A", "b\rc", None),
            ("A", "\\", None),
            ("A", "%h", None),
            ("A", "${HOME}", None),
            ("A B", "x", None),
            ("1A", "x", None),
            ("", "x", None),
            ("A\n", "x", None),
        ] {
            assert_eq!(assignment(name, value).as_deref(), expect, "{name:?} {value:?}");
        }
        for (user, expect) in [
            ("dev", true),
            ("_x.y-1", true),
            ("-oX", false),
            ("a b", false),
            ("a\nb", false),
            ("%u", false),
            ("", false),
        ] {
            assert_eq!(is_user(user), expect, "{user:?}");
        }
    }

    #[test]
    fn the_variables_of_a_host_are_bounded() {
        let env: BTreeMap<String, String> =
            (0..100).map(|number| (format!("A{number}"), "x".repeat(1000))).collect();
        let record = serde_json::from_value(serde_json::json!({
            "guest_path": "/root/repo", "source": "/src", "branch": null, "commit": null, "algorithm": "sha1",
            "mode": "shallow", "untracked": false, "from_commit": false, "env": env, "sent_at": 1,
        }));
        let session = record.map(|record: Record| Session::in_workspace(&record)).unwrap_or_default();
        assert_eq!(session.env.first().map(String::as_str), Some("\"BANGER_WORKSPACE=/root/repo\""));
        assert!(session.env.len() == 17, "{}", session.env.len());
    }
}
