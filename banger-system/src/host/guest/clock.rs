//! Compares a guest's clock with the host's on one stream.

use std::time::{SystemTime, UNIX_EPOCH};

use banger_domain::{
    clock::{self, Occasion, Sample},
    vm::Token,
};
use banger_proto::guest::{Frame, Request, message::Correction};
use tokio::net::UnixStream;

use super::link::{Failed, answer, greet, nonsense, send, send_frame, unexpected};
use crate::ports::{FromHost as _, guest_link::Error};

/// How often a guest is asked for its time: a single answer may have been delayed by scheduling.
const SAMPLES: usize = 4;
/// Digits of the latest accepted time.
const MAX_TIME: usize = 18;

/// Compares the clocks, and corrects the guest's if needed.
pub async fn compare(stream: &mut UnixStream, token: &Token, occasion: Occasion) -> Result<(), Failed> {
    let mut decoder = greet(stream, token).await?;
    let mut samples = Vec::with_capacity(SAMPLES);
    let mut asked = unix_now();
    send(stream, &Request::Clock).await?;
    loop {
        let guest = match answer(stream, &mut decoder).await? {
            Frame::Output(text) => {
                read_time(&text).ok_or_else(|| nonsense("the guest's agent sent no time"))?
            }
            other => return Err(unexpected(&other)),
        };
        samples.push(Sample { asked, guest, answered: unix_now() });
        if samples.len() == SAMPLES {
            break;
        }
        asked = unix_now();
        send_frame(stream, &Frame::Input(Vec::new())).await?;
    }
    let last = match clock::correction(&samples, occasion) {
        None => Frame::InputEnd,
        Some(correction) => {
            let Correction { offset_usec, pace } = correction;
            tracing::debug!(offset_usec, ?pace, "correcting the clock of a guest");
            let json = serde_json::to_vec(&correction);
            Frame::Input(
                json.map_err(|error| Failed::Local(Error::other("correct the guest's clock", error)))?,
            )
        }
    };
    send_frame(stream, &last).await?;
    match answer(stream, &mut decoder).await? {
        Frame::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// Returns the current time in microseconds since the Unix epoch. It does not use [`crate::ports::clock::Clock`], since the
/// measurement is about the time since a byte was sent.
pub fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn read_time(text: &[u8]) -> Option<i64> {
    let is_number = text.len() <= MAX_TIME && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_proto::guest::{
        Decoder,
        hello::{self, HostHello, Verdict},
        message::Pace,
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const HOUR: i64 = 3_600_000_000;

    /// Runs a comparison with a guest that answers with `tell` of the true time. Returns the correction that it got.
    async fn against(occasion: Occasion, tell: fn(i64) -> String) -> (Result<(), Error>, Option<Frame>) {
        let (mut host, mut guest) = UnixStream::pair().unwrap();
        let answering = tokio::spawn(async move {
            let mut greeting = [0; hello::HOST_LENGTH];
            guest.read_exact(&mut greeting).await.unwrap();
            let hello = HostHello::take(&mut greeting.to_vec()).unwrap();
            guest.write_all(&hello::answer(&hello, Verdict::Welcome)).await.unwrap();
            let mut decoder = Decoder::default();
            loop {
                match answer(&mut guest, &mut decoder).await {
                    Ok(Frame::Request(Request::Clock)) => {}
                    Ok(Frame::Input(bytes)) if bytes.is_empty() => {}
                    Ok(last) => {
                        send_frame(&mut guest, &Frame::Done).await.ok();
                        return Some(last);
                    }
                    Err(_) => return None,
                }
                let time = Frame::Output(tell(unix_now()).into_bytes());
                if send_frame(&mut guest, &time).await.is_err() {
                    return None;
                }
            }
        });
        let compared = compare(&mut host, &Token::random(), occasion).await;
        drop(host);
        (compared.map_err(Error::from), answering.await.unwrap())
    }

    #[tokio::test]
    async fn a_guest_that_is_an_hour_behind_is_stepped_forward() {
        let (compared, told) = against(Occasion::Regular, |now| (now - HOUR).to_string()).await;
        compared.unwrap();
        let Some(Frame::Input(json)) = told else { panic!("{told:?}") };
        let correction: Correction = serde_json::from_slice(&json).unwrap();
        assert_eq!(correction.pace, Pace::Step);
        assert_eq!((correction.offset_usec + HOUR / 2) / HOUR, 1, "{correction:?}");
    }

    #[tokio::test]
    async fn a_guest_that_is_right_is_left_alone() {
        let (compared, told) = against(Occasion::Boot, |now| now.to_string()).await;
        compared.unwrap();
        assert_eq!(told, Some(Frame::InputEnd));
    }

    #[tokio::test]
    async fn a_guest_that_sends_no_time_is_an_error() {
        let answers: [fn(i64) -> String; 4] =
            [|_| String::new(), |_| "-5".into(), |_| "soon".into(), |_| "9".repeat(19)];
        for tell in answers {
            assert!(matches!(against(Occasion::Boot, tell).await.0, Err(Error::Unavailable { .. })));
        }
    }
}
