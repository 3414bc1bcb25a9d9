//! The fields, one row each. A row goes when its field is acted on; `docs/compatibility.md` says the same.

use serde_json::Value;

use super::Row;
use crate::mesh::gateway::OUR_CLASSES;
use crate::mesh::object::Kind;
use crate::mesh::telemetry;

macro_rules! rows {
    ($($kind:ident $path:literal $(if $says:expr)?, $instead:literal;)*) => {
        &[$(Row {
            kind: Kind::$kind,
            path: $path,
            says: rows!(@ $($says)?),
            instead: concat!("is not acted on: ", $instead),
        }),*]
    };
    (@ $says:expr) => { Some($says) };
    (@) => { None };
}

pub(super) const ROWS: &[Row] = rows! {
    DestinationRule "spec.exportTo" if |_, to| !lists(to, "*"),
        "rules of a service's own namespace hold for every client";
    DestinationRule "spec.workloadSelector",
        "the rule holds for every client, not for those of some sidecars";
    DestinationRule "spec.trafficPolicy.tunnel",
        "connections take the mesh's own tunnels";
    DestinationRule "spec.trafficPolicy.loadBalancer.localityLbSetting.failover"
        if |rule, _| has_no_outlier_detection(rule),
        "nearer endpoints come first only with `outlierDetection`, which tells when they fail";
    DestinationRule "spec.trafficPolicy.loadBalancer.localityLbSetting.failoverPriority"
        if |rule, _| has_no_outlier_detection(rule),
        "nearer endpoints come first only with `outlierDetection`, which tells when they fail";
    DestinationRule "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive",
        "the tunnels watch their own connections";
    DestinationRule "spec.trafficPolicy.connectionPool.http.useClientProtocol",
        "what a port declares is spoken to it, and what the client speaks where it declares nothing";
    DestinationRule "spec.trafficPolicy.connectionPool.http.maxConcurrentStreams",
        "a connection carries up to 100 requests at once";
    DestinationRule "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes",
        "the cookie is made with its name, path and ttl";
    ServiceEntry "spec.exportTo" if is_narrowed,
        "the entry is visible to every namespace; only `.` keeps it to its own";
    VirtualService "spec.exportTo" if |_, to| !lists(to, "*"),
        "routes of a service's own namespace hold for every client";
    VirtualService "spec.gateways" if |_, gateways| !lists(gateways, "mesh"),
        "only `mesh` is routed here, so the whole object has no effect";
    VirtualService "spec.tls",
        "TLS is passed on as it is, to the service that was called";
    VirtualService "spec.http[].match[].sourceLabels",
        "the match holds for nobody";
    VirtualService "spec.http[].match[].sourceNamespace",
        "the match holds for nobody";
    VirtualService "spec.http[].match[].gateways" if |_, gateways| !lists(gateways, "mesh"),
        "the match holds for nobody within the mesh";
    VirtualService "spec.http[].match[].statPrefix",
        "requests are counted under Istio's standard names";
    VirtualService "spec.http[].retries.retryRemoteLocalities",
        "a retry goes where any request would";
    VirtualService "spec.tcp[].match[].destinationSubnets",
        "the match is by port only";
    VirtualService "spec.tcp[].match[].sourceLabels",
        "the match holds for nobody";
    VirtualService "spec.tcp[].match[].sourceNamespace",
        "the match holds for nobody";
    VirtualService "spec.tcp[].match[].gateways" if |_, gateways| !lists(gateways, "mesh"),
        "the match holds for nobody within the mesh";
    BackendTlsPolicy "spec.options",
        "no option is known here";
    MeshConfig "data.mesh.extensionProviders[].envoyExtAuthzGrpc.clearRouteCache",
        "the route is chosen at the client's node, before the authorizer is asked: route by what clients send";
    MeshConfig "data.mesh.extensionProviders[].envoyExtAuthzHttp.clearRouteCache",
        "the route is chosen at the client's node, before the authorizer is asked: route by what clients send";
    MeshConfig "data.mesh.extensionProviders[].zipkin",
        "traces are continued by B3 and no spans are sent: name a collector under `opentelemetry`";
    MeshConfig "data.mesh.extensionProviders[].datadog",
        "no spans are sent: name a collector under `opentelemetry`";
    MeshConfig "data.mesh.extensionProviders[].skywalking",
        "no spans are sent: name a collector under `opentelemetry`";
    MeshConfig "data.mesh.extensionProviders[].stackdriver",
        "no spans are sent: name a collector under `opentelemetry`";
    MeshConfig "data.mesh.extensionProviders[].lightstep",
        "no spans are sent: name a collector under `opentelemetry`";
    MeshConfig "data.mesh.extensionProviders[].opencensus",
        "no spans are sent: name a collector under `opentelemetry`";
    MeshConfig "data.mesh.extensionProviders[].envoyHttpAls",
        "no log is sent: what `envoyFileAccessLog` writes is in the agent's own log";
    MeshConfig "data.mesh.extensionProviders[].envoyTcpAls",
        "no log is sent: what `envoyFileAccessLog` writes is in the agent's own log";
    MeshConfig "data.mesh.extensionProviders[].envoyOtelAls",
        "no log is sent: what `envoyFileAccessLog` writes is in the agent's own log";
    MeshConfig "data.mesh.extensionProviders[].envoyFileAccessLog.path" if |_, path| path != "/dev/stdout",
        "lines go to the agent's own log";
    MeshConfig "data.mesh.extensionProviders[].envoyFileAccessLog.logFormat.text",
        "lines are Istio's default text";
    MeshConfig "data.mesh.extensionProviders[].envoyFileAccessLog.logFormat.labels",
        "lines are JSON with Istio's default keys";
    MeshConfig "data.mesh.outboundTrafficPolicy.mode" if |_, mode| mode == "REGISTRY_ONLY",
        "pods reach every host outside of the mesh: a NetworkPolicy closes that";
    MeshConfig "data.mesh.discoverySelectors",
        "every namespace is looked at; who is captured is said by labels";
    MeshConfig "data.mesh.meshMTLS.cipherSuites",
        "tunnels are of TLS 1.3, with the suites of its library";
    MeshConfig "data.mesh.meshMTLS.ecdhCurves",
        "keys are exchanged as the TLS library prefers it";
    MeshConfig "data.mesh.serviceEntryVisibility",
        "an entry's own `exportTo` says who sees it, and every namespace does where it says nothing";
    MeshConfig "data.mesh.defaultServiceExportTo" if |_, to| !lists(to, "*"),
        "a Service is visible to every namespace";
    MeshConfig "data.mesh.accessLogFile" if |_, path| path != "/dev/stdout",
        "lines go to the agent's own log";
    MeshConfig "data.mesh.accessLogFormat",
        "lines are Istio's default text, or JSON with its default keys if accessLogEncoding says so";
    Telemetry "spec.metrics[].overrides[].tagOverrides.*.value" if |_, value| !is_quoted(value),
        "only a quoted text becomes a label: of what is computed from requests, peers could make as many as they like";
    Telemetry "spec.selector",
        "it selects sidecars; name a Service or a Gateway in targetRefs";
    Telemetry "spec.metrics[].reportingInterval",
        "metrics are up to date whenever they are read";
    RequestAuthentication "spec.selector",
        "layer 4 sees no tokens; name a Service or a Gateway in targetRefs";
    Pod "metadata.annotations" if |_, all| all.get("istio.io/reroute-virtual-interfaces").is_some(),
        "of `istio.io/reroute-virtual-interfaces`; what a virtual machine in the pod sends goes where it sends it, outside of the mesh";
    PeerAuthentication "spec.mtls.mode" if |_, mode| mode == "DISABLE",
        "it is taken for PERMISSIVE, clients of the mesh always come encrypted";
    PeerAuthentication "spec.portLevelMtls.*.mode" if |_, mode| mode == "DISABLE",
        "it is taken for PERMISSIVE, clients of the mesh always come encrypted";
    AuthorizationPolicy "spec.rules[].when[].key" if |_, key| is_unanswerable(key),
        "nothing here knows it, so an ALLOW rule with it never matches, and a DENY rule matches as if it were fulfilled";
    Gateway "spec.addresses" if |gateway, _| is_ours(gateway),
        "a waypoint is in every node's agent and needs no address of its own";
    Gateway "spec.infrastructure" if |gateway, _| is_ours(gateway),
        "nothing is generated for a waypoint";
    Gateway "spec.allowedListeners" if |gateway, _| is_ours(gateway),
        "a waypoint has its own listener only";
    Gateway "spec.tls" if |gateway, _| is_ours(gateway),
        "the mesh's own identities are used";
    Gateway "spec.listeners[].tls" if |gateway, _| is_ours(gateway),
        "the mesh's own identities are used";
    Gateway "spec.listeners[].hostname" if |gateway, _| is_ours(gateway),
        "a waypoint is for the services that are bound to it, whatever their names";
    Gateway "spec.listeners[].allowedRoutes.kinds" if |gateway, _| is_ours(gateway),
        "routes are attached to services, not to a waypoint";
};

fn lists(list: &Value, word: &str) -> bool {
    let items = list.as_array();
    items.is_some_and(|items| items.iter().any(|item| item == word))
}

/// Whether a list of scopes is neither everybody nor the object's own namespace.
fn is_narrowed(object: &Value, scopes: &Value) -> bool {
    let own = object.pointer("/metadata/namespace");
    let is_own = |scope: &Value| scope == "." || Some(scope) == own;
    let is_private = scopes
        .as_array()
        .is_some_and(|scopes| scopes.iter().all(is_own));
    !lists(scopes, "*") && !is_private
}

fn has_no_outlier_detection(rule: &Value) -> bool {
    let detection = rule.pointer("/spec/trafficPolicy/outlierDetection");
    detection.is_none_or(Value::is_null)
}

fn is_unanswerable(key: &Value) -> bool {
    let key = key.as_str().unwrap_or_default();
    key == "connection.sni" || key.starts_with("experimental.")
}

fn is_quoted(expression: &Value) -> bool {
    expression
        .as_str()
        .is_some_and(|text| telemetry::constant(text).is_some())
}

fn is_ours(gateway: &Value) -> bool {
    let class = gateway.pointer("/spec/gatewayClassName");
    let class = class.and_then(Value::as_str);
    class.is_some_and(|class| OUR_CLASSES.contains(&class))
}
