//! Connections that are held back: how the agent hears of them.
//!
//! Each worker has a ring of its own, to which the pods' `hold_opening` programs write. The rings are new
//! with each agent: what an earlier one did not get to see, its clients send again.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::maps::{Map, MapData, RingBuf};
use culvert_ebpf::{HeldSyn, RING_BYTES, RINGS_MAX};

use super::{maps::Maps, sys};

/// The connections that are held back for one worker, in the order of their SYNs.
pub(crate) struct Openings {
    ring: RingBuf<MapData>,
}

impl Openings {
    /// Makes a ring for each worker and puts it in the place of an earlier agent's.
    pub(super) fn prepare(maps: &Maps, workers: usize) -> io::Result<Vec<Self>> {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX);
        if workers > RINGS_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("connections can be held for {RINGS_MAX} workers at most"),
            ));
        }
        let prepare = |worker| {
            let ring = sys::create_ring(RING_BYTES)?;
            maps.set_ring(worker, &ring)?;
            let map = MapData::from_fd(ring).map_err(io::Error::other)?;
            let ring = RingBuf::try_from(Map::RingBuf(map)).map_err(io::Error::other)?;
            Ok(Self { ring })
        };
        (0..workers).map(prepare).collect()
    }

    /// A descriptor that becomes readable when there is one more.
    ///
    /// # Errors
    ///
    /// When the process has no descriptors left.
    pub(crate) fn announcements(&self) -> io::Result<OwnedFd> {
        self.ring.as_fd().try_clone_to_owned()
    }

    /// The next one.
    pub(crate) fn next(&mut self) -> Option<HeldSyn> {
        loop {
            let record = self.ring.next()?;
            if let Some(syn) = HeldSyn::read(&record) {
                return Some(syn);
            }
        }
    }
}
