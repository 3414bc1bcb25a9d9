//! One enrolled pod: observing it, carrying out the reconciler's actions, letting it go.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    num::NonZeroUsize,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use culvert_ebpf::{POD_DNS, POD_INBOUND_OPEN, PodEntry};

use super::{
    Pod,
    answers::Answers,
    listeners::{self, DnsSockets, PodListeners, WorkerListeners},
    maps::{Maps, Slot},
    netns::Netns,
    programs::{
        self, DEVICE_PROGRAM, HOLD_PROGRAM, Instance, LOOKUP_PROGRAM, Loaded, PinnedLink, Variant,
    },
    reconcile::{Action, Actual, Desired},
    routing::{Device, Family, Netlink},
    sock_diag,
    sockets::{Sockets, own_note},
    sys::{self, AttachType, Target},
};

/// What all pods of an agent have in common.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) maps: Arc<Maps>,
    pub(super) pins: PathBuf,
    pub(super) variant: Variant,
    pub(super) workers: NonZeroUsize,
}

impl Shared {
    /// Where the pinned maps are.
    pub(super) fn map_pins(&self) -> PathBuf {
        self.pins.join("maps")
    }

    /// Where a pod's links are pinned.
    pub(super) fn pod_pins(&self, netns_cookie: u64) -> PathBuf {
        self.pins.join("pods").join(netns_cookie.to_string())
    }
}

/// An enrolled pod and everything the agent holds of it.
#[derive(Debug)]
pub(super) struct ArmedPod {
    pub(super) pod: Pod,
    pub(super) netns: Arc<Netns>,
    pub(super) sockets: Arc<Sockets>,
    shared: Shared,
    lookup_program: OwnedFd,
    device_program: OwnedFd,
    hold_program: OwnedFd,
    lookup: Option<PinnedLink>,
    devices: BTreeMap<Device, PinnedLink>,
    /// Copies of the workers' listeners, by which their state is watched.
    listeners: Option<PodListeners>,
}

impl ArmedPod {
    /// Prepares a pod's programs; nothing in the kernel acts on the pod yet.
    pub(super) fn prepare(
        pod: Pod,
        netns: Arc<Netns>,
        answers: Answers,
        shared: &Shared,
    ) -> Result<Self, programs::LoadError> {
        let maps = shared.map_pins();
        let instance = Instance {
            maps: Some(&maps),
            pod: Some(netns.cookie()),
        };
        let [lookup, device, hold] = [LOOKUP_PROGRAM, DEVICE_PROGRAM, HOLD_PROGRAM];
        let mut loaded = programs::load(instance, shared.variant, [lookup, device, hold])?;
        let mut take = |name| {
            let found = loaded.iter().position(|loaded| loaded.name == name);
            let found = found.map(|index| loaded.swap_remove(index));
            found
                .map(|Loaded { program, .. }| program)
                .ok_or(programs::LoadError::Missing { name })
        };
        Ok(Self {
            lookup_program: take(lookup)?,
            device_program: take(device)?,
            hold_program: take(hold)?,
            sockets: Sockets::new(Arc::clone(&netns), Arc::clone(&shared.maps), answers),
            shared: shared.clone(),
            pod,
            netns,
            lookup: None,
            devices: BTreeMap::new(),
            listeners: None,
        })
    }

    /// What the pod is to be like.
    pub(super) fn desired(&self) -> Desired {
        let mut flags = 0;
        if self.pod.dns {
            flags |= POD_DNS;
        }
        if !self.pod.inbound {
            flags |= POD_INBOUND_OPEN;
        }
        let ports = self.listeners.as_ref();
        Desired {
            addresses: self.pod.addresses.clone(),
            device_programs: self.shared.variant.has_tcx,
            entry: PodEntry {
                flags,
                outbound_port: ports.map_or(0, |listeners| listeners.outbound_port),
                inbound_port: ports.map_or(0, |listeners| listeners.inbound_port),
            },
        }
    }

    /// What the pod is like.
    pub(super) fn observe(&self) -> io::Result<Actual> {
        let cookie = self.netns.cookie();
        let routing = self.netns.run(|| Netlink::open()?.observe())??;
        let guards = self
            .devices
            .iter()
            .map(|(device, link)| (*device, link.is_whole()));
        Ok(Actual {
            routing,
            listeners_open: self.listeners_open()?,
            slots_filled: self.slots_filled()?,
            lookup_attached: self.lookup.as_ref().is_some_and(PinnedLink::is_whole),
            guards: guards.collect(),
            recorded_addresses: self.shared.maps.addresses(cookie)?,
            entry: self.shared.maps.pod(cookie)?,
        })
    }

    fn listeners_open(&self) -> io::Result<bool> {
        let Some(listeners) = &self.listeners else {
            return Ok(false);
        };
        for worker in &listeners.workers {
            for listener in [&worker.outbound, &worker.inbound, &worker.hbone] {
                if !sys::is_listening(listener.as_fd())? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn slots_filled(&self) -> io::Result<bool> {
        let cookie = self.netns.cookie();
        for (slot, listener) in self.slots() {
            let expected = sys::socket_cookie(listener.as_fd())?;
            if self.shared.maps.listener(cookie, slot)? != Some(expected) {
                return Ok(false);
            }
        }
        Ok(self.listeners.is_some())
    }

    /// The listener for each slot. Inbound, one worker's is enough: the kernel goes on to choose among all
    /// that share its port.
    fn slots(&self) -> impl Iterator<Item = (Slot, &OwnedFd)> {
        let workers = self.listeners.iter().flat_map(|all| &all.workers);
        let outbound = (0..).zip(workers.clone());
        let inbound = workers.take(1);
        inbound
            .map(|worker| (Slot::Inbound, &worker.inbound))
            .chain(outbound.map(|(index, worker)| (Slot::Outbound(index), &worker.outbound)))
    }

    /// Carries out one action.
    pub(super) fn apply(&mut self, action: Action) -> io::Result<()> {
        let cookie = self.netns.cookie();
        match action {
            Action::RaiseLoopback => self.netlink(Netlink::raise_loopback),
            Action::AddBackstopRule(family) => {
                self.netlink(|netlink| netlink.add_backstop_rule(family))
            }
            Action::AddRoute(family) => {
                // IPv6 chooses the source well by itself, and refuses one that is still tentative.
                let source = self.desired().source(family).filter(IpAddr::is_ipv4);
                self.netlink(|netlink| netlink.add_route(family, source))
            }
            Action::AddLoopRule(family) => self.netlink(|netlink| netlink.add_loop_rule(family)),
            Action::OpenListeners => self.open_listeners(),
            Action::FillSlots => {
                let maps = &self.shared.maps;
                let mut slots = self.slots();
                slots.try_for_each(|(slot, listener)| maps.set_listener(cookie, slot, listener))
            }
            Action::AttachLookup => self.attach_lookup(),
            Action::GuardDevice(device) => self.watch(device, |pod| &pod.device_program),
            Action::HoldOpenings(device) => self.watch(device, |pod| &pod.hold_program),
            Action::ForgetDevice(device) => self
                .devices
                .remove(&device)
                .map_or(Ok(()), PinnedLink::remove),
            Action::RecordAddress(address) => self.shared.maps.add_address(cookie, address),
            Action::ForgetAddress(address) => self.shared.maps.remove_address(cookie, address),
            Action::WriteEntry => self.shared.maps.set_pod(cookie, self.desired().entry),
        }
    }

    fn netlink(&self, work: impl FnOnce(&mut Netlink) -> io::Result<()> + Send) -> io::Result<()> {
        self.netns.run(|| work(&mut Netlink::open()?))?
    }

    fn open_listeners(&mut self) -> io::Result<()> {
        self.listeners = None;
        let workers = self.shared.workers;
        let opened = self.netns.run(|| listeners::open(workers))??;
        // The connect hook takes only a listener with this note for a living agent's.
        for worker in &opened.workers {
            for listener in [&worker.outbound, &worker.inbound, &worker.hbone] {
                self.shared.maps.set_note(listener, &own_note())?;
            }
        }
        self.listeners = Some(opened);
        Ok(())
    }

    /// The listeners, for the workers to accept from.
    pub(super) fn worker_listeners(&self) -> io::Result<Vec<WorkerListeners>> {
        let listeners = self
            .listeners
            .iter()
            .flat_map(|listeners| &listeners.workers);
        let copies = listeners.map(|worker| {
            Ok(WorkerListeners {
                outbound: worker.outbound.try_clone()?,
                inbound: worker.inbound.try_clone()?,
                hbone: worker.hbone.try_clone()?,
            })
        });
        copies.collect()
    }

    /// Opens the DNS proxy's sockets in the pod.
    pub(super) fn open_dns(&self) -> io::Result<DnsSockets> {
        let sockets = self.netns.run(listeners::open_dns)??;
        for socket in &sockets.udp {
            self.shared.maps.set_note(socket, &own_note())?;
        }
        Ok(sockets)
    }

    fn attach_lookup(&mut self) -> io::Result<()> {
        let directory = self.shared.pod_pins(self.netns.cookie());
        fs::create_dir_all(&directory)?;
        let program = self.lookup_program.as_fd();
        let target = Target::Fd(self.netns.as_fd());
        if let Some(link) = &mut self.lookup {
            return link.restore(program, target, AttachType::SkLookup);
        }
        let pin = directory.join("sk_lookup");
        self.lookup = Some(PinnedLink::establish(
            pin,
            program,
            target,
            AttachType::SkLookup,
        )?);
        Ok(())
    }

    /// Attaches a program to what a device receives.
    fn watch(&mut self, device: Device, program: fn(&Self) -> &OwnedFd) -> io::Result<()> {
        let directory = self.shared.pod_pins(self.netns.cookie());
        let pin = directory.join(format!("tcx-{}", device.index));
        let target = Target::Device(device.index);
        let program = program(self).try_clone()?;
        let program = program.as_fd();
        // The index means a device of the calling thread's network namespace.
        let held = self.devices.get_mut(&device);
        let made = self.netns.run(|| {
            fs::create_dir_all(&directory)?;
            match held {
                Some(link) => link
                    .restore(program, target, AttachType::TcxIngress)
                    .map(|()| None),
                None => {
                    PinnedLink::establish(pin, program, target, AttachType::TcxIngress).map(Some)
                }
            }
        })??;
        self.devices.extend(made.map(|link| (device, link)));
        Ok(())
    }

    /// Undoes everything, the entry first: nothing new is captured while the rest goes.
    pub(super) fn disarm(mut self) -> io::Result<()> {
        self.listeners = None;
        disarm(&self.shared, &self.netns)
    }
}

/// Undoes everything that any agent with the same run directory did to a network namespace.
pub(super) fn disarm(shared: &Shared, netns: &Netns) -> io::Result<()> {
    let cookie = netns.cookie();
    shared.maps.remove_pod(cookie)?;
    forget(shared, cookie)?;
    let flows = shared.maps.direct.flows()?;
    netns.run(|| {
        sock_diag::destroy_captured()?;
        let own = flows.iter().filter(|(_, flow)| flow.own_netns() == cookie);
        sock_diag::destroy_flows(own)?;
        let mut netlink = Netlink::open()?;
        let seen = netlink.observe()?;
        for family in Family::ALL {
            if seen.loop_rules.contains(&family) {
                netlink.remove_loop_rule(family)?;
            }
            if seen.routes.contains(&family) {
                netlink.remove_route(family)?;
            }
            if seen.backstop_rules.contains(&family) {
                netlink.remove_backstop_rule(family)?;
            }
        }
        Ok(())
    })?
}

/// Removes what the kernel keeps of a pod outside its network namespace.
pub(super) fn forget(shared: &Shared, netns_cookie: u64) -> io::Result<()> {
    shared.maps.forget_pod(netns_cookie)?;
    match fs::remove_dir_all(shared.pod_pins(netns_cookie)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
