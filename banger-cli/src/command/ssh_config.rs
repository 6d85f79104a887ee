//! `banger ssh-config`: configures the user's ssh for sandboxes. Nothing in the home directory changes without
//! `--install`.

use std::{fs, io, path::Path};

use clap::Args;

use crate::{
    client::bus::Bus,
    error::{Error, Result},
    remote::{self, server::Server},
    ssh::{
        config, hosts,
        installed::{remove, remove_ours, write, write_ours},
        keys,
    },
    ui::output,
    user::dirs::UserDirs,
};

/// Print or install the ssh settings for sandboxes
///
/// With these settings, ssh, scp, rsync, sftp, git and editors know each sandbox as NAME.vm. ssh never asks
/// whether to trust a host key, because it gets the key from the service. Without an option, the settings
/// are only printed. Once installed, your own sandboxes are listed one by one, and banger keeps the list up to date.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger ssh-config --install
  ssh web.vm
  scp notes.txt web.vm:
  rsync -a src/ web.vm:src/
  ssh web.alice.vm           a sandbox of another user (needs an administrator)

--install writes ssh_config and ssh_known_hosts in ~/.config/banger, and one line at the top of
~/.ssh/config that includes the first. Run it again if other programs than banger have created
sandboxes.")]
pub struct SshConfig {
    /// Add the settings to your ssh configuration
    #[arg(long, conflicts_with = "uninstall")]
    install: bool,
    /// Remove what --install wrote; the key stays, because sandboxes accept it
    #[arg(long)]
    uninstall: bool,
}

impl SshConfig {
    pub async fn run(&self) -> Result<u8> {
        let dirs = UserDirs::of_caller()?;
        if self.uninstall {
            return uninstall(&dirs).map(|()| 0);
        }
        let server = remote::chosen()?;
        if self.install {
            require_local(server.as_ref())?;
        }
        // The settings work without the service; only the list of hosts needs it.
        let bus = Bus::connect().await.ok();
        let bus = bus.as_ref();
        if self.install {
            return install(&dirs, bus).await.map(|()| 0);
        }
        let hosts = match bus {
            // Its ProxyCommand does not name another host.
            Some(bus) if server.is_none() => hosts::of_caller(bus).await.unwrap_or_default(),
            _ => Vec::new(),
        };
        output::text(&format!("{}{}", hosts::blocks(&hosts), config::block(&dirs)?))?;
        Ok(0)
    }
}

/// Refuses a remote host: the settings of ssh would reach sandboxes of the same names on this one.
fn require_local(server: Option<&Server>) -> Result<()> {
    let Some(server) = server else { return Ok(()) };
    let error = Error::Refused(format!("ssh is not configured for the sandboxes of {server}"));
    Err(error.with_hint(
        "`banger vm ssh NAME` logs in to one; `banger -c default ssh-config --install` is for those of this host.",
    ))
}

/// Writes our files first: an include line without them would be useless.
async fn install(dirs: &UserDirs, bus: Option<&Bus>) -> Result<()> {
    keys::ensure(dirs)?;
    if let Err(error) = write_ours(dirs, bus).await {
        if !error.is_of_service() {
            return Err(error);
        }
        write_ours(dirs, None).await?;
        eprintln!("note: your sandboxes are not listed yet: {error}");
    }
    let theirs = dirs.ssh_config();
    let old = read(&theirs)?;
    if let Some(new) = with_line(old.as_deref().unwrap_or_default(), &include(dirs)?) {
        write(&theirs, &new, 0o700, 0o600)?;
    }
    let (ours, theirs) = (dirs.short(&dirs.our_config()), dirs.short(&theirs));
    output::text(&format!("wrote {ours}; {theirs} includes it\n"))
}

fn uninstall(dirs: &UserDirs) -> Result<()> {
    let theirs = dirs.ssh_config();
    if let Some(old) = read(&theirs)?
        && let Some(new) = without_line(&old, &include(dirs)?)
    {
        let is_link = fs::symlink_metadata(&theirs).is_ok_and(|metadata| metadata.is_symlink());
        match new.is_empty() && !is_link {
            // It probably did not exist before the installation.
            true => remove(&theirs)?,
            false => write(&theirs, &new, 0o700, 0o600)?,
        }
    }
    remove_ours(dirs)?;
    output::text(&format!("removed the settings for sandboxes from {}\n", dirs.short(&theirs)))
}

/// Returns the line that includes our file.
fn include(dirs: &UserDirs) -> Result<String> {
    let path = dirs.short(&dirs.our_config());
    let quoted = config::quoted(Path::new(&path))?;
    // Unlike other paths, ssh takes this one literally, except for the home.
    let path = match quoted == path {
        true => path,
        false if path.contains(char::is_whitespace) => format!("\"{path}\""),
        false => path,
    };
    Ok(format!("Include {path}\n"))
}

/// Returns the text with the line at its top, or `None` if it has the line.
fn with_line(text: &[u8], line: &str) -> Option<Vec<u8>> {
    if text.split_inclusive(|byte| *byte == b'\n').any(|known| known == line.as_bytes()) {
        return None;
    }
    Some([line.as_bytes(), text].concat())
}

/// Returns the text without the line, or `None` if it does not have the line.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    use super::*;

    const LINE: &str = "Include ~/.config/banger/ssh_config\n";

    fn home() -> (tempfile::TempDir, UserDirs) {
        let home = tempfile::tempdir().unwrap();
        let dirs = UserDirs::below(home.path());
        (home, dirs)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_sandboxes_of_a_remote_host_are_not_installed() {
        let lab = "ssh://alice@lab".parse().unwrap();
        let error = require_local(Some(&lab)).unwrap_err();
        assert!(error.hint().unwrap().starts_with("`banger vm ssh NAME` logs in"), "{error}");
        assert!(require_local(None).is_ok());
        use crate::ssh::installed::lists_hosts_of;
        assert!(lists_hosts_of(None) && !lists_hosts_of(Some(&lab)));
    }

    #[tokio::test]
    async fn an_uninstall_removes_everything() {
        let (_home, dirs) = home();
        install(&dirs, None).await.unwrap();
        install(&dirs, None).await.unwrap();
        assert_eq!(fs::read_to_string(dirs.ssh_config()).unwrap(), LINE);
        assert_eq!((mode(&dirs.ssh()), mode(&dirs.ssh_config())), (0o700, 0o600));
        assert!(fs::read_to_string(dirs.our_config()).unwrap().contains("\nHost *.vm *.VM "));
        uninstall(&dirs).unwrap();
        uninstall(&dirs).unwrap();
        assert!(!dirs.ssh_config().exists() && !dirs.our_config().parent().unwrap().exists());
        assert!(dirs.identity().exists());
    }

    #[tokio::test]
    async fn the_users_configuration_is_restored() {
        let (home, dirs) = home();
        // Without a final line feed, with a byte that is not UTF-8, behind a link, and with a mode of its own.
        let mine = b"Host *\n    User al\xffice\n# last";
        let kept = home.path().join("dotfiles/ssh_config");
        fs::create_dir_all(kept.parent().unwrap()).unwrap();
        fs::create_dir(dirs.ssh()).unwrap();
        fs::write(&kept, mine).unwrap();
        fs::set_permissions(&kept, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("../dotfiles/ssh_config", dirs.ssh_config()).unwrap();
        install(&dirs, None).await.unwrap();
        assert_eq!(fs::read(&kept).unwrap(), [LINE.as_bytes(), mine].concat());
        uninstall(&dirs).unwrap();
        assert_eq!((fs::read(&kept).unwrap(), mode(&kept)), (mine.to_vec(), 0o640));
        assert!(fs::symlink_metadata(dirs.ssh_config()).unwrap().is_symlink());
    }

    #[tokio::test]
    async fn a_broken_link_is_reported() {
        let (_home, dirs) = home();
        fs::create_dir(dirs.ssh()).unwrap();
        std::os::unix::fs::symlink("nowhere", dirs.ssh_config()).unwrap();
        assert!(install(&dirs, None).await.unwrap_err().to_string().starts_with("cannot write "));
    }

    #[test]
    fn only_the_exact_line_is_removed() {
        assert_eq!(with_line(b"# Include\n", LINE), Some(format!("{LINE}# Include\n").into_bytes()));
        assert_eq!(with_line(format!("a\n{LINE}").as_bytes(), LINE), None);
        assert_eq!(without_line(format!("a\n{LINE}b").as_bytes(), LINE), Some(b"a\nb".to_vec()));
        assert_eq!(without_line(format!("  {LINE}").as_bytes(), LINE), None);
    }
}
