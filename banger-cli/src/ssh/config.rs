//! The ssh settings for sandboxes, for the command line or the configuration file (ssh_config(5)).
//!
//! The service opens the connection, and [`ProxyUseFdpass`] hands it to ssh, which checks the host key that the
//! service has made for the sandbox. So routes, names and earlier visits do not matter, and no key is trusted on
//! first use.
//!
//! [`ProxyUseFdpass`]: https://man.openbsd.org/ssh_config#ProxyUseFdpass

use std::{env, path::Path};

use crate::{
    error::{Error, Result},
    user::dirs::UserDirs,
};

/// The host names of sandboxes, in any case: ssh compares patterns letter by letter.
const PATTERN: &str = "*.vm *.VM *.Vm *.vM";
/// The file with the keys of hosts, for clients that do not know KnownHostsCommand.
const KNOWN_HOSTS: &str = "UserKnownHostsFile";
/// Characters that cannot be quoted for ssh and for the shell that starts a proxy.
const UNQUOTABLE: [char; 5] = ['"', '\'', '\\', '$', '`'];

/// Keywords of ssh and their values.
pub type Settings = Vec<(&'static str, String)>;

/// Returns the settings for sandboxes. ssh reads the identity file only when it is needed.
pub fn settings(dirs: &UserDirs) -> Result<Settings> {
    let program = env::current_exe().map_err(|error| Error::io("find the path of banger", error))?;
    settings_with(&program, &dirs.identity())
}

fn settings_with(program: &Path, identity: &Path) -> Result<Settings> {
    let (program, identity) = (quoted(program)?, quoted(identity)?);
    let text = str::to_owned;
    Ok(vec![
        ("User", text("root")),
        ("ProxyCommand", format!("{program} ssh-proxy %h %p")),
        ("ProxyUseFdpass", text("yes")),
        ("KnownHostsCommand", format!("{program} ssh-known-hosts %H")),
        (KNOWN_HOSTS, text("/dev/null")),
        ("GlobalKnownHostsFile", text("/dev/null")),
        ("StrictHostKeyChecking", text("yes")),
        ("CheckHostIP", text("no")),
        ("UpdateHostKeys", text("no")),
        // Servers refuse clients that offer many keys before the right one.
        ("IdentityFile", identity),
        ("IdentitiesOnly", text("yes")),
    ])
}

/// Returns the settings as a block of a configuration file, for all sandboxes.
pub fn block(dirs: &UserDirs) -> Result<String> {
    let mut text = format!("Host {PATTERN}\n");
    let known_hosts = quoted(&dirs.our_known_hosts())?;
    for (keyword, value) in settings(dirs)? {
        let value = if keyword == KNOWN_HOSTS { known_hosts.clone() } else { value };
        text.push_str(&format!("    {keyword} {value}\n"));
    }
    Ok(text)
}

/// Quotes a path if ssh requires it.
pub fn quoted(path: &Path) -> Result<String> {
    let unusual =
        || Error::Refused(format!("cannot write the path {} in an ssh configuration", path.display()));
    let text = path.to_str().ok_or_else(unusual)?;
    if text.contains(UNQUOTABLE) || text.contains(char::is_control) {
        return Err(unusual());
    }
    let text = text.replace('%', "%%");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    Ok(if text.chars().all(is_plain) { text } else { format!("\"{text}\"") })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_path_is_quoted_where_ssh_would_misread_it() {
        let check = |path: &str, expect: &str| assert_eq!(quoted(Path::new(path)).unwrap(), expect);
        check("/usr/bin/banger", "/usr/bin/banger");
        check("/home/al ice/100%/x", "\"/home/al ice/100%%/x\"");
        for path in ["/a\"b", "/a'b", "/a\\b", "/$HOME", "/a`b`", "/a\nb"] {
            assert!(quoted(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn ssh_checks_the_key_of_the_service_and_never_asks() {
        let settings = settings_with(Path::new("/usr/bin/banger"), Path::new("/home/a/id")).unwrap();
        let value = |keyword: &str| settings.iter().find(|(known, _)| *known == keyword).unwrap().1.as_str();
        assert_eq!(value("ProxyCommand"), "/usr/bin/banger ssh-proxy %h %p");
        assert_eq!(value("KnownHostsCommand"), "/usr/bin/banger ssh-known-hosts %H");
        assert_eq!((value("StrictHostKeyChecking"), value("UserKnownHostsFile")), ("yes", "/dev/null"));
        assert_eq!((value("IdentityFile"), value("IdentitiesOnly")), ("/home/a/id", "yes"));
    }
}
