//! The pinned maps, by what they mean to the agent.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use culvert_ebpf::{
    Address, Control, DestinationEntry, DestinationKey, FLOW_CLIENT, FlowEntry, LISTENER_INBOUND,
    LISTENER_OUTBOUND, ListenerKey, LocalAddress, PodEntry, RINGS_MAX, ResolverEntry, ResolverKey,
    SocketNote, TUPLE_DIRECT, TUPLE_OUTBOUND, TupleEntry, TupleKey,
};

use super::{
    direct::DirectMaps,
    sys::{self, MapShape, Table},
};

/// Every map that outlives the agent.
#[derive(Debug)]
pub(crate) struct Maps {
    pods: Table<u64, PodEntry>,
    local_addresses: Table<LocalAddress, u32>,
    pod_by_address: Table<Address, u64>,
    tuples: Table<TupleKey, TupleEntry>,
    openings: Table<u64, u64>,
    openings_all: Table<u32, u64>,
    refusals: Table<TupleKey, u64>,
    sockets: Table<u32, SocketNote>,
    listeners: Table<ListenerKey, u64>,
    resolvers: Table<ResolverKey, ResolverEntry>,
    control: Table<u32, Control>,
    rings: Table<u32, u32>,
    answering: Table<DestinationKey, DestinationEntry>,
    pub(super) direct: DirectMaps,
}

/// Which of a pod's listeners a slot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The plaintext inbound listeners, any worker's.
    Inbound,
    /// A worker's outbound listener.
    Outbound(u32),
}

impl Maps {
    /// Checks that maps pinned earlier have the shape this agent's programs expect: the verifier would
    /// say so too, in words that nobody understands.
    pub(crate) fn check(directory: &Path) -> io::Result<()> {
        let all = culvert_ebpf::MAPS.iter().chain(&culvert_ebpf::DIRECT_MAPS);
        for (name, key_size, value_size) in all.copied() {
            let pinned = match sys::open_pin(&directory.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                pinned => pinned?,
            };
            if sys::map_shape(pinned.as_fd())?
                != (MapShape {
                    key_size,
                    value_size,
                })
            {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "the pinned map {name} was made by an incompatible version: run `culvert uninstall` of that version first"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Opens the maps pinned in a directory.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            pods: Table::open(&directory.join("PODS"))?,
            local_addresses: Table::open(&directory.join("LOCAL_ADDRESSES"))?,
            pod_by_address: Table::open(&directory.join("POD_BY_ADDRESS"))?,
            tuples: Table::open(&directory.join("TUPLES"))?,
            openings: Table::open(&directory.join("OPENINGS"))?,
            openings_all: Table::open(&directory.join("OPENINGS_ALL"))?,
            refusals: Table::open(&directory.join("REFUSALS"))?,
            sockets: Table::open(&directory.join("SOCKETS"))?,
            listeners: Table::open(&directory.join("LISTENERS"))?,
            resolvers: Table::open(&directory.join("RESOLVERS"))?,
            control: Table::open(&directory.join("CONTROL"))?,
            rings: Table::open(&directory.join("RINGS"))?,
            answering: Table::open(&directory.join("ANSWERING"))?,
            direct: DirectMaps::open(directory)?,
        })
    }

    /// Gives back their names to maps that lost them; returns how many there were. A later agent could
    /// not find the state of the programs that are attached, and would start from nothing.
    pub(crate) fn restore_pins(&self, directory: &Path) -> io::Result<usize> {
        let maps: [(&str, BorrowedFd<'_>); culvert_ebpf::MAPS.len()] = [
            ("PODS", self.pods.as_fd()),
            ("LOCAL_ADDRESSES", self.local_addresses.as_fd()),
            ("POD_BY_ADDRESS", self.pod_by_address.as_fd()),
            ("TUPLES", self.tuples.as_fd()),
            ("OPENINGS", self.openings.as_fd()),
            ("OPENINGS_ALL", self.openings_all.as_fd()),
            ("REFUSALS", self.refusals.as_fd()),
            ("SOCKETS", self.sockets.as_fd()),
            ("LISTENERS", self.listeners.as_fd()),
            ("RESOLVERS", self.resolvers.as_fd()),
            ("CONTROL", self.control.as_fd()),
            ("RINGS", self.rings.as_fd()),
            ("ANSWERING", self.answering.as_fd()),
        ];
        let mut restored = 0;
        for (name, map) in maps.into_iter().chain(self.direct.named()) {
            let pin = directory.join(name);
            if !pin.exists() {
                sys::pin(map, &pin)?;
                restored += 1;
            }
        }
        Ok(restored)
    }

    /// Tells all programs what they need to know of the agent.
    pub(crate) fn set_control(&self, control: &Control) -> io::Result<()> {
        self.control.insert(&0, control)
    }

    /// What they were told last; `None` or zeroes if nothing.
    pub(crate) fn control(&self) -> io::Result<Option<Control>> {
        self.control.get(&0)
    }

    /// The entry that makes a pod's connections captured.
    pub(crate) fn pod(&self, netns_cookie: u64) -> io::Result<Option<PodEntry>> {
        self.pods.get(&netns_cookie)
    }

    pub(crate) fn set_pod(&self, netns_cookie: u64, entry: PodEntry) -> io::Result<()> {
        // First: what is captured without a count is not bounded.
        if self.openings.get(&netns_cookie)?.is_none() {
            self.openings.insert(&netns_cookie, &0)?;
        }
        self.pods.insert(&netns_cookie, &entry)
    }

    pub(crate) fn remove_pod(&self, netns_cookie: u64) -> io::Result<()> {
        self.pods.remove(&netns_cookie)
    }

    /// The addresses recorded as pods' own, by the cookies of their network namespaces.
    pub(crate) fn addresses(&self) -> io::Result<BTreeMap<u64, Vec<IpAddr>>> {
        let mut addresses = BTreeMap::<_, Vec<_>>::new();
        for (key, _) in self.local_addresses.entries()? {
            let own = addresses.entry(key.netns_cookie).or_default();
            own.push(key.address.into());
        }
        Ok(addresses)
    }

    pub(crate) fn add_address(&self, netns_cookie: u64, address: IpAddr) -> io::Result<()> {
        let own = LocalAddress {
            netns_cookie,
            address: address.into(),
        };
        self.local_addresses.insert(&own, &0)
    }

    /// Whether the node finds this pod by an address: a link-local one is not unique, so nobody is found by it.
    pub(crate) fn finds(&self, netns_cookie: u64, address: IpAddr) -> io::Result<bool> {
        let address = Address::from(address);
        let found = self.pod_by_address.get(&address)?;
        Ok(address.is_link_local_v6() || found == Some(netns_cookie))
    }

    /// Has the node find the pod by an address.
    pub(crate) fn find_by(&self, netns_cookie: u64, address: IpAddr) -> io::Result<()> {
        self.pod_by_address.insert(&address.into(), &netns_cookie)
    }

    pub(crate) fn remove_address(&self, netns_cookie: u64, address: IpAddr) -> io::Result<()> {
        let address = Address::from(address);
        self.local_addresses.remove(&LocalAddress {
            netns_cookie,
            address,
        })?;
        // The address may have passed to another pod already.
        if self.pod_by_address.get(&address)? == Some(netns_cookie) {
            self.pod_by_address.remove(&address)?;
        }
        Ok(())
    }

    /// Notes what a socket is to capture.
    pub(crate) fn set_note(&self, socket: &OwnedFd, note: &SocketNote) -> io::Result<()> {
        self.sockets
            .insert(&socket.as_raw_fd().cast_unsigned(), note)
    }

    /// The cookie of the listener in a slot.
    pub(crate) fn listener(&self, netns_cookie: u64, slot: Slot) -> io::Result<Option<u64>> {
        self.listeners.get(&slot.key(netns_cookie))
    }

    pub(crate) fn set_listener(
        &self,
        netns_cookie: u64,
        slot: Slot,
        listener: &OwnedFd,
    ) -> io::Result<()> {
        let value = u64::from(listener.as_raw_fd().cast_unsigned());
        self.listeners.insert(&slot.key(netns_cookie), &value)
    }

    pub(crate) fn remove_listeners(&self, netns_cookie: u64) -> io::Result<()> {
        self.listeners.remove(&Slot::Inbound.key(netns_cookie))?;
        // An earlier agent may have had more workers than this one, but none after a gap.
        for worker in 0..RINGS_MAX {
            let key = Slot::Outbound(worker).key(netns_cookie);
            if self.listeners.get(&key)?.is_none() {
                break;
            }
            self.listeners.remove(&key)?;
        }
        Ok(())
    }

    /// Puts the ring of a worker in place of an earlier one, for programs to write to.
    pub(crate) fn set_ring(&self, worker: u32, ring: &OwnedFd) -> io::Result<()> {
        self.rings
            .insert(&worker, &ring.as_raw_fd().cast_unsigned())
    }

    /// Has a pod's connections to a destination held, however busily it has answered until now.
    pub(crate) fn hold_again(&self, netns_cookie: u64, destination: SocketAddr) -> io::Result<()> {
        self.answering.remove(&DestinationKey {
            netns_cookie,
            address: destination.ip().into(),
            port: destination.port(),
            pad: [0; 3],
        })
    }

    /// The resolver that the DNS client behind `source` meant.
    pub(crate) fn resolver(
        &self,
        netns_cookie: u64,
        source: SocketAddr,
    ) -> io::Result<Option<SocketAddr>> {
        let ip_version = if source.ip().to_canonical().is_ipv4() {
            4
        } else {
            6
        };
        let key = ResolverKey {
            netns_cookie,
            source_port: source.port(),
            ip_version,
            pad: 0,
        };
        let entry = self.resolvers.get(&key)?;
        Ok(entry.and_then(|entry| {
            let port = u16::try_from(entry.port).ok()?;
            Some(SocketAddr::new(entry.address.into(), port))
        }))
    }

    /// Announces a captured connection of a pod's to the pod in the network namespace `server`, as one that goes there by
    /// itself from now on. False if the application has given it up.
    pub(crate) fn announce(
        &self,
        (client, server): (u64, u64),
        (source, destination): (SocketAddr, SocketAddr),
        now_ns: u64,
    ) -> io::Result<bool> {
        let captured = TupleKey {
            netns_cookie: client,
            local: destination.ip().into(),
            remote: source.ip().into(),
            local_port: destination.port(),
            remote_port: source.port(),
            pad: 0,
        };
        let Some(TupleEntry { socket_cookie, .. }) = self
            .tuples
            .get(&captured)?
            .filter(|entry| entry.kind == TUPLE_OUTBOUND)
        else {
            return Ok(false);
        };
        let flow = FlowEntry {
            client_netns: client,
            server_netns: server,
            since_ns: now_ns,
            client: captured.remote,
            server: captured.local,
            dialled: captured.local,
            client_port: captured.remote_port,
            server_port: captured.local_port,
            dialled_port: captured.local_port,
            end: FLOW_CLIENT,
        };
        // The record first: what stands in it is found when its right ends.
        self.direct.record(socket_cookie, &flow)?;
        let announcement = TupleEntry {
            kind: TUPLE_DIRECT,
            port: u32::from(destination.port()),
            address: captured.local,
            socket_cookie,
            client_netns: client,
        };
        let announced = TupleKey {
            netns_cookie: server,
            ..captured
        };
        if let Err(error) = self.tuples.insert(&announced, &announcement) {
            self.direct.strike(socket_cookie)?;
            return Err(error);
        }
        // Closed in between, it would leave both behind.
        let is_there = self.tuples.get(&captured)?;
        if is_there.is_none_or(|entry| entry.socket_cookie != socket_cookie) {
            self.tuples.remove(&announced)?;
            self.direct.strike(socket_cookie)?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Sums up anew how many connections in their opening pods have. What changes meanwhile is missing until the next time.
    pub(crate) fn sum_up_openings(&self) -> io::Result<()> {
        let counts = self.openings.entries()?.into_iter();
        // One that has fallen below zero has lost a few to a moment in which nobody counted; it is nothing that others have.
        let sum = counts
            .map(|(_, count)| count.cast_signed().max(0))
            .sum::<i64>();
        self.openings_all.insert(&0, &sum.cast_unsigned())
    }

    /// Forgets everything about a pod whose network namespace may be gone, the pod's entry first.
    pub(crate) fn forget_pod(&self, netns_cookie: u64) -> io::Result<()> {
        self.remove_pod(netns_cookie)?;
        self.direct.forget_pod(netns_cookie)?;
        let mut addresses = self.addresses()?;
        for address in addresses.remove(&netns_cookie).unwrap_or_default() {
            self.remove_address(netns_cookie, address)?;
        }
        self.remove_listeners(netns_cookie)?;
        for (key, _) in self.tuples.entries()? {
            if key.netns_cookie == netns_cookie {
                self.tuples.remove(&key)?;
            }
        }
        self.openings.remove(&netns_cookie)?;
        self.sum_up_openings()?;
        for key in self.resolvers.keys()? {
            if key.netns_cookie == netns_cookie {
                self.resolvers.remove(&key)?;
            }
        }
        for key in self.answering.keys()? {
            if key.netns_cookie == netns_cookie {
                self.answering.remove(&key)?;
            }
        }
        Ok(())
    }
}

/// What tests see and set of connections in their opening.
#[cfg(test)]
impl Maps {
    /// How many there are: by it is seen that nothing is left behind.
    pub(crate) fn openings(&self) -> io::Result<usize> {
        Ok(self.tuples.entries()?.len())
    }

    /// How many of a pod's own are counted; `None` if it has no count.
    pub(crate) fn opening_count(&self, netns_cookie: u64) -> io::Result<Option<u64>> {
        self.openings.get(&netns_cookie)
    }

    /// How many of all pods' are.
    pub(crate) fn opening_sum(&self) -> io::Result<Option<u64>> {
        self.openings_all.get(&0)
    }

    /// Has a pod have so many.
    pub(crate) fn set_opening_count(&self, netns_cookie: u64, count: u64) -> io::Result<()> {
        self.openings.insert(&netns_cookie, &count)?;
        self.sum_up_openings()
    }
}

impl Slot {
    fn key(self, netns_cookie: u64) -> ListenerKey {
        let (role, worker) = match self {
            Self::Inbound => (LISTENER_INBOUND, 0),
            Self::Outbound(worker) => (LISTENER_OUTBOUND, worker),
        };
        ListenerKey {
            netns_cookie,
            role,
            worker,
        }
    }
}
