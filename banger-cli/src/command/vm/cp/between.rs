//! Copies from a sandbox into another one. The bytes go through here, and nothing is written here.

use std::{io, net::Shutdown, os::unix::net::UnixStream};

use banger_proto::{bus::option::agent, guest::Request};

use super::{Copying, side::There};
use crate::{
    error::{Error, Result},
    guest::{Call, Guest, from_io},
    progress::Metered,
    workspace::bounded::Bounded,
};

impl Copying<'_> {
    /// Copies between sandboxes. Returns what there is to remark.
    pub async fn between(&self, from: &There, to: &There) -> Result<Vec<String>> {
        let name = from.name()?.map(str::to_owned);
        let mut source = Guest::of(&from.sandbox).await?;
        let target = Guest::of(&to.sandbox).await?;
        let out = Request::CopyOut(self.source(&source, from, name.clone())?);
        // The agent there takes nothing from the archive that has another name.
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
                let mut archive = Bounded::new(Metered { from: &mut out, meter: &meter });
                io::copy(&mut archive, &mut into).map_err(from_io)?;
                into.end_input()?;
                into.finish()?;
                Ok([out.remarks(), into.remarks()].concat())
            },
            move || {
                // Streams that are broken already need no more.
                let _ = out_breaker.shutdown(Shutdown::Both);
                let _ = in_breaker.shutdown(Shutdown::Both);
            },
        );
        copied.await
    }
}
