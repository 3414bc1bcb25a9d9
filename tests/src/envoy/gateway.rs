//! Envoy as an ingress gateway: takes what comes from outside of the cluster, and calls services as any pod does.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use super::pair::http_listener;
use super::{Envoy, address};
use crate::lab::{Lab, Pod};

/// Where a gateway takes what, and for which service.
#[derive(Clone, Copy, Debug)]
pub struct Doors<'a> {
    /// Plain requests at this port.
    pub plain: u16,
    /// Requests inside of TLS that ends here.
    pub terminated: u16,
    /// Bytes of TLS that ends elsewhere.
    pub passed: u16,
    /// Where requests go.
    pub requests: SocketAddr,
    /// Where bytes go.
    pub bytes: SocketAddr,
    /// Certificate and key of the door where TLS ends, PEM.
    pub certificate: (&'a str, &'a str),
}

impl Envoy {
    /// A gateway in a pod, which says in `x-forwarded-for` whom a request is from.
    ///
    /// # Errors
    /// If Envoy is not installed or does not come up.
    pub fn gateway(lab: &Lab, pod: &Pod, doors: Doors<'_>) -> Result<Self> {
        let file = |kind: &str, text: &str| -> Result<String> {
            let path = lab.directory().join(format!("gateway-{kind}.pem"));
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path.display().to_string())
        };
        let (chain, key) = doors.certificate;
        let tls = format!(
            r#""transport_socket": {{"name": "envoy.transport_sockets.tls", "typed_config": {{
  "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
  "common_tls_context": {{"tls_certificates": [{{
    "certificate_chain": {{"filename": "{}"}}, "private_key": {{"filename": "{}"}}}}]}}}}}},"#,
            file("chain", chain)?,
            file("key", key)?,
        );
        let at = |port| SocketAddr::new(pod.v4(), port);
        let route =
            r#"{"match": {"prefix": "/"}, "route": {"cluster": "requests", "timeout": "0s"}}"#;
        let plain = http_listener(at(doors.plain), "", "AUTO", "", route);
        let terminated = http_listener(at(doors.terminated), &tls, "AUTO", "", route);
        let listeners = [plain, terminated].map(|listener| {
            let manager = r#""stat_prefix""#;
            listener.replacen(manager, r#""use_remote_address": true, "stat_prefix""#, 1)
        });
        let cluster = |name: &str, to: SocketAddr| {
            format!(
                r#"{{"name": "{name}", "type": "STATIC", "connect_timeout": "5s",
    "load_assignment": {{"cluster_name": "{name}", "endpoints": [{{"lb_endpoints": [{{
      "endpoint": {{"address": {}}}}}]}}]}}}}"#,
                address(to)
            )
        };
        let config = format!(
            r#"{{"static_resources": {{"listeners": [{}, {{"name": "passed", "address": {passed}, "filter_chains": [{{
  "filters": [{{"name": "envoy.filters.network.tcp_proxy", "typed_config": {{
    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "stat_prefix": "passed", "cluster": "bytes"}}}}]}}]}}], "clusters": [{}, {}]}}}}"#,
            listeners.join(",\n"),
            cluster("requests", doors.requests),
            cluster("bytes", doors.bytes),
            passed = address(at(doors.passed)),
        );
        Self::start(lab, pod, &config, at(doors.plain))
    }
}
