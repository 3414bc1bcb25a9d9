//! Capture: which pods' connections go to the proxy, and how they get there.
//!
//! Owns the eBPF programs, what is pinned of them, and everything the agent changes in a pod's network
//! namespace. Knows nothing of meshes: it is told which pods to enrol and hands out listeners and
//! sockets. See `docs/adr/0001` to `0003` for how it works and why.
//!
//! ```text
//!   application ── connect ─▶ [cgroup/connect] mark ─▶ rule, local route ─▶ lo
//!                                     ├─ allowed to another pod of the node: unmarked, straight to its application
//!                                     │                                      │
//!                              [sock_ops] tuple ─▶ [tcx] held SYN ─▶ agent dials, then ─▶ [sk_lookup] outbound listener ─▶ agent
//!   wire ─▶ eth0 ─▶ [tcx] closed port? ─────────────────────▶ [sk_lookup] inbound listener ──▶ agent
//!   agent ── leg, pod address to itself ─▶ application   [sock_ops, getpeername] shows the client
//! ```

mod answers;
mod arming;
mod btf;
mod changes;
mod control;
mod direct;
mod error;
mod listeners;
mod maps;
mod netns;
mod object;
mod openings;
mod packet;
mod pins;
mod pods;
pub(crate) mod probe;
mod programs;
mod reconcile;
mod repair;
mod routing;
mod sock_diag;
mod sockets;
#[expect(unsafe_code, reason = "system calls that neither aya nor nix offer")]
mod sys;

use std::{
    collections::BTreeMap,
    fs, io, iter,
    net::IpAddr,
    num::NonZeroUsize,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use culvert_ebpf::Control;

pub(crate) use self::{
    answers::Answer,
    control::find_kubepods,
    direct::{DirectPath, FlowEvents},
    error::{CaptureError, Operation},
    listeners::{DnsSockets, WorkerListeners},
    openings::Openings,
    repair::Repair,
    routing::Family,
    sock_diag::Carried,
    sockets::Sockets,
    sys::{give_back_early as give_memory_back_early, release_free_memory},
};
use self::{
    arming::{arm, beat},
    maps::Maps,
    netns::Netns,
    pins::Records,
    pods::{ArmedPod, Shared},
    programs::{CGROUP_HOOKS, Loader, PinnedLink},
    routing::Netlink,
    sys::{AttachType, Target},
};

/// So many pods are looked at each time at least.
const AT_ONCE: usize = 32;

/// How an agent captures.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The agent's own directory: agents with different ones never touch each other's pods.
    pub(crate) run_dir: PathBuf,
    /// How many workers get listeners in each pod.
    pub(crate) workers: NonZeroUsize,
    /// How long after the last [`Capture::beat`] applications' connections are refused.
    pub(crate) heartbeat_lease: Duration,
    /// Where the node's cgroup2 hierarchy is mounted, or above that; `None` where the first one found is the node's.
    pub(crate) cgroup: Option<PathBuf>,
    /// The cgroup under which all pods run. A process in it is never taken for kubelet; `None` on a
    /// machine whose pods have no cgroup of their own.
    pub(crate) pods_cgroup: Option<PathBuf>,
}

/// A pod to be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    /// The pod's UID.
    pub(crate) uid: String,
    /// The path of its network namespace.
    pub(crate) netns: PathBuf,
    /// Its addresses. The first of a family is the source of its connections.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether its DNS queries go to the agent.
    pub(crate) dns: bool,
    /// Whether connections to it go to the agent.
    pub(crate) inbound: bool,
    /// Whether its own connections go to the agent.
    pub(crate) outbound: bool,
    /// Whose rules are in its network namespace.
    pub(crate) rules: Rules,
}

/// Rules of netfilter in a pod that redirect its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// None that is known of.
    None,
    /// istio-cni's, which leave alone what is marked for them (ADR 0021).
    IstioCni,
}

/// What the proxy needs to serve an enrolled pod.
#[derive(Debug)]
pub(crate) struct Enrolled {
    /// One set of listeners per worker.
    pub(crate) listeners: Vec<WorkerListeners>,
    /// The DNS proxy's sockets, if the pod's queries go to it.
    pub(crate) dns: Option<DnsSockets>,
    /// Sockets for the proxy's own connections.
    pub(crate) sockets: Arc<Sockets>,
}

/// What [`Capture::reconcile`] found and did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Each repair made.
    pub(crate) repairs: Vec<Repair>,
    /// Listeners that had to be opened anew, by pod UID; the old ones have to be closed, as in
    /// [`Capture::enrol`].
    pub(crate) listeners: Vec<(String, Vec<WorkerListeners>)>,
    /// What could not be repaired; it is tried again next time.
    pub(crate) failures: Vec<CaptureError>,
}

/// The agent's capture of a node's pods.
///
/// Dropping it leaves everything attached: an agent that stops leaves its pods closed, not open.
#[derive(Debug)]
pub(crate) struct Capture {
    shared: Shared,
    loader: Loader,
    cgroup: OwnedFd,
    hooks: Vec<Hook>,
    control: Control,
    records: Records,
    pods: BTreeMap<String, ArmedPod>,
    /// Which part of the pods was looked at last.
    part: usize,
}

/// One program on the root cgroup.
#[derive(Debug)]
struct Hook {
    attach: AttachType,
    program: OwnedFd,
    link: PinnedLink,
}

impl Capture {
    /// Loads and attaches the programs, taking over what an earlier agent with the same run directory
    /// left in place. No pod is captured that was not before.
    ///
    /// # Errors
    ///
    /// When the kernel lacks something, or the process a capability; `culvert doctor` says what.
    pub(crate) fn load(settings: &Settings) -> Result<Self, CaptureError> {
        let node = |operation| move |source| CaptureError::Node { operation, source };
        let cgroup_path = control::find_cgroup2(settings.cgroup.as_deref())
            .map_err(node(Operation::FindCgroup))?;
        let cgroup = fs::File::open(&cgroup_path).map_err(node(Operation::FindCgroup))?;
        let pins = pins::prepare(&settings.run_dir).map_err(node(Operation::PrepareBpffs))?;
        let records =
            Records::open(&settings.run_dir).map_err(node(Operation::PrepareRunDirectory))?;

        let mut loader = Loader::new().map_err(CaptureError::Load)?;
        let variant = loader.probe_variant().map_err(CaptureError::Load)?;
        let map_pins = pins.join("maps");
        Maps::check(&map_pins).map_err(node(Operation::OpenMaps))?;
        loader.share_maps(&map_pins);
        let programs = loader.load(variant, None).and_then(|mut programs| {
            CGROUP_HOOKS
                .into_iter()
                .map(|(name, attach)| Ok((name, attach, programs.load(name)?)))
                .collect::<Result<Vec<_>, _>>()
        });
        let programs = programs.map_err(CaptureError::Load)?;
        let maps = Maps::open(&map_pins).map_err(node(Operation::OpenMaps))?;

        // What an earlier agent allowed is not known to hold any more.
        maps.direct.clear().map_err(node(Operation::OpenMaps))?;
        let earlier = maps.control().map_err(node(Operation::OpenMaps))?;
        let control = control::first(settings, earlier).map_err(node(Operation::FindCgroup))?;
        maps.set_control(&control).map_err(node(Operation::Beat))?;
        let cgroup = OwnedFd::from(cgroup);
        let hooks = programs.into_iter().map(|(name, attach, program)| {
            let pin = pins.join("hooks").join(name);
            let target = Target::Fd(cgroup.as_fd());
            let link = PinnedLink::establish(pin, program.as_fd(), target, attach)?;
            Ok(Hook {
                attach,
                program,
                link,
            })
        });
        let hooks = hooks.collect::<io::Result<Vec<_>>>();
        let hooks = hooks.map_err(node(Operation::AttachHooks))?;
        let shared = Shared {
            maps: Arc::new(maps),
            pins,
            variant,
            workers: settings.workers,
        };
        Ok(Self {
            shared,
            loader,
            cgroup,
            hooks,
            control,
            records,
            pods: BTreeMap::new(),
            part: 0,
        })
    }

    /// From now on captured connections are held back until they are answered: those of each worker come
    /// through its [`Openings`]. None at all on a kernel without tcx (before Linux 6.6), where they are
    /// answered before anybody has asked their destination.
    ///
    /// # Errors
    ///
    /// When the rings cannot be made.
    pub(crate) fn hold_openings(&mut self) -> Result<Vec<Openings>, CaptureError> {
        if !self.shared.variant.has_tcx {
            return Ok(Vec::new());
        }
        let node = |source| CaptureError::Node {
            operation: Operation::MakeRings,
            source,
        };
        let workers = self.shared.workers.get();
        let openings = Openings::prepare(&self.shared.maps, workers).map_err(node)?;
        self.control.rings = u32::try_from(openings.len()).unwrap_or(0);
        self.beat()?;
        Ok(openings)
    }

    /// The kernel-direct path; `None` on a kernel that does not say where it counts a connection's bytes.
    pub(crate) fn direct_path(&self) -> Option<DirectPath> {
        let path = || DirectPath::new(Arc::clone(&self.shared.maps));
        self.shared.variant.tcp.map(|_| path())
    }

    /// Says that the agent is well. Has to be called several times per lease.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to write the map.
    pub(crate) fn beat(&mut self) -> Result<(), CaptureError> {
        beat(&mut self.control, &self.shared.maps).map_err(|source| CaptureError::Node {
            operation: Operation::Beat,
            source,
        })
    }

    /// Ends in good order: no new connection is brought to this agent any more. For so long, those that no agent takes wait
    /// for the next one instead of being refused.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to write a map. Connections are refused then.
    pub(crate) fn hand_over(mut self, window: Duration) -> Result<(), CaptureError> {
        let node = |source| CaptureError::Node {
            operation: Operation::HandOver,
            source,
        };
        let window = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        let now = control::monotonic_ns().map_err(node)?;
        self.control.awaited_until_ns = now.saturating_add(window);
        beat(&mut self.control, &self.shared.maps).map_err(node)?;
        let mut cookies = self.pods.values().map(|pod| pod.netns.cookie());
        cookies
            .try_for_each(|cookie| self.shared.maps.remove_listeners(cookie))
            .map_err(node)
    }

    /// Begins to release a pod: its next connections and queries are its own again. Those that are captured go on, and HBONE
    /// is still taken, as other nodes may not know yet. Enrolling it again takes that back.
    ///
    /// # Errors
    ///
    /// When the pod is not enrolled or the kernel refuses to write the map.
    pub(crate) fn let_pass(&mut self, uid: &str) -> Result<(), CaptureError> {
        self.leave(uid, ArmedPod::let_pass)
    }

    /// Takes no HBONE any more for a pod that is let pass, once the workers have closed their listeners.
    ///
    /// # Errors
    ///
    /// As [`Capture::let_pass`].
    pub(crate) fn close_listeners(&mut self, uid: &str) -> Result<(), CaptureError> {
        self.leave(uid, ArmedPod::close_listeners)
    }

    fn leave(
        &mut self,
        uid: &str,
        step: impl FnOnce(&mut ArmedPod) -> io::Result<()>,
    ) -> Result<(), CaptureError> {
        let armed = self.pods.get_mut(uid);
        let armed = armed.ok_or_else(|| not_enrolled(uid))?;
        step(armed).map_err(|source| CaptureError::Pod {
            operation: Operation::Disarm,
            pod: uid.to_owned(),
            source,
        })
    }

    /// Ends the capture of a pod: its next connections are its own again. Connections that were
    /// captured end, lest the rest of their bytes go out unprotected.
    ///
    /// # Errors
    ///
    /// When the pod is not enrolled or something cannot be undone.
    pub(crate) fn release(&mut self, uid: &str) -> Result<(), CaptureError> {
        let armed = self.pods.remove(uid);
        let armed = armed.ok_or_else(|| not_enrolled(uid))?;
        let cookie = armed.netns.cookie();
        let failed = |source| CaptureError::Pod {
            operation: Operation::Disarm,
            pod: uid.to_owned(),
            source,
        };
        armed.disarm().map_err(failed)?;
        self.records.remove(cookie).map_err(failed)
    }

    /// Releases pods that an earlier agent with the same run directory enrolled and this one has not, but for those
    /// that are `awaited`: they stay as they are, closed, until they are enrolled. Returns the UIDs of the released, and
    /// what of others could not be undone; these are told again the next time.
    ///
    /// # Errors
    ///
    /// When it cannot be known which there are.
    pub(crate) fn release_unclaimed(
        &mut self,
        awaited: impl Fn(&str) -> bool,
    ) -> Result<(Vec<String>, Vec<CaptureError>), CaptureError> {
        let node = |source| CaptureError::Node {
            operation: Operation::Disarm,
            source,
        };
        let (mut released, mut failures) = (Vec::new(), Vec::new());
        for record in self.records.all().map_err(node)? {
            // There may be hundreds, and each takes the kernel a while. If it fails, the next tick's does, and says so.
            let _is_renewed = beat(&mut self.control, &self.shared.maps);
            let claimed = self
                .pods
                .values()
                .any(|pod| pod.netns.cookie() == record.cookie);
            if claimed || awaited(&record.uid) {
                continue;
            }
            let let_go = match Netns::find(&record.netns, record.cookie) {
                Ok(Some(netns)) => pods::disarm(&self.shared, &netns),
                Ok(None) => pods::forget(&self.shared, record.cookie),
                // It may be there all the same, and captured.
                Err(error) => Err(error),
            };
            match let_go.and_then(|()| self.records.remove(record.cookie)) {
                Ok(()) => released.push(record.uid),
                Err(source) => failures.push(CaptureError::Pod {
                    operation: Operation::Disarm,
                    pod: record.uid,
                    source,
                }),
            }
        }
        Ok((released, failures))
    }

    /// The network namespace of a pod that an earlier agent with the same run directory has captured; `None` if there is no name
    /// for it any more.
    ///
    /// # Errors
    ///
    /// When it cannot be known.
    pub(crate) fn recall(&self, uid: &str) -> Result<Option<OwnedFd>, CaptureError> {
        let failed = |source| CaptureError::Pod {
            operation: Operation::OpenNetns,
            pod: uid.to_owned(),
            source,
        };
        let records = self.records.all().map_err(failed)?;
        let Some(record) = records.into_iter().find(|record| record.uid == uid) else {
            return Ok(None);
        };
        let found = Netns::find(&record.netns, record.cookie).map_err(failed)?;
        found
            .map(|netns| netns.as_fd().try_clone_to_owned())
            .transpose()
            .map_err(failed)
    }

    /// Compares the kernel with what it should be and repairs what differs.
    pub(crate) fn reconcile(&mut self) -> Report {
        self.reconcile_those(|_, _| true)
    }

    /// The same for a part of the pods, another one each time, and for all in whose network namespaces something has
    /// changed. For a node of hundreds of pods, in which nothing ever does.
    pub(crate) fn reconcile_some(&mut self) -> Report {
        let parts = self.pods.len().div_ceil(AT_ONCE).max(1);
        self.part = (self.part + 1) % parts;
        let part = self.part;
        self.reconcile_those(|index, pod| {
            let is_served = pod.has_listeners() && !pod.has_new_listeners();
            pod.has_changed() || !is_served || index % parts == part
        })
    }

    /// A worker has lost a listener of a pod: the next look opens all of them anew. To look whether they listen does not
    /// tell: what the worker has left is open here still.
    pub(crate) fn lose_listeners(&mut self, uid: &str) {
        if let Some(armed) = self.pods.get_mut(uid) {
            armed.lose_listeners();
        }
    }

    fn reconcile_those(&mut self, is_due: impl Fn(usize, &mut ArmedPod) -> bool) -> Report {
        let mut report = Report::default();
        if let Err(source) = self.restore_hooks(&mut report.repairs) {
            report.failures.push(CaptureError::Node {
                operation: Operation::AttachHooks,
                source,
            });
        }
        let maps = &self.shared.maps;
        let mut recorded = match maps.sum_up_openings().and_then(|()| maps.addresses()) {
            Ok(recorded) => recorded,
            Err(source) => {
                let operation = Operation::OpenMaps;
                let failure = CaptureError::Node { operation, source };
                report.failures.push(failure);
                return report;
            }
        };
        for (index, (uid, armed)) in self.pods.iter_mut().enumerate() {
            if armed.is_leaving() || !is_due(index, armed) {
                continue;
            }
            let recorded = recorded.remove(&armed.netns.cookie());
            match arm(armed, recorded.unwrap_or_default()) {
                Ok(repairs) => report.repairs.extend(repairs),
                Err(error) => report.failures.push(error),
            }
            // Whatever opened them, and whatever failed after that: nobody else hands them over.
            if armed.has_new_listeners() {
                match armed.worker_listeners() {
                    Ok(listeners) => report.listeners.push((uid.clone(), listeners)),
                    Err(source) => report.failures.push(CaptureError::Pod {
                        operation: Operation::Observe,
                        pod: uid.clone(),
                        source,
                    }),
                }
            }
        }
        report
    }

    /// Restores what all pods share: directories, map names, programs on the root cgroup.
    fn restore_hooks(&mut self, repairs: &mut Vec<Repair>) -> io::Result<()> {
        pins::lay_out(&self.shared.pins)?;
        let restored = self.shared.maps.restore_pins(&self.shared.map_pins())?;
        repairs.extend(iter::repeat_n(Repair::Map, restored));
        for hook in &mut self.hooks {
            if !hook.link.is_whole() {
                let target = Target::Fd(self.cgroup.as_fd());
                hook.link
                    .restore(hook.program.as_fd(), target, hook.attach)?;
                repairs.push(Repair::Cgroup);
            }
        }
        Ok(())
    }

    /// Releases every pod and removes every trace of capture from the kernel.
    ///
    /// # Errors
    ///
    /// When something cannot be undone; what comes after it is then still in place.
    pub(crate) fn remove_everything(mut self) -> Result<(), CaptureError> {
        let enrolled: Vec<String> = self.pods.keys().cloned().collect();
        for uid in enrolled {
            self.release(&uid)?;
        }
        let (_released, failures) = self.release_unclaimed(|_| false)?;
        if let Some(failure) = failures.into_iter().next() {
            return Err(failure);
        }
        let node = |source| CaptureError::Node {
            operation: Operation::Remove,
            source,
        };
        // Last to first: programs that capture go before those that only follow.
        for hook in self.hooks.into_iter().rev() {
            hook.link.remove().map_err(node)?;
        }
        pins::remove(&self.shared.pins).map_err(node)?;
        self.records.remove_all().map_err(node)
    }

    /// The proxy's sockets of an enrolled pod.
    pub(crate) fn sockets(&self, uid: &str) -> Option<Arc<Sockets>> {
        self.pods.get(uid).map(|armed| Arc::clone(&armed.sockets))
    }
}

/// The addresses of a network namespace's devices, but for `lo`'s and those that IPv6 gives each link; IPv4 first.
///
/// # Errors
///
/// When it is none, or cannot be entered.
pub(crate) fn addresses_in(netns: &OwnedFd) -> io::Result<Vec<IpAddr>> {
    let netns = Netns::of(netns.try_clone()?)?;
    let seen = netns.run(|| Netlink::open()?.observe())??;
    let mut addresses = seen.addresses;
    addresses.retain(|address| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    });
    addresses.sort();
    Ok(addresses)
}

fn not_enrolled(uid: &str) -> CaptureError {
    CaptureError::NotEnrolled {
        pod: uid.to_owned(),
    }
}

/// Removes every trace of an agent that no longer runs: what it attached, pinned and changed in pods.
///
/// # Errors
///
/// When something cannot be undone; what comes after it is then still in place.
pub(crate) fn uninstall(run_dir: &Path, cgroup: Option<&Path>) -> Result<(), CaptureError> {
    // Taking over what is there is the only way to know all of it.
    let settings = Settings {
        run_dir: run_dir.to_owned(),
        workers: NonZeroUsize::MIN,
        heartbeat_lease: Duration::from_secs(1),
        cgroup: cgroup.map(Path::to_owned),
        pods_cgroup: None,
    };
    Capture::load(&settings)?.remove_everything()
}

#[cfg(test)]
mod tests;
