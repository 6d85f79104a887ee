//! Serves a directory over a stream, until the stream ends or the guest does not keep to the rules.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc as std_mpsc,
    },
    thread,
};

use banger_mount::{HEADER, Limits, Options, Server, Violation};
use banger_proto::guest::{
    Frame, STDIN_WINDOW,
    frame::MAX_DATA,
    mount::{MAX_IN_FLIGHT, Owner, is_answered, take_message},
};
use tokio::{
    io::AsyncWriteExt,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};

use crate::{
    error::{Error, Result},
    guest::relay::{Relay, protocol_error},
};

/// Threads that wait for the host's disks. The guest's programs wait for the answers, so more would have little to do.
const THREADS: usize = 4;
/// Limit on messages about what the guest's kernel forgets that wait for a thread. Then no more are read.
const MAX_FORGETTING: usize = 64;
/// Limit on the line about the owner.
const MAX_LINE: usize = 256;

/// A directory that is mounted.
pub struct Session {
    relay: Relay,
    answer: Arc<Serve>,
    /// What came after the first line.
    received: Vec<u8>,
}

type Answer = Result<Vec<u8>>;
/// Answers a message; some have no answer. It is [`Server::answer`], which may wait for the host's disks.
type Serve = dyn Fn(&[u8]) -> Result<Option<Vec<u8>>, Violation> + Send + Sync;

impl Session {
    /// Takes a stream on which a mount was granted.
    /// `note` is called once, when the guest knows as many files as it may.
    pub async fn begin(
        mut relay: Relay,
        root: OwnedFd,
        (read_only, limits): (bool, Limits),
        note: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let mut received = Vec::new();
        let end = loop {
            if let Some(end) = received.iter().position(|byte| *byte == b'\n') {
                break end;
            }
            if received.len() > MAX_LINE {
                return Err(protocol_error());
            }
            received.extend(relay.output().await?.ok_or_else(protocol_error)?);
        };
        let line: Vec<u8> = received.drain(..=end).collect();
        let owner: Owner = serde_json::from_slice(&line).map_err(|_| protocol_error())?;
        let server = Server::new(root, Options { read_only, owner, limits });
        let server = server.map_err(|source| Error::io("read the directory", source))?.when_full(note);
        Ok(Self { relay, answer: Arc::new(move |message| server.answer(message)), received })
    }

    /// Serves it. Returns when it was unmounted in the sandbox.
    pub async fn serve(self) -> Result<()> {
        let Self { relay, answer, received } = self;
        let (mut frames, mut writer) = relay.into_parts();
        let credit = Semaphore::new(STDIN_WINDOW as usize);
        let in_flight = AtomicUsize::new(0);
        let forgetting = Arc::new(Semaphore::new(MAX_FORGETTING));
        // Neither queue is longer than the requests in flight and what the kernel forgets.
        let (answers, mut answered) = mpsc::unbounded_channel();
        let requests = start_threads(&answer, &answers)?;
        let into_sandbox = async {
            // It is open as long as this function has the other end.
            while let Some(answer) = answered.recv().await {
                for piece in answer?.chunks(MAX_DATA) {
                    // It is never closed.
                    let Ok(room) = credit.acquire_many(piece.len() as u32).await else { break };
                    room.forget();
                    if writer.write_all(&Frame::Input(piece.to_vec()).encode()).await.is_err() {
                        // The other direction says why.
                        return std::future::pending().await;
                    }
                }
                in_flight.fetch_sub(1, Ordering::Relaxed);
            }
            Err(protocol_error())
        };
        let out_of_sandbox = async {
            // Later, only the threads have it, so that the last of them closes the files.
            let (mut buffer, mut first) = (received, Some(answer));
            loop {
                while let Some(message) =
                    take_message(&mut buffer, HEADER).map_err(|wrong| violated(wrong.into()))?
                {
                    // Nothing may be answered before the first message, which touches no file.
                    if let Some(answer) = first.take() {
                        if let Some(answer) = answer(&message).map_err(violated)? {
                            in_flight.fetch_add(1, Ordering::Relaxed);
                            // This function has the other end.
                            let _ = answers.send(Ok(answer));
                        }
                        continue;
                    }
                    if !is_answered(&message) {
                        // To forget a file may close it. It is never closed itself.
                        let Ok(room) = Arc::clone(&forgetting).acquire_owned().await else { continue };
                        let _ = requests.send((message, Some(room)));
                        continue;
                    }
                    if in_flight.fetch_add(1, Ordering::Relaxed) >= MAX_IN_FLIGHT {
                        return Err(Error::Refused("the sandbox sent too many requests at once".to_owned()));
                    }
                    // The threads are there as long as this end is.
                    let _ = requests.send((message, None));
                }
                match frames.next().await? {
                    Frame::Output(bytes) => buffer.extend(bytes),
                    Frame::Window(count) => {
                        // Never more than the window, whatever the agent says.
                        let room = (STDIN_WINDOW as usize).saturating_sub(credit.available_permits());
                        credit.add_permits(room.min(count as usize));
                    }
                    Frame::Done => return Ok(()),
                    Frame::Failed(failure) => return Err(Error::Guest(failure)),
                    _ => return Err(protocol_error()),
                }
            }
        };
        tokio::select! {
            ended = out_of_sandbox => ended,
            ended = into_sandbox => ended,
        }
    }
}

fn violated(violation: Violation) -> Error {
    Error::Refused(violation.to_string())
}

/// Ends the mount if its thread panics. Otherwise the guest would wait for the answer without end.
struct EndsOnPanic(mpsc::UnboundedSender<Answer>);

impl Drop for EndsOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            let failed = Error::Refused("a request of the sandbox crashed this program".to_owned());
            // The mount may have ended already.
            let _ = self.0.send(Err(failed));
        }
    }
}

/// A message for the threads, and its place among those that have no answer.
type Queued = (Vec<u8>, Option<OwnedSemaphorePermit>);

/// Starts the threads that answer. They end once the returned end of their queue is dropped.
fn start_threads(
    answer: &Arc<Serve>,
    answers: &mpsc::UnboundedSender<Answer>,
) -> Result<std_mpsc::Sender<Queued>> {
    let (requests, requested) = std_mpsc::channel::<Queued>();
    let requested = Arc::new(Mutex::new(requested));
    for _ in 0..THREADS {
        let (answer, answers, requested) = (Arc::clone(answer), answers.clone(), Arc::clone(&requested));
        let serve = move || {
            // One thread waits for a request, the others for the lock.
            let next = || requested.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let _ends = EndsOnPanic(answers.clone());
            while let Ok((request, _room)) = next() {
                let Some(answer) = answer(&request).transpose() else { continue };
                if answers.send(answer.map_err(violated)).is_err() {
                    return;
                }
            }
        };
        let started = thread::Builder::new().name("mount".to_owned()).spawn(serve);
        started.map_err(|source: io::Error| Error::io("start a thread", source))?;
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::net::UnixStream as StdStream;

    use banger_proto::guest::{
        Decoder, Request,
        message::Started,
        mount::{MAX_IO, Mount},
    };
    use tokio::{io::AsyncReadExt, net::UnixStream, task::JoinHandle};

    use super::*;

    /// An agent that the test speaks for.
    struct Agent {
        stream: UnixStream,
        decoder: Decoder,
        answers: Vec<u8>,
        served: JoinHandle<Result<()>>,
    }

    impl Agent {
        async fn new(root: &std::path::Path) -> Self {
            Self::with(root, |answer| answer).await
        }

        /// Serves it with something around what answers.
        async fn with(root: &std::path::Path, wrap: impl FnOnce(Arc<Serve>) -> Arc<Serve>) -> Self {
            let (ours, stream) = StdStream::pair().unwrap();
            stream.set_nonblocking(true).unwrap();
            let mut stream = UnixStream::from_std(stream).unwrap();
            let line = b"{\"uid\":0,\"gid\":0}\n".to_vec();
            for frame in [Frame::Started(Started::new(0)), Frame::Output(line)] {
                stream.write_all(&frame.encode()).await.unwrap();
            }
            let request = Mount { path: "/srv".into(), read_only: false, user: None };
            let relay = Relay::begin(ours.into(), &Request::Mount(request)).await.unwrap();
            let root = banger_mount::open(root).unwrap();
            let mut session = Session::begin(relay, root, (false, Limits::of(1024)), || {}).await.unwrap();
            session.answer = wrap(session.answer);
            let served = tokio::spawn(session.serve());
            let mut this = Self { stream, decoder: Decoder::default(), answers: Vec::new(), served };
            assert!(matches!(this.next().await, Frame::Request(_)));
            this
        }

        async fn send(&mut self, bytes: &[u8]) {
            for piece in bytes.chunks(MAX_DATA) {
                self.stream.write_all(&Frame::Output(piece.to_vec()).encode()).await.unwrap();
            }
        }

        /// Returns the next answer: its number, and what follows the header. It must be no error.
        async fn answer(&mut self) -> (u64, Vec<u8>) {
            loop {
                if let Some(answer) = take_message(&mut self.answers, 16).unwrap() {
                    assert_eq!(answer[4..8], [0; 4], "it failed");
                    return (u64::from_ne_bytes(answer[8..16].try_into().unwrap()), answer[16..].to_vec());
                }
                let Frame::Input(bytes) = self.next().await else { panic!("no answer") };
                self.answers.extend(bytes);
            }
        }

        async fn next(&mut self) -> Frame {
            loop {
                if let Some(frame) = self.decoder.next_frame().unwrap() {
                    return frame;
                }
                let mut bytes = [0; 4096];
                let count = self.stream.read(&mut bytes).await.unwrap();
                assert_ne!(count, 0, "the client hung up");
                self.decoder.push(&bytes[..count]);
            }
        }
    }

    fn request(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
        let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(opcode.to_ne_bytes());
        message.extend(unique.to_ne_bytes());
        message.extend(node.to_ne_bytes());
        message.extend([0; 16]);
        message.extend(body);
        message
    }

    fn init() -> Vec<u8> {
        request(26, 1, 0, &[7u32, 31, 0, 0].map(u32::to_ne_bytes).concat())
    }

    #[tokio::test]
    async fn answers_come_back_and_an_unmount_ends_it() {
        let root = tempfile::tempdir().unwrap();
        let mut agent = Agent::new(root.path()).await;
        // In two parts, with a forgotten number that gets no answer.
        let sent = [init(), request(2, 2, 1, &[0; 8]), request(3, 3, 1, &[0; 16])].concat();
        agent.send(&sent[..50]).await;
        agent.send(&sent[50..]).await;
        for expect in [1, 3] {
            assert_eq!(agent.answer().await.0, expect);
        }
        agent.stream.write_all(&Frame::Done.encode()).await.unwrap();
        agent.served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn files_are_closed_by_the_threads_that_wait_for_disks() {
        let root = tempfile::tempdir().unwrap();
        let (done, handled) = std_mpsc::channel();
        let wrap = |answer: Arc<Serve>| -> Arc<Serve> {
            // Its last owner closes the files that are left.
            let last = Last(done.clone());
            Arc::new(move |message| {
                if !is_answered(message) {
                    done.send(here()).unwrap();
                }
                let _ = &last;
                answer(message)
            })
        };
        let mut agent = Agent::with(root.path(), wrap).await;
        // More than may wait at once.
        let many = 3 * MAX_FORGETTING;
        let forgotten: Vec<u8> = (0..many).flat_map(|_| request(2, 2, 1, &[0; 8])).collect();
        agent.send(&[init(), forgotten, request(3, 3, 1, &[0; 16])].concat()).await;
        for expect in [1, 3] {
            assert_eq!(agent.answer().await.0, expect);
        }
        agent.stream.write_all(&Frame::Done.encode()).await.unwrap();
        agent.served.await.unwrap().unwrap();
        let threads = tokio::task::spawn_blocking(move || handled.iter().collect::<Vec<_>>()).await.unwrap();
        assert_eq!(threads, vec!["mount"; many + 1]);
    }

    #[tokio::test]
    async fn a_thread_that_panics_ends_the_mount() {
        let root = tempfile::tempdir().unwrap();
        let wrap = |answer: Arc<Serve>| -> Arc<Serve> {
            Arc::new(move |message| match message[4] {
                3 => panic!("of the test"),
                _ => answer(message),
            })
        };
        let mut agent = Agent::with(root.path(), wrap).await;
        agent.send(&[init(), request(3, 3, 1, &[0; 16])].concat()).await;
        let ended = agent.served.await.unwrap().unwrap_err().to_string();
        assert_eq!(ended, "a request of the sandbox crashed this program");
    }

    struct Last(std_mpsc::Sender<String>);

    impl Drop for Last {
        fn drop(&mut self) {
            self.0.send(here()).unwrap();
        }
    }

    fn here() -> String {
        thread::current().name().unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn a_guest_that_breaks_the_rules_loses_its_mount() {
        let root = tempfile::tempdir().unwrap();
        for (sent, expect) in [
            (vec![1, 0, 0, 0], "the sandbox sent a message of 1 bytes"),
            (vec![255; 8], "the sandbox sent a message of 4294967295 bytes"),
            (request(3, 1, 1, &[0; 16]), "the sandbox sent a message of kind 3 out of order"),
            (
                [init(), request(3, 2, 1, &[0; 15])].concat(),
                "the sandbox sent a message of kind 3 with a wrong length",
            ),
            (
                [init(), request(2, 2, 1, &[0; 9])].concat(),
                "the sandbox sent a message of kind 2 with a wrong length",
            ),
        ] {
            let mut agent = Agent::new(root.path()).await;
            agent.send(&sent).await;
            assert_eq!(agent.served.await.unwrap().unwrap_err().to_string(), expect);
        }
    }

    #[tokio::test]
    async fn a_guest_that_takes_no_answers_loses_its_mount() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a"), vec![7; MAX_IO]).unwrap();
        let mut agent = Agent::new(root.path()).await;
        agent.send(&[init(), request(1, 2, 1, b"a\0")].concat()).await;
        agent.answer().await;
        let number = |bytes: &[u8]| u64::from_ne_bytes(bytes[..8].try_into().unwrap());
        let node = number(&agent.answer().await.1);
        agent.send(&request(14, 3, node, &[0; 8])).await;
        let handle = number(&agent.answer().await.1);
        let body = [&handle.to_ne_bytes()[..], &[0; 8], &(MAX_IO as u32).to_ne_bytes(), &[0; 20]].concat();
        // There is room for less than two answers, so the others are in flight.
        let many: Vec<u8> = (0..MAX_IN_FLIGHT as u64 + 2).flat_map(|n| request(15, n, node, &body)).collect();
        agent.send(&many).await;
        let ended = agent.served.await.unwrap().unwrap_err().to_string();
        assert_eq!(ended, "the sandbox sent too many requests at once");
    }
}
