//! One channel to the host: frames over a descriptor that is a virtio port in a guest and a socket in tests. It only
//! blocks in a poll that also sees a hangup of the host.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use banger_proto::guest::{
    Decoder, Frame,
    frame::MAX_DATA,
    hello::{self, HostHello, MAX_STALE, Verdict},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

/// How long [`Port::pause`] sleeps.
pub const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// A channel. The descriptor must be non-blocking.
pub struct Port {
    fd: OwnedFd,
    decoder: Decoder,
    outgoing: Vec<u8>,
}

/// The result of reading from the channel.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes have arrived.
    Bytes,
    /// Nothing has arrived.
    Nothing,
    /// The host has hung up.
    HungUp,
}

/// The result of a greeting.
#[derive(Debug, PartialEq, Eq)]
pub enum Greeting {
    /// A request may follow.
    Done,
    /// The host has hung up.
    HungUp,
}

impl Port {
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, decoder: Decoder::default(), outgoing: Vec::new() }
    }

    /// Returns the channel, without what was received and not read.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Waits for a greeting and answers it. After a wrong one, waits for the next.
    pub fn greet(&mut self, judge: impl Fn(&HostHello) -> Verdict) -> io::Result<Greeting> {
        self.greet_as(Verdict::Welcome, judge)
    }

    /// Waits for a greeting and answers that the agent is busy.
    pub fn greet_busy(&mut self, judge: impl Fn(&HostHello) -> Verdict) -> io::Result<Greeting> {
        self.greet_as(Verdict::Busy, |hello| match judge(hello) {
            Verdict::Welcome => Verdict::Busy,
            other => other,
        })
    }

    /// Waits for a greeting with any token, and answers that the agent has no configuration.
    pub fn greet_unconfigured(&mut self) -> io::Result<Greeting> {
        self.greet_as(Verdict::Unconfigured, HostHello::judge_unconfigured)
    }

    /// Answers greetings until one gets the verdict `last`.
    fn greet_as(&mut self, last: Verdict, judge: impl Fn(&HostHello) -> Verdict) -> io::Result<Greeting> {
        let mut buffer = std::mem::take(&mut self.decoder).into_rest();
        self.outgoing.clear();
        let mut skipped = 0;
        loop {
            if let Some(hello) = HostHello::take(&mut buffer) {
                let verdict = judge(&hello);
                self.outgoing.extend(hello::answer(&hello, verdict));
                if !self.flush_all()? {
                    return Ok(Greeting::HungUp);
                }
                if verdict == last {
                    self.decoder = Decoder::new(buffer);
                    return Ok(Greeting::Done);
                }
                continue;
            }
            match self.read(&mut buffer)? {
                Received::Bytes => {
                    skipped += MAX_DATA;
                    if skipped > MAX_STALE {
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            "too many bytes before the greeting",
                        ));
                    }
                }
                Received::HungUp => return Ok(Greeting::HungUp),
                Received::Nothing => drop(self.wait(PollFlags::IN)?),
            }
        }
    }

    /// Reads what has arrived.
    pub fn receive(&mut self) -> io::Result<Received> {
        let mut bytes = Vec::new();
        let received = self.read(&mut bytes)?;
        self.decoder.push(&bytes);
        Ok(received)
    }

    /// Returns the next frame that has arrived.
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        self.decoder.next_frame().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Waits for the next frame. Returns `None` if the host has hung up.
    pub fn wait_frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(Some(frame));
            }
            match self.receive()? {
                Received::Bytes => {}
                Received::HungUp => return Ok(None),
                Received::Nothing => drop(self.wait(PollFlags::IN)?),
            }
        }
    }

    /// Sleeps for a moment. Returns `false` if the host has hung up. Leaves what the host sends meanwhile unread.
    pub fn pause(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::RDHUP)];
        match poll(&mut fds, Some(&PAUSE)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(!fds[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR))
    }

    /// Queues a frame to be sent.
    pub fn queue(&mut self, frame: &Frame) {
        self.outgoing.extend(frame.encode());
    }

    /// Returns the number of bytes that wait to be sent.
    pub fn queued(&self) -> usize {
        self.outgoing.len()
    }

    /// Sends what can be sent now. Returns `false` if the host has hung up.
    pub fn flush(&mut self) -> io::Result<bool> {
        while !self.outgoing.is_empty() {
            match rustix::io::write(&self.fd, &self.outgoing) {
                Ok(written) => drop(self.outgoing.drain(..written)),
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NODEV | Errno::IO) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Sends a frame, however long it takes. Returns `false` if the host has hung up.
    pub fn send(&mut self, frame: &Frame) -> io::Result<bool> {
        self.queue(frame);
        self.flush_all()
    }

    fn flush_all(&mut self) -> io::Result<bool> {
        loop {
            if !self.flush()? {
                return Ok(false);
            }
            if self.outgoing.is_empty() {
                return Ok(true);
            }
            if self.wait(PollFlags::OUT)?.intersects(PollFlags::HUP | PollFlags::ERR) {
                return Ok(false);
            }
        }
    }

    fn read(&self, into: &mut Vec<u8>) -> io::Result<Received> {
        let mut bytes = [0; 16 << 10];
        match rustix::io::read(&self.fd, &mut bytes) {
            // A virtio port also returns this while no host is connected.
            Ok(0) => Ok(Received::HungUp),
            Ok(count) => {
                into.extend_from_slice(&bytes[..count]);
                Ok(Received::Bytes)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NODEV) => Ok(Received::HungUp),
            Err(error) => Err(error.into()),
        }
    }

    fn wait(&self, what: PollFlags) -> io::Result<PollFlags> {
        let mut fds = [PollFd::new(&self.fd, what)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => Ok(fds[0].revents()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
