//! An Envoy that is the waypoint of one service with one endpoint: what Istio's waypoints do, by hand.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Envoy, address, issue, tls};
use crate::lab::{Lab, Pod};

/// A service and the endpoint behind it.
#[derive(Clone, Copy, Debug)]
pub struct Fronted<'a> {
    /// What clients dial.
    pub service: SocketAddr,
    /// The endpoint's own address and port.
    pub endpoint: SocketAddr,
    /// What the endpoint proves to be.
    pub identity: &'a str,
}

impl Envoy {
    /// A waypoint in a pod: takes HBONE from the identity `client` for the service's address, tells requests that
    /// they came through (`x-waypoint: envoy`), and carries them to the endpoint in HBONE as itself.
    ///
    /// # Errors
    /// If Envoy is not installed or does not come up.
    pub fn waypoint(lab: &Lab, pod: &Pod, client: &str, fronted: Fronted<'_>) -> Result<Self> {
        let svid = issue(lab, &pod.identity())?;
        let required = "\"require_client_certificate\": true,";
        let downstream = tls("Downstream", &svid, client, required);
        let upstream = tls("Upstream", &svid, fronted.identity, "\"sni\": \"\",");
        let hbone = SocketAddr::new(pod.v4(), 15008);
        let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let router = r#"{"name": "envoy.filters.http.router", "typed_config": {
          "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}"#;
        let inner = |name: &str| {
            format!(
                r#"{{"name": "{name}", "type": "STATIC", "connect_timeout": "5s",
    "load_assignment": {{"cluster_name": "{name}", "endpoints": [{{"lb_endpoints": [{{
      "endpoint": {{"address": {{"envoy_internal_address": {{"server_listener_name": "{name}"}}}}}}}}]}}]}}}}"#
            )
        };
        let config = format!(
            r#"{{
"bootstrap_extensions": [{{"name": "envoy.bootstrap.internal_listener", "typed_config": {{
  "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"}}}}],
"static_resources": {{"listeners": [
  {{"name": "terminate", "address": {hbone}, "filter_chains": [{{"transport_socket": {downstream},
    "filters": [{{"name": "envoy.filters.network.http_connection_manager", "typed_config": {{
      "@type": "{manager}", "stat_prefix": "terminate", "codec_type": "HTTP2",
      "http2_protocol_options": {{"allow_connect": true}},
      "upgrade_configs": [{{"upgrade_type": "CONNECT"}}],
      "http_filters": [{router}],
      "route_config": {{"virtual_hosts": [{{"name": "service", "domains": ["{service}"], "routes": [{{
        "match": {{"connect_matcher": {{}}}},
        "route": {{"cluster": "main", "timeout": "0s",
          "upgrade_configs": [{{"upgrade_type": "CONNECT", "connect_config": {{}}}}]}}}}]}}]}}}}}}]}}]}},
  {{"name": "main", "internal_listener": {{}}, "filter_chains": [{{
    "filters": [{{"name": "envoy.filters.network.http_connection_manager", "typed_config": {{
      "@type": "{manager}", "stat_prefix": "main", "codec_type": "AUTO",
      "http_filters": [{router}],
      "route_config": {{
        "request_headers_to_add": [{{"header": {{"key": "x-waypoint", "value": "envoy"}}}}],
        "virtual_hosts": [{{"name": "all", "domains": ["*"], "routes": [{{
          "match": {{"prefix": "/"}}, "route": {{"cluster": "originate", "timeout": "0s"}}}}]}}]}}}}}}]}}]}},
  {{"name": "originate", "internal_listener": {{}}, "filter_chains": [{{"filters": [{{
    "name": "envoy.filters.network.tcp_proxy", "typed_config": {{
      "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
      "stat_prefix": "originate", "cluster": "endpoint",
      "tunneling_config": {{"hostname": "{endpoint}"}}}}}}]}}]}}],
"clusters": [{main}, {originate},
  {{"name": "endpoint", "type": "STATIC", "connect_timeout": "5s",
    "typed_extension_protocol_options": {{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {{
      "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
      "explicit_http_config": {{"http2_protocol_options": {{"allow_connect": true}}}}}}}},
    "load_assignment": {{"cluster_name": "endpoint", "endpoints": [{{"lb_endpoints": [{{
      "endpoint": {{"address": {tunnel}}}}}]}}]}},
    "transport_socket": {upstream}}}]}}}}"#,
            hbone = address(hbone),
            service = fronted.service,
            endpoint = fronted.endpoint,
            main = inner("main"),
            originate = inner("originate"),
            tunnel = address(SocketAddr::new(fronted.endpoint.ip(), 15008)),
        );
        Self::start(lab, pod, &config, hbone)
    }
}
