//! Sandboxes as ssh hosts: their names, the ssh settings, and the keys of their owner.

pub mod config;
pub mod hosts;
pub mod installed;
pub mod keys;

use crate::error::{Error, Result};

/// Suffix of the host names of sandboxes.
const DOMAIN: &str = ".vm";

/// Returns the reference of the sandbox that ssh knows as `NAME.vm` or `NAME.USER.vm`.
pub fn reference(host: &str) -> Result<String> {
    let unknown = || {
        let error = Error::Usage(format!("{host} is not the name of a sandbox"));
        error.with_hint("your own sandbox is NAME.vm, another user's is NAME.USER.vm.")
    };
    let lower = host.to_ascii_lowercase();
    let name = lower.strip_suffix(DOMAIN).ok_or_else(unknown)?;
    match name.split_once('.') {
        None if !name.is_empty() => Ok(name.to_owned()),
        Some((name, user)) if !name.is_empty() && !user.is_empty() => Ok(format!("{user}/{name}")),
        _ => Err(unknown()),
    }
}

/// Returns the ssh host name of one of the caller's sandboxes, or of any by its id.
pub fn host_of(name_or_id: &str) -> String {
    format!("{name_or_id}{DOMAIN}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hosts_are_names_with_or_without_their_owner() {
        assert_eq!(reference("web.vm").unwrap(), "web");
        assert_eq!(reference("Web.VM").unwrap(), "web");
        assert_eq!(reference("web.alice.vm").unwrap(), "alice/web");
        assert_eq!(reference("web.alice.smith.vm").unwrap(), "alice.smith/web");
        assert_eq!(reference(&host_of("web")).unwrap(), "web");
        for host in ["web", "vm", ".vm", "..vm", "web..vm", ".alice.vm", "web.vm.example.org", ""] {
            assert!(reference(host).is_err(), "{host}");
        }
    }
}
