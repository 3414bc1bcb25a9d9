//! The map ABI of the kernel-direct path: connections between two pods of a node that the kernel carries by itself.

use crate::{Address, DestinationKey};

/// What becomes of a pod's connections to a destination: the value of `VERDICTS`, keyed by [`DestinationKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictEntry {
    /// One of `VERDICT_*`.
    pub action: u32,
    /// Zero.
    pub pad: u32,
    /// With [`VERDICT_ALLOW`], the network namespace of the pod that has the address: another that takes the
    /// address over is not meant.
    pub netns_cookie: u64,
}

/// The agent decides each time: the same as no entry.
pub const VERDICT_NONE: u32 = 0;
/// Straight to the pod that has the address.
pub const VERDICT_ALLOW: u32 = 1;
/// Refused.
pub const VERDICT_DENY: u32 = 2;
/// To one of the endpoints in `SPREADS`, or to the agent.
pub const VERDICT_SPREAD: u32 = 3;

/// The most endpoints of a service that the kernel chooses among.
pub const SPREAD_MAX: usize = 8;

/// An endpoint of a service in the same node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: Address,
    /// Its port.
    pub port: u32,
    /// It is chosen for numbers below this and not below that of the one before.
    pub below: u32,
}

/// How a pod's connections to a service are spread: the value of `SPREADS`, keyed by [`DestinationKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpreadEntry {
    /// The weights of all endpoints together: a number below it is drawn for each connection. What is not below any
    /// endpoint's is the agent's.
    pub total: u32,
    /// How many endpoints there are.
    pub count: u32,
    /// The endpoints, and zeroes behind them.
    pub endpoints: [Endpoint; SPREAD_MAX],
}

/// One end of a connection that the kernel carries by itself: the value of `FLOWS`, keyed by the cookie of the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    /// The network namespace of the pod that connected.
    pub client_netns: u64,
    /// That of the pod that it connected to.
    pub server_netns: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds when this end began.
    pub since_ns: u64,
    /// The address connected from.
    pub client: Address,
    /// The address connected to.
    pub server: Address,
    /// The address that the application dialled: a service's, or the same as `server`.
    pub dialled: Address,
    /// A port that belongs to `client`.
    pub client_port: u16,
    /// A port that belongs to `server`.
    pub server_port: u16,
    /// A port that belongs to `dialled`.
    pub dialled_port: u16,
    /// One of `FLOW_*`.
    pub end: u16,
}

/// The end that connected.
pub const FLOW_CLIENT: u16 = 1;
/// The end that accepted.
pub const FLOW_SERVER: u16 = 2;
/// Neither: the connection was refused before it began.
pub const FLOW_REFUSED: u16 = 3;

impl FlowEntry {
    /// The network namespace of this end.
    #[must_use]
    pub const fn own_netns(&self) -> u64 {
        if self.end == FLOW_CLIENT {
            self.client_netns
        } else {
            self.server_netns
        }
    }
}

/// What happened on the direct path: a record in `FLOW_EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// The connection; with [`EVENT_DENIED`], only who dialled what.
    pub flow: FlowEntry,
    /// The cookie of the socket.
    pub socket_cookie: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub at_ns: u64,
    /// Bytes that this end's application sent.
    pub sent: u64,
    /// Bytes that arrived for it.
    pub received: u64,
    /// One of `EVENT_*`.
    pub kind: u32,
    /// The state of TCP that was left (`include/net/tcp_states.h`).
    pub old_state: u16,
    /// `errno` that ended it, or 0.
    pub error: u16,
}

/// One end of a connection is over.
pub const EVENT_ENDED: u32 = 1;
/// A verdict refused a connection.
pub const EVENT_DENIED: u32 = 2;

/// Size of the ring of events: room for some 4000 of them. The agent maps it twice, which counts as its memory.
pub const FLOW_EVENTS_BYTES: u32 = 512 << 10;

/// Whose connections `LOST_ENDS` counts: its key.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LostKey {
    /// As in [`FlowEntry`].
    pub client_netns: u64,
    /// As in [`FlowEntry`].
    pub server_netns: u64,
    /// As in [`FlowEntry`].
    pub dialled: Address,
    /// As in [`FlowEntry`].
    pub dialled_port: u16,
    /// As in [`FlowEntry`].
    pub end: u16,
    /// Zero.
    pub pad: u32,
}

impl LostKey {
    /// The network namespace of the end that is counted: only its sockets add to the entry.
    #[must_use]
    pub const fn own_netns(&self) -> u64 {
        if self.end == FLOW_SERVER {
            self.server_netns
        } else {
            self.client_netns
        }
    }
}

/// Connections of which no event could be told because the ring was full: the value of `LOST_ENDS`. It only grows, until
/// the agent removes it some time after its pod.
/// Refused ones are told while half of the ring is free: whoever is refused thousands of times a second must not keep
/// others' accounts from being told.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LostEntry {
    /// How many ended.
    pub ended: u64,
    /// Bytes that this end's applications sent.
    pub sent: u64,
    /// Bytes that arrived for them.
    pub received: u64,
}

/// As [`crate::MAPS`], of the direct path.
pub const DIRECT_MAPS: [(&str, usize, usize); 5] = [
    (
        "VERDICTS",
        size_of::<DestinationKey>(),
        size_of::<VerdictEntry>(),
    ),
    (
        "SPREADS",
        size_of::<DestinationKey>(),
        size_of::<SpreadEntry>(),
    ),
    ("FLOWS", size_of::<u64>(), size_of::<FlowEntry>()),
    ("FLOW_EVENTS", 0, 0),
    ("LOST_ENDS", size_of::<LostKey>(), size_of::<LostEntry>()),
];

const _: () = {
    assert!(size_of::<VerdictEntry>() == 16);
    assert!(size_of::<Endpoint>() == 24);
    assert!(size_of::<SpreadEntry>() == 200);
    assert!(size_of::<FlowEntry>() == 80);
    assert!(size_of::<FlowEvent>() == 120);
    assert!(size_of::<LostKey>() == 40);
    assert!(size_of::<LostEntry>() == 24);
};

#[cfg(feature = "user")]
mod user {
    use core::net::SocketAddr;

    use super::{Endpoint, FlowEntry, FlowEvent, LostEntry, LostKey, SpreadEntry, VerdictEntry};

    impl FlowEntry {
        /// Where the connection comes from.
        #[must_use]
        pub fn client(&self) -> SocketAddr {
            SocketAddr::new(self.client.into(), self.client_port)
        }

        /// The application's address.
        #[must_use]
        pub fn server(&self) -> SocketAddr {
            SocketAddr::new(self.server.into(), self.server_port)
        }

        /// The address that was dialled.
        #[must_use]
        pub fn dialled(&self) -> SocketAddr {
            SocketAddr::new(self.dialled.into(), self.dialled_port)
        }
    }

    impl FlowEvent {
        /// The record in a ring; `None` if its size is not a record's.
        #[must_use]
        pub fn read(bytes: &[u8]) -> Option<Self> {
            if bytes.len() != size_of::<Self>() {
                return None;
            }
            // SAFETY: as many bytes as the type has, and every bit pattern is a value of it; the read
            // does not ask for alignment.
            Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
        }
    }

    // SAFETY (all of them): `repr(C)` structs of integers only, whose size the assertions above fix to the sum of
    // their fields: no padding, and every bit pattern is a value.
    macro_rules! pod {
        ($($name:ident),+ $(,)?) => {$(
            // SAFETY: see above the macro.
            unsafe impl aya::Pod for $name {}
        )+};
    }
    pod!(
        Endpoint,
        FlowEntry,
        FlowEvent,
        LostEntry,
        LostKey,
        SpreadEntry,
        VerdictEntry,
    );
}
