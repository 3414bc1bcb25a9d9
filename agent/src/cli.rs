//! The commands that people type: they ask a running agent through its admin server, or read a saved dump,
//! and print. They change nothing but what `log`, `stop` and `waypoint` say.
//!
//! Exit codes: 0 fine, 1 failed, 2 usage (clap's own). Errors are one sentence: what, where, what to do.

pub mod bench;
mod client;
pub mod cni;
mod describe;
mod explain;
mod get;
mod output;
mod status;
mod stay;
mod table;
#[cfg(test)]
mod tests;
pub mod waypoint;
mod yaml;

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

pub use bench::BenchCommand;
pub use cni::{CniCommand, InstallArgs, PlaceArgs};
pub use describe::{DescribeArgs, DescribeCommand};
pub use explain::ExplainArgs;
pub use get::{
    AllArgs, CertificatesArgs, ConnectionsArgs, Direction, GetCommand, ListArgs, SelectArgs,
    WorkloadsArgs,
};
pub use output::{Format, OutputArgs};
pub use waypoint::{WaypointCommand, WaypointError};

use crate::admin::VersionDump;
use crate::cni::InstallationError;
use crate::{capture, doctor};

/// Commands that talk to a running agent. The program adds those that start one.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum Command {
    /// List what the agent knows of the mesh.
    #[command(subcommand)]
    Get(GetCommand),
    /// Show all that the mesh knows of one service or pod.
    #[command(subcommand)]
    Describe(DescribeCommand),
    /// Say what would become of a connection or request, step by step, and why. Nothing is sent.
    Explain(ExplainArgs),
    /// Generate, apply, list and remove the Gateways that are waypoints.
    #[command(subcommand)]
    Waypoint(WaypointCommand),
    /// Show whether the agent is well: pods, bad manifests, repairs. Exits with 1 while it is not ready.
    Status(StatusArgs),
    /// Show or change the agent's log level while it runs.
    Log(LogArgs),
    /// Stop the agent, with `--unenrol` leaving nothing behind.
    Stop(StopArgs),
    /// Remove what an agent that no longer runs has left on the node: rules, routes, programs, pins, and the CNI
    /// plugin. Its pods run without the mesh afterwards.
    Uninstall(UninstallArgs),
    /// Put the CNI plugin in place, which keeps pods from starting before they are captured, or take it out.
    #[command(subcommand)]
    Cni(CniCommand),
    /// Say what this node has of what the agent needs, and what it costs to lack the rest. Exits with 1 if
    /// the agent could not run here.
    Doctor(OutputArgs),
    /// Measure what a mesh costs: a load generator, the server that it loads, and a report of several runs.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print this program's version.
    Version(OutputArgs),
}

/// Which agent to ask.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct AdminArgs {
    /// Address of the agent's admin server, in the network namespace where it runs.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: String,
}

/// Where an agent is changed.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct SocketArgs {
    /// The run directory that the agent was started with: it is changed over the socket there, by root only. A controller
    /// has none, and is asked at --admin.
    #[arg(long, value_name = "DIR", default_value = "/run/culvert")]
    pub run_dir: PathBuf,
}

/// Arguments of `culvert status`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct StatusArgs {
    /// The agent.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// The format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `culvert log`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct LogArgs {
    /// LEVEL or TARGET=LEVEL, separated by commas: `debug`, `access=off`. Without it the level is shown.
    #[arg(value_name = "LEVEL")]
    pub level: Option<String>,
    /// First go back to the level that the agent was started with.
    #[arg(long)]
    pub reset: bool,
    /// Its socket.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// The agent.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Arguments of `culvert stop`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct StopArgs {
    /// Release every pod first and remove all rules, routes, programs and pins. Without it pods stay
    /// captured, and their new connections are refused until an agent runs again.
    #[arg(long)]
    pub unenrol: bool,
    /// Its socket.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// The agent.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Arguments of `culvert uninstall`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct UninstallArgs {
    /// The run directory that the agent was started with.
    #[arg(long, value_name = "DIR", default_value = "/run/culvert")]
    pub run_dir: PathBuf,
    /// Where the node's cgroup2 hierarchy is mounted, if the agent was told.
    #[arg(long, value_name = "DIR")]
    pub host_cgroup: Option<PathBuf>,
    /// Directory of the container runtime's network configurations, if the agent kept a plugin there.
    #[arg(long, value_name = "DIR", requires = "cni_bin_dir")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Directory of the container runtime's plugins, if the agent kept one there.
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Afterwards go on until told to stop, answering 200 at /healthz/ready on port 15021: in place of the agent of
    /// a `DaemonSet`.
    #[arg(long)]
    pub stay: bool,
}

/// What stood in the way of removal: a step of capture, in its own words.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct UninstallError(capture::CaptureError);

/// A command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Something of a former agent could not be removed.
    #[error("cannot remove what the agent left behind")]
    Uninstall(#[source] UninstallError),
    /// Nobody answers.
    #[error(
        "cannot reach the agent's admin server at {admin}: is `culvert agent` running in this network namespace?"
    )]
    Unreachable {
        /// Where.
        admin: String,
        /// Why.
        source: io::Error,
    },
    /// The answer broke off or is no HTTP.
    #[error("the admin server at {admin} broke off its answer to {path}: see the agent's log")]
    Broken {
        /// Where.
        admin: String,
        /// What was asked.
        path: String,
        /// Why.
        source: hyper::Error,
    },
    /// No answer in time.
    #[error(
        "the admin server at {admin} did not answer {path} within {seconds} s: see the agent's log"
    )]
    Late {
        /// Where.
        admin: String,
        /// What was asked.
        path: String,
        /// The limit.
        seconds: u64,
    },
    /// The agent refused.
    #[error("the agent at {admin} refused {path} ({status}): {reason}")]
    Refused {
        /// Where.
        admin: String,
        /// What was asked.
        path: String,
        /// HTTP status.
        status: u16,
        /// Its own words.
        reason: String,
    },
    /// A saved dump cannot be read.
    #[error("cannot read the dump {}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text is no dump.
    #[error("{origin} is no config dump: does it come from /config_dump of an agent or a ztunnel?")]
    Decode {
        /// Where the text comes from.
        origin: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The CNI plugin cannot be put in or taken out.
    #[error(transparent)]
    Cni(#[from] InstallationError),
    /// There is nothing to chain to.
    #[error("{} holds no network's configuration: install the cluster's network first", directory.display())]
    NoNetwork {
        /// The runtime's directory.
        directory: PathBuf,
    },
    /// A waypoint could not be written, read or removed.
    #[error(transparent)]
    Waypoint(#[from] WaypointError),
    /// A benchmark could not be run or read.
    #[error(transparent)]
    Bench(#[from] crate::bench::BenchError),
    /// Flags that do not go together.
    #[error("{0}")]
    Usage(String),
    /// There is no such object.
    #[error("the mesh knows no {kind} called `{name}`: see `culvert get {list}`")]
    NotFound {
        /// `service` or `pod`.
        kind: &'static str,
        /// The list that it would stand in.
        list: &'static str,
        /// What was asked for.
        name: String,
    },
    /// The agent still answers.
    #[error("the agent at {admin} still runs {seconds} s after it was told to stop: see its log")]
    StillRuns {
        /// Where.
        admin: String,
        /// The limit.
        seconds: u64,
    },
    /// Removal was incomplete.
    #[error("the agent could not remove everything: {}", failures.join("; "))]
    LeftBehind {
        /// One sentence each.
        failures: Vec<String>,
    },
    /// The output cannot be written.
    #[error("cannot write the output")]
    Write(#[source] io::Error),
    /// A value has no JSON form.
    #[error("cannot write the output as JSON")]
    Encode(#[source] serde_json::Error),
    /// This process has no room for a runtime.
    #[error("cannot start")]
    Start(#[source] io::Error),
}

impl CliError {
    /// 2 if it was typed wrong, else 1.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }

    /// An error with its causes, on one line.
    pub fn sentence(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            // Writing to a String cannot fail.
            let _infallible = write!(text, " ({error})");
            cause = error.source();
        }
        text
    }
}

impl Command {
    /// Does the work and prints to `out`; a reader that goes away early is no failure.
    ///
    /// # Errors
    /// [`CliError`]; nothing useful was printed then.
    pub fn run(&self, out: &mut impl Write) -> Result<ExitCode, CliError> {
        match self.execute(out) {
            Err(CliError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                Ok(ExitCode::SUCCESS)
            }
            done => done,
        }
    }

    fn execute(&self, out: &mut impl Write) -> Result<ExitCode, CliError> {
        match self {
            Self::Get(get) => get.run(out)?,
            Self::Describe(describe) => describe.run(out)?,
            Self::Explain(args) => explain::run(args, out)?,
            Self::Waypoint(waypoint) => return waypoint.run(out),
            Self::Bench(bench) => return bench.run(out),
            Self::Status(args) => return status::run(args, out),
            Self::Log(args) => out
                .write_all(client::log(args)?.as_bytes())
                .map_err(CliError::Write)?,
            Self::Stop(args) => {
                let done = client::stop(args)?;
                out.write_all(done.as_bytes()).map_err(CliError::Write)?;
            }
            Self::Uninstall(args) => uninstall(args)?,
            Self::Cni(command) => command.run(out)?,
            Self::Doctor(output) => {
                let findings = doctor::examine(&doctor::REQUIREMENTS);
                output.print(out, &findings, |_wide| doctor::table(&findings))?;
                let fit = doctor::is_fit(&findings);
                return Ok(if fit {
                    ExitCode::SUCCESS
                } else {
                    ExitCode::FAILURE
                });
            }
            Self::Version(output) => version(output, out)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The plugin first: a pod that starts then waits for nobody.
fn uninstall(args: &UninstallArgs) -> Result<(), CliError> {
    let directories = args.cni_conf_dir.clone().zip(args.cni_bin_dir.clone());
    if let Some((cni_conf_dir, cni_bin_dir)) = directories {
        let place = PlaceArgs {
            cni_conf_dir,
            cni_bin_dir,
        };
        place.uninstall()?;
    }
    capture::uninstall(&args.run_dir, args.host_cgroup.as_deref())
        .map_err(|error| CliError::Uninstall(UninstallError(error)))?;
    if args.stay { stay::run() } else { Ok(()) }
}

fn version(output: &OutputArgs, out: &mut impl Write) -> Result<(), CliError> {
    let version = VersionDump::current();
    output.print(out, &version, |wide| {
        let mut text = format!("culvert {}\n", version.version);
        if wide {
            let VersionDump {
                git_revision,
                rust_version,
                build_profile,
                ..
            } = &version;
            // Writing to a String cannot fail.
            let _infallible = writeln!(
                text,
                "revision {git_revision}, rust {rust_version}, {build_profile} build"
            );
        }
        text
    })
}
