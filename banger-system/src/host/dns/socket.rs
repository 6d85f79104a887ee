//! Opens the sockets of the name server. All guests share them, so the queue of each holds what many guests may send
//! while the server does not read: the packet filter lets no guest send more (`banger_domain::dns::limits`).

use std::{
    ffi::c_int,
    io,
    net::{SocketAddr, UdpSocket as StdUdpSocket},
    os::fd::{AsFd, AsRawFd},
};

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};

/// How many bytes of datagrams may wait.
///
/// The kernel charges up to 2304 bytes for a datagram of at most 1092: a block of 2 KiB and its description. So the
/// 1000 questions that a guest may send at once take at most 2.3 MB, and the 10,000 of the host 23 MB. The queue holds
/// those of the host and of 48 guests that all send the longest ones, and three times as many guests with ordinary
/// ones. It takes memory only while datagrams wait.
const WAITING: usize = 128 << 20;
/// How many connections may wait: one second of 48 guests that all call as often as they may. The kernel allows no
/// more (`net.core.somaxconn`).
const CALLERS: u32 = 4096;

/// Opens the socket for datagrams at this address.
pub(super) fn datagrams(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = StdUdpSocket::bind(at)?;
    socket.set_nonblocking(true)?;
    // The kernel doubles the number, for its own use of memory. WAITING counts that use already.
    let size = WAITING / 2;
    set_socket_recv_buffer_size_force(&socket, size)
        // Without the privilege it is as long as the administrator allows (`net.core.rmem_max`).
        .or_else(|_| set_socket_recv_buffer_size(&socket, size))?;
    keep_whole(&socket)?;
    UdpSocket::from_std(socket)
}

/// Opens the socket for connections at this address.
pub(super) fn connections(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Closed connections of an earlier run do not hold the port.
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(CALLERS)
}

/// Takes a packet that holds several datagrams (UDP_SEGMENT, udp(7)) as one message, which is not a question. The
/// packet filter counts such a packet once, and the kernel would make up to 128 datagrams of it.
fn keep_whole(socket: &impl AsFd) -> io::Result<()> {
    let on: c_int = 1;
    // SAFETY: the option is a `c_int`, which `on` is, and its length is given.
    #[expect(unsafe_code, reason = "no crate of ours knows this option")]
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_UDP,
            libc::UDP_GRO,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
