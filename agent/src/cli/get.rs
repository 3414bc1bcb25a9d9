//! `culvert get`: lists from a config dump, live or saved, with istioctl's columns.

pub(super) mod layer7;
mod rows;

use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use userspace_l7::model::SpiffeId;

use super::table::Table;
use super::{AdminArgs, CliError, OutputArgs, client};
use crate::admin::{ConfigDump, ConnectionsDump};

/// What to list.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum GetCommand {
    /// Services: virtual address, waypoint, healthy and all endpoints.
    #[command(visible_aliases = ["service", "svc", "s"])]
    Services(ListArgs),
    /// Workloads: address, node, waypoint, protocol.
    #[command(visible_aliases = ["workload", "w"])]
    Workloads(WorkloadsArgs),
    /// L4 authorization policies, also those that follow from PeerAuthentication.
    #[command(visible_aliases = ["policy", "pol", "p"])]
    Policies(ListArgs),
    /// The certificates that this node holds for its workloads.
    #[command(visible_aliases = ["certificate", "certs", "cert"])]
    Certificates(CertificatesArgs),
    /// The connections that this node carries now.
    #[command(visible_aliases = ["connection", "cons"])]
    Connections(ConnectionsArgs),
    /// Service ports with layer 7: protocol, waypoint, how many routes, policies and limits. Names are
    /// services'.
    #[command(visible_aliases = ["listener", "l"])]
    Listeners(ListArgs),
    /// HTTP routes as they are compiled, in their order of precedence. Names are services'.
    #[command(visible_aliases = ["route", "r"])]
    Routes(ListArgs),
    /// Backends of those routes: weight, healthy and all endpoints. Names are services'.
    #[command(visible_aliases = ["backend", "b"])]
    Backends(ListArgs),
    /// All of the first five.
    All(AllArgs),
}

/// Which objects, from where, and how to print them.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct SelectArgs {
    /// Only this namespace.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// All namespaces, which is the default.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Read a saved `/config_dump` (`-` is standard input) instead of asking an agent.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The agent.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// The format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of the lists that have no others.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ListArgs {
    /// Only objects of these names.
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Which objects.
    #[command(flatten)]
    pub select: SelectArgs,
}

/// Arguments of `culvert get workloads`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct WorkloadsArgs {
    /// Only the workloads of one node.
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// Only the workload with this address.
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Which objects.
    #[command(flatten)]
    pub list: ListArgs,
}

/// Arguments of `culvert get certificates`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct CertificatesArgs {
    /// Which objects; the namespace is the identity's.
    #[command(flatten)]
    pub select: SelectArgs,
}

/// Which way connections go, seen from the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

/// Arguments of `culvert get connections`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ConnectionsArgs {
    /// Only connections of this direction.
    #[arg(long, value_enum)]
    pub direction: Option<Direction>,
    /// Addresses as they are, not the names behind them.
    #[arg(long)]
    pub raw: bool,
    /// Which objects.
    #[command(flatten)]
    pub list: ListArgs,
}

/// Arguments of `culvert get all`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct AllArgs {
    /// A heading above each table.
    #[arg(long)]
    pub with_headers: bool,
    /// Which objects.
    #[command(flatten)]
    pub select: SelectArgs,
}

impl GetCommand {
    pub(super) fn run(&self, out: &mut impl Write) -> Result<(), CliError> {
        match self {
            Self::Listeners(args) => return layer7::run(layer7::List::Listeners, args, out),
            Self::Routes(args) => return layer7::run(layer7::List::Routes, args, out),
            Self::Backends(args) => return layer7::run(layer7::List::Backends, args, out),
            _ => {}
        }
        let select = self.select();
        let dump = load(select)?;
        let lookup = rows::Lookup::new(&dump);
        let mut shown = dump.clone();
        self.narrow(&mut shown);
        let output = &select.output;
        match self {
            Self::Services(_) => show(output, out, &shown.services, |wide| {
                rows::services(&lookup, &shown, wide)
            }),
            Self::Workloads(_) => show(output, out, &shown.workloads, |wide| {
                rows::workloads(&lookup, &shown, wide)
            }),
            Self::Policies(_) => show(output, out, &shown.policies, |wide| {
                rows::policies(&shown, wide)
            }),
            Self::Certificates(_) => show(output, out, &shown.certificates, |wide| {
                rows::certificates(&shown, wide)
            }),
            Self::Connections(args) => show(output, out, &shown.workload_state, |wide| {
                rows::connections(&lookup, &shown, args.raw, wide)
            }),
            Self::All(args) => output.print(out, &shown, |wide| {
                rows::all(&lookup, &shown, args.with_headers, wide)
            }),
            // Done above: they come from a page of their own.
            Self::Listeners(_) | Self::Routes(_) | Self::Backends(_) => Ok(()),
        }
    }

    fn select(&self) -> &SelectArgs {
        match self {
            Self::Services(args)
            | Self::Policies(args)
            | Self::Listeners(args)
            | Self::Routes(args)
            | Self::Backends(args) => &args.select,
            Self::Workloads(args) => &args.list.select,
            Self::Certificates(args) => &args.select,
            Self::Connections(args) => &args.list.select,
            Self::All(args) => &args.select,
        }
    }

    /// Leaves in the dump what was asked for.
    fn narrow(&self, dump: &mut ConfigDump) {
        if let Some(namespace) = &self.select().namespace {
            in_namespace(dump, namespace);
        }
        match self {
            Self::Services(args) => dump
                .services
                .retain(|found| named(&args.names, &found.name)),
            Self::Policies(args) => dump
                .policies
                .retain(|found| named(&args.names, &found.name)),
            Self::Workloads(args) => dump.workloads.retain(|found| {
                let address = |ip: &IpAddr| {
                    found
                        .workload_ips
                        .iter()
                        .any(|have| have.parse() == Ok(*ip))
                };
                named(&args.list.names, &found.name)
                    && args.node.as_ref().is_none_or(|node| found.node == *node)
                    && args.address.as_ref().is_none_or(address)
            }),
            Self::Connections(args) => {
                dump.workload_state
                    .retain(|_uid, found| named(&args.list.names, &found.info.name));
                for state in dump.workload_state.values_mut() {
                    one_way(&mut state.connections, args.direction);
                }
            }
            Self::Certificates(_)
            | Self::All(_)
            | Self::Listeners(_)
            | Self::Routes(_)
            | Self::Backends(_) => {}
        }
    }
}

fn named(names: &[String], name: &str) -> bool {
    names.is_empty() || names.iter().any(|wanted| wanted == name)
}

fn one_way(connections: &mut ConnectionsDump, direction: Option<Direction>) {
    match direction {
        Some(Direction::Inbound) => connections.outbound.clear(),
        Some(Direction::Outbound) => connections.inbound.clear(),
        None => {}
    }
}

fn in_namespace(dump: &mut ConfigDump, namespace: &str) {
    dump.services.retain(|found| found.namespace == namespace);
    dump.workloads.retain(|found| found.namespace == namespace);
    dump.policies.retain(|found| found.namespace == namespace);
    dump.workload_state
        .retain(|_uid, found| found.info.namespace == namespace);
    dump.certificates.retain(|found| {
        found
            .identity
            .parse::<SpiffeId>()
            .is_ok_and(|identity| identity.namespace() == namespace)
    });
}

fn show(
    output: &OutputArgs,
    out: &mut impl Write,
    objects: &impl Serialize,
    table: impl FnOnce(bool) -> Table,
) -> Result<(), CliError> {
    output.print(out, objects, |wide| table(wide).text())
}

pub(super) fn load(select: &SelectArgs) -> Result<ConfigDump, CliError> {
    let (origin, bytes) = if let Some(path) = &select.file {
        (path.display().to_string(), read(path)?)
    } else {
        let bytes = client::config_dump(&select.admin)?;
        (
            format!("/config_dump of {}", select.admin.admin),
            bytes.to_vec(),
        )
    };
    serde_json::from_slice(&bytes).map_err(|source| CliError::Decode { origin, source })
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes).map(drop)
    } else {
        std::fs::read(path).map(|found| bytes = found)
    };
    read.map_err(|source| CliError::ReadFile {
        path: path.to_owned(),
        source,
    })?;
    Ok(bytes)
}
