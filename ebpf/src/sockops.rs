//! `sock_ops`: publishes connections in their opening and withdraws them.
//!
//! `TCP_CONNECT_CB` runs after the local port is chosen and before the SYN leaves, so `sk_lookup`
//! always finds what is published here. The entry is withdrawn when the accepting side completes the
//! handshake, not when the connecting side does: with SYN cookies the final ACK is looked up once more.

use culvert_ebpf::{
    MARK_MASK, MARK_OUTBOUND, POD_OUTBOUND_OPEN, POD_REDIRECTED, SOCKET_ACCEPTED, SOCKET_LEG,
    SOCKET_OWN, SOCKET_PROBE, SocketNote, TUPLE_DIRECT, TUPLE_LEG, TUPLE_OUTBOUND, TUPLE_PROBE,
    TUPLE_SELF, TupleEntry, TupleKey, rewritten_node,
};

use crate::{
    context::{SockOps, Socket},
    direct, maps, openings,
};

const TCP_CONNECT_CB: u32 = 3;
const ACTIVE_ESTABLISHED_CB: u32 = 4;
const PASSIVE_ESTABLISHED_CB: u32 = 5;
const STATE_CB: u32 = 10;
const TCP_CLOSE: u32 = 7;

/// A connection of which `sk_lookup` need not know.
const TUPLE_NONE: u32 = 0;

/// Follows one socket event.
#[inline(always)]
pub fn follow(context: &SockOps) {
    match context.op() {
        TCP_CONNECT_CB => publish(context),
        ACTIVE_ESTABLISHED_CB => {
            if let Some(socket) = context.socket() {
                direct::establish(context, &socket);
            }
        }
        PASSIVE_ESTABLISHED_CB => accept(context),
        STATE_CB if context.new_state() == TCP_CLOSE => withdraw(context),
        _ => {}
    }
}

#[inline(always)]
fn publish(context: &SockOps) {
    let Some(socket) = context.socket() else {
        return;
    };
    let note = socket.note();
    let netns_cookie = receiving_netns(context, &note);
    let Some(pod) = maps::pod(netns_cookie) else {
        return;
    };
    let key = TupleKey {
        netns_cookie,
        local: context.remote(),
        remote: context.local(),
        local_port: context.remote_port(),
        remote_port: context.local_port(),
        pad: 0,
    };
    let kind = match kind_of(&socket, &note, &key) {
        TUPLE_NONE => return,
        // As `connect` has left it: its own.
        TUPLE_DIRECT if pod.flags & POD_OUTBOUND_OPEN != 0 => return,
        TUPLE_DIRECT if direct::open(context, &note, &key) => return,
        // It has lost its right since `connect` looked: captured here, while there is no route yet for its SYN.
        TUPLE_DIRECT if recapture(context, &socket) => TUPLE_OUTBOUND,
        // Without memory for the mark it arrives unannounced: captured by the other pod, as nobody's.
        TUPLE_DIRECT => return,
        kind => kind,
    };
    let socket_cookie = context.socket_cookie();
    let entry = TupleEntry {
        kind,
        port: note.port,
        address: note.address,
        socket_cookie,
        client_netns: context.netns_cookie(),
    };
    // istio-cni may rewrite its source before it arrives, and keeps the port.
    if kind == TUPLE_PROBE && pod.flags & POD_REDIRECTED != 0 {
        let _closed_without_room = openings::publish(&rewritten(&key), &entry);
    }
    // A full map sends the connection to the inbound listener: closed.
    if openings::publish(&key, &entry) {
        context.watch_state();
    }
}

#[inline(always)]
fn kind_of(socket: &Socket<'_>, note: &SocketNote, key: &TupleKey) -> u32 {
    match note.role {
        SOCKET_PROBE => return TUPLE_PROBE,
        SOCKET_LEG => return TUPLE_LEG,
        SOCKET_OWN => return TUPLE_NONE,
        _ => {}
    }
    if socket.mark() & MARK_MASK == MARK_OUTBOUND {
        return TUPLE_OUTBOUND;
    }
    if key.local.is_loopback() || key.local.same(&key.remote) {
        return TUPLE_NONE;
    }
    if maps::is_own_address(key.netns_cookie, &key.local) {
        return TUPLE_SELF;
    }
    TUPLE_DIRECT
}

/// Marks a connection so that it takes the way to the agent after all; false if the kernel refuses.
///
/// The kernel routes again after `TCP_CONNECT_CB` if the mark has changed (`rebuild_header` in `tcp_connect`).
#[inline(always)]
fn recapture(context: &SockOps, socket: &Socket<'_>) -> bool {
    context.set_mark((socket.mark() & !MARK_MASK) | MARK_OUTBOUND)
}

/// The handshake is over: the entry has served. The application's end of a leg learns its client.
#[inline(always)]
fn accept(context: &SockOps) {
    let netns_cookie = context.netns_cookie();
    if maps::pod(netns_cookie).is_none() {
        return;
    }
    let key = TupleKey {
        netns_cookie,
        local: context.local(),
        remote: context.remote(),
        local_port: context.local_port(),
        remote_port: context.remote_port(),
        pad: 0,
    };
    let Some(entry) = maps::tuple(&key) else {
        return;
    };
    if entry.kind == TUPLE_DIRECT {
        direct::accept(context, &key, &entry);
    }
    if entry.kind == TUPLE_LEG
        && let Some(socket) = context.socket()
    {
        socket.set_note(&SocketNote {
            role: SOCKET_ACCEPTED,
            port: entry.port,
            address: entry.address,
            netns_cookie,
        });
    }
    openings::end(&key, entry.kind);
}

/// The connecting socket closes: whatever it published and nobody took goes with it.
#[inline(always)]
fn withdraw(context: &SockOps) {
    let Some(socket) = context.socket() else {
        return;
    };
    let socket_cookie = context.socket_cookie();
    if let Some(flow) = maps::flow(socket_cookie) {
        return direct::close(context, &socket, socket_cookie, &flow);
    }
    let note = socket.note();
    let key = TupleKey {
        netns_cookie: receiving_netns(context, &note),
        local: context.remote(),
        remote: context.local(),
        local_port: context.remote_port(),
        remote_port: context.local_port(),
        pad: 0,
    };
    openings::withdraw(&key, socket_cookie);
    if note.role == SOCKET_PROBE {
        openings::withdraw(&rewritten(&key), socket_cookie);
    }
}

/// A probe as its pod sees it where istio-cni rewrites it.
#[inline(always)]
fn rewritten(probe: &TupleKey) -> TupleKey {
    TupleKey {
        remote: rewritten_node(&probe.local),
        ..*probe
    }
}

/// The network namespace in which the connection's SYN will be looked up.
#[inline(always)]
fn receiving_netns(context: &SockOps, note: &SocketNote) -> u64 {
    if note.role == SOCKET_PROBE {
        note.netns_cookie
    } else {
        context.netns_cookie()
    }
}
