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

use culvert_ebpf::{
    POD_DNS, POD_INBOUND_OPEN, POD_OUTBOUND_OPEN, POD_REDIRECTED, PodEntry, UNREDIRECTED_MARK,
};

use super::{
    Pod, Rules,
    answers::Answers,
    changes::Changes,
    listeners::{self, DnsSockets, PodListeners, WorkerListeners},
    maps::{Maps, Slot},
    netns::Netns,
    programs::{
        DEVICE_PROGRAM, EXIT_PROGRAM, HOLD_PROGRAM, LOOKUP_PROGRAM, LoadError, Loader, PinnedLink,
        Variant,
    },
    reconcile::{Action, Actual, Desired},
    routing::{Device, Family, Netlink, Routing},
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

/// So many looks at a pod trust that the kernel tells of changes; the next one does not.
const LOOKS_UNTIL_SURE: u32 = 60;

/// An enrolled pod and everything the agent holds of it.
#[derive(Debug)]
pub(super) struct ArmedPod {
    pub(super) pod: Pod,
    pub(super) netns: Arc<Netns>,
    pub(super) sockets: Arc<Sockets>,
    /// Whether its devices get the program by which closed ports refuse.
    pub(super) guarded: bool,
    shared: Shared,
    programs: PodPrograms,
    netlink: Netlink,
    /// What was seen of the namespace last, and what tells that it may be otherwise by now.
    routing: Option<Routing>,
    changes: Changes,
    looks: u32,
    lookup: Option<PinnedLink>,
    devices: BTreeMap<Device, PinnedLink>,
    exits: BTreeMap<Device, PinnedLink>,
    /// Copies of the workers' listeners, by which their state is watched.
    listeners: Option<PodListeners>,
    /// Whether workers have not been given these yet.
    has_new_listeners: bool,
}

/// The programs that act in one pod.
#[derive(Debug)]
pub(super) struct PodPrograms {
    lookup: OwnedFd,
    device: OwnedFd,
    exit: OwnedFd,
    hold: OwnedFd,
}

impl PodPrograms {
    /// Loads them; nothing in the kernel acts on the pod yet.
    pub(super) fn load(
        loader: &mut Loader,
        variant: Variant,
        netns_cookie: u64,
    ) -> Result<Self, LoadError> {
        let mut programs = loader.load(variant, Some(netns_cookie))?;
        Ok(Self {
            lookup: programs.load(LOOKUP_PROGRAM)?,
            device: programs.load(DEVICE_PROGRAM)?,
            exit: programs.load(EXIT_PROGRAM)?,
            hold: programs.load(HOLD_PROGRAM)?,
        })
    }
}

impl ArmedPod {
    /// Prepares a pod; nothing in the kernel acts on it yet.
    pub(super) fn prepare(
        pod: Pod,
        netns: Arc<Netns>,
        answers: Answers,
        programs: PodPrograms,
        shared: &Shared,
    ) -> io::Result<Self> {
        let (netlink, changes) =
            netns.run(|| Ok::<_, io::Error>((Netlink::open()?, Changes::open()?)))??;
        let mark = (pod.rules == Rules::IstioCni).then_some(UNREDIRECTED_MARK);
        let maps = Arc::clone(&shared.maps);
        Ok(Self {
            programs,
            sockets: Sockets::new(Arc::clone(&netns), maps, answers, mark),
            guarded: false,
            shared: shared.clone(),
            pod,
            netns,
            netlink,
            routing: None,
            changes,
            looks: 0,
            lookup: None,
            devices: BTreeMap::new(),
            exits: BTreeMap::new(),
            listeners: None,
            has_new_listeners: false,
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
        if !self.pod.outbound {
            flags |= POD_OUTBOUND_OPEN;
        }
        if self.pod.rules == Rules::IstioCni {
            flags |= POD_REDIRECTED;
        }
        let ports = self.listeners.as_ref();
        Desired {
            addresses: self.pod.addresses.clone(),
            holds: self.shared.variant.has_tcx,
            guards: self.shared.variant.has_tcx && self.guarded,
            entry: PodEntry {
                flags,
                outbound_port: ports.map_or(0, |listeners| listeners.outbound_port),
                inbound_port: ports.map_or(0, |listeners| listeners.inbound_port),
            },
        }
    }

    /// What the pod is like. `recorded_addresses` are those that the maps say are its own.
    pub(super) fn observe(&mut self, recorded_addresses: Vec<IpAddr>) -> io::Result<Actual> {
        let cookie = self.netns.cookie();
        let routing = self.routing()?;
        let whole = |links: &BTreeMap<Device, PinnedLink>| {
            let links = links.iter();
            links
                .map(|(device, link)| (*device, link.is_whole()))
                .collect()
        };
        let own = self.pod.addresses.iter().copied();
        let found_by = own.filter_map(|address| {
            let finds = self.shared.maps.finds(cookie, address);
            finds.map(|finds| finds.then_some(address)).transpose()
        });
        Ok(Actual {
            routing,
            listeners_open: self.listeners_open()?,
            slots_filled: self.slots_filled()?,
            lookup_attached: self.lookup.as_ref().is_some_and(PinnedLink::is_whole),
            guards: whole(&self.devices),
            bars: whole(&self.exits),
            recorded_addresses,
            found_by: found_by.collect::<io::Result<_>>()?,
            entry: self.shared.maps.pod(cookie)?,
        })
    }

    /// Whether something has changed in its network namespace since that was looked at.
    pub(super) fn has_changed(&mut self) -> bool {
        if !matches!(self.changes.any(), Ok(false)) {
            self.routing = None;
        }
        self.routing.is_none()
    }

    /// What its network namespace holds. Asked only if something has changed there.
    fn routing(&mut self) -> io::Result<Routing> {
        self.looks = (self.looks + 1) % LOOKS_UNTIL_SURE;
        let has_changed = self.has_changed();
        let known = self.routing.take();
        let routing = match known.filter(|_| !has_changed && self.looks != 0) {
            Some(known) => known,
            None => self.netlink.observe()?,
        };
        self.routing = Some(routing.clone());
        Ok(routing)
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
            Action::RaiseLoopback => self.netlink.raise_loopback(),
            Action::AddBackstopRule(family) => self.netlink.add_backstop_rule(family),
            Action::AddRoute(family) => {
                // IPv6 chooses the source well by itself, and refuses one that is still tentative.
                let source = self.desired().source(family).filter(IpAddr::is_ipv4);
                self.netlink.add_route(family, source)
            }
            Action::AddLoopRule(family) => self.netlink.add_loop_rule(family),
            Action::OpenListeners => self.open_listeners(),
            Action::FillSlots => {
                let maps = &self.shared.maps;
                let mut slots = self.slots();
                slots.try_for_each(|(slot, listener)| maps.set_listener(cookie, slot, listener))
            }
            Action::AttachLookup => self.attach_lookup(),
            Action::GuardDevice(device) => self.watch(device, |pod| &pod.programs.device),
            Action::BarExit(device) => self.bar(device),
            Action::HoldOpenings(device) => self.watch(device, |pod| &pod.programs.hold),
            Action::ForgetDevice(device) => [&mut self.devices, &mut self.exits]
                .into_iter()
                .filter_map(|links| links.remove(&device))
                .try_for_each(PinnedLink::remove),
            Action::RecordAddress(address) => self.shared.maps.add_address(cookie, address),
            Action::FindByAddress(address) => self.shared.maps.find_by(cookie, address),
            Action::ForgetAddress(address) => self.shared.maps.remove_address(cookie, address),
            Action::WriteEntry => self.shared.maps.set_pod(cookie, self.desired().entry),
        }
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
        self.has_new_listeners = true;
        Ok(())
    }

    /// Whether it has listeners that workers have not been given yet.
    pub(super) fn has_new_listeners(&self) -> bool {
        self.has_new_listeners && self.has_listeners()
    }

    /// Whether it has listeners. That they accept connections is another question.
    pub(super) fn has_listeners(&self) -> bool {
        self.listeners.is_some()
    }

    /// Has the next look open new ones. One that leaves the mesh takes nothing more.
    pub(super) fn lose_listeners(&mut self) {
        if !self.is_leaving() {
            self.listeners = None;
        }
    }

    /// The listeners, for the workers to accept from.
    pub(super) fn worker_listeners(&mut self) -> io::Result<Vec<WorkerListeners>> {
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
        let copies = copies.collect::<io::Result<_>>()?;
        self.has_new_listeners = false;
        Ok(copies)
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
        let program = self.programs.lookup.as_fd();
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
        let program = program(self).try_clone()?;
        let held = self.devices.remove(&device);
        let link = self.attach(device, held, (&program, AttachType::TcxIngress), "tcx")?;
        self.devices.insert(device, link);
        Ok(())
    }

    /// Attaches the program that lets nothing captured out by a device.
    fn bar(&mut self, device: Device) -> io::Result<()> {
        let held = self.exits.remove(&device);
        let program = (&self.programs.exit, AttachType::TcxEgress);
        let link = self.attach(device, held, program, "tcx-egress")?;
        self.exits.insert(device, link);
        Ok(())
    }

    /// Makes the link of a program to a device whole, or a new one.
    fn attach(
        &self,
        device: Device,
        held: Option<PinnedLink>,
        (program, side): (&OwnedFd, AttachType),
        kind: &str,
    ) -> io::Result<PinnedLink> {
        let directory = self.shared.pod_pins(self.netns.cookie());
        let pin = directory.join(format!("{kind}-{}", device.index));
        let (program, target) = (program.as_fd(), Target::Device(device.index));
        // The index means a device of the calling thread's network namespace.
        self.netns.run(|| {
            fs::create_dir_all(&directory)?;
            match held {
                Some(mut link) => link.restore(program, target, side).map(|()| link),
                None => PinnedLink::establish(pin, program, target, side),
            }
        })?
    }

    /// Takes nothing new, but for HBONE, and leaves what is captured in place.
    pub(super) fn let_pass(&mut self) -> io::Result<()> {
        self.pod.dns = false;
        self.pod.inbound = false;
        self.pod.outbound = false;
        self.apply(Action::WriteEntry)
    }

    /// Whether it is being released.
    pub(super) fn is_leaving(&self) -> bool {
        !self.pod.outbound
    }

    /// Gives up its part in the workers' listeners: they end when the workers have closed theirs.
    pub(super) fn close_listeners(&mut self) -> io::Result<()> {
        self.listeners = None;
        self.shared.maps.remove_listeners(self.netns.cookie())
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
