//! Asks the agent who uses its guest.

use std::time::Duration;

use banger_domain::{idle::Use, vm::Token};
use banger_proto::guest::{Frame, Request, facts};
use tokio::net::UnixStream;

use super::link::{Failed, answer, greet, nonsense, send, unexpected};

/// The longest answer.
const MAX_ANSWER: usize = 1024;

/// Asks on a new stream.
pub async fn ask(stream: &mut UnixStream, token: &Token) -> Result<Use, Failed> {
    let mut decoder = greet(stream, token).await?;
    send(stream, &Request::Use).await?;
    let text = match answer(stream, &mut decoder).await? {
        Frame::Output(text) if text.len() <= MAX_ANSWER => text,
        other => return Err(unexpected(&other)),
    };
    match answer(stream, &mut decoder).await? {
        Frame::Done => read(&text).ok_or_else(|| nonsense("the guest's agent does not say who uses it")),
        other => Err(unexpected(&other)),
    }
}

fn read(text: &[u8]) -> Option<Use> {
    let facts::Use { streams, commands, connections, cpu_usec } = serde_json::from_slice(text).ok()?;
    Some(Use { streams, commands, connections, busy: Duration::from_micros(cpu_usec) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_garbage_is_none() {
        let used = read(br#"{"streams":1,"commands":2,"connections":3,"cpu_usec":4}"#);
        let expect = Use { streams: 1, commands: 2, connections: 3, busy: Duration::from_micros(4) };
        assert_eq!(used, Some(expect));
        for garbage in ["", "{}", r#"{"streams":-1,"commands":2,"connections":3,"cpu_usec":4}"#] {
            assert_eq!(read(garbage.as_bytes()), None, "{garbage}");
        }
    }
}
