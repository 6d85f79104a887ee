//! Streams that remember why they failed: the library that reads and writes archives wraps or drops the errors of the
//! underlying stream.

use std::{
    cell::RefCell,
    io::{self, Read, Write},
    rc::Rc,
};

/// The last error of a stream.
#[derive(Debug, Clone, Default)]
pub struct Failure(Rc<RefCell<Option<io::Error>>>);

impl Failure {
    /// Takes the error, if there was one.
    pub fn take(&self) -> Option<io::Error> {
        self.0.borrow_mut().take()
    }

    fn keep<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            // An interrupted read is retried.
            if error.kind() == io::ErrorKind::Interrupted {
                return error;
            }
            let kind = error.kind();
            *self.0.borrow_mut() = Some(error);
            kind.into()
        })
    }
}

/// A stream that records its last error.
#[derive(Debug)]
pub struct ErrorTap<S> {
    stream: S,
    failure: Failure,
}

impl<S> ErrorTap<S> {
    /// Wraps a stream. Returns it, and a handle to its error.
    pub fn new(stream: S) -> (Self, Failure) {
        let failure = Failure::default();
        (Self { stream, failure: failure.clone() }, failure)
    }

    /// Returns the wrapped stream.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: Read> Read for ErrorTap<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.failure.keep(self.stream.read(into))
    }
}

impl<S: Write> Write for ErrorTap<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.failure.keep(self.stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.failure.keep(self.stream.flush())
    }
}
