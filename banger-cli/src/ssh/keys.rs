//! The keys that sandboxes accept: the user's own, and one only for sandboxes, so that there is always a key without
//! a passphrase.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey, rand_core::OsRng};

use crate::{
    error::{Error, Result},
    user::dirs::UserDirs,
};

/// Limits on the number of keys that a sandbox accepts, and on the size of one.
const MAX_KEYS: usize = 16;
const MAX_KEY: u64 = 8 << 10;
const COMMENT: &str = "banger";

/// Returns the public keys for a new sandbox, one per line: the one for sandboxes first.
pub fn public(dirs: &UserDirs) -> Result<Vec<String>> {
    let mut keys = vec![line(ensure(dirs)?.public_key())?];
    for path in public_files(&dirs.ssh()) {
        let Some(key) = read_public(&path) else { continue };
        if keys.len() < MAX_KEYS && !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

/// Returns the key for sandboxes, and creates it if missing.
pub fn ensure(dirs: &UserDirs) -> Result<PrivateKey> {
    let path = dirs.identity();
    let failed = |doing: &str, source| Error::io(format!("{doing} {}", path.display()), source);
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(&path).map_err(|error| failed("create the key", error))?;
        }
        Err(error) => return Err(failed("read the key", error)),
        Ok(_) => {}
    }
    // If another process has created it at the same time, that key counts.
    let text = fs::read(&path).map_err(|error| failed("read the key", error))?;
    let key = PrivateKey::from_openssh(text).map_err(|error| {
        failed("read the key", io::Error::other(error))
            .with_hint("if you no longer need that key, delete the file: banger then creates a new one.")
    })?;
    let public = path.with_added_extension("pub");
    if !public.exists() {
        // For people and other programs; banger does not need it.
        let _ = fs::write(public, format!("{}\n", line(key.public_key())?));
    }
    Ok(key)
}

/// Creates a key file, completely or not at all, unless it exists.
fn make(path: &Path) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(io::Error::other)?;
    key.set_comment(COMMENT);
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.as_file().set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(key.to_openssh(LineEnding::LF).map_err(io::Error::other)?.as_bytes())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
        _ => Ok(()),
    }
}

/// Returns the files that ssh-keygen creates, in the order of their names.
fn public_files(directory: &Path) -> Vec<PathBuf> {
    let is_public = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("id_") && name.ends_with(".pub") && path.is_file()
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_public).collect();
    files.sort();
    files
}

/// Reads a public key that a server can accept. Anything else, such as a certificate, is skipped.
fn read_public(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_KEY).read_to_string(&mut text).ok()?;
    let key = PublicKey::from_openssh(text.trim()).ok()?;
    match key.algorithm() {
        Algorithm::Other(_) | Algorithm::Dsa => None,
        _ if key.comment().contains(char::is_control) => None,
        _ => line(&key).ok(),
    }
}

fn line(key: &PublicKey) -> Result<String> {
    key.to_openssh().map_err(|error| Error::io("write a public key", io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti alice at home";

    #[test]
    fn the_key_for_sandboxes_is_created_once_and_is_private() {
        let home = tempfile::tempdir().unwrap();
        let dirs = UserDirs::below(home.path());
        let first = public(&dirs).unwrap();
        assert_eq!(first.len(), 1);
        assert!(first[0].ends_with(" banger"), "{first:?}");
        assert_eq!(public(&dirs).unwrap(), first);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let identity = dirs.identity();
        assert_eq!((mode(&identity), mode(identity.parent().unwrap())), (0o600, 0o700));
        let public = fs::read_to_string(identity.with_added_extension("pub")).unwrap();
        assert_eq!(public.trim_end(), first[0]);
    }

    #[test]
    fn the_users_keys_are_accepted_and_other_files_skipped() {
        let home = tempfile::tempdir().unwrap();
        let dirs = UserDirs::below(home.path());
        fs::create_dir(dirs.ssh()).unwrap();
        let write = |name: &str, text: &str| fs::write(dirs.ssh().join(name), text).unwrap();
        write("id_ed25519.pub", &format!("{KEY}\n"));
        write("id_same.pub", KEY);
        write("id_rsa", KEY);
        write("other.pub", KEY);
        write("id_nonsense.pub", "nonsense");
        write("id_options.pub", &format!("command=\"x\" {KEY}"));
        write("id_two.pub", &format!("{KEY}\n{KEY}\n"));
        write("id_binary.pub", "ssh-ed25519 \u{1}");
        fs::create_dir(dirs.ssh().join("id_directory.pub")).unwrap();
        assert_eq!(public(&dirs).unwrap()[1..], [KEY]);
    }

    #[test]
    fn a_damaged_key_is_reported_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let dirs = UserDirs::below(home.path());
        fs::create_dir_all(dirs.identity().parent().unwrap()).unwrap();
        fs::write(dirs.identity(), "nonsense").unwrap();
        assert!(public(&dirs).unwrap_err().hint().unwrap().contains("delete the file"));
        assert_eq!(fs::read_to_string(dirs.identity()).unwrap(), "nonsense");
    }
}
