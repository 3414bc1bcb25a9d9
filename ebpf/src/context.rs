//! Safe wrappers around program contexts, sockets and helpers: nearly all of this crate's `unsafe`.
//!
//! Contexts are read with inline assembly, not through references: LLVM merges loads of neighbouring
//! fields from different branches into `ctx + register`, which the verifier refuses as "dereference of
//! modified ctx ptr", and volatile reads do not stop it.

use core::{ffi::c_void, marker::PhantomData, mem::offset_of, ptr::NonNull};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sk_lookup,
        bpf_sock, bpf_sock_addr, bpf_sock_ops, bpf_sock_tuple, sockaddr,
    },
    helpers::generated::{
        bpf_bind, bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32,
        bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_set_retval,
        bpf_setsockopt, bpf_sk_assign, bpf_sk_lookup_tcp, bpf_sk_release, bpf_sk_storage_get,
        bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_skc_lookup_tcp, bpf_sock_ops_cb_flags_set,
    },
};
use culvert_ebpf::{Address, ListenerKey, SocketNote};

use crate::maps::{HAS_SET_RETVAL, LISTENERS, SOCKETS};

const AF_INET: u32 = 2;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const ECONNREFUSED: i32 = 111;
/// `BPF_F_CURRENT_NETNS`: look in the network namespace of the context.
const CURRENT_NETNS: u64 = u64::MAX;

/// Loads one context field as a single instruction at a constant offset.
macro_rules! load {
    ($ty:literal, $ctx:expr, $offset:expr) => {{
        let value: u64;
        // SAFETY: reads a field of a context the kernel passed in; the verifier checks the offset and
        // the width for the program type, so no unreadable field can get past loading.
        unsafe {
            core::arch::asm!(
                concat!("{value} = *(", $ty, " *)({ctx} + {offset})"),
                value = out(reg) value, ctx = in(reg) $ctx, offset = const $offset,
                options(nostack, readonly, preserves_flags),
            );
        }
        value
    }};
}

/// Loads an IPv4 address field.
macro_rules! load_address4 {
    ($ctx:expr, $offset:expr) => {
        Address::v4(load!("u32", $ctx, $offset) as u32)
    };
}

/// Loads an IPv6 address field word by word: the only width all program types allow.
macro_rules! load_address6 {
    ($ctx:expr, $offset:expr) => {
        Address {
            words_be: [
                load!("u32", $ctx, $offset) as u32,
                load!("u32", $ctx, $offset + 4) as u32,
                load!("u32", $ctx, $offset + 8) as u32,
                load!("u32", $ctx, $offset + 12) as u32,
            ],
        }
    };
}

/// Stores one 32-bit context field as a single instruction at a constant offset.
macro_rules! store {
    ($ctx:expr, $offset:expr, $value:expr) => {{
        // SAFETY: as in `load`; the verifier also checks that the field may be written here.
        unsafe {
            core::arch::asm!(
                "*(u32 *)({ctx} + {offset}) = {value}",
                ctx = in(reg) $ctx, offset = const $offset, value = in(reg) u64::from($value),
                options(nostack, preserves_flags),
            );
        }
    }};
}

/// A socket that lives at least as long as the running program.
#[derive(Clone, Copy)]
pub struct Socket<'a> {
    sk: NonNull<bpf_sock>,
    _context: PhantomData<&'a ()>,
}

impl Socket<'_> {
    fn from_ptr(sk: *mut bpf_sock) -> Option<Self> {
        NonNull::new(sk).map(|sk| Self {
            sk,
            _context: PhantomData,
        })
    }

    /// `SO_MARK`.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        load!("u32", self.sk.as_ptr(), offset_of!(bpf_sock, mark)) as u32
    }

    /// The device the socket is bound to, or 0.
    #[inline(always)]
    pub fn bound_device(&self) -> u32 {
        load!("u32", self.sk.as_ptr(), offset_of!(bpf_sock, bound_dev_if)) as u32
    }

    /// The local port, or 0 if it has none yet.
    #[inline(always)]
    pub fn source_port(&self) -> u16 {
        load!("u32", self.sk.as_ptr(), offset_of!(bpf_sock, src_port)) as u16
    }

    /// The socket's note; a plain one if it has none.
    #[inline(always)]
    pub fn note(&self) -> SocketNote {
        // SAFETY: the helper returns null or a pointer to a whole value that lives as long as the
        // socket, which outlives the program run.
        let note = unsafe { note_ptr(self.sk.as_ptr(), core::ptr::null_mut(), 0).as_ref() };
        // Not an `Option` of a note: LLVM copies the absent one's bytes around, which the verifier
        // refuses as reading an uninitialised register.
        note.map_or(SocketNote::PLAIN, |note| *note)
    }

    /// Sets the socket's note; false when the kernel has no memory for it.
    #[inline(always)]
    pub fn set_note(&self, note: &SocketNote) -> bool {
        let mut initial = *note;
        let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        let existing = note_ptr(self.sk.as_ptr(), &raw mut initial, create);
        if existing.is_null() {
            return false;
        }
        // SAFETY: not null, hence a whole value of this socket's. Programs for one socket run under
        // its lock.
        unsafe { *existing = *note };
        true
    }
}

fn note_ptr(sk: *mut bpf_sock, initial: *mut SocketNote, flags: u64) -> *mut SocketNote {
    let map = core::ptr::from_ref(&SOCKETS).cast_mut().cast::<c_void>();
    // SAFETY: `sk` comes from a context or a lookup, `initial` is null or a value of the map's type;
    // the verifier checks both.
    unsafe { bpf_sk_storage_get(map, sk.cast(), initial.cast(), flags) }.cast()
}

/// The context of `cgroup/{connect,sendmsg,recvmsg,getpeername}{4,6}`.
pub struct SockAddr(*mut bpf_sock_addr);

impl SockAddr {
    pub fn new(context: *mut bpf_sock_addr) -> Self {
        Self(context)
    }

    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is of a program type that has the helper (Linux 5.7).
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    pub fn socket(&self) -> Option<Socket<'_>> {
        let sk = load!("u64", self.0, offset_of!(bpf_sock_addr, __bindgen_anon_1));
        Socket::from_ptr(sk as *mut bpf_sock)
    }

    /// `SOCK_STREAM`, `SOCK_DGRAM`, …
    #[inline(always)]
    pub fn kind(&self) -> u32 {
        load!("u32", self.0, offset_of!(bpf_sock_addr, type_)) as u32
    }

    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        load!("u32", self.0, offset_of!(bpf_sock_addr, protocol)) as u32
    }

    /// The address of an IPv4 hook.
    #[inline(always)]
    pub fn address4(&self) -> Address {
        load_address4!(self.0, offset_of!(bpf_sock_addr, user_ip4))
    }

    /// The address of an IPv6 hook.
    #[inline(always)]
    pub fn address6(&self) -> Address {
        load_address6!(self.0, offset_of!(bpf_sock_addr, user_ip6))
    }

    #[inline(always)]
    pub fn port(&self) -> u16 {
        u16::from_be(load!("u32", self.0, offset_of!(bpf_sock_addr, user_port)) as u16)
    }

    /// Replaces the address of an IPv4 hook.
    #[inline(always)]
    pub fn set_address4(&self, address: &Address) {
        store!(
            self.0,
            offset_of!(bpf_sock_addr, user_ip4),
            address.words_be[3]
        );
    }

    /// Replaces the address of an IPv6 hook.
    #[inline(always)]
    pub fn set_address6(&self, address: &Address) {
        const OFFSET: usize = offset_of!(bpf_sock_addr, user_ip6);
        store!(self.0, OFFSET, address.words_be[0]);
        store!(self.0, OFFSET + 4, address.words_be[1]);
        store!(self.0, OFFSET + 8, address.words_be[2]);
        store!(self.0, OFFSET + 12, address.words_be[3]);
    }

    #[inline(always)]
    pub fn set_port(&self, port: u16) {
        store!(
            self.0,
            offset_of!(bpf_sock_addr, user_port),
            u32::from(port.to_be())
        );
    }

    /// Sets `SO_MARK`; false if the kernel refuses.
    #[inline(always)]
    pub fn set_mark(&self, mark: u32) -> bool {
        let mut mark = mark;
        let value = (&raw mut mark).cast();
        // SAFETY: `value` points to the four bytes that SO_MARK takes.
        unsafe { bpf_setsockopt(self.0.cast(), SOL_SOCKET, SO_MARK, value, 4) == 0 }
    }

    /// Makes the refusal that the caller is about to return `ECONNREFUSED` instead of `EPERM`.
    #[inline(always)]
    pub fn refuse(&self) {
        if HAS_SET_RETVAL.load() != 0 {
            // SAFETY: takes a number. Where the kernel lacks the helper, the loader clears the constant
            // above and the verifier drops this branch as unreachable.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
        }
    }

    /// Whether the agent listens on `port` in the network namespace of the context.
    ///
    /// Asks for a connection over loopback, which the pod's `sk_lookup` program leaves alone, and
    /// takes only a socket that carries the agent's note: an application may have bound the port
    /// after the agent's death.
    #[inline(always)]
    pub fn agent_listens(&self, port: u16) -> bool {
        let mut tuple = loopback_tuple4(Address::LOOPBACK_V4.words_be[3], port);
        // SAFETY: the tuple is whole and its size says IPv4.
        let sk = unsafe {
            bpf_sk_lookup_tcp(
                self.0.cast(),
                &raw mut tuple.0,
                TUPLE4_SIZE,
                CURRENT_NETNS,
                0,
            )
        };
        let Some(socket) = Socket::from_ptr(sk) else {
            return false;
        };
        let found = socket.note().is_agents();
        release(sk);
        found
    }

    /// Binds the socket of an IPv4 hook to `port` on any address; false if the port is taken.
    #[inline(always)]
    pub fn bind4(&self, port: u16) -> bool {
        #[repr(C)]
        struct SockaddrIn {
            family: u16,
            port_be: u16,
            address_be: u32,
            zero: [u32; 2],
        }
        let mut to = SockaddrIn {
            family: 2,
            port_be: port.to_be(),
            address_be: 0,
            zero: [0; 2],
        };
        let address = (&raw mut to).cast::<sockaddr>();
        // SAFETY: `address` points to a whole sockaddr_in, whose size is given.
        unsafe { bpf_bind(self.0, address, size_of::<SockaddrIn>() as i32) == 0 }
    }

    /// Binds the socket of an IPv6 hook to `port` on any address; false if the port is taken.
    #[inline(always)]
    pub fn bind6(&self, port: u16) -> bool {
        #[repr(C)]
        struct SockaddrIn6 {
            family: u16,
            port_be: u16,
            flow: u32,
            address: [u32; 4],
            scope: u32,
        }
        let port_be = port.to_be();
        let mut to = SockaddrIn6 {
            family: 10,
            port_be,
            flow: 0,
            address: [0; 4],
            scope: 0,
        };
        let address = (&raw mut to).cast::<sockaddr>();
        // SAFETY: `address` points to a whole sockaddr_in6, whose size is given.
        unsafe { bpf_bind(self.0, address, size_of::<SockaddrIn6>() as i32) == 0 }
    }
}

/// The context of `sock_ops`.
pub struct SockOps(*mut bpf_sock_ops);

impl SockOps {
    pub fn new(context: *mut bpf_sock_ops) -> Self {
        Self(context)
    }

    #[inline(always)]
    pub fn op(&self) -> u32 {
        load!("u32", self.0, offset_of!(bpf_sock_ops, op)) as u32
    }

    /// With `STATE_CB`, the state entered.
    #[inline(always)]
    pub fn new_state(&self) -> u32 {
        load!(
            "u32",
            self.0,
            offset_of!(bpf_sock_ops, __bindgen_anon_1) + 4
        ) as u32
    }

    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is of a program type that has the helper (Linux 5.15).
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    pub fn socket_cookie(&self) -> u64 {
        // SAFETY: the context is of a program type that has the helper (Linux 4.13).
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    #[inline(always)]
    pub fn socket(&self) -> Option<Socket<'_>> {
        let sk = load!("u64", self.0, offset_of!(bpf_sock_ops, __bindgen_anon_2));
        Socket::from_ptr(sk as *mut bpf_sock)
    }

    #[inline(always)]
    pub fn local(&self) -> Address {
        if self.is_ipv4() {
            return load_address4!(self.0, offset_of!(bpf_sock_ops, local_ip4));
        }
        load_address6!(self.0, offset_of!(bpf_sock_ops, local_ip6))
    }

    #[inline(always)]
    pub fn remote(&self) -> Address {
        if self.is_ipv4() {
            return load_address4!(self.0, offset_of!(bpf_sock_ops, remote_ip4));
        }
        load_address6!(self.0, offset_of!(bpf_sock_ops, remote_ip6))
    }

    /// The field is in host byte order.
    #[inline(always)]
    pub fn local_port(&self) -> u16 {
        load!("u32", self.0, offset_of!(bpf_sock_ops, local_port)) as u16
    }

    /// The field is a 32-bit number in network byte order.
    #[inline(always)]
    pub fn remote_port(&self) -> u16 {
        u32::from_be(load!("u32", self.0, offset_of!(bpf_sock_ops, remote_port)) as u32) as u16
    }

    /// Asks for `STATE_CB` from now on.
    #[inline(always)]
    pub fn watch_state(&self) {
        // SAFETY: takes the context and a number.
        unsafe { bpf_sock_ops_cb_flags_set(self.0, BPF_SOCK_OPS_STATE_CB_FLAG as i32) };
    }

    #[inline(always)]
    fn is_ipv4(&self) -> bool {
        load!("u32", self.0, offset_of!(bpf_sock_ops, family)) as u32 == AF_INET
    }
}

/// The context of `sk_lookup`.
pub struct SkLookup(*mut bpf_sk_lookup);

impl SkLookup {
    pub fn new(context: *mut bpf_sk_lookup) -> Self {
        Self(context)
    }

    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        load!("u32", self.0, offset_of!(bpf_sk_lookup, protocol)) as u32
    }

    #[inline(always)]
    pub fn local(&self) -> Address {
        if self.is_ipv4() {
            return load_address4!(self.0, offset_of!(bpf_sk_lookup, local_ip4));
        }
        load_address6!(self.0, offset_of!(bpf_sk_lookup, local_ip6))
    }

    #[inline(always)]
    pub fn remote(&self) -> Address {
        if self.is_ipv4() {
            return load_address4!(self.0, offset_of!(bpf_sk_lookup, remote_ip4));
        }
        load_address6!(self.0, offset_of!(bpf_sk_lookup, remote_ip6))
    }

    /// The field is in host byte order.
    #[inline(always)]
    pub fn local_port(&self) -> u16 {
        load!("u32", self.0, offset_of!(bpf_sk_lookup, local_port)) as u16
    }

    /// The field is 16 bits in network byte order.
    #[inline(always)]
    pub fn remote_port(&self) -> u16 {
        u16::from_be(load!("u16", self.0, offset_of!(bpf_sk_lookup, remote_port)) as u16)
    }

    /// Gives the connection to the listener in a slot; false if the slot is empty.
    #[inline(always)]
    pub fn assign(&self, slot: &ListenerKey, of_group: OfGroup) -> bool {
        let sk = listener_in(slot);
        if sk.is_null() {
            return false;
        }
        // SAFETY: the lookup gave a referenced socket, released right below.
        let assigned = unsafe { bpf_sk_assign(self.0.cast(), sk, of_group as u64) } == 0;
        release(sk.cast());
        assigned
    }

    #[inline(always)]
    fn is_ipv4(&self) -> bool {
        load!("u32", self.0, offset_of!(bpf_sk_lookup, family)) as u32 == AF_INET
    }
}

/// Which of the listeners that share a port takes a connection.
#[derive(Clone, Copy)]
#[repr(u64)]
pub enum OfGroup {
    /// Whichever the kernel picks.
    Any = 0,
    /// The one in the slot (`BPF_SK_LOOKUP_F_NO_REUSEPORT`).
    ThisOne = 2,
}

/// Whether a slot holds a listener.
#[inline(always)]
pub fn has_listener_in(slot: &ListenerKey) -> bool {
    let sk = listener_in(slot);
    if sk.is_null() {
        return false;
    }
    release(sk.cast());
    true
}

/// The listener in a slot, to be released, or null.
#[inline(always)]
fn listener_in(slot: &ListenerKey) -> *mut c_void {
    // SAFETY: `slot` is a key of the map's type.
    unsafe { bpf_map_lookup_elem(LISTENERS.as_ptr(), core::ptr::from_ref(slot).cast()) }
}

/// The context of a `tcx` program.
pub struct Packet(*mut __sk_buff);

impl Packet {
    pub fn new(context: *mut __sk_buff) -> Self {
        Self(context)
    }

    /// Copies `N` bytes at `offset`, or none if the packet is shorter.
    #[inline(always)]
    pub fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let to = bytes.as_mut_ptr().cast();
        // SAFETY: `to` has room for the `N` bytes asked for; the helper checks `offset`.
        let failed =
            unsafe { bpf_skb_load_bytes(self.0.cast_const().cast(), offset, to, N as u32) };
        (failed == 0).then_some(bytes)
    }

    /// Copies `length` bytes at `offset` to the start of `to`; false if either is too short.
    #[inline(always)]
    pub fn copy<const N: usize>(&self, offset: u32, to: &mut [u8; N], length: u32) -> bool {
        let length = unforeseen(length);
        if length == 0 || length > N as u64 {
            return false;
        }
        let to = to.as_mut_ptr().cast();
        // SAFETY: `to` has room for `length` bytes; the helper checks `offset`.
        unsafe { bpf_skb_load_bytes(self.0.cast_const().cast(), offset, to, length as u32) == 0 }
    }

    /// Overwrites the packet at `offset` with numbers as they lie in memory; false if it is shorter, or there
    /// is no memory for a copy of it.
    #[inline(always)]
    pub fn store<T: Copy, const N: usize>(&self, offset: u32, from: &[T; N]) -> bool {
        let (from, length) = (from.as_ptr().cast(), size_of::<[T; N]>() as u32);
        // SAFETY: `from` has the `length` bytes that are read; the helper checks `offset`, and the verifier that
        // the bytes are initialised.
        unsafe { bpf_skb_store_bytes(self.0.cast(), offset, from, length, 0) == 0 }
    }

    /// The packet's mark: on lo still that of the sending socket.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        load!("u32", self.0, offset_of!(__sk_buff, mark)) as u32
    }

    /// The packet's priority: on lo still that of the sending socket.
    #[inline(always)]
    pub fn priority(&self) -> u32 {
        load!("u32", self.0, offset_of!(__sk_buff, priority)) as u32
    }

    /// Whether an application listens for connections to `local`:`port`.
    ///
    /// Asks as if the connection came from loopback: the lookup runs the pod's `sk_lookup` program
    /// too, which would otherwise answer with the agent's listener.
    #[inline(always)]
    pub fn has_listener(&self, local: &Address, port: u16) -> bool {
        let sk = if local.is_v4() {
            let mut tuple = loopback_tuple4(local.words_be[3], port);
            let (tuple, size) = (&raw mut tuple.0, TUPLE4_SIZE);
            // SAFETY: the tuple is whole and its size says IPv4.
            unsafe { bpf_skc_lookup_tcp(self.0.cast(), tuple, size, CURRENT_NETNS, 0) }
        } else {
            let mut tuple = Tuple6 {
                saddr: Address::LOOPBACK_V6,
                daddr: *local,
                sport_be: 0,
                dport_be: port.to_be(),
            };
            let (tuple, size) = ((&raw mut tuple).cast(), size_of::<Tuple6>() as u32);
            // SAFETY: as above, IPv6.
            unsafe { bpf_skc_lookup_tcp(self.0.cast(), tuple, size, CURRENT_NETNS, 0) }
        };
        let Some(socket) = Socket::from_ptr(sk) else {
            return false;
        };
        let is_agents = socket.note().is_agents();
        release(sk);
        !is_agents
    }
}

/// The IPv6 arm of `bpf_sock_tuple`.
#[repr(C)]
struct Tuple6 {
    saddr: Address,
    daddr: Address,
    sport_be: u16,
    dport_be: u16,
}

/// A tuple of which only the IPv4 arm is set, with room for the larger one as the type demands.
struct Tuple4(bpf_sock_tuple);

/// The size by which the lookup helpers know an IPv4 tuple.
const TUPLE4_SIZE: u32 = 12;

#[inline(always)]
fn loopback_tuple4(daddr_be: u32, port: u16) -> Tuple4 {
    // SAFETY: integers only; all zeroes is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    tuple.__bindgen_anon_1.ipv4 = aya_ebpf::bindings::bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
        saddr: Address::LOOPBACK_V4.words_be[3],
        daddr: daddr_be,
        sport: 0,
        dport: port.to_be(),
    };
    Tuple4(tuple)
}

#[inline(always)]
fn release(sk: *mut bpf_sock) {
    // SAFETY: called once for each socket a lookup returned; the verifier tracks the reference.
    unsafe { bpf_sk_release(sk.cast()) };
}

/// The same number, of which the compiler knows nothing: checks of it then stand where the verifier needs
/// them, instead of before the arithmetic that led to it.
#[inline(always)]
fn unforeseen(number: u32) -> u64 {
    let mut number = u64::from(number);
    // SAFETY: copies a register to itself.
    unsafe {
        core::arch::asm!("{number} = {number}", number = inout(reg) number,
            options(pure, nomem, nostack, preserves_flags));
    }
    number
}

/// `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: takes nothing.
    unsafe { bpf_get_prandom_u32() }
}

/// The id of the ancestor, at `level` below the root, of the calling process's cgroup, or 0.
#[inline(always)]
pub fn ancestor_cgroup(level: u32) -> u64 {
    // SAFETY: takes a number; a level deeper than the process's own gives 0.
    unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
}
