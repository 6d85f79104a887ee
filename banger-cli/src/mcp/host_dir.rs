//! The directory of the host that an agent may copy from and to.
//!
//! The kernel resolves paths beneath it, and follows no symbolic link: a sandbox can have left one in what was copied
//! out of it. A path stays resolved until its file is used, because it names an open directory.

use std::{
    ffi::OsStr,
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use banger_copy::{Names, Target};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, open, openat2, statat},
    io::Errno,
};

use super::failure::not_allowed;
use crate::error::{Error, Result};

/// The directory.
#[derive(Debug)]
pub struct HostDir {
    fd: OwnedFd,
    path: PathBuf,
}

/// A path below the directory.
#[derive(Debug)]
pub struct HostPath {
    /// The directory that has the last component.
    parent: OwnedFd,
    /// The last component; `.` for the directory itself.
    name: PathBuf,
    /// The path as the user would write it.
    pub shown: PathBuf,
}

impl HostDir {
    /// Opens the directory with this path.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::io(format!("open the directory {}", path.display()), source);
        let canonical = path.canonicalize().map_err(failed)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(&canonical, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        Ok(Self { fd, path: canonical })
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether a path without symbolic links is in it.
    pub fn contains(&self, path: &Path) -> bool {
        path.starts_with(&self.path)
    }

    /// Resolves a path that is relative to the directory, or absolute and below it.
    pub fn resolve(&self, text: &str) -> Result<HostPath> {
        let given = Path::new(text);
        let relative = match given.is_absolute() {
            true => given.strip_prefix(&self.path).map_err(|_| self.outside(text))?,
            false => given,
        };
        if relative.components().any(|part| part == Component::ParentDir) {
            return Err(self.outside(text));
        }
        if !Names::NoGit.allow(relative) {
            return Err(not_allowed(format!(
                "cannot use {text}: the files of a git repository are not for agents"
            ))
            .with_hint("the tool `prepare` sends a repository, and `apply` brings the work back."));
        }
        let parent = relative.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = self.open_below(parent.unwrap_or(Path::new(".")), text)?;
        let name = relative.file_name().map_or_else(|| ".".into(), PathBuf::from);
        Ok(HostPath { parent, name, shown: self.path.join(relative) })
    }

    fn open_below(&self, path: &Path, text: &str) -> Result<OwnedFd> {
        open_directory(&self.fd, path).map_err(|errno| match errno {
            Errno::LOOP => through_link(text),
            Errno::XDEV => self.outside(text),
            errno => Error::io(format!("open the directory of {text}"), errno.into()),
        })
    }

    fn outside(&self, text: &str) -> Error {
        not_allowed(format!("cannot use {text}: it is outside of {}", self.path.display())).with_hint(
            "paths on the host are relative to that directory; the user can choose another one with `banger mcp \
             --host-dir DIR`.",
        )
    }
}

/// Opens a directory below another one, through no link.
fn open_directory(from: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(from, path, flags, Mode::empty(), resolve)
}

fn through_link(text: &str) -> Error {
    not_allowed(format!("cannot use {text}: symbolic links on the host are not followed"))
}

impl HostPath {
    /// Returns a path for system calls, which is valid as long as this exists.
    pub fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.parent.as_raw_fd().to_string()).join(&self.name)
    }

    /// Returns the kind of file; none if there is none.
    pub fn kind(&self) -> Result<Option<FileType>> {
        match statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io(format!("read {}", self.shown.display()), errno.into())),
        }
    }

    /// Refuses a symbolic link.
    pub fn refuse_link(&self) -> Result<()> {
        match self.kind()? {
            Some(FileType::Symlink) => Err(through_link(&self.shown.display().to_string())),
            _ => Ok(()),
        }
    }

    /// Returns the destination of a copy with this name, or of the content of a directory, and the directory to write
    /// it to: the path itself if it is a directory, and else the one that has it.
    pub fn destination(self, name: Option<&OsStr>) -> Result<(Target, OwnedFd)> {
        let failed = |errno: Errno| match errno {
            Errno::LOOP => through_link(&self.shown.display().to_string()),
            errno => Error::io(format!("write {}", self.shown.display()), errno.into()),
        };
        if name.is_none() {
            match mkdirat(&self.parent, &self.name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        match (open_directory(&self.parent, &self.name), name) {
            (Ok(directory), _) => {
                Ok((Target { directory: self.shown, name: name.map(OsStr::to_owned) }, directory))
            }
            (Err(Errno::NOENT | Errno::NOTDIR), Some(_)) => {
                let directory = self.shown.parent().unwrap_or(&self.shown).to_owned();
                Ok((Target { directory, name: Some(self.name.into_os_string()) }, self.parent))
            }
            (Err(errno), _) => Err(failed(errno)),
        }
    }

    /// Returns a text with the path as the user would write it.
    pub fn readable(&self, text: &str) -> String {
        let ours = Path::new("/proc/self/fd").join(self.parent.as_raw_fd().to_string());
        let theirs = self.shown.parent().unwrap_or(&self.shown);
        text.replace(&ours.display().to_string(), &theirs.display().to_string())
    }

    /// Returns an error with the path as the user would write it.
    pub fn explain(&self, error: Error) -> Error {
        match error {
            Error::Io { doing, source } => Error::io(self.readable(&doing), source),
            Error::Refused(text) => Error::Refused(self.readable(&text)),
            error => error,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, os::unix::fs::symlink};

    use banger_copy::{Access, Owner, Ownership, Packer, Rules};

    use super::*;

    #[test]
    fn only_what_is_below_the_directory_can_be_named() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        fs::create_dir_all(inner.join("sub")).unwrap();
        fs::write(outer.path().join("secret"), "x").unwrap();
        fs::write(inner.join("sub/file"), "x").unwrap();
        symlink("..", inner.join("up")).unwrap();
        symlink("sub", inner.join("link")).unwrap();
        symlink("/proc/self/root", inner.join("root")).unwrap();
        let dir = HostDir::open(&inner).unwrap();
        let below = dir.path().join("sub/file").display().to_string();
        for (text, fits) in [
            ("sub/file", true),
            ("sub/new", true),
            (".", true),
            ("./sub", true),
            (below.as_str(), true),
            ("sub/.gitignore", true),
            ("../secret", false),
            ("sub/../../secret", false),
            ("sub/../sub/file", false),
            ("/etc/passwd", false),
            ("/proc/self/environ", false),
            ("up/secret", false),
            ("link/file", false),
            ("root/etc/passwd", false),
            ("nowhere/file", false),
            (".git/hooks/pre-commit", false),
            ("sub/.Git", false),
        ] {
            let found = dir.resolve(text);
            assert_eq!(found.is_ok(), fits, "{text}: {found:?}");
        }
        assert_eq!(fs::read(dir.resolve("sub/file").unwrap().path()).unwrap(), b"x");
        assert!(dir.resolve("up").unwrap().refuse_link().is_err());
        assert!(dir.resolve("sub/file").unwrap().refuse_link().is_ok());
        assert!(dir.contains(&dir.path().join("sub")) && !dir.contains(outer.path()));
    }

    #[test]
    fn a_resolved_path_cannot_be_redirected() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        fs::create_dir_all(inner.join("sub")).unwrap();
        let dir = HostDir::open(&inner).unwrap();
        let found = dir.resolve("sub/file").unwrap();
        fs::rename(inner.join("sub"), inner.join("moved")).unwrap();
        symlink(outer.path(), inner.join("sub")).unwrap();
        fs::write(found.path(), "x").unwrap();
        assert!(inner.join("moved/file").exists() && !outer.path().join("file").exists());
    }

    #[test]
    fn a_link_that_is_planted_in_the_meantime_is_not_followed() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        fs::create_dir_all(inner.join("sub")).unwrap();
        let dir = HostDir::open(&inner).unwrap();
        let name = Some(OsStr::new("copied"));
        for name in [name, None] {
            let found = dir.resolve("planted").unwrap();
            found.refuse_link().unwrap();
            symlink(outer.path(), inner.join("planted")).unwrap();
            assert!(found.destination(name).is_err(), "{name:?}");
            fs::remove_file(inner.join("planted")).unwrap();
        }
        let (target, held) = dir.resolve("sub").unwrap().destination(name).unwrap();
        assert_eq!(target.path(), dir.path().join("sub/copied"));
        fs::rename(inner.join("sub"), inner.join("moved")).unwrap();
        symlink(outer.path(), inner.join("sub")).unwrap();
        let rules = Rules {
            owner: Owner::Caller,
            access: Access::untrusted(0),
            through_links: false,
            names: Names::NoGit,
        };
        let mut packer = Packer::new(Vec::new(), Ownership::Root);
        packer.add_bytes(Path::new("top"), 0o600, b"x").unwrap();
        let (archive, _) = packer.finish().unwrap();
        let receive = |target: &Target, held| {
            banger_copy::receive_in(archive.as_slice(), Some("top".as_ref()), held, target, rules)
        };
        let again = held.try_clone().unwrap();
        receive(&target, held).unwrap();
        assert!(inner.join("moved/copied").exists() && !outer.path().join("copied").exists());
        let git = Target { name: Some(".GIT".into()), ..target };
        assert!(receive(&git, again).is_err() && !inner.join("moved/.GIT").exists());
        let (target, _) = dir.resolve("moved/new").unwrap().destination(name).unwrap();
        assert_eq!(target.path(), dir.path().join("moved/new"));
        let (target, _) = dir.resolve("fresh").unwrap().destination(None).unwrap();
        assert!(target.name.is_none() && inner.join("fresh").is_dir());
    }

    #[test]
    fn errors_show_the_path_as_it_was_given() {
        let outer = tempfile::tempdir().unwrap();
        let dir = HostDir::open(outer.path()).unwrap();
        let found = dir.resolve("x").unwrap();
        let error = Error::io(format!("read {}", found.path().display()), Errno::NOENT.into());
        let text = found.explain(error).to_string();
        assert_eq!(text, format!("cannot read {}", dir.path().join("x").display()));
    }
}
