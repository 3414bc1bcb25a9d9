//! Envoy as a plain relay of what iptables redirects to it.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Envoy, address};
use crate::lab::{Lab, Pod};

impl Envoy {
    /// The mark of the connections that a relay opens itself: they are not to be redirected.
    pub const RELAY_MARK: u32 = 1337;

    /// Takes redirected connections at `local` and relays each to where it was going.
    ///
    /// # Errors
    /// If Envoy is not installed or does not come up.
    pub fn relay(lab: &Lab, pod: &Pod, local: SocketAddr) -> Result<Self> {
        let config = format!(
            r#"{{"static_resources": {{
  "listeners": [{{"name": "redirected", "address": {local},
    "listener_filters": [{{"name": "envoy.filters.listener.original_dst", "typed_config": {{
      "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"}}}}],
    "filter_chains": [{{"filters": [{{"name": "envoy.filters.network.tcp_proxy", "typed_config": {{
      "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
      "stat_prefix": "relay", "cluster": "original"}}}}]}}]}}],
  "clusters": [{{"name": "original", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s",
    "circuit_breakers": {{"thresholds": [{{"max_connections": 1000000, "max_pending_requests": 1000000}}]}},
    "upstream_bind_config": {{"source_address": {{"address": "0.0.0.0", "port_value": 0}},
      "socket_options": [{{"level": 1, "name": 36, "int_value": {mark}, "state": "STATE_PREBIND"}}]}}}}]}}}}"#,
            local = address(local),
            mark = Self::RELAY_MARK,
        );
        Self::start_with(lab, pod, &config, local, 2)
    }
}
