//! What the admin servers may see of the running agent.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::{Notify, watch};
use userspace_l7::key_sets::KeySets;
use userspace_l7::model::Snapshot;
use userspace_l7::ring::Backend;
use userspace_l7::telemetry::Reporter;
use userspace_l7::worker::{self, Direction, Worker};

use crate::admin::{
    AdminState, AgentStatus, BoxFuture, Carriage, CertificateEntry, CertificateState,
    CertificateStatus, ClusterStatus, ClusterTrouble, IstioCniStatus, IstiodStatus, KeySetStatus,
    LiveConnection, ManifestProblem, PluginStatus, Released,
};
use crate::cni::Keeper;
use crate::config::AgentArgs;
use crate::direct::Direct;
use crate::enrolment::{self, Enrolment, Ledger, Orders};
use crate::identity::{SvidState, SvidStatus};
use crate::keys::{KeyStatus, Named};
use crate::mesh::status::{self, ObjectStatus};
use crate::privilege;
use crate::sources::{ClusterCondition, IstiodCondition, Problems, Severity, XdsAddress};
use crate::zds;

/// Lent to the admin servers.
pub(super) struct State {
    args: AgentArgs,
    backend: Backend,
    seen: Seen,
    workers: Arc<[Worker]>,
    direct: Option<Direct>,
    ledger: Arc<Mutex<Ledger>>,
    orders: Orders,
    problems: Mutex<Arc<Problems>>,
    objects: watch::Sender<Arc<[ObjectStatus]>>,
    stop: Notify,
    /// Keeps the CNI plugin in place.
    plugin: Option<Keeper>,
    /// How istio-cni fares, where it names the pods.
    istio_cni: Option<watch::Receiver<zds::Condition>>,
}

/// What others keep current.
pub(super) struct Seen {
    pub(super) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(super) svids: watch::Receiver<Vec<SvidStatus>>,
    pub(super) keys: watch::Receiver<Vec<KeyStatus>>,
    pub(super) key_sets: Arc<KeySets>,
    /// How the cluster fares that is followed; nothing where a directory is.
    pub(super) source: watch::Receiver<Option<Arc<ClusterCondition>>>,
    /// How istiod fares, where it is asked for layer 4.
    pub(super) istiod: watch::Receiver<Option<Arc<IstiodCondition>>>,
}

impl State {
    pub(super) fn new(
        args: &AgentArgs,
        backend: Backend,
        seen: Seen,
        workers: Arc<[Worker]>,
        direct: Option<Direct>,
        enrolment: &Enrolment,
    ) -> Self {
        Self {
            args: args.clone(),
            backend,
            seen,
            workers,
            direct,
            ledger: enrolment.ledger(),
            orders: enrolment.orders(),
            problems: Mutex::default(),
            objects: watch::Sender::new(Arc::default()),
            stop: Notify::new(),
            plugin: None,
            istio_cni: None,
        }
    }

    /// With the keeper of the CNI plugin, and what is known of istio-cni.
    pub(super) fn with_runtime(
        mut self,
        plugin: Option<Keeper>,
        istio_cni: Option<watch::Receiver<zds::Condition>>,
    ) -> Self {
        self.plugin = plugin;
        self.istio_cni = istio_cni;
        self
    }

    /// Takes over what is wrong with the manifests now. Gives back what was wrong before.
    pub(super) fn report(&self, problems: Arc<Problems>) -> Arc<Problems> {
        let mut known = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut known, problems)
    }

    /// Takes over what there is to say about each object; what was so before is so since then.
    pub(super) fn tell(&self, mut objects: Vec<ObjectStatus>) {
        let before = Arc::clone(&self.objects.borrow());
        status::since(&before, &mut objects, Timestamp::now());
        self.objects.send_replace(objects.into());
    }

    fn problems(&self) -> Arc<Problems> {
        Arc::clone(&self.problems.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Resolves once someone asked the agent to stop.
    pub(super) async fn stop_requested(&self) {
        self.stop.notified().await;
    }

    /// Why the CNI plugin is not in place, if it should be.
    fn complaint(&self) -> Option<String> {
        self.plugin.as_ref()?.complaint()
    }

    /// How istio-cni fares, if it names the pods.
    fn istio_cni(&self) -> Option<IstioCniStatus> {
        let condition = self.istio_cni.as_ref()?.borrow();
        Some(IstioCniStatus {
            socket: condition.socket.display().to_string(),
            reason: condition.complaint(),
        })
    }

    fn pending(&self) -> Vec<String> {
        let mut pending = enrolment::read(&self.ledger).pending();
        if let Some(source) = &*self.seen.source.borrow() {
            let waiting = source.waiting();
            pending.extend(waiting.map(|kind| format!("the first list of {}", kind.resource)));
        }
        if let Some(istiod) = &*self.seen.istiod.borrow() {
            let waiting = istiod.waiting();
            pending.extend(waiting.map(|one| format!("the first {} of istiod", one.name)));
        }
        let missing = |svid: &&SvidStatus| svid.state != SvidState::Available;
        let svids = self.seen.svids.borrow();
        pending.extend(
            svids
                .iter()
                .filter(missing)
                .map(|svid| format!("certificate of {}", svid.id)),
        );
        pending.extend(
            self.complaint()
                .map(|reason| format!("the CNI plugin: {reason}")),
        );
        let unnamed = self.istio_cni().and_then(|istio_cni| istio_cni.reason);
        pending.extend(unnamed.map(|reason| format!("istio-cni: {reason}")));
        if self.workers.iter().any(Worker::is_finished) {
            pending.push("a worker thread, which has failed".to_owned());
        }
        pending
    }
}

impl AdminState for State {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.seen.snapshot.borrow())
    }

    fn key_sets(&self) -> Arc<KeySets> {
        Arc::clone(&self.seen.key_sets)
    }

    fn certificates(&self) -> Vec<CertificateStatus> {
        self.seen.svids.borrow().iter().map(certificate).collect()
    }

    fn connections(&self) -> BoxFuture<'_, Vec<LiveConnection>> {
        Box::pin(async {
            let mut all = Vec::new();
            for worker in &*self.workers {
                all.extend(worker.connections().await.into_iter().map(connection));
            }
            all.extend(self.direct.iter().flat_map(Direct::connections));
            all
        })
    }

    fn status(&self) -> AgentStatus {
        let ledger = enrolment::read(&self.ledger).clone();
        let problems = self.problems();
        AgentStatus {
            node: self.args.node.clone(),
            generation: self.seen.snapshot.borrow().generation,
            ring_backend: match self.backend {
                Backend::Uring => "io_uring".to_owned(),
                Backend::Epoll => "epoll".to_owned(),
            },
            workers: self.workers.len(),
            capabilities: privilege::held(),
            pending: self.pending(),
            pods: ledger.pods(),
            pods_hindered: ledger.hindered().count(),
            problems: shown(&problems, Severity::Error),
            warnings: shown(&problems, Severity::Warning),
            key_sets: self.seen.keys.borrow().iter().map(key_set).collect(),
            cluster: self.seen.source.borrow().as_deref().map(cluster),
            istiod: self.seen.istiod.borrow().as_deref().map(istiod),
            cni_plugin: self.plugin.as_ref().map(|plugin| PluginStatus {
                reason: plugin.complaint(),
            }),
            istio_cni: self.istio_cni(),
            repairs: ledger.repairs,
            pods_started: ledger.started,
            pods_stopped: ledger.stopped,
        }
    }

    fn objects(&self) -> Arc<[ObjectStatus]> {
        Arc::clone(&self.objects.borrow())
    }

    fn config(&self) -> serde_json::Value {
        let args = &self.args;
        let ca_address = args.authority.ca_address.as_ref().map(ToString::to_string);
        let ca_dir = match &ca_address {
            Some(_) => None,
            None => Some(args.authority.directory(&args.run_dir)),
        };
        json!({
            "node": args.node,
            "manifests": args.manifests,
            "kubernetes": args.kubernetes,
            "kubeconfig": args.kubeconfig,
            "xdsAddress": args.istiod.xds_address.as_ref().map(XdsAddress::authority),
            "xdsRootCa": args.istiod.xds_root_ca,
            "xdsHostname": args.istiod.xds_hostname,
            "xdsToken": args.istiod.xds_token,
            "caDir": ca_dir,
            "caAddress": ca_address,
            "trustDomain": args.trust_domain.as_str(),
            "admin": args.admin.to_string(),
            "runDir": args.run_dir,
            "workers": self.workers.len(),
            "cluster": args.cluster,
            "clusterDomain": args.cluster_domain,
            "rootNamespace": args.root_namespace,
            "meshConfig": args.control_plane.mesh_config,
            "revisions": args.control_plane.revision,
            "podsCgroup": args.pods_cgroup,
            "hostCgroup": args.host_cgroup,
            "trustNetnsAnnotation": args.trust_netns_annotation,
            "hostProc": args.host_proc,
            "cniConfDir": args.cni_conf_dir,
            "cniBinDir": args.cni_bin_dir,
            "zdsSocket": args.zds_socket,
            "cniStartWithoutAgent": args.without_agent.cni_start_without_agent,
            "leaseSeconds": args.lease,
            "svidTtlSeconds": args.authority.svid_ttl,
            "drainSeconds": args.drain,
            "jwksRefreshSeconds": args.jwks_pace().refresh.as_secs_f64(),
            "jwksCa": args.jwks_ca,
        })
    }

    fn shut_down(&self) {
        self.stop.notify_one();
    }

    fn unenrol(&self) -> BoxFuture<'_, Released> {
        // First, so that the next pod that starts does not wait for an agent that is not there any more.
        let left_behind = self.plugin.as_ref().and_then(Keeper::uninstall);
        let released = self.orders.release_all();
        Box::pin(async {
            let mut released = released.await.unwrap_or_else(|_stopped| Released {
                pods: Vec::new(),
                failures: vec!["the capture thread has stopped".to_owned()],
            });
            released.failures.extend(left_behind);
            self.stop.notify_one();
            released
        })
    }
}

/// Problems of one severity, as people see them.
pub(super) fn shown(problems: &Problems, severity: Severity) -> Vec<ManifestProblem> {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let of_severity = problems.list.iter().filter(|one| one.severity == severity);
    let shown = of_severity.map(|problem| ManifestProblem {
        path: problem.place.file.to_string(),
        line: problem.place.position.map(|position| position.line.into()),
        object: text(&problem.object),
        field: text(&problem.field),
        message: problem.message.to_string(),
    });
    shown.collect()
}

/// How the followed cluster fares, as people see it.
pub(super) fn cluster(condition: &ClusterCondition) -> ClusterStatus {
    let troubles = condition.troubles().into_iter();
    ClusterStatus {
        server: condition.server.to_string(),
        reachable: condition.is_reachable(),
        objects: condition
            .kinds
            .iter()
            .map(|kind| (kind.resource.to_string(), kind.objects))
            .collect(),
        waiting: condition
            .waiting()
            .map(|kind| kind.resource.to_string())
            .collect(),
        not_installed: condition
            .not_installed()
            .map(|kind| kind.resource.to_string())
            .collect(),
        troubles: troubles
            .map(|(since, kinds)| ClusterTrouble {
                since: since.since.to_string(),
                message: since.trouble.message,
                resources: kinds.iter().map(|kind| kind.resource.to_string()).collect(),
            })
            .collect(),
        refusals: condition.refusals,
    }
}

/// How istiod fares, as people see it.
fn istiod(condition: &IstiodCondition) -> IstiodStatus {
    IstiodStatus {
        address: condition.address.to_string(),
        connected: condition.trouble.is_none(),
        since: condition.trouble.as_ref().map(|one| one.since.to_string()),
        message: condition.trouble.as_ref().map(|one| one.message.clone()),
        resources: condition
            .types
            .iter()
            .map(|one| (one.name.to_owned(), one.resources))
            .collect(),
        waiting: condition.waiting().map(|one| one.name.to_owned()).collect(),
        refused: condition.refused().map(str::to_owned).collect(),
        failures: condition.failures,
        refusals: condition.refusals,
    }
}

fn key_set(status: &KeyStatus) -> KeySetStatus {
    // A time beyond the calendar is not shown.
    let shown = |time: SystemTime| Some(Timestamp::try_from(time).ok()?.to_string());
    KeySetStatus {
        source: Named(&status.source).to_string(),
        keys: status.keys,
        fetched: status.fetched.and_then(shown),
        error: status.error.clone(),
        next: status.next.and_then(shown),
    }
}

fn certificate(svid: &SvidStatus) -> CertificateStatus {
    // Certificates that we use ourselves can be decoded; one that cannot is left out of the picture.
    let entries = |ders: Vec<&[u8]>| -> Vec<CertificateEntry> {
        ders.into_iter()
            .filter_map(|der| CertificateEntry::from_der(der).ok())
            .collect()
    };
    let identity = svid.identity.as_deref();
    CertificateStatus {
        identity: svid.id.to_string(),
        state: match &svid.state {
            SvidState::Available => CertificateState::Available,
            SvidState::Initializing => CertificateState::Initializing,
            SvidState::Unavailable(reason) => CertificateState::Unavailable(reason.clone()),
        },
        chain: identity
            .map(|identity| entries(identity.chain().collect()))
            .unwrap_or_default(),
        roots: identity
            .map(|identity| entries(identity.roots().collect()))
            .unwrap_or_default(),
    }
}

fn connection(live: worker::LiveConnection) -> LiveConnection {
    LiveConnection {
        workload_uid: live.workload.to_string(),
        reporter: match live.direction {
            Direction::Inbound => Reporter::Destination,
            Direction::Outbound => Reporter::Source,
        },
        source: live.source,
        original_destination: live.original_destination,
        service: live.service,
        actual_destination: live.destination,
        carriage: match live.carriage {
            worker::Carriage::Hbone => Carriage::Hbone,
            worker::Carriage::Tcp => Carriage::Tcp,
        },
    }
}
