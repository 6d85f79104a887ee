//! The output of a command, of which the beginning and the end are kept.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use tokio::io::AsyncWrite;

/// Limit on output in one message about progress. What is written meanwhile in addition is only in the result.
const MAX_FRESH: usize = 4 << 10;

/// The beginning and the end of a text.
#[derive(Debug)]
pub struct Clip {
    limit: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
}

impl Clip {
    /// Keeps at most this many bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, head: Vec::new(), tail: VecDeque::new(), total: 0 }
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let to_head = bytes.len().min(self.limit / 2 - self.head.len());
        self.head.extend_from_slice(&bytes[..to_head]);
        self.tail.extend(&bytes[to_head..]);
        let over = self.tail.len().saturating_sub(self.limit - self.limit / 2);
        self.tail.drain(..over);
    }

    /// Returns how many bytes were appended.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns how many bytes are left out.
    pub fn left_out(&self) -> u64 {
        self.total - (self.head.len() + self.tail.len()) as u64
    }

    /// Returns the text, with a line that says what is left out.
    pub fn text(&self) -> String {
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        match self.left_out() {
            0 => String::from_utf8_lossy(&[self.head.as_slice(), &tail].concat()).into_owned(),
            left_out => format!(
                "{}\n[{left_out} bytes left out]\n{}",
                String::from_utf8_lossy(&self.head),
                String::from_utf8_lossy(&tail)
            ),
        }
    }
}

/// What a command has written.
#[derive(Debug)]
pub struct Captured {
    pub output: Clip,
    pub errors: Clip,
    /// What was written since the last message about progress.
    fresh: Vec<u8>,
}

/// What a running command has written so far.
#[derive(Debug, Clone)]
pub struct Capture(Arc<Mutex<Captured>>);

/// One of the two streams.
#[derive(Debug, Clone, Copy)]
enum Stream {
    Output,
    Errors,
}

/// Where a command writes to.
#[derive(Debug)]
pub struct Writer(Capture, Stream);

impl Capture {
    /// Keeps at most this many bytes of each stream.
    pub fn new(limit: usize) -> Self {
        let captured = Captured { output: Clip::new(limit), errors: Clip::new(limit), fresh: Vec::new() };
        Self(Arc::new(Mutex::new(captured)))
    }

    /// Returns the writers for standard output and standard error.
    pub fn writers(&self) -> (Writer, Writer) {
        (Writer(self.clone(), Stream::Output), Writer(self.clone(), Stream::Errors))
    }

    /// Returns what was written since the last call, if anything.
    pub fn fresh(&self) -> Option<String> {
        let bytes = std::mem::take(&mut self.lock().fresh);
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Returns what was written.
    pub fn lock(&self) -> MutexGuard<'_, Captured> {
        // Each change under the lock is complete.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self(capture, stream) = &*self;
        let mut captured = capture.lock();
        match stream {
            Stream::Output => captured.output.push(bytes),
            Stream::Errors => captured.errors.push(bytes),
        }
        let room = MAX_FRESH - captured.fresh.len();
        captured.fresh.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn clip(limit: usize, pieces: &[&str]) -> Clip {
        let mut clip = Clip::new(limit);
        pieces.iter().for_each(|piece| clip.push(piece.as_bytes()));
        clip
    }

    #[test]
    fn the_beginning_and_the_end_are_kept() {
        for (limit, pieces, expect) in [
            (4, &[][..], ""),
            (4, &["abcd"], "abcd"),
            (4, &["ab", "cd"], "abcd"),
            (4, &["abcde"], "ab\n[1 bytes left out]\nde"),
            (4, &["a", "bcdefg", "h"], "ab\n[4 bytes left out]\ngh"),
            (5, &["abcdefg"], "ab\n[2 bytes left out]\nefg"),
            (0, &["abc"], "\n[3 bytes left out]\n"),
        ] {
            assert_eq!(clip(limit, pieces).text(), expect);
        }
    }

    #[test]
    fn however_much_is_written_the_memory_is_bounded() {
        let mut clip = Clip::new(1000);
        for _ in 0..10_000 {
            clip.push(&[b'x'; 777]);
        }
        assert_eq!((clip.total(), clip.left_out()), (7_770_000, 7_769_000));
        assert!(clip.tail.capacity() < 10_000 && clip.head.capacity() < 10_000);
    }

    #[tokio::test]
    async fn progress_gets_what_is_new_and_not_too_much() {
        let capture = Capture::new(10 << 10);
        let (mut output, mut errors) = capture.writers();
        output.write_all(b"out").await.unwrap();
        errors.write_all(b"err").await.unwrap();
        assert_eq!(capture.fresh().as_deref(), Some("outerr"));
        assert_eq!(capture.fresh(), None);
        output.write_all(&[b'x'; MAX_FRESH + 1]).await.unwrap();
        assert_eq!(capture.fresh().unwrap().len(), MAX_FRESH);
        assert_eq!(capture.lock().output.total(), 3 + MAX_FRESH as u64 + 1);
        assert_eq!(capture.lock().errors.text(), "err");
    }
}
