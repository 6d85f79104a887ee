//! The key of the user, and the tokens of sandboxes, which are derived from it.

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    hint::black_box,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
};

use rustix::{
    fs::OFlags,
    process::getuid,
    rand::{GetRandomFlags, getrandom},
};
use sha2::{Digest, Sha256};

/// What keys begin with. SDKs refuse others, and accept only hexadecimal digits after it.
const PREFIX: &str = "e2b_";
/// The random bytes of a key.
const RANDOM: usize = 20;

/// The key of the user.
pub struct Key(String);

impl Key {
    /// Returns the key in the user's runtime directory, and creates it if there is none.
    pub fn of_user() -> io::Result<Self> {
        let runtime = env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
        let runtime = runtime.ok_or_else(|| io::Error::other("XDG_RUNTIME_DIR is not set"))?;
        Self::at(&PathBuf::from(runtime).join("banger"))
    }

    fn at(directory: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let path = directory.join("e2b.key");
        match read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            read => return read.map(Self),
        }
        let mut random = [0; RANDOM];
        // Fewer bytes than 256 come whole (getrandom(2)).
        getrandom(&mut random, GetRandomFlags::empty())?;
        let new = directory.join(format!("e2b.key.{}", process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(format!("{PREFIX}{}\n", hexadecimal(&random)).as_bytes())?;
        // The first one decides, and nobody reads half a key.
        let linked = fs::hard_link(&new, &path);
        fs::remove_file(&new)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => read(&path).map(Self),
        }
    }

    /// Returns the key itself.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Checks a key that a client sent. Takes equally long for all of the same length.
    pub fn is(&self, sent: &str) -> bool {
        equal(&self.0, sent)
    }

    /// Returns the token of a sandbox, for requests into it. It stays the same while the key does.
    pub fn token(&self, sandbox: &str) -> String {
        hexadecimal(&Sha256::digest(format!("sandbox {} {sandbox}", self.0)))
    }

    /// Checks a token that a client sent, as [`Key::is`] does.
    pub fn is_token(&self, sandbox: &str, sent: &str) -> bool {
        equal(&self.token(sandbox), sent)
    }
}

/// Reads a key, if only the user can.
fn read(path: &Path) -> io::Result<String> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.uid() != getuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!(
            "{} can be read or written by others; remove it",
            path.display()
        )));
    }
    let mut text = String::new();
    File::take(file, 1024).read_to_string(&mut text)?;
    let key = text.trim_end();
    let digits = key.strip_prefix(PREFIX).unwrap_or_default();
    if digits.len() != 2 * RANDOM || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(io::Error::other(format!("{} has no key; remove it", path.display())));
    }
    Ok(key.to_owned())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn equal(a: &str, b: &str) -> bool {
    let differences = a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
    a.len() == b.len() && differences == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_user_can_read_it() {
        let runtime = tempfile::tempdir().unwrap();
        let directory = runtime.path().join("banger");
        let key = Key::at(&directory).unwrap();
        assert_eq!(Key::at(&directory).unwrap().text(), key.text());
        assert!(key.text().starts_with("e2b_") && key.text().len() == 44, "{}", key.text());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join("e2b.key"))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_refused() {
        let runtime = tempfile::tempdir().unwrap();
        Key::at(runtime.path()).unwrap();
        let path = runtime.path().join("e2b.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Key::at(runtime.path()).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "e2b_\n").unwrap();
        assert!(Key::at(runtime.path()).is_err());
    }

    #[test]
    fn a_token_opens_one_sandbox_and_is_not_the_key() {
        let runtime = tempfile::tempdir().unwrap();
        let key = Key::at(runtime.path()).unwrap();
        let token = key.token("a");
        assert!(key.is_token("a", &token) && !key.is_token("b", &token) && !key.is(&token));
        assert!(key.is(key.text()) && !key.is("") && !key.is(&key.text()[..43]) && !key.is_token("a", ""));
        assert!(!key.is(&format!("{}0", key.text())));
    }
}
