//! What a proxy does to every message that it forwards (RFC 9110 §7.6): fields that are meant for the next hop
//! only stay behind.

use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Version, request};

/// Fields that are meant for one hop, whether `Connection` names them or not (RFC 9110 §7.6.1).
const ONE_HOP: [HeaderName; 5] = [
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TRANSFER_ENCODING,
    UPGRADE,
];

/// A change of protocol that a client asks for, or that a server grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upgrade(HeaderValue);

/// The one protocol to which a connection may be changed. Behind the change nobody judges what is said, so it must not
/// be HTTP again (`h2c`).
const WEBSOCKET: &str = "websocket";

/// The change of protocol that a message is about: only HTTP/1.1 has any, and only `Connection: upgrade` makes
/// it more than a hint (RFC 9110 §7.8).
pub(crate) fn upgrade_of(version: Version, headers: &HeaderMap) -> Option<Upgrade> {
    let mut all = headers.get_all(UPGRADE).iter();
    let (Some(wanted), None) = (all.next(), all.next()) else {
        return None;
    };
    let is_meant = version == Version::HTTP_11
        && wanted.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes())
        && tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    is_meant.then(|| Upgrade(wanted.clone()))
}

/// The change of protocol that a request asks for.
pub(crate) fn wants_upgrade(parts: &request::Parts) -> Option<Upgrade> {
    (parts.method != Method::CONNECT)
        .then(|| upgrade_of(parts.version, &parts.headers))
        .flatten()
}

/// Takes away what is meant for one hop only, and puts back the change of protocol that both ends agree on.
pub(crate) fn strip(headers: &mut HeaderMap, upgrade: Option<&Upgrade>) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers)
            .filter_map(|token| token.parse().ok())
            .collect();
        for name in named {
            // `TE` is looked at below: every client that sends it has to name it here.
            if name != TE {
                drop(headers.remove(name));
            }
        }
        drop(headers.remove(CONNECTION));
    }
    for name in &ONE_HOP {
        drop(headers.remove(name));
    }
    if let Some(accepted) = headers.get(TE) {
        // The one value that gRPC and HTTP/2 know (RFC 9113 §8.2.2).
        if list(accepted).any(|coding| coding.eq_ignore_ascii_case("trailers")) {
            drop(headers.insert(TE, HeaderValue::from_static("trailers")));
        } else {
            drop(headers.remove(TE));
        }
    }
    if let Some(Upgrade(protocol)) = upgrade {
        drop(headers.insert(CONNECTION, HeaderValue::from_static("upgrade")));
        drop(headers.insert(UPGRADE, protocol.clone()));
    }
}

/// What `Connection` names.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(CONNECTION).iter().flat_map(list)
}

/// The members of a list (RFC 9110 §5.6.1).
fn list(value: &HeaderValue) -> impl Iterator<Item = &str> {
    let members = value.to_str().unwrap_or_default().split(',');
    members.map(str::trim).filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, Version};

    use super::{strip, upgrade_of};

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let parsed = list.iter().map(|(name, value)| {
            let name: HeaderName = name.parse().unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        });
        parsed.collect()
    }

    #[track_caller]
    fn check(before: &[(&str, &str)], after: &[(&str, &str)]) {
        let mut stripped = headers(before);
        strip(&mut stripped, None);
        assert_eq!(stripped, headers(after), "{before:?}");
    }

    #[test]
    fn one_hop_fields_stay_behind() {
        check(&[("host", "a"), ("x", "1")], &[("host", "a"), ("x", "1")]);
        check(
            &[
                ("connection", "close, X-Mine"),
                ("connection", "keep-alive"),
                ("keep-alive", "timeout=5"),
                ("x-mine", "1"),
                ("x-other", "2"),
                ("proxy-connection", "x"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("http2-settings", "AAMAAABk"),
            ],
            &[("x-other", "2")],
        );
    }

    #[test]
    fn only_trailers_may_be_accepted_across_a_hop() {
        check(
            &[("te", "gzip;q=0.5, Trailers"), ("connection", "TE")],
            &[("te", "trailers")],
        );
        check(&[("te", "gzip")], &[]);
    }

    #[test]
    fn a_change_of_protocol_needs_both_fields_and_http_1_1() {
        let both = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ]);
        let upgrade = upgrade_of(Version::HTTP_11, &both);
        let mut stripped = both.clone();
        strip(&mut stripped, upgrade.as_ref());
        let kept = headers(&[("connection", "upgrade"), ("upgrade", "websocket")]);
        assert_eq!(stripped, kept);
        assert_eq!(upgrade_of(Version::HTTP_10, &both), None);
        // Behind it requests would come that nobody has judged.
        for other in ["h2c", "websocket, h2c", "h2c, websocket", "TLS/1.0"] {
            let other = headers(&[("connection", "Upgrade"), ("upgrade", other)]);
            assert_eq!(upgrade_of(Version::HTTP_11, &other), None, "{other:?}");
        }
        let twice = [
            ("connection", "Upgrade"),
            ("upgrade", "WebSocket"),
            ("upgrade", "h2c"),
        ];
        assert!(upgrade_of(Version::HTTP_11, &headers(&twice[..2])).is_some());
        assert_eq!(upgrade_of(Version::HTTP_11, &headers(&twice)), None);
        let hint = headers(&[("upgrade", "websocket")]);
        assert_eq!(upgrade_of(Version::HTTP_11, &hint), None);
    }
}
