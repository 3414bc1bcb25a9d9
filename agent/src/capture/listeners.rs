//! The agent's listening sockets inside a pod.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    os::fd::{AsFd, OwnedFd},
};

use culvert_ebpf::{DNS_PROXY_PORT, HBONE_PORT};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen,
        setsockopt, socket,
        sockopt::{Ipv6V6Only, ReuseAddr, ReusePort},
    },
};

use super::sys;

/// Where the outbound listener is, unless the application has the port.
const OUTBOUND_PORT: u16 = 15001;
/// Where the plaintext inbound listener is, unless the application has the port.
const INBOUND_PORT: u16 = 15006;
/// Connections a listener holds until its worker takes them; the kernel caps it at `somaxconn`.
const BACKLOG: i32 = 4096;

/// The listeners of one worker in one pod. All workers' listeners for a purpose share one port, and the
/// kernel spreads connections over them.
#[derive(Debug)]
pub(crate) struct WorkerListeners {
    /// Takes the application's connections; the local address of an accepted socket is the original
    /// destination.
    pub(crate) outbound: OwnedFd,
    /// Takes plaintext connections to the application; local address as above.
    pub(crate) inbound: OwnedFd,
    /// Takes HBONE on port 15008.
    pub(crate) hbone: OwnedFd,
}

/// The DNS proxy's sockets in one pod, on loopback port 15053. A family the pod lacks is `None`.
#[derive(Debug)]
pub(crate) struct DnsSockets {
    /// Queries over UDP.
    pub(crate) udp: Vec<OwnedFd>,
    /// Queries over TCP, from applications that are pointed at the proxy.
    pub(crate) tcp: Vec<OwnedFd>,
}

/// All listeners of a pod, and the ports they got.
#[derive(Debug)]
pub(crate) struct PodListeners {
    pub(crate) workers: Vec<WorkerListeners>,
    pub(crate) outbound_port: u16,
    pub(crate) inbound_port: u16,
}

/// Opens a pod's listeners. Runs in the pod's network namespace.
pub(crate) fn open(workers: NonZeroUsize) -> io::Result<PodListeners> {
    let (outbound, outbound_port) = group(workers, OUTBOUND_PORT, Transparent::Yes)?;
    let (inbound, inbound_port) = group(workers, INBOUND_PORT, Transparent::No)?;
    let hbone = exact_group(workers, HBONE_PORT, Transparent::No)?;
    let workers = outbound.into_iter().zip(inbound).zip(hbone);
    let workers = workers
        .map(|((outbound, inbound), hbone)| WorkerListeners {
            outbound,
            inbound,
            hbone,
        })
        .collect();
    Ok(PodListeners {
        workers,
        outbound_port,
        inbound_port,
    })
}

/// Opens a pod's DNS sockets. Runs in the pod's network namespace.
pub(crate) fn open_dns() -> io::Result<DnsSockets> {
    let mut sockets = DnsSockets {
        udp: Vec::new(),
        tcp: Vec::new(),
    };
    for address in [
        SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PROXY_PORT)),
        (Ipv6Addr::LOCALHOST, DNS_PROXY_PORT).into(),
    ] {
        match bound(SockType::Datagram, address) {
            Ok(udp) => sockets.udp.push(udp),
            Err(error) if address.is_ipv6() && lacks_v6(&error) => continue,
            Err(error) => return Err(error),
        }
        let tcp = bound(SockType::Stream, address)?;
        listen(&tcp, Backlog::new(BACKLOG)?)?;
        sockets.tcp.push(tcp);
    }
    Ok(sockets)
}

/// Whether a listener accepts packets to addresses that are not the pod's: an application's connection
/// is to such an address, and without the option IPv4 cannot route the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transparent {
    Yes,
    No,
}

/// As [`exact_group`], on another port if the application has the usual one.
fn group(
    size: NonZeroUsize,
    usual_port: u16,
    transparent: Transparent,
) -> io::Result<(Vec<OwnedFd>, u16)> {
    let members = match exact_group(size, usual_port, transparent) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let first = listener(0, transparent)?;
            let port = local_port(&first)?;
            let mut members = vec![first];
            for _ in 1..size.get() {
                members.push(listener(port, transparent)?);
            }
            members
        }
        other => other?,
    };
    let port = members.first().map_or(Ok(0), local_port)?;
    Ok((members, port))
}

/// Listeners that share one port.
fn exact_group(
    size: NonZeroUsize,
    port: u16,
    transparent: Transparent,
) -> io::Result<Vec<OwnedFd>> {
    (0..size.get())
        .map(|_| listener(port, transparent))
        .collect()
}

/// One listener for both families, or for IPv4 where the kernel has no IPv6.
fn listener(port: u16, transparent: Transparent) -> io::Result<OwnedFd> {
    let (socket, any) = match stream(AddressFamily::Inet6) {
        Ok(socket) => {
            setsockopt(&socket, Ipv6V6Only, &false)?;
            (socket, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        }
        Err(Errno::EAFNOSUPPORT) => (
            stream(AddressFamily::Inet)?,
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        ),
        Err(error) => return Err(error.into()),
    };
    // Accepted sockets inherit it, and hold the application's port: without it the application could
    // not bind the port again while the agent has a connection.
    setsockopt(&socket, ReuseAddr, &true)?;
    setsockopt(&socket, ReusePort, &true)?;
    if transparent == Transparent::Yes {
        sys::set_option(socket.as_fd(), libc::SOL_IP, libc::IP_TRANSPARENT, 1)?;
        if any.is_ipv6() {
            sys::set_option(socket.as_fd(), libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1)?;
        }
    }
    bind_to(&socket, any)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}

fn stream(family: AddressFamily) -> nix::Result<OwnedFd> {
    socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )
}

fn bound(kind: SockType, address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, kind, flags, None)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    setsockopt(&socket, ReusePort, &true)?;
    bind_to(&socket, address)?;
    Ok(socket)
}

fn bind_to(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    Ok(bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?)
}

fn local_port(socket: &OwnedFd) -> io::Result<u16> {
    use std::os::fd::AsRawFd;
    let name: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    let v6 = name
        .as_sockaddr_in6()
        .map(nix::sys::socket::SockaddrIn6::port);
    let v4 = name
        .as_sockaddr_in()
        .map(nix::sys::socket::SockaddrIn::port);
    v6.or(v4)
        .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
}

/// Whether an error says that the pod has no IPv6 loopback.
fn lacks_v6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}
