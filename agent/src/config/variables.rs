//! Variables whose names are a prefix and a word of the operator's, as ztunnel has them: `XDS_HEADER_<name>` and
//! `CA_HEADER_<name>` are headers of the calls of istiod and of the authority, `ISTIO_META_<key>` is metadata of the
//! node. What follows the prefix is the name as it stands; headers have no case.

use std::collections::BTreeMap;
use std::ffi::OsString;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

/// Headers of calls of istiod.
pub(super) const XDS_HEADER: &str = "XDS_HEADER_";
/// Headers of calls of the authority.
pub(super) const CA_HEADER: &str = "CA_HEADER_";
/// Metadata of the node.
const METADATA: &str = "ISTIO_META_";
/// The cluster's name as metadata, which goes before `CLUSTER_ID`.
const CLUSTER_METADATA: &str = "ISTIO_META_CLUSTER_ID";

/// What the agent says itself, or HTTP does.
const OWN: [&str; 10] = [
    "authorization",
    "clusterid",
    "connection",
    "content-length",
    "content-type",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "user-agent",
];

/// A variable that cannot be heeded. Its value, which may be a secret, is not told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVariable {
    /// What follows the prefix is no header's name, or one of gRPC's binary headers.
    #[error("variable {0}: what follows the prefix has to be the name of a header that holds text")]
    Name(String),
    /// The header is not the operator's to set.
    #[error("variable {0}: that header is the agent's own; take the variable out")]
    Own(String),
    /// The value is no header's.
    #[error("variable {0}: its value has to be visible ASCII")]
    Value(String),
    /// Two names differ in case only, and headers have none.
    #[error("variable {0}: another one sets the same header; leave one of them")]
    Twice(String),
    /// The value is no text.
    #[error("variable {0}: its value has to be UTF-8")]
    Text(String),
}

/// The headers that variables with `prefix` say. Values are marked as secrets: they may be keys of a gateway.
///
/// # Errors
/// [`InvalidVariable`]: one of them cannot be sent.
pub(super) fn headers(
    prefix: &str,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<HeaderMap, InvalidVariable> {
    let mut headers = HeaderMap::new();
    for (variable, value) in variables {
        let variable = variable.to_string_lossy().into_owned();
        let Some(name) = variable.strip_prefix(prefix) else {
            continue;
        };
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            return Err(InvalidVariable::Name(variable));
        };
        // gRPC over HTTP/2, "Custom-Metadata": names with `-bin` hold base64, those with `grpc-` are reserved.
        if name.as_str().ends_with("-bin") {
            return Err(InvalidVariable::Name(variable));
        }
        if OWN.contains(&name.as_str()) || name.as_str().starts_with("grpc-") {
            return Err(InvalidVariable::Own(variable));
        }
        // `HeaderValue` takes bytes beyond ASCII as well, which gRPC does not.
        let value = value.to_str().filter(|text| text.is_ascii());
        let value = value.map(HeaderValue::from_str);
        let Some(Ok(mut value)) = value else {
            return Err(InvalidVariable::Value(variable));
        };
        value.set_sensitive(true);
        if headers.insert(name, value).is_some() {
            return Err(InvalidVariable::Twice(variable));
        }
    }
    Ok(headers)
}

/// The metadata that variables say of the node, but for the cluster's name, which is an option's ([`cluster`]).
///
/// # Errors
/// [`InvalidVariable::Text`]: a value is no text.
pub(super) fn metadata(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, String>, InvalidVariable> {
    let mut metadata = BTreeMap::new();
    for (variable, value) in variables {
        let Some(key) = variable
            .to_str()
            .and_then(|name| name.strip_prefix(METADATA))
        else {
            continue;
        };
        if variable == CLUSTER_METADATA {
            continue;
        }
        let Ok(value) = value.into_string() else {
            return Err(InvalidVariable::Text(
                variable.to_string_lossy().into_owned(),
            ));
        };
        metadata.insert(key.to_owned(), value);
    }
    Ok(metadata)
}

/// The variable that names the cluster: metadata of the node, if it does, goes before `CLUSTER_ID` (ztunnel's order).
pub(super) fn cluster() -> &'static str {
    match std::env::var_os(CLUSTER_METADATA) {
        Some(_) => CLUSTER_METADATA,
        None => "CLUSTER_ID",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> impl Iterator<Item = (OsString, OsString)> {
        let own = |(name, value): &(&str, &str)| (OsString::from(*name), OsString::from(*value));
        pairs.iter().map(own).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn what_follows_the_prefix_is_a_header() {
        let set = environment(&[
            ("XDS_HEADER_X-Tenant", "blue"),
            ("XDS_HEADER_x_route", "a b"),
            ("CA_HEADER_x-tenant", "red"),
            ("xds_header_x-lower", "not a prefix"),
            ("XDS_ADDRESS", "https://istiod:15012"),
        ]);
        let headers = headers(XDS_HEADER, set).unwrap();
        let mut read: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        read.sort_unstable();
        assert_eq!(read, [("x-tenant", "blue"), ("x_route", "a b")]);
        let shown = format!("{headers:?}");
        assert!(!shown.contains("blue"), "a secret is shown: {shown}");
    }

    #[test]
    fn a_header_that_cannot_be_sent_is_refused_by_the_name_of_its_variable() {
        type Kind = fn(String) -> InvalidVariable;
        let rows: [(&str, &str, Kind); 8] = [
            ("CA_HEADER_", "x", InvalidVariable::Name),
            ("CA_HEADER_a b", "x", InvalidVariable::Name),
            ("CA_HEADER_key-bin", "x", InvalidVariable::Name),
            ("CA_HEADER_Authorization", "x", InvalidVariable::Own),
            ("CA_HEADER_CLUSTERID", "x", InvalidVariable::Own),
            ("CA_HEADER_grpc-timeout", "1S", InvalidVariable::Own),
            ("CA_HEADER_x-key", "a\nb", InvalidVariable::Value),
            ("CA_HEADER_x-key", "ü", InvalidVariable::Value),
        ];
        for (name, value, kind) in rows {
            let refused = headers(CA_HEADER, environment(&[(name, value)])).unwrap_err();
            assert_eq!(refused, kind(name.to_owned()), "{name}={value}");
        }
        let twice = environment(&[("CA_HEADER_x-a", "1"), ("CA_HEADER_X-A", "2")]);
        let refused = headers(CA_HEADER, twice).unwrap_err();
        assert_eq!(refused, InvalidVariable::Twice("CA_HEADER_X-A".to_owned()));
    }

    #[test]
    fn metadata_keeps_its_case() {
        let set = environment(&[
            ("ISTIO_META_Zone", "b"),
            ("ISTIO_META_NETWORK", "n1"),
            ("ISTIO_META_CLUSTER_ID", "c"),
            ("ISTIO_METAJSON_LABELS", "{}"),
        ]);
        let metadata = metadata(set).unwrap();
        let read: Vec<_> = metadata.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(read, [("NETWORK", "n1"), ("Zone", "b")]);
    }
}
