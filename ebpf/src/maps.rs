//! Every map, in one file. All are pinned by the agent, so that capture outlives it.

use core::cell::UnsafeCell;

use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, bpf_map_def, bpf_map_type::BPF_MAP_TYPE_SOCKHASH},
    btf_maps::{ArrayOfMaps, RingBuf, SkStorage},
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, RingBuf as Ring},
};
use culvert_ebpf::{
    Address, Control, DestinationEntry, DestinationKey, FLOW_EVENTS_BYTES, FlowEntry, HeldSyn,
    ListenerKey, LocalAddress, LostEntry, LostKey, PodEntry, RING_BYTES, RINGS_MAX, ResolverEntry,
    ResolverKey, SocketNote, SpreadEntry, TUPLES_MAX, TupleEntry, TupleKey, VerdictEntry,
};

/// `bpf_map_update_elem`: only if there is none.
pub const BPF_NOEXIST: u64 = 1;

/// Enrolled pods by network namespace cookie. Cookies are never reused before a reboot.
#[map]
pub static PODS: HashMap<u64, PodEntry> = HashMap::with_max_entries(4096, 0);

/// Addresses of enrolled pods; a connection to one's own is never captured.
#[map]
pub static LOCAL_ADDRESSES: HashMap<LocalAddress, u32> = HashMap::with_max_entries(16384, 0);

/// Which enrolled pod has an address, as seen from the node's own network namespace.
#[map]
pub static POD_BY_ADDRESS: HashMap<Address, u64> = HashMap::with_max_entries(16384, 0);

/// Connections in their opening.
///
/// A plain hash, not an LRU: an LRU evicts handshakes in flight, which would hand an application's
/// connection to the inbound listener. Entries live from the SYN to the end of the handshake; whoever
/// completes it deletes the entry, and the connecting socket's last state change deletes what is left,
/// so none leaks. No pod's applications can fill it (`openings`). If it is full all the same, the insert fails and the
/// connection goes to the inbound listener, which never treats it as anyone's: closed, not open. Not preallocated, because
/// a preallocated hash reuses an element at once and a reader could see another connection's entry.
#[map]
pub static TUPLES: HashMap<TupleKey, TupleEntry> =
    HashMap::with_max_entries(TUPLES_MAX, BPF_F_NO_PREALLOC);

/// How many of them each enrolled pod's own applications have, by its network namespace cookie. The agent makes an entry
/// with the pod's, and removes it behind it. Not preallocated: a program may still add to one that is removed.
#[map]
pub static OPENINGS: HashMap<u64, u64> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// The sum of [`OPENINGS`]. The agent sums up anew from time to time: it cannot take away from it what a pod has had that
/// is gone.
#[map]
pub static OPENINGS_ALL: Array<u64> = Array::with_max_entries(1, 0);

/// Wire connections to closed ports, with the time they were seen.
///
/// An LRU: an entry is a hint for the packet being received right now, and whatever is not consumed
/// (a firewall dropped the packet) may be forgotten at any time.
#[map]
pub static REFUSALS: LruHashMap<TupleKey, u64> = LruHashMap::with_max_entries(4096, 0);

/// What each socket is to capture. Only a holder of the map can write it from userspace, so no
/// application can pass its socket off as the agent's.
#[btf_map]
pub static SOCKETS: SkStorage<SocketNote> = SkStorage::new();

/// The agent's listeners inside pods. An entry vanishes by itself when its listener is closed.
#[map]
pub static LISTENERS: ListenerMap = ListenerMap::new(32_768);

/// The resolver each DNS client of a pod meant.
///
/// An LRU: a client that never closes its socket would otherwise hold an entry forever, and a
/// forgotten one only costs the proxy its knowledge of which resolver was asked.
#[map]
pub static RESOLVERS: LruHashMap<ResolverKey, ResolverEntry> =
    LruHashMap::with_max_entries(65_536, 0);

/// The agent's word to all programs.
#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// Where each worker learns of connections that are held back for it.
///
/// The agent makes the rings, so that a new one begins with empty ones.
#[btf_map]
pub static RINGS: ArrayOfMaps<RingBuf<HeldSyn, { RING_BYTES as usize }>, { RINGS_MAX as usize }> =
    ArrayOfMaps::new();

/// How busily the destinations of held connections answer.
///
/// An LRU: who is forgotten is asked before each connection again.
#[map]
pub static ANSWERING: LruHashMap<DestinationKey, DestinationEntry> =
    LruHashMap::with_max_entries(8192, 0);

/// What becomes of pods' connections to addresses in the node.
///
/// Written by the agent alone, which bounds each pod's share of it. What is not here is captured.
#[map]
pub static VERDICTS: HashMap<DestinationKey, VerdictEntry> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Among which endpoints pods' connections to services are spread.
#[map]
pub static SPREADS: HashMap<DestinationKey, SpreadEntry> =
    HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// Both ends of every connection that the kernel carries by itself, by socket cookie.
///
/// The record of what has to end when it loses its right, so a connection that finds no room in it is captured
/// instead. Entries go with their sockets.
#[map]
pub static FLOWS: HashMap<u64, FlowEntry> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

/// What happened to them. The agent looks from time to time: nobody is woken.
#[map]
pub static FLOW_EVENTS: Ring = Ring::with_byte_size(FLOW_EVENTS_BYTES, 0);

/// Ends of connections for which the ring had no room.
#[map]
pub static LOST_ENDS: HashMap<LostKey, LostEntry> =
    HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// In the per-pod programs, the cookie of the pod's network namespace: `sk_lookup` programs have no
/// helper to ask for it.
#[unsafe(no_mangle)]
pub static POD_COOKIE: Global<u64> = Global::new(0);

/// Whether `bpf_set_retval` may be called (Linux 5.18); without it a refusal is `EPERM`.
#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u32> = Global::new(1);

/// Where the running kernel keeps `bytes_sent`, `bytes_retrans` and `bytes_received` in `struct tcp_sock`, `skc_flags`
/// and `sk_err` in `struct sock`, which begins it. All zero if the agent does not know: no connection is direct then.
#[unsafe(no_mangle)]
pub static BYTES_SENT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static BYTES_RETRANSMITTED: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static BYTES_RECEIVED: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static SOCKET_FLAGS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static SOCKET_ERROR: Global<u32> = Global::new(0);

/// A `SOCKHASH` with 8-byte values, from which userspace can read back the cookie of the socket in a
/// slot; aya's own has 4-byte values, which the kernel refuses to read.
#[repr(transparent)]
pub struct ListenerMap(UnsafeCell<bpf_map_def>);

// SAFETY: the definition is only read, by the loader; programs use its address alone.
unsafe impl Sync for ListenerMap {}

impl ListenerMap {
    const fn new(max_entries: u32) -> Self {
        Self(UnsafeCell::new(bpf_map_def {
            type_: BPF_MAP_TYPE_SOCKHASH,
            key_size: size_of::<ListenerKey>() as u32,
            value_size: size_of::<u64>() as u32,
            max_entries,
            map_flags: 0,
            id: 0,
            pinning: 0,
        }))
    }

    pub fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.0.get().cast()
    }
}

/// The entry of an enrolled pod.
#[inline(always)]
pub fn pod(netns_cookie: u64) -> Option<PodEntry> {
    // SAFETY: the value is copied out at once; a concurrent change by the agent can at worst give the
    // ports of before it.
    unsafe { PODS.get(&netns_cookie) }.copied()
}

/// Whether `address` belongs to the pod.
#[inline(always)]
pub fn is_own_address(netns_cookie: u64, address: &Address) -> bool {
    let key = LocalAddress {
        netns_cookie,
        address: *address,
    };
    LOCAL_ADDRESSES.get_ptr(&key).is_some()
}

/// The entry of a connection in its opening.
#[inline(always)]
pub fn tuple(key: &TupleKey) -> Option<TupleEntry> {
    // SAFETY: the map is not preallocated, so the element stays this one's until the RCU grace period
    // in which the program runs is over; it is copied out at once.
    unsafe { TUPLES.get(key) }.copied()
}

/// Whether the connection is in its opening.
#[inline(always)]
pub fn is_opening(key: &TupleKey) -> bool {
    TUPLES.get_ptr(key).is_some()
}

/// As [`tuple`], to be changed in place. The element stays this one's until the RCU grace period in which
/// the program runs is over.
#[inline(always)]
pub fn tuple_mut(key: &TupleKey) -> Option<*mut TupleEntry> {
    TUPLES.get_ptr_mut(key)
}

/// What becomes of a pod's connections to a destination.
#[inline(always)]
pub fn verdict(key: &DestinationKey) -> Option<VerdictEntry> {
    // SAFETY: the map is not preallocated, so the element stays this one's until the RCU grace period
    // in which the program runs is over; it is copied out at once.
    unsafe { VERDICTS.get(key) }.copied()
}

/// One end of a connection that the kernel carries by itself.
#[inline(always)]
pub fn flow(socket_cookie: u64) -> Option<FlowEntry> {
    // SAFETY: as in `verdict`.
    unsafe { FLOWS.get(&socket_cookie) }.copied()
}
