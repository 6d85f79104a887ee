//! The source and destination of a copy, as written on the command line.

use std::{
    borrow::Cow,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::{
    client::service::id_of,
    error::{Error, Result},
    guest::agent::Guest,
    workspace::record::Records,
};

/// The source or destination of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    Sandbox(GuestPath),
    Stream,
    Host(PathBuf),
}

/// A path in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestPath {
    pub sandbox: String,
    pub path: String,
}

impl Side {
    /// Parses an argument. As with scp, a slash before a colon makes it a path on the host.
    pub fn parse(text: &str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            Some((sandbox, path)) if !sandbox.is_empty() && !sandbox.contains('/') => {
                Self::Sandbox(GuestPath { sandbox: sandbox.to_owned(), path: path.to_owned() })
            }
            _ => Self::Host(text.into()),
        }
    }

    /// Turns a destination into a directory that copies go into, each under its own name.
    pub fn into_directory(self) -> Self {
        match self {
            Self::Sandbox(GuestPath { sandbox, path }) => {
                // Without a path, it is a home, which is a directory anyway.
                let slash = if path.is_empty() { "~/" } else { "/" };
                Self::Sandbox(GuestPath { sandbox, path: path + slash })
            }
            Self::Host(path) => Self::Host(path.join("")),
            Self::Stream => Self::Stream,
        }
    }
}

impl GuestPath {
    /// Returns the path for the agent: absolute, or relative to the home of a user. `login` is the default user; the
    /// agent knows the others.
    pub fn path_for(&self, login: Option<&str>) -> String {
        let login = login.unwrap_or_default();
        let path = self.path.as_str();
        match path.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("~{login}{rest}"),
            Some(_) => path.to_owned(),
            None if path.starts_with('/') => path.to_owned(),
            None if path.is_empty() => format!("~{login}"),
            None => format!("~{login}/{path}"),
        }
    }

    /// Returns the name of the copy, or `None` for the content of a directory.
    pub fn name(&self) -> Result<Option<&str>> {
        let path = self.path.as_str();
        if !path.is_empty() && Path::new(path).components().all(|part| part.as_os_str() == "/") {
            return Err(Error::Usage("cannot copy all of /".to_owned())
                .with_hint("name a directory in it, such as `web:/etc`."));
        }
        let home = path.starts_with('~') && !path.trim_end_matches('/').contains('/');
        let name = if home { None } else { own_name(path.as_ref()) };
        Ok(name.and_then(OsStr::to_str))
    }
}

impl std::fmt::Display for GuestPath {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{}:{}", self.sandbox, self.path)
    }
}

/// Returns the name that a copy of this path gets. `DIRECTORY/.`, and a path without a name, mean the content of a
/// directory.
pub fn own_name(path: &Path) -> Option<&OsStr> {
    let text = path.as_os_str().as_bytes();
    let content = matches!(text, b"." | b"..") || text.ends_with(b"/.") || text.ends_with(b"/..");
    path.file_name().filter(|_| !content)
}

/// Returns the user of the workspace that was sent last, who runs the commands in the sandbox.
pub fn login(guest: &Guest) -> Result<Option<String>> {
    let kept = Records::of(&id_of(guest.vm()))?.find(None);
    Ok(kept.map(|kept| kept.record.owner().to_owned()))
}

/// Formats a path for people.
pub fn display(path: &Path) -> Cow<'_, str> {
    path.to_string_lossy()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn guest_path(sandbox: &str, path: &str) -> GuestPath {
        GuestPath { sandbox: sandbox.to_owned(), path: path.to_owned() }
    }

    #[test]
    fn a_name_before_a_colon_is_a_sandbox() {
        assert_eq!(Side::parse("web:/root/x:y"), Side::Sandbox(guest_path("web", "/root/x:y")));
        assert_eq!(Side::parse("web:"), Side::Sandbox(guest_path("web", "")));
        assert_eq!(Side::parse("./a:b"), Side::Host("./a:b".into()));
        assert_eq!(Side::parse(":x"), Side::Host(":x".into()));
        assert_eq!(Side::parse("x"), Side::Host("x".into()));
        assert_eq!(Side::parse("-"), Side::Stream);
    }

    #[test]
    fn paths_in_a_sandbox_are_relative_to_a_home() {
        for (path, plain, anns) in [
            ("", "~", "~ann"),
            ("~", "~", "~ann"),
            ("~/", "~/", "~ann/"),
            ("~/x", "~/x", "~ann/x"),
            ("x/y/", "~/x/y/", "~ann/x/y/"),
            ("./~x", "~/./~x", "~ann/./~x"),
            ("~bob/x", "~bob/x", "~bob/x"),
            ("/x", "/x", "/x"),
        ] {
            let there = guest_path("web", path);
            assert_eq!((there.path_for(None).as_str(), there.path_for(Some("ann")).as_str()), (plain, anns));
        }
        let directory = |path| Side::Sandbox(guest_path("web", path)).into_directory();
        assert_eq!(directory(""), Side::Sandbox(guest_path("web", "~/")));
        assert_eq!(directory("/srv"), Side::Sandbox(guest_path("web", "/srv/")));
        assert_eq!(Side::parse("dir").into_directory(), Side::Host("dir/".into()));
    }

    #[test]
    fn a_copy_has_the_name_of_its_source_unless_only_the_content_is_copied() {
        for (path, name) in [
            ("/var/log", Some("log")),
            ("/var/log/", Some("log")),
            ("/var/log/.", None),
            ("x/..", None),
            (".", None),
            ("", None),
            ("~", None),
            ("~ann/", None),
            ("~ann/x", Some("x")),
            ("notes", Some("notes")),
            ("/a/.x", Some(".x")),
        ] {
            assert_eq!(guest_path("web", path).name().unwrap(), name, "{path}");
        }
        assert!(guest_path("web", "/").name().is_err() && guest_path("web", "//.").name().is_err());
    }
}
