//! SPIFFE identities, in the one shape that Istio's meshes use.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A SPIFFE trust domain, such as `cluster.local`. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Accepts the characters that SPIFFE-ID §2.1 allows: lower-case letters, digits, `.`, `-`, `_`.
    ///
    /// # Errors
    /// [`InvalidSpiffeId`] when the name is empty, longer than 255 bytes or has another character.
    pub fn new(name: &str) -> Result<Self, InvalidSpiffeId> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
        if name.is_empty() || name.len() > 255 || !name.chars().all(allowed) {
            return Err(InvalidSpiffeId {
                text: name.to_owned(),
                why: "trust domain",
            });
        }
        Ok(Self(name.into()))
    }

    /// The name without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`: who a workload is.
///
/// No other path shape is accepted (spec: Istio's workload identity; ztunnel parses the same).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl SpiffeId {
    /// Builds an identity from parts that Kubernetes has already validated.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: impl Into<Arc<str>>,
        service_account: impl Into<Arc<str>>,
    ) -> Self {
        Self {
            trust_domain,
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }

    /// The trust domain that vouches for the identity.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The form that policies are written in: the URI without its scheme.
    pub fn principal(&self) -> String {
        self.written("")
    }

    /// The URI.
    pub fn uri(&self) -> String {
        self.written(SCHEME)
    }

    /// Put together by hand: every connection needs it several times.
    fn written(&self, scheme: &str) -> String {
        let parts = [
            scheme,
            self.trust_domain.as_str(),
            "/ns/",
            &self.namespace,
            "/sa/",
            &self.service_account,
        ];
        parts.concat()
    }
}

const SCHEME: &str = "spiffe://";

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        f.write_str(self.trust_domain.as_str())?;
        f.write_str("/ns/")?;
        f.write_str(&self.namespace)?;
        f.write_str("/sa/")?;
        f.write_str(&self.service_account)
    }
}

/// The text is no SPIFFE ID of the mesh's shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a SPIFFE ID of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account> ({why})"
)]
pub struct InvalidSpiffeId {
    text: String,
    why: &'static str,
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |why| InvalidSpiffeId {
            text: text.chars().take(256).collect(),
            why,
        };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| invalid("scheme"))?;
        let mut parts = rest.split('/');
        let mut next = |why| {
            parts
                .next()
                .filter(|part| !part.is_empty())
                .ok_or_else(|| invalid(why))
        };
        let trust_domain = next("trust domain")?;
        if next("path")? != "ns" {
            return Err(invalid("path"));
        }
        let namespace = next("namespace")?;
        if next("path")? != "sa" {
            return Err(invalid("path"));
        }
        let service_account = next("service account")?;
        if parts.next().is_some() {
            return Err(invalid("trailing path"));
        }
        // A query or fragment would make two different URIs name one account.
        if [namespace, service_account]
            .iter()
            .any(|part| part.contains(['?', '#', '%']))
        {
            return Err(invalid("reserved character"));
        }
        let trust_domain =
            TrustDomain::new(trust_domain).map_err(|_why| invalid("trust domain"))?;
        Ok(Self::new(trust_domain, namespace, service_account))
    }
}

#[cfg(test)]
mod tests {
    use super::SpiffeId;

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, &str, &str)>) {
        let parsed = text.parse::<SpiffeId>().ok();
        let parts = parsed.as_ref().map(|id| {
            (
                id.trust_domain().as_str(),
                id.namespace(),
                id.service_account(),
            )
        });
        assert_eq!(parts, expected, "{text}");
        if let Some(id) = &parsed {
            assert_eq!(
                id.to_string(),
                text,
                "an accepted identity prints as it was read"
            );
        }
    }

    #[test]
    fn only_the_exact_shape_is_an_identity() {
        check(
            "spiffe://cluster.local/ns/a/sa/b",
            Some(("cluster.local", "a", "b")),
        );
        check(
            "spiffe://td/ns/kube-system/sa/x.y",
            Some(("td", "kube-system", "x.y")),
        );
        check("spiffe:///ns/a/sa/b", None);
        check("spiffe://td/ns/a/sa/", None);
        check("spiffe://td/ns//sa/b", None);
        check("spiffe://td/ns/a/sa/b/c", None);
        check("spiffe://td/ns/a/sa/b/", None);
        check("spiffe://td/sa/b/ns/a", None);
        check("SPIFFE://td/ns/a/sa/b", None);
        check("spiffe://TD/ns/a/sa/b", None);
        check("spiffe://td:1/ns/a/sa/b", None);
        check("spiffe://td/ns/a/sa/b?x", None);
        check("spiffe://td/ns/a/sa/b#x", None);
        check("spiffe://td/ns/%61/sa/b", None);
        check("https://td/ns/a/sa/b", None);
        check("", None);
    }
}
