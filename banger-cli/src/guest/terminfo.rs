//! Makes a guest know the caller's terminal, so that full-screen programs work in terminals that are newer than the image.

use std::{
    env,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use banger_proto::{
    bus::option::agent,
    guest::{
        Request,
        terminfo::{DIRECTORIES, MAX_ENTRY, TerminalType, describes, is_name, paths},
    },
};
use zbus::OwnedObjectPath;

use crate::{
    client::bus::Bus,
    error::{Error, Result},
    guest::agent::Call,
};

/// Terminals that guests know.
const KNOWN: [&str; 5] = ["xterm", "xterm-256color", "linux", "vt100", "dumb"];
/// How long a guest may take; then the command starts without this. An emulated one on a busy host takes seconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the guest know a terminal. Returns its name there. A guest that does not answer, or was booted by an earlier
/// version, gets the name as it is.
pub async fn prepare(bus: &Bus, vm: &OwnedObjectPath, term: &str) -> String {
    if KNOWN.contains(&term) || !is_name(term) {
        return term.to_owned();
    }
    let terminal = TerminalType { name: term.to_owned(), entry: entry(&directories(), term) };
    match tokio::time::timeout(TIMEOUT, install(bus, vm, terminal)).await {
        Ok(Ok(name)) if is_name(&name) => name,
        _ => term.to_owned(),
    }
}

async fn install(bus: &Bus, vm: &OwnedObjectPath, terminal: TerminalType) -> Result<String> {
    let stream = bus.open_agent(vm, agent::COMMAND, Some(TIMEOUT)).await?;
    let asked =
        tokio::task::spawn_blocking(move || Call::begin(stream, &Request::Terminal(terminal))?.answer());
    let answer = asked.await.map_err(|error| Error::io("run a thread", io::Error::other(error)))?;
    Ok(String::from_utf8_lossy(&answer?).into_owned())
}

/// Returns the directories in which programs of the host look for descriptions (terminfo(5)).
fn directories() -> Vec<PathBuf> {
    let own = env::var_os("TERMINFO").map(PathBuf::from);
    let home = env::home_dir().map(|home| home.join(".terminfo"));
    let more = env::var_os("TERMINFO_DIRS").unwrap_or_default();
    let more: Vec<PathBuf> = env::split_paths(&more).collect();
    let usual = DIRECTORIES.map(PathBuf::from);
    own.into_iter().chain(home).chain(more).chain(usual).filter(|path| path.is_absolute()).collect()
}

fn entry(directories: &[PathBuf], name: &str) -> Option<Vec<u8>> {
    let mut files = directories.iter().flat_map(|directory| paths(name).map(|path| directory.join(path)));
    files.find_map(|path| read(&path).filter(|entry| describes(entry, name)))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok().filter(|file| file.metadata().is_ok_and(|file| file.is_file()))?;
    file.take(MAX_ENTRY as u64 + 1).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn the_first_description_that_fits_is_sent() {
        let entry_of = |names: &str| {
            let header = [0o432u16, names.len() as u16 + 1, 0, 0, 0, 0];
            [&header.map(u16::to_le_bytes).concat()[..], names.as_bytes(), &[0]].concat()
        };
        let place = tempfile::tempdir().unwrap();
        let write = |path: &str, content: &[u8]| {
            let path = place.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write("one/f/foot", b"damaged");
        write("two/66/foot", &entry_of("foot|foot terminal"));
        write("three/f/foot", &entry_of("foot|another"));
        fs::create_dir_all(place.path().join("one/k/kitty")).unwrap();
        let directories = ["nowhere", "one", "two", "three"].map(|name| place.path().join(name));
        assert_eq!(entry(&directories, "foot"), Some(entry_of("foot|foot terminal")));
        assert_eq!(entry(&directories, "kitty"), None);
    }
}
