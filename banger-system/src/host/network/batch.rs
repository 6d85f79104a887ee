//! Sends requests about links, routes and neighbours to the kernel in one system call, instead of one call and one
//! change of tasks for each.
//!
//! netlink(7) and rtnetlink(7). A datagram may hold several requests, which the kernel handles in order and answers
//! one by one, whether earlier ones succeeded or not.

use std::io;

use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use rustix::net::RecvFlags;

/// Creates what is missing, and replaces what exists.
const FLAGS: u16 = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
/// An answer has a header and a number, and the request if that was refused.
const ANSWERS: usize = 32 << 10;
/// The kernel answers before the system call that sends the request returns.
const AT_ONCE: i32 = RecvFlags::DONTWAIT.bits() as i32;

/// Makes all of these requests. Returns the error of the first one that was refused.
pub(super) fn commit(requests: Vec<RouteNetlinkMessage>) -> io::Result<()> {
    let count = requests.len();
    let mut datagram = Vec::new();
    for (n, request) in requests.into_iter().enumerate() {
        let mut message = NetlinkMessage::from(request);
        (message.header.flags, message.header.sequence_number) = (FLAGS, n as u32);
        message.finalize();
        // The length of a request is a multiple of 4, so no padding is needed.
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
