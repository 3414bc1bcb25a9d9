//! A real Envoy as the other end of HBONE: its configuration, its certificates, its process.

mod gateway;
mod pair;
mod relay;
mod waypoint;

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType,
};

use crate::lab::{Lab, Pod, eventually, tool};
use crate::net;

pub use gateway::Doors;
pub use waypoint::Fronted;

/// A running Envoy; ends with the value.
pub struct Envoy {
    child: Child,
    log: PathBuf,
}

/// Files of one identity: certificate chain, key, and the root that its peers are verified by.
pub(crate) struct Svid {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) root: PathBuf,
}

impl Envoy {
    /// An HBONE client in a pod: what connects to its `local` address is tunnelled to `target`, a port of a pod
    /// whose identity is `expected`. The pod's own identity is Envoy's.
    ///
    /// # Errors
    /// If Envoy is not installed or does not come up.
    pub fn client(
        lab: &Lab,
        pod: &Pod,
        local: SocketAddr,
        target: SocketAddr,
        expected: &str,
    ) -> Result<Self> {
        let through = (target.to_string(), target.ip());
        Self::client_through(lab, pod, local, through, expected)
    }

    /// The same, through the HBONE listener at another address than the target's: that of a waypoint, which is
    /// `expected` to be there. The target is an address or a hostname, with a port.
    ///
    /// # Errors
    /// If Envoy is not installed or does not come up.
    pub fn client_through(
        lab: &Lab,
        pod: &Pod,
        local: SocketAddr,
        (target, through): (String, IpAddr),
        expected: &str,
    ) -> Result<Self> {
        let svid = issue(lab, &pod.identity())?;
        let tls = tls("Upstream", &svid, expected, "\"sni\": \"\",");
        let config = format!(
            r#"{{"static_resources": {{
  "listeners": [{{"name": "local", "address": {local}, "filter_chains": [{{"filters": [{{
    "name": "envoy.filters.network.tcp_proxy",
    "typed_config": {{
      "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
      "stat_prefix": "hbone", "cluster": "hbone",
      "tunneling_config": {{"hostname": "{target}"}}}}}}]}}]}}],
  "clusters": [{{"name": "hbone", "type": "STATIC", "connect_timeout": "5s",
    "typed_extension_protocol_options": {{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {{
      "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
      "explicit_http_config": {{"http2_protocol_options": {{"allow_connect": true}}}}}}}},
    "load_assignment": {{"cluster_name": "hbone", "endpoints": [{{"lb_endpoints": [{{
      "endpoint": {{"address": {hbone}}}}}]}}]}},
    "transport_socket": {tls}}}]}}}}"#,
            local = address(local),
            hbone = address(SocketAddr::new(through, 15008)),
        );
        Self::start(lab, pod, &config, local)
    }

    /// An HBONE server in a pod, for one port of its application; admits `expected` only.
    ///
    /// # Errors
    /// If Envoy is not installed or does not come up.
    pub fn server(lab: &Lab, pod: &Pod, application: SocketAddr, expected: &str) -> Result<Self> {
        let svid = issue(lab, &pod.identity())?;
        let tls = tls(
            "Downstream",
            &svid,
            expected,
            "\"require_client_certificate\": true,",
        );
        let hbone = SocketAddr::new(pod.v4(), 15008);
        let config = format!(
            r#"{{"static_resources": {{
  "listeners": [{{"name": "hbone", "address": {listener}, "filter_chains": [{{"transport_socket": {tls},
    "filters": [{{"name": "envoy.filters.network.http_connection_manager",
      "typed_config": {{
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hbone", "codec_type": "HTTP2",
        "http2_protocol_options": {{"allow_connect": true}},
        "upgrade_configs": [{{"upgrade_type": "CONNECT"}}],
        "http_filters": [{{"name": "envoy.filters.http.router", "typed_config": {{
          "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}}}],
        "route_config": {{"virtual_hosts": [{{"name": "all", "domains": ["*"], "routes": [{{
          "match": {{"connect_matcher": {{}}}},
          "route": {{"cluster": "application", "timeout": "0s",
            "upgrade_configs": [{{"upgrade_type": "CONNECT", "connect_config": {{}}}}]}}}}]}}]}}}}}}]}}]}}],
  "clusters": [{{"name": "application", "type": "STATIC", "connect_timeout": "5s",
    "load_assignment": {{"cluster_name": "application", "endpoints": [{{"lb_endpoints": [{{
      "endpoint": {{"address": {application}}}}}]}}]}}}}]}}}}"#,
            listener = address(hbone),
            application = address(application),
        );
        Self::start(lab, pod, &config, hbone)
    }

    /// Runs a configuration with one worker and waits until it listens.
    fn start(lab: &Lab, pod: &Pod, config: &str, listener: SocketAddr) -> Result<Self> {
        Self::start_with(lab, pod, config, listener, 1)
    }

    fn start_with(
        lab: &Lab,
        pod: &Pod,
        config: &str,
        listener: SocketAddr,
        workers: usize,
    ) -> Result<Self> {
        let file = lab
            .directory()
            .join(format!("envoy-{}.json", pod.spec().name));
        fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
        let log = file.with_extension("log");
        let output = File::create(&log).context("cannot create Envoy's log")?;
        let mut command = Command::new(tool("envoy")?);
        command
            .args([
                "--disable-hot-restart",
                "--concurrency",
                &workers.to_string(),
                "--log-level",
                "warning",
                "--config-path",
            ])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = pod
            .enter(&mut command)?
            .spawn()
            .context("Envoy cannot be started")?;
        let mut envoy = Self { child, log };
        eventually("Envoy listens", Duration::from_secs(20), || {
            if let Some(status) = envoy.child.try_wait()? {
                return Ok(Err(anyhow::anyhow!(
                    "Envoy ended: {status}\n{}",
                    envoy.log()
                )));
            }
            pod.run(|| Ok(net::connect(listener)?))
                .map(|_stream| Ok(()))
        })??;
        Ok(envoy)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Issues a certificate of the mesh's authority, as a node agent would.
pub(crate) fn issue(lab: &Lab, identity: &str) -> Result<Svid> {
    let read = |file: &str| {
        let path = lab.ca_directory().join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (ca_certificate, ca_key) = (read("ca-cert.pem")?, read("ca-key.pem")?);
    let authority = KeyPair::from_pem(&ca_key).context("the authority's key")?;
    let issuer = Issuer::from_ca_cert_pem(&ca_certificate, authority)
        .context("the authority's certificate")?;
    let mut parameters = CertificateParams::default();
    // An SVID names its holder by URI only (X509-SVID §2).
    parameters.distinguished_name = DistinguishedName::new();
    parameters.subject_alt_names = vec![SanType::URI(identity.try_into().context("a SPIFFE ID")?)];
    parameters.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().context("a key")?;
    let certificate = parameters
        .signed_by(&key, &issuer)
        .context("a certificate")?;

    let name = identity.rsplit('/').next().unwrap_or("svid");
    let file = |kind: &str, text: &str| -> Result<PathBuf> {
        let path = lab.directory().join(format!("{name}-{kind}.pem"));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    Ok(Svid {
        chain: file("chain", &(certificate.pem() + &read("cert-chain.pem")?))?,
        key: file("key", &key.serialize_pem())?,
        root: lab.ca_directory().join("root-cert.pem"),
    })
}

/// A transport socket of TLS 1.3 with the peer's SPIFFE ID pinned.
fn tls(side: &str, svid: &Svid, expected: &str, more: &str) -> String {
    let file = |path: &Path| format!(r#"{{"filename": "{}"}}"#, path.display());
    format!(
        r#"{{"name": "envoy.transport_sockets.tls", "typed_config": {{
  "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext", {more}
  "common_tls_context": {{
    "alpn_protocols": ["h2"],
    "tls_params": {{"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}},
    "tls_certificates": [{{"certificate_chain": {}, "private_key": {}}}],
    "validation_context": {{"trusted_ca": {}, "match_typed_subject_alt_names": [
      {{"san_type": "URI", "matcher": {{"exact": "{expected}"}}}}]}}}}}}}}"#,
        file(&svid.chain),
        file(&svid.key),
        file(&svid.root)
    )
}

fn address(socket: SocketAddr) -> String {
    format!(
        r#"{{"socket_address": {{"address": "{}", "port_value": {}}}}}"#,
        socket.ip(),
        socket.port()
    )
}
