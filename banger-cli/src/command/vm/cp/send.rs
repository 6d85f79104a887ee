//! Copies into a sandbox.

use std::{
    fs,
    io::{self, IsTerminal},
    os::unix::fs::MetadataExt,
    path::Path,
};

use banger_copy::{Ownership, Packer};
use banger_proto::guest::{
    Request,
    frame::MAX_DATA,
    message::{CopyIn, CopyOwner},
};

use super::{
    Copying,
    side::{GuestPath, Side, display, login, own_name},
    stream,
};
use crate::{
    error::{Error, Result},
    guest::agent::{Guest, from_copy},
};

impl Copying<'_> {
    /// Copies into a sandbox. Returns the notes.
    pub async fn send(&self, from: &Side, to: &GuestPath) -> Result<Vec<String>> {
        let sent = match from {
            Side::Host(from) => self.send_path(&mut Guest::of(&to.sandbox).await?, from, to, ()).await,
            _ => self.send_stream(to).await,
        };
        sent.map_err(|error| error.about(&to.sandbox))
    }

    /// Copies a file or a directory into a sandbox. `keep` is dropped when the path is no longer used. Returns the notes.
    pub async fn send_path(
        &self,
        guest: &mut Guest,
        from: &Path,
        to: &GuestPath,
        keep: impl Send + 'static,
    ) -> Result<Vec<String>> {
        let failed = |source| Error::io(format!("read {}", display(from)), source);
        let metadata = fs::symlink_metadata(from).map_err(failed)?;
        let name = own_name(from).map(|name| {
            let text = name.to_str().map(str::to_owned);
            text.ok_or_else(|| Error::Refused(format!("the name of {} is not UTF-8", display(from))))
        });
        let name = name.transpose()?;
        let request = Request::CopyIn(self.request(guest, to, name.clone())?);
        let track = self.progress.track(None);
        track.stage("copy", &format!("{} to {to}", display(from)));
        let (from, follow, names) = (from.to_owned(), self.follow, self.names);
        guest
            .call(request, move |call| {
                let _keep = keep;
                let meter = track.meter(measure(&from, &metadata));
                let output = io::BufWriter::with_capacity(MAX_DATA, &mut *call);
                let packer = Packer::new(output, Ownership::Root).follow_links(follow);
                let packer = packer.leave_out(move |path| !names.allow(path));
                let mut packer = packer.on_progress(move |count| meter.add(count));
                packer.add(&from, name.as_ref().map(|name| name.as_ref())).map_err(from_copy)?;
                let (output, notes) = packer.finish().map_err(from_copy)?;
                drop(output);
                call.end_input()?;
                call.finish()?;
                Ok([notes.into_lines(), call.notes()].concat())
            })
            .await
    }

    async fn send_stream(&self, to: &GuestPath) -> Result<Vec<String>> {
        if io::stdin().is_terminal() {
            return Err(Error::Usage("refusing to read an archive from a terminal".to_owned())
                .with_hint(format!("`tar -c DIRECTORY | banger vm cp - {to}` sends a directory as one.")));
        }
        let mut guest = Guest::of(&to.sandbox).await?;
        let mut request = self.request(&guest, to, None)?;
        if self.chown.is_none() {
            request.owner = CopyOwner::Archive;
        }
        let track = self.progress.track(None);
        track.stage("copy", &format!("an archive to {to}"));
        let meter = track.meter(0);
        guest
            .call(Request::CopyIn(request), move |call| {
                stream::send(&mut io::stdin().lock(), call, &meter)?;
                call.end_input()?;
                call.finish()?;
                Ok(call.notes())
            })
            .await
    }

    /// Returns the destination and the owner of a copy with this name, or of the content of a directory.
    pub fn request(&self, guest: &Guest, to: &GuestPath, top: Option<String>) -> Result<CopyIn> {
        let login = login(guest)?;
        let owner = match (self.chown, &login) {
            (Some(user), _) => CopyOwner::User(user.to_owned()),
            (None, Some(user)) => CopyOwner::User(user.clone()),
            (None, None) => CopyOwner::Login,
        };
        Ok(CopyIn { to: to.path_for(login.as_deref()), top, owner })
    }
}

/// Estimates the bytes of a file or a directory tree without holes. What cannot be read is not counted.
fn measure(path: &Path, metadata: &fs::Metadata) -> u64 {
    if metadata.is_symlink() {
        return 0;
    }
    if !metadata.is_dir() {
        // A small file may be stored without any block.
        return metadata.len().min(metadata.blocks().saturating_mul(512).max(4096));
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(measure(&entry.path(), &entry.metadata().ok()?))).sum()
}
