//! The agent's command line and environment, turned into the settings that each part owns. The only file that
//! reads either.

mod authority;
mod control_plane;
mod controller;
mod istiod;
mod variables;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use userspace_l7::model::{MeshSettings, TrustDomain};

use crate::admin::logging;
use crate::cni::{self, Installation, StartWithoutAgent};
use crate::keys::Pace;
use crate::mesh::{IstioDuration, Layer4, PodNetns};
use crate::sources::IstiodSettings;
use crate::spans::ResourceAttributes;

pub use self::authority::{Authority, AuthorityArgs};
pub use self::control_plane::ControlPlaneArgs;
pub use self::controller::{ControllerArgs, IstiodChoice};
pub use self::istiod::IstiodArgs;
pub use self::variables::InvalidVariable;

/// The shortest pause between two fetches of one key set.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);

/// `culvert agent`: run this node's agent.
#[derive(Args, Clone, Debug)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["manifests", "kubernetes"])))]
pub struct AgentArgs {
    /// Name of this node, as `spec.nodeName` of its pods has it
    #[arg(long, env = "NODE_NAME")]
    pub node: String,

    /// Directory with the mesh's objects: every *.yaml in it, watched
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// Takes the mesh's objects from the cluster's API instead: as the service account of this pod, or as --kubeconfig
    /// says
    #[arg(long)]
    pub kubernetes: bool,

    /// Which cluster, and as whom, where the agent is no pod
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,

    /// istiod as the source of layer 4.
    #[command(flatten)]
    pub istiod: IstiodArgs,

    /// Who issues identities.
    #[command(flatten)]
    pub authority: AuthorityArgs,

    /// Trust domain of the mesh's identities
    #[arg(long, default_value = "cluster.local", value_parser = trust_domain)]
    pub trust_domain: TrustDomain,

    /// Address of the admin server
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,

    /// Directory for this agent's state: pins, sockets, its CA. One per agent
    #[arg(long, value_name = "DIR", default_value = "/run/culvert")]
    pub run_dir: PathBuf,

    /// Proxy threads [default: a quarter of the CPUs, at least 2]
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,

    /// Whether the proxy runs on `io_uring`
    #[arg(long, value_enum, default_value_t = IoUring::Auto, value_name = "WHEN")]
    pub io_uring: IoUring,

    /// Name of the cluster, in metrics and workload names
    #[arg(
        long,
        default_value = "Kubernetes",
        value_name = "NAME",
        env = variables::cluster()
    )]
    pub cluster: String,

    /// DNS suffix of the cluster's services
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    pub cluster_domain: String,

    /// Namespace whose policies hold for the whole mesh
    #[arg(long, default_value = "istio-system", value_name = "NAMESPACE")]
    pub root_namespace: String,

    /// Which of Istio's control planes the mesh's objects are for.
    #[command(flatten)]
    pub control_plane: ControlPlaneArgs,

    /// In a cluster, take each pod's network namespace from its annotation `culvert.dev/netns` rather than find it: for
    /// test labs, because whoever may annotate pods then names what the agent enters as root
    #[arg(long, requires = "kubernetes")]
    pub trust_netns_annotation: bool,

    /// The node's /proc, where pods' processes are looked for with --kubernetes
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    pub host_proc: PathBuf,

    /// Directory of the container runtime's network configurations, to keep the CNI plugin in; with --cni-bin-dir
    #[arg(long, value_name = "DIR", requires_all = ["kubernetes", "cni_bin_dir"])]
    pub cni_conf_dir: Option<PathBuf>,

    /// Directory of the container runtime's plugins, to put the CNI plugin into; with --cni-conf-dir
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,

    /// Which pods do not wait for an agent.
    #[command(flatten)]
    pub without_agent: StartWithoutAgent,

    /// Socket where istio-cni names the pods of the mesh (ZDS), in the place of ztunnel: they are taken as it hands them over,
    /// with its rules in them, and no others
    #[arg(
        long,
        value_name = "PATH",
        env = "INPOD_UDS",
        conflicts_with_all = ["cni_conf_dir", "trust_netns_annotation"]
    )]
    pub zds_socket: Option<PathBuf>,

    /// Where the node's cgroup2 hierarchy is mounted, or a directory above that [default: the first hierarchy there is;
    /// that may be a container's own]
    #[arg(long, value_name = "DIR")]
    pub host_cgroup: Option<PathBuf>,

    /// cgroup2 directory that all pods of this node live under; host processes outside it may probe pods
    /// that demand mTLS, as the kubelet does [default with --kubernetes: the kubelet's]
    #[arg(long, value_name = "DIR")]
    pub pods_cgroup: Option<PathBuf>,

    /// Seconds without a sign of life after which the kernel refuses the pods' new connections
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub lease: u64,

    /// How often keys of tokens are fetched from `jwksUri` or the issuer, such as `20m`
    #[arg(long, value_name = "DURATION", default_value = "20m", env = "PILOT_JWT_PUB_KEY_REFRESH_INTERVAL", value_parser = refresh)]
    pub jwks_refresh: Duration,

    /// Authorities, in PEM, that such servers may be certified by besides the system's
    #[arg(long, value_name = "FILE")]
    pub jwks_ca: Option<PathBuf>,

    /// Attributes of spans for collectors with `resourceDetectors.environment`: key=value pairs, separated by
    /// commas
    #[arg(
        long,
        value_name = "PAIRS",
        default_value = "",
        env = "OTEL_RESOURCE_ATTRIBUTES"
    )]
    pub otel_resource_attributes: ResourceAttributes,

    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Plain, env = "LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: LogFormat,

    /// What is logged: a level, or `target=level` pairs separated by commas
    #[arg(long, default_value = "info", env = "RUST_LOG", value_name = "FILTER")]
    pub log_level: String,

    /// Seconds that connections may go on after the agent was told to stop
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain: u64,

    /// Seconds in which, after that, the pods' new connections wait for the next agent rather than be refused
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub restart_window: u64,
}

/// Whether `io_uring` is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IoUring {
    /// If the kernel offers it, else epoll.
    Auto,
    /// Or do not start at all.
    Require,
    /// Always epoll.
    Off,
}

/// Where the mesh's objects come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// A directory of manifests.
    Manifests(&'a Path),
    /// The API of the cluster that a kubeconfig names, or of the one that the agent is a pod of.
    Kubernetes(Option<&'a Path>),
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Tab-separated text.
    Plain,
    /// One JSON object per line.
    Json,
}

impl From<LogFormat> for logging::LogFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Plain => Self::Plain,
            LogFormat::Json => Self::Json,
        }
    }
}

impl AgentArgs {
    /// Who issues identities.
    ///
    /// # Errors
    /// [`InvalidVariable`]: a `CA_HEADER_` cannot be sent.
    pub fn authority(&self) -> Result<Authority, InvalidVariable> {
        self.authority.authority(&self.run_dir, &self.cluster)
    }

    /// Where the mesh's objects come from.
    pub fn source(&self) -> Source<'_> {
        match &self.manifests {
            Some(directory) => Source::Manifests(directory),
            None => Source::Kubernetes(self.kubeconfig.as_deref()),
        }
    }

    /// How istiod is asked for layer 4, if it is.
    ///
    /// # Errors
    /// [`InvalidVariable`]: an `XDS_HEADER_` or `ISTIO_META_` cannot be sent.
    pub fn istiod(&self) -> Result<Option<IstiodSettings>, InvalidVariable> {
        self.istiod.settings(&self.node, &self.cluster)
    }

    /// Where layer 4 comes from.
    pub fn layer4(&self) -> Layer4 {
        match &self.istiod.xds_address {
            Some(_) => Layer4::Announced,
            None => Layer4::Compiled,
        }
    }

    /// Where the CNI plugin is kept, if it is.
    pub fn cni(&self) -> Option<Installation> {
        let (conf_dir, bin_dir) = self.cni_conf_dir.clone().zip(self.cni_bin_dir.clone())?;
        Some(Installation {
            conf_dir,
            bin_dir,
            socket: self.run_dir.join(cni::SOCKET),
            start_without_agent: self.without_agent.namespaces(),
        })
    }

    /// How the network namespaces of this node's pods are known.
    pub fn pod_netns(&self) -> PodNetns {
        if self.is_on_clusters_node() || self.zds_socket.is_some() {
            PodNetns::Found
        } else {
            PodNetns::Annotated
        }
    }

    /// Whether this node's pods are a kubelet's.
    pub fn is_on_clusters_node(&self) -> bool {
        self.kubernetes && !self.trust_netns_annotation
    }

    /// Whether the agent finds them by itself: by their processes, and by what the runtime says through the CNI plugin.
    pub fn finds_pods(&self) -> bool {
        self.is_on_clusters_node() && self.zds_socket.is_none()
    }

    /// Proxy threads to start, on a machine with `cpus` CPUs. Two is the least that lets one busy peer leave
    /// the others a thread; a quarter leaves the node to its pods (ztunnel's default).
    pub fn workers(&self, cpus: usize) -> usize {
        self.workers
            .map_or_else(|| cpus.div_ceil(4).max(2), NonZeroUsize::get)
    }

    /// The mesh-wide settings of the snapshot.
    pub fn mesh(&self) -> MeshSettings {
        MeshSettings {
            trust_domain: self.trust_domain.clone(),
            cluster_domain: self.cluster_domain.as_str().into(),
            cluster: self.cluster.as_str().into(),
            network: "".into(),
        }
    }

    /// How often keys of tokens are fetched.
    pub fn jwks_pace(&self) -> Pace {
        Pace::every(self.jwks_refresh)
    }

    /// Time that connections may go on after the agent was told to stop.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain)
    }

    /// How long after its end connections wait for the next agent.
    pub fn restart_window(&self) -> Duration {
        Duration::from_secs(self.restart_window)
    }
}

fn refresh(text: &str) -> Result<Duration, String> {
    let duration = IstioDuration::try_from(text.to_owned()).map_err(|error| error.to_string())?;
    if duration.0 < SHORTEST_REFRESH {
        return Err("less than a second would be an attack: write 1s or more".to_owned());
    }
    Ok(duration.0)
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    let rule = "a trust domain has lower-case letters, digits, `.`, `-` and `_` only";
    TrustDomain::new(text).map_err(|_invalid| rule.to_owned())
}
