//! The system calls that aya and nix do not offer: pinned links and their replacement, typed access to
//! pinned maps, socket options. The only unsafe code of capture.

mod table;

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::Pod;
use nix::errno::Errno;

pub(crate) use self::table::Table;

/// Commands of `bpf(2)`, `enum bpf_cmd` in `include/uapi/linux/bpf.h`.
mod command {
    pub(super) const MAP_CREATE: i64 = 0;
    pub(super) const MAP_LOOKUP_ELEM: i64 = 1;
    pub(super) const MAP_UPDATE_ELEM: i64 = 2;
    pub(super) const MAP_DELETE_ELEM: i64 = 3;
    pub(super) const MAP_GET_NEXT_KEY: i64 = 4;
    pub(super) const OBJ_PIN: i64 = 6;
    pub(super) const OBJ_GET: i64 = 7;
    pub(super) const OBJ_GET_INFO_BY_FD: i64 = 15;
    pub(super) const MAP_LOOKUP_BATCH: i64 = 24;
    pub(super) const LINK_CREATE: i64 = 28;
    pub(super) const LINK_UPDATE: i64 = 29;
}

/// Where a program is attached: `enum bpf_attach_type`, with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum AttachType {
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getpeername4 = 29,
    Getpeername6 = 30,
    SkLookup = 36,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// A cgroup or a network namespace.
    Fd(BorrowedFd<'a>),
    /// A network device of the calling thread's network namespace.
    Device(u32),
}

/// Attaches a program.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach: AttachType,
) -> io::Result<OwnedFd> {
    /// The `link_create` arm of `union bpf_attr`, up to the fields of the longest kind (`tcx`).
    #[repr(C)]
    struct Attr {
        program: RawFd,
        target: u32,
        attach_type: u32,
        flags: u32,
        relative: u32,
        pad: u32,
        expected_revision: u64,
    }
    let target = match target {
        Target::Fd(fd) => fd.as_raw_fd().cast_unsigned(),
        Target::Device(index) => index,
    };
    let attr = Attr {
        program: program.as_raw_fd(),
        target,
        attach_type: attach as u32,
        flags: 0,
        relative: 0,
        pad: 0,
        expected_revision: 0,
    };
    // SAFETY: `attr` is that command's arm and names no memory.
    let fd = unsafe { bpf(command::LINK_CREATE, &attr) }?;
    // SAFETY: the command has made this descriptor.
    Ok(unsafe { owned(fd) })
}

/// Replaces the program of a link, without a moment in which none is attached.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: RawFd,
        program: RawFd,
        flags: u32,
        old_program: u32,
    }
    let attr = Attr {
        link: link.as_raw_fd(),
        program: program.as_raw_fd(),
        flags: 0,
        old_program: 0,
    };
    // SAFETY: `attr` is that command's arm and names no memory.
    unsafe { bpf(command::LINK_UPDATE, &attr) }.map(drop)
}

/// Whether a link still acts on something: the kernel clears the target's id when the cgroup, the
/// network namespace or the device goes away, or when someone detaches the link.
pub(crate) fn link_is_attached(link: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(link_target(link)? != 0)
}

/// What identifies the target of a link (netns inode, device index, a part of the cgroup id), or 0.
pub(crate) fn link_target(link: BorrowedFd<'_>) -> io::Result<u32> {
    /// `struct bpf_link_info` up to the first word of its union.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        pad: u32,
        target: u32,
        target_high: u32,
    }
    // SAFETY: integers only.
    unsafe impl Pod for Info {}
    let info: Info = object_info(link)?;
    let is_wide = info.kind == CGROUP_LINK;
    Ok(if is_wide && info.target == 0 {
        info.target_high
    } else {
        info.target
    })
}

/// `BPF_LINK_TYPE_CGROUP`: the only kind whose target id has 64 bits.
const CGROUP_LINK: u32 = 3;

/// `BPF_MAP_TYPE_RINGBUF`.
const RINGBUF: u32 = 27;

/// Makes a ring of `bytes` bytes, a power of two and a multiple of the page size.
pub(crate) fn create_ring(bytes: u32) -> io::Result<OwnedFd> {
    /// The start of the `map_create` arm of `union bpf_attr`.
    #[repr(C)]
    struct Attr {
        kind: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
    }
    let attr = Attr {
        kind: RINGBUF,
        key_size: 0,
        value_size: 0,
        max_entries: bytes,
        flags: 0,
    };
    // SAFETY: `attr` is the start of that command's arm, which names no memory; the rest counts as zero.
    let fd = unsafe { bpf(command::MAP_CREATE, &attr) }?;
    // SAFETY: the command has made this descriptor.
    Ok(unsafe { owned(fd) })
}

/// The sizes a map was created with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapShape {
    pub(crate) key_size: usize,
    pub(crate) value_size: usize,
}

/// Asks the kernel for the shape of a map.
pub(crate) fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    /// The start of `struct bpf_map_info`.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Info {
        kind: u32,
        id: u32,
        key_size: u32,
        value_size: u32,
    }
    // SAFETY: integers only.
    unsafe impl Pod for Info {}
    let info: Info = object_info(map)?;
    Ok(MapShape {
        key_size: info.key_size as usize,
        value_size: info.value_size as usize,
    })
}

fn object_info<T: Pod + Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    #[repr(C)]
    struct Attr {
        object: RawFd,
        size: u32,
        info: u64,
    }
    let mut info = T::default();
    let size = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut attr = Attr {
        object: object.as_raw_fd(),
        size,
        info: (&raw mut info) as u64,
    };
    // SAFETY: `attr` is that command's arm; it writes no more than `size` bytes to `info`, which has as many, is this
    // function's own, and is a `T` whatever is written. Into `attr` it writes how many it has filled.
    unsafe { bpf_mut(command::OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Gives a program, map or link a name in bpffs, where it outlives this process.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let attr = PathAttr {
        path: path.as_ptr() as u64,
        object: object.as_raw_fd(),
        flags: 0,
    };
    // SAFETY: `attr` is that command's arm, and its path a string with its zero byte that lives to the end of this function.
    unsafe { bpf(command::OBJ_PIN, &attr) }.map(drop)
}

/// Opens what is pinned under a name.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let attr = PathAttr {
        path: path.as_ptr() as u64,
        object: 0,
        flags: 0,
    };
    // SAFETY: `attr` is that command's arm, and its path a string with its zero byte that lives to the end of this function.
    let fd = unsafe { bpf(command::OBJ_GET, &attr) }?;
    // SAFETY: the command has made this descriptor.
    Ok(unsafe { owned(fd) })
}

#[repr(C)]
struct PathAttr {
    path: u64,
    object: RawFd,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// `bpf(2)`.
///
/// # Safety
///
/// `attr` is the arm of `union bpf_attr` that belongs to the command, or its start, without padding. Whatever memory it
/// names is valid across the call for as many bytes as the command reads or writes there, and what it writes is the caller's
/// alone. The command does not write to `attr` itself.
unsafe fn bpf<T>(command: i64, attr: &T) -> io::Result<i64> {
    let (attr, size) = (std::ptr::from_ref(attr), size_of::<T>());
    // SAFETY: `attr` is a reference, and `size` its size; for what it names the caller vouches.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size) };
    Ok(Errno::result(result)?)
}

/// As [`bpf`], for commands that answer in the attributes.
///
/// # Safety
///
/// As [`bpf`]; any bytes that the command writes to `attr` are a `T`.
unsafe fn bpf_mut<T>(command: i64, attr: &mut T) -> io::Result<i64> {
    let (attr, size) = (std::ptr::from_mut(attr), size_of::<T>());
    // SAFETY: as in `bpf`; by the reference nobody else reads or writes `attr` meanwhile.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size) };
    Ok(Errno::result(result)?)
}

/// A descriptor as a system call has returned it.
///
/// # Safety
///
/// It is new: the caller has it from the call that made it, and gives it to nobody else.
unsafe fn owned(fd: i64) -> OwnedFd {
    #[expect(clippy::cast_possible_truncation, reason = "file descriptors are ints")]
    let fd = fd as RawFd;
    // SAFETY: the caller's: open, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Sets a socket option that is an int.
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: i32,
) -> io::Result<()> {
    let size = socklen::<i32>()?;
    let value = (&raw const value).cast();
    // SAFETY: `value` points to the `size` bytes given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, size) };
    Errno::result(result)?;
    Ok(())
}

fn socklen<T>() -> io::Result<libc::socklen_t> {
    size_of::<T>().try_into().map_err(io::Error::other)
}

/// Reads a socket option of type `T`.
fn option<T: Pod + Default>(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<T> {
    let mut value = T::default();
    let mut size = socklen::<T>()?;
    let (to, length) = ((&raw mut value).cast(), &raw mut size);
    // SAFETY: `to` has room for the `size` bytes announced, and any bytes written are a `T`.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, to, length) };
    Errno::result(result)?;
    Ok(value)
}

/// `SO_COOKIE` and `SO_NETNS_COOKIE` of `include/uapi/asm-generic/socket.h`, which libc lacks.
const SO_COOKIE: i32 = 57;
const SO_NETNS_COOKIE: i32 = 71;

/// The cookie of the network namespace in which a socket was made.
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    option(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE)
}

/// The cookie of a socket.
pub(crate) fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    option(socket, libc::SOL_SOCKET, SO_COOKIE)
}

/// Whether a socket accepts connections.
pub(crate) fn is_listening(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(option::<i32>(socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0)
}

/// A TCP socket that speaks MPTCP, as Go's standard library makes for listeners.
#[cfg(test)]
pub(crate) fn mptcp_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: takes numbers.
    let fd = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_MPTCP) };
    Errno::result(fd)?;
    // SAFETY: socket(2) has made this descriptor.
    Ok(unsafe { owned(i64::from(fd)) })
}

/// Makes the allocator give freed memory back as soon as it is much. To be called before there are threads.
///
/// By default glibc raises its thresholds to twice the largest block that was ever freed; loading programs frees 5 MiB
/// at once, so each thread's arena would keep 10 MiB for good, which [`release_free_memory`] does not reach.
pub(crate) fn give_back_early() {
    const LARGE: libc::c_int = 1 << 20;
    for threshold in [libc::M_TRIM_THRESHOLD, libc::M_MMAP_THRESHOLD] {
        // SAFETY: mallopt(3) sets a number; no other thread exists that could read it meanwhile.
        let _is_taken = unsafe { libc::mallopt(threshold, LARGE) };
    }
}

/// Gives memory that the allocator holds free back to the kernel.
///
/// The eBPF loader parses the kernel's whole type information when it is made, which takes 20 MiB for a moment; glibc
/// would keep them for good.
pub(crate) fn release_free_memory() {
    // SAFETY: malloc_trim(3) has no preconditions, is thread-safe, and touches no allocation in use.
    let _released_any = unsafe { libc::malloc_trim(0) };
}
