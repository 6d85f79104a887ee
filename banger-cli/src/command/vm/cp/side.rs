//! The two sides of a copy, as they are written on the command line.

use std::{
    borrow::Cow,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    guest::Guest,
    service::id_of,
    workspace::record::Records,
};

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    Sandbox(There),
    Stream,
    Host(PathBuf),
}

/// A path in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct There {
    pub sandbox: String,
    pub path: String,
}

impl Side {
    /// A path with a colon in it is written with a slash before the colon, as for scp.
    pub fn parse(text: &str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            Some((sandbox, path)) if !sandbox.is_empty() && !sandbox.contains('/') => {
                Self::Sandbox(There { sandbox: sandbox.to_owned(), path: path.to_owned() })
            }
            _ => Self::Host(text.into()),
        }
    }

    /// This side as a directory that copies go into, each under its own name.
    pub fn into_directory(self) -> Self {
        match self {
            Self::Sandbox(There { sandbox, path }) => {
                // Without a path it is a home, which is a directory anyway.
                let slash = if path.is_empty() { "~/" } else { "/" };
                Self::Sandbox(There { sandbox, path: path + slash })
            }
            Self::Host(path) => Self::Host(path.join("")),
            Self::Stream => Self::Stream,
        }
    }
}

impl There {
    /// The path as the agent takes it: absolute, or below the home of a user. `login` is whose home it is where the
    /// path does not say; the agent knows another one by itself.
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

    /// The name that its copy has, or none where the content of a directory is meant.
    pub fn name(&self) -> Result<Option<&str>> {
        let path = self.path.as_str();
        if !path.is_empty() && Path::new(path).components().all(|part| part.as_os_str() == "/") {
            return Err(Error::Usage("cannot copy all of /".to_owned())
                .advise("name a directory in it, such as `web:/etc`."));
        }
        let home = path.starts_with('~') && !path.trim_end_matches('/').contains('/');
        let name = if home { None } else { own_name(path.as_ref()) };
        Ok(name.and_then(OsStr::to_str))
    }
}

impl std::fmt::Display for There {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{}:{}", self.sandbox, self.path)
    }
}

/// The name that a copy of this path has. `DIRECTORY/.` and what has no name of its own are the content of a
/// directory.
pub fn own_name(path: &Path) -> Option<&OsStr> {
    let text = path.as_os_str().as_bytes();
    let content = matches!(text, b"." | b"..") || text.ends_with(b"/.") || text.ends_with(b"/..");
    path.file_name().filter(|_| !content)
}

/// The user of the workspace that was sent last, who runs the commands in the sandbox.
pub fn login(guest: &Guest) -> Result<Option<String>> {
    let kept = Records::of(&id_of(guest.vm()))?.find(None);
    Ok(kept.map(|kept| kept.record.owner().to_owned()))
}

/// A path for people.
pub fn shown(path: &Path) -> Cow<'_, str> {
    path.to_string_lossy()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn there(sandbox: &str, path: &str) -> There {
        There { sandbox: sandbox.to_owned(), path: path.to_owned() }
    }

    #[test]
    fn a_side_is_in_a_sandbox_when_a_name_stands_before_a_colon() {
        assert_eq!(Side::parse("web:/root/x:y"), Side::Sandbox(there("web", "/root/x:y")));
        assert_eq!(Side::parse("web:"), Side::Sandbox(there("web", "")));
        assert_eq!(Side::parse("./a:b"), Side::Host("./a:b".into()));
        assert_eq!(Side::parse(":x"), Side::Host(":x".into()));
        assert_eq!(Side::parse("x"), Side::Host("x".into()));
        assert_eq!(Side::parse("-"), Side::Stream);
    }

    #[test]
    fn paths_in_a_sandbox_begin_at_a_home() {
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
            let there = there("web", path);
            assert_eq!((there.path_for(None).as_str(), there.path_for(Some("ann")).as_str()), (plain, anns));
        }
        let directory = |path| Side::Sandbox(there("web", path)).into_directory();
        assert_eq!(directory(""), Side::Sandbox(there("web", "~/")));
        assert_eq!(directory("/srv"), Side::Sandbox(there("web", "/srv/")));
        assert_eq!(Side::parse("dir").into_directory(), Side::Host("dir/".into()));
    }

    #[test]
    fn a_copy_has_the_name_of_its_source_unless_the_content_is_meant() {
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
            assert_eq!(there("web", path).name().unwrap(), name, "{path}");
        }
        assert!(there("web", "/").name().is_err() && there("web", "//.").name().is_err());
    }
}
