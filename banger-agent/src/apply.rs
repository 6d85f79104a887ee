//! Writes the files of the configuration into the root file system. The image may be hostile: its links must not lead
//! out of it, and whatever is at the path of a file is replaced, never followed.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::Path,
};

use banger_proto::guest::config::GuestFile;
use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags},
    path::Arg,
};

use crate::log;

/// Mode of parent directories that are created.
const DIRECTORY_MODE: u32 = 0o755;
/// Limit on the size of a file of the image that is read.
const MAX_TEXT: u64 = 1 << 20;

/// Writes every file. Returns the problems.
pub fn files(root: &str, files: &[GuestFile]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files {
        if let Err(error) = write(root, file) {
            let problem = format!("cannot write {}: {error}", file.path);
            log::error(&problem);
            problems.push(problem);
        }
    }
    problems
}

/// Writes one file and creates its directory if missing. After a crash there is the old file or the new one.
pub fn write(root: &str, file: &GuestFile) -> io::Result<()> {
    write_bytes(root, Path::new(&file.path), file.mode, file.content.as_bytes())
}

/// Writes one file with arbitrary bytes, as [`write`] does.
pub fn write_bytes(root: &str, path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let (directory, name, unfinished) = prepare(root, path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let created = rustix::fs::openat(&directory, &unfinished, flags, Mode::from_raw_mode(0o600))?;
    let mut created = File::from(created);
    created.write_all(content)?;
    // Not by the mode of creation, which the umask would limit.
    rustix::fs::fchmod(&created, Mode::from_raw_mode(mode & 0o7777))?;
    Ok(rustix::fs::renameat(&directory, &unfinished, &directory, &name)?)
}

/// Creates a symbolic link, and replaces whatever is at its path.
pub fn link(root: &str, path: &str, target: &str) -> io::Result<()> {
    let (directory, name, unfinished) = prepare(root, Path::new(path))?;
    rustix::fs::symlinkat(target, &directory, &unfinished)?;
    Ok(rustix::fs::renameat(&directory, &unfinished, &directory, &name)?)
}

/// Opens the directory of a file, and creates it if missing. Returns it with the file's name and the temporary name
/// that it has until it is complete. Removes what an earlier boot left under the temporary name.
fn prepare(root: &str, path: &Path) -> io::Result<(OwnedFd, OsString, OsString)> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = open_directory(root, parent, DIRECTORY_MODE)?;
    let mut unfinished = name.to_owned();
    unfinished.push(".banger-new");
    unlink(&directory, &unfinished)?;
    Ok((directory, name.to_owned(), unfinished))
}

/// Returns the content of a file, or `None` if it does not exist. Fails if it is too large.
pub fn read(root: &str, path: &str) -> io::Result<Option<Vec<u8>>> {
    let root = open_root(root)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let path = path.trim_start_matches('/');
    let opened = rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    let file = match opened {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    if file.take(MAX_TEXT + 1).read_to_end(&mut bytes)? as u64 > MAX_TEXT {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(Some(bytes))
}

/// Returns whether a file or a link exists at this path.
pub fn exists(root: &str, path: &str) -> bool {
    let Ok(root) = open_root(root) else { return false };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let path = path.trim_start_matches('/');
    rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).is_ok()
}

/// Creates a directory with this mode if it is missing.
pub fn directory(root: &str, path: &str, mode: u32) -> io::Result<()> {
    open_directory(root, Path::new(path.trim_start_matches('/')), mode).map(drop)
}

fn unlink(directory: &OwnedFd, name: impl Arg) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn open_root(root: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(root, flags, Mode::empty())?)
}

/// Returns whether there is such a directory below the root.
pub fn has_directory(root: &str, path: &Path) -> io::Result<bool> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat2(&open_root(root)?, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether there is such a program below the root.
pub fn has_program(root: &str, path: &Path) -> io::Result<bool> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened =
        match rustix::fs::openat2(&open_root(root)?, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(opened) => opened,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
    let stat = rustix::fs::fstat(&opened)?;
    let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
    Ok(is_file && stat.st_mode & 0o111 != 0)
}

/// Opens a directory below the root, and creates its missing components with this mode.
pub fn open_directory(root: &str, path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open_root(root)?;
    let open = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    };
    let mut way = Path::new("").to_path_buf();
    for component in path.components() {
        let parent = open(&way)?;
        match rustix::fs::mkdirat(&parent, component.as_os_str(), Mode::from_raw_mode(mode)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        way.push(component);
    }
    Ok(open(path)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_link_in_the_image_does_not_lead_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("hosts"), "theirs").unwrap();
        std::os::unix::fs::symlink("../../outside/hosts", root.join("etc/hosts")).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("escape")).unwrap();

        let file = |path: &str| GuestFile { path: path.into(), mode: 0o644, content: "ours".into() };
        let root_text = root.to_str().unwrap();
        write(root_text, &file("/etc/hosts")).unwrap();
        // The absolute link is resolved inside the root, where its target does not exist: an error, and no escape.
        assert!(write(root_text, &file("/escape/hosts")).is_err());
        write(root_text, &file("/etc/new/deep/file")).unwrap();

        assert_eq!(fs::read_to_string(outside.join("hosts")).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(root.join("etc/hosts")).unwrap(), "ours");
        let metadata = fs::symlink_metadata(root.join("etc/hosts")).unwrap();
        assert!(metadata.is_file());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_to_string(root.join("etc/new/deep/file")).unwrap(), "ours");
    }
}
