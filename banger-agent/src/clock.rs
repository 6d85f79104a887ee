//! Compares the guest's clock with the host's, and corrects it.

use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};

use banger_proto::guest::{
    FailureKind, Frame,
    message::{Correction, Pace},
};

use crate::{
    conversation::{kind_of, refuse},
    port::Port,
};

/// Limit on a correction, a thousand years, so that the sum stays in the range of the kernel.
const MAX_OFFSET: u64 = 1_000 * 366 * 86_400 * 1_000_000;

/// Sends the time as often as the host asks, and corrects the clock.
pub fn serve(port: &mut Port) -> io::Result<()> {
    loop {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if !port.send(&Frame::Output(since.as_micros().to_string().into_bytes()))? {
            return Ok(());
        }
        match port.wait_frame()? {
            None => return Ok(()),
            Some(Frame::Input(bytes)) if bytes.is_empty() => {}
            Some(Frame::Input(bytes)) => {
                let Some(correction) = read(&bytes) else {
                    return refuse(port, FailureKind::BadRequest, "the request is not a clock correction");
                };
                return match apply(correction) {
                    Ok(()) => port.send(&Frame::Done).map(drop),
                    Err(error) => {
                        refuse(port, kind_of(&error), &format!("cannot correct the clock: {error}"))
                    }
                };
            }
            Some(Frame::InputEnd) => return port.send(&Frame::Done).map(drop),
            Some(_) => return refuse(port, FailureKind::BadRequest, "expected input"),
        }
    }
}

fn read(bytes: &[u8]) -> Option<Correction> {
    let correction: Correction = serde_json::from_slice(bytes).ok()?;
    (correction.offset_usec.unsigned_abs() <= MAX_OFFSET).then_some(correction)
}

fn apply(correction: Correction) -> io::Result<()> {
    // The rest of an earlier slew would be added to this.
    adjust(slew(0))?;
    adjust(match correction.pace {
        Pace::Slew => slew(correction.offset_usec),
        Pace::Step => step(correction.offset_usec),
    })
}

/// Returns the argument of adjtimex(2) that slews the clock.
fn slew(offset_usec: i64) -> libc::timex {
    libc::timex { modes: libc::ADJ_OFFSET_SINGLESHOT, offset: offset_usec, ..empty_timex() }
}

/// Returns the argument of adjtimex(2) that steps the clock. The microseconds are never negative, even with negative
/// seconds.
fn step(offset_usec: i64) -> libc::timex {
    let time = libc::timeval {
        tv_sec: offset_usec.div_euclid(1_000_000),
        tv_usec: offset_usec.rem_euclid(1_000_000),
    };
    libc::timex { modes: libc::ADJ_SETOFFSET, time, ..empty_timex() }
}

fn empty_timex() -> libc::timex {
    // SAFETY: the structure consists of integers, for which zero is a value.
    #[expect(unsafe_code, reason = "the structure has no other constructor")]
    unsafe {
        std::mem::zeroed()
    }
}

fn adjust(mut change: libc::timex) -> io::Result<()> {
    // SAFETY: the structure is complete, and the kernel keeps no pointer to it.
    #[expect(unsafe_code, reason = "rustix has no adjtimex(2)")]
    let state = unsafe { libc::adjtimex(&mut change) };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_proto::guest::Request;

    use super::*;
    use crate::test_host::Host;

    fn time(host: &mut Host) -> u128 {
        let Frame::Output(text) = host.next() else { panic!("no time") };
        String::from_utf8(text).unwrap().parse().unwrap()
    }

    #[test]
    fn the_time_is_sent_on_each_request() {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
        let before = now();
        let mut host = Host::ask(Request::Clock);
        let first = time(&mut host);
        host.send(&Frame::Input(Vec::new()));
        let second = time(&mut host);
        assert!(before <= first && first <= second && second <= now(), "{before} {first} {second}");
        host.send(&Frame::InputEnd);
        assert_eq!(host.next(), Frame::Done);
    }

    #[test]
    fn an_invalid_correction_is_refused_and_changes_nothing() {
        let far = i64::MAX;
        for bytes in [
            "x",
            "{}",
            r#"{"offset-usec":1}"#,
            r#"{"offset-usec":1,"pace":"leap"}"#,
            r#"{"offset-usec":1,"pace":"step","x":1}"#,
            &format!(r#"{{"offset-usec":{far},"pace":"step"}}"#),
            &format!(r#"{{"offset-usec":{},"pace":"slew"}}"#, i64::MIN),
        ] {
            let mut host = Host::ask(Request::Clock);
            time(&mut host);
            host.send(&Frame::Input(bytes.as_bytes().to_vec()));
            assert!(matches!(host.next(), Frame::Failed(_)), "{bytes}");
        }
    }

    #[test]
    fn a_correction_becomes_valid_adjtimex_arguments() {
        for (offset, seconds, micros) in
            [(0, 0, 0), (1_500_000, 1, 500_000), (-1, -1, 999_999), (-2_000_000, -2, 0)]
        {
            let change = step(offset);
            assert_eq!((change.time.tv_sec, change.time.tv_usec), (seconds, micros), "{offset}");
            assert_eq!(change.modes, 0x100, "ADJ_SETOFFSET of include/uapi/linux/timex.h");
        }
        assert_eq!((slew(-700).modes, slew(-700).offset), (0x8001, -700), "ADJ_OFFSET_SINGLESHOT");
    }
}
