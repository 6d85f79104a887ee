//! Files that every sandbox of the user gets when it is up for the first time: the git identity, and the files in the
//! user's settings. The user's own process reads them, and the agent writes them.

use std::{
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use banger_copy::{Ownership, Packer};
use banger_proto::guest::{
    Request,
    frame::MAX_DATA,
    message::{Algorithm, Placement},
};

use crate::{
    error::{Error, Result},
    guest::agent::{Guest, from_copy},
    user::{
        dirs::UserDirs,
        settings::{FileSync, Settings},
    },
    workspace::git::Git,
};

/// The git configuration in a sandbox.
const GIT_CONFIG: &str = ".gitconfig";
const HOME: &str = "/root";

/// Copies the user's files into a sandbox. Returns problems, one sentence each; they do not make the sandbox
/// unusable.
pub async fn send(guest: &mut Guest, settings: &Settings) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    match put(guest, settings, &mut problems).await {
        Err(error) if error.is_interrupted() => return Err(error),
        Err(error) => problems.push(format!("cannot copy all of your files into the sandbox: {error}.")),
        Ok(()) => {}
    }
    Ok(problems)
}

async fn put(guest: &mut Guest, settings: &Settings, problems: &mut Vec<String>) -> Result<()> {
    let dirs = UserDirs::of_caller()?;
    let mut files = Vec::new();
    for file in settings.file_sync.iter().cloned() {
        match file.host_path(&dirs.home) {
            here if here.exists() => files.push((here, file)),
            here => problems.push(format!("{} does not exist, so it is not in the sandbox.", here.display())),
        }
    }
    let identity = if settings.git_identity { identity(&dirs.home) } else { None };
    let identity = match identity {
        Some(text) if !knows_identity(guest).await? => Some(text),
        _ => None,
    };
    if files.is_empty() && identity.is_none() {
        return Ok(());
    }
    // Files in the home directory need not wait for the guest's init.
    let base = if files.iter().all(|(_, file)| below(HOME, file).is_some()) { HOME } else { "/" };
    let request = Request::PutTar { directory: base.to_owned(), placement: Placement::Merge };
    guest
        .call(request, move |call| {
            let to = BufWriter::with_capacity(MAX_DATA, &mut *call);
            let mut archive = Packer::new(to, Ownership::Root);
            if let Some(text) = &identity {
                let path = Path::new(HOME).join(GIT_CONFIG);
                let path = path.strip_prefix(base).unwrap_or(&path);
                archive.add_bytes(path, 0o644, text.as_bytes()).map_err(from_copy)?;
            }
            files.iter().try_for_each(|(here, file)| pack(&mut archive, here, base, file))?;
            archive.finish().map_err(from_copy)?;
            call.end_input()?;
            call.finish()
        })
        .await
}

/// Returns the path of a file relative to a directory of the sandbox, or `None` if it is outside.
fn below(base: &str, file: &FileSync) -> Option<PathBuf> {
    let there = Path::new("/").join(file.guest_path());
    there.strip_prefix(base).ok().filter(|below| !below.as_os_str().is_empty()).map(Path::to_owned)
}

fn pack(archive: &mut Packer<impl Write>, here: &Path, base: &str, file: &FileSync) -> Result<()> {
    let here = here.canonicalize().map_err(|source| Error::io(format!("read {}", here.display()), source))?;
    let permissions = file.permissions().map_err(Error::Refused)?;
    let there = below(base, file).unwrap_or_else(|| file.guest_path());
    archive.add_as(&here, Some(&there), permissions).map_err(from_copy)
}

/// Returns a git configuration with the user's identity, or `None` if git is missing or does not know it.
fn identity(home: &Path) -> Option<String> {
    let git = Git::within(home);
    let value = |key: &str| {
        let line = git.line(&["config", "--global", "--get", key]).ok()??;
        let text = String::from_utf8(line).ok()?;
        Some(text.replace('\\', "\\\\").replace('"', "\\\""))
    };
    let (name, email) = (value("user.name")?, value("user.email")?);
    Some(format!("[user]\n\tname = \"{name}\"\n\temail = \"{email}\"\n"))
}

async fn knows_identity(guest: &mut Guest) -> Result<bool> {
    match guest.digests(HOME, Algorithm::Sha1, vec![GIT_CONFIG.as_bytes().to_vec()]).await {
        Ok(values) => Ok(values.iter().any(Option::is_some)),
        // Without a home directory, there is nowhere to put it.
        Err(Error::Guest(_)) => Ok(true),
        Err(error) => Err(error),
    }
}
