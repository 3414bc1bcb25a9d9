//! ServiceEntry and WorkloadEntry as Istio defines them: what the mesh knows beyond Kubernetes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::field::{Faults, FieldPath, at};
use super::meta::{Labels, Meta};
use super::selector::WorkloadSelector;
use super::syntax::{is_dns_label, is_dns_name, is_host, read_address, read_port, read_range};

/// A ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// What it says.
    pub spec: ServiceEntrySpec,
    /// Addresses that a control plane gave to hosts without one (`status.addresses`).
    pub given: Vec<(String, IpAddr)>,
    /// `workloadSelector`, in the form that workloads are matched with.
    pub selector: Labels,
}

/// `spec` of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntrySpec {
    /// DNS names.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Virtual addresses or ranges.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Ports.
    #[serde(default)]
    pub ports: Vec<EntryPort>,
    /// Inside or outside the mesh; says nothing that layer 4 would use.
    #[serde(default)]
    pub location: Location,
    /// How endpoints are found.
    #[serde(default)]
    pub resolution: Resolution,
    /// Endpoints written down here.
    #[serde(default)]
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Pods and WorkloadEntries of the namespace that are endpoints.
    pub workload_selector: Option<WorkloadSelector>,
    /// Who sees it: `*` (all), `.` (its own namespace), `~` (nobody) or namespaces by name.
    #[serde(default)]
    pub export_to: Vec<String>,
    /// Identities that endpoints may have besides their own.
    #[serde(default)]
    pub subject_alt_names: Vec<String>,
}

/// One port of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryPort {
    /// The number that clients use.
    pub number: u32,
    /// Name.
    pub name: String,
    /// HTTP, TCP, TLS, …
    #[serde(default)]
    pub protocol: String,
    /// Port of the endpoints, if another.
    pub target_port: Option<u32>,
}

/// `location`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Outside.
    #[default]
    MeshExternal,
    /// Inside.
    MeshInternal,
}

/// `resolution`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// Wherever the client was going.
    #[default]
    None,
    /// The endpoints' addresses.
    Static,
    /// The endpoints' names, else the host.
    Dns,
    /// As DNS; the difference is one of Envoy's load balancer.
    DnsRoundRobin,
    /// As DNS, for wildcard hosts; the name comes from the client.
    DynamicDns,
}

/// The annotation that says how one of several addresses of a name is found that answers.
pub(crate) const CONNECT_STRATEGY: &str = "istio.io/connect-strategy";

/// What that annotation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectStrategy {
    /// They are tried one after the other.
    InTurn,
    /// They are dialled at once, for the first that answers.
    Race,
}

/// A WorkloadEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// What it says.
    pub spec: WorkloadEntrySpec,
    /// Labels of object and spec together: either may be selected.
    pub labels: Labels,
}

/// `spec` of a WorkloadEntry, and one inline endpoint of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntrySpec {
    /// IP address or DNS name.
    pub address: String,
    /// Port name → number.
    pub ports: BTreeMap<String, u32>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// L3 network.
    pub network: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Relative weight.
    pub weight: Option<u32>,
    /// Service account.
    pub service_account: String,
}

impl ServiceEntry {
    pub(crate) fn check(&self, faults: &mut Faults) {
        let spec = &self.spec;
        if spec.hosts.is_empty() {
            faults.add(at!["spec", "hosts"], "is missing: name at least one host");
        }
        for (index, host) in spec.hosts.iter().enumerate() {
            if !is_host(&host.to_ascii_lowercase()) {
                let rule = "write a DNS name, with `*.` in front at most";
                faults.add(
                    at!["spec", "hosts", index],
                    format!("`{host}` is not a host: {rule}"),
                );
            }
        }
        for (index, address) in spec.addresses.iter().enumerate() {
            let _checked = read_range(address, at!["spec", "addresses", index], faults);
        }
        self.check_ports(faults);
        if !spec.endpoints.is_empty() && spec.workload_selector.is_some() {
            let rule = "endpoints come from the list or from workloadSelector: remove one of them";
            faults.add(at!["spec", "endpoints"], rule);
        }
        if let Some(selector) = &spec.workload_selector {
            selector.check(&at!["spec", "workloadSelector", "labels"], faults);
        }
        for (index, scope) in spec.export_to.iter().enumerate() {
            if !(matches!(scope.as_str(), "*" | "." | "~") || is_dns_label(scope)) {
                let rule = "use `*` for the mesh, `.` for its own namespace, or the name of one";
                faults.add(at!["spec", "exportTo", index], format!("`{scope}`: {rule}"));
            }
        }
        self.check_resolution(faults);
    }

    fn check_ports(&self, faults: &mut Faults) {
        for (index, port) in self.spec.ports.iter().enumerate() {
            let place = at!["spec", "ports", index];
            let _checked = read_port(port.number.into(), place.join("number"), faults);
            if let Some(target) = port.target_port {
                let _checked = read_port(target.into(), place.join("targetPort"), faults);
            }
            let earlier = self.spec.ports.get(..index).unwrap_or_default();
            if earlier.iter().any(|other| other.number == port.number) {
                let problem = format!("{} is declared twice: remove one", port.number);
                faults.add(place.join("number"), problem);
            }
        }
    }

    fn check_resolution(&self, faults: &mut Faults) {
        let spec = &self.spec;
        let named = matches!(
            spec.resolution,
            Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns
        );
        for (index, endpoint) in spec.endpoints.iter().enumerate() {
            let place = at!["spec", "endpoints", index];
            if spec.resolution == Resolution::None {
                faults.add(
                    place.clone(),
                    "resolution NONE has no endpoints: use STATIC or DNS",
                );
            }
            endpoint.check(&place, named, faults);
        }
        if spec.resolution == Resolution::DynamicDns {
            self.check_dynamic(faults);
        }
        let wildcard = spec.hosts.iter().any(|host| host.contains('*'));
        if named
            && wildcard
            && spec.endpoints.is_empty()
            && spec.resolution != Resolution::DynamicDns
        {
            let rule = "a wildcard host cannot be resolved: list endpoints or use resolution NONE";
            faults.add(at!["spec", "resolution"], rule);
        }
    }

    /// The names come from clients: there is nothing to write down for them.
    fn check_dynamic(&self, faults: &mut Faults) {
        let spec = &self.spec;
        for (index, host) in spec.hosts.iter().enumerate() {
            if !host.contains('*') {
                let rule = "resolution DYNAMIC_DNS is for wildcards: use DNS";
                faults.add(at!["spec", "hosts", index], format!("`{host}`: {rule}"));
            }
        }
        if spec.location != Location::MeshExternal {
            let rule = "resolution DYNAMIC_DNS is for hosts outside the mesh: use MESH_EXTERNAL";
            faults.add(at!["spec", "location"], rule);
        }
        let rule = "resolution DYNAMIC_DNS has no endpoints, clients say which host they mean: remove this";
        if !spec.endpoints.is_empty() {
            faults.add(at!["spec", "endpoints"], rule);
        }
        if spec.workload_selector.is_some() {
            faults.add(at!["spec", "workloadSelector"], rule);
        }
    }

    /// What the annotation asks for, or the word that nobody knows.
    pub(crate) fn connect_strategy(&self) -> Result<ConnectStrategy, &str> {
        match self.meta.annotations.get(CONNECT_STRATEGY).unwrap_or("") {
            "" | "DEFAULT" => Ok(ConnectStrategy::InTurn),
            "RACE_FIRST_TCP_CONNECT" => Ok(ConnectStrategy::Race),
            other => Err(other),
        }
    }

    /// Whether only its own namespace sees it. Several namespaces by name are not told apart from all.
    pub(crate) fn is_private(&self) -> bool {
        let own = &*self.meta.name.namespace;
        let scopes = &self.spec.export_to;
        !scopes.is_empty() && scopes.iter().all(|scope| scope == "." || scope == own)
    }
}

impl WorkloadEntry {
    pub(crate) fn check(&self, faults: &mut Faults) {
        self.spec.check(&at!["spec"], true, faults);
    }
}

impl WorkloadEntrySpec {
    fn check(&self, place: &FieldPath, names_allowed: bool, faults: &mut Faults) {
        let at = place.join("address");
        if self.address.is_empty() {
            faults.add(at, "is missing: write an IP address or a DNS name");
        } else if !names_allowed || !is_dns_name(&self.address.to_ascii_lowercase()) {
            let _checked = read_address(&self.address, at, faults);
        }
        for (name, port) in &self.ports {
            let _checked = read_port(
                (*port).into(),
                place.join("ports").join(name.as_str()),
                faults,
            );
        }
        let labels = WorkloadSelector {
            match_labels: self.labels.clone(),
        };
        labels.check(&place.join("labels"), faults);
        if !(self.service_account.is_empty() || is_dns_name(&self.service_account)) {
            let rule = "use lower-case letters, digits, `-` and `.`";
            let problem = format!(
                "`{}` is not a service account: {rule}",
                self.service_account
            );
            faults.add(place.join("serviceAccount"), problem);
        }
    }
}
