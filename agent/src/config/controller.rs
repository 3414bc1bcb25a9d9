//! The controller's command line and environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use userspace_l7::model::{MeshSettings, TrustDomain};

use super::{LogFormat, trust_domain};
use crate::controller::Istiod;

/// `culvert controller`: write statuses to a cluster's API.
#[derive(Args, Clone, Debug)]
pub struct ControllerArgs {
    /// Which cluster, and as whom, where the controller is no pod
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Namespace of the Lease by which one of several controllers writes
    #[arg(
        long,
        default_value = "culvert-system",
        value_name = "NAMESPACE",
        env = "POD_NAMESPACE"
    )]
    pub namespace: String,

    /// Name of this controller; something is added that no other has [default: the host's name]
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,

    /// Seconds that the others wait for one that is silent; it stops by itself after two thirds of that
    #[arg(long, default_value_t = 15, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(3..=3600))]
    pub lease: u64,

    /// Whether an istiod is in the cluster: then Istio's kinds are its own to speak about
    #[arg(long, value_enum, default_value_t = IstiodChoice::Auto, value_name = "WHETHER")]
    pub istiod: IstiodChoice,

    /// Address of the admin server
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,

    /// Trust domain of the mesh's identities
    #[arg(long, default_value = "cluster.local", value_parser = trust_domain)]
    pub trust_domain: TrustDomain,

    /// Name of the cluster, in workload names
    #[arg(
        long,
        default_value = "Kubernetes",
        value_name = "NAME",
        env = "CLUSTER_ID"
    )]
    pub cluster: String,

    /// DNS suffix of the cluster's services
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    pub cluster_domain: String,

    /// Namespace whose policies hold for the whole mesh
    #[arg(long, default_value = "istio-system", value_name = "NAMESPACE")]
    pub root_namespace: String,

    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Plain, env = "LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: LogFormat,

    /// What is logged: a level, or `target=level` pairs separated by commas
    #[arg(long, default_value = "info", env = "RUST_LOG", value_name = "FILTER")]
    pub log_level: String,
}

/// Whether an istiod is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IstiodChoice {
    /// It is if GatewayClass `istio-waypoint` is accepted by somebody else.
    Auto,
    /// It is.
    Present,
    /// It is not, whatever it left behind.
    Absent,
}

impl From<IstiodChoice> for Istiod {
    fn from(choice: IstiodChoice) -> Self {
        match choice {
            IstiodChoice::Auto => Self::Found,
            IstiodChoice::Present => Self::Present,
            IstiodChoice::Absent => Self::Absent,
        }
    }
}

impl ControllerArgs {
    /// How long the others wait for one that is silent.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease)
    }

    /// A name that no other controller has, whoever started it.
    pub fn identity(&self) -> String {
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let name = self.identity.clone().or_else(host).unwrap_or_default();
        format!("{}_{:08x}", name.trim(), rand::random::<u32>())
    }

    /// The mesh-wide settings, as the agents have them.
    pub fn mesh(&self) -> MeshSettings {
        MeshSettings {
            trust_domain: self.trust_domain.clone(),
            cluster_domain: self.cluster_domain.as_str().into(),
            cluster: self.cluster.as_str().into(),
            network: "".into(),
        }
    }
}
