//! The `forwarded` header (RFC 7239), as far as tunnels use it. It informs logs and metrics; identity and
//! policy never read it.

use std::fmt;
use std::net::SocketAddr;

/// Who called, and what they called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// `for=`: the client's address and port.
    pub client: Option<SocketAddr>,
    /// `host=`: the service's hostname.
    pub host: Option<String>,
}

impl Forwarded {
    pub(super) fn is_empty(&self) -> bool {
        self.client.is_none() && self.host.is_none()
    }

    /// Reads the parts that it knows; a part that does not parse counts as absent.
    pub fn parse(text: &str) -> Self {
        let mut forwarded = Self::default();
        for (name, value) in text
            .split(';')
            .filter_map(|part| part.trim().split_once('='))
        {
            let quoted = value
                .strip_prefix('"')
                .and_then(|value| value.strip_suffix('"'));
            let value = quoted.unwrap_or(value);
            match name {
                "for" => forwarded.client = value.parse().ok(),
                "host" => {
                    let sound = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\');
                    let named = !value.is_empty() && value.len() <= 253 && value.chars().all(sound);
                    forwarded.host = named.then(|| value.to_ascii_lowercase());
                }
                _ => {}
            }
        }
        forwarded
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(client) = self.client {
            write!(f, "for=\"{client}\"")?;
        }
        if let Some(host) = &self.host {
            let separator = if self.client.is_some() { ";" } else { "" };
            write!(f, "{separator}host={host}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Forwarded;

    #[track_caller]
    fn check(text: &str, client: Option<&str>, host: Option<&str>) {
        let parsed = Forwarded::parse(text);
        assert_eq!(
            parsed.client,
            client.map(|text| text.parse().unwrap()),
            "{text}"
        );
        assert_eq!(parsed.host.as_deref(), host, "{text}");
    }

    #[test]
    fn client_and_host_are_read_and_nonsense_is_absent() {
        check("for=\"10.0.0.1:80\"", Some("10.0.0.1:80"), None);
        check(
            "for=\"[fd00::1]:80\";host=Svc.ns",
            Some("[fd00::1]:80"),
            Some("svc.ns"),
        );
        check("host=\"svc.ns\"", None, Some("svc.ns"));
        check("for=10.0.0.1:80; host=a", Some("10.0.0.1:80"), Some("a"));
        check("for=unknown", None, None);
        check("for=\"", None, None);
        check("host=", None, None);
        check("host=\"a b\"", None, None);
        check("by=x;proto=http", None, None);
        check("", None, None);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let forwarded = Forwarded {
            client: Some("[fd00::1]:4711".parse().unwrap()),
            host: Some("a.b".into()),
        };
        assert_eq!(forwarded.to_string(), "for=\"[fd00::1]:4711\";host=a.b");
        assert_eq!(Forwarded::parse(&forwarded.to_string()), forwarded);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_read_prints_as_something_equal(
            text in "((for|host|by)=\"?[a-f0-9.:]{0,12}\"?;?){0,4}|\\PC*",
        ) {
            let forwarded = Forwarded::parse(&text);
            prop_assert_eq!(Forwarded::parse(&forwarded.to_string()), forwarded);
        }
    }
}
