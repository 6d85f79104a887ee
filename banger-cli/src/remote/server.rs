//! The address of a remote host.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

/// The only way to a remote host.
const SCHEME: &str = "ssh://";

/// A host that ssh reaches: a name, an address, or a `Host` of the user's ssh configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    user: Option<String>,
    host: String,
    port: Option<u16>,
}

impl Server {
    /// Returns what ssh is called with to log in there: options, then the host.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(user) = &self.user {
            arguments.extend(["-l".to_owned(), user.clone()]);
        }
        if let Some(port) = self.port {
            arguments.extend(["-p".to_owned(), port.to_string()]);
        }
        // Nothing that follows is an option.
        arguments.extend(["--".to_owned(), self.host.clone()]);
        arguments
    }

    /// Returns the words after `ssh` by which a user logs in there.
    pub fn login(&self) -> String {
        let port = self.port.map(|port| format!("-p {port} ")).unwrap_or_default();
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        format!("{port}{user}{}", self.host)
    }

    /// Returns a name for files about the host. It is short, because the path of a socket is limited.
    pub fn file_name(&self) -> String {
        let digest = Sha256::digest(self.to_string());
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the host.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write ssh://[USER@]HOST[:PORT]";
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| FORM.to_owned())?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('/') {
            return Err(format!("a host has no path; {FORM}"));
        }
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user.to_owned()), place),
            None => (None, rest),
        };
        let (host, port) = split_port(place).ok_or_else(|| FORM.to_owned())?;
        if let Some(user) = &user {
            check("user", user, "._-+")?;
        }
        match host.contains(':') {
            true if host.parse::<std::net::Ipv6Addr>().is_err() => {
                return Err(format!("{host} is not an IPv6 address"));
            }
            true => {}
            false => check("host", host, "._-")?,
        }
        let port = port.map(|port| {
            let port = port.parse::<u16>().ok().filter(|port| *port != 0);
            port.ok_or_else(|| "a port is a number from 1 to 65535".to_owned())
        });
        Ok(Self { user, host: host.to_owned(), port: port.transpose()? })
    }
}

/// Splits `HOST[:PORT]`, in which an IPv6 address is in brackets.
fn split_port(place: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = place.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest {
            "" => Some((host, None)),
            rest => Some((host, Some(rest.strip_prefix(':')?))),
        };
    }
    match place.split_once(':') {
        Some((host, port)) => Some((host, Some(port))),
        None => Some((place, None)),
    }
}

/// Checks a part that becomes an argument of ssh, where a hyphen in front would begin an option.
fn check(what: &str, text: &str, others: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("the {what} is empty"));
    }
    if text.starts_with('-') {
        return Err(format!("the {what} begins with a hyphen"));
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !others.contains(*c)) {
        Some(c) => Err(format!("the {what} contains {c:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_address_reads_back_as_the_same() {
        for (text, arguments, login) in [
            ("ssh://lab", "-- lab", "lab"),
            ("ssh://alice@lab.example.org", "-l alice -- lab.example.org", "alice@lab.example.org"),
            ("ssh://alice@lab:2222", "-l alice -p 2222 -- lab", "-p 2222 alice@lab"),
            ("ssh://[2001:db8::1]:22", "-p 22 -- 2001:db8::1", "-p 22 2001:db8::1"),
        ] {
            let server: Server = text.parse().unwrap();
            assert_eq!(server.to_string(), text);
            assert_eq!(server.arguments().join(" "), arguments);
            assert_eq!(server.login(), login);
        }
        assert_eq!("ssh://lab/".parse::<Server>().unwrap().to_string(), "ssh://lab");
    }

    #[test]
    fn nothing_else_is_an_address() {
        for (text, why) in [
            ("lab", "write ssh://"),
            ("tcp://lab", "write ssh://"),
            ("ssh://", "the host is empty"),
            ("ssh://@lab", "the user is empty"),
            ("ssh://-oProxyCommand=reboot", "the host begins with a hyphen"),
            ("ssh://-lroot@lab", "the user begins with a hyphen"),
            ("ssh://a b", "the host contains ' '"),
            ("ssh://lab;reboot", "the host contains ';'"),
            ("ssh://alice:secret@lab", "the user contains ':'"),
            ("ssh://lab/run/dbus", "a host has no path"),
            ("ssh://lab:0", "a port is"),
            ("ssh://lab:ssh", "a port is"),
            ("ssh://[::1", "write ssh://"),
            ("ssh://[lab:x]", "lab:x is not an IPv6 address"),
        ] {
            let refused = text.parse::<Server>().unwrap_err();
            assert!(refused.starts_with(why), "{text}: {refused}");
        }
    }
}
