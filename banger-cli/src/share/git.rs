//! Passwords of git: the sandbox asks as it would ask `git credential-cache`, and `git credential fill` on the host answers.
//!
//! git in the sandbox needs no program of ours: the client of the cache is part of git, and sends `action=get`, a timeout
//! and the description of the credential, one `NAME=VALUE` a line (git-credential(1)).

use std::{path::Path, str::FromStr};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::{HELPER_TIMEOUT, Uses, too_long};
use crate::{
    error::{Error, Result},
    workspace::{git::Git, stop::in_time},
};

/// Limit on a request.
const MAX_REQUEST: u64 = 8 << 10;
/// Variables that helpers need to reach the user's keyring.
const VARIABLES: [&str; 5] =
    ["DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "GNUPGHOME", "PASSWORD_STORE_DIR", "WAYLAND_DISPLAY"];

/// A host, and how git reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    protocol: &'static str,
    /// With a port, if it is not the usual one.
    host: String,
}

impl FromStr for Site {
    type Err = String;

    /// Parses a host, with `http://` in front if its passwords may go over an unprotected connection.
    fn from_str(text: &str) -> Result<Self, String> {
        let (protocol, host) = match text.split_once("://") {
            None | Some(("https", _)) => ("https", text.strip_prefix("https://").unwrap_or(text)),
            Some(("http", host)) => ("http", host),
            Some(_) => return Err("only https and http are supported".to_owned()),
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        match !host.is_empty() && host.bytes().all(is_host) {
            true => Ok(Self { protocol, host: host.to_ascii_lowercase() }),
            false => Err("name a host without a path, such as github.com".to_owned()),
        }
    }
}

/// Returns the settings of git in the sandbox. An empty helper removes those of the image.
pub fn settings(sites: &[Site], socket: &str) -> Vec<(String, String)> {
    let helper = format!("cache --socket={socket}");
    let of_site = |Site { protocol, host }: &Site| {
        let key = format!("credential.{protocol}://{host}.helper");
        [(key.clone(), String::new()), (key, helper.clone())]
    };
    sites.iter().flat_map(of_site).collect()
}

/// Adds settings to the variables of a command (git-config(1), GIT_CONFIG_COUNT), after those that the user has given.
pub fn configure(variables: &mut Vec<(String, String)>, settings: &[(String, String)]) {
    const COUNT: &str = "GIT_CONFIG_COUNT";
    if settings.is_empty() {
        return;
    }
    let given = variables.iter().rev().find(|(name, _)| name == COUNT);
    let given = given.and_then(|(_, count)| count.parse::<usize>().ok()).unwrap_or_default();
    variables.retain(|(name, _)| name != COUNT);
    variables.push((COUNT.to_owned(), given.saturating_add(settings.len()).to_string()));
    for (number, (key, value)) in settings.iter().enumerate() {
        let number = given.saturating_add(number);
        variables.push((format!("GIT_CONFIG_KEY_{number}"), key.clone()));
        variables.push((format!("GIT_CONFIG_VALUE_{number}"), value.clone()));
    }
}

/// What a sandbox asks for.
#[derive(Debug, PartialEq, Eq)]
struct Question<'a> {
    site: &'a Site,
    username: Option<String>,
}

/// A request that can be read.
#[derive(Debug, PartialEq, Eq)]
enum Asked<'a> {
    For(Question<'a>),
    /// The password of another host, or one over another protocol.
    Other(String),
    /// Storing and erasing, which the host does not take from a sandbox.
    Nothing,
}

fn parse<'a>(request: &str, sites: &'a [Site]) -> Asked<'a> {
    let value = |name: &str| {
        let lines = request.lines().filter_map(|line| line.split_once('='));
        lines.filter(|(known, _)| *known == name).map(|(_, value)| value).next_back()
    };
    if value("action") != Some("get") {
        return Asked::Nothing;
    }
    let (Some(protocol), Some(host)) = (value("protocol"), value("host")) else { return Asked::Nothing };
    let host = host.to_ascii_lowercase();
    let username = value("username").map(str::to_owned);
    match sites.iter().find(|site| site.protocol == protocol && site.host == host) {
        Some(site) => Asked::For(Question { site, username }),
        None => Asked::Other(format!("a password of git for {protocol}://{host}")),
    }
}

/// Answers one connection.
pub async fn answer(mut connection: DuplexStream, sites: &[Site], uses: &impl Uses) -> Result<()> {
    let failed = |source| Error::io("answer git in the sandbox", source);
    let mut request = Vec::new();
    (&mut connection).take(MAX_REQUEST).read_to_end(&mut request).await.map_err(failed)?;
    let reply = match parse(&String::from_utf8_lossy(&request), sites) {
        Asked::For(question) => {
            let Site { protocol, host } = question.site;
            let what = format!("password of git for {protocol}://{host}");
            match uses.allow(&format!("your {what}")) {
                true => fill(question).await.unwrap_or_else(|error| {
                    uses.explain(&format!("got no {what}: {error}"));
                    String::new()
                }),
                false => String::new(),
            }
        }
        Asked::Other(what) => {
            uses.refuse(&what);
            String::new()
        }
        Asked::Nothing => String::new(),
    };
    connection.write_all(reply.as_bytes()).await.map_err(failed)?;
    connection.shutdown().await.map_err(failed)
}

/// Asks the user's credential helpers. They get no terminal to ask the user, and no repository configures them.
async fn fill(question: Question<'_>) -> Result<String> {
    let Site { protocol, host } = question.site;
    let mut input = format!("protocol={protocol}\nhost={host}\n");
    if let Some(username) = question.username {
        input.push_str(&format!("username={username}\n"));
    }
    input.push('\n');
    let mut git = Git::within(Path::new("/")).with_setting("core.askPass=");
    for name in VARIABLES {
        if let Ok(value) = std::env::var(name) {
            git = git.with_variable(name, value);
        }
    }
    let filled = in_time(HELPER_TIMEOUT, move || git.run(&["credential", "fill"], input.as_bytes())).await?;
    let filled = filled.ok_or_else(too_long)??;
    Ok(answer_of(&String::from_utf8_lossy(&filled)))
}

/// Returns the lines of a filled credential that the sandbox needs.
fn answer_of(filled: &str) -> String {
    let wanted = |line: &&str| line.starts_with("username=") || line.starts_with("password=");
    filled.lines().filter(wanted).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn site(text: &str) -> Site {
        text.parse().unwrap()
    }

    #[test]
    fn only_the_shared_hosts_are_answered() {
        let sites = [site("GitHub.com"), site("http://localhost:8080")];
        let username = Some("ann".to_owned());
        for (request, expect) in [
            ("protocol=https\nhost=github.com\n", Asked::For(Question { site: &sites[0], username: None })),
            (
                "protocol=https\nhost=github.com\nusername=ann\n",
                Asked::For(Question { site: &sites[0], username }),
            ),
            (
                "protocol=http\nhost=localhost:8080\n",
                Asked::For(Question { site: &sites[1], username: None }),
            ),
            (
                "protocol=http\nhost=github.com\n",
                Asked::Other("a password of git for http://github.com".into()),
            ),
            (
                "protocol=https\nhost=github.com.evil\n",
                Asked::Other("a password of git for https://github.com.evil".into()),
            ),
            ("protocol=https\n", Asked::Nothing),
            ("\u{0}\u{1b}[2J", Asked::Nothing),
        ] {
            assert_eq!(parse(&format!("action=get\ntimeout=900\n{request}"), &sites), expect, "{request}");
        }
        for action in ["store", "erase", "exit"] {
            let request = format!("action={action}\nprotocol=https\nhost=github.com\npassword=x\n");
            assert_eq!(parse(&request, &sites), Asked::Nothing);
        }
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_ended_with_what_it_has_started() {
        let setting = "credential.helper=!f() { sleep 1000 & sleep 1000; }; f";
        let fill = move || {
            let git = Git::within(Path::new("/")).with_setting(setting);
            git.run(&["credential", "fill"], b"protocol=https\nhost=x\n\n")
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), in_time(Duration::from_millis(200), fill));
        assert!(ended.await.unwrap().unwrap().is_none());
    }

    #[test]
    fn a_host_has_no_path_and_no_line_end() {
        for wrong in ["", "github.com/x", "ssh://x", "a\nb", "ann@github.com", "https://"] {
            assert!(wrong.parse::<Site>().is_err(), "{wrong:?}");
        }
        assert_eq!(site("https://github.com"), site("github.com"));
    }

    #[test]
    fn variables_configure_git_in_the_sandbox() {
        let mut set = Vec::new();
        configure(&mut set, &[]);
        assert!(set.is_empty());
        let settings = settings(&[site("github.com")], "/run/x.sock");
        configure(&mut set, &settings);
        let lines: Vec<String> = set.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            lines,
            [
                "GIT_CONFIG_COUNT=2",
                "GIT_CONFIG_KEY_0=credential.https://github.com.helper",
                "GIT_CONFIG_VALUE_0=",
                "GIT_CONFIG_KEY_1=credential.https://github.com.helper",
                "GIT_CONFIG_VALUE_1=cache --socket=/run/x.sock",
            ]
        );
        // After one setting of the user.
        let mut set = vec![("GIT_CONFIG_COUNT".to_owned(), "1".to_owned())];
        configure(&mut set, &settings);
        let names: Vec<&str> = set.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(set[0].1, "3");
        assert_eq!(
            names,
            [
                "GIT_CONFIG_COUNT",
                "GIT_CONFIG_KEY_1",
                "GIT_CONFIG_VALUE_1",
                "GIT_CONFIG_KEY_2",
                "GIT_CONFIG_VALUE_2"
            ]
        );
    }

    #[test]
    fn only_the_name_and_the_password_are_passed_on() {
        let filled = "protocol=https\nhost=x\nusername=ann\npassword=a=b\noauth_refresh_token=t\n";
        assert_eq!(answer_of(filled), "username=ann\npassword=a=b\n");
    }
}
