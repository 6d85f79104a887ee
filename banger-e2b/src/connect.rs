//! The Connect protocol over HTTP/1.1, with messages in JSON, as E2B's SDKs speak it
//! (<https://connectrpc.com/docs/protocol/>).
//!
//! A call of one message and one reply is a request and a response of JSON. In a stream, each message has a head of five
//! bytes: flags, and the length in network byte order. The last message of a stream of replies has the flag
//! [`END`], and says how the call ended. Compression and messages in binary form are refused: SDKs use neither.

use bytes::{Bytes, BytesMut};
use hyper::{StatusCode, http::request::Parts};
use serde::Serialize;
use serde_json::{Value, json};

use crate::http::{Body, Code, Refusal, Response, Result, header, json_with, with_type};

/// The length of a message's head.
const HEAD: usize = 5;
/// The flag of a message that is compressed.
const COMPRESSED: u8 = 1;
/// The flag of the last message.
const END: u8 = 2;
/// Limit on a message.
const MAX_MESSAGE: usize = 4 << 20;
/// The type of a stream.
pub const STREAM: &str = "application/connect+json";

/// Checks that a call is in the form that is read here.
pub fn check(parts: &Parts, is_stream: bool) -> Result<()> {
    let kind = header(parts, "content-type").unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind != (if is_stream { STREAM } else { "application/json" }) {
        return Err(Refusal::unimplemented(format!(
            "calls of type {kind:?}, only the Connect protocol with JSON"
        )));
    }
    for name in ["content-encoding", "connect-content-encoding"] {
        if header(parts, name).is_some_and(|encoding| encoding != "identity") {
            return Err(Refusal::unimplemented("compressed calls"));
        }
    }
    Ok(())
}

/// Returns the answer to a call that fails, in the form in which its client reads answers.
pub fn refuse(parts: &Parts, refusal: Refusal) -> Response {
    if header(parts, "content-type").is_some_and(|kind| kind.starts_with("application/connect+")) {
        return with_type(StatusCode::OK, STREAM, Body::Whole(end(Err(refusal))));
    }
    reply(Err(refusal))
}

/// Returns the reply to a call of one message.
pub fn reply(result: Result<Value>) -> Response {
    match result {
        Ok(reply) => json_with(StatusCode::OK, &reply),
        Err(refusal) => json_with(refusal.code.status(), &error(&refusal)),
    }
}

fn error(refusal: &Refusal) -> Value {
    json!({ "code": refusal.code.name(), "message": refusal.message })
}

/// Returns a message of a stream.
pub fn message(value: &impl Serialize) -> Bytes {
    framed(0, value)
}

/// Returns the last message of a stream.
pub fn end(result: Result<()>) -> Bytes {
    match result {
        Ok(()) => framed(END, &json!({})),
        Err(refusal) => framed(END, &json!({ "error": error(&refusal) })),
    }
}

fn framed(flags: u8, value: &impl Serialize) -> Bytes {
    // These are maps and texts, which can always be written.
    let text = serde_json::to_vec(value).unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEAD + text.len());
    bytes.push(flags);
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text);
    bytes.into()
}

/// Takes messages out of the bytes of a stream.
#[derive(Debug, Default)]
pub struct Decoder(BytesMut);

impl Decoder {
    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Returns the next message, or nothing until more bytes come.
    pub fn next_message(&mut self) -> Result<Option<Bytes>> {
        let Some((head, rest)) = self.0.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [flags, a, b, c, d] = *head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if flags & COMPRESSED != 0 {
            return Err(Refusal::unimplemented("compressed messages"));
        }
        if length > MAX_MESSAGE {
            let message = format!("A message of {length} bytes is longer than {MAX_MESSAGE}.");
            return Err(Refusal::new(Code::InvalidArgument, message));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let mut message = self.0.split_to(HEAD + length);
        Ok(Some(message.split_off(HEAD).freeze()))
    }

    /// Checks that nothing is left.
    pub fn finish(&self) -> Result<()> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(Refusal::new(Code::InvalidArgument, "The stream ended within a message.")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_framed_as_the_protocol_says() {
        assert_eq!(&message(&json!({"a":1}))[..], b"\0\0\0\0\x07{\"a\":1}");
        assert_eq!(&end(Ok(()))[..], b"\x02\0\0\0\x02{}");
        let failed = end(Err(Refusal::new(Code::NotFound, "m")));
        assert_eq!(&failed[HEAD..], br#"{"error":{"code":"not_found","message":"m"}}"#);
    }

    #[test]
    fn messages_are_read_however_the_bytes_are_split() {
        let bytes = [message(&json!({"a":1})), message(&json!({})), message(&json!({"b":"c"}))].concat();
        for piece in [1, 4, 7, bytes.len()] {
            let (mut decoder, mut read) = (Decoder::default(), Vec::new());
            for bytes in bytes.chunks(piece) {
                decoder.push(bytes);
                while let Some(message) = decoder.next_message().unwrap() {
                    read.push(message);
                }
            }
            assert_eq!(read, [&br#"{"a":1}"#[..], b"{}", br#"{"b":"c"}"#], "in pieces of {piece}");
            decoder.finish().unwrap();
        }
    }

    #[test]
    fn long_compressed_and_cut_messages_are_refused() {
        let refused = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            decoder.next_message().and_then(|_| decoder.finish()).unwrap_err().code
        };
        assert_eq!(refused(&[0, 0xff, 0xff, 0xff, 0xff]), Code::InvalidArgument);
        assert_eq!(refused(&[1, 0, 0, 0, 1]), Code::Unimplemented);
        assert_eq!(refused(&[0, 0, 0, 0, 2, b'{']), Code::InvalidArgument);
    }

    proptest! {
        #[test]
        fn any_bytes_are_messages_or_an_error(bytes: Vec<u8>) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_message() {}
        }
    }
}
