//! `culvert describe`: all that the mesh knows of one service or pod.

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io::Write;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::get::{self, SelectArgs};
use super::table::{Table, visible};
use super::{CliError, client};
use crate::admin::{ConfigDump, Layer7Dump, PolicyDump, ServiceDump, WorkloadDump};

/// What to describe.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum DescribeCommand {
    /// A service: addresses, ports, waypoint, routes, backends, endpoints.
    #[command(visible_aliases = ["svc", "services"])]
    Service(DescribeArgs),
    /// A pod: identity, node, waypoint, services, policies.
    #[command(visible_aliases = ["workload", "pods"])]
    Pod(DescribeArgs),
}

/// Arguments of `culvert describe`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct DescribeArgs {
    /// Name, or `<namespace>/<name>`.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Where it is looked for, and how it is printed.
    #[command(flatten)]
    pub select: SelectArgs,
}

impl DescribeArgs {
    /// Everything of that name.
    fn wants(&self, namespace: &str, name: &str) -> bool {
        let (wanted_namespace, wanted) = match self.name.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (self.select.namespace.as_deref(), &*self.name),
        };
        wanted == name && wanted_namespace.is_none_or(|it| it == namespace)
    }

    fn nothing(&self, kind: &'static str, list: &'static str) -> CliError {
        CliError::NotFound {
            kind,
            list,
            name: self.name.clone(),
        }
    }
}

/// A service with its layer 7.
#[derive(Serialize)]
struct DescribedService {
    service: ServiceDump,
    layer7: Layer7Dump,
}

/// A pod with what refers to it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedPod {
    workload: WorkloadDump,
    services: Vec<String>,
    policies: Vec<PolicyDump>,
    /// Whether nobody gets around the waypoints of its services.
    strict: bool,
    capture: String,
}

/// What `culvert.dev/strict-waypoint` means, for people.
const STRICT: &str = "ports of services behind a waypoint are reached through the service only";

impl DescribeCommand {
    pub(super) fn run(&self, out: &mut impl Write) -> Result<(), CliError> {
        match self {
            Self::Service(args) => {
                let dump = get::load(&args.select)?;
                let layer7 = layer7(&args.select)?;
                let found = services(args, &dump, &layer7);
                if found.is_empty() {
                    return Err(args.nothing("service", "services"));
                }
                args.select.output.print(out, &found, |_wide| {
                    let texts = found.iter().map(|it| service_text(&dump, it));
                    texts.collect::<Vec<_>>().join("\n")
                })
            }
            Self::Pod(args) => {
                let dump = get::load(&args.select)?;
                let found = pods(args, &dump, &layer7(&args.select)?);
                if found.is_empty() {
                    return Err(args.nothing("pod", "workloads"));
                }
                args.select.output.print(out, &found, |_wide| {
                    let texts = found.iter().map(pod_text);
                    texts.collect::<Vec<_>>().join("\n")
                })
            }
        }
    }
}

fn layer7(select: &SelectArgs) -> Result<Layer7Dump, CliError> {
    match select.file {
        // A saved config dump says nothing about layer 7.
        Some(_) => Ok(Layer7Dump::default()),
        None => client::layer7(&select.admin),
    }
}

fn services(args: &DescribeArgs, dump: &ConfigDump, layer7: &Layer7Dump) -> Vec<DescribedService> {
    let wanted = dump.services.iter().filter(|it| {
        args.wants(&it.namespace, &it.name) || args.wants(&it.namespace, &it.hostname)
    });
    let of = |service: &ServiceDump| {
        let is_its = |namespace: &str, hostname: &str| {
            namespace == service.namespace && hostname == service.hostname
        };
        let mut own = layer7.clone();
        own.listeners
            .retain(|it| is_its(&it.namespace, &it.hostname));
        own.routes.retain(|it| is_its(&it.namespace, &it.hostname));
        own.backends
            .retain(|it| is_its(&it.namespace, &it.hostname));
        own.strict_namespaces.retain(|it| *it == service.namespace);
        own
    };
    wanted
        .map(|service| DescribedService {
            service: service.clone(),
            layer7: of(service),
        })
        .collect()
}

fn service_text(dump: &ConfigDump, described: &DescribedService) -> String {
    let DescribedService { service, layer7 } = described;
    let mut text = String::new();
    fact(&mut text, "Name", &service.name);
    fact(&mut text, "Namespace", &service.namespace);
    fact(&mut text, "Hostname", &service.hostname);
    fact(&mut text, "Addresses", &service.vips.join(", "));
    let ports = service
        .ports
        .iter()
        .map(|(port, target)| format!("{port}:{target}"));
    fact(&mut text, "Ports", &ports.collect::<Vec<_>>().join(", "));
    let waypoint = layer7.listeners.first().map(|it| it.waypoint.clone());
    let waypoint = waypoint.or_else(|| Some(service.waypoint.as_ref()?.destination.clone()));
    fact(
        &mut text,
        "Waypoint",
        &waypoint.unwrap_or_else(|| "None".to_owned()),
    );
    if !layer7.strict_namespaces.is_empty() {
        fact(&mut text, "Strict", STRICT);
    }
    let mut endpoints = Table::new(&["ENDPOINT", "ADDRESS", "NODE", "STATUS"]);
    for endpoint in service.endpoints.values() {
        let workload = dump
            .workloads
            .iter()
            .find(|it| it.uid == endpoint.workload_uid);
        endpoints.push([
            workload.map_or_else(|| endpoint.workload_uid.clone(), |it| it.name.clone()),
            workload
                .map(|it| it.workload_ips.join(","))
                .unwrap_or_default(),
            workload.map(|it| it.node.clone()).unwrap_or_default(),
            endpoint.status.clone(),
        ]);
    }
    section(&mut text, service.endpoints.is_empty(), &endpoints);
    section(
        &mut text,
        layer7.listeners.is_empty(),
        &get::layer7::listeners(&layer7.listeners),
    );
    section(
        &mut text,
        layer7.routes.is_empty(),
        &get::layer7::routes(&layer7.routes),
    );
    section(
        &mut text,
        layer7.backends.is_empty(),
        &get::layer7::backends(&layer7.backends),
    );
    text
}

fn pods(args: &DescribeArgs, dump: &ConfigDump, layer7: &Layer7Dump) -> Vec<DescribedPod> {
    let wanted = dump
        .workloads
        .iter()
        .filter(|it| args.wants(&it.namespace, &it.name));
    wanted
        .map(|workload| described_pod(dump, layer7, workload))
        .collect()
}

fn described_pod(dump: &ConfigDump, layer7: &Layer7Dump, workload: &WorkloadDump) -> DescribedPod {
    let serving = dump.services.iter().filter(|service| {
        let mut endpoints = service.endpoints.values();
        endpoints.any(|endpoint| endpoint.workload_uid == workload.uid)
    });
    let speaks = |policy: &&PolicyDump| {
        let key = format!("{}/{}", policy.namespace, policy.name);
        policy.scope == "Global"
            || (policy.scope == "Namespace" && policy.namespace == workload.namespace)
            || workload.authorization_policies.contains(&key)
    };
    let state = dump.workload_state.get(&workload.uid);
    DescribedPod {
        workload: workload.clone(),
        services: serving
            .map(|service| format!("{}/{}", service.namespace, service.hostname))
            .collect(),
        policies: dump.policies.iter().filter(speaks).cloned().collect(),
        strict: layer7.strict_namespaces.contains(&workload.namespace),
        capture: match state {
            Some(state) if state.state == "Up" => "captured by this agent".to_owned(),
            Some(state) if state.state == "Draining" => "not captured any more".to_owned(),
            Some(state) => format!("not captured yet ({})", state.state),
            None if workload.protocol == "HBONE" => "on another node".to_owned(),
            None => "not in the mesh".to_owned(),
        },
    }
}

fn pod_text(described: &DescribedPod) -> String {
    let workload = &described.workload;
    let mut text = String::new();
    fact(&mut text, "Name", &workload.name);
    fact(&mut text, "Namespace", &workload.namespace);
    fact(&mut text, "Node", &workload.node);
    fact(&mut text, "Addresses", &workload.workload_ips.join(", "));
    fact(&mut text, "Account", &workload.service_account);
    fact(&mut text, "Protocol", &workload.protocol);
    fact(&mut text, "Status", &workload.status);
    fact(&mut text, "Capture", &described.capture);
    let waypoint = workload.waypoint.as_ref();
    let waypoint = waypoint.map_or("None", |it| &it.destination);
    fact(&mut text, "Waypoint", waypoint);
    if described.strict {
        fact(&mut text, "Strict", STRICT);
    }
    fact(&mut text, "Services", &described.services.join(", "));
    let mut policies = Table::new(&["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"]);
    for policy in &described.policies {
        policies.push([
            policy.namespace.clone(),
            policy.name.clone(),
            policy.action.clone(),
            policy.scope.clone(),
        ]);
    }
    section(&mut text, described.policies.is_empty(), &policies);
    text
}

fn fact(text: &mut String, label: &str, value: &str) {
    // Writing to a String cannot fail.
    let _infallible = writeln!(text, "{label:<11}{}", visible(value.to_owned()));
}

fn section(text: &mut String, is_empty: bool, table: &Table) {
    if !is_empty {
        text.push('\n');
        text.push_str(&table.text());
    }
}
