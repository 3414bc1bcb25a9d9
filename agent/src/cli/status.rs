//! `culvert status`.

use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;

use super::table::Table;
use super::{CliError, StatusArgs, client};
use crate::admin::{
    AgentStatus, ClusterStatus, ClusterTrouble, IstioCniStatus, IstiodStatus, KeySetStatus,
    ManifestProblem, PodState,
};
use crate::mesh::status::{Condition, ObjectStatus};

/// What `-o json` and `-o yaml` print.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    agent: &'a AgentStatus,
    /// Each object with its status, as kubectl would show it.
    objects: &'a [ObjectStatus],
}

/// Prints the agent's condition; fails while it is not ready, so that scripts can wait for it.
pub(super) fn run(args: &StatusArgs, out: &mut impl Write) -> Result<ExitCode, CliError> {
    let status = client::status(&args.admin)?;
    let objects = client::objects(&args.admin)?;
    let whole = Whole {
        agent: &status,
        objects: &objects,
    };
    args.output
        .print(out, &whole, |wide| text(&status, &objects, wide))?;
    Ok(if status.pending.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

pub(super) fn text(status: &AgentStatus, objects: &[ObjectStatus], wide: bool) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _infallible = summary(&mut text, status, wide);
    let _infallible = complaints(&mut text, objects);
    text.push('\n');
    let mut pods = Table::new(&["NAMESPACE", "POD NAME", "STATE", "REASON"]);
    for pod in &status.pods {
        let state = match pod.state {
            PodState::Up => "captured",
            PodState::Pending => "pending",
            PodState::Draining => "draining",
        };
        pods.push([
            pod.namespace.clone(),
            pod.name.clone(),
            state.to_owned(),
            pod.reason.clone().unwrap_or_default(),
        ]);
    }
    pods.sort();
    text.push_str(&pods.text());
    text
}

fn summary(text: &mut String, status: &AgentStatus, wide: bool) -> std::fmt::Result {
    let captured = status
        .pods
        .iter()
        .filter(|pod| pod.state == PodState::Up)
        .count();
    writeln!(text, "node      {}", status.node)?;
    if status.pending.is_empty() {
        writeln!(text, "state     ready")?;
    } else {
        writeln!(
            text,
            "state     not ready, pending: {}",
            status.pending.join(", ")
        )?;
    }
    writeln!(
        text,
        "pods      {captured} of {} captured",
        status.pods.len()
    )?;
    writeln!(text, "snapshot  generation {}", status.generation)?;
    writeln!(
        text,
        "workers   {} on {}",
        status.workers, status.ring_backend
    )?;
    writeln!(text, "repairs   {}", status.repairs.values().sum::<u64>())?;
    if wide {
        for (kind, count) in &status.repairs {
            writeln!(text, "          {kind}: {count}")?;
        }
        writeln!(text, "holds     {}", status.capabilities.join(", "))?;
    }
    if let Some(cluster) = &status.cluster {
        self::cluster(text, cluster, wide)?;
    }
    if let Some(istiod) = &status.istiod {
        self::istiod(text, istiod, wide)?;
    }
    if let Some(istio_cni) = &status.istio_cni {
        self::istio_cni(text, istio_cni)?;
    }
    keys(text, &status.key_sets)?;
    for (what, list) in [
        ("problems", &status.problems),
        ("warnings", &status.warnings),
    ] {
        writeln!(text, "{what}  {}", list.len())?;
        list.iter()
            .try_for_each(|problem| writeln!(text, "          {}", sentence(problem)))?;
    }
    Ok(())
}

/// Whether the objects are current, and what is in the way if they are not.
fn cluster(text: &mut String, cluster: &ClusterStatus, wide: bool) -> std::fmt::Result {
    let objects: usize = cluster.objects.values().sum();
    let current = match (cluster.reachable, cluster.waiting.is_empty()) {
        (false, _) => "cannot be reached",
        (true, false) => "not listed yet",
        (true, true) => "followed",
    };
    writeln!(
        text,
        "cluster   {} {current}, {objects} objects",
        cluster.server
    )?;
    for trouble in &cluster.troubles {
        let ClusterTrouble {
            since,
            message,
            resources,
        } = trouble;
        let (waiting, kept): (Vec<&str>, Vec<&str>) = resources
            .iter()
            .map(String::as_str)
            .partition(|resource| cluster.waiting.iter().any(|one| one == resource));
        writeln!(text, "          since {since} the API server {message}")?;
        if !kept.is_empty() {
            writeln!(
                text,
                "          the last state stays in force: {}",
                kept.join(", ")
            )?;
        }
        if !waiting.is_empty() {
            writeln!(
                text,
                "          nothing is in force before: {}",
                waiting.join(", ")
            )?;
        }
    }
    if !cluster.not_installed.is_empty() {
        let missing = cluster.not_installed.join(", ");
        writeln!(text, "          not installed, waited for: {missing}")?;
    }
    if wide {
        for (resource, count) in &cluster.objects {
            writeln!(text, "          {resource}: {count}")?;
        }
    }
    Ok(())
}

/// Whether what istiod announces is current, and what is in the way if it is not.
fn istiod(text: &mut String, istiod: &IstiodStatus, wide: bool) -> std::fmt::Result {
    let resources: usize = istiod.resources.values().sum();
    let current = match (istiod.connected, istiod.waiting.is_empty()) {
        (false, _) => "is not connected",
        (true, false) => "has not told everything yet",
        (true, true) => "followed",
    };
    writeln!(
        text,
        "istiod    {} {current}, {resources} resources",
        istiod.address
    )?;
    if let (Some(since), Some(message)) = (&istiod.since, &istiod.message) {
        writeln!(text, "          since {since} istiod {message}")?;
        if istiod.waiting.is_empty() {
            writeln!(text, "          the last state stays in force")?;
        }
    }
    if !istiod.waiting.is_empty() {
        let waiting = istiod.waiting.join(", ");
        writeln!(text, "          nothing is in force before: {waiting}")?;
    }
    for refused in &istiod.refused {
        writeln!(text, "          not taken over: {refused}")?;
    }
    if wide {
        for (name, count) in &istiod.resources {
            writeln!(text, "          {name}: {count}")?;
        }
    }
    Ok(())
}

/// Whether it is known which pods istio-cni has in the mesh, and why not.
fn istio_cni(text: &mut String, istio_cni: &IstioCniStatus) -> std::fmt::Result {
    let Some(reason) = &istio_cni.reason else {
        return writeln!(text, "istio-cni {} names the pods", istio_cni.socket);
    };
    writeln!(text, "istio-cni {reason}")?;
    writeln!(text, "          pods that it has named stay captured")
}

/// How many sets of keys there are, and what is wrong with any.
fn keys(text: &mut String, sets: &[KeySetStatus]) -> std::fmt::Result {
    if sets.is_empty() {
        return Ok(());
    }
    let there = sets.iter().filter(|set| set.keys.is_some()).count();
    writeln!(text, "keys      {there} of {} sets fetched", sets.len())?;
    for set in sets {
        let Some(error) = &set.error else { continue };
        let kept = match (&set.fetched, set.keys) {
            (Some(time), Some(_)) => format!("those of {time} stay in force"),
            _ => "tokens of its issuer are refused".to_owned(),
        };
        writeln!(text, "          {}: {error}: {kept}", set.source)?;
    }
    Ok(())
}

/// A line for each condition that is not as it should be.
fn complaints(text: &mut String, objects: &[ObjectStatus]) -> std::fmt::Result {
    let mut lines = Vec::new();
    for object in objects {
        for (place, condition) in object.conditions().filter(|(_, one)| one.is_bad()) {
            let Condition {
                kind,
                status,
                reason,
                message,
                ..
            } = condition;
            let at = if place.is_empty() {
                String::new()
            } else {
                format!(" at {place}")
            };
            let object = object.shown();
            lines.push(format!(
                "{object}{at}: {kind} is {status:?}, {reason}: {message}"
            ));
        }
    }
    writeln!(text, "conditions  {}", lines.len())?;
    lines
        .iter()
        .try_for_each(|line| writeln!(text, "          {line}"))
}

/// `path:line: object: field: message`.
fn sentence(problem: &ManifestProblem) -> String {
    let line = problem
        .line
        .map(|line| format!(":{line}"))
        .unwrap_or_default();
    let mut sentence = format!("{}{line}: ", problem.path);
    for name in [&problem.object, &problem.field].into_iter().flatten() {
        sentence.push_str(name);
        sentence.push_str(": ");
    }
    sentence.push_str(&problem.message);
    sentence
}
