//! The buffer ring: slots lent to the kernel, which picks one when data has arrived. An idle connection
//! therefore holds no memory.
//!
//! Linux 5.19: `IORING_REGISTER_PBUF_RING`, `io_uring_register_buf_ring(3)`.

use std::cell::{Cell, RefCell};
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::{IoUring, types};

use super::buffers::{Mapping, Pool, SLOT_LEN, SLOTS, Slot};

/// The only group of our rings.
pub(super) const GROUP: u16 = 0;
/// Slots lent at first. The kernel takes them in turn, so fewer means fewer pages touched.
const INITIAL_DEPTH: u16 = 8;

/// The slots that the kernel holds now, and the shared ring that names them.
pub(super) struct Provided {
    ring: Mapping,
    tail: Cell<u16>,
    depth: Cell<u16>,
    lent_count: Cell<u16>,
    lent: RefCell<Vec<Option<Slot>>>,
    pool: Rc<Pool>,
}

impl Provided {
    /// Registers an empty buffer ring with `uring`; the ring must be gone before this value is.
    pub(super) fn register(uring: &IoUring, pool: Rc<Pool>) -> io::Result<Self> {
        let ring = Mapping::new(usize::from(SLOTS) * size_of::<types::BufRingEntry>())?;
        let address = ring.base().as_ptr().expose_provenance() as u64;
        // SAFETY: the mapping is page aligned and as long as `SLOTS` entries; the driver drops its
        // `IoUring` before its `Provided`, so the registration ends first.
        unsafe {
            uring
                .submitter()
                .register_buf_ring_with_flags(address, SLOTS, GROUP, 0)?;
        };
        Ok(Self {
            ring,
            tail: Cell::new(0),
            depth: Cell::new(INITIAL_DEPTH),
            lent_count: Cell::new(0),
            lent: RefCell::new((0..SLOTS).map(|_| None).collect()),
            pool,
        })
    }

    /// Lends slots to the kernel up to the present depth, as far as the pool has any.
    pub(super) fn refill(&self) {
        let before = self.tail.get();
        while self.lent_count.get() < self.depth.get() {
            let Some(slot) = self.pool.take() else { break };
            self.lend(slot);
        }
        if self.tail.get() != before {
            // SAFETY: `entry(0)` is the first entry of the registered ring, whose reserved field is the
            // ring's tail; all of the mapping was zeroed and so is initialised.
            let tail = unsafe { types::BufRingEntry::tail(self.entry(0).as_ptr()) };
            // SAFETY: the field is two bytes, aligned, alive as long as `self.ring`, and written by this
            // thread alone; the kernel reads it with acquire.
            let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
            tail.store(self.tail.get(), Ordering::Release);
        }
    }

    /// More receives at once than the ring has slots: lend more from now on.
    pub(super) fn exhausted(&self) {
        self.depth.set(SLOTS.min(self.depth.get() * 2));
    }

    /// Takes back a slot that the kernel has filled.
    pub(super) fn taken(&self, id: u16) -> Option<Slot> {
        let slot = self.lent.borrow_mut().get_mut(usize::from(id))?.take()?;
        self.lent_count.set(self.lent_count.get() - 1);
        Some(slot)
    }

    fn lend(&self, slot: Slot) {
        let tail = self.tail.get();
        let mut entry = self.entry(tail % SLOTS);
        // SAFETY: inside the mapping (see `entry`). The kernel reads entries only below the published
        // tail, and this one lies at it: at most `SLOTS` are lent, so it was consumed a lap ago.
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(slot.address().as_ptr().expose_provenance() as u64);
        entry.set_len(SLOT_LEN);
        entry.set_bid(slot.index());
        self.tail.set(tail.wrapping_add(1));
        self.lent_count.set(self.lent_count.get() + 1);
        let index = usize::from(slot.index());
        self.lent.borrow_mut()[index] = Some(slot);
    }

    fn entry(&self, index: u16) -> NonNull<types::BufRingEntry> {
        let first = self.ring.base().cast::<types::BufRingEntry>();
        // SAFETY: callers pass an index below `SLOTS`, and the mapping spans `SLOTS` entries.
        unsafe { first.add(usize::from(index)) }
    }
}
