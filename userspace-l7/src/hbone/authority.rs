//! Whom a CONNECT asks for, and which service its client says it called. Pure parsers of what a peer sent.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use crate::model::{NamespacedHostname, Side};

/// Longest DNS name (RFC 1035 §2.3.4).
const MAX_HOST: usize = 253;

/// Longest namespace: a DNS label.
const MAX_NAMESPACE: usize = 63;

/// Whom a CONNECT asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// An address and port.
    Address(SocketAddr),
    /// A service's hostname and port.
    Host {
        /// Fully qualified, lower case, without a trailing dot.
        host: String,
        /// Service port.
        port: u16,
    },
}

impl Authority {
    /// Reads `ip:port`, `[v6]:port` or `hostname:port`; anything else, a missing port included, is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Some(Self::Address(address));
        }
        let (host, port) = host_and_port(text)?;
        // `10.0.0.1.:80` would be a host here and an address wherever it is sent on.
        let is_address = host.parse::<Ipv4Addr>().is_ok();
        (!is_address).then_some(Self::Host { host, port })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// The service that a client says it called: `namespace/hostname:port`. A claim, which only whoever serves the
/// service may believe, and only after looking it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceClaim {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Fully qualified, lower case, without a trailing dot.
    pub host: String,
    /// Service port.
    pub port: u16,
    /// Through which of the service's waypoints. Not part of the written form: it has a header of its own, which whoever
    /// does not know it can overlook without overlooking the service.
    pub side: Side,
}

impl ServiceClaim {
    /// The claim to have called a service of the mesh.
    pub fn of(service: &NamespacedHostname, port: u16, side: Side) -> Self {
        Self {
            namespace: service.namespace.to_string(),
            host: service.hostname.to_string(),
            port,
            side,
        }
    }

    /// Reads the form that is written; anything else is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, service) = text.split_once('/')?;
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let sound = (1..=MAX_NAMESPACE).contains(&namespace.len()) && namespace.chars().all(label);
        let (host, port) = host_and_port(service)?;
        sound.then(|| Self {
            namespace: namespace.to_owned(),
            host,
            port,
            side: Side::Primary,
        })
    }
}

impl fmt::Display for ServiceClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.host, self.port)
    }
}

/// Splits `hostname:port`.
fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    // `parse` alone would accept a sign.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.then(|| port.parse().ok())??;
    let host = host.strip_suffix('.').unwrap_or(host);
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let label = |label: &str| !label.is_empty() && label.chars().all(letter);
    let sound = host.len() <= MAX_HOST && host.split('.').all(label);
    sound.then(|| (host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Authority, ServiceClaim};

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        let parsed = Authority::parse(text).map(|authority| authority.to_string());
        assert_eq!(parsed.as_deref(), expected, "{text}");
    }

    #[test]
    fn an_authority_is_an_address_or_a_host_with_a_port() {
        check("10.0.0.1:80", Some("10.0.0.1:80"));
        check("[fd00::1]:80", Some("[fd00::1]:80"));
        check(
            "Reviews.Web.svc.cluster.local:9080",
            Some("reviews.web.svc.cluster.local:9080"),
        );
        check("host.:1", Some("host:1"));
        check("", None);
        check("10.0.0.1", None);
        check("host", None);
        check(":80", None);
        check(".:80", None);
        check("host..:80", None);
        check(".host:80", None);
        check("a..b:80", None);
        check("10.0.0.1.:80", None);
        check("host:", None);
        check("host:x", None);
        check("host:+80", None);
        check("host:70000", None);
        check("fd00::1:80x", None);
        check("a b:1", None);
        check("a/b:1", None);
        check("user@host:1", None);
        check("[::1:80", None);
        check(&format!("{}:1", "a".repeat(254)), None);
    }

    #[track_caller]
    fn check_claim(text: &str, expected: Option<&str>) {
        let parsed = ServiceClaim::parse(text).map(|claim| claim.to_string());
        assert_eq!(parsed.as_deref(), expected, "{text}");
    }

    #[test]
    fn a_claim_names_a_namespace_a_host_and_a_port() {
        check_claim("web/Reviews.web.svc.:80", Some("web/reviews.web.svc:80"));
        check_claim("web/10.0.0.1:80", Some("web/10.0.0.1:80"));
        check_claim("/reviews:80", None);
        check_claim("reviews:80", None);
        check_claim("Web/reviews:80", None);
        check_claim("a.b/reviews:80", None);
        check_claim("web/reviews", None);
        check_claim("web/reviews..:80", None);
        check_claim("web/a/reviews:80", None);
        check_claim(&format!("{}/reviews:80", "a".repeat(64)), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_accepted_prints_as_something_equal(text in "[a-z0-9.:/\\[\\]-]{0,40}|\\PC*") {
            if let Some(authority) = Authority::parse(&text) {
                prop_assert_eq!(Authority::parse(&authority.to_string()), Some(authority));
            }
            if let Some(claim) = ServiceClaim::parse(&text) {
                prop_assert_eq!(ServiceClaim::parse(&claim.to_string()), Some(claim));
            }
        }
    }
}
