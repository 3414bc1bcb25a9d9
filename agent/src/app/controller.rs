//! The controller put together: it follows the cluster with the same source and compiler as an agent, and writes what they
//! say of each object.
//!
//! ```text
//!  source ─▶ compiler ─ statuses, notices ─▶ planner ─▶ writer     (planner: thread `kubernetes`; the rest: tokio)
//!               └─ which pods run where ─▶ authority
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tracing::info;
use userspace_l7::key_sets::KeySets;
use userspace_l7::model::Snapshot;

use super::state::{cluster, shown};
use super::{METRICS_PORT, READINESS_PORT, any};
use crate::admin::{
    self, AdminServer, AdminState, AgentStatus, BindError, BoxFuture, CertificateStatus, Endpoints,
    LiveConnection, Released, Services, logging,
};
use crate::config::ControllerArgs;
use crate::controller::{self, AuthorityMetrics, ControllerMetrics, Planner, Running, Settings};
use crate::mesh::status::{self, ObjectStatus};
use crate::mesh::{Compiler, Layer4, MeshOptions, Notice, PodNetns};
use crate::privilege;
use crate::sources::{
    ApiWriter, Cluster, ClusterCondition, ClusterError, Conditions, Input as _, KubernetesWatch,
    Problems, Severity, Update,
};

/// Of no pod: a node's name has no slash. The controller captures nothing.
const NO_NODE: &str = "/";

/// Why there is no controller.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The log.
    #[error("cannot start the log: {0}")]
    Log(#[from] logging::LogSetupError),
    /// The runtime, or a signal.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Its servers.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The port of its authority.
    #[error("cannot issue identities on port {port}: {source}")]
    Authority {
        /// Which.
        port: u16,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Runs the controller until it is told to stop.
pub(super) fn run(args: &ControllerArgs) -> Result<(), ControllerError> {
    let format = args.log_format.into();
    let (log, _written_at_the_end) = logging::install(format, &args.log_level, std::io::stdout())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let settings = Settings {
        namespace: args.namespace.clone(),
        identity: args.identity(),
        lease: args.lease(),
        istiod: args.istiod.into(),
    };
    let identity = settings.identity.as_str();
    info!(identity, "controller starting");
    let mut registry = Registry::default();
    let metrics = ControllerMetrics::default();
    metrics.register(&mut registry);
    let kubeconfig = args.kubeconfig.as_deref();
    let api = runtime.block_on(ApiWriter::find(kubeconfig))?;
    let source = Conditions::new(None);
    let compiler = compiler(args);
    let mut state = State::new(args, identity, source.subscribe(), &compiler);
    let seen = watch::Sender::new(compiler.snapshot());
    let (planner, running) = {
        // Its tasks are the runtime's.
        let _inside = runtime.enter();
        let (planner, mut running) = controller::start(&api, &settings, seen.subscribe(), &metrics);
        if let Some(authority) = args.authority() {
            let (port, metrics) = (authority.port, AuthorityMetrics::default());
            metrics.register(&mut registry);
            let ready = running
                .issue(&api, authority, &metrics)
                .map_err(|source| ControllerError::Authority { port, source })?;
            state.authority = Some(ready);
        }
        (planner, running)
    };
    let state = Arc::new(state);
    let mut mesh = Mesh {
        compiler,
        planner,
        seen,
        state: Arc::clone(&state),
    };
    // It has a runtime of its own, and waits for that: not from within ours.
    let take = move |update, cluster: &_| mesh.take(update, cluster);
    let config_map = args.control_plane.mesh_config();
    let following = KubernetesWatch::start_holding((kubeconfig, &config_map), source, take)?;
    let served = runtime.block_on(serve(state, running, registry, log));
    drop(following);
    served
}

/// Serves administration until it is told to stop, then stops writing and gives the lease back.
async fn serve(
    state: Arc<State>,
    running: Running,
    mut registry: Registry,
    log: logging::LogControl,
) -> Result<(), ControllerError> {
    let shown: Arc<dyn AdminState> = Arc::<State>::clone(&state);
    admin::register(&mut registry, Arc::clone(&shown));
    let server = AdminServer::bind(&Endpoints {
        admin: vec![state.args.admin],
        // Loopback is its own pod's.
        socket: None,
        metrics: any(METRICS_PORT),
        readiness: any(READINESS_PORT),
    })?;
    let services = Services {
        state: shown,
        registry: Arc::new(registry),
        log,
    };
    let (stop, mut stopped) = watch::channel(());
    let admin = tokio::spawn(server.run(services, async move {
        // Nobody sends: it is over when the sender is gone.
        let _gone = stopped.changed().await;
    }));
    told_to_stop(&state).await?;
    info!("controller stopping");
    running.stop().await;
    drop(stop);
    // It ends within its own limit; that it panicked was said where it did.
    let _ended = admin.await;
    info!("controller stopped");
    Ok(())
}

async fn told_to_stop(state: &State) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        () = state.stop.notified() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn compiler(args: &ControllerArgs) -> Compiler {
    Compiler::new(MeshOptions {
        mesh: args.mesh(),
        node: NO_NODE.into(),
        root_namespace: args.root_namespace.as_str().into(),
        pod_netns: PodNetns::Found,
        layer4: Layer4::Compiled,
        mesh_config: args.control_plane.mesh_config(),
        revisions: args.control_plane.revisions(),
    })
}

/// The mesh, and who is told when it changes.
struct Mesh {
    compiler: Compiler,
    planner: Planner,
    seen: watch::Sender<Arc<Snapshot>>,
    state: Arc<State>,
}

impl Mesh {
    fn take(&mut self, update: Update, cluster: &Cluster) {
        let snapshot = self.compiler.apply(update.changes);
        self.seen.send_replace(Arc::clone(&snapshot));
        let statuses = self.compiler.object_statuses();
        let mut notices: Vec<Notice> = self.compiler.notices().cloned().collect();
        notices.extend(self.compiler.silent_faults());
        self.planner
            .take(cluster, &statuses, &notices, cluster.own_problems());
        self.state
            .tell(snapshot, statuses, cluster.problems(notices));
    }
}

/// Lent to the admin servers.
struct State {
    args: ControllerArgs,
    identity: String,
    source: watch::Receiver<Option<Arc<ClusterCondition>>>,
    told: Mutex<Told>,
    /// Whether there is a root to issue with, where that is our task.
    authority: Option<watch::Receiver<bool>>,
    stop: Notify,
}

/// What the mesh says.
struct Told {
    snapshot: Arc<Snapshot>,
    problems: Arc<Problems>,
    objects: Arc<[ObjectStatus]>,
}

impl State {
    fn new(
        args: &ControllerArgs,
        identity: &str,
        source: watch::Receiver<Option<Arc<ClusterCondition>>>,
        compiler: &Compiler,
    ) -> Self {
        Self {
            args: args.clone(),
            identity: identity.to_owned(),
            source,
            told: Mutex::new(Told {
                snapshot: compiler.snapshot(),
                problems: Arc::default(),
                objects: Arc::default(),
            }),
            authority: None,
            stop: Notify::new(),
        }
    }

    fn tell(&self, snapshot: Arc<Snapshot>, mut objects: Vec<ObjectStatus>, problems: Problems) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        status::since(&told.objects, &mut objects, Timestamp::now());
        *told = Told {
            snapshot,
            problems: Arc::new(problems),
            objects: objects.into(),
        };
    }

    fn told<T>(&self, part: impl FnOnce(&Told) -> T) -> T {
        part(&self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AdminState for State {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.told(|told| Arc::clone(&told.snapshot))
    }

    fn key_sets(&self) -> Arc<KeySets> {
        Arc::default()
    }

    fn certificates(&self) -> Vec<CertificateStatus> {
        Vec::new()
    }

    fn connections(&self) -> BoxFuture<'_, Vec<LiveConnection>> {
        Box::pin(async { Vec::new() })
    }

    fn status(&self) -> AgentStatus {
        let (generation, problems) =
            self.told(|told| (told.snapshot.generation, Arc::clone(&told.problems)));
        let source = self.source.borrow();
        let waiting = source.iter().flat_map(|source| source.waiting());
        let pending = waiting.map(|kind| format!("the first list of {}", kind.resource));
        let mut pending: Vec<String> = pending.collect();
        if self
            .authority
            .as_ref()
            .is_some_and(|ready| !*ready.borrow())
        {
            pending.push("the mesh's root certificate".to_owned());
        }
        AgentStatus {
            // It serves none; this is who it is.
            node: self.identity.clone(),
            generation,
            ring_backend: "none".to_owned(),
            capabilities: privilege::held(),
            pending,
            problems: shown(&problems, Severity::Error),
            warnings: shown(&problems, Severity::Warning),
            cluster: source.as_deref().map(cluster),
            ..AgentStatus::default()
        }
    }

    fn objects(&self) -> Arc<[ObjectStatus]> {
        self.told(|told| Arc::clone(&told.objects))
    }

    fn config(&self) -> serde_json::Value {
        let args = &self.args;
        json!({
            "identity": self.identity,
            "kubeconfig": args.kubeconfig,
            "namespace": args.namespace,
            "leaseSeconds": args.lease,
            "istiod": format!("{:?}", args.istiod).to_lowercase(),
            "admin": args.admin.to_string(),
            "caPort": args.ca_port,
            "caSecret": args.ca_secret,
            "caBundle": args.ca_bundle,
            "caService": args.ca_service,
            "caAudience": args.ca_audience,
            "caAgents": args.ca_agents,
            "caSvidTtlSeconds": args.ca_svid_ttl,
            "trustDomain": args.trust_domain.as_str(),
            "cluster": args.cluster,
            "clusterDomain": args.cluster_domain,
            "rootNamespace": args.root_namespace,
            "meshConfig": args.control_plane.mesh_config,
            "revisions": args.control_plane.revision,
        })
    }

    fn shut_down(&self) {
        self.stop.notify_one();
    }

    fn unenrol(&self) -> BoxFuture<'_, Released> {
        Box::pin(async {
            Released {
                pods: Vec::new(),
                failures: vec!["a controller has captured no pods".to_owned()],
            }
        })
    }
}
