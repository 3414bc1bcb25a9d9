//! The kernel-direct path as the agent works it: verdicts, live connections, and what happened to them.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::Arc,
};

use aya::maps::{Map, MapData, RingBuf};
use culvert_ebpf::{
    Address, DestinationKey, Endpoint, FlowEntry, FlowEvent, LostEntry, LostKey, SPREAD_MAX,
    SpreadEntry, VERDICT_ALLOW, VERDICT_DENY, VERDICT_SPREAD, VerdictEntry,
};

use super::{
    maps::Maps,
    sys::{self, Table},
};

/// The maps of the path.
#[derive(Debug)]
pub(super) struct DirectMaps {
    verdicts: Table<DestinationKey, VerdictEntry>,
    spreads: Table<DestinationKey, SpreadEntry>,
    flows: Table<u64, FlowEntry>,
    events: std::os::fd::OwnedFd,
    lost: Table<LostKey, LostEntry>,
}

impl DirectMaps {
    /// Opens the maps pinned in a directory.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            verdicts: Table::open(&directory.join("VERDICTS"))?,
            spreads: Table::open(&directory.join("SPREADS"))?,
            flows: Table::open(&directory.join("FLOWS"))?,
            events: sys::open_pin(&directory.join("FLOW_EVENTS"))?,
            lost: Table::open(&directory.join("LOST_ENDS"))?,
        })
    }

    /// The maps with their names.
    pub(super) fn named(
        &self,
    ) -> [(&'static str, BorrowedFd<'_>); culvert_ebpf::DIRECT_MAPS.len()] {
        [
            ("VERDICTS", self.verdicts.as_fd()),
            ("SPREADS", self.spreads.as_fd()),
            ("FLOWS", self.flows.as_fd()),
            ("FLOW_EVENTS", self.events.as_fd()),
            ("LOST_ENDS", self.lost.as_fd()),
        ]
    }

    /// Has everything captured again that an earlier agent let go straight.
    pub(super) fn clear(&self) -> io::Result<()> {
        for key in self.verdicts.keys()? {
            self.verdicts.remove(&key)?;
        }
        for key in self.spreads.keys()? {
            self.spreads.remove(&key)?;
        }
        Ok(())
    }

    /// Removes every verdict about connections from or to a pod.
    pub(super) fn forget_pod(&self, netns_cookie: u64) -> io::Result<()> {
        for (key, verdict) in self.verdicts.entries()? {
            let to_it = verdict.action == VERDICT_ALLOW && verdict.netns_cookie == netns_cookie;
            if to_it || key.netns_cookie == netns_cookie {
                self.verdicts.remove(&key)?;
            }
        }
        for key in self.spreads.keys()? {
            if key.netns_cookie == netns_cookie {
                self.spreads.remove(&key)?;
            }
        }
        Ok(())
    }

    /// Announces a connection whose SYN the agent sends: at its client's end, then where it goes.
    pub(super) fn record(&self, cookie: u64, flow: &FlowEntry) -> io::Result<()> {
        self.flows.insert(&cookie, flow)
    }

    /// Takes that back.
    pub(super) fn strike(&self, cookie: u64) -> io::Result<()> {
        self.flows.remove(&cookie)
    }

    /// Every end of a live connection, by the cookie of its socket.
    pub(super) fn flows(&self) -> io::Result<Vec<(u64, FlowEntry)>> {
        self.flows.entries()
    }
}

/// What becomes of pods' connections to addresses in the node, as the kernel is told. Shared by all threads.
#[derive(Clone, Debug)]
pub(crate) struct DirectPath {
    maps: Arc<Maps>,
}

impl DirectPath {
    pub(super) fn new(maps: Arc<Maps>) -> Self {
        Self { maps }
    }

    /// Has connections from a pod to `to` go straight to the pod in the network namespace `server`.
    ///
    /// # Errors
    ///
    /// When the map cannot be written. The connections are captured then, as before.
    pub(crate) fn allow(&self, client: u64, to: SocketAddr, server: u64) -> io::Result<()> {
        self.rule(client, to, VERDICT_ALLOW, server)
    }

    /// Has connections from a pod to `to` refused.
    ///
    /// # Errors
    ///
    /// As [`allow`](Self::allow).
    pub(crate) fn deny(&self, client: u64, to: SocketAddr) -> io::Result<()> {
        self.rule(client, to, VERDICT_DENY, 0)
    }

    /// Has connections from a pod to the service at `to` spread over `endpoints`, by their weights of `total`, and
    /// captured for the rest of it. Endpoints that are not allowed themselves do not get theirs.
    ///
    /// # Errors
    ///
    /// As [`allow`](Self::allow).
    pub(crate) fn spread(
        &self,
        client: u64,
        to: SocketAddr,
        endpoints: &[(SocketAddr, u32)],
        total: u32,
    ) -> io::Result<()> {
        let nobody = Endpoint {
            address: Address::UNSPECIFIED,
            port: 0,
            below: 0,
        };
        let mut spread = SpreadEntry {
            total,
            count: 0,
            endpoints: [nobody; SPREAD_MAX],
        };
        let mut below = 0_u32;
        for (place, (address, weight)) in spread.endpoints.iter_mut().zip(endpoints) {
            below = below.saturating_add(*weight);
            *place = Endpoint {
                address: address.ip().into(),
                port: u32::from(address.port()),
                below,
            };
            spread.count += 1;
        }
        let key = destination(client, to);
        self.maps.direct.spreads.insert(&key, &spread)?;
        self.rule(client, to, VERDICT_SPREAD, 0)
    }

    fn rule(&self, client: u64, to: SocketAddr, action: u32, netns_cookie: u64) -> io::Result<()> {
        let verdict = VerdictEntry {
            action,
            pad: 0,
            netns_cookie,
        };
        self.maps
            .direct
            .verdicts
            .insert(&destination(client, to), &verdict)
    }

    /// Has connections from a pod to `to` captured again.
    ///
    /// # Errors
    ///
    /// When the map cannot be written. What was decided before holds on.
    pub(crate) fn revoke(&self, client: u64, to: SocketAddr) -> io::Result<()> {
        let key = destination(client, to);
        self.maps.direct.verdicts.remove(&key)?;
        self.maps.direct.spreads.remove(&key)
    }

    /// Every end of a live connection, by the cookie of its socket.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub(crate) fn flows(&self) -> io::Result<Vec<(u64, FlowEntry)>> {
        self.maps.direct.flows()
    }

    /// Ends that could not be told one by one.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub(crate) fn lost(&self) -> io::Result<Vec<(LostKey, LostEntry)>> {
        self.maps.direct.lost.entries()
    }

    /// Forgets ends of a pod that is gone.
    ///
    /// # Errors
    ///
    /// When the map cannot be written. They are told on.
    pub(crate) fn forget_lost(&self, ends: &LostKey) -> io::Result<()> {
        self.maps.direct.lost.remove(ends)
    }

    /// What happens from now on, and what has happened while no agent ran. For one reader.
    ///
    /// # Errors
    ///
    /// When the ring cannot be mapped.
    pub(crate) fn events(&self) -> io::Result<FlowEvents> {
        let ring = self.maps.direct.events.try_clone()?;
        let map = MapData::from_fd(ring).map_err(io::Error::other)?;
        let ring = RingBuf::try_from(Map::RingBuf(map)).map_err(io::Error::other)?;
        Ok(FlowEvents { ring })
    }
}

fn destination(netns_cookie: u64, to: SocketAddr) -> DestinationKey {
    DestinationKey {
        netns_cookie,
        address: to.ip().into(),
        port: to.port(),
        pad: [0; 3],
    }
}

/// What happens to direct connections, in order.
pub(crate) struct FlowEvents {
    ring: RingBuf<MapData>,
}

impl FlowEvents {
    /// The next event, if there is one by now.
    pub(crate) fn next(&mut self) -> Option<FlowEvent> {
        loop {
            let record = self.ring.next()?;
            if let Some(event) = FlowEvent::read(&record) {
                return Some(event);
            }
        }
    }
}
