//! Sockets, and what is noted in them.

use core::{ffi::c_void, marker::PhantomData, mem::offset_of, ptr::NonNull};

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::bpf_sk_storage_get,
};
use culvert_ebpf::SocketNote;

use crate::maps::SOCKETS;

/// A socket that lives at least as long as the running program.
#[derive(Clone, Copy)]
pub struct Socket<'a> {
    pub(super) sk: NonNull<bpf_sock>,
    _context: PhantomData<&'a ()>,
}

impl Socket<'_> {
    pub(super) fn from_ptr(sk: *mut bpf_sock) -> Option<Self> {
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
