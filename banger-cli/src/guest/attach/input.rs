//! Reads a descriptor that is shared with other processes, such as standard input. Reads may block, but it must not
//! be made non-blocking, because that would change it for the shell, too.
//!
//! A thread waits for input and reads only as much as was requested, so the rest stays for the next reader.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::mpsc as blocking,
    task::{Context, Poll, ready},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::mpsc,
};

/// A source of bytes.
#[derive(Debug)]
pub struct Input {
    /// How many bytes are requested.
    requests: blocking::Sender<usize>,
    answers: mpsc::Receiver<io::Result<Vec<u8>>>,
    state: State,
    /// Closing it ends the thread.
    _wake: OwnedFd,
}

#[derive(Debug)]
enum State {
    /// No request is pending.
    Idle,
    /// A request is pending.
    Requested,
    /// Received bytes, from an index on.
    Received(Vec<u8>, usize),
}

impl Input {
    /// Reads standard input.
    pub fn stdin() -> io::Result<Self> {
        Self::new(io::stdin().as_fd().try_clone_to_owned()?)
    }

    /// Reads any descriptor.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let (asleep, wake) = pipe_with(PipeFlags::CLOEXEC)?;
        let (requests, requested) = blocking::channel();
        let (answer, answers) = mpsc::channel(1);
        thread::Builder::new().name("input".into()).spawn(move || {
            for wanted in requested {
                let Some(read) = wait_and_read(&fd, &asleep, wanted) else { return };
                if answer.blocking_send(read).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { requests, answers, state: State::Idle, _wake: wake })
    }
}

/// Waits for input and reads at most `wanted` bytes. Returns `None` if the thread must end.
fn wait_and_read(fd: &OwnedFd, asleep: &OwnedFd, wanted: usize) -> Option<io::Result<Vec<u8>>> {
    let mut bytes = vec![0; wanted];
    loop {
        let mut fds = [PollFd::new(fd, PollFlags::IN), PollFd::new(asleep, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return None,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Some(Err(error.into())),
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        match rustix::io::read(fd, &mut bytes) {
            Ok(count) => bytes.truncate(count),
            // Another process was faster.
            Err(Errno::INTR | Errno::AGAIN) => continue,
            // A terminal that was hung up is at its end.
            Err(Errno::IO) => bytes.clear(),
            Err(error) => return Some(Err(error.into())),
        }
        return Some(Ok(bytes));
    }
}

impl AsyncRead for Input {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Idle => {
                    if buffer.remaining() == 0 || this.requests.send(buffer.remaining()).is_err() {
                        return Poll::Ready(Ok(()));
                    }
                    this.state = State::Requested;
                }
                State::Requested => {
                    let answer = ready!(this.answers.poll_recv(context));
                    this.state = State::Idle;
                    match answer {
                        Some(Ok(bytes)) if !bytes.is_empty() => this.state = State::Received(bytes, 0),
                        Some(Err(error)) => return Poll::Ready(Err(error)),
                        _ => return Poll::Ready(Ok(())),
                    }
                }
                State::Received(bytes, from) => {
                    let count = buffer.remaining().min(bytes.len() - *from);
                    buffer.put_slice(&bytes[*from..*from + count]);
                    *from += count;
                    if *from == bytes.len() {
                        this.state = State::Idle;
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        fs::File,
        io::{Read, Seek, Write},
        time::Duration,
    };

    use rustix::{
        fs::{OFlags, fcntl_getfl},
        pipe::pipe,
    };
    use tokio::{io::AsyncReadExt, time::timeout};

    use super::*;

    #[tokio::test]
    async fn a_pipe_is_read_as_it_fills_and_stays_blocking() {
        let (reader, writer) = pipe().unwrap();
        let mut writer = File::from(writer);
        let mut input = Input::new(reader.try_clone().unwrap()).unwrap();
        let mut buffer = [0; 16];
        for text in ["one", "two"] {
            let nothing = timeout(Duration::from_millis(1), input.read(&mut buffer)).await;
            assert!(nothing.is_err(), "there was nothing to read");
            writer.write_all(text.as_bytes()).unwrap();
            let count = input.read(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..count], text.as_bytes());
        }
        drop(writer);
        assert_eq!(input.read(&mut buffer).await.unwrap(), 0);
        assert!(!fcntl_getfl(&reader).unwrap().contains(OFlags::NONBLOCK));
    }

    #[tokio::test]
    async fn no_more_is_read_than_requested() {
        let (reader, writer) = pipe().unwrap();
        File::from(writer).write_all(b"abcdef").unwrap();
        let mut input = Input::new(reader.try_clone().unwrap()).unwrap();
        let mut buffer = [0; 4];
        assert_eq!(input.read(&mut buffer).await.unwrap(), 4);
        assert_eq!(&buffer, b"abcd");
        drop(input);
        let mut rest = String::new();
        File::from(reader).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "ef");
    }

    #[tokio::test]
    async fn input_after_the_end_stays_for_other_readers() {
        let (reader, writer) = pipe().unwrap();
        let mut input = Input::new(reader.try_clone().unwrap()).unwrap();
        // The thread is waiting for input when it must end.
        assert!(timeout(Duration::from_millis(1), input.read(&mut [0; 4])).await.is_err());
        let answers = {
            let Input { requests, answers, state: _, _wake } = input;
            drop(requests);
            drop(_wake);
            answers
        };
        assert_eq!(ended(answers).await, None);
        let mut writer = File::from(writer);
        writer.write_all(b"later").unwrap();
        drop(writer);
        let mut rest = String::new();
        File::from(reader).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "later");
    }

    /// Waits until the thread has ended.
    async fn ended(mut answers: mpsc::Receiver<io::Result<Vec<u8>>>) -> Option<Vec<u8>> {
        answers.recv().await.map(Result::unwrap)
    }

    #[tokio::test]
    async fn a_file_and_a_device_are_read_at_once() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        file.rewind().unwrap();
        let mut content = String::new();
        Input::new(file.into()).unwrap().read_to_string(&mut content).await.unwrap();
        assert_eq!(content, "content");

        let null = File::open("/dev/null").unwrap();
        assert_eq!(Input::new(null.into()).unwrap().read(&mut [0; 8]).await.unwrap(), 0);
    }
}
