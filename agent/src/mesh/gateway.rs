//! Gateways, as far as binding a service or a workload to a waypoint needs them.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use serde::Deserialize;
use serde_json::Value;
use userspace_l7::model::{ApplicationTunnel, ServiceAccountMatch};

use super::field::{Faults, FieldPath, at};
use super::meta::Meta;
use super::selector::WorkloadSelector;
use super::syntax::{is_dns_label, is_dns_name};

/// Service accounts (`namespace/name`, separated by commas) of clients that are believed about `x-forwarded-for` (ours).
const FORWARDERS: &str = "culvert.dev/trust-forwarded-for";

/// On a Gateway or its class: how a waypoint of another controller is handed what comes for others (Istio): `PROXY` with a
/// header of that protocol, `NONE` without, each with `/<port>` where one port takes all.
const INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";

/// A Gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// What it says.
    pub spec: GatewaySpec,
    /// Where a control plane says that it can be reached (`status.addresses`).
    pub reachable_at: Vec<GatewayAddress>,
}

/// One of a Gateway's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayAddress {
    /// A DNS name.
    Hostname(String),
    /// An IP address, or something else that is not understood here.
    Other(String),
}

/// A GatewayClass.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayClass {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// What it says.
    pub spec: GatewayClassSpec,
}

/// `spec` of a GatewayClass.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayClassSpec {
    /// Who implements it.
    #[serde(default)]
    pub controller_name: String,
    /// For people.
    pub description: Option<String>,
    /// Settings of the implementation.
    pub parameters_ref: Option<Value>,
}

/// `spec` of a Gateway. Fields that only an ingress would use are kept as they are.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpec {
    /// Who implements it.
    #[serde(default)]
    pub gateway_class_name: String,
    /// What it listens on.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// Addresses asked for.
    #[serde(default)]
    pub addresses: Vec<Value>,
    /// What generated objects shall carry.
    pub infrastructure: Option<Value>,
    /// Who may attach listeners.
    pub allowed_listeners: Option<Value>,
    /// TLS towards backends.
    #[serde(alias = "backendTLS")]
    pub tls: Option<Value>,
    /// Scope of the gateway.
    pub default_scope: Option<Value>,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Name.
    pub name: String,
    /// Host it is about.
    pub hostname: Option<String>,
    /// Port.
    pub port: i64,
    /// HTTP, HTTPS, HBONE, …
    pub protocol: String,
    /// TLS settings.
    pub tls: Option<Value>,
    /// Whose routes and bindings it takes.
    pub allowed_routes: Option<AllowedRoutes>,
}

/// `allowedRoutes`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
pub struct AllowedRoutes {
    /// From which namespaces.
    pub namespaces: Option<RouteNamespaces>,
    /// Of which kinds; a waypoint ignores it.
    #[serde(default)]
    pub kinds: Vec<Value>,
}

/// `allowedRoutes.namespaces`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
pub struct RouteNamespaces {
    /// All, Same or Selector.
    #[serde(default)]
    pub from: NamespaceScope,
    /// Labels of the namespaces, for Selector.
    pub selector: Option<NamespaceSelector>,
}

/// `allowedRoutes.namespaces.from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
pub enum NamespaceScope {
    /// The Gateway's own.
    #[default]
    Same,
    /// Every namespace.
    All,
    /// Those with the labels.
    Selector,
    /// No namespace.
    None,
}

/// A Kubernetes label selector.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespaceSelector {
    /// All of these pairs.
    pub match_labels: BTreeMap<String, String>,
    /// And all of these expressions.
    pub match_expressions: Vec<LabelExpression>,
}

/// One expression of a label selector.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LabelExpression {
    /// The label.
    pub key: String,
    /// How it is judged.
    pub operator: LabelOperator,
    /// By these.
    #[serde(default)]
    pub values: Vec<String>,
}

/// How a label is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "Kubernetes' own operators, by their own names")]
pub enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// Classes of the waypoints that the node agents are: what Istio needs a pod for, and our own name for it.
pub(crate) const OUR_CLASSES: [&str; 2] = ["istio-waypoint", "culvert-waypoint"];
/// Who is the controller of such a class: Istio's name for it, and our own.
const OUR_CONTROLLERS: [&str; 2] = ["istio.io/mesh-controller", "culvert.dev/mesh-controller"];
/// A waypoint's own listener.
const HBONE_PORT: i64 = 15008;
/// Protocol of the listener of one that reads headers (Istio).
const PROXY_PROTOCOL: &str = "istio.io/PROXY";
/// Says which traffic a waypoint, or all of a class, takes.
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
const REVISION: &str = "istio.io/rev";
/// What an object without that label is for.
const DEFAULT_REVISION: &str = "default";

impl GatewayClass {
    /// Whether it is one of waypoints that the node agents are, and of no other controller.
    pub(crate) fn is_ours(&self) -> bool {
        OUR_CLASSES.contains(&&*self.meta.name.name)
            && OUR_CONTROLLERS.contains(&self.spec.controller_name.as_str())
    }
}

impl Listener {
    /// Whether it is a waypoint's.
    pub(crate) fn is_waypoints(&self) -> bool {
        self.protocol == "HBONE" && self.port == HBONE_PORT
    }
}

impl Gateway {
    pub(crate) fn check(&self, faults: &mut Faults) {
        if let Some(named) = self.meta.annotations.get(FORWARDERS) {
            for one in named.split(',').filter(|one| read_account(one).is_none()) {
                let problem = format!("`{one}` is no service account: write namespace/name");
                faults.add(at!["metadata", "annotations", FORWARDERS], problem);
            }
        }
        if let Some(text) = self.meta.annotations.get(INBOUND_BINDING)
            && read_binding(text).is_none()
        {
            let problem =
                format!("`{text}` is no binding: write PROXY, NONE, PROXY/<port> or NONE/<port>");
            faults.add(at!["metadata", "annotations", INBOUND_BINDING], problem);
        }
        if self.spec.gateway_class_name.is_empty() {
            faults.add(
                at!["spec", "gatewayClassName"],
                "is missing: name a class such as istio-waypoint",
            );
        }
        for (index, listener) in self.spec.listeners.iter().enumerate() {
            let place = at!["spec", "listeners", index];
            if !(1..=65535).contains(&listener.port) {
                let problem = format!("{} is not a port: use 1 to 65535", listener.port);
                faults.add(place.join("port"), problem);
            }
            let namespaces = listener
                .allowed_routes
                .as_ref()
                .and_then(|one| one.namespaces.as_ref());
            if let Some(selector) = namespaces.and_then(|one| one.selector.as_ref()) {
                let place = place
                    .join("allowedRoutes")
                    .join("namespaces")
                    .join("selector");
                selector.check(&place, faults);
            }
        }
    }

    /// Clients that are believed when they say whom they forward a request for.
    pub(crate) fn forwarders(&self) -> Vec<ServiceAccountMatch> {
        let named = self.meta.annotations.get(FORWARDERS).unwrap_or_default();
        named.split(',').filter_map(read_account).collect()
    }

    /// Whether the node agents are this waypoint: of a class of theirs, and not left to a control plane of another
    /// revision than these.
    pub(crate) fn is_ours(&self, revisions: &[String]) -> bool {
        let own = self.revision();
        self.is_of_our_class() && revisions.iter().any(|revision| revision == own)
    }

    /// Whether its class is one of the node agents', whatever its revision.
    pub(crate) fn is_of_our_class(&self) -> bool {
        OUR_CLASSES.contains(&self.spec.gateway_class_name.as_str())
    }

    /// Which control plane it is for.
    pub(crate) fn revision(&self) -> &str {
        self.meta.labels.get(REVISION).unwrap_or(DEFAULT_REVISION)
    }

    /// Whether services and workloads can be bound to it. Ours is ready as soon as it is there: its
    /// controller are the agents. Any other, whatever its class, once somebody gave it an address (Istio).
    pub(crate) fn is_ready(&self, revisions: &[String]) -> bool {
        self.is_ours(revisions) || !self.reachable_at.is_empty()
    }

    /// The name that a control plane says it can be reached by.
    pub(crate) fn hostname(&self) -> Option<&str> {
        self.reachable_at.iter().find_map(|address| match address {
            GatewayAddress::Hostname(name) => Some(name.as_str()),
            GatewayAddress::Other(_) => None,
        })
    }

    /// `istio.io/waypoint-for` of the Gateway, else of its class, else `service`.
    pub(crate) fn traffic<'a>(&'a self, class: Option<&'a GatewayClass>) -> &'a str {
        let own = self.meta.labels.get(WAYPOINT_FOR);
        own.or_else(|| class?.meta.labels.get(WAYPOINT_FOR))
            .unwrap_or("service")
    }

    /// How its pods take connections for others, if they do not speak HBONE.
    pub(crate) fn inbound_binding(
        &self,
        class: Option<&GatewayClass>,
        revisions: &[String],
    ) -> Option<ApplicationTunnel> {
        let own = self.meta.annotations.get(INBOUND_BINDING);
        let text = own.or_else(|| class?.meta.annotations.get(INBOUND_BINDING))?;
        read_binding(text).filter(|_| !self.is_ours(revisions))
    }

    /// The listener that takes what comes for others.
    fn inbound_listener(
        &self,
        class: Option<&GatewayClass>,
        revisions: &[String],
    ) -> Option<&Listener> {
        let bound = |one: &&Listener| match self.inbound_binding(class, revisions) {
            None => false,
            Some(ApplicationTunnel {
                port: Some(port), ..
            }) => one.port == i64::from(port.get()),
            Some(ApplicationTunnel { has_header, .. }) => {
                has_header && one.protocol == PROXY_PROTOCOL
            }
        };
        let listeners = &self.spec.listeners;
        let usual = || listeners.iter().find(|one| one.is_waypoints());
        listeners.iter().find(bound).or_else(usual)
    }

    /// Whether objects of a namespace with these labels may bind to it (Istio reads `allowedRoutes` of the listener that
    /// takes what comes for them).
    pub(crate) fn accepts(
        &self,
        class: Option<&GatewayClass>,
        revisions: &[String],
        (namespace, meta): (&str, Option<&Meta>),
    ) -> bool {
        let own = &*self.meta.name.namespace == namespace;
        let listener = self.inbound_listener(class, revisions);
        let routes = listener.and_then(|one| one.allowed_routes.as_ref());
        let Some(allowed) = routes.and_then(|routes| routes.namespaces.as_ref()) else {
            return own;
        };
        match allowed.from {
            NamespaceScope::Same => own,
            NamespaceScope::All => true,
            NamespaceScope::None => false,
            NamespaceScope::Selector => match (&allowed.selector, meta) {
                (Some(selector), Some(meta)) => selector.selects(meta),
                _ => false,
            },
        }
    }
}

fn read_binding(text: &str) -> Option<ApplicationTunnel> {
    let (protocol, port) = match text.split_once('/') {
        Some((protocol, port)) => (protocol, Some(port.parse::<NonZeroU16>().ok()?)),
        None => (text, None),
    };
    let has_header = match protocol {
        "PROXY" => true,
        "NONE" => false,
        _ => return None,
    };
    Some(ApplicationTunnel { has_header, port })
}

/// `namespace/name`.
fn read_account(text: &str) -> Option<ServiceAccountMatch> {
    let (namespace, service_account) = text.trim().split_once('/')?;
    let is_sound = is_dns_label(namespace) && is_dns_name(service_account);
    is_sound.then(|| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: service_account.into(),
    })
}

impl NamespaceSelector {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        let pairs = WorkloadSelector {
            match_labels: self.match_labels.clone(),
        };
        pairs.check(&place.join("matchLabels"), faults);
        for (index, one) in self.match_expressions.iter().enumerate() {
            let wants_values = matches!(one.operator, LabelOperator::In | LabelOperator::NotIn);
            if wants_values == one.values.is_empty() {
                let rule = "In and NotIn need values, Exists and DoesNotExist take none";
                faults.add(
                    place.join("matchExpressions").join(index).join("values"),
                    rule,
                );
            }
        }
    }

    fn selects(&self, meta: &Meta) -> bool {
        let pairs = |(key, value): (&String, &String)| meta.labels.get(key) == Some(value);
        let expression = |one: &LabelExpression| {
            let value = meta.labels.get(&one.key);
            let listed = value.is_some_and(|value| one.values.iter().any(|other| other == value));
            match one.operator {
                LabelOperator::In => listed,
                LabelOperator::NotIn => !listed,
                LabelOperator::Exists => value.is_some(),
                LabelOperator::DoesNotExist => value.is_none(),
            }
        };
        self.match_labels.iter().all(pairs) && self.match_expressions.iter().all(expression)
    }
}
