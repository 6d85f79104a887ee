//! Frames: a length (4 bytes, big endian, of the payload alone), a type (1 byte), the payload.

use serde::{Serialize, de::DeserializeOwned};

use super::{
    config::BootConfig,
    message::{Exit, Failure, GuestInfo, Request, Started, WindowSize},
    rejuvenation::Rejuvenation,
};

/// The longest payload of a frame that carries raw bytes.
pub const MAX_DATA: usize = 64 << 10;
/// The longest payload of a frame that carries a message: a long command line with its environment.
pub const MAX_MESSAGE: usize = 256 << 10;
/// The longest payload of a frame with a boot's configuration, or a part of one. The environment of the image and the public keys are its
/// largest parts, and both are bounded.
pub const MAX_CONFIG: usize = 2 << 20;
const HEADER: usize = 5;

/// A frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Host: the request.
    Request(Request),
    /// Host: bytes for the command's standard input, or of an archive.
    Input(Vec<u8>),
    /// Host: the end of the input.
    InputEnd,
    /// Host: the terminal was resized.
    Resize(WindowSize),
    /// Host: a signal for the command's process group.
    Signal(u8),
    /// Host: the configuration of the boot, only for an agent that has greeted with
    /// [`Verdict::Unconfigured`](super::hello::Verdict::Unconfigured). Answered by `Done` once the random number
    /// generator and the clock are set.
    Configure(Box<BootConfig>),
    /// Host: what a guest gets that continues from a capture, in place of a request. Answered by `Done` once all of it is
    /// in effect, and safe to repeat. The guest stays frozen.
    Rejuvenate(Box<Rejuvenation>),
    /// Agent: the command has started.
    Started(Started),
    /// Agent: bytes of the command's standard output, or of an archive. An empty frame is the end of a connection.
    Output(Vec<u8>),
    /// Agent: bytes of the command's standard error.
    ErrorOutput(Vec<u8>),
    /// Agent: the number of input bytes that may be sent in addition.
    Window(u32),
    /// Agent: the command has ended, and all its output was sent.
    Exit(Exit),
    /// Agent: the answer to `Info`.
    Info(GuestInfo),
    /// Agent: the request succeeded.
    Done,
    /// Agent: the request failed.
    Failed(Failure),
}

/// Why bytes are not a valid frame.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No frame has this type.
    #[error("a frame has the unknown type {0:#04x}")]
    UnknownType(u8),
    /// A frame is longer than its type allows.
    #[error("a frame of type {kind:#04x} has {length} bytes")]
    TooLong {
        /// Its type.
        kind: u8,
        /// Its length.
        length: usize,
    },
    /// The payload does not match its type.
    #[error("a frame of type {kind:#04x} cannot be read")]
    Malformed {
        /// Its type.
        kind: u8,
    },
}

mod kind {
    pub const REQUEST: u8 = 0x01;
    pub const INPUT: u8 = 0x02;
    pub const INPUT_END: u8 = 0x03;
    pub const RESIZE: u8 = 0x04;
    pub const SIGNAL: u8 = 0x05;
    pub const CONFIGURE: u8 = 0x06;
    pub const REJUVENATE: u8 = 0x07;
    pub const STARTED: u8 = 0x81;
    pub const OUTPUT: u8 = 0x82;
    pub const ERROR_OUTPUT: u8 = 0x83;
    pub const WINDOW: u8 = 0x84;
    pub const EXIT: u8 = 0x85;
    pub const INFO: u8 = 0x86;
    pub const DONE: u8 = 0x87;
    pub const FAILED: u8 = 0x88;
}

impl Frame {
    /// Returns the bytes to send. The sender must split data that is longer than [`MAX_DATA`].
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload) = match self {
            Frame::Request(request) => (kind::REQUEST, json(request)),
            Frame::Input(bytes) => (kind::INPUT, bytes.clone()),
            Frame::InputEnd => (kind::INPUT_END, Vec::new()),
            Frame::Resize(size) => (kind::RESIZE, json(size)),
            Frame::Signal(signal) => (kind::SIGNAL, vec![*signal]),
            Frame::Configure(config) => (kind::CONFIGURE, json(config)),
            Frame::Rejuvenate(rejuvenation) => (kind::REJUVENATE, json(rejuvenation)),
            Frame::Started(started) => (kind::STARTED, json(started)),
            Frame::Output(bytes) => (kind::OUTPUT, bytes.clone()),
            Frame::ErrorOutput(bytes) => (kind::ERROR_OUTPUT, bytes.clone()),
            Frame::Window(credit) => (kind::WINDOW, credit.to_be_bytes().to_vec()),
            Frame::Exit(exit) => (kind::EXIT, json(exit)),
            Frame::Info(info) => (kind::INFO, json(info)),
            Frame::Done => (kind::DONE, Vec::new()),
            Frame::Failed(failure) => (kind::FAILED, json(failure)),
        };
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.push(kind);
        bytes.extend(payload);
        bytes
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, Error> {
        let malformed = || Error::Malformed { kind };
        let empty = |frame: Frame| if payload.is_empty() { Ok(frame) } else { Err(malformed()) };
        fn read<T: DeserializeOwned>(kind: u8, payload: &[u8]) -> Result<T, Error> {
            serde_json::from_slice(payload).map_err(|_| Error::Malformed { kind })
        }
        match kind {
            kind::REQUEST => read(kind, payload).map(Frame::Request),
            kind::INPUT => Ok(Frame::Input(payload.to_vec())),
            kind::INPUT_END => empty(Frame::InputEnd),
            kind::RESIZE => read(kind, payload).map(Frame::Resize),
            kind::SIGNAL => match payload {
                [signal] => Ok(Frame::Signal(*signal)),
                _ => Err(malformed()),
            },
            kind::CONFIGURE => read(kind, payload).map(Frame::Configure),
            kind::REJUVENATE => read(kind, payload).map(Frame::Rejuvenate),
            kind::STARTED => read(kind, payload).map(Frame::Started),
            kind::OUTPUT => Ok(Frame::Output(payload.to_vec())),
            kind::ERROR_OUTPUT => Ok(Frame::ErrorOutput(payload.to_vec())),
            kind::WINDOW => {
                let bytes = payload.try_into().map_err(|_| malformed())?;
                Ok(Frame::Window(u32::from_be_bytes(bytes)))
            }
            kind::EXIT => read(kind, payload).map(Frame::Exit),
            kind::INFO => read(kind, payload).map(Frame::Info),
            kind::DONE => empty(Frame::Done),
            kind::FAILED => read(kind, payload).map(Frame::Failed),
            unknown => Err(Error::UnknownType(unknown)),
        }
    }
}

/// Messages are structures of strings and numbers, so serialization cannot fail.
fn json(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_default()
}

/// Returns the longest payload of a type, or `None` for an unknown type.
fn max_payload(kind: u8) -> Option<usize> {
    match kind {
        kind::INPUT | kind::OUTPUT | kind::ERROR_OUTPUT => Some(MAX_DATA),
        kind::REQUEST | kind::STARTED | kind::EXIT | kind::INFO | kind::FAILED | kind::RESIZE => {
            Some(MAX_MESSAGE)
        }
        kind::CONFIGURE | kind::REJUVENATE => Some(MAX_CONFIG),
        kind::SIGNAL => Some(1),
        kind::WINDOW => Some(4),
        kind::INPUT_END | kind::DONE => Some(0),
        _ => None,
    }
}

/// Decodes frames from a byte stream. Buffers at most one frame beyond the pushed bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Creates a decoder that starts with the bytes received after a greeting.
    pub fn new(rest: Vec<u8>) -> Self {
        Self { buffer: rest }
    }

    /// Returns the bytes that are not decoded yet.
    pub fn into_rest(self) -> Vec<u8> {
        self.buffer
    }

    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next frame, or `None` until more bytes arrive. After an error the stream is unusable.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        let Some((header, rest)) = self.buffer.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [a, b, c, d, kind] = *header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        match max_payload(kind) {
            None => return Err(Error::UnknownType(kind)),
            Some(longest) if length > longest => return Err(Error::TooLong { kind, length }),
            Some(_) => {}
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let frame = Frame::decode(kind, payload)?;
        self.buffer.drain(..HEADER + length);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::guest::{
        config::{Entropy, GuestConfig, Init, Programs},
        message::{Exec, FailureKind, Phase, Terminal},
        rejuvenation::Identity,
    };

    fn boot_config(variable: String) -> BootConfig {
        let programs = Programs { env: vec![("A".into(), variable)], ..Programs::default() };
        let guest = GuestConfig {
            token: "0123456789abcdef0123456789abcdef".into(),
            hostname: "box".into(),
            names: vec!["box.vm".into()],
            root_device: "/dev/vda".into(),
            work_disk: None,
            module_disk: None,
            init: Init::Auto,
            unix_usec: 7,
            network: None,
            ssh: None,
            timezone: None,
            programs,
            files: Vec::new(),
        };
        BootConfig { guest, entropy: Entropy([[1; 32], [2; 32]]) }
    }

    fn rejuvenation() -> Rejuvenation {
        let id = "0123456789abcdef0123456789abcdef";
        let identity = Identity {
            hostname: "box".into(),
            names: vec!["box.vm".into()],
            machine_id: id.into(),
            generation: id.into(),
            network: None,
            ssh: None,
        };
        Rejuvenation {
            entropy: Entropy([[1; 32], [2; 32]]),
            unix_usec: 7,
            token: "secretsecretsecretsecretsecretse".into(),
            identity: Some(identity),
        }
    }

    fn all() -> Vec<Frame> {
        let exec = Exec {
            of_image: true,
            argv: vec!["sh".into(), "-c".into(), "exit 42".into()],
            env: vec![("A".into(), "b c".into())],
            unset: vec!["B".into()],
            path: vec!["/run/a/bin".into()],
            cwd: Some("/tmp".into()),
            user: Some("root".into()),
            terminal: Some(Terminal { term: "xterm".into(), size: WindowSize { rows: 24, columns: 80 } }),
            detach: false,
            power_off: false,
            locale: vec![("LANG".into(), "C.UTF-8".into())],
            wait: Phase::Boot,
            session: Some("work".into()),
        };
        vec![
            Frame::Request(Request::Exec(exec)),
            Frame::Request(Request::Shutdown),
            Frame::Input(vec![0, 1, 2]),
            Frame::Input(vec![0; MAX_DATA]),
            Frame::InputEnd,
            Frame::Resize(WindowSize { rows: 1, columns: 2 }),
            Frame::Signal(15),
            Frame::Configure(Box::new(boot_config("b".into()))),
            Frame::Rejuvenate(Box::new(rejuvenation())),
            Frame::Started(Started::new(12)),
            Frame::Output(b"out".to_vec()),
            Frame::ErrorOutput(Vec::new()),
            Frame::Window(1 << 20),
            Frame::Exit(Exit::Code(42)),
            Frame::Exit(Exit::Signal(9)),
            Frame::Done,
            Frame::Failed(Failure { kind: FailureKind::NotFound, message: "no such program".into() }),
        ]
    }

    #[test]
    fn frames_are_decoded_from_any_chunks() {
        let bytes: Vec<u8> = all().iter().flat_map(Frame::encode).collect();
        for piece in [1, 7, 4096, bytes.len()] {
            let (mut decoder, mut read) = (Decoder::default(), Vec::new());
            for bytes in bytes.chunks(piece) {
                decoder.push(bytes);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    read.push(frame);
                }
            }
            assert_eq!(read, all(), "in pieces of {piece}");
        }
    }

    #[test]
    fn a_length_is_checked_before_the_payload_arrives() {
        let mut decoder = Decoder::new(vec![0xff, 0xff, 0xff, 0xff, kind::OUTPUT]);
        assert!(matches!(decoder.next_frame(), Err(Error::TooLong { .. })));
        let mut decoder = Decoder::new(vec![0, 0, 0, 0, 0x77]);
        assert!(matches!(decoder.next_frame(), Err(Error::UnknownType(0x77))));
    }

    #[test]
    fn a_configuration_is_bounded_and_its_secrets_are_not_printed() {
        let large = Frame::Configure(Box::new(boot_config("x".repeat(MAX_CONFIG - 4096))));
        assert_eq!(Decoder::new(large.encode()).next_frame().unwrap(), Some(large));
        let larger = Frame::Configure(Box::new(boot_config("x".repeat(MAX_CONFIG))));
        let refused = Decoder::new(larger.encode()).next_frame();
        assert!(matches!(refused, Err(Error::TooLong { kind: kind::CONFIGURE, .. })));
        let printed = format!("{:?}", boot_config(String::new()));
        assert!(printed.contains("box") && !printed.contains("0123456789"), "{printed}");
        assert!(!printed.contains("[1, 1"), "{printed}");
        let printed = format!("{:?}", Frame::Rejuvenate(Box::new(rejuvenation())));
        assert!(
            printed.contains("box") && !printed.contains("secret") && !printed.contains("[1, 1"),
            "{printed}"
        );
    }

    #[test]
    fn entropy_of_another_length_is_refused() {
        let config = serde_json::to_value(boot_config(String::new())).unwrap();
        for entropy in [serde_json::json!([]), serde_json::json!([[1, 2], [3]]), serde_json::json!("00")] {
            let mut config = config.clone();
            config["entropy"] = entropy;
            let payload = serde_json::to_vec(&config).unwrap();
            assert!(matches!(Frame::decode(kind::CONFIGURE, &payload), Err(Error::Malformed { .. })));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_an_error(bytes: Vec<u8>) {
            let mut decoder = Decoder::new(bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }
}
