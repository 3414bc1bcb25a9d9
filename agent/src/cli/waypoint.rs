//! `culvert waypoint`: the Gateways that are waypoints, with istioctl's flags, columns and sentences. They are
//! written to and removed from the manifests directory that the running agent names; the agent does the rest.

mod directory;
mod gateway;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::table::Table;
use super::{AdminArgs, CliError, client, yaml};
use crate::admin::AgentStatus;
use crate::mesh::status::{Condition, ObjectStatus};
use directory::{Directory, Stored};
use gateway::{Waypoint, conditions};

/// What to do with waypoints.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum WaypointCommand {
    /// Print the waypoint's manifest, and change nothing.
    Generate(GenerateArgs),
    /// Write the waypoint's manifest to the agent's directory.
    Apply(ApplyArgs),
    /// List waypoints.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show the conditions of waypoints. Exits with 1 if one is not programmed in time.
    Status(StatusArgs),
    /// Remove waypoints.
    Delete(DeleteArgs),
}

/// Which waypoint.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct GenerateArgs {
    /// Name of the waypoint.
    #[arg(long, value_name = "NAME", default_value = "waypoint")]
    pub name: String,
    /// Namespace of the waypoint.
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
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
    /// Let everything in the namespace use it. The Namespace's manifest is written anew, without its comments.
    #[arg(long)]
    pub enroll_namespace: bool,
    /// Enroll the namespace even if it uses another waypoint.
    #[arg(long)]
    pub overwrite: bool,
    /// Wait until it is ready.
    #[command(flatten)]
    pub wait: WaitArgs,
    /// The agent.
    #[command(flatten)]
    pub admin: AdminArgs,
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
    /// Only this namespace.
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// All namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// The agent.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Arguments of `culvert waypoint status`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct StatusArgs {
    /// Only this waypoint.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Its namespace.
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// How long to wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "90")]
    pub waypoint_timeout: u64,
    /// The agent.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Arguments of `culvert waypoint delete`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct DeleteArgs {
    /// Names of waypoints.
    #[arg(value_name = "NAME", required_unless_present_any = ["all", "revision"])]
    pub names: Vec<String>,
    /// Their namespace.
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// All waypoints of the namespace.
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// All waypoints of the namespace that belong to this revision.
    #[arg(short, long, value_name = "REVISION", conflicts_with_all = ["names", "all"])]
    pub revision: Option<String>,
    /// The agent.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// A waypoint could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum WaypointError {
    /// The agent does not read a directory.
    #[error("the agent at {admin} names no manifests directory: use kubectl")]
    NoDirectory {
        /// Where.
        admin: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    File {
        /// `read`, `write` or `remove`.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nothing of that name.
    #[error("there is no waypoint {namespace}/{name}: see `culvert waypoint list -A`")]
    Missing {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// It is not ready in time.
    #[error("waypoint {namespace}/{name} is not ready after {seconds} s: see `culvert status`")]
    NotReady {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The limit.
        seconds: u64,
    },
}

/// How often to look whether a waypoint is ready.
const POLL: Duration = Duration::from_millis(100);

impl WaypointCommand {
    pub(super) fn run(&self, out: &mut impl Write) -> Result<ExitCode, CliError> {
        let mut say = |text: String| out.write_all(text.as_bytes()).map_err(CliError::Write);
        match self {
            Self::Generate(args) => say(yaml::document(&Waypoint::of(args).manifest()))?,
            Self::Apply(args) => say(apply(args)?)?,
            Self::List(args) => say(list(args)?)?,
            Self::Status(args) => {
                let (text, is_programmed) = status(args)?;
                say(text)?;
                return Ok(if is_programmed {
                    ExitCode::SUCCESS
                } else {
                    ExitCode::FAILURE
                });
            }
            Self::Delete(args) => say(delete(args)?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The directory that the agent reads. A relative path is taken from where this command runs.
fn directory_of(admin: &AdminArgs) -> Result<Directory, CliError> {
    let bytes = client::config_dump(admin)?;
    let dump: Value = serde_json::from_slice(&bytes).map_err(|source| CliError::Decode {
        origin: format!("/config_dump of {}", admin.admin),
        source,
    })?;
    let path = dump
        .pointer("/config/manifests")
        .and_then(Value::as_str)
        .filter(|path| !path.is_empty())
        .ok_or_else(|| WaypointError::NoDirectory {
            admin: admin.admin.clone(),
        })?;
    Ok(Directory::new(PathBuf::from(path)))
}

fn apply(args: &ApplyArgs) -> Result<String, CliError> {
    let directory = directory_of(&args.admin)?;
    let waypoint = Waypoint::of(&args.waypoint);
    let mut said = Vec::new();
    let namespace = &waypoint.namespace;
    let labels = directory.namespace_labels(namespace)?;
    if labels.get("istio.io/dataplane-mode").map(String::as_str) != Some("ambient") {
        said.push(format!(
            "⚠️ Warning: namespace is not enrolled in ambient. Consider running\t\
             kubectl label namespace {namespace} istio.io/dataplane-mode=ambient\n"
        ));
    }
    if args.enroll_namespace
        && !args.overwrite
        && let Some(other) = labels.get("istio.io/use-waypoint")
        && *other != waypoint.name
    {
        said.push(format!(
            "⚠️ Warning: namespace {namespace} already uses waypoint {other}; use --overwrite to change it. \
             Nothing was applied\n"
        ));
        return Ok(said.concat());
    }
    directory.write_waypoint(&waypoint)?;
    said.push(format!(
        "✅ waypoint {namespace}/{} applied\n",
        waypoint.name
    ));
    if args.wait.wait {
        let patience = args.wait.waypoint_timeout;
        wait_until_ready(&args.admin, &directory, &waypoint, patience)?;
        said.push(format!(
            "✅ waypoint {namespace}/{} is ready!\n",
            waypoint.name
        ));
    }
    if args.enroll_namespace {
        directory.label_namespace(namespace, &waypoint.name)?;
        said.push(format!(
            "✅ namespace {namespace} labeled with \"istio.io/use-waypoint: {}\"\n",
            waypoint.name
        ));
    }
    Ok(said.concat())
}

/// Ready: the agent has read the file and finds nothing wrong with it.
fn wait_until_ready(
    admin: &AdminArgs,
    directory: &Directory,
    waypoint: &Waypoint,
    seconds: u64,
) -> Result<(), CliError> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let told = Told::by(admin)?;
        let stored = directory.waypoint(&waypoint.namespace, &waypoint.name)?;
        if stored.is_some_and(|stored| told.is_programmed(&stored)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(CliError::Waypoint(WaypointError::NotReady {
                namespace: waypoint.namespace.clone(),
                name: waypoint.name.clone(),
                seconds,
            }));
        }
        client::pause(POLL)?;
    }
}

/// What the agent says.
#[derive(Default)]
struct Told {
    status: AgentStatus,
    objects: Vec<ObjectStatus>,
}

impl Told {
    fn by(admin: &AdminArgs) -> Result<Self, CliError> {
        Ok(Self {
            status: client::status(admin)?,
            objects: client::objects(admin)?,
        })
    }

    fn conditions(&self, stored: &Stored) -> Vec<Condition> {
        conditions(stored, &self.status, &self.objects)
    }

    fn is_programmed(&self, stored: &Stored) -> bool {
        self.conditions(stored).iter().all(|one| !one.is_bad())
    }
}

fn list(args: &ListArgs) -> Result<String, CliError> {
    let told = Told::by(&args.admin)?;
    let mut found = directory_of(&args.admin)?.waypoints()?;
    found.retain(|it| args.all_namespaces || it.waypoint.namespace == args.namespace);
    if found.is_empty() {
        return Ok("No waypoints found.\n".to_owned());
    }
    let programmed = |it: &Stored| {
        if told.is_programmed(it) {
            "True"
        } else {
            "False"
        }
    };
    let cells = |it: &Stored| {
        let waypoint = &it.waypoint;
        [
            waypoint.name.clone(),
            waypoint
                .revision
                .clone()
                .unwrap_or_else(|| "default".to_owned()),
            waypoint
                .traffic
                .clone()
                .unwrap_or_else(|| "none".to_owned()),
            programmed(it).to_owned(),
        ]
    };
    let table = if args.all_namespaces {
        let mut table = Table::new(&[
            "NAMESPACE",
            "NAME",
            "REVISION",
            "TRAFFIC TYPE",
            "PROGRAMMED",
        ]);
        for it in &found {
            let [name, revision, traffic, programmed] = cells(it);
            let namespace = it.waypoint.namespace.clone();
            table.push([namespace, name, revision, traffic, programmed]);
        }
        table
    } else {
        let mut table = Table::new(&["NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"]);
        for it in &found {
            table.push(cells(it));
        }
        table
    };
    Ok(table.with_gap(TABWRITER_GAP).text())
}

/// istioctl separates these columns by five blanks.
const TABWRITER_GAP: usize = 5;

fn status(args: &StatusArgs) -> Result<(String, bool), CliError> {
    let directory = directory_of(&args.admin)?;
    let deadline = Instant::now() + Duration::from_secs(args.waypoint_timeout);
    loop {
        let told = Told::by(&args.admin)?;
        let mut found = directory.waypoints()?;
        found.retain(|it| {
            it.waypoint.namespace == args.namespace
                && args
                    .name
                    .as_ref()
                    .is_none_or(|name| it.waypoint.name == *name)
        });
        if found.is_empty() {
            return match &args.name {
                Some(name) => Err(CliError::Waypoint(WaypointError::Missing {
                    namespace: args.namespace.clone(),
                    name: name.clone(),
                })),
                None => Ok(("No waypoints found.\n".to_owned(), true)),
            };
        }
        let is_ready = found.iter().all(|it| told.is_programmed(it));
        if is_ready || Instant::now() >= deadline {
            return Ok((status_table(&found, &told), is_ready));
        }
        client::pause(POLL)?;
    }
}

fn status_table(found: &[Stored], told: &Told) -> String {
    let mut table = Table::new(&["NAME", "STATUS", "TYPE", "REASON", "MESSAGE"]);
    for it in found {
        for condition in told.conditions(it) {
            table.push([
                it.waypoint.name.clone(),
                format!("{:?}", condition.status),
                condition.kind,
                condition.reason,
                condition.message,
            ]);
        }
    }
    table.with_gap(TABWRITER_GAP).text()
}

fn delete(args: &DeleteArgs) -> Result<String, CliError> {
    let directory = directory_of(&args.admin)?;
    let mut found = directory.waypoints()?;
    found.retain(|it| it.waypoint.namespace == args.namespace);
    let missing = |name: &&String| !found.iter().any(|it| it.waypoint.name == **name);
    if let Some(name) = args.names.iter().find(missing) {
        return Err(CliError::Waypoint(WaypointError::Missing {
            namespace: args.namespace.clone(),
            name: name.clone(),
        }));
    }
    found.retain(|it| match &args.revision {
        Some(revision) => it.waypoint.revision.as_deref().unwrap_or("default") == revision,
        None => args.all || args.names.contains(&it.waypoint.name),
    });
    if found.is_empty() {
        return Ok("No waypoints found.\n".to_owned());
    }
    let mut said = Vec::new();
    for it in &found {
        directory.remove_waypoint(&it.waypoint)?;
        let Waypoint {
            namespace, name, ..
        } = &it.waypoint;
        said.push(format!("waypoint {namespace}/{name} deleted\n"));
    }
    Ok(said.concat())
}
