//! What a request is for: read from whichever form it came in, kept in one, written in the form that the next
//! hop's version wants.
//!
//! Between the two, a request has its target in origin form and its authority in `Host`.

use std::fmt;

use http::header::{COOKIE, HOST, HeaderValue};
use http::uri::{self, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Uri, Version, request};

use crate::policy::path::NormalizedPath;

/// Why a request cannot be understood by everybody in the same way; answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// HTTP/1.1 needs one.
    #[error("no Host")]
    NoHost,
    /// Two readers could take different ones.
    #[error("several Hosts")]
    ManyHosts,
    /// HTTP/2 says it twice, in two ways.
    #[error(":authority and Host differ")]
    TwoAuthorities,
    /// Not an authority.
    #[error("Host is not host[:port]")]
    BadHost,
    /// Broken off, or not framed as it says.
    #[error("the body is broken off")]
    Body,
    /// Nothing that a server could serve.
    #[error("the target is neither a path nor *")]
    BadTarget,
}

/// Brings a request that was received into the one form.
///
/// # Errors
/// [`Malformed`].
pub(crate) fn receive(parts: &mut request::Parts) -> Result<(), Malformed> {
    let host = only_host(&parts.headers)?;
    let named = parts.uri.authority().map(uri::Authority::as_str);
    match (named, host) {
        (Some(named), host) => {
            // RFC 9113 §8.3.1. In HTTP/1.1 the target wins, whatever Host says (RFC 9112 §3.2.2).
            let differs = host.is_some_and(|host| host.as_bytes() != named.as_bytes());
            if differs && parts.version == Version::HTTP_2 {
                return Err(Malformed::TwoAuthorities);
            }
            // "userinfo … in an http URI reference … MUST NOT" be generated (RFC 9110 §4.2.4); `:authority` has none at all
            // (RFC 9113 §8.3.1). Who looks at hosts could take it for one.
            if named.contains('@') {
                return Err(Malformed::BadHost);
            }
            let named = HeaderValue::from_str(named).map_err(|_bad| Malformed::BadHost)?;
            drop(parts.headers.insert(HOST, named));
        }
        (None, Some(host)) => {
            // An empty one is what RFC 9112 §3.2 wants where a target has no authority.
            let sound = host.is_empty() || uri::Authority::try_from(host.as_bytes()).is_ok();
            if !sound || host.as_bytes().contains(&b'@') {
                return Err(Malformed::BadHost);
            }
        }
        (None, None) if parts.version == Version::HTTP_10 => {}
        (None, None) => return Err(Malformed::NoHost),
    }
    if parts.uri.scheme().is_some() || parts.uri.authority().is_some() {
        let path = parts.uri.path_and_query().cloned();
        let path = path.filter(|_| parts.method != Method::CONNECT);
        parts.uri = Uri::from(path.ok_or(Malformed::BadTarget)?);
    }
    let path = parts.uri.path();
    let is_asterisk = path == "*" && parts.method == Method::OPTIONS;
    if !path.starts_with('/') && !is_asterisk {
        return Err(Malformed::BadTarget);
    }
    // "cookie-pairs … MUST be concatenated" for who does not know HTTP/2 (RFC 9113 §8.2.3).
    if parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
    }
    Ok(())
}

/// Writes a request for a server that speaks `version`.
pub(crate) fn send(
    parts: &mut request::Parts,
    version: super::Version,
    authority_if_none: &dyn fmt::Display,
) {
    match version {
        super::Version::Http1 => {
            parts.version = Version::HTTP_11;
            if !parts.headers.contains_key(HOST)
                && let Ok(host) = HeaderValue::try_from(authority_if_none.to_string())
            {
                drop(parts.headers.insert(HOST, host));
            }
        }
        super::Version::Http2 => {
            parts.version = Version::HTTP_2;
            let host = parts.headers.remove(HOST);
            let host = host.filter(|host| !host.is_empty());
            let authority = match &host {
                Some(named) => uri::Authority::try_from(named.as_bytes()),
                None => uri::Authority::try_from(authority_if_none.to_string()),
            };
            let mut target = uri::Parts::default();
            target.scheme = Some(Scheme::HTTP);
            target.authority = authority.ok();
            target.path_and_query = parts
                .uri
                .path_and_query()
                .cloned()
                .or_else(|| Some(PathAndQuery::from_static("/")));
            // Fails only for a part that is absent, and none is but an authority that `receive` has seen.
            if let Ok(target) = Uri::from_parts(target) {
                parts.uri = target;
            }
        }
    }
}

/// Gives a received request another spelling of its path; the query stays.
///
/// # Errors
/// [`Malformed::BadTarget`] if that is no target.
pub(crate) fn respell(parts: &mut request::Parts, path: &NormalizedPath) -> Result<(), Malformed> {
    let spelled = path.as_str();
    if spelled.is_empty() || spelled == parts.uri.path() {
        return Ok(());
    }
    let target = match parts.uri.query() {
        Some(query) => format!("{spelled}?{query}"),
        None => spelled.to_owned(),
    };
    parts.uri = target.parse().map_err(|_why| Malformed::BadTarget)?;
    Ok(())
}

fn only_host(headers: &HeaderMap) -> Result<Option<&HeaderValue>, Malformed> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Malformed::ManyHosts);
    }
    Ok(host)
}

fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    let (Some(first), Some(_)) = (crumbs.next(), crumbs.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for crumb in headers.get_all(COOKIE).iter().skip(1) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        drop(headers.insert(COOKIE, joined));
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Version, request};

    use super::super::Version as Speaks;
    use super::{Malformed, receive, send};

    fn request(
        method: &str,
        target: &str,
        version: Version,
        headers: &[(&str, &str)],
    ) -> request::Parts {
        let mut builder = Request::builder()
            .method(method)
            .uri(target)
            .version(version);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[track_caller]
    fn check(mut parts: request::Parts, expected: Result<(&str, Option<&str>), Malformed>) {
        let received = receive(&mut parts).map(|()| {
            let host = parts.headers.get("host");
            (
                parts.uri.to_string(),
                host.map(|host| host.to_str().unwrap().to_owned()),
            )
        });
        let expected = expected.map(|(uri, host)| (uri.to_owned(), host.map(str::to_owned)));
        assert_eq!(received, expected, "{parts:?}");
    }

    #[test]
    fn every_form_of_target_becomes_one() {
        let (v10, v11, v2) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
        check(
            request("GET", "/a?b", v11, &[("host", "x")]),
            Ok(("/a?b", Some("x"))),
        );
        check(
            request("GET", "http://y:80/a", v11, &[("host", "x")]),
            Ok(("/a", Some("y:80"))),
        );
        check(request("GET", "http://y/a", v2, &[]), Ok(("/a", Some("y"))));
        check(
            request("OPTIONS", "*", v11, &[("host", "x")]),
            Ok(("*", Some("x"))),
        );
        check(request("GET", "/", v10, &[]), Ok(("/", None)));
        check(
            request("GET", "/", v11, &[("host", "")]),
            Ok(("/", Some(""))),
        );
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways_is_refused() {
        let (v11, v2) = (Version::HTTP_11, Version::HTTP_2);
        check(request("GET", "/", v11, &[]), Err(Malformed::NoHost));
        check(
            request("GET", "/", v11, &[("host", "a"), ("host", "a")]),
            Err(Malformed::ManyHosts),
        );
        check(
            request("GET", "http://a/", v2, &[("host", "b")]),
            Err(Malformed::TwoAuthorities),
        );
        for host in ["a b", "a/b", "u@a", "a:b:c"] {
            let parts = request("GET", "/", v11, &[("host", host)]);
            check(parts, Err(Malformed::BadHost));
        }
        for version in [v11, v2] {
            let parts = request("GET", "http://u:p@a/", version, &[("host", "a")]);
            let expected = if version == v2 {
                Malformed::TwoAuthorities
            } else {
                Malformed::BadHost
            };
            check(parts, Err(expected));
            let parts = request("GET", "http://u@a/", version, &[("host", "u@a")]);
            check(parts, Err(Malformed::BadHost));
        }
        check(
            request("CONNECT", "a:443", v11, &[("host", "a:443")]),
            Err(Malformed::BadTarget),
        );
        check(
            request("GET", "*", v11, &[("host", "a")]),
            Err(Malformed::BadTarget),
        );
    }

    #[test]
    fn cookies_are_one_field_for_who_does_not_know_crumbs() {
        let mut parts = request(
            "GET",
            "http://a/",
            Version::HTTP_2,
            &[("cookie", "a=1"), ("cookie", "b=2")],
        );
        receive(&mut parts).unwrap();
        assert_eq!(parts.headers["cookie"], "a=1; b=2");
    }

    #[test]
    fn the_next_hops_version_says_how_a_target_is_written() {
        let mut parts = request("GET", "/a?b", Version::HTTP_11, &[("host", "x:1")]);
        send(&mut parts, Speaks::Http2, &"unused");
        assert_eq!(parts.uri, "http://x:1/a?b");
        assert!(!parts.headers.contains_key("host"));
        receive(&mut parts).unwrap();
        send(&mut parts, Speaks::Http1, &"unused");
        assert_eq!(
            (parts.uri.to_string().as_str(), &parts.headers["host"]),
            ("/a?b", &"x:1".parse().unwrap())
        );
        let mut bare = request("GET", "/", Version::HTTP_10, &[]);
        send(&mut bare, Speaks::Http1, &"svc:80");
        assert_eq!(bare.headers["host"], &"svc:80");
    }
}
