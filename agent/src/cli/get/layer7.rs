//! `culvert get listeners|routes|backends`: layer 7 as it is compiled.

#[cfg(test)]
pub(in crate::cli) mod tests;

use std::io::Write;

use super::{ListArgs, SelectArgs, named, show};
use crate::admin::{BackendDump, Layer7Dump, ListenerDump, RouteDump};
use crate::cli::table::Table;
use crate::cli::{CliError, client};

/// Which of the three.
#[derive(Clone, Copy)]
pub(super) enum List {
    Listeners,
    Routes,
    Backends,
}

pub(super) fn run(list: List, args: &ListArgs, out: &mut impl Write) -> Result<(), CliError> {
    let select = &args.select;
    let mut dump = load(select)?;
    let wanted = |namespace: &str, hostname: &str| {
        let name = hostname.split('.').next().unwrap_or(hostname);
        let is_here = select.namespace.as_deref().is_none_or(|it| it == namespace);
        is_here && (named(&args.names, name) || named(&args.names, hostname))
    };
    dump.listeners
        .retain(|it| wanted(&it.namespace, &it.hostname));
    dump.routes.retain(|it| wanted(&it.namespace, &it.hostname));
    dump.backends
        .retain(|it| wanted(&it.namespace, &it.hostname));
    let output = &select.output;
    match list {
        List::Listeners => show(output, out, &dump.listeners, |_| listeners(&dump.listeners)),
        List::Routes => show(output, out, &dump.routes, |_| routes(&dump.routes)),
        List::Backends => show(output, out, &dump.backends, |_| backends(&dump.backends)),
    }
}

fn load(select: &SelectArgs) -> Result<Layer7Dump, CliError> {
    match &select.file {
        None => client::layer7(&select.admin),
        Some(path) => {
            let bytes = super::read(path)?;
            serde_json::from_slice(&bytes).map_err(|source| CliError::Decode {
                origin: path.display().to_string(),
                source,
            })
        }
    }
}

pub(in crate::cli) fn listeners(listeners: &[ListenerDump]) -> Table {
    let mut table = Table::new(&[
        "NAMESPACE",
        "SERVICE",
        "PORT",
        "PROTOCOL",
        "WAYPOINT",
        "ROUTES",
        "POLICIES",
        "JWT RULES",
        "RATE LIMITS",
    ]);
    for it in listeners {
        table.push([
            it.namespace.clone(),
            it.hostname.clone(),
            it.port.to_string(),
            it.protocol.clone(),
            it.waypoint.clone(),
            it.routes.to_string(),
            it.policies.to_string(),
            it.jwt_rules.to_string(),
            it.rate_limits.to_string(),
        ]);
    }
    table
}

/// In order of precedence within one port: never sorted.
pub(in crate::cli) fn routes(routes: &[RouteDump]) -> Table {
    let mut table = Table::new(&[
        "NAMESPACE",
        "SERVICE",
        "PORT",
        "CLIENTS",
        "ROUTE",
        "RULE",
        "MATCH",
        "ACTION",
    ]);
    for it in routes {
        table.push([
            it.namespace.clone(),
            it.hostname.clone(),
            it.port.to_string(),
            it.consumer.clone().unwrap_or_else(|| "all".to_owned()),
            it.origin.clone(),
            it.rule.clone(),
            it.matched.clone(),
            it.action.clone(),
        ]);
    }
    table
}

pub(in crate::cli) fn backends(backends: &[BackendDump]) -> Table {
    let mut table = Table::new(&[
        "NAMESPACE",
        "SERVICE",
        "PORT",
        "RULE",
        "BACKEND",
        "BACKEND PORT",
        "WEIGHT",
        "ENDPOINTS",
    ]);
    for it in backends {
        table.push([
            it.namespace.clone(),
            it.hostname.clone(),
            it.port.to_string(),
            it.rule.clone(),
            it.backend.clone(),
            it.backend_port.to_string(),
            it.weight.to_string(),
            format!("{}/{}", it.healthy, it.endpoints),
        ]);
    }
    table
}
