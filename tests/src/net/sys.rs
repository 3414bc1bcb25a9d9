//! The system calls that std does not offer: packet sockets, socket options, unusual ways to connect.

use std::ffi::CString;
use std::io;
use std::mem::{self, size_of};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use io_uring::{IoUring, opcode, types};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{BindToDevice, Linger, Mark, RcvBufForce, SocketError};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, Shutdown, SockFlag, SockProtocol, SockType, SockaddrStorage,
    getsockopt, setsockopt,
};

use super::PATIENCE;

/// Room for what arrives while the capturing thread is not scheduled.
const PACKET_BUFFER: usize = 256 << 20;

/// Waits until a descriptor has something to read; `false` when the other end of `stop` is closed instead.
///
/// # Errors
/// If neither happens in time.
pub(crate) fn wait_readable(
    fd: &impl AsFd,
    stop: Option<&UnixStream>,
    within: Duration,
) -> Result<bool> {
    let mut fds = vec![PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    fds.extend(stop.map(|stop| PollFd::new(stop.as_fd(), PollFlags::POLLIN)));
    let timeout = PollTimeout::try_from(within).context("too long a wait")?;
    loop {
        match poll(&mut fds, timeout) {
            Ok(0) => bail!("nothing happened within {within:?}"),
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait"),
        }
    }
    let stopped = fds.get(1).is_some_and(|fd| fd.any().unwrap_or(true));
    Ok(!stopped)
}

/// Ends listening, at once: a child that another scenario forks at this moment holds a copy of the listener
/// until it executes its program, so closing ours alone leaves the port taken for that long.
///
/// # Errors
/// If it does not listen any more.
pub(crate) fn end_listening(listener: &TcpListener) -> Result<()> {
    socket::shutdown(listener.as_raw_fd(), Shutdown::Both).context("cannot end listening")
}

/// A non-blocking socket that sees every packet of one interface, in both directions.
///
/// # Errors
/// If there is no such interface or we are not root.
pub(crate) fn packet_socket(interface: &str) -> Result<OwnedFd> {
    let socket = socket::socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        // None yet: bind sets it together with the interface, so that no other interface's packets come first.
        None,
    )
    .context("cannot open a packet socket")?;
    setsockopt(&socket, RcvBufForce, &PACKET_BUFFER).context("cannot enlarge the packet buffer")?;
    let index = nix::net::if_::if_nametoindex(interface)
        .with_context(|| format!("no interface {interface}"))?;
    // SAFETY: sockaddr_ll is plain old data, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).context("AF_PACKET")?;
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).context("ETH_P_ALL")?.to_be();
    address.sll_ifindex = i32::try_from(index).context("interface index")?;
    let length =
        libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).context("address length")?;
    // SAFETY: the pointer is to a live sockaddr_ll and the length is its size.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    Errno::result(bound).context("cannot bind the packet socket")?;
    Ok(socket)
}

/// One packet, or `None` if there is none now.
///
/// # Errors
/// If the interface went away.
pub(crate) fn receive(socket: &OwnedFd, frame: &mut [u8]) -> Result<Option<usize>> {
    match socket::recv(socket.as_raw_fd(), frame, MsgFlags::MSG_TRUNC) {
        Ok(length) => {
            ensure!(
                length <= frame.len(),
                "a packet of {length} bytes does not fit the buffer"
            );
            Ok(Some(length))
        }
        Err(Errno::EAGAIN) => Ok(None),
        Err(error) => Err(error).context("the packet capture broke"),
    }
}

/// How many packets did not fit the buffer since the last call.
///
/// # Errors
/// If the socket is no packet socket.
pub(crate) fn packets_lost(socket: &OwnedFd) -> Result<u32> {
    let mut statistics = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length =
        libc::socklen_t::try_from(size_of::<libc::tpacket_stats>()).context("length")?;
    // SAFETY: the pointers are to a live tpacket_stats and to its size.
    let read = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    Errno::result(read).context("no packet statistics")?;
    Ok(statistics.tp_drops)
}

/// An unconnected TCP socket for addresses like `to`.
///
/// # Errors
/// What the kernel says.
pub fn tcp_socket(to: SocketAddr) -> io::Result<OwnedFd> {
    stream_socket(to, SockProtocol::Tcp as i32)
}

/// An unconnected Multipath TCP socket for addresses like `to`.
///
/// # Errors
/// What the kernel says; `EPROTONOSUPPORT` where the kernel has no MPTCP.
pub fn mptcp_socket(to: SocketAddr) -> io::Result<OwnedFd> {
    stream_socket(to, libc::IPPROTO_MPTCP)
}

fn stream_socket(to: SocketAddr, protocol: i32) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: socket takes numbers only.
    let fd = Errno::result(unsafe {
        libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, protocol)
    })?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let patience = nix::sys::time::TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
    setsockopt(&socket, socket::sockopt::ReceiveTimeout, &patience)?;
    setsockopt(&socket, socket::sockopt::SendTimeout, &patience)?;
    Ok(socket)
}

/// Connects a socket that was made by hand, waiting at most the patience of a scenario.
///
/// # Errors
/// What the kernel says.
pub fn connect(socket: OwnedFd, to: SocketAddr) -> io::Result<TcpStream> {
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(socket))
}

/// Connects without blocking: `EINPROGRESS`, poll for writing, `SO_ERROR`, as event loops do.
///
/// # Errors
/// What the kernel says, or that it says nothing in time.
pub fn connect_nonblocking(to: SocketAddr) -> Result<TcpStream> {
    let socket = tcp_socket(to)?;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    match socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
        Err(Errno::EINPROGRESS) => {}
        Ok(()) => bail!("a TCP handshake cannot be over before it began"),
        Err(error) => return Err(error).context("connect"),
    }
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(PATIENCE).context("too long a wait")?;
    ensure!(
        poll(&mut fds, timeout)? == 1,
        "the connection is not established within {PATIENCE:?}"
    );
    let error = getsockopt(&stream, SocketError)?;
    ensure!(error == 0, "SO_ERROR is {}", Errno::from_raw(error));
    stream.set_nonblocking(false)?;
    super::patient(&stream)?;
    Ok(stream)
}

/// Connects and sends in one call: TCP Fast Open, whose SYN may carry the data.
///
/// # Errors
/// What the kernel says.
pub fn connect_with_data(to: SocketAddr, data: &[u8]) -> Result<TcpStream> {
    let socket = tcp_socket(to)?;
    let address = SockaddrStorage::from(to);
    let sent = socket::sendto(
        socket.as_raw_fd(),
        data,
        &address,
        MsgFlags::from_bits_retain(libc::MSG_FASTOPEN),
    );
    let sent = sent.context("sendto with MSG_FASTOPEN")?;
    ensure!(
        sent == data.len(),
        "only {sent} of {} bytes were taken",
        data.len()
    );
    Ok(TcpStream::from(socket))
}

/// Connects through a ring of io_uring.
///
/// # Errors
/// What the kernel says.
pub fn connect_by_ring(to: SocketAddr) -> Result<TcpStream> {
    use nix::sys::socket::SockaddrLike as _;
    let socket = tcp_socket(to)?;
    let address = SockaddrStorage::from(to);
    let mut ring = IoUring::new(2).context("no io_uring here")?;
    let entry = opcode::Connect::new(
        types::Fd(socket.as_raw_fd()),
        address.as_ptr(),
        address.len(),
    )
    .build();
    // SAFETY: the socket and the address outlive the submission, because we wait for its completion below.
    unsafe { ring.submission().push(&entry) }.context("the ring is full")?;
    ring.submit_and_wait(1).context("cannot submit")?;
    let completion = ring.completion().next().context("no completion")?;
    let result = completion.result();
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result)).context("connect by io_uring");
    }
    let stream = TcpStream::from(socket);
    super::patient(&stream)?;
    Ok(stream)
}

/// Binds a socket to an address of its own choice; the port may be in use by another connection.
///
/// # Errors
/// What the kernel says.
pub fn bind(socket: &OwnedFd, own: SocketAddr) -> io::Result<()> {
    setsockopt(socket, socket::sockopt::ReuseAddr, &true)?;
    Ok(socket::bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(own),
    )?)
}

/// Binds a socket to an interface (`SO_BINDTODEVICE`).
///
/// # Errors
/// What the kernel says.
pub fn bind_to_device(socket: &OwnedFd, interface: &str) -> Result<()> {
    Ok(setsockopt(socket, BindToDevice, &interface.into())?)
}

/// Sets a socket's mark (`SO_MARK`).
///
/// # Errors
/// What the kernel says.
pub fn set_mark(socket: &OwnedFd, mark: u32) -> Result<()> {
    Ok(setsockopt(socket, Mark, &mark)?)
}

/// Makes a connection's close send a reset instead of an orderly end.
///
/// # Errors
/// What the kernel says.
pub fn reset_on_close(stream: &TcpStream) -> Result<()> {
    Ok(setsockopt(
        stream,
        Linger,
        &libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )?)
}

/// Bytes in a socket's send queue that the peer's kernel has not acknowledged.
///
/// # Errors
/// What the kernel says.
pub fn unsent(stream: &TcpStream) -> Result<i32> {
    let mut waiting: libc::c_int = 0;
    // SAFETY: TIOCOUTQ writes one int, to a live one.
    let asked = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting) };
    Errno::result(asked).context("TIOCOUTQ")?;
    Ok(waiting)
}

/// How many keys a pinned eBPF map holds; `None` for maps that cannot be walked, such as socket storage.
///
/// # Errors
/// If the pin is gone or is no map.
pub fn map_keys(pin: &Path) -> Result<Option<usize>> {
    // linux/bpf.h, enum bpf_cmd.
    const MAP_GET_NEXT_KEY: libc::c_long = 4;
    const OBJ_GET: libc::c_long = 7;
    /// Longer than any key of ours; the kernel writes as many bytes as the map's keys have.
    const KEY_BYTES: usize = 256;

    let path = CString::new(pin.as_os_str().as_bytes()).context("a path without zero bytes")?;
    let attributes = [path.as_ptr() as u64, 0, 0, 0];
    let fd = bpf(OBJ_GET, &attributes).with_context(|| format!("no map at {}", pin.display()))?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    let map = unsafe { OwnedFd::from_raw_fd(fd) };
    let descriptor = u64::try_from(map.as_raw_fd()).context("a descriptor")?;
    let (mut key, mut next) = ([0_u8; KEY_BYTES], [0_u8; KEY_BYTES]);
    let mut count = 0;
    loop {
        let before = if count == 0 { 0 } else { key.as_ptr() as u64 };
        match bpf(
            MAP_GET_NEXT_KEY,
            &[descriptor, before, next.as_mut_ptr() as u64, 0],
        ) {
            Ok(_) => count += 1,
            Err(Errno::ENOENT) => return Ok(Some(count)),
            // The kernel's own ENOTSUPP (524) has no name in libc.
            Err(Errno::UnknownErrno | Errno::EOPNOTSUPP | Errno::EINVAL) => return Ok(None),
            Err(error) => return Err(error).context("the map cannot be walked"),
        }
        key = next;
    }
}

/// `bpf(2)` with attributes of four 64-bit words, each an integer or the address of live memory.
fn bpf(command: libc::c_long, attributes: &[u64; 4]) -> Result<i32, Errno> {
    let length = size_of::<[u64; 4]>();
    // SAFETY: the attributes are live for the call and of the given length; the commands used here write only
    // to the buffer that their third word names, which the callers keep alive.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), length) };
    Errno::result(result).map(|value| i32::try_from(value).unwrap_or(i32::MAX))
}
