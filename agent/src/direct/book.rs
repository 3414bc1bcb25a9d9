//! Pure: which pods take part, what has been ruled about their connections, and what a change makes of that.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_ebpf::{FLOW_CLIENT, FlowEntry, SPREAD_MAX};
use smallvec::SmallVec;
use userspace_l7::direct::{self, Passage, Reason};
use userspace_l7::model::{Service, Snapshot, Workload, WorkloadUid};

use crate::mesh::SameNode;

/// Destinations of one pod that are ruled about at once: the oldest makes room, and is captured again.
const MOST_OF_A_POD: usize = 1024;
/// How long it is remembered who a pod was, for the accounts of its last connections.
const REMEMBERED: Duration = Duration::from_secs(60);

/// What becomes of a pod's connections to one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// Straight to the pod in this network namespace.
    Straight { server: u64 },
    /// Refused.
    Refused,
    /// To one of these endpoints, or to the proxy.
    Spread(Spread),
}

/// How the kernel spreads connections to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spread {
    /// Endpoints with their weights.
    pub(super) endpoints: Vec<(SocketAddr, u32)>,
    /// The weights of all of the service's endpoints together.
    pub(super) total: u32,
}

/// What the kernel is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The client's network namespace.
    pub(super) client: u64,
    pub(super) to: SocketAddr,
    /// `None`: captured again.
    pub(super) ruling: Option<Ruling>,
}

/// A live connection that has lost its right.
pub(super) struct Wrong<S> {
    pub(super) client: End<S>,
    /// There is none before it has accepted.
    pub(super) server: Option<End<S>>,
    pub(super) why: String,
}

/// One end of a connection, and by what its pod is reached.
#[derive(Clone)]
pub(super) struct End<S> {
    pub(super) cookie: u64,
    pub(super) flow: FlowEntry,
    pub(super) sockets: S,
}

/// A pod that is captured here.
pub(super) struct Member<S> {
    pub(super) uid: WorkloadUid,
    /// By which it is reached.
    pub(super) sockets: S,
    /// As the mesh knew it last.
    pub(super) workload: Option<Arc<Workload>>,
    same_node: SameNode,
    gone: Option<Instant>,
}

/// What has been ruled about one pod's connections.
#[derive(Default)]
struct Page {
    rulings: HashMap<SocketAddr, Ruling>,
    /// In the order in which they were first ruled.
    order: VecDeque<SocketAddr>,
}

/// Everything that is known. `S` is by what a pod is reached.
pub(super) struct Book<S> {
    snapshot: Arc<Snapshot>,
    /// By network namespace.
    members: HashMap<u64, Member<S>>,
    netns: HashMap<WorkloadUid, u64>,
    pages: BTreeMap<u64, Page>,
    edition: u64,
}

impl<S: Clone> Book<S> {
    pub(super) fn new(snapshot: Arc<Snapshot>) -> Self {
        Self {
            snapshot,
            members: HashMap::new(),
            netns: HashMap::new(),
            pages: BTreeMap::new(),
            edition: 0,
        }
    }

    /// Another number whenever the mesh or the pods have changed: what a connection's ends are called may have, too.
    pub(super) fn edition(&self) -> u64 {
        self.edition
    }

    /// How many rulings there are.
    pub(super) fn len(&self) -> usize {
        self.pages.values().map(|page| page.rulings.len()).sum()
    }

    /// The pod in a network namespace, also for a while after it has gone.
    pub(super) fn member(&self, netns: u64) -> Option<&Member<S>> {
        self.members.get(&netns)
    }

    /// The mesh as it is now.
    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The service that a connection's client dialled.
    pub(super) fn service_of(&self, flow: &FlowEntry) -> Option<&Arc<Service>> {
        if flow.dialled() == flow.server() {
            return None;
        }
        let client = self.member(flow.client_netns)?.workload.as_ref()?;
        let dialled = flow.dialled().ip();
        self.snapshot.service_at(dialled, &client.namespace)
    }

    /// Takes over a new mesh.
    pub(super) fn publish(&mut self, snapshot: Arc<Snapshot>) -> Vec<Change> {
        self.snapshot = snapshot;
        self.edition += 1;
        for member in self.members.values_mut() {
            if let Some(workload) = self.snapshot.workloads.get(&member.uid) {
                member.workload = Some(Arc::clone(workload));
            }
        }
        self.rule_again()
    }

    /// A pod takes part, perhaps in another way than before.
    pub(super) fn admit(
        &mut self,
        uid: &WorkloadUid,
        same_node: SameNode,
        (netns, sockets): (u64, S),
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.netns.get(uid).is_some_and(|before| *before != netns) {
            changes = self.dismiss(uid, Instant::now());
        }
        let member = Member {
            uid: uid.clone(),
            sockets,
            workload: self.snapshot.workloads.get(uid).map(Arc::clone),
            same_node,
            gone: None,
        };
        self.edition += 1;
        self.members.insert(netns, member);
        self.netns.insert(uid.clone(), netns);
        changes.extend(self.rule_again());
        changes
    }

    /// A pod takes part no more.
    pub(super) fn dismiss(&mut self, uid: &WorkloadUid, now: Instant) -> Vec<Change> {
        let Some(netns) = self.netns.remove(uid) else {
            return Vec::new();
        };
        if let Some(member) = self.members.get_mut(&netns) {
            member.gone = Some(now);
        }
        let page = self.pages.remove(&netns).unwrap_or_default();
        let own = page.rulings.into_keys().map(|to| Change {
            client: netns,
            to,
            ruling: None,
        });
        let mut changes: Vec<_> = own.collect();
        changes.extend(self.rule_again());
        changes
    }

    /// Forgets who pods were that have long gone.
    pub(super) fn forget_the_gone(&mut self, now: Instant) {
        let is_recent = |since: Instant| now.duration_since(since) < REMEMBERED;
        self.members
            .retain(|_, member| member.gone.is_none_or(is_recent));
    }

    /// Forgets a ruling of which the kernel could not be told.
    pub(super) fn forget(&mut self, client: u64, to: SocketAddr) {
        if let Some(page) = self.pages.get_mut(&client) {
            page.remove(to);
        }
    }

    /// Rules about a pod's connections to `dialled`, unless that has been done.
    pub(super) fn consider(&mut self, uid: &WorkloadUid, dialled: SocketAddr) -> Vec<Change> {
        let to = SocketAddr::new(dialled.ip().to_canonical(), dialled.port());
        let mut changes = Vec::new();
        if let Some(netns) = self.netns.get(uid).copied() {
            self.rule(netns, to, &mut changes);
        }
        changes
    }

    /// The network namespace to which a pod's connections to `dialled` go straight.
    pub(super) fn straight(&self, uid: &WorkloadUid, dialled: SocketAddr) -> Option<u64> {
        let to = SocketAddr::new(dialled.ip().to_canonical(), dialled.port());
        let page = self.pages.get(self.netns.get(uid)?)?;
        match page.rulings.get(&to)? {
            Ruling::Straight { server } => Some(*server),
            Ruling::Refused | Ruling::Spread(_) => None,
        }
    }

    /// The endpoints of the service at `dialled` that the kernel chooses among for a pod.
    pub(super) fn served_straight(
        &self,
        uid: &WorkloadUid,
        dialled: SocketAddr,
    ) -> SmallVec<[SocketAddr; 4]> {
        let to = SocketAddr::new(dialled.ip().to_canonical(), dialled.port());
        let page = self.netns.get(uid).and_then(|netns| self.pages.get(netns));
        match page.and_then(|page| page.rulings.get(&to)) {
            Some(Ruling::Spread(spread)) => spread.endpoints.iter().map(|(to, _)| *to).collect(),
            _ => SmallVec::new(),
        }
    }

    fn rule(&mut self, client: u64, to: SocketAddr, changes: &mut Vec<Change>) {
        let is_ruled = |page: &Page| page.rulings.contains_key(&to);
        if self.pages.get(&client).is_some_and(is_ruled) {
            return;
        }
        let Some(ruling) = self.ruling(client, to) else {
            return;
        };
        // Where the kernel may send connections to a service has to be known first.
        if let Ruling::Spread(spread) = &ruling {
            for (endpoint, _) in spread.endpoints.clone() {
                self.rule(client, endpoint, changes);
            }
        }
        let page = self.pages.entry(client).or_default();
        if page.order.len() >= MOST_OF_A_POD
            && let Some(oldest) = page.order.front().copied()
        {
            page.remove(oldest);
            changes.push(Change {
                client,
                to: oldest,
                ruling: None,
            });
        }
        page.order.push_back(to);
        page.rulings.insert(to, ruling.clone());
        changes.push(Change {
            client,
            to,
            ruling: Some(ruling),
        });
    }

    /// What has become of all rulings. What is taken back comes first.
    fn rule_again(&mut self) -> Vec<Change> {
        let mut outdated = Vec::new();
        for (client, page) in &self.pages {
            for (to, before) in &page.rulings {
                let now = self.ruling(*client, *to);
                if now.as_ref() != Some(before) {
                    outdated.push((*client, *to, now));
                }
            }
        }
        let mut changes = Vec::new();
        let mut fresh = Vec::new();
        for (client, to, ruling) in outdated {
            self.forget(client, to);
            changes.push(Change {
                client,
                to,
                ruling: None,
            });
            if ruling.is_some() {
                fresh.push((client, to));
            }
        }
        for (client, to) in fresh {
            self.rule(client, to, &mut changes);
        }
        changes
    }

    /// What becomes of a pod's connections to `to`; `None`: the proxy decides about each.
    fn ruling(&self, client: u64, to: SocketAddr) -> Option<Ruling> {
        let client = self.present(client)?;
        if client.same_node == SameNode::Encrypted {
            return None;
        }
        let from = self.snapshot.workloads.get(&client.uid)?;
        if let Some(server) = self.snapshot.workload_at(to.ip()) {
            let netns = self.open_to_all(server)?;
            return match direct::passage(&self.snapshot, from, server, to) {
                Passage::Straight => Some(Ruling::Straight { server: netns }),
                Passage::Denied(_) => Some(Ruling::Refused),
                Passage::Proxied(_) => None,
            };
        }
        let is_here = |server: &Workload| self.open_to_all(server).is_some();
        let spread = direct::spread(&self.snapshot, from, to, (is_here, SPREAD_MAX))?;
        let endpoints = spread.straight.into_iter();
        Some(Ruling::Spread(Spread {
            endpoints: endpoints.map(|(to, _, weight)| (to, weight)).collect(),
            total: spread.total,
        }))
    }

    /// The network namespace of a pod that is captured here and does not want its bytes encrypted.
    fn open_to_all(&self, workload: &Workload) -> Option<u64> {
        let netns = *self.netns.get(&workload.uid)?;
        let member = self.present(netns)?;
        (member.same_node == SameNode::Direct).then_some(netns)
    }

    fn present(&self, netns: u64) -> Option<&Member<S>> {
        self.members
            .get(&netns)
            .filter(|member| member.gone.is_none())
    }

    /// Live connections that have lost their right.
    ///
    /// Those of pods that this agent has not captured yet, or no more, are not judged: who ends the capture of a pod
    /// ends its connections, and so are those of a pod that the mesh forgets first, as it does while one terminates.
    pub(super) fn wrong(&self, flows: &[(u64, FlowEntry)]) -> Vec<Wrong<S>> {
        let ends = |flow: &FlowEntry| (flow.client(), flow.server());
        let is_client = |(_, flow): &&(u64, FlowEntry)| flow.end == FLOW_CLIENT;
        let servers: HashMap<_, _> = flows
            .iter()
            .filter(|one| !is_client(one))
            .map(|(cookie, flow)| (ends(flow), (*cookie, *flow)))
            .collect();
        let wrong = flows.iter().filter(is_client).filter_map(|(cookie, flow)| {
            let (client, server) = (
                self.present(flow.client_netns)?,
                self.present(flow.server_netns)?,
            );
            let workload = |member: &Member<S>| self.snapshot.workloads.get(&member.uid);
            let (from, at) = (workload(client)?, workload(server)?);
            let is_encrypted = [client, server]
                .iter()
                .any(|member| member.same_node == SameNode::Encrypted);
            let why = match direct::passage(&self.snapshot, from, at, flow.server()) {
                Passage::Straight if is_encrypted => {
                    "connection closed: it has to go through the proxy now".to_owned()
                }
                // One of them leaves the mesh: whoever ends its capture ends what has not ended by itself.
                Passage::Straight | Passage::Proxied(Reason::Uncaptured) => return None,
                Passage::Denied(denial) => {
                    format!("connection closed due to policy change: {denial}")
                }
                Passage::Proxied(reason) => {
                    format!("connection closed: it has to go through the proxy now: {reason}")
                }
            };
            let server = servers.get(&ends(flow)).map(|(cookie, flow)| End {
                cookie: *cookie,
                flow: *flow,
                sockets: server.sockets.clone(),
            });
            Some(Wrong {
                client: End {
                    cookie: *cookie,
                    flow: *flow,
                    sockets: client.sockets.clone(),
                },
                server,
                why,
            })
        });
        wrong.collect()
    }
}

impl Page {
    fn remove(&mut self, to: SocketAddr) {
        if self.rulings.remove(&to).is_some() {
            self.order.retain(|other| *other != to);
        }
    }
}
