//! Queries systemd on its private socket, which exists before the bus does, needs no process to ask, and is
//! accessible to root only.
//!
//! A connection begins with the text of the D-Bus specification ("Authentication Protocol"), and then carries
//! messages. This client ignores all messages but the replies, because systemd sends its signals to every connection.
//! A connection is therefore used for one query.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// Where systemd listens, from early in the boot.
const SOCKET: &str = "/run/systemd/private";
/// Timeout of a query or call.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Limit on a message: properties and signals are short.
const MAX_MESSAGE: usize = 1 << 20;
const MAX_LINE: usize = 256;

const DESTINATION: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES_INTERFACE: &str = "org.freedesktop.DBus.Properties";
const UNIT_INTERFACE: &str = "org.freedesktop.systemd1.Unit";
const BASIC: &str = "/org/freedesktop/systemd1/unit/basic_2etarget";
const SHUTDOWN: &str = "/org/freedesktop/systemd1/unit/shutdown_2etarget";

/// The progress of the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// `basic.target` is not reached: file systems are being mounted, and `/tmp` is being emptied.
    Early,
    /// It is reached, and jobs of the boot are left.
    Late,
    /// No job is left, the guest is shutting down, or only an emergency shell runs.
    Over,
}

impl Boot {
    /// Maps the property `SystemState` (org.freedesktop.systemd1(5)).
    fn of(state: &str) -> Self {
        match state {
            "initializing" | "" => Self::Early,
            "starting" => Self::Late,
            _ => Self::Over,
        }
    }
}

/// Returns whether systemd can be queried. It answers before it has started any unit.
pub fn is_available() -> bool {
    Path::new(SOCKET).exists()
}

/// A connection to systemd.
pub struct Systemd {
    stream: UnixStream,
    begun: Instant,
    serial: u32,
}

impl Systemd {
    pub fn connect() -> io::Result<Self> {
        Self::greet(UnixStream::connect(SOCKET)?)
    }

    /// Authenticates; the kernel provides our user id.
    fn greet(stream: UnixStream) -> io::Result<Self> {
        let mut systemd = Self { stream, begun: Instant::now(), serial: 0 };
        let user = rustix::process::geteuid().as_raw().to_string();
        let user: String = user.bytes().map(|digit| format!("{digit:02x}")).collect();
        // Both lines at once: systemd does not process a message that arrives together with the second line.
        systemd.write(format!("\0AUTH EXTERNAL {user}\r\nBEGIN\r\n").as_bytes())?;
        // Nothing follows the answer before there is a call.
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut bytes = [0; MAX_LINE];
            let count = systemd.read_some(&mut bytes)?;
            line.extend(&bytes[..count]);
            if line.len() > MAX_LINE {
                return Err(invalid_reply());
            }
        }
        if !line.starts_with(b"OK ") {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(systemd)
    }

    /// Returns the progress of the boot.
    pub fn boot(&mut self) -> io::Result<Boot> {
        match self.property(MANAGER, MANAGER_INTERFACE, "SystemState")? {
            Value::Text(state) => Ok(Boot::of(&state)),
            Value::Number(_) => Err(invalid_reply()),
        }
    }

    /// Returns when `basic.target` was reached, in microseconds since the kernel started; `None` if it was not.
    pub fn basic_at(&mut self) -> io::Result<Option<u64>> {
        self.time(BASIC, UNIT_INTERFACE, "ActiveEnterTimestampMonotonic")
    }

    /// Returns when the boot was over.
    pub fn finished_at(&mut self) -> io::Result<Option<u64>> {
        self.time(MANAGER, MANAGER_INTERFACE, "FinishTimestampMonotonic")
    }

    /// Returns whether systemd is shutting down, or about to. `SystemState` is `starting` as long as the boot has
    /// jobs left, whatever follows them.
    pub fn is_stopping(&mut self) -> io::Result<bool> {
        let state = self.property(SHUTDOWN, UNIT_INTERFACE, "ActiveState")?;
        let job = self.property(SHUTDOWN, UNIT_INTERFACE, "Job")?;
        Ok(is_active_or_queued(&state, &job))
    }

    /// Starts a user's own systemd, for `systemctl --user`, and does not wait for it. Safe to repeat. Fails if the guest is
    /// shutting down, or has no such unit (user@.service(5)).
    pub fn start_user_manager(&mut self, uid: u32) -> io::Result<()> {
        let unit = format!("user@{uid}.service");
        self.call(MANAGER, MANAGER_INTERFACE, "StartUnit", [&unit, "fail"]).map(drop)
    }

    fn time(&mut self, path: &str, interface: &str, name: &str) -> io::Result<Option<u64>> {
        match self.property(path, interface, name)? {
            Value::Number(time) => Ok((time != 0).then_some(time)),
            Value::Text(_) => Err(invalid_reply()),
        }
    }

    fn property(&mut self, path: &str, interface: &str, name: &str) -> io::Result<Value> {
        let body = self.call(path, PROPERTIES_INTERFACE, "Get", [interface, name])?;
        Reader { bytes: &body.bytes, at: body.begin }.variant()
    }

    /// Calls a method that takes two texts. Returns the body of its reply.
    fn call(&mut self, path: &str, interface: &str, member: &str, texts: [&str; 2]) -> io::Result<Body> {
        self.serial += 1;
        self.write(&call(self.serial, path, interface, member, texts))?;
        loop {
            let mut fixed = [0; FIXED];
            self.read(&mut fixed)?;
            let head = Head::of(&fixed)?;
            let mut rest = vec![0; head.rest];
            self.read(&mut rest)?;
            match (head.kind, reply_serial(&fixed, &rest)?) {
                (RETURN, Some(serial)) if serial == self.serial => {
                    return Ok(Body { bytes: rest, begin: head.rest - head.body });
                }
                (ERROR, Some(serial)) if serial == self.serial => {
                    return Err(io::Error::other("systemd refused the call"));
                }
                _ => {}
            }
        }
    }

    /// Returns the time left for a query.
    fn left(&self) -> io::Result<Option<Duration>> {
        match TIMEOUT.checked_sub(self.begun.elapsed()) {
            None | Some(Duration::ZERO) => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write_all(bytes)
    }

    fn read(&mut self, mut into: &mut [u8]) -> io::Result<()> {
        while !into.is_empty() {
            let count = self.read_some(into)?;
            into = &mut into[count..];
        }
        Ok(())
    }

    fn read_some(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            self.stream.set_read_timeout(self.left()?)?;
            match self.stream.read(into) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

/// Returns whether a target is active or about to be.
fn is_active_or_queued(state: &Value, job: &Value) -> bool {
    let active = matches!(state, Value::Text(state) if state != "inactive");
    active || matches!(job, Value::Number(job) if *job != 0)
}

fn invalid_reply() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unexpected reply from systemd")
}

// The messages of the D-Bus specification ("Message Format", "Marshaling").

/// The part of a message with a fixed length.
const FIXED: usize = 16;
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const LITTLE_ENDIAN: u8 = b'l';
const VERSION: u8 = 1;
/// The header field with the serial of the call that a message answers.
const REPLY_SERIAL: u8 = 5;

/// Encodes a call with two texts.
fn call(serial: u32, path: &str, interface: &str, member: &str, texts: [&str; 2]) -> Vec<u8> {
    let mut body = Vec::new();
    texts.iter().for_each(|text| put_text(&mut body, text));
    let mut message = vec![LITTLE_ENDIAN, CALL, 0, VERSION];
    message.extend((body.len() as u32).to_le_bytes());
    message.extend(serial.to_le_bytes());
    let mut fields = Vec::new();
    for (field, kind, text) in
        [(1, b'o', path), (2, b's', interface), (3, b's', member), (6, b's', DESTINATION), (8, b'g', "ss")]
    {
        pad(&mut fields, 8);
        fields.extend([field, 1, kind, 0]);
        match kind {
            b'g' => {
                fields.push(text.len() as u8);
                fields.extend(text.bytes());
                fields.push(0);
            }
            _ => put_text(&mut fields, text),
        }
    }
    message.extend((fields.len() as u32).to_le_bytes());
    // The fields begin at a multiple of 8, so their own padding is right.
    message.extend(fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    pad(to, 4);
    to.extend((text.len() as u32).to_le_bytes());
    to.extend(text.bytes());
    to.push(0);
}

fn pad(to: &mut Vec<u8>, multiple: usize) {
    to.resize(to.len().next_multiple_of(multiple), 0);
}

/// What follows the fixed part of a message, and where in it the body begins.
struct Body {
    bytes: Vec<u8>,
    begin: usize,
}

/// Lengths in the fixed part of a message.
struct Head {
    kind: u8,
    /// The length of the body, and of all that follows the fixed part.
    body: usize,
    rest: usize,
}

impl Head {
    fn of(fixed: &[u8; FIXED]) -> io::Result<Self> {
        let mut numbers = Reader { bytes: fixed, at: 4 };
        let (body, _serial, fields) = (numbers.number()?, numbers.number()?, numbers.number()?);
        let (body, fields) = (body as usize, fields as usize);
        if fixed[0] != LITTLE_ENDIAN || body > MAX_MESSAGE || fields > MAX_MESSAGE {
            return Err(invalid_reply());
        }
        Ok(Self { kind: fixed[1], body, rest: fields.next_multiple_of(8) + body })
    }
}

/// Returns the serial of the call that a message answers. The fields follow the fixed part, which ends at a multiple
/// of 8.
fn reply_serial(fixed: &[u8; FIXED], rest: &[u8]) -> io::Result<Option<u32>> {
    let end = Reader { bytes: fixed, at: 12 }.number()? as usize;
    let mut fields = Reader { bytes: rest.get(..end).ok_or_else(invalid_reply)?, at: 0 };
    while fields.at < end {
        fields.align(8);
        let field = fields.byte()?;
        match (field, fields.signature()?) {
            (REPLY_SERIAL, b"u") => return fields.number().map(Some),
            (_, b"u") => drop(fields.number()?),
            (_, b"s" | b"o") => drop(fields.text()?),
            (_, b"g") => drop(fields.signature()?),
            _ => return Err(invalid_reply()),
        }
    }
    Ok(None)
}

/// The value of a property; for a structure, its first member.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Text(String),
    Number(u64),
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn variant(mut self) -> io::Result<Value> {
        match self.signature()? {
            b"s" => Ok(Value::Text(String::from_utf8(self.text()?.to_vec()).map_err(|_| invalid_reply())?)),
            b"t" => {
                self.align(8);
                let bytes = self.take(8)?.try_into().map_err(|_| invalid_reply())?;
                Ok(Value::Number(u64::from_le_bytes(bytes)))
            }
            b"(uo)" => {
                self.align(8);
                self.number().map(|number| Value::Number(number.into()))
            }
            _ => Err(invalid_reply()),
        }
    }

    fn align(&mut self, multiple: usize) {
        self.at = self.at.next_multiple_of(multiple);
    }

    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let end = self.at.checked_add(count).ok_or_else(invalid_reply)?;
        let taken = self.bytes.get(self.at..end).ok_or_else(invalid_reply)?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> io::Result<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn number(&mut self) -> io::Result<u32> {
        self.align(4);
        let bytes = self.take(4)?.try_into().map_err(|_| invalid_reply())?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads a text without its terminating zero byte.
    fn text(&mut self) -> io::Result<&'a [u8]> {
        let length = self.number()? as usize;
        let text = self.take(length)?;
        self.byte()?;
        Ok(text)
    }

    fn signature(&mut self) -> io::Result<&'a [u8]> {
        let length = self.byte()?;
        let signature = self.take(length.into())?;
        self.byte()?;
        Ok(signature)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::thread;

    use super::*;

    /// Encodes a reply to call `serial`, or a signal, with this body.
    fn message(kind: u8, serial: Option<u32>, body: &[u8]) -> Vec<u8> {
        let mut fields = Vec::new();
        fields.extend([8, 1, b'g', 0, 1, b'v', 0]);
        if let Some(serial) = serial {
            pad(&mut fields, 8);
            fields.extend([REPLY_SERIAL, 1, b'u', 0]);
            fields.extend(serial.to_le_bytes());
        }
        pad(&mut fields, 8);
        fields.extend([7, 1, b's', 0]);
        put_text(&mut fields, "org.freedesktop.systemd1");
        let mut message = vec![LITTLE_ENDIAN, kind, 1, VERSION];
        message.extend((body.len() as u32).to_le_bytes());
        message.extend(77u32.to_le_bytes());
        message.extend((fields.len() as u32).to_le_bytes());
        message.extend(fields);
        pad(&mut message, 8);
        message.extend(body);
        message
    }

    fn text(value: &str) -> Vec<u8> {
        let mut body = vec![1, b's', 0];
        put_text(&mut body, value);
        body
    }

    /// Returns what a query makes of a systemd that sends this when the call has this word, and the call.
    fn asked<T>(
        word: &'static [u8],
        answer: Vec<u8>,
        query: impl FnOnce(&mut Systemd) -> io::Result<T>,
    ) -> (io::Result<T>, Vec<u8>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let systemd = thread::spawn(move || {
            let mut line = [0; 64];
            let count = theirs.read(&mut line).unwrap();
            let line = &line[..count];
            assert!(line.starts_with(b"\0AUTH EXTERNAL 3") && line.ends_with(b"\r\nBEGIN\r\n"), "{line:?}");
            theirs.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n").unwrap();
            let mut call = Vec::new();
            while !call.windows(word.len()).any(|window| window == word) {
                let mut bytes = [0; 512];
                let count = theirs.read(&mut bytes).unwrap();
                assert_ne!(count, 0, "the agent hung up");
                call.extend(&bytes[..count]);
            }
            theirs.write_all(&answer).unwrap();
            call
        });
        let result = Systemd::greet(ours).and_then(|mut systemd| query(&mut systemd));
        let call = systemd.join().unwrap();
        assert!(call.starts_with(b"l\x01\x00\x01"), "{call:?}");
        (result, call)
    }

    fn boot(answer: Vec<u8>) -> io::Result<Boot> {
        asked(b"SystemState", answer, Systemd::boot).0
    }

    #[test]
    fn the_manager_of_a_user_is_started_unless_the_guest_shuts_down() {
        let start = |answer| asked(b"fail\0", answer, |systemd| systemd.start_user_manager(1000));
        let mut job = Vec::new();
        put_text(&mut job, "/org/freedesktop/systemd1/job/7");
        let (started, call) = start(message(RETURN, Some(1), &job));
        started.unwrap();
        let has = |text: &[u8]| call.windows(text.len()).any(|window| window == text);
        assert!(has(b"StartUnit\0") && has(b"user@1000.service\0"), "{call:?}");
        assert!(start(message(ERROR, Some(1), &text("a transaction is destructive"))).0.is_err());
    }

    #[test]
    fn the_answer_is_found_among_signals() {
        let signal = message(4, None, &[1, b's', 0]);
        let other = message(RETURN, Some(9), &text("running"));
        let answer = message(RETURN, Some(1), &text("starting"));
        assert_eq!(boot([signal, other, answer].concat()).unwrap(), Boot::Late);
    }

    #[test]
    fn invalid_replies_are_errors() {
        assert!(boot(message(ERROR, Some(1), &text("no"))).is_err());
        assert!(boot(message(RETURN, Some(1), &[9, b's'])).is_err());
        assert!(boot(vec![b'B'; 200]).is_err());
        let mut long = message(RETURN, Some(1), &text("running"));
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(boot(long).is_err());
        // It hangs up in the middle.
        assert!(boot(message(RETURN, Some(1), &text("running"))[..40].to_vec()).is_err());
    }

    #[test]
    fn values_of_other_types_are_read() {
        let variant = |body: &[u8]| Reader { bytes: body, at: 0 }.variant();
        let mut time = vec![1, b't', 0];
        pad(&mut time, 8);
        time.extend(5_000_000_000u64.to_le_bytes());
        assert_eq!(variant(&time).unwrap(), Value::Number(5_000_000_000));
        let mut job = b"\x04(uo)\0".to_vec();
        pad(&mut job, 8);
        job.extend(7u32.to_le_bytes());
        put_text(&mut job, "/x");
        assert_eq!(variant(&job).unwrap(), Value::Number(7));
        assert!(variant(b"\x02as\0").is_err());
    }

    #[test]
    fn the_system_state_maps_to_three_phases() {
        for (state, expect) in [
            ("initializing", Boot::Early),
            ("starting", Boot::Late),
            ("running", Boot::Over),
            ("degraded", Boot::Over),
            ("maintenance", Boot::Over),
            ("stopping", Boot::Over),
        ] {
            assert_eq!(Boot::of(state), expect, "{state}");
        }
    }

    #[test]
    fn a_shutdown_has_begun_when_its_target_has_a_job() {
        for (state, job, expect) in
            [("inactive", 0, false), ("inactive", 723, true), ("active", 0, true), ("activating", 0, true)]
        {
            let wanted = is_active_or_queued(&Value::Text(state.to_owned()), &Value::Number(job));
            assert_eq!(wanted, expect, "{state} {job}");
        }
    }
}
