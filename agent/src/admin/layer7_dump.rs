//! `GET /layer7`: listeners, routes and backends as they are compiled. Culvert's own shape: istioctl knows
//! these only from Envoy's dump.

use serde::{Deserialize, Serialize};
use userspace_l7::model::{
    BackendTarget, Endpoint, Health, HttpAction, HttpRouteTable, NamespacedHostname, PortLayer7,
    PortRoutes, ServiceLayer7, Snapshot, WeightedBackend,
};

use super::explain::{matched, protocol};

/// Layer 7 of all services that are bound to a waypoint, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer7Dump {
    /// One for each port of each service.
    pub listeners: Vec<ListenerDump>,
    /// One for each match, in order of precedence.
    pub routes: Vec<RouteDump>,
    /// One for each backend of each rule, and one for each port without routes.
    pub backends: Vec<BackendDump>,
    /// Namespaces whose pods are not reached around the waypoint of a service, in order.
    #[serde(default)]
    pub strict_namespaces: Vec<String>,
}

/// One service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerDump {
    /// Namespace of the service.
    pub namespace: String,
    /// Its hostname.
    pub hostname: String,
    /// The service port.
    pub port: u16,
    /// What it speaks.
    pub protocol: String,
    /// `<namespace>/<name>`.
    pub waypoint: String,
    /// How many matches its routes have.
    pub routes: usize,
    /// How many authorization policies speak about it.
    pub policies: usize,
    /// How many JWT rules speak about it.
    pub jwt_rules: usize,
    /// How many rate limits it has.
    pub rate_limits: usize,
}

/// One match of a route's rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteDump {
    /// Namespace of the service.
    pub namespace: String,
    /// Its hostname.
    pub hostname: String,
    /// The service port.
    pub port: u16,
    /// The namespace whose clients it holds for; `None`: all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// `<kind> <namespace>/<name>`.
    pub origin: String,
    /// The rule's name.
    pub rule: String,
    /// The match, in words.
    pub matched: String,
    /// What happens: `forward`, `redirect`, `respond`, or `invalid`.
    pub action: String,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendDump {
    /// Namespace of the service that was called.
    pub namespace: String,
    /// Its hostname.
    pub hostname: String,
    /// The service port that was called.
    pub port: u16,
    /// The rule that names it; empty for the service's own endpoints.
    pub rule: String,
    /// `<namespace>/<hostname>`, or what is wrong with it.
    pub backend: String,
    /// Its port; 0 if it is invalid.
    pub backend_port: u16,
    /// Its weight.
    pub weight: u32,
    /// Healthy endpoints.
    pub healthy: usize,
    /// All endpoints.
    pub endpoints: usize,
}

/// The dump of a mesh.
pub(super) fn dump(snapshot: &Snapshot) -> Layer7Dump {
    let strict = snapshot.strict_namespaces.iter().map(ToString::to_string);
    let mut dump = Layer7Dump {
        strict_namespaces: strict.collect(),
        ..Layer7Dump::default()
    };
    dump.strict_namespaces.sort_unstable();
    let mut services: Vec<(&NamespacedHostname, _)> = snapshot.services_layer7.iter().collect();
    services.sort_unstable_by_key(|(key, _)| *key);
    for (key, layer7) in services {
        for (port, settings) in &layer7.ports {
            let place = Place {
                snapshot,
                key,
                port: *port,
            };
            dump.listeners.push(place.listener(layer7, settings));
            place.add_routes(&settings.routes, None, &mut dump);
            for (consumer, routes) in &settings.consumer_routes {
                place.add_routes(routes, Some(consumer), &mut dump);
            }
        }
    }
    dump
}

struct Place<'a> {
    snapshot: &'a Snapshot,
    key: &'a NamespacedHostname,
    port: u16,
}

impl Place<'_> {
    fn listener(&self, layer7: &ServiceLayer7, settings: &PortLayer7) -> ListenerDump {
        let all = std::iter::once(&settings.routes).chain(settings.consumer_routes.values());
        let matches = all.map(|routes| match routes {
            PortRoutes::None => 0,
            PortRoutes::Http(table) => table.entries().len(),
            PortRoutes::Tcp(_) => 1,
        });
        ListenerDump {
            namespace: self.key.namespace.to_string(),
            hostname: self.key.hostname.to_string(),
            port: self.port,
            protocol: protocol(settings.protocol).to_owned(),
            waypoint: layer7.waypoint.to_string(),
            routes: matches.sum(),
            policies: layer7.demands.authorization.len(),
            jwt_rules: layer7.demands.authentication.len(),
            rate_limits: settings.rate_limits.len(),
        }
    }

    fn add_routes(&self, routes: &PortRoutes, consumer: Option<&str>, dump: &mut Layer7Dump) {
        match routes {
            PortRoutes::None => {
                let own = BackendTarget::Service {
                    service: self.key.clone(),
                    port: self.port,
                    subset: None,
                };
                dump.backends.push(self.backend("", &own, 1));
            }
            PortRoutes::Tcp(backends) => self.add_backends("", backends, dump),
            PortRoutes::Http(table) => self.add_table(table, consumer, dump),
        }
    }

    fn add_table(&self, table: &HttpRouteTable, consumer: Option<&str>, dump: &mut Layer7Dump) {
        let mut last: Option<&str> = None;
        for entry in table.entries() {
            let rule = &entry.rule;
            dump.routes.push(RouteDump {
                namespace: self.key.namespace.to_string(),
                hostname: self.key.hostname.to_string(),
                port: self.port,
                consumer: consumer.map(str::to_owned),
                origin: rule.origin.to_string(),
                rule: rule.name.to_string(),
                matched: matched(&entry.matches),
                action: match &rule.action {
                    _ if !rule.is_usable => "invalid",
                    HttpAction::Forward(_) => "forward",
                    HttpAction::Redirect(_) => "redirect",
                    HttpAction::Respond { .. } => "respond",
                }
                .to_owned(),
            });
            // Matches of one rule may stand apart in the table; its backends are listed where it is new.
            let is_new = last != Some(&*rule.name)
                && !dump.backends.iter().any(|known| {
                    known.rule == *rule.name
                        && known.port == self.port
                        && known.hostname == *self.key.hostname
                });
            last = Some(&*rule.name);
            if let (true, HttpAction::Forward(backends)) = (is_new, &rule.action) {
                self.add_backends(&rule.name, backends, dump);
            }
        }
    }

    fn add_backends(&self, rule: &str, backends: &[WeightedBackend], dump: &mut Layer7Dump) {
        let steps = backends
            .iter()
            .map(|backend| self.backend(rule, &backend.target, backend.weight));
        dump.backends.extend(steps);
    }

    fn backend(&self, rule: &str, target: &BackendTarget, weight: u32) -> BackendDump {
        let (name, port, endpoints): (_, _, Vec<&Endpoint>) = match target {
            BackendTarget::Service {
                service,
                port,
                subset,
            } => {
                let members = subset.as_ref().map(|name| {
                    let traffic = self.snapshot.traffic.get(service);
                    let subset = traffic.and_then(|traffic| traffic.subsets.get(&**name));
                    subset.map(|subset| &subset.members)
                });
                // A subset that no rule knows has none.
                let is_member = |one: &&Endpoint| match &members {
                    None => true,
                    Some(members) => members.is_some_and(|members| members.contains(&one.workload)),
                };
                let endpoints = self.snapshot.endpoints_of(service).iter();
                let subset = subset.as_ref().map(|name| format!(" (subset {name})"));
                let name = format!("{service}{}", subset.unwrap_or_default());
                (name, *port, endpoints.filter(is_member).collect())
            }
            BackendTarget::Invalid { why } => (format!("invalid: {why}"), 0, Vec::new()),
        };
        let healthy = endpoints.iter().filter(|one| one.health == Health::Healthy);
        BackendDump {
            namespace: self.key.namespace.to_string(),
            hostname: self.key.hostname.to_string(),
            port: self.port,
            rule: rule.to_owned(),
            backend: name,
            backend_port: port,
            weight,
            healthy: healthy.count(),
            endpoints: endpoints.len(),
        }
    }
}
