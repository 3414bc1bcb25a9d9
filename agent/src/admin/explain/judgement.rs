//! What policies say: each of them asked alone through the data path's own functions, then all together.

mod requests;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hyper::StatusCode;
use userspace_l7::direct::{self, Passage};
use userspace_l7::model::{
    Action, AuthorizationPolicy, Encryption, Health, NamespacedHostname, Scope, Service,
    ServiceLayer7, Snapshot, SpiffeId, TunnelProtocol, Workload,
};
use userspace_l7::policy::{self, Connection, Way};
use userspace_l7::route::{self, Towards};

use super::routing::{Backend, BackendKind, Routing, goes_by_name, name_asked_for};
use super::{BackendStep, EndpointStep, Expectation, Inquiry, PolicyStep};
use crate::admin::{PodState, PodStatus};

use requests::{demands, layer7};

/// What policies say, and of whom.
pub(super) struct Judgement {
    pub(super) backends: Vec<BackendStep>,
    pub(super) policies: Vec<PolicyStep>,
    /// Why layer 7 refuses; `None`: it lets the request pass.
    denied: Option<Expectation>,
    /// Why no connection to any backend could begin; `None`: one can.
    unbegun: Option<String>,
    /// The sentence beside a request that passes.
    allowed: String,
}

pub(super) fn walk(inquiry: &Inquiry<'_>, routing: &Routing<'_>) -> Judgement {
    let mut judged = Judgement {
        backends: Vec::new(),
        policies: Vec::new(),
        denied: None,
        unbegun: unbegun(inquiry, routing),
        allowed: "the application answers".to_owned(),
    };
    let goes_by_name = |backend: &Backend<'_>| matches!(&backend.kind, BackendKind::Service { service, .. } if goes_by_name(service));
    if routing.backends.iter().any(goes_by_name) {
        judged.allowed =
            String::from("the host answers, if its name leads to an address outside the mesh");
    }
    let total: u64 = weights(routing).sum();
    let mut servers: Vec<(Arc<Workload>, SocketAddr)> = Vec::new();
    for backend in &routing.backends {
        judged
            .backends
            .push(backend_step(inquiry, routing, backend, total, &mut servers));
    }
    layer4(inquiry, called(routing), &servers, &mut judged.policies);
    let changed = routing.changed.as_ref();
    let changed = changed.map(|parts| inquiry.with_head(parts));
    for demanded in demands(inquiry, routing, &servers) {
        let inquiry = changed.as_ref().unwrap_or(inquiry);
        layer7(inquiry, &demanded, &servers, &mut judged);
    }
    judged
}

/// Why nothing may be sent to any backend, by what policies say of TLS. They hold for what is bound to a waypoint.
fn unbegun(inquiry: &Inquiry<'_>, routing: &Routing<'_>) -> Option<String> {
    let _bound = called(routing)?;
    let why = |backend: &Backend<'_>| {
        let BackendKind::Service {
            service,
            port,
            subset,
        } = &backend.kind
        else {
            return None;
        };
        let traffic = inquiry.snapshot.traffic.get(&service.key)?;
        match &traffic.policy_for(*port, *subset).opening.encryption {
            Encryption::Unusable(why) => Some(why.to_string()),
            Encryption::None | Encryption::Mesh | Encryption::Tls(_) => None,
        }
    };
    let whys: Option<Vec<String>> = routing.backends.iter().map(why).collect();
    whys?.into_iter().next()
}

/// A service that was called, with what its waypoint does.
type Called<'a> = (&'a NamespacedHostname, &'a ServiceLayer7);

fn called<'a>(routing: &Routing<'a>) -> Option<Called<'a>> {
    Some((&routing.service?.key, &**routing.layer7?))
}

/// The same, as far as its waypoint's name is lent to what reaches a workload: not on the client's own way.
fn lent<'a>(
    inquiry: &Inquiry<'_>,
    called: Option<Called<'a>>,
    (workload, address): (&Workload, SocketAddr),
) -> Option<Called<'a>> {
    let is_lent =
        |called: &Called<'_>| way(inquiry, *called, workload, address) == Some(Way::Producer);
    called.filter(is_lent)
}

fn way(
    inquiry: &Inquiry<'_>,
    (service, layer7): Called<'_>,
    workload: &Workload,
    address: SocketAddr,
) -> Option<Way> {
    let number = inquiry.dialled.port();
    let port = layer7.ports.get(&number)?;
    let namespace = Some(&*inquiry.client.namespace);
    let to = (workload, address.port());
    policy::way(inquiry.snapshot, to, (service, number), port, namespace)
}

impl Judgement {
    /// Whether layer 7 refuses the request, before anything else becomes of it.
    pub(super) fn is_denied(&self) -> bool {
        self.denied.is_some()
    }

    /// The first of: a refused connection, a refusal by layer 7, an answer without a backend, a refusal by layer 4,
    /// delivery.
    pub(super) fn expected(&self, routing: &Routing<'_>) -> Expectation {
        let answered = routing.answered.as_ref();
        let refused = answered.filter(|answered| answered.status.is_none());
        if let Some(first) = refused.or(self.denied.as_ref()).or(answered) {
            return first.clone();
        }
        if let Some(unbegun) = &self.unbegun {
            let why = format!("the connection to the endpoint cannot begin: {unbegun}");
            return if routing.is_http {
                Expectation::answered(StatusCode::SERVICE_UNAVAILABLE, why)
            } else {
                Expectation::refused(format!("the connection is reset; {why}"))
            };
        }
        let endpoints = || self.backends.iter().flat_map(|backend| &backend.endpoints);
        let takers = || endpoints().filter(|endpoint| endpoint.takes_requests);
        if takers().next().is_none() {
            return if routing.is_http {
                let is_invalid = self.backends.iter().all(|backend| backend.port.is_none());
                if is_invalid {
                    Expectation::answered(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "no backend can be used",
                    )
                } else {
                    Expectation::answered(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream")
                }
            } else {
                Expectation::refused("the connection is refused: no healthy upstream")
            };
        }
        let mut refusals = takers()
            .filter(|endpoint| endpoint.verdict != ALLOWED)
            .peekable();
        match refusals.peek() {
            Some(first) if takers().all(|endpoint| endpoint.verdict != ALLOWED) => {
                let why = format!("layer 4 at the server's node refuses: {}", first.verdict);
                if routing.is_http {
                    Expectation::answered(StatusCode::SERVICE_UNAVAILABLE, why)
                } else {
                    Expectation::refused(format!("the connection is reset; {why}"))
                }
            }
            Some(first) => Expectation::delivered(format!(
                "{}, but {} refuses: {}",
                self.allowed, first.workload, first.verdict
            )),
            None => Expectation::delivered(self.allowed.clone()),
        }
    }
}

const ALLOWED: &str = "allowed";

fn weights<'a>(routing: &'a Routing<'_>) -> impl Iterator<Item = u64> + 'a {
    let weights = routing.backends.iter().map(|backend| backend.weight);
    weights.map(|weight| u64::from(weight.unwrap_or(1)))
}

fn backend_step(
    inquiry: &Inquiry<'_>,
    routing: &Routing<'_>,
    backend: &Backend<'_>,
    total: u64,
    servers: &mut Vec<(Arc<Workload>, SocketAddr)>,
) -> BackendStep {
    let weight = u64::from(backend.weight.unwrap_or(1));
    let per_mille = (weight * 1000).checked_div(total).unwrap_or_default();
    let mut step = BackendStep {
        name: String::new(),
        port: None,
        weight: backend.weight,
        share: format!("{}.{}", per_mille / 10, per_mille % 10),
        endpoints: Vec::new(),
    };
    match &backend.kind {
        BackendKind::Invalid(why) => step.name = format!("invalid: {why}"),
        BackendKind::Address(address) => {
            step.name = address.to_string();
            step.port = Some(address.port());
            let workload = inquiry.snapshot.workload_at(address.ip());
            if let Some(workload) = workload {
                servers.push((Arc::clone(workload), *address));
            }
            step.endpoints.push(endpoint_step(
                inquiry,
                called(routing),
                workload,
                *address,
                (
                    workload.is_none_or(|found| found.health == Health::Healthy),
                    true,
                ),
            ));
        }
        BackendKind::Service {
            service,
            port,
            subset,
        } => {
            step.name = subset.map_or_else(
                || service.key.to_string(),
                |subset| format!("{} (subset {subset})", service.key),
            );
            step.port = Some(*port);
            let from = (&***service, *port, *subset);
            step.endpoints = service_endpoints(inquiry, routing, from, servers);
            step.endpoints.sort_by(|a, b| a.workload.cmp(&b.workload));
        }
    }
    step
}

fn service_endpoints(
    inquiry: &Inquiry<'_>,
    routing: &Routing<'_>,
    (service, port, subset): (&Service, u16, Option<&str>),
    servers: &mut Vec<(Arc<Workload>, SocketAddr)>,
) -> Vec<EndpointStep> {
    if goes_by_name(service) {
        return vec![named_endpoint(inquiry, routing, (service, port))];
    }
    let drawn = takers(inquiry, (service, port, subset));
    let members = subset.and_then(|name| {
        let traffic = inquiry.snapshot.traffic.get(&service.key)?;
        Some(&traffic.subsets.get(name)?.members)
    });
    let mut steps = Vec::new();
    for endpoint in inquiry.snapshot.endpoints_of(&service.key) {
        let is_member = members.is_none_or(|members| members.contains(&endpoint.workload));
        let workload = inquiry.snapshot.workloads.get(&endpoint.workload);
        let target = endpoint.target_port(service, port);
        let (true, Some(workload), Some(target)) = (is_member, workload, target) else {
            continue;
        };
        let Some(ip) = workload.addresses.first() else {
            continue;
        };
        let address = SocketAddr::new(*ip, target);
        let is_drawn = drawn.contains(workload.uid.as_str());
        if is_drawn {
            servers.push((Arc::clone(workload), address));
        }
        let state = (endpoint.health == Health::Healthy, is_drawn);
        steps.push(endpoint_step(
            inquiry,
            called(routing),
            Some(workload),
            address,
            state,
        ));
    }
    steps
}

/// The host that the client asks a wildcard for, wherever it is: only looking it up would tell.
fn named_endpoint(
    inquiry: &Inquiry<'_>,
    routing: &Routing<'_>,
    (service, port): (&Service, u16),
) -> EndpointStep {
    let asked = name_asked_for(inquiry, service).filter(|_| routing.is_http);
    let host = asked.map_or_else(
        || "the host that the client names in TLS".to_owned(),
        |name| name.to_string(),
    );
    let port = service
        .ports
        .get(&port)
        .map_or(port, |port| port.target_port);
    EndpointStep {
        workload: String::new(),
        node: String::new(),
        address: format!("{host}:{port}"),
        health: "Healthy".to_owned(),
        carriage: "TCP".to_owned(),
        takes_requests: true,
        verdict: ALLOWED.to_owned(),
    }
}

/// The endpoints that the balancer may draw: it is asked once for each endpoint, with another draw each time.
fn takers(
    inquiry: &Inquiry<'_>,
    (service, port, subset): (&Service, u16, Option<&str>),
) -> BTreeSet<String> {
    let endpoints = inquiry.snapshot.endpoints_of(&service.key);
    let ip = service.vips.first().copied();
    let subset = subset.map(Arc::from);
    let towards = Towards {
        service,
        subset: subset.as_ref(),
        address: SocketAddr::new(ip.unwrap_or_else(|| inquiry.dialled.ip()), port),
    };
    let draws = 0..u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
    let plans = draws.filter_map(|draw| {
        let mut choose = |bound: u32| draw.checked_rem(bound).unwrap_or_default();
        route::targets(inquiry.snapshot, inquiry.client, &towards, &[], &mut choose).ok()
    });
    plans
        .flatten()
        .filter_map(|target| Some(target.workload?.uid.to_string()))
        .collect()
}

fn endpoint_step(
    inquiry: &Inquiry<'_>,
    called: Option<Called<'_>>,
    workload: Option<&Arc<Workload>>,
    address: SocketAddr,
    (is_healthy, takes_requests): (bool, bool),
) -> EndpointStep {
    let verdict = workload.map_or_else(
        || ALLOWED.to_owned(),
        |workload| layer4_verdict(inquiry, called, workload, address),
    );
    let carriage = workload.map_or(TunnelProtocol::Tcp, |found| found.protocol);
    EndpointStep {
        workload: workload
            .map(|found| format!("{}/{}", found.namespace, found.name))
            .unwrap_or_default(),
        node: workload
            .map(|found| found.node.to_string())
            .unwrap_or_default(),
        address: address.to_string(),
        health: if is_healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
        carriage: match carriage {
            TunnelProtocol::Hbone
                if called.is_none()
                    && workload.is_some_and(|server| goes_straight(inquiry, server, address)) =>
            {
                "DIRECT"
            }
            TunnelProtocol::Hbone => "HBONE",
            TunnelProtocol::Tcp => "TCP",
        }
        .to_owned(),
        takes_requests,
        verdict,
    }
}

/// Whether the kernel carries it, both pods being captured by this node's agent.
fn goes_straight(inquiry: &Inquiry<'_>, server: &Workload, address: SocketAddr) -> bool {
    let is_here = |workload: &Workload| {
        let own = |pod: &&PodStatus| pod.uid == workload.uid.as_str();
        let own = inquiry.pods.iter().find(own);
        own.is_some_and(|pod| pod.state == PodState::Up && !pod.encrypted_within_node)
    };
    is_here(inquiry.client)
        && is_here(server)
        && direct::passage(inquiry.snapshot, inquiry.client, server, address) == Passage::Straight
}

/// Layer 4 at the server. A policy that lets only the waypoint in is satisfied by what went through layer 7
/// on the waypoint's behalf.
fn layer4_verdict(
    inquiry: &Inquiry<'_>,
    called: Option<Called<'_>>,
    workload: &Workload,
    address: SocketAddr,
) -> String {
    let client = proven(inquiry, workload);
    let called = lent(inquiry, called, (workload, address));
    let connection = connection(inquiry, client.as_ref(), (called, address));
    let decision = policy::judge(inquiry.snapshot, workload, &connection).decision;
    match decision {
        Ok(_) => ALLOWED.to_owned(),
        Err(denial) => denial.to_string(),
    }
}

/// The client's identity as the server's node sees it: only a tunnel proves one.
fn proven(inquiry: &Inquiry<'_>, workload: &Workload) -> Option<SpiffeId> {
    let is_tunnel = workload.protocol == TunnelProtocol::Hbone
        && inquiry.client.protocol == TunnelProtocol::Hbone;
    is_tunnel.then(|| inquiry.client.identity())
}

fn connection<'a>(
    inquiry: &Inquiry<'_>,
    identity: Option<&'a SpiffeId>,
    (called, destination): (Option<Called<'a>>, SocketAddr),
) -> Connection<'a> {
    Connection {
        source: client_address(inquiry),
        identity,
        waypoint: called.map(|(_, layer7)| &layer7.waypoint_identity),
        through: called.map(|(service, _)| service),
        destination,
    }
}

fn client_address(inquiry: &Inquiry<'_>) -> IpAddr {
    let first = inquiry.client.addresses.first().copied();
    first.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}

/// Every L4 policy of every server, each once.
fn layer4(
    inquiry: &Inquiry<'_>,
    called: Option<Called<'_>>,
    servers: &[(Arc<Workload>, SocketAddr)],
    steps: &mut Vec<PolicyStep>,
) {
    let mut seen = BTreeSet::new();
    for (workload, address) in servers {
        let identity = proven(inquiry, workload);
        let called = lent(inquiry, called, (workload, *address));
        let connection = connection(inquiry, identity.as_ref(), (called, *address));
        steps.extend(strictness(inquiry.snapshot, workload, &connection));
        for policy in inquiry.snapshot.policies_for(workload) {
            if !seen.insert(policy.key.clone()) {
                continue;
            }
            let rule = (0..policy.rules.len())
                .find(|rule| is_l4_match(inquiry.snapshot, workload, policy, *rule, &connection));
            steps.push(PolicyStep {
                name: policy.key.to_string(),
                action: match policy.action {
                    Action::Allow => "ALLOW".to_owned(),
                    Action::Deny => "DENY".to_owned(),
                },
                layer: "L4".to_owned(),
                at: workload.node.to_string(),
                verdict: verdict(rule, policy.dry_run),
                is_match: rule.is_some() && !policy.dry_run,
            });
        }
    }
}

/// What a strict namespace says of a connection to one of its pods.
fn strictness(
    snapshot: &Snapshot,
    workload: &Workload,
    connection: &Connection<'_>,
) -> Option<PolicyStep> {
    let namespace = &workload.namespace;
    if !snapshot.strict_namespaces.contains(namespace) {
        return None;
    }
    let around = policy::circumvented(snapshot, workload, connection);
    Some(PolicyStep {
        name: format!("{namespace}/culvert.dev/strict-waypoint"),
        action: "DENY".to_owned(),
        layer: "L4".to_owned(),
        at: workload.node.to_string(),
        verdict: match around {
            Some(service) => format!("matches: around the waypoint of {service}"),
            None => "does not match".to_owned(),
        },
        is_match: around.is_some(),
    })
}

/// Whether one rule alone matches: a mesh in which there is no other rule is asked.
fn is_l4_match(
    snapshot: &Snapshot,
    workload: &Workload,
    policy: &AuthorizationPolicy,
    rule: usize,
    connection: &Connection<'_>,
) -> bool {
    let Some(rule) = policy.rules.get(rule) else {
        return false;
    };
    let alone = AuthorizationPolicy {
        key: policy.key.clone(),
        scope: Scope::Global,
        action: Action::Deny,
        dry_run: false,
        rules: vec![rule.clone()],
    };
    let mut only = Snapshot::empty((*snapshot.mesh).clone());
    only.global_policies = Arc::new([Arc::new(alone)]);
    policy::judge(&only, workload, connection).decision.is_err()
}

fn verdict(rule: Option<usize>, dry_run: bool) -> String {
    let found = rule.map_or_else(
        || "does not match".to_owned(),
        |rule| format!("matches rule {rule}"),
    );
    if dry_run {
        format!("{found} (dry run)")
    } else {
        found
    }
}
