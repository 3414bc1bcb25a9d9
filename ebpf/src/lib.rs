//! The map ABI: every key, value and constant that Culvert's eBPF programs share with the agent.
//!
//! Owns layout and byte order. Every type is `repr(C)` without implicit padding, because the verifier
//! refuses keys that carry uninitialised bytes and because the agent writes the same bytes through
//! `bpf(2)`. Addresses are always 16 bytes with IPv4 in its v4-mapped form, so IPv4, IPv6 and
//! IPv4-over-IPv6 sockets share one key shape: `sock_ops` reports a mapped socket as IPv6 while
//! `sk_lookup` sees its packets as IPv4.
#![no_std]

mod redirected;
mod verdict;

pub use redirected::*;
pub use verdict::*;

/// The port of the agent's HBONE listener inside a pod: an ordinary bind, as ztunnel's.
pub const HBONE_PORT: u16 = 15008;
/// The port of the agent's DNS proxy on a pod's loopback.
pub const DNS_PROXY_PORT: u16 = 15053;
/// The port DNS servers listen on (RFC 1035 §4.2).
pub const DNS_PORT: u16 = 53;

/// The bits of `SO_MARK` that belong to capture inside a pod's network namespace.
///
/// Chosen clear of the bits Kubernetes (0xc000), Cilium (0xf00), Istio (0xfff) and Tailscale
/// (0xff0000) use. Bits outside the mask stay the application's.
pub const MARK_MASK: u32 = 0x0f00_0000;
/// The value under [`MARK_MASK`] of a socket whose packets loop back to the outbound listener.
pub const MARK_OUTBOUND: u32 = 0x0c00_0000;

/// An IP address as four words in network byte order; IPv4 is `::ffff:a.b.c.d`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Words as they lie on the wire.
    pub words_be: [u32; 4],
}

/// The third word of a v4-mapped address (RFC 4291 §2.5.5.2).
const V4_PREFIX_BE: u32 = 0xffff_u32.to_be();

impl Address {
    /// The address of no one: `::`.
    pub const UNSPECIFIED: Self = Self { words_be: [0; 4] };
    /// `::ffff:127.0.0.1`.
    pub const LOOPBACK_V4: Self = Self::v4(0x7f00_0001_u32.to_be());
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self {
        words_be: [0, 0, 0, 1_u32.to_be()],
    };

    /// An IPv4 address, given as a word in network byte order.
    #[must_use]
    pub const fn v4(word_be: u32) -> Self {
        Self {
            words_be: [0, 0, V4_PREFIX_BE, word_be],
        }
    }

    /// Whether this is an IPv4 address.
    #[must_use]
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words_be;
        a == 0 && b == 0 && c == V4_PREFIX_BE
    }

    /// Whether a connection to this address never leaves the host: 127/8 or `::1`.
    #[must_use]
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.words_be;
        if self.is_v4() {
            return u32::from_be(d) >> 24 == 127;
        }
        a == 0 && b == 0 && c == 0 && d == 1_u32.to_be()
    }

    /// Whether this is `0.0.0.0` or `::`, which `connect` takes for loopback.
    #[must_use]
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let [a, b, c, d] = self.words_be;
        a == 0 && b == 0 && d == 0 && (c == 0 || c == V4_PREFIX_BE)
    }

    /// Whether this is an IPv6 link-local address (`fe80::/10`).
    #[must_use]
    #[inline(always)]
    pub const fn is_link_local_v6(&self) -> bool {
        u32::from_be(self.words_be[0]) >> 22 == 0xfe80 >> 6
    }

    /// Whether both addresses are the same.
    ///
    /// Word by word: `PartialEq` on an array becomes a call to `memcmp`, which no program can make.
    #[must_use]
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        let [a, b, c, d] = self.words_be;
        let [e, f, g, h] = other.words_be;
        a == e && b == f && c == g && d == h
    }
}

/// An enrolled pod: the value of `PODS`, keyed by network namespace cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodEntry {
    /// Bits of `POD_*`.
    pub flags: u32,
    /// Port of the outbound listener inside the pod.
    pub outbound_port: u16,
    /// Port of the plaintext inbound listener inside the pod.
    pub inbound_port: u16,
}

/// The pod's DNS queries go to the agent's DNS proxy.
pub const POD_DNS: u32 = 1;
/// Connections from outside reach the application without passing the agent.
pub const POD_INBOUND_OPEN: u32 = 1 << 1;
/// New connections of the pod leave it without passing the agent. Those that were captured before still do.
pub const POD_OUTBOUND_OPEN: u32 = 1 << 2;
/// istio-cni's rules are in the pod: see [`REDIRECTED_PORT`].
pub const POD_REDIRECTED: u32 = 1 << 3;

/// One address of an enrolled pod: the key of `LOCAL_ADDRESSES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// The address.
    pub address: Address,
}

/// A TCP connection in its opening, as its receiving side sees it: the key of `TUPLES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleKey {
    /// Cookie of the network namespace in which the SYN is received.
    pub netns_cookie: u64,
    /// The address connected to.
    pub local: Address,
    /// The address connected from.
    pub remote: Address,
    /// The port connected to.
    pub local_port: u16,
    /// The port connected from.
    pub remote_port: u16,
    /// Zero.
    pub pad: u32,
}

/// What `sk_lookup` is to do with a connection: the value of `TUPLES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleEntry {
    /// One of `TUPLE_*`.
    pub kind: u32,
    /// A port that belongs to `address`; with [`TUPLE_RELEASED`], the worker.
    pub port: u32,
    /// With [`TUPLE_LEG`], the client that the application is to see; with [`TUPLE_DIRECT`], what the client
    /// dialled; otherwise without meaning.
    pub address: Address,
    /// The connecting socket: only it withdraws its own entry.
    pub socket_cookie: u64,
    /// The network namespace in which that socket is.
    pub client_netns: u64,
}

/// An application's captured connection: the outbound listener takes it.
pub const TUPLE_OUTBOUND: u32 = 1;
/// The agent's own connection to the application.
pub const TUPLE_LEG: u32 = 2;
/// A kubelet probe.
pub const TUPLE_PROBE: u32 = 3;
/// A pod's connection from one of its addresses to another of its addresses.
pub const TUPLE_SELF: u32 = 4;
/// An application's captured connection whose far side answers: the worker in `port` takes it.
pub const TUPLE_RELEASED: u32 = 5;
/// A connection of another pod's that goes straight to the application.
pub const TUPLE_DIRECT: u32 = 6;

/// The most connections in their opening that there is room for: `TUPLES`.
pub const TUPLES_MAX: u32 = 262_144;
/// The most of them that pods' own applications can have together. The other half is left to what is opened to pods: probes, legs,
/// and connections between pods of the node.
pub const OPENINGS_MOST: u64 = TUPLES_MAX as u64 / 2;

/// The longest TCP header (RFC 9293 §3.1: the data offset is four bits, in words).
pub const TCP_HEADER_MAX: usize = 60;

/// The SYN of a captured connection, held back: a record in one of `RINGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldSyn {
    /// The connection, and its pod.
    pub key: TupleKey,
    /// The TCP header with its options, as it was sent; zeroes behind.
    pub header: [u8; TCP_HEADER_MAX],
    /// How much of it is the header.
    pub header_length: u32,
}

/// `SO_PRIORITY` of the packets by which the agent lets held connections go.
///
/// No secret: who forges it gets its own connection answered before its destination has answered.
pub const RELEASE_PRIORITY: u32 = 0x4375_6c76;
/// The most workers that connections can be held for.
pub const RINGS_MAX: u32 = 256;
/// Size of a worker's ring: room for some 2000 connections that open at once.
pub const RING_BYTES: u32 = 256 << 10;

/// Where a pod's captured connections go: the key of `ANSWERING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationKey {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// The address connected to.
    pub address: Address,
    /// The port connected to.
    pub port: u16,
    /// Zero.
    pub pad: [u16; 3],
}

/// How busily a destination answers: the value of `ANSWERING`. Times are `CLOCK_MONOTONIC`, in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationEntry {
    /// When counting began.
    pub since_ns: u64,
    /// Until when its connections are not held.
    pub relied_on_until_ns: u64,
    /// Held connections that it has answered since.
    pub answers: u32,
    /// Zero.
    pub pad: u32,
}

/// A destination is relied on after so many answers within [`ANSWERS_WITHIN_NS`].
pub const ANSWERS_OF_THE_BUSY: u32 = 64;
/// See [`ANSWERS_OF_THE_BUSY`].
pub const ANSWERS_WITHIN_NS: u64 = 1_000_000_000;
/// For how long it is relied on; then it has to answer as often again.
pub const RELIED_ON_NS: u64 = 1_000_000_000;

/// What a socket is to capture: the value of `SOCKETS`, kept in the socket itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketNote {
    /// One of `SOCKET_*`.
    pub role: u32,
    /// A port that belongs to `address`.
    pub port: u32,
    /// The client of a leg or of an accepted socket, the original resolver of a DNS socket, or the service that was
    /// dialled.
    pub address: Address,
    /// With [`SOCKET_PROBE`], the network namespace of the probed pod.
    pub netns_cookie: u64,
}

impl SocketNote {
    /// The note of a socket that has none.
    pub const PLAIN: Self = Self {
        role: SOCKET_PLAIN,
        port: 0,
        address: Address::UNSPECIFIED,
        netns_cookie: 0,
    };

    /// Whether the socket is the agent's.
    #[must_use]
    #[inline(always)]
    pub const fn is_agents(&self) -> bool {
        self.role == SOCKET_OWN || self.role == SOCKET_LEG
    }
}

/// A socket of which capture knows nothing (any more).
pub const SOCKET_PLAIN: u32 = 0;
/// A socket of the agent's, exempt from capture.
pub const SOCKET_OWN: u32 = 1;
/// A socket of the agent's that connects to the application on behalf of `address`:`port`.
pub const SOCKET_LEG: u32 = 2;
/// The application's accepted end of a leg: its peer is shown as `address`:`port`.
pub const SOCKET_ACCEPTED: u32 = 3;
/// A socket of the node's own namespace that connects to a local pod.
pub const SOCKET_PROBE: u32 = 4;
/// A UDP socket whose datagrams to `address`:`port` go to the DNS proxy.
pub const SOCKET_RESOLVER: u32 = 5;
/// A socket that dialled the service `address`:`port` and was led to one of its endpoints.
pub const SOCKET_LED: u32 = 6;

/// A listener slot: the key of `LISTENERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerKey {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// One of `LISTENER_*`.
    pub role: u32,
    /// With [`LISTENER_OUTBOUND`], the worker; otherwise zero.
    pub worker: u32,
}

/// The slot of the listener for plaintext connections from outside the pod.
pub const LISTENER_INBOUND: u32 = 0;
/// The slot of the listener for the application's own connections.
pub const LISTENER_OUTBOUND: u32 = 1;

/// A DNS client: the key of `RESOLVERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolverKey {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// Source port of the datagrams as the DNS proxy sees them.
    pub source_port: u16,
    /// 4 or 6: the family in which the DNS proxy receives them.
    pub ip_version: u16,
    /// Zero.
    pub pad: u32,
}

/// The resolver a DNS client meant: the value of `RESOLVERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolverEntry {
    /// The resolver's address.
    pub address: Address,
    /// The resolver's port.
    pub port: u32,
    /// Zero.
    pub pad: u32,
}

/// What the agent tells all programs: the single value of `CONTROL`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// `CLOCK_MONOTONIC` in nanoseconds when the agent was last known to be well.
    pub beat_ns: u64,
    /// How long after `beat_ns` connections are still taken from applications.
    pub lease_ns: u64,
    /// Cookie of the agent's own network namespace, the node's.
    pub node_netns_cookie: u64,
    /// Id of the cgroup under which all pods run, or 0 if the node has none.
    pub pods_cgroup: u64,
    /// Depth of that cgroup below the root.
    pub pods_cgroup_level: u32,
    /// How many workers have a ring; zero if captured connections are answered at once.
    pub rings: u32,
    /// Until when (`CLOCK_MONOTONIC`, nanoseconds) connections that no agent takes wait for the next one: an agent that
    /// ends in good order is followed by another. Long ago if none is expected.
    pub awaited_until_ns: u64,
}

/// Name and size of every type, for the agent to compare with maps that an older agent left pinned.
pub const MAPS: [(&str, usize, usize); 13] = [
    ("PODS", size_of::<u64>(), size_of::<PodEntry>()),
    (
        "LOCAL_ADDRESSES",
        size_of::<LocalAddress>(),
        size_of::<u32>(),
    ),
    ("POD_BY_ADDRESS", size_of::<Address>(), size_of::<u64>()),
    ("TUPLES", size_of::<TupleKey>(), size_of::<TupleEntry>()),
    ("OPENINGS", size_of::<u64>(), size_of::<u64>()),
    ("OPENINGS_ALL", size_of::<u32>(), size_of::<u64>()),
    ("REFUSALS", size_of::<TupleKey>(), size_of::<u64>()),
    ("SOCKETS", size_of::<u32>(), size_of::<SocketNote>()),
    ("LISTENERS", size_of::<ListenerKey>(), size_of::<u64>()),
    (
        "RESOLVERS",
        size_of::<ResolverKey>(),
        size_of::<ResolverEntry>(),
    ),
    ("CONTROL", size_of::<u32>(), size_of::<Control>()),
    ("RINGS", size_of::<u32>(), size_of::<u32>()),
    (
        "ANSWERING",
        size_of::<DestinationKey>(),
        size_of::<DestinationEntry>(),
    ),
];

const _: () = {
    assert!(size_of::<PodEntry>() == 8);
    assert!(size_of::<LocalAddress>() == 24);
    assert!(size_of::<TupleKey>() == 48);
    assert!(size_of::<TupleEntry>() == 40);
    assert!(size_of::<SocketNote>() == 32);
    assert!(size_of::<ListenerKey>() == 16);
    assert!(size_of::<ResolverKey>() == 16);
    assert!(size_of::<ResolverEntry>() == 24);
    assert!(size_of::<Control>() == 48);
    assert!(size_of::<HeldSyn>() == 112);
    assert!(size_of::<DestinationKey>() == 32);
    assert!(size_of::<DestinationEntry>() == 24);
};

#[cfg(feature = "user")]
mod user {
    use core::net::{IpAddr, Ipv6Addr, SocketAddr};

    use super::{
        Address, Control, DestinationEntry, DestinationKey, HeldSyn, ListenerKey, LocalAddress,
        PodEntry, ResolverEntry, ResolverKey, SocketNote, TupleEntry, TupleKey,
    };

    impl From<IpAddr> for Address {
        fn from(address: IpAddr) -> Self {
            let v6 = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            Self {
                words_be: word_array(v6.octets()),
            }
        }
    }

    impl From<Address> for IpAddr {
        /// The address in the family it belongs to: a v4-mapped one is IPv4.
        fn from(address: Address) -> Self {
            let [a, b, c, d] = address.words_be.map(u32::to_ne_bytes);
            let mut octets = [0; 16];
            for (to, from) in octets.iter_mut().zip([a, b, c, d].as_flattened()) {
                *to = *from;
            }
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
    }

    impl HeldSyn {
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

        /// Where the connection comes from.
        #[must_use]
        pub fn source(&self) -> SocketAddr {
            SocketAddr::new(self.key.remote.into(), self.key.remote_port)
        }

        /// Where it goes.
        #[must_use]
        pub fn destination(&self) -> SocketAddr {
            SocketAddr::new(self.key.local.into(), self.key.local_port)
        }

        /// The TCP header with its options.
        #[must_use]
        pub fn tcp_header(&self) -> &[u8] {
            let length = usize::try_from(self.header_length).unwrap_or(usize::MAX);
            self.header.get(..length).unwrap_or(&self.header)
        }
    }

    fn word_array(octets: [u8; 16]) -> [u32; 4] {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(octets.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        words
    }

    // SAFETY (all of them): `repr(C)` or `repr(transparent)` structs of integers only, whose size the
    // assertions above fix to the sum of their fields: no padding, and every bit pattern is a value.
    macro_rules! pod {
        ($($name:ident),+ $(,)?) => {$(
            // SAFETY: see above the macro.
            unsafe impl aya::Pod for $name {}
        )+};
    }
    pod!(
        Address,
        Control,
        DestinationEntry,
        DestinationKey,
        HeldSyn,
        ListenerKey,
        LocalAddress,
        PodEntry,
        ResolverEntry,
        ResolverKey,
        SocketNote,
        TupleEntry,
        TupleKey,
    );
}
