//! Two Envoys that do a mesh's layer 7 between them: one routes at the client, the other authorizes at the server.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Envoy, address, issue, tls};
use crate::lab::{Lab, Pod};

/// Where the server's Envoy takes requests for its first backend; the next ports are for the others.
const FIRST_PORT: u16 = 15_101;

impl Envoy {
    /// The client's half: takes plain HTTP at `local`, and splits requests by weight among the backends of the server's
    /// half in the pod `far`, over mutual TLS and HTTP/2.
    ///
    /// # Errors
    /// If Envoy is not installed or does not come up.
    pub fn router(
        lab: &Lab,
        pod: &Pod,
        local: SocketAddr,
        far: &Pod,
        (weights, workers): (&[u32], usize),
    ) -> Result<Self> {
        let tls = tls(
            "Upstream",
            &issue(lab, &pod.identity())?,
            &far.identity(),
            "\"sni\": \"\",",
        );
        let (mut shares, mut clusters) = (Vec::new(), Vec::new());
        for (port, weight) in (FIRST_PORT..).zip(weights) {
            shares.push(format!(r#"{{"name": "b{port}", "weight": {weight}}}"#));
            clusters.push(format!(
                r#"{{"name": "b{port}", "type": "STATIC", "connect_timeout": "5s", "lb_policy": "LEAST_REQUEST",
    "typed_extension_protocol_options": {{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {{
      "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
      "explicit_http_config": {{"http2_protocol_options": {{}}}}}}}},
    "load_assignment": {{"cluster_name": "b{port}", "endpoints": [{{"lb_endpoints": [{{
      "endpoint": {{"address": {far}}}}}]}}]}},
    "transport_socket": {tls}}}"#,
                far = address(SocketAddr::new(far.v4(), port)),
            ));
        }
        let route = format!(
            r#"{{"match": {{"prefix": "/"}}, "route": {{"timeout": "0s", "weighted_clusters": {{"clusters": [{}]}},
      "retry_policy": {{"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2}}}}}}"#,
            shares.join(", ")
        );
        let listener = http_listener(local, "", "AUTO", "", &route);
        let config = format!(
            r#"{{"static_resources": {{"listeners": [{listener}], "clusters": [{}]}}}}"#,
            clusters.join(",\n")
        );
        Self::start_with(lab, pod, &config, local, workers)
    }

    /// The server's half: takes requests from the identity `client` over mutual TLS, lets only GET pass, and hands
    /// them to the backends in plain HTTP.
    ///
    /// # Errors
    /// If Envoy is not installed or does not come up.
    pub fn authorizer(
        lab: &Lab,
        pod: &Pod,
        client: &str,
        (backends, workers): (&[SocketAddr], usize),
    ) -> Result<Self> {
        let required = "\"require_client_certificate\": true,";
        let tls = tls(
            "Downstream",
            &issue(lab, &pod.identity())?,
            client,
            required,
        );
        let authorize = format!(
            r#"{{"name": "envoy.filters.http.rbac", "typed_config": {{
      "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
      "rules": {{"action": "ALLOW", "policies": {{"client-gets": {{
        "permissions": [{{"header": {{"name": ":method", "string_match": {{"exact": "GET"}}}}}}],
        "principals": [{{"authenticated": {{"principal_name": {{"exact": "{client}"}}}}}}]}}}}}}}}}},"#
        );
        let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
        for (port, backend) in (FIRST_PORT..).zip(backends) {
            let at = SocketAddr::new(pod.v4(), port);
            let tls = format!(r#""transport_socket": {tls},"#);
            let route = format!(
                r#"{{"match": {{"prefix": "/"}}, "route": {{"timeout": "0s", "cluster": "b{port}"}}}}"#
            );
            listeners.push(http_listener(at, &tls, "HTTP2", &authorize, &route));
            clusters.push(format!(
                r#"{{"name": "b{port}", "type": "STATIC", "connect_timeout": "5s",
    "load_assignment": {{"cluster_name": "b{port}", "endpoints": [{{"lb_endpoints": [{{
      "endpoint": {{"address": {backend}}}}}]}}]}}}}"#,
                backend = address(*backend),
            ));
        }
        let config = format!(
            r#"{{"static_resources": {{"listeners": [{}], "clusters": [{}]}}}}"#,
            listeners.join(",\n"),
            clusters.join(",\n")
        );
        Self::start_with(
            lab,
            pod,
            &config,
            SocketAddr::new(pod.v4(), FIRST_PORT),
            workers,
        )
    }
}

/// A listener of HTTP with one route for everything; `tls` and `filters` end with a comma or are empty.
pub(super) fn http_listener(
    at: SocketAddr,
    tls: &str,
    codec: &str,
    filters: &str,
    route: &str,
) -> String {
    format!(
        r#"{{"name": "p{port}", "address": {at}, "filter_chains": [{{{tls}
  "filters": [{{"name": "envoy.filters.network.http_connection_manager", "typed_config": {{
    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "stat_prefix": "p{port}", "codec_type": "{codec}",
    "http_filters": [{filters} {{"name": "envoy.filters.http.router", "typed_config": {{
      "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}}}],
    "route_config": {{"virtual_hosts": [{{"name": "all", "domains": ["*"], "routes": [{route}]}}]}}}}}}]}}]}}"#,
        port = at.port(),
        at = address(at),
    )
}
