//! The host's side of a conversation, for tests.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread::{self, JoinHandle},
    time::Duration,
};

use banger_proto::guest::{
    Decoder, Exec, Frame, Request,
    config::Programs,
    hello::{self, HostHello},
};

use crate::{
    channels::InitKind,
    conversation::{Guest, Token, hold},
    phases::{InitSystem, PhaseTracker},
    port::Port,
};

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const TIMEOUT: Duration = Duration::from_secs(120);

/// A guest that has booted.
pub fn guest() -> Guest {
    let (problems, programs) = (Vec::new(), Programs::default());
    let phases = PhaseTracker::begin(InitSystem::Other);
    Guest { token: Token::new(TOKEN.into()), problems, init: InitKind::Agent, programs, phases }
}

/// The host's end of a channel to an agent that runs in a thread.
pub struct Host {
    pub stream: UnixStream,
    decoder: Decoder,
    agent: Option<JoinHandle<()>>,
}

impl Host {
    pub fn new() -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let agent = thread::spawn(move || {
            let guest = guest();
            let mut port = Port::new(theirs.into());
            // As on a channel: one conversation after another, until the host is gone.
            for _ in 0..4 {
                let _ = hold(&mut port, &guest);
            }
        });
        Self { stream, decoder: Decoder::default(), agent: Some(agent) }
    }

    pub fn greet(&mut self, token: &str) -> Result<bool, hello::Error> {
        let hello = HostHello::new([3; 16], token).unwrap();
        self.stream.write_all(&hello.encode()).unwrap();
        let mut answer = vec![0; hello::AGENT_LENGTH];
        self.stream.read_exact(&mut answer).unwrap();
        hello::take_answer(&mut answer, &hello).map(|revision| revision.is_some())
    }

    pub fn ask(request: Request) -> Self {
        let mut host = Self::new();
        assert_eq!(host.greet(TOKEN), Ok(true));
        host.send(&Frame::Request(request));
        host
    }

    pub fn exec(argv: &[&str]) -> Self {
        Self::ask(Request::Exec(command(argv)))
    }

    pub fn send(&mut self, frame: &Frame) {
        self.stream.write_all(&frame.encode()).unwrap();
    }

    /// Returns the next frame that is no heartbeat. The start of a command may take as long as the first one.
    pub fn next(&mut self) -> Frame {
        loop {
            match self.next_or_heartbeat() {
                Frame::Window(0) => {}
                frame => return frame,
            }
        }
    }

    pub fn next_or_heartbeat(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame;
            }
            let mut bytes = [0; 4096];
            let count = self.stream.read(&mut bytes).unwrap();
            assert_ne!(count, 0, "the agent hung up");
            self.decoder.push(&bytes[..count]);
        }
    }

    /// Returns all output as bytes, and the frame that ended it.
    pub fn bytes(&mut self) -> (Vec<u8>, Frame) {
        let mut output = Vec::new();
        loop {
            match self.next() {
                Frame::Output(bytes) => output.extend(bytes),
                Frame::Started(_) | Frame::Window(_) => {}
                end => return (output, end),
            }
        }
    }

    /// Returns the data of a copy, its notes, and the frame that ended it.
    pub fn copied(&mut self) -> (Vec<u8>, Vec<String>, Frame) {
        let (mut output, mut remarks) = (Vec::new(), Vec::new());
        loop {
            match self.next() {
                Frame::Output(bytes) => output.extend(bytes),
                Frame::ErrorOutput(bytes) => {
                    remarks.extend(String::from_utf8(bytes).unwrap().lines().map(str::to_owned));
                }
                Frame::Window(_) => {}
                end => return (output, remarks, end),
            }
        }
    }

    /// Sends input and its end.
    pub fn feed(&mut self, input: &[u8]) {
        for piece in input.chunks(banger_proto::guest::frame::MAX_DATA) {
            self.send(&Frame::Input(piece.to_vec()));
        }
        self.send(&Frame::InputEnd);
    }

    /// Returns everything until the end: output, errors, and the frame that ended it.
    pub fn collect(&mut self) -> (String, String, Frame) {
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        loop {
            match self.next() {
                Frame::Output(bytes) => output.extend(bytes),
                Frame::ErrorOutput(bytes) => errors.extend(bytes),
                Frame::Started(_) | Frame::Window(_) => {}
                end => {
                    let text = |bytes| String::from_utf8(bytes).unwrap();
                    return (text(output), text(errors), end);
                }
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stream.shutdown(std::net::Shutdown::Both).unwrap();
        self.agent.take().unwrap().join().unwrap();
    }
}

pub fn command(argv: &[&str]) -> Exec {
    Exec { argv: argv.iter().map(|&word| word.to_owned()).collect(), ..Exec::default() }
}
