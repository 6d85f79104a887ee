//! What ssh is told of sandboxes, on its command line or in its configuration (ssh_config(5)).
//!
//! A sandbox is reached by a connection that the service opens and [`ProxyUseFdpass`] hands to ssh, and known
//! by the key that the service made for it. So neither routes, names nor earlier visits matter, and nothing
//! is trusted at first sight.
//!
//! [`ProxyUseFdpass`]: https://man.openbsd.org/ssh_config#ProxyUseFdpass

use std::{env, path::Path};

use super::places::Places;
use crate::error::{Error, Result};

/// The hosts that are sandboxes.
const PATTERN: &str = "*.vm";
/// What cannot stand between quotes, be it for ssh or for the shell that starts a proxy.
const UNQUOTABLE: [char; 5] = ['"', '\'', '\\', '$', '`'];

/// Keywords of ssh and their values.
pub type Settings = Vec<(&'static str, String)>;

/// What ssh is to know of sandboxes; the identity is read by ssh only when it is needed.
pub fn settings(places: &Places) -> Result<Settings> {
    let program = env::current_exe().map_err(|error| Error::io("find the path of banger", error))?;
    settings_with(&program, &places.identity())
}

fn settings_with(program: &Path, identity: &Path) -> Result<Settings> {
    let (program, identity) = (quoted(program)?, quoted(identity)?);
    let text = str::to_owned;
    Ok(vec![
        ("User", text("root")),
        ("ProxyCommand", format!("{program} ssh-proxy %h %p")),
        ("ProxyUseFdpass", text("yes")),
        ("KnownHostsCommand", format!("{program} ssh-known-hosts %H")),
        ("UserKnownHostsFile", text("/dev/null")),
        ("GlobalKnownHostsFile", text("/dev/null")),
        ("StrictHostKeyChecking", text("yes")),
        ("CheckHostIP", text("no")),
        ("UpdateHostKeys", text("no")),
        // Servers refuse whoever shows many keys before the right one.
        ("IdentityFile", identity),
        ("IdentitiesOnly", text("yes")),
    ])
}

/// The settings as a part of a configuration, for all sandboxes.
pub fn block(places: &Places) -> Result<String> {
    let mut text = format!("Host {PATTERN}\n");
    for (keyword, value) in settings(places)? {
        text.push_str(&format!("    {keyword} {value}\n"));
    }
    Ok(text)
}

/// A path between quotes where it needs them, which ssh takes as it is.
pub fn quoted(path: &Path) -> Result<String> {
    let unusual =
        || Error::Usage(format!("cannot write the path {} in an ssh configuration", path.display()));
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
    fn ssh_checks_the_key_of_the_service_and_asks_nobody() {
        let settings = settings_with(Path::new("/usr/bin/banger"), Path::new("/home/a/id")).unwrap();
        let value = |keyword: &str| settings.iter().find(|(known, _)| *known == keyword).unwrap().1.as_str();
        assert_eq!(value("ProxyCommand"), "/usr/bin/banger ssh-proxy %h %p");
        assert_eq!(value("KnownHostsCommand"), "/usr/bin/banger ssh-known-hosts %H");
        assert_eq!((value("StrictHostKeyChecking"), value("UserKnownHostsFile")), ("yes", "/dev/null"));
        assert_eq!((value("IdentityFile"), value("IdentitiesOnly")), ("/home/a/id", "yes"));
    }
}
