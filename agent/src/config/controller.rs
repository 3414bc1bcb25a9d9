//! The controller's command line and environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use userspace_l7::model::{MeshSettings, TrustDomain};

use super::{ControlPlaneArgs, LogFormat, trust_domain};
use crate::controller::{AuthoritySettings, Istiod};

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

    /// Issues the mesh's identities on this port of every address, to agents with --ca-address
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub ca_port: Option<u16>,

    /// Secret that the authority is kept in, with the file names of Istio's `cacerts`; made if it is not there
    #[arg(
        long,
        value_name = "NAME",
        default_value = "culvert-ca",
        requires = "ca_port"
    )]
    pub ca_secret: String,

    /// `ConfigMap` that the authority's roots are published in, as `root-cert.pem`
    #[arg(
        long,
        value_name = "NAME",
        default_value = "culvert-ca-root-cert",
        requires = "ca_port"
    )]
    pub ca_bundle: String,

    /// Service that agents know the authority as, in the namespace of the Lease
    #[arg(
        long,
        value_name = "NAME",
        default_value = "culvert-ca",
        requires = "ca_port"
    )]
    pub ca_service: String,

    /// Audience that the agents' tokens are for
    #[arg(
        long,
        value_name = "AUDIENCE",
        default_value = "istio-ca",
        requires = "ca_port"
    )]
    pub ca_audience: String,

    /// Service accounts of agents, separated by commas [default: `culvert-agent` in the namespace of the Lease]
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        value_delimiter = ',',
        requires = "ca_port",
        value_parser = account
    )]
    pub ca_agents: Vec<(String, String)>,

    /// Longest lifetime of the identities that are issued, in seconds
    #[arg(long, default_value_t = 24 * 60 * 60, value_name = "SECONDS", requires = "ca_port", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub ca_svid_ttl: u64,

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

    /// Which of Istio's control planes the mesh's objects are for.
    #[command(flatten)]
    pub control_plane: ControlPlaneArgs,

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
    /// It is if GatewayClass `istio-waypoint` is accepted by somebody else, or `istio` by Istio.
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

    /// The authority that is served, if one is.
    pub fn authority(&self) -> Option<AuthoritySettings> {
        let (namespace, service) = (&self.namespace, &self.ca_service);
        let short = format!("{service}.{namespace}");
        let default = || vec![(namespace.clone(), "culvert-agent".to_owned())];
        let named = Some(self.ca_agents.clone()).filter(|named| !named.is_empty());
        Some(AuthoritySettings {
            port: self.ca_port?,
            namespace: namespace.clone(),
            secret: self.ca_secret.clone(),
            bundle: self.ca_bundle.clone(),
            names: vec![
                service.clone(),
                format!("{short}.svc"),
                format!("{short}.svc.{}", self.cluster_domain),
                short,
            ],
            audience: self.ca_audience.clone(),
            agents: named.unwrap_or_else(default),
            longest: Duration::from_secs(self.ca_svid_ttl),
            trust_domain: self.trust_domain.clone(),
            cluster: self.cluster.clone(),
        })
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

fn account(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('/');
    let is_whole = |(namespace, name): &(&str, &str)| {
        !namespace.is_empty() && !name.is_empty() && !name.contains('/')
    };
    let (namespace, name) = parts
        .filter(is_whole)
        .ok_or("write NAMESPACE/NAME, such as culvert-system/culvert-agent")?;
    Ok((namespace.to_owned(), name.to_owned()))
}
