//! The runtime directory of a user, `XDG_RUNTIME_DIR` in the XDG Base Directory Specification. It is created as
//! logind would, for commands of users without a logind session.
//!
//! In a guest, the directory is a file system of its own: a user's own systemd starts later, and would mount one over it
//! (user-runtime-dir@.service(5)), which hides what commands have put there.

use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, chown},
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, mount};

use crate::{account::Account, detached};

/// Parent of all runtime directories.
const ALL: &str = "/run/user";

/// Returns the directory of this user, and creates it if missing. Returns `None` if it cannot meet the specification:
/// a directory that only the user can access.
pub fn of(account: &Account) -> Option<PathBuf> {
    below(Path::new(ALL), account, detached::is_in_guest()).ok()
}

fn below(all: &Path, account: &Account, mounted: bool) -> io::Result<PathBuf> {
    fs::create_dir_all(all)?;
    let path = all.join(account.uid.to_string());
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        // Only root may write to the parent directory.
        Ok(()) if mounted => mount_for(account, &path)?,
        Ok(()) => chown(&path, Some(account.uid), Some(account.gid))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let found = fs::symlink_metadata(&path)?;
    match found.is_dir() && found.uid() == account.uid && found.mode() & 0o077 == 0 {
        true => Ok(path),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Mounts a file system as systemd-logind does by default (`RuntimeDirectorySize` in logind.conf(5)).
fn mount_for(account: &Account, path: &Path) -> io::Result<()> {
    let options = format!("mode=0700,uid={},gid={},size=10%", account.uid, account.gid);
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount("tmpfs", path, "tmpfs", flags, CString::new(options)?.as_c_str())?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn account(uid: u32) -> Account {
        Account {
            name: "ann".into(),
            uid,
            gid: uid,
            groups: Vec::new(),
            home: "/".into(),
            shell: "/bin/sh".into(),
        }
    }

    #[test]
    fn the_directory_is_created_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let all = dir.path().join("user");
        let made = below(&all, &account(own), false).unwrap();
        assert_eq!(fs::metadata(&made).unwrap().mode() & 0o7777, 0o700);
        fs::write(made.join("socket"), "").unwrap();
        assert_eq!(below(&all, &account(own), false).unwrap(), made);
        assert!(made.join("socket").exists());
        fs::set_permissions(&made, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(below(&all, &account(own), false).is_err(), "others can look into it");
        symlink(dir.path(), all.join("4242")).unwrap();
        assert!(below(&all, &account(4242), false).is_err(), "it is a link");
    }
}
