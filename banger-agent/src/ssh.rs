//! Configures the host key of the image's ssh server, and the user keys that it accepts.
//!
//! The server presents only the key that the host made for this sandbox, because the keys in an image are known to
//! everyone who has the image. So every file in which a server looks for a host key gets this key, whatever type its
//! name suggests. This also saves an image the time to generate missing keys: a second or, under emulation, a minute.
//! The servers of most distributions read `sshd_config.d`, where one file contains all settings and no file of the
//! user changes. For other servers, the user's `authorized_keys` gets a managed block. An image without a server is
//! prepared for one that is installed later.

use std::{fs, io};

use banger_proto::guest::config::{GuestFile, GuestSsh};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    apply,
    managed_block::{Markers, Position},
};

const CONFIG: &str = "/etc/ssh/sshd_config";
/// The files in which servers look for keys by default, and which ssh-keygen creates if missing. The first is the one
/// for our type of key.
const HOST_KEYS: [&str; 3] =
    ["/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_ecdsa_key"];
/// Starts logins in the workspace that the client names in this variable. Commands, copies and git begin in the home.
const PROFILE: &str = "/etc/profile.d/banger.sh";
const PROFILE_DIRECTORY: &str = "/etc/profile.d";
const PROFILE_TEXT: &str = "\
# Written by banger at each boot.
case $- in
*i*)
    if [ -n \"${BANGER_WORKSPACE-}\" ] && [ \"$PWD\" = \"$HOME\" ]; then
        cd \"$BANGER_WORKSPACE\" 2> /dev/null || :
    fi
    unset BANGER_WORKSPACE
    ;;
esac
";
/// Where sshd writes its process id (sshd_config(5), "PidFile").
const PID_FILE: &str = "/run/sshd.pid";
/// sshd uses the first value of a setting, so this file must be read first.
const DROP_IN: &str = "/etc/ssh/sshd_config.d/00-banger.conf";
/// Applies to every user of the guest. Written again at each boot.
const AUTHORIZED_KEYS: &str = "/run/banger/authorized_keys";
const AUTHORIZED_KEYS_OF_ROOT: &str = "/root/.ssh/authorized_keys";
const MARKERS: Markers = Markers {
    begin: "# The keys between these lines are those of the host, written by banger at each boot.",
    end: "# The end of the host's keys.",
};

/// Writes the configuration below `root`, and files for this boot below `run`, the path of `/run` until the root is
/// switched. Returns the problems.
pub fn apply(root: &str, run: &str, ssh: &GuestSsh) -> Vec<String> {
    let mut problems = Vec::new();
    let mut note = |result: io::Result<()>, what: &str| {
        if let Err(error) = result {
            problems.push(format!("cannot set up ssh: {what}: {error}"));
        }
    };
    let config = apply::read(root, CONFIG);
    let server =
        Server::of(config.as_ref().ok().and_then(Option::as_deref).map(String::from_utf8_lossy).as_deref());
    note(config.map(drop), CONFIG);
    for path in HOST_KEYS {
        note(apply::write(root, &file(path, 0o600, ssh.host_key.clone())), path);
        let public = format!("{path}.pub");
        note(apply::write(root, &file(&public, 0o644, format!("{}\n", ssh.host_key_public))), &public);
    }
    let keys: String = ssh.authorized_keys.iter().map(|key| format!("{key}\n")).collect();
    if server.reads_drop_ins {
        note(apply::write(root, &file(DROP_IN, 0o644, server.drop_in())), DROP_IN);
        note(apply::write(run, &file(AUTHORIZED_KEYS, 0o644, keys)), AUTHORIZED_KEYS);
        if apply::exists(root, PROFILE_DIRECTORY) {
            note(apply::write(root, &file(PROFILE, 0o644, PROFILE_TEXT.to_owned())), PROFILE);
        }
    } else {
        note(authorize_for_root(root, &keys), AUTHORIZED_KEYS_OF_ROOT);
    }
    problems
}

/// Has a running server read its keys again (sshd(8), `SIGHUP`). Others have none that they could read again.
pub fn reload(root: &str) {
    let number = |bytes: Vec<u8>| String::from_utf8(bytes).ok()?.trim().parse().ok();
    let pid = apply::read(root, PID_FILE).ok().flatten().and_then(number).filter(|pid| is_server(*pid));
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        // It may have ended just now.
        let _ = kill_process(pid, Signal::HUP);
    }
}

/// Returns whether a process is a server: the file may be from an earlier one.
fn is_server(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sshd")
}

/// Returns whether the host key on the disk is not this guest's.
///
/// The agent writes the key at each boot. So the disk was another guest's, or the image has host keys.
pub fn is_of_another(root: &str, ssh: &GuestSsh) -> bool {
    let public = apply::read(root, &format!("{}.pub", HOST_KEYS[0]));
    let public = public.ok().flatten();
    public.is_some_and(|public| public.trim_ascii() != ssh.host_key_public.trim().as_bytes())
}

fn file(path: &str, mode: u32, content: String) -> GuestFile {
    GuestFile { path: path.to_owned(), mode, content }
}

/// Facts from the configuration of the image's server.
#[derive(Debug, PartialEq, Eq)]
struct Server {
    /// Whether it reads `sshd_config.d`.
    reads_drop_ins: bool,
    /// Where it looks for accepted keys.
    authorized_keys: String,
}

impl Server {
    /// Parses the configuration. A server that is not installed yet will read `sshd_config.d`.
    fn of(config: Option<&str>) -> Self {
        let mut server = Self {
            reads_drop_ins: config.is_none(),
            authorized_keys: ".ssh/authorized_keys .ssh/authorized_keys2".to_owned(),
        };
        // Of repeated lines, this uses the last and sshd the first; images have at most one.
        for line in config.unwrap_or_default().lines() {
            let (word, rest) = line.trim().split_once([' ', '\t', '=']).unwrap_or_default();
            match word.to_ascii_lowercase().as_str() {
                // Lines after `Match` apply to some connections only.
                "match" => break,
                "include" => server.reads_drop_ins |= rest.contains("sshd_config.d/*.conf"),
                "authorizedkeysfile" => rest.trim().clone_into(&mut server.authorized_keys),
                _ => {}
            }
        }
        server
    }

    fn drop_in(&self) -> String {
        format!(
            "# Written by banger at each boot.\n\
             HostKey {}\n\
             PermitRootLogin prohibit-password\n\
             AcceptEnv *\n\
             AuthorizedKeysFile {} {AUTHORIZED_KEYS}\n",
            HOST_KEYS[0], self.authorized_keys
        )
    }
}

/// Adds the keys to the user's file, whose other lines stay unchanged.
fn authorize_for_root(root: &str, keys: &str) -> io::Result<()> {
    let old = apply::read(root, AUTHORIZED_KEYS_OF_ROOT)?.unwrap_or_default();
    let old = String::from_utf8(old).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let new = MARKERS.put(&old, Position::Bottom, keys);
    if new == old {
        return Ok(());
    }
    apply::directory(root, "/root/.ssh", 0o700)?;
    apply::write(root, &file(AUTHORIZED_KEYS_OF_ROOT, 0o600, new))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{os::unix::fs::PermissionsExt, path::Path};

    use super::*;

    const DEBIAN: &str =
        "# a comment\n\nInclude /etc/ssh/sshd_config.d/*.conf\n#HostKey /etc/ssh/x\nUsePAM yes\n";
    const OLD: &str = "HostKey /etc/ssh/ssh_host_rsa_key\nhostkey=/etc/ssh/ssh_host_ed25519_key\n";

    fn ssh() -> GuestSsh {
        GuestSsh {
            host_key: "secret\n".into(),
            host_key_public: "public".into(),
            authorized_keys: vec!["key one".into(), "key two".into()],
        }
    }

    /// Returns a root with this configuration and keys of the image, after the keys were set up twice.
    fn applied(config: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc/ssh");
        fs::create_dir_all(&etc).unwrap();
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "ssh_host_ed25519_key"] {
            fs::write(etc.join(name), "of the image").unwrap();
        }
        if let Some(config) = config {
            fs::write(etc.join("sshd_config"), config).unwrap();
        }
        let text = root.path().to_str().unwrap();
        assert_eq!(apply(text, text, &ssh()), Vec::<String>::new());
        assert_eq!(apply(text, text, &ssh()), Vec::<String>::new());
        root
    }

    fn read(root: &tempfile::TempDir, path: &str) -> String {
        fs::read_to_string(root.path().join(path.trim_start_matches('/'))).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn no_key_of_the_image_is_left() {
        for config in [Some(DEBIAN), Some(OLD), None] {
            let root = applied(config);
            for path in HOST_KEYS {
                assert_eq!(read(&root, path), "secret\n");
                assert_eq!(mode(&root.path().join(path.trim_start_matches('/'))), 0o600);
                assert_eq!(read(&root, &format!("{path}.pub")), "public\n");
            }
        }
    }

    #[test]
    fn a_disk_of_another_guest_is_known_by_its_host_key() {
        let root = applied(None);
        let text = root.path().to_str().unwrap();
        assert!(!is_of_another(text, &ssh()));
        assert!(is_of_another(text, &GuestSsh { host_key_public: "other".into(), ..ssh() }));
        let empty = tempfile::tempdir().unwrap();
        assert!(!is_of_another(empty.path().to_str().unwrap(), &ssh()));
    }

    #[test]
    fn a_server_that_reads_drop_ins_gets_one() {
        for config in [Some(DEBIAN), None] {
            let root = applied(config);
            assert_eq!(read(&root, AUTHORIZED_KEYS), "key one\nkey two\n");
            let drop_in = read(&root, DROP_IN);
            assert!(drop_in.contains("\nHostKey /etc/ssh/ssh_host_ed25519_key\n"), "{drop_in}");
            assert!(drop_in.contains(".ssh/authorized_keys2 /run/banger/authorized_keys\n"), "{drop_in}");
            assert!(!root.path().join("root").exists() && !root.path().join("etc/profile.d").exists());
        }
    }

    #[test]
    fn a_login_starts_in_the_workspace_and_a_command_in_the_home() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("home");
        let workspace = root.path().join("work space");
        for directory in [&home, &workspace, &root.path().join("etc/profile.d")] {
            fs::create_dir_all(directory).unwrap();
        }
        let text = root.path().to_str().unwrap();
        assert_eq!(apply(text, text, &ssh()), Vec::<String>::new());
        let profile = root.path().join(PROFILE.trim_start_matches('/'));
        let directory = |options: &[&str], workspace: Option<&Path>| {
            let script = format!(". {}; pwd; echo ${{BANGER_WORKSPACE-none}}", profile.display());
            let mut shell = std::process::Command::new("sh");
            shell.args(options).arg("-c").arg(script).current_dir(&home).env("HOME", &home);
            if let Some(workspace) = workspace {
                shell.env("BANGER_WORKSPACE", workspace);
            }
            String::from_utf8(shell.output().unwrap().stdout).unwrap()
        };
        let (there, gone) = (workspace.as_path(), root.path().join("gone"));
        let (home, there_text) = (home.display(), there.display());
        assert_eq!(directory(&["-i"], Some(there)), format!("{there_text}\nnone\n"));
        assert_eq!(directory(&["-i"], Some(&gone)), format!("{home}\nnone\n"));
        assert_eq!(directory(&["-i"], None), format!("{home}\nnone\n"));
        assert_eq!(directory(&[], Some(there)), format!("{home}\n{there_text}\n"));
    }

    #[test]
    fn another_server_gets_keys_in_authorized_keys() {
        let root = applied(Some(OLD));
        assert_eq!(
            read(&root, AUTHORIZED_KEYS_OF_ROOT),
            MARKERS.put("", Position::Bottom, "key one\nkey two\n")
        );
        assert_eq!(mode(&root.path().join("root/.ssh")), 0o700);
        assert!(!root.path().join(DROP_IN.trim_start_matches('/')).exists());
    }

    #[test]
    fn the_configuration_is_parsed_as_its_server_does() {
        let server = Server::of(Some("AuthorizedKeysFile /etc/keys/%u\nMatch User x\nHostKey y\n"));
        assert!(!server.reads_drop_ins);
        assert!(server.drop_in().contains("\nAuthorizedKeysFile /etc/keys/%u /run/banger/authorized_keys\n"));
        assert!(Server::of(Some("\tINCLUDE\t/etc/ssh/sshd_config.d/*.conf")).reads_drop_ins);
    }
}
