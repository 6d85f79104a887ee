//! Copies from one sandbox into another. The bytes pass through this process and are not stored.

use std::{io, net::Shutdown, os::unix::net::UnixStream};

use banger_proto::{bus::option::agent, guest::Request};

use super::{Copying, side::GuestPath};
use crate::{
    error::{Error, Result},
    guest::agent::{Call, Guest, from_io},
    ui::progress::Metered,
    workspace::bounded::BoundedArchive,
};

impl Copying<'_> {
    /// Copies between sandboxes. Returns the notes.
    pub async fn between(&self, from: &GuestPath, to: &GuestPath) -> Result<Vec<String>> {
        let name = from.name()?.map(str::to_owned);
        let mut source = Guest::of(&from.sandbox).await?;
        let target = Guest::of(&to.sandbox).await?;
        let out = Request::CopyOut(self.source(&source, from, name.clone())?);
        // The receiving agent refuses entries with another name.
        let into = Request::CopyIn(self.request(&target, to, name)?);
        let track = self.progress.track(None);
        track.stage("copy", &format!("{from} to {to}"));
        let meter = track.meter(0);
        let open = async |guest: &Guest, sandbox: &str| {
            let stream = guest
                .bus()
                .open_agent(guest.vm(), agent::COMMAND, None)
                .await
                .map_err(|error| error.about(sandbox))?;
            let stream = UnixStream::from(stream);
            let breaker = stream.try_clone();
            breaker
                .map(|breaker| (stream, breaker))
                .map_err(|source| Error::io("use the connection to the sandbox", source))
        };
        let (out_stream, out_breaker) = open(&source, &from.sandbox).await?;
        let (in_stream, in_breaker) = open(&target, &to.sandbox).await?;
        let copied = source.work(
            move || {
                let mut out = Call::begin(out_stream, &out)?;
                let mut into = Call::begin(in_stream, &into)?;
                let mut archive = BoundedArchive::new(Metered { from: &mut out, meter: &meter });
                io::copy(&mut archive, &mut into).map_err(from_io)?;
                into.end_input()?;
                into.finish()?;
                Ok([out.notes(), into.notes()].concat())
            },
            move || {
                // Broken streams need no shutdown.
                let _ = out_breaker.shutdown(Shutdown::Both);
                let _ = in_breaker.shutdown(Shutdown::Both);
            },
        );
        copied.await
    }
}
