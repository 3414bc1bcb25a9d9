//! Typed access to a pinned map.

use std::{
    io,
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::Pod;

use super::{MapShape, bpf, bpf_mut, command, map_shape, open_pin};

/// A map whose keys and values are of known types.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    map: OwnedFd,
    _types: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Opens a pinned map of that shape.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let map = open_pin(path)?;
        let expected = MapShape {
            key_size: size_of::<K>(),
            value_size: size_of::<V>(),
        };
        if map_shape(map.as_fd())? != expected {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the pinned map was made by an incompatible version",
            ));
        }
        Ok(Self {
            map,
            _types: PhantomData,
        })
    }

    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        let attr = self.element(key, value.as_mut_ptr() as u64);
        // SAFETY: `attr` is that command's arm; `key` and `value` are of the map's sizes, as `open` found, and live to the end
        // of this function, where nobody else has `value`.
        match unsafe { bpf(command::MAP_LOOKUP_ELEM, &attr) } {
            // SAFETY: on success the kernel has written a value of the map's size, which `open` found
            // to be that of `V`, and every bit pattern is a `V` because it is `Pod`.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        let attr = self.element(key, std::ptr::from_ref(value) as u64);
        // SAFETY: `attr` is that command's arm; it reads a key and a value, references to which this function has and whose
        // sizes are the map's, as `open` found.
        unsafe { bpf(command::MAP_UPDATE_ELEM, &attr) }.map(drop)
    }

    /// Removes an entry; it is no error if there is none.
    pub(crate) fn remove(&self, key: &K) -> io::Result<()> {
        // SAFETY: the attributes are that command's arm; it reads a key, a reference to which this function has and whose size
        // is the map's, as `open` found.
        match unsafe { bpf(command::MAP_DELETE_ELEM, &self.element(key, 0)) } {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// All keys at this moment; keys that come and go meanwhile may be missing or appear twice.
    pub(crate) fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys = Vec::<K>::new();
        loop {
            let previous = keys.last().map_or(0, |key| std::ptr::from_ref(key) as u64);
            let mut next = MaybeUninit::<K>::uninit();
            let attr = ElementAttr {
                map: self.map.as_raw_fd().cast_unsigned(),
                pad: 0,
                key: previous,
                value: next.as_mut_ptr() as u64,
                flags: 0,
            };
            // SAFETY: `attr` is that command's arm; it reads a key in `keys`, if any, and writes one to `next`, both of the
            // map's size, as `open` found. Neither is touched meanwhile.
            match unsafe { bpf(command::MAP_GET_NEXT_KEY, &attr) } {
                // SAFETY: on success the kernel has written a key of the map's size, that of `K`.
                Ok(_) => keys.push(unsafe { next.assume_init() }),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }

    /// All entries at this moment; those that come and go meanwhile may be missing. Unlike [`keys`](Self::keys) it
    /// does not begin anew when an entry goes, and takes a system call for hundreds of them.
    pub(crate) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        let mut room = BATCH;
        let mut position = None;
        loop {
            let mut keys = Vec::<K>::with_capacity(room);
            let mut values = Vec::<V>::with_capacity(room);
            let mut next = 0_u32;
            let before = position
                .as_ref()
                .map_or(0, |position| std::ptr::from_ref::<u32>(position) as u64);
            let mut attr = BatchAttr {
                before,
                after: (&raw mut next) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(room).map_err(io::Error::other)?,
                map: self.map.as_raw_fd().cast_unsigned(),
                element_flags: 0,
                flags: 0,
            };
            // SAFETY: `attr` is that command's arm, of which it writes `count`, a number. It writes at most `count` keys and
            // values, of the map's sizes, as `open` found, for which both vectors have room. A position, `next` or `position`,
            // has four bytes: it is the number of a bucket of a hash map, or the key of an array. No other maps of ours have it.
            let outcome = unsafe { bpf_mut(command::MAP_LOOKUP_BATCH, &mut attr) };
            let is_last = match outcome {
                Ok(_) => false,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => true,
                    // A bucket that does not fit in: the same again with more room.
                    Some(libc::ENOSPC) => {
                        room *= 2;
                        continue;
                    }
                    _ => return Err(error),
                },
            };
            let read = (attr.count as usize).min(room);
            // SAFETY: the kernel has written `count` keys of the map's size, which `open` found to be that of `K`;
            // there is room for so many, and every bit pattern is a key.
            unsafe { keys.set_len(read) };
            // SAFETY: as many values, likewise.
            unsafe { values.set_len(read) };
            all.extend(keys.into_iter().zip(values));
            if is_last {
                return Ok(all);
            }
            position = Some(next);
        }
    }

    fn element(&self, key: &K, value: u64) -> ElementAttr {
        ElementAttr {
            map: self.map.as_raw_fd().cast_unsigned(),
            pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value,
            flags: 0,
        }
    }
}

impl<K, V> AsFd for Table<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// How many entries are asked for at once to begin with.
const BATCH: usize = 256;

/// The batch arm of `union bpf_attr`; the kernel writes `count`.
#[repr(C)]
struct BatchAttr {
    before: u64,
    after: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}
