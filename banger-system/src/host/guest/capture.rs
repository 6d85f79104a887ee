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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_proto::guest::{
        FailureKind, REVISION,
        hello::{self, HostHello, Verdict},
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const OLD: &str = "0123456789abcdef0123456789abcdef";
    const NEW: &str = "fedcba9876543210fedcba9876543210";

    fn token(text: &str) -> Token {
        Token::from_text(text.to_owned())
    }

    /// Takes a conversation as an agent of this revision with this token, and replies to the frame. Returns that.
    async fn agent(mut stream: UnixStream, token: &str, revision: u16, reply: Frame) -> Option<Frame> {
        loop {
            let mut greeting = vec![0; hello::HOST_LENGTH];
            stream.read_exact(&mut greeting).await.ok()?;
            let hello = HostHello::take(&mut greeting).unwrap();
            let verdict = hello.judge(token);
            let mut answer = hello::answer(&hello, verdict);
            answer[8..10].copy_from_slice(&revision.to_be_bytes());
            stream.write_all(&answer).await.unwrap();
            if verdict == Verdict::Welcome {
                break;
            }
        }
        let mut decoder = Decoder::default();
        let frame = answer(&mut stream, &mut decoder).await.ok()?;
        stream.write_all(&reply.encode()).await.unwrap();
        Some(frame)
    }

    async fn freeze(revision: u16, reply: Frame) -> (Result<(), Error>, Option<Frame>) {
        let (mut host, guest) = UnixStream::pair().unwrap();
        let served = tokio::spawn(agent(guest, OLD, revision, reply));
        let asked = ask(&mut host, &token(OLD), Request::Freeze).await;
        drop(host);
        (asked.map_err(Error::from), served.await.unwrap())
    }

    #[tokio::test]
    async fn a_refusal_is_told_from_an_agent_that_is_lost() {
        let (asked, seen) = freeze(REVISION, Frame::Done).await;
        assert!(matches!((asked, seen), (Ok(()), Some(Frame::Request(Request::Freeze)))));
        let failure = Failure { kind: FailureKind::Other, message: "vi did not\u{7} freeze".into() };
        let (asked, _) = freeze(REVISION, Frame::Failed(failure)).await;
        assert!(matches!(asked, Err(Error::Refused { message }) if message == "vi did not freeze"));
        let (asked, _) = freeze(REVISION, Frame::InputEnd).await;
        assert!(matches!(asked, Err(Error::Unavailable { .. })));
    }

    #[tokio::test]
    async fn an_older_agent_gets_no_frame_that_it_does_not_know() {
        let (asked, seen) = freeze(1, Frame::Done).await;
        assert!(matches!((asked, seen), (Err(Error::TooOld), None)));
    }

    #[tokio::test]
    async fn a_repeat_finds_the_guest_with_either_token() {
        for known in [OLD, NEW] {
            let (mut host, guest) = UnixStream::pair().unwrap();
            let served = tokio::spawn(agent(guest, known, REVISION, Frame::Done));
            let asked = rejuvenate(&mut host, &token(OLD), &token(NEW), None).await;
            assert!(asked.map_err(Error::from).is_ok(), "{known}");
            let Some(Frame::Rejuvenate(sent)) = served.await.unwrap() else { panic!("{known}") };
            assert!(sent.token == NEW && sent.identity.is_none());
            assert!(sent.unix_usec > 1_600_000_000_000_000 && sent.entropy.0[0] != sent.entropy.0[1]);
        }
    }
}
