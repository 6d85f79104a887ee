//! Requests to the kernel about links, routes and neighbours that go to it together: one system call for all of
//! them, and not a change of tasks for each.
//!
//! netlink(7) and rtnetlink(7). A datagram may hold several requests, which the kernel takes in their order and
//! answers one by one, whether those before succeeded or not.

use std::io;

use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use rustix::net::RecvFlags;

/// Makes what is not there, and replaces what is.
const FLAGS: u16 = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
/// Answers are as long as a header and a number, but for those that hold the request that was refused.
const ANSWERS: usize = 32 << 10;
/// The kernel has answered when the system call that asks it returns.
const AT_ONCE: i32 = RecvFlags::DONTWAIT.bits() as i32;

/// Makes these requests. All of them are made; the error is that of the first that was refused.
pub(super) fn commit(requests: Vec<RouteNetlinkMessage>) -> io::Result<()> {
    let count = requests.len();
    let mut datagram = Vec::new();
    for (n, request) in requests.into_iter().enumerate() {
        let mut message = NetlinkMessage::from(request);
        (message.header.flags, message.header.sequence_number) = (FLAGS, n as u32);
        message.finalize();
        // Every request is a multiple of 4 bytes long, so the next one needs no padding.
        let (begin, length) = (datagram.len(), message.buffer_len());
        datagram.resize(begin + length, 0);
        message.serialize(&mut datagram[begin..]);
    }
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send_to(&datagram, &SocketAddr::new(0, 0), 0)?;
    let mut refused = None;
    let mut answered = 0;
    while answered < count {
        let mut answers = Vec::with_capacity(ANSWERS);
        socket.recv(&mut answers, AT_ONCE)?;
        let mut rest = answers.as_slice();
        while !rest.is_empty() {
            let answer =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            if let NetlinkPayload::Error(error) = &answer.payload {
                answered += 1;
                if error.code.is_some() {
                    refused.get_or_insert(error.to_io());
                }
            }
            let length = (answer.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
    refused.map_or(Ok(()), Err)
}
