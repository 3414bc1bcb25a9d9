//! Where istiod is, as people write it.

use std::str::FromStr;

use hyper::Uri;

/// istiod's port for those who prove themselves with a token.
const PORT: u16 = 15012;

/// An address of istiod: `https://istiod.istio-system.svc:15012`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdsAddress {
    host: String,
    port: u16,
}

/// A text that is no address of istiod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address of istiod: write https://HOST:PORT")]
pub struct InvalidXdsAddress(String);

impl FromStr for XdsAddress {
    type Err = InvalidXdsAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidXdsAddress(text.to_owned());
        let whole = if text.contains("://") {
            text.to_owned()
        } else {
            format!("https://{text}")
        };
        let uri: Uri = whole.parse().map_err(|_invalid| invalid())?;
        let is_bare = uri.path_and_query().is_none_or(|path| path == "/");
        // A token is nothing to send in plain text.
        if uri.scheme_str() != Some("https") || !is_bare {
            return Err(invalid());
        }
        let host = uri.host().ok_or_else(invalid)?;
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(PORT),
        })
    }
}

impl XdsAddress {
    /// Name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// As a URL has it.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::XdsAddress;

    #[test]
    fn addresses_are_read_as_ztunnel_reads_them() {
        for (text, expected) in [
            (
                "https://istiod.istio-system.svc:15012",
                Some("istiod.istio-system.svc:15012"),
            ),
            (
                "istiod.istio-system.svc",
                Some("istiod.istio-system.svc:15012"),
            ),
            ("https://[fd00::1]:1", Some("[fd00::1]:1")),
            ("127.0.0.1:2", Some("127.0.0.1:2")),
            ("http://istiod:15010", None),
            ("https://istiod:15012/path", None),
            ("", None),
        ] {
            let read = text.parse::<XdsAddress>().ok();
            assert_eq!(
                read.map(|one| one.authority()).as_deref(),
                expected,
                "{text}"
            );
        }
    }
}
