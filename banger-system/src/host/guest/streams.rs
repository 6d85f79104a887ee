//! Counts the open streams of each user.
//!
//! A client does not report when it closes a stream, and a descriptor kept by the service would keep the stream open.
//! An epoll instance solves this: it lists each open file once, however many descriptors it has, and drops a file
//! when the last of them is closed (epoll(7), "Questions and answers"). Nothing ever waits on these instances; their
//! content is read from `/proc/self/fdinfo` (proc(5)).

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use banger_domain::{id::Uid, limits::check_requests};
use rustix::event::epoll;

use crate::ports::{
    FromHost as _,
    streams::{Error, Result, Streams},
};

/// The open streams, by user.
#[derive(Default)]
pub struct OpenStreams {
    of_users: Mutex<HashMap<Uid, OwnedFd>>,
}

impl Streams for OpenStreams {
    fn hand_out(&self, user: Uid, stream: &OwnedFd, limit: usize) -> Result<()> {
        let os = |error: io::Error| Error::os("count the streams of a user", error);
        let mut of_users = self.of_users.lock().unwrap_or_else(PoisonError::into_inner);
        // Drops users without streams.
        of_users.retain(|other, streams| *other == user || count(streams).is_ok_and(|count| count > 0));
        let streams = match of_users.remove(&user) {
            Some(streams) => streams,
            None => epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| os(error.into()))?,
        };
        let streams = of_users.entry(user).or_insert(streams);
        check_requests("streams", count(streams).map_err(os)? + 1, limit)?;
        let added = epoll::add(&*streams, stream, epoll::EventData::new_u64(0), epoll::EventFlags::empty());
        added.map_err(|error| os(error.into()))?;
        Ok(())
    }

    fn open(&self) -> BTreeMap<Uid, usize> {
        let of_users = self.of_users.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = of_users.iter().map(|(user, streams)| (*user, count(streams).unwrap_or_default()));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

/// Returns how many open files an epoll instance watches.
fn count(epoll: &OwnedFd) -> io::Result<usize> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", epoll.as_raw_fd()))?;
    Ok(info.lines().filter(|line| line.starts_with("tfd:")).count())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::net::UnixStream;

    use super::*;

    const ALICE: Uid = Uid(1000);
    const BOB: Uid = Uid(1001);

    fn stream() -> (OwnedFd, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours.into(), theirs)
    }

    #[test]
    fn the_open_streams_of_a_user_are_limited_wherever_they_are_held() {
        let streams = OpenStreams::default();
        let mut held = Vec::new();
        let hand_out = |user, held: &mut Vec<_>| {
            let (stream, other) = stream();
            let handed = match streams.hand_out(user, &stream, 3) {
                Ok(()) => true,
                Err(Error::TooMany(_)) => false,
                Err(other) => panic!("{other}"),
            };
            if handed {
                // The service closes its descriptor; the client has another one of the same file.
                held.push((stream.try_clone().unwrap(), other));
            }
            handed
        };
        assert_eq!([(); 5].map(|()| hand_out(ALICE, &mut held)), [true, true, true, false, false]);
        assert!(hand_out(BOB, &mut held));
        assert_eq!(streams.open(), BTreeMap::from([(ALICE, 3), (BOB, 1)]));
        // One of her streams is closed.
        drop(held.remove(0));
        assert_eq!([(); 2].map(|()| hand_out(ALICE, &mut held)), [true, false]);
        held.clear();
        assert!(hand_out(BOB, &mut held));
        assert_eq!(streams.of_users.lock().unwrap().len(), 1, "of whom there is nothing, nothing is kept");
    }
}
