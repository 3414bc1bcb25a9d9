//! Every map, in one file. All are pinned by the agent, so that capture outlives it.

use core::cell::UnsafeCell;

use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, bpf_map_def, bpf_map_type::BPF_MAP_TYPE_SOCKHASH},
    btf_maps::{ArrayOfMaps, RingBuf, SkStorage},
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap},
};
use culvert_ebpf::{
    Address, Control, DestinationEntry, DestinationKey, HeldSyn, ListenerKey, LocalAddress,
    PodEntry, RING_BYTES, RINGS_MAX, ResolverEntry, ResolverKey, SocketNote, TupleEntry, TupleKey,
};

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
/// so none leaks. If the map is full the insert fails and the connection goes to the inbound
/// listener, which never treats it as anyone's: closed, not open. Not preallocated, because a
/// preallocated hash reuses an element at once and a reader could see another connection's entry.
#[map]
pub static TUPLES: HashMap<TupleKey, TupleEntry> =
    HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);

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

/// In the per-pod programs, the cookie of the pod's network namespace: `sk_lookup` programs have no
/// helper to ask for it.
#[unsafe(no_mangle)]
pub static POD_COOKIE: Global<u64> = Global::new(0);

/// Whether `bpf_set_retval` may be called (Linux 5.18); without it a refusal is `EPERM`.
#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u32> = Global::new(1);

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

/// As [`tuple`], to be changed in place. The element stays this one's until the RCU grace period in which
/// the program runs is over.
#[inline(always)]
pub fn tuple_mut(key: &TupleKey) -> Option<*mut TupleEntry> {
    TUPLES.get_ptr_mut(key)
}
