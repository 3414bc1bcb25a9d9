//! What people type behind `culvert waypoint`: istioctl's words, and where waypoints are kept.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::AdminArgs;

/// What to do with waypoints.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum WaypointCommand {
    /// Print the waypoint's manifest, and change nothing.
    Generate(GenerateArgs),
    /// Write the waypoint to the cluster, or to the agent's directory.
    Apply(ApplyArgs),
    /// List waypoints.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show the conditions of waypoints. Exits with 1 if one is not programmed in time.
    Status(StatusArgs),
    /// Remove waypoints.
    Delete(DeleteArgs),
}

/// Where waypoints are kept: in a cluster, or in the directory that an agent reads. Without any of these the agent says
/// where; if none answers, it is the cluster that `kubectl` would speak with.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct TargetArgs {
    /// In the cluster that this file names, rather than in that of $KUBECONFIG or ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// In the cluster of this context of the kubeconfig.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The agent.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Which waypoint.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct GenerateArgs {
    /// Name of the waypoint.
    #[arg(long, value_name = "NAME", default_value = "waypoint")]
    pub name: String,
    /// Namespace of the waypoint; without it the kubeconfig's, else `default`.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The traffic that it is for.
    #[arg(long = "for", value_name = "TYPE", value_parser = ["service", "workload", "all", "none"])]
    pub traffic: Option<String>,
    /// The revision that it belongs to (label `istio.io/rev`).
    #[arg(short, long, value_name = "REVISION")]
    pub revision: Option<String>,
}

/// Arguments of `culvert waypoint apply`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ApplyArgs {
    /// Which waypoint.
    #[command(flatten)]
    pub waypoint: GenerateArgs,
    /// Let everything in the namespace use it. In a directory the Namespace's manifest is written anew, without its
    /// comments.
    #[arg(long)]
    pub enroll_namespace: bool,
    /// Enroll the namespace even if it uses another waypoint.
    #[arg(long)]
    pub overwrite: bool,
    /// Wait until it is ready.
    #[command(flatten)]
    pub wait: WaitArgs,
    /// Where waypoints are kept.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Whether and how long to wait.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct WaitArgs {
    /// Wait until the waypoint is ready.
    #[arg(short, long)]
    pub wait: bool,
    /// How long to wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "90")]
    pub waypoint_timeout: u64,
}

/// Arguments of `culvert waypoint list`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ListArgs {
    /// Only this namespace; without it the kubeconfig's, else `default`.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Where waypoints are kept.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Arguments of `culvert waypoint status`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct StatusArgs {
    /// Only this waypoint.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Its namespace; without it the kubeconfig's, else `default`.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// How long to wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "90")]
    pub waypoint_timeout: u64,
    /// Where waypoints are kept.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Arguments of `culvert waypoint delete`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct DeleteArgs {
    /// Names of waypoints.
    #[arg(value_name = "NAME", required_unless_present_any = ["all", "revision"])]
    pub names: Vec<String>,
    /// Their namespace; without it the kubeconfig's, else `default`.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// All waypoints of the namespace.
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// All waypoints of the namespace that belong to this revision.
    #[arg(short, long, value_name = "REVISION", conflicts_with_all = ["names", "all"])]
    pub revision: Option<String>,
    /// Where waypoints are kept.
    #[command(flatten)]
    pub target: TargetArgs,
}
