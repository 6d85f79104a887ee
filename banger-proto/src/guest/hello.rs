//! The greeting. Both halves have a fixed length and begin with a magic number, so that each side can skip the rest
//! of an earlier conversation: a serial channel has no boundaries between conversations.
//!
//! Host: magic (8 bytes), version (2, big endian), nonce (16), token (32 hexadecimal digits).
//! Agent: magic (8), revision (2), the same nonce (16), verdict (1).

use super::{REVISION, VERSION};

const HOST_MAGIC: [u8; 8] = *b"\x00bangerH";
const AGENT_MAGIC: [u8; 8] = *b"\x00bangerA";
const NONCE: usize = 16;
const TOKEN: usize = 32;

/// The length of the host's half.
pub const HOST_LENGTH: usize = 8 + 2 + NONCE + TOKEN;
/// The length of the agent's half.
pub const AGENT_LENGTH: usize = 8 + 2 + NONCE + 1;

/// Limit on the bytes of an earlier conversation to skip.
pub const MAX_STALE: usize = 4 << 20;

/// The host's half.
#[derive(Clone, PartialEq, Eq)]
pub struct HostHello {
    /// The version that the host speaks.
    pub version: u16,
    /// Random, and different for each greeting.
    pub nonce: [u8; NONCE],
    /// The secret of this boot.
    pub token: [u8; TOKEN],
}

/// The agent's verdict on the host's greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The agent waits for a request.
    Welcome,
    /// The token belongs to another boot, or is wrong.
    WrongToken,
    /// The agent does not speak this version.
    WrongVersion,
    /// The agent already holds the maximum number of conversations of this kind.
    Busy,
    /// The agent has no configuration yet, and therefore no token. It waits for
    /// [`Frame::Configure`](super::Frame::Configure), or for a request for facts.
    Unconfigured,
}

/// Why a greeting failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too many bytes arrived that are not a greeting.
    #[error("the guest's agent sent no valid greeting")]
    Garbage,
    /// The agent refused the token.
    #[error("the guest's agent rejected the token")]
    WrongToken,
    /// The agent refused the version.
    #[error("the guest's agent does not speak version {VERSION} of the protocol")]
    WrongVersion,
    /// The agent holds the maximum number of conversations.
    #[error("the guest's agent is busy")]
    Busy,
    /// The agent has no configuration yet.
    #[error("the guest's agent has no configuration yet")]
    Unconfigured,
}

impl HostHello {
    /// Returns the greeting with this token, or `None` unless the token is 32 bytes long.
    pub fn new(nonce: [u8; NONCE], token: &str) -> Option<Self> {
        Some(Self { version: VERSION, nonce, token: token.as_bytes().try_into().ok()? })
    }

    /// Returns the bytes to send.
    pub fn encode(&self) -> [u8; HOST_LENGTH] {
        let mut bytes = [0; HOST_LENGTH];
        bytes[..8].copy_from_slice(&HOST_MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_be_bytes());
        bytes[10..26].copy_from_slice(&self.nonce);
        bytes[26..].copy_from_slice(&self.token);
        bytes
    }

    /// Takes a greeting from the received bytes and drops everything before it. `None` until it is complete.
    pub fn take(buffer: &mut Vec<u8>) -> Option<Self> {
        let rest = take(buffer, &HOST_MAGIC, HOST_LENGTH)?;
        let mut hello = Self { version: be16(&rest[8..10]), nonce: [0; NONCE], token: [0; TOKEN] };
        hello.nonce.copy_from_slice(&rest[10..26]);
        hello.token.copy_from_slice(&rest[26..HOST_LENGTH]);
        Some(hello)
    }

    /// Checks the greeting on behalf of an agent without a configuration, which knows no token.
    pub fn judge_unconfigured(&self) -> Verdict {
        if self.version == VERSION { Verdict::Unconfigured } else { Verdict::WrongVersion }
    }

    /// Checks the greeting. The comparison takes the same time for every token of 32 bytes.
    pub fn judge(&self, token: &str) -> Verdict {
        if self.version != VERSION {
            return Verdict::WrongVersion;
        }
        let token = token.as_bytes();
        let difference = self.token.iter().zip(token).fold(0, |sum, (a, b)| sum | (a ^ b));
        if token.len() == TOKEN && difference == 0 { Verdict::Welcome } else { Verdict::WrongToken }
    }
}

/// Returns the bytes of the agent's half.
pub fn answer(hello: &HostHello, verdict: Verdict) -> [u8; AGENT_LENGTH] {
    let mut bytes = [0; AGENT_LENGTH];
    bytes[..8].copy_from_slice(&AGENT_MAGIC);
    bytes[8..10].copy_from_slice(&REVISION.to_be_bytes());
    bytes[10..26].copy_from_slice(&hello.nonce);
    bytes[26] = match verdict {
        Verdict::Welcome => 0,
        Verdict::WrongToken => 1,
        Verdict::WrongVersion => 2,
        Verdict::Busy => 3,
        Verdict::Unconfigured => 4,
    };
    bytes
}

/// Searches the received bytes for the answer to this greeting, and removes it together with everything before it.
/// Returns the [revision](super::REVISION) of the agent, or `None` while the answer is missing; answers to other greetings
/// are skipped.
pub fn take_answer(buffer: &mut Vec<u8>, hello: &HostHello) -> Result<Option<u16>, Error> {
    while let Some(answer) = take(buffer, &AGENT_MAGIC, AGENT_LENGTH) {
        if answer[10..26] != hello.nonce {
            continue;
        }
        return match answer[26] {
            0 => Ok(Some(be16(&answer[8..10]))),
            1 => Err(Error::WrongToken),
            2 => Err(Error::WrongVersion),
            3 => Err(Error::Busy),
            4 => Err(Error::Unconfigured),
            _ => Err(Error::Garbage),
        };
    }
    Ok(None)
}

/// Takes `length` bytes that begin with `magic`. Drops the bytes before them, and bytes that cannot begin a magic
/// number.
fn take(buffer: &mut Vec<u8>, magic: &[u8; 8], length: usize) -> Option<Vec<u8>> {
    let start = buffer.windows(magic.len()).position(|window| window == magic);
    match start {
        Some(start) => {
            buffer.drain(..start);
        }
        None => {
            let keep = buffer.len().min(magic.len() - 1);
            buffer.drain(..buffer.len() - keep);
        }
    }
    if start.is_none() || buffer.len() < length {
        return None;
    }
    Some(buffer.drain(..length).collect())
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn hello() -> HostHello {
        HostHello::new([7; NONCE], SECRET).unwrap()
    }

    #[test]
    fn only_the_right_token_is_accepted() {
        assert_eq!(hello().judge(SECRET), Verdict::Welcome);
        assert_eq!(hello().judge("0123456789abcdef0123456789abcdee"), Verdict::WrongToken);
        assert_eq!(hello().judge(""), Verdict::WrongToken);
        assert_eq!(HostHello { version: 99, ..hello() }.judge(SECRET), Verdict::WrongVersion);
    }

    #[test]
    fn every_verdict_arrives() {
        for (verdict, expect) in [
            (Verdict::Welcome, Ok(Some(REVISION))),
            (Verdict::WrongToken, Err(Error::WrongToken)),
            (Verdict::WrongVersion, Err(Error::WrongVersion)),
            (Verdict::Busy, Err(Error::Busy)),
            (Verdict::Unconfigured, Err(Error::Unconfigured)),
        ] {
            assert_eq!(take_answer(&mut answer(&hello(), verdict).to_vec(), &hello()), expect);
        }
        let mut unknown = answer(&hello(), Verdict::Welcome);
        unknown[AGENT_LENGTH - 1] = 99;
        assert_eq!(take_answer(&mut unknown.to_vec(), &hello()), Err(Error::Garbage));
    }

    #[test]
    fn an_older_agent_is_recognized() {
        let mut older = answer(&hello(), Verdict::Welcome);
        older[8..10].copy_from_slice(&1u16.to_be_bytes());
        assert_eq!(take_answer(&mut older.to_vec(), &hello()), Ok(Some(1)));
        assert_eq!(take_answer(&mut Vec::new(), &hello()), Ok(None));
    }

    #[test]
    fn an_agent_without_a_configuration_accepts_every_token_but_no_other_version() {
        let other = HostHello::new([7; NONCE], "ffffffffffffffffffffffffffffffff").unwrap();
        assert_eq!(hello().judge_unconfigured(), Verdict::Unconfigured);
        assert_eq!(other.judge_unconfigured(), Verdict::Unconfigured);
        assert_eq!(HostHello { version: 99, ..hello() }.judge_unconfigured(), Verdict::WrongVersion);
    }

    #[test]
    fn an_answer_to_an_earlier_greeting_is_skipped() {
        let earlier = HostHello::new([1; NONCE], SECRET).unwrap();
        let mut buffer = answer(&earlier, Verdict::Welcome).to_vec();
        buffer.extend(answer(&hello(), Verdict::WrongToken));
        assert_eq!(take_answer(&mut buffer, &hello()), Err(Error::WrongToken));
        assert!(buffer.is_empty());
    }

    proptest! {
        #[test]
        fn a_greeting_is_found_after_any_bytes_and_in_any_chunks(
            stale: Vec<u8>,
            piece in 1usize..90,
            rest: Vec<u8>,
        ) {
            prop_assume!(!stale.windows(8).any(|w| w == HOST_MAGIC || w == AGENT_MAGIC));
            let mut sent = stale;
            sent.extend(hello().encode());
            sent.extend(&rest);
            let (mut buffer, mut found) = (Vec::new(), None);
            for bytes in sent.chunks(piece) {
                buffer.extend(bytes);
                if found.is_none() {
                    found = HostHello::take(&mut buffer);
                }
            }
            prop_assert!(found.is_some_and(|found| found == hello()));
            prop_assert_eq!(buffer, rest);
        }
    }
}
