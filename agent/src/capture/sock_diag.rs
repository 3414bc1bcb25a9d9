//! Ending applications' captured connections, through `NETLINK_SOCK_DIAG`.
//!
//! A captured socket keeps its mark. When its pod is released the route goes, and the socket's next
//! segments, with an application's plaintext in them, would leave the pod for the original destination.
//! So these sockets end before the route does.

use std::io;

use culvert_ebpf::{MARK_MASK, MARK_OUTBOUND};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` (`include/uapi/linux/sock_diag.h`).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `INET_DIAG_MARK`, present in answers to whoever has `CAP_NET_ADMIN`.
const INET_DIAG_MARK: u16 = 15;
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
    let mut attributes = message.get(DIAG_MESSAGE..)?;
    loop {
        let [l0, l1, k0, k1] = *attributes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if u16::from_ne_bytes([k0, k1]) == INET_DIAG_MARK {
            let mark = attributes.get(4..)?.first_chunk()?;
            return Some((id, u32::from_ne_bytes(*mark)));
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
