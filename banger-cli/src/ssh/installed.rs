//! The files that `ssh-config --install` writes, and keeps up to date while they exist.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{
    config,
    hosts::{self, Host},
};
use crate::{
    client::bus::Bus,
    error::{Error, Result},
    remote::server::Server,
    user::dirs::UserDirs,
};

/// How long the service may take to list sandboxes.
const TIMEOUT: Duration = Duration::from_secs(5);
const HEAD: &str =
    "# Written by `banger ssh-config --install`, and updated by banger; `--uninstall` removes it.\n";

/// Writes our files: the configuration, and the keys of the hosts. The bus is asked under a lock, so that the last of
/// several processes writes the newest state.
pub async fn write_ours(dirs: &UserDirs, bus: Option<&Bus>) -> Result<()> {
    let _lock = lock(dirs)?;
    write_hosts(dirs, &listed(bus).await?)
}

/// Updates our files, if they are installed, after sandboxes have come, gone or changed. A failure is reported, and does
/// not change the exit status of a command.
pub async fn refresh(bus: &Bus) {
    if !lists_hosts_of(bus.server()) {
        return;
    }
    let Ok(dirs) = UserDirs::of_caller() else { return };
    if !dirs.our_config().exists() {
        return;
    }
    if let Err(error) = write_if_installed(&dirs, bus).await {
        eprintln!("warning: the hosts of ssh are not up to date: {error}");
    }
}

/// Returns whether the sandboxes of this host are hosts of ssh, which knows only those of the local one.
pub fn lists_hosts_of(server: Option<&Server>) -> bool {
    server.is_none()
}

async fn write_if_installed(dirs: &UserDirs, bus: &Bus) -> Result<()> {
    let _lock = lock(dirs)?;
    // Another process may have removed it meanwhile.
    match dirs.our_config().exists() {
        true => write_hosts(dirs, &listed(Some(bus)).await?),
        false => Ok(()),
    }
}

async fn listed(bus: Option<&Bus>) -> Result<Vec<Host>> {
    let Some(bus) = bus.filter(|bus| lists_hosts_of(bus.server())) else { return Ok(Vec::new()) };
    // Others may wait for the lock.
    let hosts = tokio::time::timeout(TIMEOUT, hosts::of_caller(bus)).await;
    hosts.unwrap_or_else(|_| Err(Error::ServiceEnded))
}

fn write_hosts(dirs: &UserDirs, hosts: &[Host]) -> Result<()> {
    // The keys come first: the configuration names their file.
    write(&dirs.our_known_hosts(), hosts::known(hosts).as_bytes(), 0o755, 0o644)?;
    let content = format!("{HEAD}{}{}", hosts::blocks(hosts), config::block(dirs)?);
    let ours = dirs.our_config();
    // It has variables of workspaces. A file that exists keeps its mode, and may be readable for everybody.
    if let Err(error) = fs::set_permissions(&ours, Permissions::from_mode(0o600))
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(Error::io(format!("write {}", ours.display()), error));
    }
    write(&ours, content.as_bytes(), 0o755, 0o600)
}

/// Removes our files. Their directory stays if it contains anything else.
pub fn remove_ours(dirs: &UserDirs) -> Result<()> {
    if !dirs.our_config().exists() && !dirs.our_known_hosts().exists() {
        return Ok(());
    }
    let _lock = lock(dirs)?;
    remove(&dirs.our_config())?;
    remove(&dirs.our_known_hosts())?;
    if let Some(directory) = dirs.our_config().parent() {
        let _ = fs::remove_dir(directory);
    }
    Ok(())
}

/// Locks the directory of our files until the result is dropped.
fn lock(dirs: &UserDirs) -> Result<File> {
    let path = dirs.our_config();
    let directory = path.parent().unwrap_or(&path);
    let lock = || {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        let file = File::open(directory)?;
        let begin = Instant::now();
        // Another process that has it may be stopped.
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != Errno::WOULDBLOCK || begin.elapsed() > TIMEOUT {
                return Err(error.into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(file)
    };
    lock().map_err(|error| Error::io(format!("lock {}", directory.display()), error))
}

/// Removes a file, if it exists.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Writes a file, completely or not at all. An existing file keeps its mode, and a link is kept and its target
/// written. New files and directories get these modes.
pub fn write(path: &Path, content: &[u8], directory_mode: u32, mode: u32) -> Result<()> {
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

/// Returns the target of a link, or the path itself if nothing is there.
fn target(path: &Path) -> io::Result<PathBuf> {
    match fs::symlink_metadata(path) {
        Ok(_) => fs::canonicalize(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        Err(error) => Err(error),
    }
}
