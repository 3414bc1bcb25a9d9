//! The composition root: builds every part of the agent, wires them, and owns the order of start and stop.
//!
//! ```text
//!  source ────▶ compiler ─▶ Arc<Snapshot> ─▶ workers          (threads: culvert-worker-N, rings)
//!  (istiod) ──▶     │
//!                   │                    └─▶ admin, DNS       (this thread: tokio)
//!                   ├─▶ sources of keys ─▶ key keeper ─▶ KeySets ─▶ workers
//!                   ├─▶ hosts of endpoints ─▶ host watch ─▶ compiler
//!                   ├─▶ identities wanted ─▶ SVID keeper ─▶ Identities ─▶ workers
//!                   └─▶ pods of this node ─▶ enrolment ─▶ listeners ─▶ workers   (thread: culvert-capture)
//! ```

mod asking;
mod controller;
mod direct;
mod dns;
mod istio_cni;
mod node;
mod runtime;
mod state;
mod stop;

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};
use userspace_l7::key_sets::KeySets;
use userspace_l7::model::{Snapshot, SpiffeId, WorkloadUid};
use userspace_l7::pod;
use userspace_l7::ring::Backend;
use userspace_l7::telemetry::Metrics;
use userspace_l7::tls::Identities;
use userspace_l7::worker::{self, Worker};

use crate::admin::{self, AdminServer, Endpoints, Services, logging};
use crate::capture::{self, Capture, Openings};
use crate::config::{AgentArgs, Authority, ControllerArgs, Source};
use crate::direct::{Direct, DirectThread};
use crate::dns::DnsMetrics;
use crate::enrolment::{self, Enrolment, Orders};
use crate::hosts::{self, HostWatch};
use crate::identity::SvidKeeper;
use crate::keys;
use crate::mesh::{Announcement, Compiler, LocalPod, MeshOptions};
use crate::privilege;
use crate::sources::{
    Conditions, Input, IstiodConditions, IstiodWatch, KubernetesWatch, ManifestWatch, Problem,
    Severity, Update,
};
use asking::Asking;
pub use controller::ControllerError;
use node::{backend, places, pods_cgroup, raise_file_limit};
use runtime::Ears;
use state::{Seen, State};
use stop::{CLOSING, failure_of, told_to_stop, until_idle};

/// Where metrics and readiness are served, on every address of the node (ztunnel's ports).
const METRICS_PORT: u16 = 15020;
const READINESS_PORT: u16 = 15021;

/// Runs the agent until it is told to stop.
///
/// # Errors
/// Something that the agent cannot do without is missing; the sentence says what.
pub fn run(args: &AgentArgs) -> Result<()> {
    capture::give_memory_back_early();
    raise_file_limit();
    privilege::drop_to_kept(args.finds_pods())?;
    let format = args.log_format.into();
    let (log, _written_at_the_end) = logging::install(format, &args.log_level, std::io::stdout())
        .context("cannot start the log")?;
    let backend = backend(args.io_uring)?;
    let cpus = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let workers = args.workers(cpus);
    std::fs::create_dir_all(&args.run_dir)
        .with_context(|| format!("cannot create the run directory {}", args.run_dir.display()))?;
    let mut capture = Capture::load(&capture::Settings {
        run_dir: args.run_dir.clone(),
        workers: NonZeroUsize::new(workers).unwrap_or(NonZeroUsize::MIN),
        heartbeat_lease: Duration::from_secs(args.lease),
        cgroup: args.host_cgroup.clone(),
        pods_cgroup: pods_cgroup(args),
    })
    .context("cannot capture: `culvert doctor` says what this node lacks")?;
    let openings = capture.hold_openings()?;
    info!(node = %args.node, workers, ring = ?backend, "agent starting");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control plane's runtime")?;
    let proxy = Proxy {
        backend,
        workers,
        openings,
    };
    runtime.block_on(Agent::start(args, proxy, capture)?.serve(args, log))
}

/// Runs the controller until it is told to stop.
///
/// # Errors
/// [`ControllerError`]: something that it cannot do without is missing.
pub fn run_controller(args: &ControllerArgs) -> Result<(), ControllerError> {
    controller::run(args)
}

/// A port of every address, in both families.
fn any(port: u16) -> Vec<SocketAddr> {
    vec![
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        (Ipv4Addr::UNSPECIFIED, port).into(),
    ]
}

/// Where the agent is asked.
fn endpoints(args: &AgentArgs) -> Endpoints {
    Endpoints {
        admin: vec![args.admin],
        // Everybody on the node's network reaches loopback.
        socket: Some(args.run_dir.join(admin::SOCKET)),
        metrics: any(METRICS_PORT),
        readiness: any(READINESS_PORT),
    }
}

/// What the proxy threads begin with.
struct Proxy {
    backend: Backend,
    workers: usize,
    /// One for each worker, or none at all.
    openings: Vec<Openings>,
}

/// The parts that run.
struct Agent {
    wanted: watch::Receiver<HashSet<SpiffeId>>,
    sources: Sources,
    state: Arc<State>,
    workers: Arc<[Worker]>,
    enrolment: Enrolment,
    direct: Option<DirectThread>,
    keeper: SvidKeeper,
    asking: Asking,
    dns: dns::Pods,
    registry: Registry,
    /// Who hears of pods from the node's runtime.
    ears: Ears,
}

/// The sources that are followed; dropping them ends that.
struct Sources {
    _objects: SourceWatch,
    _istiod: Option<IstiodWatch>,
    /// Where the hosts are that these name.
    _hosts: HostWatch,
}

/// The source of objects.
enum SourceWatch {
    Manifests { _watch: ManifestWatch },
    Kubernetes { _watch: KubernetesWatch },
}

/// The mesh, and everyone who is told when it changes.
struct Mesh {
    compiler: Compiler,
    wanted: watch::Sender<HashSet<SpiffeId>>,
    key_sources: watch::Sender<keys::Wanted>,
    hosts: watch::Sender<hosts::Wanted>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    workers: Arc<[Worker]>,
    direct: Option<Direct>,
    orders: Orders,
    metrics: Arc<Metrics>,
    state: Arc<State>,
    /// Sources that have not told everything yet: before they have, nothing is in force.
    awaited: Awaited,
}

/// Who has not told everything yet.
#[derive(Clone, Copy)]
struct Awaited {
    objects: bool,
    istiod: bool,
}

impl Awaited {
    /// Everyone who is followed.
    fn of(args: &AgentArgs) -> Self {
        Self {
            objects: true,
            istiod: args.istiod.xds_address.is_some(),
        }
    }
}

impl Agent {
    fn start(args: &AgentArgs, proxy: Proxy, capture: Capture) -> Result<Self> {
        let backend = proxy.backend;
        let mut registry = Registry::default();
        let (metrics, spans) = asking::metrics(&mut registry);
        let compiler = compiler(args);
        let snapshot = watch::Sender::new(compiler.snapshot());
        let (identities, keeper) = identities(args, &snapshot)?;
        let channel = enrolment::channel();
        let key_sets = Arc::<KeySets>::default();
        let (dns_pods, dns, names) = dns::channel(snapshot.subscribe(), dns_metrics(&mut registry));
        let settings = worker::Settings {
            backend,
            snapshot: Arc::clone(&snapshot.borrow()),
            identities,
            key_sets: Arc::clone(&key_sets),
            names: Arc::new(names),
            traffic: Arc::default(),
            metrics: Arc::clone(&metrics),
            listener_lost: listener_lost(&channel.0),
        };
        let workers = start_workers(proxy, &settings)?;
        let asking = Asking::new(args, &snapshot, &key_sets, spans, &mut registry)?;
        let (direct, thread) = direct::start(args, &capture, &snapshot, metrics, &mut registry)?;
        let parts = (Box::new(dns_pods), direct.clone());
        let enrolment = enrolment(args, capture, &workers, parts, channel)?;
        let (source, istiod) = (Conditions::new(None), IstiodConditions::new(None));
        let (ears, plugin) = runtime::start(args, &enrolment.orders(), &snapshot)?;
        let state = State::new(
            args,
            backend,
            Seen {
                snapshot: snapshot.subscribe(),
                svids: keeper.statuses(),
                keys: asking.key_statuses(),
                key_sets,
                source: source.subscribe(),
                istiod: istiod.subscribe(),
            },
            Arc::clone(&workers),
            direct.clone(),
            &enrolment,
        );
        let state = Arc::new(state.with_runtime(plugin, ears.istio_cni()));
        let mesh = Mesh {
            compiler,
            wanted: watch::Sender::new(HashSet::new()),
            key_sources: asking.wanted(),
            hosts: watch::Sender::default(),
            snapshot,
            workers: Arc::clone(&workers),
            direct,
            orders: enrolment.orders(),
            metrics: settings.metrics,
            state: Arc::clone(&state),
            awaited: Awaited::of(args),
        };
        let wanted = mesh.wanted.subscribe();
        let sources = mesh.follow(args, source, istiod)?;
        Ok(Self {
            wanted,
            sources,
            state,
            workers,
            enrolment,
            direct: thread,
            keeper,
            asking,
            dns,
            registry,
            ears,
        })
    }
}

/// The thread that enrols pods.
fn enrolment(
    args: &AgentArgs,
    capture: Capture,
    workers: &Arc<[Worker]>,
    (dns, direct): (Box<dns::Requests>, Option<Direct>),
    channel: (Orders, enrolment::Inbox),
) -> Result<Enrolment> {
    let workers = Arc::clone(workers);
    Enrolment::start(capture, workers, (dns, direct), places(args), channel)
        .context("cannot start the capture thread")
}

fn dns_metrics(registry: &mut Registry) -> DnsMetrics {
    let metrics = DnsMetrics::new();
    metrics.register(registry);
    metrics
}

/// Where workers find identities, and who keeps them current.
fn identities(
    args: &AgentArgs,
    snapshot: &watch::Sender<Arc<Snapshot>>,
) -> Result<(Arc<Identities>, SvidKeeper)> {
    let identities = Arc::<Identities>::default();
    let published = Arc::clone(&identities);
    let keeper = match args.authority()? {
        Authority::Remote(settings) => {
            let seen = snapshot.subscribe();
            let mesh = Arc::new(move || Arc::clone(&seen.borrow()));
            SvidKeeper::ask(*settings, mesh, published)
        }
        Authority::Local(directory) => SvidKeeper::open(
            directory,
            args.trust_domain.clone(),
            args.authority.lifetime(),
            published,
        )?,
    };
    Ok((identities, keeper))
}

fn compiler(args: &AgentArgs) -> Compiler {
    Compiler::new(MeshOptions {
        mesh: args.mesh(),
        node: args.node.as_str().into(),
        root_namespace: args.root_namespace.as_str().into(),
        pod_netns: args.pod_netns(),
        layer4: args.layer4(),
        mesh_config: args.control_plane.mesh_config(),
        revisions: args.control_plane.revisions(),
    })
}

/// Tells the capture thread of a listener that stopped working.
fn listener_lost(orders: &Orders) -> Arc<dyn Fn(&WorkloadUid) + Send + Sync> {
    let orders = orders.clone();
    Arc::new(move |uid| orders.listener_lost(uid))
}

fn start_workers(proxy: Proxy, settings: &worker::Settings) -> Result<Arc<[Worker]>> {
    let mut openings = proxy.openings.into_iter();
    let workers = (0..proxy.workers).map(|index| {
        let openings = openings.next();
        let openings = openings.map(|openings| Box::new(openings) as Box<dyn pod::Openings>);
        Worker::start(index, settings.clone(), openings)
    });
    workers
        .collect::<std::io::Result<_>>()
        .context("cannot start a proxy thread")
}

impl Agent {
    async fn serve(self, args: &AgentArgs, log: logging::LogControl) -> Result<()> {
        let Self {
            wanted,
            sources,
            state,
            workers,
            enrolment,
            direct,
            keeper,
            asking,
            dns,
            mut registry,
            ears,
        } = self;
        let shown: Arc<dyn admin::AdminState> = Arc::<State>::clone(&state);
        admin::register(&mut registry, Arc::clone(&shown));
        let server = AdminServer::bind(&endpoints(args))?;
        let services = Services {
            state: shown,
            registry: Arc::new(registry),
            log,
        };
        let stopping = Arc::new(tokio::sync::Notify::new());
        let stopped = Arc::clone(&stopping);
        let admin = tokio::spawn(server.run(services, async move { stopped.notified().await }));
        let keeper = tokio::spawn(keeper.run(wanted));
        let asking = asking.start();
        let dns = tokio::spawn(dns.run());
        let ears = ears.open();
        let is_without =
            |direct: Option<&DirectThread>| direct.is_some_and(DirectThread::has_ended);
        let vital = || {
            let threads = [
                ("capture", enrolment.has_ended()),
                ("worker", workers.iter().any(Worker::is_finished)),
                ("direct", is_without(direct.as_ref())),
            ];
            let tasks = [("identity", &keeper), ("DNS", &dns), ("admin", &admin)];
            let tasks = tasks.map(|(name, task)| (name, task.is_finished()));
            threads.into_iter().chain(tasks)
        };
        tokio::select! {
            told = told_to_stop(&state) => told?,
            part = failure_of(vital) => bail!("the {part} part has failed: the agent ends, to be started anew"),
        }
        info!("agent stopping: connections may end by themselves for a while");
        let closing = CLOSING.min(args.drain());
        until_idle(&workers, args.drain().saturating_sub(closing)).await;
        drop(sources);
        ears.iter().for_each(JoinHandle::abort);
        info!("agent stopping: new connections wait for the next one");
        enrolment.stop(closing + args.restart_window());
        workers.iter().for_each(|worker| worker.drain(closing));
        if let Some(direct) = direct {
            direct.stop();
        }
        while workers.iter().any(|worker| !worker.is_finished()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stopping.notify_one();
        admin.await.context("the admin server panicked")?;
        keeper.abort();
        drop(asking);
        dns.abort();
        info!("agent stopped");
        Ok(())
    }
}

impl Mesh {
    /// Follows the sources, each on a thread of its own.
    fn follow(
        self,
        args: &AgentArgs,
        conditions: Conditions,
        of_istiod: IstiodConditions,
    ) -> Result<Sources> {
        let hosts = self.hosts.subscribe();
        let mesh = Arc::new(Mutex::new(self));
        let hosts = {
            let mesh = Arc::clone(&mesh);
            let take = move |found| lock(&mesh).find(found);
            HostWatch::start(hosts, take).context("cannot look hosts up")?
        };
        let istiod = match args.istiod()? {
            Some(settings) => {
                let mesh = Arc::clone(&mesh);
                let take = move |announcements| lock(&mesh).hear(announcements);
                let watch = IstiodWatch::start(settings, of_istiod, take);
                Some(watch.context("cannot follow istiod")?)
            }
            None => None,
        };
        let objects = match args.source() {
            Source::Manifests(directory) => {
                let take = move |update, manifests: &_| lock(&mesh).take(update, manifests);
                let watch = ManifestWatch::start(directory.to_owned(), take)
                    .context("cannot watch the manifests")?;
                SourceWatch::Manifests { _watch: watch }
            }
            Source::Kubernetes(kubeconfig) => {
                let take = move |update, cluster: &_| lock(&mesh).take(update, cluster);
                let config_map = args.control_plane.mesh_config();
                let watch = KubernetesWatch::start((kubeconfig, &config_map), conditions, take)
                    .context("cannot follow the cluster")?;
                SourceWatch::Kubernetes { _watch: watch }
            }
        };
        Ok(Sources {
            _objects: objects,
            _istiod: istiod,
            _hosts: hosts,
        })
    }

    /// Takes news of the objects over.
    fn take(&mut self, update: Update, input: &impl Input) {
        let noticed = update.noticed.filter(|_| !update.changes.is_empty());
        let snapshot = self.compiler.apply(update.changes);
        self.awaited.objects = false;
        self.publish(snapshot, noticed);
        self.report(input);
        // Last: nobody's traffic waits for it.
        self.state.tell(self.compiler.object_statuses());
    }

    /// Takes over what istiod announces.
    fn hear(&mut self, announcements: Vec<Announcement>) {
        let snapshot = self.compiler.announce(announcements);
        self.awaited.istiod = false;
        self.publish(snapshot, None);
    }

    /// Takes over where hosts are.
    fn find(&mut self, found: hosts::Found) {
        let snapshot = self.compiler.look_up(found);
        self.publish(snapshot, None);
    }

    /// Puts the mesh in force, once every source has told everything: identities are asked for first, since pods that are
    /// captured cannot prove who they are before they have come.
    fn publish(&mut self, snapshot: Arc<Snapshot>, noticed: Option<Instant>) {
        if self.awaited.objects || self.awaited.istiod {
            return;
        }
        let wanted: HashSet<_> = self.compiler.identities().into_iter().collect();
        self.wanted.send_if_modified(|now| {
            let changed = *now != wanted;
            *now = wanted;
            changed
        });
        let change = noticed.map(|noticed| self.metrics.change(noticed.into()));
        self.workers
            .iter()
            .for_each(|worker| worker.publish(Arc::clone(&snapshot), change.clone()));
        drop(change);
        if let Some(direct) = &self.direct {
            direct.publish(Arc::clone(&snapshot));
        }
        self.snapshot.send_replace(snapshot);
        // After the snapshot, which says where their hosts are.
        let sources = self.compiler.key_sources();
        self.key_sources.send_if_modified(|now| {
            let changed = *now != sources;
            *now = sources;
            changed
        });
        let hosts = self.compiler.hostnames();
        self.hosts.send_if_modified(|now| {
            let changed = *now != hosts;
            *now = hosts;
            changed
        });
        let pods = self.compiler.local_pods().values();
        self.orders.want(
            pods.map(|pod| LocalPod::clone(pod)).collect(),
            self.compiler.bystanders().cloned().collect(),
        );
    }

    /// Shows what is wrong with the input, and logs what was not wrong before.
    fn report(&self, input: &impl Input) {
        let notices = self.compiler.notices().cloned().collect();
        let problems = Arc::new(input.problems(notices));
        let before = self.state.report(Arc::clone(&problems));
        // Both lists are sorted.
        let is_new = |problem: &&Problem| before.list.binary_search(problem).is_err();
        for problem in problems.list.iter().filter(is_new) {
            match problem.severity {
                Severity::Error => {
                    warn!(%problem, "manifests not taken over: the last good state stays");
                }
                Severity::Warning => warn!(%problem, "manifest"),
                Severity::Info => debug!(%problem, "manifest"),
            }
        }
    }
}

/// The mesh for one of its sources. What another one's panic left behind is computed anew from the objects.
fn lock(mesh: &Mutex<Mesh>) -> MutexGuard<'_, Mesh> {
    mesh.lock().unwrap_or_else(PoisonError::into_inner)
}
