//! Hears that something has changed in a pod's network namespace, of what [`Routing`](super::routing::Routing) tells.

use std::io;

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

/// The multicast groups of rtnetlink in which such changes are told (linux/rtnetlink.h): links, addresses, routes and
/// rules of both families.
const GROUPS: [u32; 7] = [
    1,  // RTNLGRP_LINK
    5,  // RTNLGRP_IPV4_IFADDR
    7,  // RTNLGRP_IPV4_ROUTE
    8,  // RTNLGRP_IPV4_RULE
    9,  // RTNLGRP_IPV6_IFADDR
    11, // RTNLGRP_IPV6_ROUTE
    19, // RTNLGRP_IPV6_RULE
];

/// A subscription in one network namespace.
#[derive(Debug)]
pub(super) struct Changes {
    socket: Socket,
}

impl Changes {
    /// Subscribes in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        for group in GROUPS {
            match socket.add_membership(group) {
                // A kernel without IPv6 has not all groups.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                joined => joined?,
            }
        }
        Ok(Self { socket })
    }

    /// Whether something has changed since this was asked last. Does not wait.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub(super) fn any(&mut self) -> io::Result<bool> {
        let mut any = false;
        // What has changed is looked up, not read here: one byte takes a message off the socket.
        let mut told = [0_u8; 1];
        loop {
            match self.socket.recv(&mut &mut told[..], 0) {
                Ok(_) => any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // More than the socket holds.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(error) => return Err(error),
            }
        }
    }
}
