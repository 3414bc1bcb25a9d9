//! Where waypoints are kept: in a cluster's API, or in the directory that the running agent reads. The commands see no
//! difference.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::cluster::Cluster;
use super::directory::{Directory, Stored};
use super::gateway::{Said, Waypoint, conditions};
use super::{TargetArgs, WaypointError};
use crate::admin::AgentStatus;
use crate::cli::{AdminArgs, CliError, client};
use crate::mesh::status::ObjectStatus;

/// How often to look at a directory whether a waypoint is ready.
const POLL: Duration = Duration::from_millis(100);
/// And at a cluster, which others ask as well.
const POLL_CLUSTER: Duration = Duration::from_millis(500);

/// Where a waypoint's namespace is bound to it.
pub(super) const USE_WAYPOINT: &str = "istio.io/use-waypoint";

/// Where waypoints are kept.
pub(super) enum Place {
    /// The directory of an agent, which says what became of each.
    Directory {
        directory: Directory,
        admin: AdminArgs,
    },
    /// A cluster, whose controller says it.
    Cluster(Cluster),
}

/// A waypoint, and what is said of it.
pub(super) struct Standing {
    pub(super) waypoint: Waypoint,
    pub(super) conditions: Vec<Said>,
}

impl Standing {
    pub(super) fn is_programmed(&self) -> bool {
        let programmed = |one: &Said| one.kind == "Programmed" && one.status == "True";
        self.conditions.iter().any(programmed)
    }
}

impl Place {
    pub(super) fn of(target: &TargetArgs) -> Result<Self, CliError> {
        let TargetArgs {
            kubeconfig,
            context,
            admin,
        } = target;
        let find = || Cluster::find(kubeconfig.as_deref(), context.as_deref());
        if kubeconfig.is_some() || context.is_some() {
            return Ok(Self::Cluster(find()?));
        }
        match directory_of(admin) {
            Ok(Some(directory)) => Ok(Self::Directory {
                directory,
                admin: admin.clone(),
            }),
            Ok(None) => Ok(Self::Cluster(find()?)),
            // Where no agent runs, as on somebody's own machine.
            Err(CliError::Unreachable { .. }) => match find() {
                Err(CliError::Waypoint(WaypointError::Cluster(why))) => {
                    Err(CliError::Waypoint(WaypointError::Nowhere {
                        admin: admin.admin.clone(),
                        why,
                    }))
                }
                found => Ok(Self::Cluster(found?)),
            },
            Err(error) => Err(error),
        }
    }

    /// The namespace that is meant.
    pub(super) fn namespace(&self, asked: Option<&str>) -> String {
        let own = match self {
            Self::Directory { .. } => super::DEFAULT_NAMESPACE,
            Self::Cluster(cluster) => cluster.namespace(),
        };
        asked.unwrap_or(own).to_owned()
    }

    /// All waypoints, or those of a namespace, by namespace and name.
    pub(super) fn waypoints(&self, namespace: Option<&str>) -> Result<Vec<Standing>, CliError> {
        let mut found = match self {
            Self::Directory { directory, admin } => {
                // Before the files are read: what it says then is about them or about older ones.
                let told = Told::by(admin)?;
                let stored = directory.waypoints()?;
                stored.into_iter().map(|it| told.standing(it)).collect()
            }
            Self::Cluster(cluster) => cluster.waypoints(namespace)?,
        };
        found.retain(|it| namespace.is_none_or(|wanted| it.waypoint.namespace == wanted));
        Ok(found)
    }

    /// Labels of a Namespace.
    pub(super) fn namespace_labels(
        &self,
        namespace: &str,
    ) -> Result<BTreeMap<String, String>, CliError> {
        match self {
            Self::Directory { directory, .. } => Ok(directory.namespace_labels(namespace)?),
            Self::Cluster(cluster) => Ok(cluster.namespace_labels(namespace)?),
        }
    }

    pub(super) fn write_waypoint(&self, waypoint: &Waypoint) -> Result<(), CliError> {
        match self {
            Self::Directory { directory, .. } => Ok(directory.write_waypoint(waypoint)?),
            Self::Cluster(cluster) => Ok(cluster.write_waypoint(waypoint)?),
        }
    }

    pub(super) fn remove_waypoint(&self, waypoint: &Waypoint) -> Result<(), CliError> {
        match self {
            Self::Directory { directory, .. } => Ok(directory.remove_waypoint(waypoint)?),
            Self::Cluster(cluster) => Ok(cluster.remove_waypoint(waypoint)?),
        }
    }

    /// Binds the waypoint's namespace to it; in place of another one only if it may.
    pub(super) fn enroll(&self, waypoint: &Waypoint, overwrite: bool) -> Result<(), CliError> {
        match self {
            Self::Directory { directory, .. } => {
                Ok(directory.label_namespace(&waypoint.namespace, &waypoint.name)?)
            }
            Self::Cluster(cluster) => Ok(cluster.label_namespace(waypoint, overwrite)?),
        }
    }

    /// Waits before the next look.
    pub(super) fn pause(&self) -> Result<(), CliError> {
        client::pause(match self {
            Self::Directory { .. } => POLL,
            Self::Cluster(_) => POLL_CLUSTER,
        })
    }
}

/// The directory that the agent reads, if it reads one. A relative path is taken from where this command runs.
fn directory_of(admin: &AdminArgs) -> Result<Option<Directory>, CliError> {
    let bytes = client::config_dump(admin)?;
    let dump: Value = serde_json::from_slice(&bytes).map_err(|source| CliError::Decode {
        origin: format!("/config_dump of {}", admin.admin),
        source,
    })?;
    let path = dump
        .pointer("/config/manifests")
        .and_then(Value::as_str)
        .filter(|path| !path.is_empty());
    Ok(path.map(|path| Directory::new(PathBuf::from(path))))
}

/// What the agent says.
#[derive(Default)]
pub(super) struct Told {
    pub(super) status: AgentStatus,
    pub(super) objects: Vec<ObjectStatus>,
}

impl Told {
    fn by(admin: &AdminArgs) -> Result<Self, CliError> {
        Ok(Self {
            status: client::status(admin)?,
            objects: client::objects(admin)?,
        })
    }

    pub(super) fn standing(&self, stored: Stored) -> Standing {
        let conditions = conditions(&stored, &self.status, &self.objects);
        Standing {
            waypoint: stored.waypoint,
            conditions: conditions.into_iter().map(Said::from).collect(),
        }
    }
}
