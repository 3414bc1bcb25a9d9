//! Arming pods: the next one is prepared while the kernel makes the one before it wait.
//!
//! A program is attached to a device only after a grace period of RCU, with rtnl held: ten milliseconds or so in which no
//! other pod's can be attached. Verifying the next pod's programs fits into that. And what only lets closed ports refuse
//! comes after all pods are captured: until then they talk unprotected.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
    thread,
};

use culvert_ebpf::Control;

use super::{
    Capture, CaptureError, Enrolled, Operation, Pod,
    answers::Answers,
    control,
    maps::Maps,
    netns::Netns,
    pins::{Record, Records},
    pods::{ArmedPod, PodPrograms, Shared},
    programs::Loader,
    reconcile,
    repair::Repair,
};

/// Pods that are prepared and not armed yet. More would only wait longer.
const AHEAD: usize = 1;

impl Capture {
    /// Captures pods, or adjusts the capture of those that are enrolled already, and says of each what came of it. The
    /// listeners of one that was enrolled are then new, and the old ones have to be closed: they share the port and keep
    /// their part of the connections until then. Pods that are new have closed ports refuse from [`Capture::guard`] on;
    /// until then such a port takes a connection and ends it.
    ///
    /// A pod comes with its network namespace if that is open already; the path is then for an agent that comes later.
    ///
    /// # Errors
    ///
    /// Those told for a pod name the step that failed. The pod is then not captured, unless it was before: as this agent
    /// captured it, it goes on to be, and as an earlier one did, it stays closed. A pod that takes a port that the agent
    /// needs does not get out by that. The call fails when nothing could be begun.
    pub(crate) fn enrol(
        &mut self,
        pods: Vec<(Pod, Option<OwnedFd>)>,
        mut told: impl FnMut(&str, Result<Enrolled, CaptureError>),
    ) -> Result<(), CaptureError> {
        let Self {
            shared,
            loader,
            control,
            records,
            pods: armed,
            ..
        } = self;
        let shared = &*shared;
        let node = |operation| move |source| CaptureError::Node { operation, source };
        let mut recorded = shared.maps.addresses().map_err(node(Operation::OpenMaps))?;
        let mut preparation = Preparation {
            node_netns_cookie: control.node_netns_cookie,
            shared,
            records,
            loader,
        };
        let (prepared, next) = mpsc::sync_channel(AHEAD);
        let prepare = move || {
            for (pod, opened) in pods {
                let uid = pod.uid.clone();
                if prepared
                    .send((uid, preparation.prepare(pod, opened)))
                    .is_err()
                {
                    return;
                }
            }
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("culvert-prepare".to_owned());
            let thread = thread.spawn_scoped(scope, prepare);
            thread.map_err(node(Operation::Prepare))?;
            for (uid, prepared) in next {
                // If it fails, the next tick's does, and says so.
                let _is_renewed = beat(control, &shared.maps);
                let enrolled = prepared.and_then(|mut pod| {
                    let cookie = pod.netns.cookie();
                    let recorded = recorded.remove(&cookie).unwrap_or_default();
                    let was_captured = shared
                        .maps
                        .pod(cookie)
                        .map_err(failed(&uid, Operation::Observe))?;
                    let earlier = replace(armed.remove(&uid), &pod, records)?;
                    match enrol(&mut pod, recorded) {
                        Ok(enrolled) => {
                            armed.insert(uid.clone(), pod);
                            Ok(enrolled)
                        }
                        Err(error) => {
                            if let Some(earlier) = earlier {
                                // The next look puts back what the attempt has taken its place of.
                                armed.insert(uid.clone(), earlier);
                            } else if was_captured.is_none() {
                                disarm(pod, records)?;
                            }
                            Err(error)
                        }
                    }
                });
                told(&uid, enrolled);
            }
            Ok(())
        })
    }

    /// Has closed ports refuse in all pods that are enrolled. Gives what could not be done, which [`Capture::reconcile`]
    /// tries again.
    pub(crate) fn guard(&mut self) -> Vec<CaptureError> {
        let mut failures = Vec::new();
        let unguarded = self.pods.values_mut().filter(|pod| !pod.guarded);
        let unguarded: Vec<_> = unguarded.collect();
        if unguarded.is_empty() {
            return failures;
        }
        let recorded = self.shared.maps.addresses();
        let mut recorded = recorded.unwrap_or_else(|source| {
            let operation = Operation::OpenMaps;
            failures.push(CaptureError::Node { operation, source });
            BTreeMap::new()
        });
        for pod in unguarded {
            let _is_renewed = beat(&mut self.control, &self.shared.maps);
            pod.guarded = true;
            let recorded = recorded.remove(&pod.netns.cookie());
            failures.extend(arm(pod, recorded.unwrap_or_default()).err());
        }
        failures
    }
}

/// What is needed to prepare pods.
struct Preparation<'a> {
    shared: &'a Shared,
    records: &'a Records,
    loader: &'a mut Loader,
    node_netns_cookie: u64,
}

impl Preparation<'_> {
    /// Does all that can be done before anything in the kernel acts on the pod.
    fn prepare(&mut self, pod: Pod, opened: Option<OwnedFd>) -> Result<ArmedPod, CaptureError> {
        let uid = pod.uid.clone();
        let failed = |operation| failed(&uid, operation);
        let netns = opened.map_or_else(|| Netns::open(&pod.netns), Netns::of);
        let netns = netns.map_err(failed(Operation::OpenNetns))?;
        if netns.cookie() == self.node_netns_cookie {
            return Err(CaptureError::HostNetwork { pod: uid });
        }
        let record = Record {
            uid: uid.clone(),
            netns: pod.netns.clone(),
            cookie: netns.cookie(),
        };
        let written = self.records.write(&record);
        written.map_err(failed(Operation::PrepareRunDirectory))?;
        let answers = Answers::open(&netns).map_err(failed(Operation::OpenAnswerSockets))?;
        let programs = PodPrograms::load(self.loader, self.shared.variant, netns.cookie());
        let programs = programs.map_err(|source| CaptureError::LoadPod {
            pod: uid.clone(),
            source,
        })?;
        let pod = ArmedPod::prepare(pod, Arc::new(netns), answers, programs, self.shared);
        pod.map_err(failed(Operation::Observe))
    }
}

/// What was captured under the name of a pod. Let go, if that is in another network namespace now.
fn replace(
    earlier: Option<ArmedPod>,
    pod: &ArmedPod,
    records: &Records,
) -> Result<Option<ArmedPod>, CaptureError> {
    match earlier {
        Some(earlier) if earlier.netns.cookie() != pod.netns.cookie() => {
            disarm(earlier, records).map(|()| None)
        }
        earlier => Ok(earlier),
    }
}

fn disarm(pod: ArmedPod, records: &Records) -> Result<(), CaptureError> {
    let (uid, cookie) = (pod.pod.uid.clone(), pod.netns.cookie());
    let disarmed = pod.disarm().and_then(|()| records.remove(cookie));
    disarmed.map_err(failed(&uid, Operation::Disarm))
}

fn enrol(pod: &mut ArmedPod, recorded: Vec<IpAddr>) -> Result<Enrolled, CaptureError> {
    arm(pod, recorded)?;
    let uid = pod.pod.uid.clone();
    let failed = |operation| failed(&uid, operation);
    let dns = pod.pod.dns.then(|| pod.open_dns()).transpose();
    let dns = dns.map_err(failed(Operation::OpenDnsSockets))?;
    let listeners = pod.worker_listeners();
    let listeners = listeners.map_err(failed(Operation::Observe))?;
    Ok(Enrolled {
        listeners,
        dns,
        sockets: Arc::clone(&pod.sockets),
    })
}

/// Brings a pod to the wanted state; returns what was put in place for that. `recorded` are the addresses that the maps know
/// as its own.
pub(super) fn arm(pod: &mut ArmedPod, recorded: Vec<IpAddr>) -> Result<Vec<Repair>, CaptureError> {
    let uid = pod.pod.uid.clone();
    let actual = pod.observe(recorded);
    let actual = actual.map_err(failed(&uid, Operation::Observe))?;
    let mut done = Vec::new();
    for action in reconcile::reconcile(&pod.desired(), &actual) {
        let repair = action.repair();
        let applied = pod.apply(action);
        applied.map_err(failed(&uid, Operation::Arm(repair)))?;
        done.push(repair);
    }
    Ok(done)
}

/// Renews the heartbeat.
pub(super) fn beat(control: &mut Control, maps: &Maps) -> io::Result<()> {
    control.beat_ns = control::monotonic_ns()?;
    maps.set_control(control)
}

fn failed(uid: &str, operation: Operation) -> impl FnOnce(io::Error) -> CaptureError + use<> {
    let pod = uid.to_owned();
    move |source| CaptureError::Pod {
        operation,
        pod,
        source,
    }
}
