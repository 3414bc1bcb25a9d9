//! `culvert waypoint`: the Gateways that are waypoints, with istioctl's flags, columns and sentences. They are
//! written to and removed from a cluster, or the manifests directory that the running agent names; agents and
//! controller do the rest.

mod args;
mod cluster;
mod directory;
mod error;
mod gateway;
mod place;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::table::Table;
use super::{CliError, yaml};
pub use args::{
    ApplyArgs, DeleteArgs, GenerateArgs, ListArgs, StatusArgs, TargetArgs, WaitArgs,
    WaypointCommand,
};
pub use error::WaypointError;
use gateway::Waypoint;
use place::{Place, Standing, USE_WAYPOINT};

/// The namespace that is meant where nobody says one.
const DEFAULT_NAMESPACE: &str = "default";

/// istioctl separates these columns by five blanks.
const TABWRITER_GAP: usize = 5;

impl WaypointCommand {
    pub(super) fn run(&self, out: &mut impl Write) -> Result<ExitCode, CliError> {
        let mut say = |text: String| out.write_all(text.as_bytes()).map_err(CliError::Write);
        match self {
            Self::Generate(args) => {
                let namespace = args.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
                say(yaml::document(
                    &Waypoint::of(args, namespace.to_owned()).manifest(),
                ))?;
            }
            Self::Apply(args) => apply(args, say)?,
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
            Self::Delete(args) => delete(args, say)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Each step is said when it is done: a later one may fail.
fn apply(
    args: &ApplyArgs,
    mut say: impl FnMut(String) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let place = Place::of(&args.target)?;
    let namespace = place.namespace(args.waypoint.namespace.as_deref());
    let waypoint = Waypoint::of(&args.waypoint, namespace);
    let Waypoint {
        namespace, name, ..
    } = &waypoint;
    let labels = place.namespace_labels(namespace)?;
    if labels.get("istio.io/dataplane-mode").map(String::as_str) != Some("ambient") {
        say(format!(
            "⚠️ Warning: namespace is not enrolled in ambient. Consider running\t\
             kubectl label namespace {namespace} istio.io/dataplane-mode=ambient\n"
        ))?;
    }
    if args.enroll_namespace
        && !args.overwrite
        && let Some(other) = labels.get(USE_WAYPOINT)
        && other != name
    {
        return say(format!(
            "⚠️ Warning: namespace {namespace} already uses waypoint {other}; use --overwrite to change it. \
             Nothing was applied\n"
        ));
    }
    place.write_waypoint(&waypoint)?;
    say(format!("✅ waypoint {namespace}/{name} applied\n"))?;
    if args.wait.wait {
        wait_until_ready(&place, &waypoint, args.wait.waypoint_timeout)?;
        say(format!("✅ waypoint {namespace}/{name} is ready!\n"))?;
    }
    if args.enroll_namespace {
        place.enroll(&waypoint, args.overwrite)?;
        say(format!(
            "✅ namespace {namespace} labeled with \"{USE_WAYPOINT}: {name}\"\n"
        ))?;
    }
    Ok(())
}

/// Ready: whoever answers for it has read what it is now, and finds nothing wrong with it.
fn wait_until_ready(place: &Place, waypoint: &Waypoint, seconds: u64) -> Result<(), CliError> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let found = place.waypoints(Some(&waypoint.namespace))?;
        let mut same = found.iter().filter(|it| it.waypoint.name == waypoint.name);
        if same.any(Standing::is_programmed) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(CliError::Waypoint(WaypointError::NotReady {
                namespace: waypoint.namespace.clone(),
                name: waypoint.name.clone(),
                seconds,
            }));
        }
        place.pause()?;
    }
}

fn list(args: &ListArgs) -> Result<String, CliError> {
    let place = Place::of(&args.target)?;
    let namespace = place.namespace(args.namespace.as_deref());
    let found = place.waypoints((!args.all_namespaces).then_some(&*namespace))?;
    if found.is_empty() {
        return Ok("No waypoints found.\n".to_owned());
    }
    Ok(listing(&found, args.all_namespaces))
}

fn listing(found: &[Standing], with_namespace: bool) -> String {
    let or =
        |value: &Option<String>, else_: &str| value.clone().unwrap_or_else(|| else_.to_owned());
    let cells = |it: &Standing| {
        [
            it.waypoint.name.clone(),
            or(&it.waypoint.revision, "default"),
            or(&it.waypoint.traffic, "none"),
            if it.is_programmed() { "True" } else { "False" }.to_owned(),
        ]
    };
    let table = if with_namespace {
        let mut table = Table::new(&[
            "NAMESPACE",
            "NAME",
            "REVISION",
            "TRAFFIC TYPE",
            "PROGRAMMED",
        ]);
        for it in found {
            let [name, revision, traffic, programmed] = cells(it);
            let namespace = it.waypoint.namespace.clone();
            table.push([namespace, name, revision, traffic, programmed]);
        }
        table
    } else {
        let mut table = Table::new(&["NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"]);
        for it in found {
            table.push(cells(it));
        }
        table
    };
    table.with_gap(TABWRITER_GAP).text()
}

fn status(args: &StatusArgs) -> Result<(String, bool), CliError> {
    let place = Place::of(&args.target)?;
    let namespace = place.namespace(args.namespace.as_deref());
    let deadline = Instant::now() + Duration::from_secs(args.waypoint_timeout);
    loop {
        let mut found = place.waypoints(Some(&namespace))?;
        let is_meant = |it: &Standing| {
            let wanted = args.name.as_ref();
            wanted.is_none_or(|name| it.waypoint.name == *name)
        };
        found.retain(is_meant);
        if found.is_empty() {
            return match &args.name {
                Some(name) => Err(CliError::Waypoint(WaypointError::Missing {
                    namespace,
                    name: name.clone(),
                })),
                None => Ok(("No waypoints found.\n".to_owned(), true)),
            };
        }
        let is_ready = found.iter().all(Standing::is_programmed);
        if is_ready || Instant::now() >= deadline {
            return Ok((status_table(&found), is_ready));
        }
        place.pause()?;
    }
}

fn status_table(found: &[Standing]) -> String {
    let mut table = Table::new(&["NAME", "STATUS", "TYPE", "REASON", "MESSAGE"]);
    for it in found {
        for condition in &it.conditions {
            table.push([
                it.waypoint.name.clone(),
                condition.status.clone(),
                condition.kind.clone(),
                condition.reason.clone(),
                condition.message.clone(),
            ]);
        }
    }
    table.with_gap(TABWRITER_GAP).text()
}

fn delete(
    args: &DeleteArgs,
    mut say: impl FnMut(String) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let place = Place::of(&args.target)?;
    let namespace = place.namespace(args.namespace.as_deref());
    let mut found = place.waypoints(Some(&namespace))?;
    let missing = |name: &&String| !found.iter().any(|it| it.waypoint.name == **name);
    if let Some(name) = args.names.iter().find(missing) {
        return Err(CliError::Waypoint(WaypointError::Missing {
            namespace,
            name: name.clone(),
        }));
    }
    found.retain(|it| match &args.revision {
        Some(revision) => it.waypoint.revision.as_deref().unwrap_or("default") == revision,
        None => args.all || args.names.contains(&it.waypoint.name),
    });
    if found.is_empty() {
        return say("No waypoints found.\n".to_owned());
    }
    for it in &found {
        place.remove_waypoint(&it.waypoint)?;
        let Waypoint {
            namespace, name, ..
        } = &it.waypoint;
        say(format!("waypoint {namespace}/{name} deleted\n"))?;
    }
    Ok(())
}
