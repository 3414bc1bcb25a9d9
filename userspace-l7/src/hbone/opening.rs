//! As what a connection to an application has to begin, as a client's node tells the server's: by whose policy. Pure.

use std::fmt;

use super::authority::ServiceClaim;
use crate::model::{AppProtocol, NamespacedHostname, Side};

/// Longest name of a subset.
const MAX_SUBSET: usize = 253;

/// The policy that the client's node goes by, and what it speaks: `namespace/hostname:port[;subset=<name>][;speaks=<protocol>]`.
/// The server's node looks it up by itself, so it is no privilege.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpeningClaim {
    /// The service that the endpoint was chosen for.
    pub service: ServiceClaim,
    /// The part of it.
    pub subset: Option<String>,
    /// HTTP of one version, or bytes.
    pub speaks: AppProtocol,
}

impl OpeningClaim {
    /// The policy of a service's port and subset; `None` if their names cannot be written.
    pub fn of(
        (service, port): (&NamespacedHostname, u16),
        subset: Option<&str>,
        speaks: AppProtocol,
    ) -> Option<Self> {
        let claim = Self {
            service: ServiceClaim::of(service, port, Side::Primary),
            subset: subset.map(str::to_owned),
            speaks: match speaks {
                AppProtocol::Http1 | AppProtocol::Http2 => speaks,
                AppProtocol::Tcp | AppProtocol::Tls | AppProtocol::Detect => AppProtocol::Tcp,
            },
        };
        (Self::parse(&claim.to_string()).as_ref() == Some(&claim)).then_some(claim)
    }

    /// Reads the form that is written; anything else is `None`, what a later version may add included.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';');
        let mut claim = Self {
            service: ServiceClaim::parse(parts.next()?)?,
            subset: None,
            speaks: AppProtocol::Tcp,
        };
        for part in parts {
            match part.split_once('=')? {
                ("subset", name) if is_subset(name) && claim.subset.is_none() => {
                    claim.subset = Some(name.to_owned());
                }
                ("speaks", "http1") => claim.speaks = AppProtocol::Http1,
                ("speaks", "http2") => claim.speaks = AppProtocol::Http2,
                _ => return None,
            }
        }
        Some(claim)
    }
}

fn is_subset(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=MAX_SUBSET).contains(&name.len()) && name.chars().all(letter)
}

impl fmt::Display for OpeningClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if let Some(subset) = &self.subset {
            write!(f, ";subset={subset}")?;
        }
        match self.speaks {
            AppProtocol::Http1 => f.write_str(";speaks=http1"),
            AppProtocol::Http2 => f.write_str(";speaks=http2"),
            AppProtocol::Tcp | AppProtocol::Tls | AppProtocol::Detect => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AppProtocol, NamespacedHostname, OpeningClaim};

    #[test]
    fn what_is_written_is_read() {
        for text in [
            "web/reviews.web.svc:9080",
            "web/reviews.web.svc:9080;subset=v1",
            "web/reviews.web.svc:9080;speaks=http1",
            "web/reviews.web.svc:9080;subset=v-1.b_2;speaks=http2",
        ] {
            let claim = OpeningClaim::parse(text);
            assert_eq!(claim.unwrap().to_string(), text);
        }
        for text in [
            "",
            "reviews:9080",
            "web/reviews",
            "web/reviews:9080;",
            "web/reviews:9080;subset=",
            "web/reviews:9080;subset=a;subset=b",
            "web/reviews:9080;speaks=http3",
            "web/reviews:9080;later=1",
        ] {
            assert_eq!(OpeningClaim::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let service = NamespacedHostname {
            namespace: "web".into(),
            hostname: "reviews".into(),
        };
        let claim = |subset| OpeningClaim::of((&service, 80), Some(subset), AppProtocol::Detect);
        assert_eq!(claim("v1").unwrap().to_string(), "web/reviews:80;subset=v1");
        assert_eq!(claim("v1;speaks=http2"), None);
        assert_eq!(claim("v 1"), None);
    }
}
