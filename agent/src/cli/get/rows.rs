//! Dump → tables. The first columns are istioctl's, `-o wide` adds the rest.

use std::collections::HashMap;

use jiff::Timestamp;
use x509_parser::num_bigint::BigUint;

use crate::admin::{
    AddressedWaypoint, CertificateDump, CertificateEntryDump, ConfigDump, ConnectionDump,
    MatchDump, PolicyDump, ServiceDump, WorkloadDump,
};
use crate::cli::table::Table;

/// What certificates' columns stand apart, as istioctl's do.
const CERTIFICATE_GAP: usize = 5;

/// Names of what other objects refer to, from the whole dump.
pub(super) struct Lookup<'a> {
    services: HashMap<String, &'a ServiceDump>,
    workloads: HashMap<&'a str, &'a WorkloadDump>,
}

impl<'a> Lookup<'a> {
    pub(super) fn new(dump: &'a ConfigDump) -> Self {
        let services = dump.services.iter().flat_map(|service| {
            let by_name = format!("{}/{}", service.namespace, service.hostname);
            let keys = std::iter::once(by_name).chain(service.vips.iter().cloned());
            keys.map(move |key| (key, service))
        });
        let workloads = dump.workloads.iter().flat_map(|workload| {
            workload
                .workload_ips
                .iter()
                .map(move |address| (address.as_str(), workload))
        });
        Self {
            services: services.collect(),
            workloads: workloads.collect(),
        }
    }

    /// The waypoint's name, `None` without one, `NA` where nobody can tell.
    fn waypoint(&self, waypoint: Option<&AddressedWaypoint>) -> String {
        let Some(waypoint) = waypoint else {
            return "None".to_owned();
        };
        let destination = &waypoint.destination;
        if let Some(service) = self.services.get(destination) {
            return service.name.clone();
        }
        // A waypoint that the agents are themselves needs no Service: it is called as its Service would be.
        let hostname = destination.split_once('/').map(|(_, hostname)| hostname);
        let name = hostname.and_then(|hostname| hostname.split_once(".svc."));
        let name = name.and_then(|(name, _)| name.rsplit_once('.'));
        name.map_or("NA", |(name, _namespace)| name).to_owned()
    }

    /// `name.namespace:port` of the pod or service behind an address; the text itself if there is none.
    fn name(&self, address: &str) -> String {
        let Some((ip, port)) = address.rsplit_once(':') else {
            return address.to_owned();
        };
        let ip = ip.trim_start_matches('[').trim_end_matches(']');
        let workload = self
            .workloads
            .get(ip)
            .map(|found| (&found.name, &found.namespace));
        let service = || {
            // Dumps of a mesh with one network write its name as nothing.
            let found = self.services.get(&format!("/{ip}"))?;
            Some((&found.name, &found.namespace))
        };
        match workload.or_else(service) {
            Some((name, namespace)) => format!("{name}.{namespace}:{port}"),
            None => address.to_owned(),
        }
    }
}

pub(super) fn services(lookup: &Lookup<'_>, dump: &ConfigDump, wide: bool) -> Table {
    let mut table = Table::new(&[
        "NAMESPACE",
        "SERVICE NAME",
        "SERVICE VIP",
        "WAYPOINT",
        "ENDPOINTS",
        "HOSTNAME",
        "PORTS",
        "ALL VIPS",
    ]);
    for service in &dump.services {
        // `<network>/<ip>`.
        let vip = |text: &String| text.rsplit('/').next().unwrap_or_default().to_owned();
        let healthy = service
            .endpoints
            .values()
            .filter(|found| found.status != "Unhealthy")
            .count();
        let ports = service
            .ports
            .iter()
            .map(|(port, target)| format!("{port}:{target}"));
        table.push([
            service.namespace.clone(),
            service.name.clone(),
            service.vips.first().map_or_else(|| "None".to_owned(), vip),
            lookup.waypoint(service.waypoint.as_ref()),
            format!("{healthy}/{}", service.endpoints.len()),
            service.hostname.clone(),
            join(ports),
            join(
                service
                    .vips
                    .iter()
                    .map(vip)
                    .chain(service.cidr_vips.iter().cloned()),
            ),
        ]);
    }
    finish(table, 5, wide)
}

pub(super) fn workloads(lookup: &Lookup<'_>, dump: &ConfigDump, wide: bool) -> Table {
    let mut table = Table::new(&[
        "NAMESPACE",
        "POD NAME",
        "ADDRESS",
        "NODE",
        "WAYPOINT",
        "PROTOCOL",
        "STATUS",
        "SERVICE ACCOUNT",
        "WORKLOAD",
        "POLICIES",
    ]);
    for workload in &dump.workloads {
        table.push([
            workload.namespace.clone(),
            workload.name.clone(),
            join(workload.workload_ips.iter().cloned()),
            workload.node.clone(),
            lookup.waypoint(workload.waypoint.as_ref()),
            workload.protocol.clone(),
            workload.status.clone(),
            workload.service_account.clone(),
            format!("{}/{}", workload.workload_type, workload.workload_name),
            join(workload.authorization_policies.iter().cloned()),
        ]);
    }
    finish(table, 6, wide)
}

pub(super) fn policies(dump: &ConfigDump, wide: bool) -> Table {
    let mut table = Table::new(&[
        "NAMESPACE",
        "POLICY NAME",
        "ACTION",
        "SCOPE",
        "DRY RUN",
        "RULES",
        "MATCHES",
    ]);
    for policy in &dump.policies {
        table.push([
            policy.namespace.clone(),
            policy.name.clone(),
            policy.action.clone(),
            policy.scope.clone(),
            policy.dry_run.to_string(),
            policy.rules.len().to_string(),
            matches(policy).count().to_string(),
        ]);
    }
    finish(table, 4, wide)
}

fn matches(policy: &PolicyDump) -> impl Iterator<Item = &MatchDump> {
    policy.rules.iter().flatten().flatten()
}

pub(super) fn certificates(dump: &ConfigDump, wide: bool) -> Table {
    let mut table = Table::new(&[
        "CERTIFICATE NAME",
        "TYPE",
        "STATUS",
        "VALID CERT",
        "SERIAL NUMBER",
        "NOT AFTER",
        "NOT BEFORE",
        "REASON",
    ])
    .with_gap(CERTIFICATE_GAP);
    let mut identities: Vec<&CertificateDump> = dump.certificates.iter().collect();
    identities.sort_by(|a, b| a.identity.cmp(&b.identity));
    let now = Timestamp::now();
    for identity in identities {
        let (status, reason) = identity
            .state
            .split_once(": ")
            .unwrap_or((&identity.state, ""));
        let mut push = |kind: &str, valid: &str, entry: &CertificateEntryDump| {
            table.push([
                identity.identity.clone(),
                kind.to_owned(),
                status.to_owned(),
                valid.to_owned(),
                hexadecimal(&entry.serial_number),
                entry.expiration_time.clone(),
                entry.valid_from.clone(),
                reason.to_owned(),
            ]);
        };
        for (index, entry) in identity.cert_chain.iter().enumerate() {
            push(
                if index == 0 { "Leaf" } else { "Intermediate" },
                validity(entry, now),
                entry,
            );
        }
        for entry in &identity.root_certs {
            push("Root", validity(entry, now), entry);
        }
        if identity.cert_chain.is_empty() {
            push("NA", "false", &CertificateEntryDump::default());
        }
    }
    table.columns(if wide { 8 } else { 7 })
}

fn validity(entry: &CertificateEntryDump, now: Timestamp) -> &'static str {
    let time = |text: &str| text.parse::<Timestamp>().ok();
    match (time(&entry.valid_from), time(&entry.expiration_time)) {
        (Some(from), Some(until)) if from <= now && now <= until => "true",
        _ => "false",
    }
}

/// Serial numbers are decimal in a dump and hexadecimal for people, as OpenSSL prints them.
fn hexadecimal(decimal: &str) -> String {
    match BigUint::parse_bytes(decimal.as_bytes(), 10) {
        Some(number) => number.to_str_radix(16),
        None => decimal.to_owned(),
    }
}

pub(super) fn connections(lookup: &Lookup<'_>, dump: &ConfigDump, raw: bool, wide: bool) -> Table {
    let mut table = Table::new(&[
        "WORKLOAD",
        "DIRECTION",
        "LOCAL",
        "REMOTE",
        "REMOTE TARGET",
        "PROTOCOL",
        "STATE",
    ]);
    let name = |address: &str| {
        if raw {
            address.to_owned()
        } else {
            lookup.name(address)
        }
    };
    for state in dump.workload_state.values() {
        let mut push = |direction: &str, local: &str, remote: &str, connection: &ConnectionDump| {
            table.push([
                format!("{}.{}", state.info.name, state.info.namespace),
                direction.to_owned(),
                name(local),
                name(remote),
                connection
                    .original_dst
                    .as_deref()
                    .map(name)
                    .unwrap_or_default(),
                connection.protocol.clone(),
                state.state.clone(),
            ]);
        };
        for connection in &state.connections.inbound {
            push(
                "Inbound",
                &connection.actual_dst,
                &connection.src,
                connection,
            );
        }
        for connection in &state.connections.outbound {
            push(
                "Outbound",
                &connection.src,
                &connection.actual_dst,
                connection,
            );
        }
    }
    finish(table, 6, wide)
}

pub(super) fn all(lookup: &Lookup<'_>, dump: &ConfigDump, headers: bool, wide: bool) -> String {
    let sections = [
        ("WORKLOAD", workloads(lookup, dump, wide)),
        ("SERVICE", services(lookup, dump, wide)),
        ("POLICY", policies(dump, wide)),
        ("SECRET", certificates(dump, wide)),
        ("CONNECTIONS", connections(lookup, dump, false, wide)),
    ];
    let text = sections.map(|(name, table)| {
        if headers {
            format!("------ {name} INFO ------\n{}", table.text())
        } else {
            table.text()
        }
    });
    text.join("\n")
}

/// Sorted by namespace and name, which stand first.
fn finish(mut table: Table, narrow: usize, wide: bool) -> Table {
    table.sort();
    table.columns(if wide { usize::MAX } else { narrow })
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}
