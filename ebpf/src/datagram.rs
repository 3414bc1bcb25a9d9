//! UDP port 53: `connect`, `sendmsg` and `recvmsg` of DNS clients go to the agent's DNS proxy.
//!
//! Unlike TCP the destination is rewritten: a mark set by the `sendmsg` hook comes too late for its own
//! datagram. Answers get the resolver's address back, because resolvers check it. A socket remembers
//! one resolver, the last it sent to, which is enough for clients that ask several at once and take
//! whichever answers. DNS over TCP is captured like any TCP connection.

use culvert_ebpf::{
    Address, DNS_PORT, DNS_PROXY_PORT, POD_DNS, PodEntry, ResolverEntry, ResolverKey,
    SOCKET_RESOLVER, SocketNote,
};

use crate::{
    PASS,
    connect::{self, Family},
    context::{SockAddr, Socket, random},
    maps,
};

const IPPROTO_UDP: u32 = 17;

/// The range in which ports for unbound sockets are chosen: IANA's dynamic ports.
const FIRST_DYNAMIC_PORT: u16 = 49152;
/// How many ports are tried before the proxy is left without knowledge of the resolver.
const PORT_ATTEMPTS: u32 = 8;

/// Decides about the `connect` of a datagram socket in an enrolled pod.
#[inline(always)]
pub fn connect(
    context: &SockAddr,
    family: Family,
    netns_cookie: u64,
    pod: &PodEntry,
    destination: &Address,
) -> i32 {
    let Some(socket) = context.socket() else {
        return PASS;
    };
    let note = socket.note();
    if is_query(context, &note, netns_cookie, pod, destination) {
        let port = bound_port(context, family, &socket);
        redirect(context, family, &socket, netns_cookie, destination, port);
    } else if note.role == SOCKET_RESOLVER {
        socket.set_note(&SocketNote::PLAIN);
    }
    PASS
}

/// Decides about one datagram with a destination of its own.
#[inline(always)]
pub fn send(context: &SockAddr, family: Family) -> i32 {
    let netns_cookie = context.netns_cookie();
    let Some(pod) = maps::pod(netns_cookie) else {
        return PASS;
    };
    let Some(socket) = context.socket() else {
        return PASS;
    };
    let destination = family.address(context);
    if is_query(context, &socket.note(), netns_cookie, &pod, &destination) {
        redirect(
            context,
            family,
            &socket,
            netns_cookie,
            &destination,
            socket.source_port(),
        );
    }
    PASS
}

/// Gives an answer of the DNS proxy the address of the resolver that was asked.
#[inline(always)]
pub fn receive(context: &SockAddr, family: Family) {
    if context.port() != DNS_PROXY_PORT {
        return;
    }
    let Some(socket) = context.socket() else {
        return;
    };
    let note = socket.note();
    if note.role == SOCKET_RESOLVER && family.address(context).is_loopback() {
        family.replace(context, &note.address, note.port as u16);
    }
}

/// Whether the destination is a resolver outside the pod and the sender an application.
#[inline(always)]
fn is_query(
    context: &SockAddr,
    note: &SocketNote,
    netns_cookie: u64,
    pod: &PodEntry,
    destination: &Address,
) -> bool {
    pod.flags & POD_DNS != 0
        && context.protocol() == IPPROTO_UDP
        && context.port() == DNS_PORT
        && !note.is_agents()
        && !destination.is_loopback()
        && !destination.is_unspecified()
        && !maps::is_own_address(netns_cookie, destination)
        // Nobody sends a query again as TCP does a SYN: while an agent is awaited, the resolver itself answers.
        && (!connect::agent_is_awaited() || context.agent_listens(pod.outbound_port))
}

#[inline(always)]
fn redirect(
    context: &SockAddr,
    family: Family,
    socket: &Socket<'_>,
    netns_cookie: u64,
    resolver: &Address,
    source_port: u16,
) {
    let note = SocketNote {
        role: SOCKET_RESOLVER,
        port: u32::from(DNS_PORT),
        address: *resolver,
        netns_cookie,
    };
    if !socket.set_note(&note) {
        return;
    }
    let is_v4 = resolver.is_v4();
    if source_port != 0 {
        let ip_version = if is_v4 { 4 } else { 6 };
        let key = ResolverKey {
            netns_cookie,
            source_port,
            ip_version,
            pad: 0,
        };
        let entry = ResolverEntry {
            address: *resolver,
            port: u32::from(DNS_PORT),
            pad: 0,
        };
        let _proxy_uses_its_default = maps::RESOLVERS.insert(&key, &entry, 0);
    }
    let proxy = if is_v4 {
        Address::LOOPBACK_V4
    } else {
        Address::LOOPBACK_V6
    };
    family.replace(context, &proxy, DNS_PROXY_PORT);
}

/// The port the socket will send from. `connect` chooses one only after this hook, too late to tell
/// the proxy, so an unbound socket is bound here; 0 if that fails.
#[inline(always)]
fn bound_port(context: &SockAddr, family: Family, socket: &Socket<'_>) -> u16 {
    let port = socket.source_port();
    if port != 0 {
        return port;
    }
    for _ in 0..PORT_ATTEMPTS {
        let port = FIRST_DYNAMIC_PORT | (random() as u16);
        let bound = match family {
            Family::V4 => context.bind4(port),
            Family::V6 => context.bind6(port),
        };
        if bound {
            return port;
        }
    }
    0
}
