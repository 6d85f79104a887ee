//! Copies out of a sandbox. The guest may be hostile: its archive is bounded, and `banger-copy` extracts it with the
//! rules for untrusted senders.

use std::{
    ffi::OsStr,
    fs,
    io::{self, IsTerminal, Write},
    os::fd::OwnedFd,
    path::Path,
};

use banger_copy::{Access, Owner, Rules, Target};
use banger_proto::guest::{Request, message::CopyOut};

use super::{
    Copying,
    side::{GuestPath, Side, display, login},
};
use crate::{
    error::{Error, Result},
    guest::agent::{Guest, from_copy},
    ui::progress::Metered,
    workspace::bounded::BoundedArchive,
};

/// The umask if that of this process is unknown: only the owner gets access.
const PRIVATE_UMASK: u32 = 0o077;

impl Copying<'_> {
    /// Copies out of a sandbox. Returns the notes.
    pub async fn fetch(&self, from: &GuestPath, to: &Side) -> Result<Vec<String>> {
        let fetched = match to {
            Side::Host(to) => self.fetch_path(&mut Guest::of(&from.sandbox).await?, from, to).await,
            _ => self.fetch_stream(from).await,
        };
        fetched.map_err(|error| error.about(&from.sandbox))
    }

    /// Copies a file or a directory out of a sandbox. Returns the notes.
    pub async fn fetch_path(&self, guest: &mut Guest, from: &GuestPath, to: &Path) -> Result<Vec<String>> {
        let name = from.name()?.map(OsStr::new);
        self.fetch_into(guest, from, Target::of(to, name), None).await
    }

    /// Copies a file or a directory out of a sandbox to this target, in the open directory if there is one. Returns the
    /// notes.
    pub async fn fetch_into(
        &self,
        guest: &mut Guest,
        from: &GuestPath,
        target: Target,
        directory: Option<OwnedFd>,
    ) -> Result<Vec<String>> {
        let name = from.name()?.map(str::to_owned);
        let request = Request::CopyOut(self.source(guest, from, name.clone())?);
        let track = self.progress.track(None);
        track.stage("copy", &format!("{from} to {}", display(&target.path())));
        let meter = track.meter(0);
        let access = Access::untrusted(umask());
        let rules = Rules { owner: Owner::Caller, access, through_links: false, names: self.names };
        guest
            .call(request, move |call| {
                let archive = BoundedArchive::new(Metered { from: &mut *call, meter: &meter });
                let top = name.as_ref().map(OsStr::new);
                let notes = match directory {
                    Some(directory) => banger_copy::receive_in(archive, top, directory, &target, rules),
                    None => banger_copy::receive(archive, top, &target, rules),
                };
                let notes = notes.map_err(from_copy)?;
                Ok([call.notes(), notes.into_lines(), links(&target)].concat())
            })
            .await
    }

    async fn fetch_stream(&self, from: &GuestPath) -> Result<Vec<String>> {
        if io::stdout().is_terminal() {
            return Err(Error::Usage("refusing to write an archive to a terminal".to_owned())
                .with_hint("pipe it into `tar -t` or into a file."));
        }
        let name = from.name()?.map(str::to_owned);
        let mut guest = Guest::of(&from.sandbox).await?;
        let request = Request::CopyOut(self.source(&guest, from, name)?);
        let track = self.progress.track(None);
        track.stage("copy", &format!("{from} as an archive"));
        let meter = track.meter(0);
        guest
            .call(request, move |call| {
                let failed = |source| Error::io("write to standard output", source);
                let mut output = io::stdout().lock();
                while let Some(bytes) = call.output()? {
                    meter.add(bytes.len() as u64);
                    output.write_all(&bytes).map_err(failed)?;
                }
                output.flush().map_err(failed)?;
                Ok(call.notes())
            })
            .await
    }

    /// Returns the request for a copy with this name, or for the content of a directory.
    pub fn source(&self, guest: &Guest, from: &GuestPath, top: Option<String>) -> Result<CopyOut> {
        let login = login(guest)?;
        Ok(CopyOut { path: from.path_for(login.as_deref()), top, follow: self.follow })
    }
}

/// Notes symbolic links: a link from a guest may lead anywhere, and the next copy to this path would follow it.
fn links(target: &Target) -> Vec<String> {
    let path = target.path();
    match fs::read_link(&path) {
        Ok(to) if target.name.is_some() => {
            vec![format!("{} is a symbolic link to {}", display(&path), display(&to))]
        }
        _ => Vec::new(),
    }
}

/// Reads the umask, which system calls only return when they set it (proc_pid_status(5)).
fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    umask.and_then(|umask| u32::from_str_radix(umask.trim(), 8).ok()).unwrap_or(PRIVATE_UMASK)
}
