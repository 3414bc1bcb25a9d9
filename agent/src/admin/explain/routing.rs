//! Which route takes a request, and who may answer it.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::header::{HOST, HeaderValue};
use hyper::http::request;
use hyper::{Request, StatusCode};
use userspace_l7::model::{
    AppProtocol, BackendTarget, FaultAbort, HttpAction, HttpRouteEntry, LoadBalancerMode,
    NamespacedHostname, PortLayer7, PortRoutes, Service, ServiceLayer7, Snapshot,
    WaypointReference, WeightedBackend,
};
use userspace_l7::route::http::Filters;
use userspace_l7::route::named::Name;
use userspace_l7::route::{self, Refusal};

use super::{Expectation, Inquiry, RouteStep, WaypointStep, wording};

/// What the routes make of a request.
pub(super) struct Routing<'a> {
    pub(super) service: Option<&'a Arc<Service>>,
    pub(super) layer7: Option<&'a Arc<ServiceLayer7>>,
    /// Whether requests are told apart.
    pub(super) is_http: bool,
    pub(super) waypoint: WaypointStep,
    pub(super) route: Option<RouteStep>,
    /// Whether a rule takes the request, or there are none: what no rule takes is answered before it is counted.
    pub(super) is_taken: bool,
    /// The name of the rule that takes it.
    pub(super) rule: Option<&'a str>,
    pub(super) backends: Vec<Backend<'a>>,
    /// Set if no backend will be asked.
    pub(super) answered: Option<Expectation>,
    /// A fault that answers before all else.
    pub(super) abort: Option<&'a FaultAbort>,
    /// The head that policies are about, where that is not the one that was asked about.
    pub(super) changed: Option<request::Parts>,
}

/// Where a share of the requests goes.
pub(super) struct Backend<'a> {
    pub(super) kind: BackendKind<'a>,
    pub(super) weight: Option<u32>,
}

/// What takes a share.
pub(super) enum BackendKind<'a> {
    /// A service's endpoints.
    Service {
        service: &'a Arc<Service>,
        port: u16,
        subset: Option<&'a str>,
    },
    /// The dialled address itself.
    Address(SocketAddr),
    /// 500 for its share, and why.
    Invalid(String),
}

pub(super) fn walk<'a>(inquiry: &Inquiry<'a>) -> Routing<'a> {
    let (snapshot, dialled) = (inquiry.snapshot, inquiry.dialled);
    let is_pod = snapshot.workload_at(dialled.ip()).is_some();
    let service = (!is_pod)
        .then(|| snapshot.service_at(dialled.ip(), &inquiry.client.namespace))
        .flatten();
    let layer7 = service.and_then(|found| snapshot.services_layer7.get(&found.key));
    let port = layer7.and_then(|found| found.ports.get(&dialled.port()));
    let mut routing = Routing {
        service,
        layer7,
        is_http: port
            .is_some_and(|port| port.protocol.is_http() || port.protocol == AppProtocol::Detect),
        waypoint: waypoint_step(inquiry, is_pod, service, layer7, port),
        route: None,
        is_taken: true,
        rule: None,
        backends: vec![
            foreign_backend(inquiry, service).unwrap_or_else(|| own_backend(service, dialled)),
        ],
        answered: None,
        abort: None,
        changed: None,
    };
    match port.map(|port| port.routes_for(&inquiry.client.namespace)) {
        Some(PortRoutes::Http(table)) if routing.is_http => {
            match route::http::select(table, &inquiry.head()) {
                Some(entry) => {
                    follow(&mut routing, inquiry, entry);
                    let client = &inquiry.client.namespace;
                    if port.is_some_and(|port| port.has_consumer_routes(client)) {
                        routing.changed = changed(inquiry, entry);
                    }
                }
                None => nothing_matches(&mut routing, table.is_grpc),
            }
        }
        Some(PortRoutes::Tcp(backends)) => {
            routing.backends = backends
                .iter()
                .map(|backend| weighted(snapshot, backend))
                .collect();
            routing.route = Some(RouteStep {
                origin: Some("TCPRoute or TLSRoute".to_owned()),
                rule: None,
                matched: Some("every connection".to_owned()),
                filters: Vec::new(),
                outcome: "spread by weight".to_owned(),
            });
        }
        Some(PortRoutes::Http(_) | PortRoutes::None) if routing.is_http => {
            routing.route = Some(RouteStep {
                origin: None,
                rule: None,
                matched: None,
                filters: Vec::new(),
                outcome: "no route is attached: the service's own endpoints answer".to_owned(),
            });
        }
        Some(PortRoutes::Http(_) | PortRoutes::None) | None => {}
    }
    if routing.answered.is_none() {
        routing.answered = unreachable(inquiry, &routing);
    }
    routing
}

/// The waypoint of another controller, which takes the connection whole.
fn foreign_backend<'a>(
    inquiry: &Inquiry<'a>,
    service: Option<&'a Arc<Service>>,
) -> Option<Backend<'a>> {
    let reference = foreign(service)?;
    let service = inquiry.snapshot.services.get(&reference.destination)?;
    Some(Backend {
        kind: BackendKind::Service {
            service,
            port: reference.hbone_port,
            subset: None,
        },
        weight: None,
    })
}

fn foreign(service: Option<&Arc<Service>>) -> Option<&WaypointReference> {
    let reference = service?.waypoint.as_ref();
    reference.filter(|reference| reference.is_foreign)
}

fn own_backend(service: Option<&Arc<Service>>, dialled: SocketAddr) -> Backend<'_> {
    Backend {
        kind: match service {
            Some(service) => BackendKind::Service {
                service,
                port: dialled.port(),
                subset: None,
            },
            None => BackendKind::Address(dialled),
        },
        weight: None,
    }
}

fn waypoint_step(
    inquiry: &Inquiry<'_>,
    is_pod: bool,
    service: Option<&Arc<Service>>,
    layer7: Option<&Arc<ServiceLayer7>>,
    port: Option<&Arc<PortLayer7>>,
) -> WaypointStep {
    let protocol = port.map(|port| wording::protocol(port.protocol).to_owned());
    let step = |name: Option<String>, why: String| WaypointStep {
        name,
        protocol: protocol.clone(),
        why,
    };
    if is_pod {
        let pod = inquiry.snapshot.workload_at(inquiry.dialled.ip());
        let own = pod.and_then(|pod| inquiry.snapshot.workloads_layer7.get(&pod.uid));
        return match own {
            Some(own) => step(
                Some(own.waypoint.to_string()),
                "a pod was dialled that is bound to this waypoint: its node judges requests, nobody routes them"
                    .to_owned(),
            ),
            None => step(
                None,
                "a pod's own address was dialled, and the pod is bound to no waypoint: layer 4 only"
                    .to_owned(),
            ),
        };
    }
    let Some(service) = service else {
        return step(
            None,
            "no service of the mesh was dialled: layer 4 only".to_owned(),
        );
    };
    if let Some(waypoint) = foreign(Some(service)) {
        return step(
            Some(waypoint.destination.to_string()),
            "bound to a waypoint of another controller: connections go to it whole, and it decides what becomes of them"
                .to_owned(),
        );
    }
    let Some(layer7) = layer7 else {
        return step(
            None,
            format!(
                "{} is bound to no waypoint (label istio.io/use-waypoint on it or its namespace): layer 4 only",
                service.key
            ),
        );
    };
    let name = Some(layer7.waypoint.to_string());
    let step = |name, why: String| match &layer7.canary {
        Some(canary) => {
            let (weight, other) = (canary.weight, &canary.layer7.waypoint);
            let canary =
                format!("{weight} of a hundred connections go through canary {other} instead");
            step(name, format!("{why}; {canary}"))
        }
        None => step(name, why),
    };
    match port.map(|port| port.protocol) {
        None => step(name, format!("bound, but the service has no port {}", inquiry.dialled.port())),
        Some(AppProtocol::Tcp | AppProtocol::Tls) => step(
            name,
            "bound, but the port speaks no HTTP: connections are carried as bytes".to_owned(),
        ),
        Some(AppProtocol::Detect) => step(
            name,
            "bound; the port declares no protocol, so the client's first bytes decide: HTTP is assumed here"
                .to_owned(),
        ),
        Some(AppProtocol::Http1 | AppProtocol::Http2) => step(
            name,
            "bound: the client's node does the waypoint's work".to_owned(),
        ),
    }
}

fn nothing_matches(routing: &mut Routing<'_>, is_grpc: bool) {
    routing.is_taken = false;
    routing.backends.clear();
    routing.route = Some(RouteStep {
        origin: None,
        rule: None,
        matched: None,
        filters: Vec::new(),
        outcome: "routes are attached, and none of them matches".to_owned(),
    });
    routing.answered = Some(if is_grpc {
        Expectation::answered(
            StatusCode::OK,
            "no GRPCRoute matches: grpc-status 12, unimplemented",
        )
    } else {
        Expectation::answered(StatusCode::NOT_FOUND, "no route matches")
    });
}

/// What the rule of a consumer route makes of a request that it forwards: that is what the client asks for. A backend's own
/// filters count if there is no other.
fn changed(inquiry: &Inquiry<'_>, entry: &HttpRouteEntry) -> Option<request::Parts> {
    let HttpAction::Forward(backends) = &entry.rule.action else {
        return None;
    };
    let only = backends.first().filter(|_first| backends.len() == 1);
    let filters = Filters {
        matched: &entry.matches,
        rule: &entry.rule,
        backend: only.map(|backend| &backend.request_headers),
        is_shadow: false,
    };
    let target = match inquiry.query {
        Some(query) => format!("{}?{query}", inquiry.path),
        None => inquiry.path.clone(),
    };
    let request = Request::builder().method(inquiry.method).uri(target);
    let (mut parts, ()) = request.body(()).ok()?.into_parts();
    parts.headers = inquiry.headers.clone();
    let authority = HeaderValue::from_str(&inquiry.authority).ok()?;
    drop(parts.headers.insert(HOST, authority));
    filters.apply(&mut parts).ok()?;
    Some(parts)
}

fn follow<'a>(routing: &mut Routing<'a>, inquiry: &Inquiry<'a>, entry: &'a HttpRouteEntry) {
    let rule = &*entry.rule;
    routing.is_taken = rule.is_usable;
    routing.rule = Some(&*rule.name);
    routing.abort = rule.fault.as_ref().and_then(|fault| fault.abort.as_ref());
    let (outcome, answered) = match &rule.action {
        _ if !rule.is_usable => (
            "the rule is invalid".to_owned(),
            Some(Expectation::answered(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the rule that matches is invalid: see the route's status",
            )),
        ),
        HttpAction::Forward(backends) => {
            routing.backends = backends
                .iter()
                .map(|backend| weighted(inquiry.snapshot, backend))
                .collect();
            let total: u64 = backends
                .iter()
                .map(|backend| u64::from(backend.weight))
                .sum();
            let answered = (total == 0).then(|| {
                Expectation::answered(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the rule that matches has no backend with a weight",
                )
            });
            ("forwarded by weight".to_owned(), answered)
        }
        HttpAction::Redirect(redirect) => {
            let port = inquiry.dialled.port();
            let (status, location) =
                route::http::redirect(redirect, &entry.matches, &inquiry.head(), port);
            let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
            let outcome = format!("redirected to {location}");
            (
                outcome.clone(),
                Some(Expectation::answered(status, outcome)),
            )
        }
        HttpAction::Respond { status, .. } => {
            let outcome = "answered by the route itself".to_owned();
            (
                outcome.clone(),
                Some(Expectation::answered(*status, outcome)),
            )
        }
    };
    if answered.is_some() {
        routing.backends.clear();
    }
    routing.answered = answered;
    routing.route = Some(RouteStep {
        origin: Some(rule.origin.to_string()),
        rule: Some(rule.name.to_string()),
        matched: Some(wording::matched(&entry.matches)),
        filters: wording::filters(rule),
        outcome,
    });
}

fn weighted<'a>(snapshot: &'a Snapshot, backend: &'a WeightedBackend) -> Backend<'a> {
    let missing = |service: &NamespacedHostname| format!("there is no service {service}");
    let kind = match &backend.target {
        BackendTarget::Service {
            service,
            port,
            subset,
        } => match snapshot.services.get(service) {
            Some(found) => BackendKind::Service {
                service: found,
                port: *port,
                subset: subset.as_deref(),
            },
            None => BackendKind::Invalid(missing(service)),
        },
        BackendTarget::Invalid { why } => BackendKind::Invalid(why.to_string()),
    };
    Backend {
        kind,
        weight: Some(backend.weight),
    }
}

/// Whether it is the client who says which host it means (`resolution: DYNAMIC_DNS`).
pub(super) fn goes_by_name(service: &Service) -> bool {
    service.load_balancer.mode == LoadBalancerMode::ByName
}

/// The host that the request asks a wildcard for.
pub(super) fn name_asked_for(inquiry: &Inquiry<'_>, wildcard: &Service) -> Option<Name> {
    Name::asked_for(&wildcard.key.hostname, &inquiry.authority)
}

/// The plan for the dialled address, where no route chose others.
fn unreachable(inquiry: &Inquiry<'_>, routing: &Routing<'_>) -> Option<Expectation> {
    let is_own = matches!(routing.backends.as_slice(), [Backend { weight: None, .. }]);
    if !is_own {
        return None;
    }
    if let Some(service) = routing.service.filter(|service| goes_by_name(service)) {
        let asked = !routing.is_http || name_asked_for(inquiry, service).is_some();
        let why = || {
            format!(
                "{} does not stand for {}",
                service.key.hostname, inquiry.authority
            )
        };
        return (!asked).then(|| Expectation::answered(StatusCode::NOT_FOUND, why()));
    }
    let plan = route::plan(
        inquiry.snapshot,
        inquiry.client,
        inquiry.dialled,
        &mut |_bound| 0,
    );
    let refusal = plan.err()?;
    let why = refusal.to_string();
    Some(match refusal {
        Refusal::NoHealthyUpstream if routing.is_http => {
            Expectation::answered(StatusCode::SERVICE_UNAVAILABLE, why)
        }
        Refusal::NoHealthyUpstream
        | Refusal::NoSuchPort(_)
        | Refusal::NoBackend
        | Refusal::UnknownWaypoint
        | Refusal::OwnPort => Expectation::refused(format!("the connection is refused: {why}")),
    })
}
