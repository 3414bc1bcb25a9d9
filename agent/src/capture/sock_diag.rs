//! Ending applications' connections and asking for their bytes, through `NETLINK_SOCK_DIAG`.
//!
//! A captured socket keeps its mark. When its pod is released the route goes, and the socket's next
//! segments, with an application's plaintext in them, would leave the pod for the original destination.
//! So these sockets end before the route does.

use std::{collections::HashMap, io, net::IpAddr};

use culvert_ebpf::{FlowEntry, MARK_MASK, MARK_OUTBOUND};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` (`include/uapi/linux/sock_diag.h`).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `INET_DIAG_MARK`, present in answers to whoever has `CAP_NET_ADMIN`.
const INET_DIAG_MARK: u16 = 15;
/// `INET_DIAG_INFO`: a `struct tcp_info`, for whoever asks for it.
const INET_DIAG_INFO: u16 = 2;
/// Message types and flags of `netlink(7)`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// Sizes of `struct nlmsghdr`, `struct inet_diag_sockid` and `struct inet_diag_msg`.
const HEADER: usize = 16;
const SOCKET_ID: usize = 48;
const DIAG_MESSAGE: usize = 72;
/// The room for one datagram of a dump: the kernel never sends more than 32 KiB at once.
const DUMP_BYTES: usize = 32 * 1024;

/// `struct inet_diag_sockid`: addresses, ports, device and cookie, as the kernel wrote them.
type SocketId = [u8; SOCKET_ID];

/// No address, no port, no device, and the cookie that means "any" (`INET_DIAG_NOCOOKIE`).
const NO_SOCKET: SocketId = {
    let mut id = [0; SOCKET_ID];
    let mut byte = SOCKET_ID - 8;
    while byte < SOCKET_ID {
        id[byte] = u8::MAX;
        byte += 1;
    }
    id
};

/// Ends all captured TCP connections of the calling thread's network namespace, at the application's
/// end; returns how many. A kernel without `SOCK_DESTROY` ends none.
pub(crate) fn destroy_captured() -> io::Result<usize> {
    let socket = open()?;
    let mut ended = 0;
    for family in [AF_INET, AF_INET6] {
        for (id, mark) in dump(&socket, family)? {
            if mark & MARK_MASK != MARK_OUTBOUND {
                continue;
            }
            match destroy(&socket, family, &id) {
                Ok(()) => ended += 1,
                // Ended by itself meanwhile, or the kernel cannot end sockets of this kind.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(ended)
}

/// Whether the kernel can end sockets, found out by asking for one that cannot exist.
pub(crate) fn can_destroy() -> io::Result<()> {
    match destroy(&open()?, AF_INET, &NO_SOCKET) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        answer => answer,
    }
}

/// Ends connections at the end that is in the calling thread's network namespace; returns how many.
pub(crate) fn destroy_flows<'a>(
    flows: impl IntoIterator<Item = &'a (u64, FlowEntry)>,
) -> io::Result<usize> {
    let socket = open()?;
    let mut ended = 0;
    for (cookie, flow) in flows {
        let (family, id) = identify(*cookie, flow);
        match destroy(&socket, family, &id) {
            Ok(()) => ended += 1,
            // Ended by itself meanwhile, or the kernel cannot end sockets of this kind.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
            }
            Err(error) => return Err(error),
        }
    }
    Ok(ended)
}

/// The family in which the kernel finds the connection, and its id. An IPv4 connection of an IPv6 socket is found
/// as IPv4.
fn identify(cookie: u64, flow: &FlowEntry) -> (u8, SocketId) {
    let (client, server) = (flow.client(), flow.server());
    let (own, other) = if flow.end == culvert_ebpf::FLOW_CLIENT {
        (client, server)
    } else {
        (server, client)
    };
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&v4.octets());
            octets
        }
        IpAddr::V6(v6) => v6.octets(),
    };
    let family = if own.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut id = [0; SOCKET_ID];
    id[..2].copy_from_slice(&own.port().to_be_bytes());
    id[2..4].copy_from_slice(&other.port().to_be_bytes());
    id[4..20].copy_from_slice(&address(own.ip()));
    id[20..36].copy_from_slice(&address(other.ip()));
    // Two words, the lower one first.
    let [low, high] = [cookie & u64::from(u32::MAX), cookie >> 32];
    let word = |half: u64| u32::try_from(half).unwrap_or_default().to_ne_bytes();
    id[40..44].copy_from_slice(&word(low));
    id[44..48].copy_from_slice(&word(high));
    (family, id)
}

/// What a connection has carried so far, as its application counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// What the TCP connections of the calling thread's network namespace have carried, by the cookies of their sockets.
pub(crate) fn carried() -> io::Result<HashMap<u64, Carried>> {
    let socket = open()?;
    let mut all = HashMap::new();
    for family in [AF_INET, AF_INET6] {
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut asked = request(SOCK_DIAG_BY_FAMILY, flags, family, &NO_SOCKET);
        // `idiag_ext`: a bit for each attribute.
        if let Some(extensions) = asked.get_mut(HEADER + 2) {
            *extensions = 1 << (INET_DIAG_INFO - 1);
        }
        socket.send(&asked, 0)?;
        receive(&socket, |message| all.extend(parse_carried(message)))?;
    }
    Ok(all)
}

/// The cookie of a socket, and what it has carried, in a `struct inet_diag_msg` with its attributes.
fn parse_carried(message: &[u8]) -> Option<(u64, Carried)> {
    /// States of TCP in which a FIN has been received: `TCP_TIME_WAIT`, `TCP_CLOSE_WAIT`, `TCP_LAST_ACK`,
    /// `TCP_CLOSING` (`include/net/tcp_states.h`).
    const ENDED_BY_PEER: [u8; 4] = [6, 8, 9, 11];
    /// Where `struct tcp_info` has its fields (`include/uapi/linux/tcp.h`).
    const BYTES_RECEIVED: usize = 128;
    const BYTES_SENT: usize = 200;
    const BYTES_RETRANSMITTED: usize = 208;
    let state = *message.get(1)?;
    let cookie = number(message, 4 + 40)?;
    let info = attribute(message, INET_DIAG_INFO)?;
    let fin = u64::from(ENDED_BY_PEER.contains(&state));
    let carried = Carried {
        sent: number(info, BYTES_SENT)?.saturating_sub(number(info, BYTES_RETRANSMITTED)?),
        received: number(info, BYTES_RECEIVED)?.saturating_sub(fin),
    };
    Some((cookie, carried))
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn destroy(socket: &Socket, family: u8, id: &SocketId) -> io::Result<()> {
    socket.send(
        &request(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, family, id),
        0,
    )?;
    receive(socket, |_| {})
}

/// All TCP sockets of a family, with their marks.
fn dump(socket: &Socket, family: u8) -> io::Result<Vec<(SocketId, u32)>> {
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    socket.send(&request(SOCK_DIAG_BY_FAMILY, flags, family, &NO_SOCKET), 0)?;
    let mut sockets = Vec::new();
    receive(socket, |message| sockets.extend(parse(message)))?;
    Ok(sockets)
}

/// `struct inet_diag_req_v2` for TCP sockets in any state.
fn request(kind: u16, flags: u16, family: u8, id: &SocketId) -> Vec<u8> {
    let mut payload = vec![family, IPPROTO_TCP, 0, 0];
    payload.extend(u32::MAX.to_ne_bytes());
    payload.extend(id);
    let length = u32::try_from(HEADER + payload.len()).unwrap_or_default();
    let mut message = Vec::from(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port: this socket asks one thing at a time.
    message.extend([0; 8]);
    message.extend(payload);
    message
}

/// Reads the answer to the last request and hands over the payload of each message that is neither its
/// end nor an error.
fn receive(socket: &Socket, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(DUMP_BYTES);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
            let [l0, l1, l2, l3, k0, k1, ..] = *header;
            let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            let payload = rest.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
            match u16::from_ne_bytes([k0, k1]) {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    // `struct nlmsgerr`: a negative errno, or 0 for an acknowledgement.
                    let code = payload.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
                    return match i32::from_ne_bytes(*code) {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                _ => each(payload),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The id and the mark in a `struct inet_diag_msg` with its attributes.
fn parse(message: &[u8]) -> Option<(SocketId, u32)> {
    let id = *message.get(4..)?.first_chunk::<SOCKET_ID>()?;
    let mark = attribute(message, INET_DIAG_MARK)?.first_chunk()?;
    Some((id, u32::from_ne_bytes(*mark)))
}

/// The payload of an attribute.
fn attribute(message: &[u8], kind: u16) -> Option<&[u8]> {
    let mut attributes = message.get(DIAG_MESSAGE..)?;
    loop {
        let [l0, l1, k0, k1] = *attributes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if u16::from_ne_bytes([k0, k1]) == kind {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as the kernel sends it: id of ones, an attribute of five bytes, the mark.
    fn message() -> Vec<u8> {
        let mut message = vec![0; 4];
        message.extend([1; SOCKET_ID]);
        message.resize(DIAG_MESSAGE, 0);
        message.extend([5, 0, 8, 0, 9, 0, 0, 0]);
        message.extend([8, 0, 15, 0]);
        message.extend(0x1234_u32.to_ne_bytes());
        message
    }

    #[test]
    fn mark_is_found_behind_other_attributes() {
        assert_eq!(parse(&message()), Some(([1; SOCKET_ID], 0x1234)));
    }

    #[test]
    fn truncated_message_is_no_socket() {
        let message = message();
        for length in 0..message.len() {
            assert_eq!(parse(&message[..length]), None, "{length}");
        }
    }

    #[test]
    fn attribute_without_length_does_not_loop() {
        let mut message = vec![0; DIAG_MESSAGE];
        message.extend([0; 16]);
        assert_eq!(parse(&message), None);
    }
}
