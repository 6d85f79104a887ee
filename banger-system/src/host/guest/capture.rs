//! What the agent does for a capture of its guest: freezing, thawing, and making a guest new that continues from one.

use banger_domain::vm::Token;
use banger_proto::guest::{
    Decoder, FREEZE_REVISION, Failure, Frame, Rejuvenation, Request, rejuvenation::Identity,
};
use tokio::net::UnixStream;

use super::{
    boot_config::entropy,
    clock,
    link::{Failed, answer, bounded, greet_with_revision, send_frame, unexpected},
};
use crate::ports::guest_link::Error;

/// Sends `Freeze` or `Thaw`.
pub async fn ask(stream: &mut UnixStream, token: &Token, request: Request) -> Result<(), Failed> {
    let greeted = greet_with_revision(stream, token).await?;
    confirm(stream, greeted, &Frame::Request(request)).await
}

/// Sends what a guest gets that continues from a capture. The agent knows the token of the capture, or the new one if an
/// earlier answer was lost.
pub async fn rejuvenate(
    stream: &mut UnixStream,
    old: &Token,
    new: &Token,
    identity: Option<&Identity>,
) -> Result<(), Failed> {
    let greeted = match greet_with_revision(stream, old).await {
        Err(Failed::WrongToken) => greet_with_revision(stream, new).await?,
        greeted => greeted?,
    };
    let rejuvenation = Rejuvenation {
        entropy: entropy().map_err(Failed::Local)?,
        unix_usec: u64::try_from(clock::unix_now()).unwrap_or_default(),
        token: new.as_str().to_owned(),
        identity: identity.cloned(),
    };
    confirm(stream, greeted, &Frame::Rejuvenate(Box::new(rejuvenation))).await
}

async fn confirm(
    stream: &mut UnixStream,
    (mut decoder, revision): (Decoder, u16),
    frame: &Frame,
) -> Result<(), Failed> {
    if revision < FREEZE_REVISION {
        return Err(Failed::Local(Error::TooOld));
    }
    send_frame(stream, frame).await?;
    match answer(stream, &mut decoder).await? {
        Frame::Done => Ok(()),
        Frame::Failed(Failure { message, .. }) => {
            Err(Failed::Local(Error::Refused { message: bounded(&message) }))
        }
        other => Err(unexpected(&other)),
    }
}
