//! Memory that carries bytes: the worker's pool of receive slots, what `recv` hands out and what `send`
//! takes.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

use bytes::Bytes;

/// Bytes of one slot: eight of the largest TLS records per receive. Twice as many as of 64 KiB in a stream cost a tenth
/// less CPU a byte; cores' second-level caches hold some of them.
pub(super) const SLOT_LEN: u32 = 128 * 1024;
pub(super) const SLOT_BYTES: usize = SLOT_LEN as usize;
/// Slots per worker (a power of two, as the kernel's buffer ring wants): 8 MiB if all are ever touched.
pub(super) const SLOTS: u16 = 64;
/// Size of a buffer that stands in when every slot is taken.
const SPARE_BYTES: usize = 16 * 1024;

/// Zeroed private memory straight from the kernel. Pages that were never written cost nothing.
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no memory that
        // exists already; no descriptor is involved.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // One huge page would charge 2 MiB for the first byte received. Refusal changes nothing but that.
        // SAFETY: `base..base + len` is the mapping made above, and advice never changes its contents.
        let _advice = unsafe { libc::madvise(base, len, libc::MADV_NOHUGEPAGE) };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    /// Start of the mapping; page aligned.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; whoever handed its address out (slots hold the pool,
        // the driver holds the buffer ring) keeps the `Mapping` alive meanwhile.
        let _unmapped = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The worker's receive slots. The free list is a stack: what was used last is used next, so a quiet
/// worker touches few pages and a busy one stays in cache.
pub(super) struct Pool {
    memory: Mapping,
    free: RefCell<Vec<u16>>,
}

impl Pool {
    pub(super) fn new() -> io::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            memory: Mapping::new(usize::from(SLOTS) * SLOT_BYTES)?,
            free: RefCell::new((0..SLOTS).rev().collect()),
        }))
    }

    pub(super) fn take(self: &Rc<Self>) -> Option<Slot> {
        let index = self.free.borrow_mut().pop()?;
        Some(Slot {
            pool: Rc::clone(self),
            index,
        })
    }
}

/// One slot, exclusively: its index is in no free list and in no other `Slot`.
pub(super) struct Slot {
    pool: Rc<Pool>,
    index: u16,
}

impl Slot {
    pub(super) fn index(&self) -> u16 {
        self.index
    }

    pub(super) fn address(&self) -> NonNull<u8> {
        // SAFETY: `Pool::take` yields indices below `SLOTS` only, and the mapping spans `SLOTS` slots.
        unsafe {
            self.pool
                .memory
                .base()
                .add(usize::from(self.index) * SLOT_BYTES)
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the slot's `SLOT_BYTES` lie inside the pool's mapping (see `address`), zeroed at the
        // start and so initialised; only this value names them, and the kernel writes to a slot only while
        // `Provided` holds its `Slot`, which hands out no slices.
        unsafe { std::slice::from_raw_parts(self.address().as_ptr(), SLOT_BYTES) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.address().as_ptr(), SLOT_BYTES) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.free.borrow_mut().push(self.index);
    }
}

enum Memory {
    Slot(Slot),
    Heap(Vec<u8>),
}

/// Received bytes, writable in place. Comes from the worker's pool and goes back to it on drop, so hold
/// it no longer than the bytes are needed: while all slots are held, receives use the heap.
pub struct RecvBuf {
    memory: Memory,
    start: usize,
    end: usize,
}

impl RecvBuf {
    /// A buffer whose whole memory is exposed, for the caller to read into and then `truncate`.
    pub(super) fn writable(pool: &Rc<Pool>) -> Self {
        pool.take()
            .map_or_else(Self::spare, |slot| Self::filled(slot, SLOT_BYTES))
    }

    /// As `writable`, from the heap.
    pub(super) fn spare() -> Self {
        Self::from(vec![0; SPARE_BYTES])
    }

    /// No bytes: the end of a stream.
    pub(super) fn end() -> Self {
        Self::default()
    }

    /// The first `len` bytes of a slot that the kernel has filled.
    pub(super) fn filled(slot: Slot, len: usize) -> Self {
        Self {
            memory: Memory::Slot(slot),
            start: 0,
            end: len.min(SLOT_BYTES),
        }
    }

    /// Drops the first `n` bytes (all of them if there are fewer).
    pub fn advance(&mut self, n: usize) {
        self.start = self.start.saturating_add(n).min(self.end);
    }

    /// Keeps the first `n` bytes (all of them if there are fewer).
    pub fn truncate(&mut self, n: usize) {
        self.end = self.start.saturating_add(n).min(self.end);
    }
}

/// No bytes.
impl Default for RecvBuf {
    fn default() -> Self {
        Self::from(Vec::new())
    }
}

impl From<Vec<u8>> for RecvBuf {
    fn from(bytes: Vec<u8>) -> Self {
        let end = bytes.len();
        Self {
            memory: Memory::Heap(bytes),
            start: 0,
            end,
        }
    }
}

impl AsRef<[u8]> for RecvBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for RecvBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let whole = match &self.memory {
            Memory::Slot(slot) => slot.bytes(),
            Memory::Heap(bytes) => bytes,
        };
        &whole[self.start..self.end]
    }
}

impl DerefMut for RecvBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let whole = match &mut self.memory {
            Memory::Slot(slot) => slot.bytes_mut(),
            Memory::Heap(bytes) => bytes,
        };
        &mut whole[self.start..self.end]
    }
}

impl std::fmt::Debug for RecvBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvBuf")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// A buffer that the kernel may read while the operation owns it.
///
/// # Safety
///
/// `bytes` returns the same memory each time until the value is mutated or dropped, and moving the value
/// does not move that memory: the kernel holds its address meanwhile.
pub unsafe trait SendBuf: 'static {
    /// What to send.
    fn bytes(&self) -> &[u8];
}

// SAFETY: a vector's elements live on the heap, at an address that only mutation changes.
unsafe impl SendBuf for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: `Bytes` points to shared or static memory outside of itself, immutable while it lives.
unsafe impl SendBuf for Bytes {
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: the bytes lie in the pool's mapping or in a vector's heap block, both outside of the value;
// `start` and `end` move with it.
unsafe impl SendBuf for RecvBuf {
    fn bytes(&self) -> &[u8] {
        self
    }
}
