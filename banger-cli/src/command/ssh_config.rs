//! `banger ssh-config`: the user's ssh, and whatever uses it, learns of sandboxes. Nothing in the home is touched unless
//! that is asked for.

use std::{
    fs::{self, DirBuilder, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use clap::Args;

use crate::{
    error::{Error, Result},
    output,
    ssh::{config, keys, places::Places},
};

const HEAD: &str = "# Written by `banger ssh-config --install`; `--uninstall` removes it.\n";

/// Print or install the ssh settings for sandboxes
///
/// With these settings, ssh, scp, rsync, sftp, git and editors know each sandbox as NAME.vm. ssh asks no
/// question and trusts no key at first sight, because it gets the host key of the sandbox from the service.
/// Without an option, the settings are only printed.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger ssh-config --install
  ssh web.vm
  scp notes.txt web.vm:
  rsync -a src/ web.vm:src/
  ssh web.alice.vm           a sandbox of another user (needs an administrator)

--install writes ~/.config/banger/ssh_config, and one line at the top of ~/.ssh/config that
includes it.")]
pub struct SshConfig {
    /// Add the settings to your ssh configuration
    #[arg(long, conflicts_with = "uninstall")]
    install: bool,
    /// Remove what --install wrote; the key stays, because sandboxes accept it
    #[arg(long)]
    uninstall: bool,
}

impl SshConfig {
    pub fn run(&self) -> Result<u8> {
        let places = Places::of_caller()?;
        match (self.install, self.uninstall) {
            (true, _) => install(&places)?,
            (_, true) => uninstall(&places)?,
            _ => output::text(&config::block(&places)?)?,
        }
        Ok(0)
    }
}

/// Our file first: a line that includes nothing yet would be no use.
fn install(places: &Places) -> Result<()> {
    keys::ensure(places)?;
    let ours = places.our_config();
    let content = format!("{HEAD}{}", config::block(places)?);
    write(&ours, content.as_bytes(), 0o755, 0o644)?;
    let theirs = places.ssh_config();
    let old = read(&theirs)?;
    if let Some(new) = with_line(old.as_deref().unwrap_or_default(), &include(places)?) {
        write(&theirs, &new, 0o700, 0o600)?;
    }
    let (ours, theirs) = (places.short(&ours), places.short(&theirs));
    output::text(&format!("wrote {ours}; {theirs} includes it\n"))
}

fn uninstall(places: &Places) -> Result<()> {
    let theirs = places.ssh_config();
    if let Some(old) = read(&theirs)?
        && let Some(new) = without_line(&old, &include(places)?)
    {
        let is_link = fs::symlink_metadata(&theirs).is_ok_and(|metadata| metadata.is_symlink());
        match new.is_empty() && !is_link {
            // There was none before it was installed, as far as anybody can tell.
            true => remove(&theirs)?,
            false => write(&theirs, &new, 0o700, 0o600)?,
        }
    }
    let ours = places.our_config();
    remove(&ours)?;
    if let Some(directory) = ours.parent() {
        // It stays where there is anything else in it.
        let _ = fs::remove_dir(directory);
    }
    output::text(&format!("removed the settings for sandboxes from {}\n", places.short(&theirs)))
}

/// The line that includes our file.
fn include(places: &Places) -> Result<String> {
    let path = places.short(&places.our_config());
    let quoted = config::quoted(Path::new(&path))?;
    // Unlike its other paths, ssh takes this one as it is, but for the home.
    let path = match quoted == path {
        true => path,
        false if path.contains(char::is_whitespace) => format!("\"{path}\""),
        false => path,
    };
    Ok(format!("Include {path}\n"))
}

/// The text with the line at its top; nothing where it has the line.
fn with_line(text: &[u8], line: &str) -> Option<Vec<u8>> {
    if text.split_inclusive(|byte| *byte == b'\n').any(|known| known == line.as_bytes()) {
        return None;
    }
    Some([line.as_bytes(), text].concat())
}

/// The text without the line; nothing where it does not have the line.
fn without_line(text: &[u8], line: &str) -> Option<Vec<u8>> {
    let lines = || text.split_inclusive(|byte| *byte == b'\n');
    let kept = lines().filter(|known| *known != line.as_bytes());
    lines().any(|known| known == line.as_bytes()).then(|| kept.flatten().copied().collect())
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(|error| Error::io(format!("read {}", path.display()), error)),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Writes a file, whole or not at all. One that is there keeps its mode, and a link stays a link: what it
/// leads to is written. What is missing gets these modes.
fn write(path: &Path, content: &[u8], directory_mode: u32, mode: u32) -> Result<()> {
    let failed = |error| Error::io(format!("write {}", path.display()), error);
    let write = || {
        let target = target(path)?;
        let directory = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
        DirBuilder::new().recursive(true).mode(directory_mode).create(directory)?;
        let permissions = match fs::metadata(&target) {
            Ok(metadata) => metadata.permissions(),
            Err(_) => Permissions::from_mode(mode),
        };
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(content)?;
        file.as_file().set_permissions(permissions)?;
        file.as_file().sync_all()?;
        file.persist(&target).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(failed)
}

/// Where a link leads, or the path itself where there is nothing.
fn target(path: &Path) -> io::Result<PathBuf> {
    match fs::symlink_metadata(path) {
        Ok(_) => fs::canonicalize(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LINE: &str = "Include ~/.config/banger/ssh_config\n";

    fn home() -> (tempfile::TempDir, Places) {
        let home = tempfile::tempdir().unwrap();
        let places = Places::below(home.path());
        (home, places)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_installed_is_removed_without_a_trace() {
        let (_home, places) = home();
        install(&places).unwrap();
        install(&places).unwrap();
        assert_eq!(fs::read_to_string(places.ssh_config()).unwrap(), LINE);
        assert_eq!((mode(&places.ssh()), mode(&places.ssh_config())), (0o700, 0o600));
        assert!(fs::read_to_string(places.our_config()).unwrap().contains("\nHost *.vm\n"));
        uninstall(&places).unwrap();
        uninstall(&places).unwrap();
        assert!(!places.ssh_config().exists() && !places.our_config().parent().unwrap().exists());
        assert!(places.identity().exists());
    }

    #[test]
    fn a_configuration_of_the_user_is_the_same_afterwards() {
        let (home, places) = home();
        // Without an end of line, with a byte that is no text, behind a link, and with a mode of its own.
        let mine = b"Host *\n    User al\xffice\n# last";
        let kept = home.path().join("dotfiles/ssh_config");
        fs::create_dir_all(kept.parent().unwrap()).unwrap();
        fs::create_dir(places.ssh()).unwrap();
        fs::write(&kept, mine).unwrap();
        fs::set_permissions(&kept, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("../dotfiles/ssh_config", places.ssh_config()).unwrap();
        install(&places).unwrap();
        assert_eq!(fs::read(&kept).unwrap(), [LINE.as_bytes(), mine].concat());
        uninstall(&places).unwrap();
        assert_eq!((fs::read(&kept).unwrap(), mode(&kept)), (mine.to_vec(), 0o640));
        assert!(fs::symlink_metadata(places.ssh_config()).unwrap().is_symlink());
    }

    #[test]
    fn a_link_that_leads_nowhere_is_told() {
        let (_home, places) = home();
        fs::create_dir(places.ssh()).unwrap();
        std::os::unix::fs::symlink("nowhere", places.ssh_config()).unwrap();
        assert!(install(&places).unwrap_err().to_string().starts_with("cannot write "));
    }

    #[test]
    fn only_the_line_itself_is_the_line() {
        assert_eq!(with_line(b"# Include\n", LINE), Some(format!("{LINE}# Include\n").into_bytes()));
        assert_eq!(with_line(format!("a\n{LINE}").as_bytes(), LINE), None);
        assert_eq!(without_line(format!("a\n{LINE}b").as_bytes(), LINE), Some(b"a\nb".to_vec()));
        assert_eq!(without_line(format!("  {LINE}").as_bytes(), LINE), None);
    }
}
