//! Session persistence (Gateway API GEP-1619): a cookie or header that names the endpoint of a session.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use http::HeaderValue;
use http::header::COOKIE;

use crate::model::{RequestHead, SessionCarrier, SessionPersistence};

/// A session as its cookie or header tells it. It is no secret and no proof: the endpoint counts only if it
/// is one of the service's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Who serves it.
    pub endpoint: SocketAddr,
    /// When it began, since 1970, in whole seconds.
    pub began: Duration,
}

impl Session {
    /// A session that begins now.
    pub fn begin(endpoint: SocketAddr, now: SystemTime) -> Self {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            endpoint,
            began: Duration::from_secs(now.as_secs()),
        }
    }

    /// The session that a request belongs to, unless it is over.
    pub fn of(rules: &SessionPersistence, head: &RequestHead<'_>, now: SystemTime) -> Option<Self> {
        let now = now.duration_since(UNIX_EPOCH).ok()?;
        let value = match rules.carrier {
            SessionCarrier::Header => head.headers.get(&*rules.name)?.to_str().ok()?,
            SessionCarrier::SessionCookie | SessionCarrier::PermanentCookie => {
                let lists = head.headers.get_all(COOKIE).iter();
                let mut pairs = lists
                    .filter_map(|list| list.to_str().ok())
                    .flat_map(|list| list.split(';'))
                    .filter_map(|pair| pair.trim().split_once('='));
                pairs.find(|(name, _)| **name == *rules.name)?.1
            }
        };
        let (session, seen) = Self::parse(value)?;
        let is_over = |limit: Option<Duration>, since: Duration| {
            limit.is_some_and(|limit| now.saturating_sub(since) > limit)
        };
        let over =
            is_over(rules.absolute_timeout, session.began) || is_over(rules.idle_timeout, seen);
        (!over).then_some(session)
    }

    fn parse(value: &str) -> Option<(Self, Duration)> {
        let text = BASE64URL_NOPAD.decode(value.as_bytes()).ok()?;
        let text = String::from_utf8(text).ok()?;
        let mut parts = text.split('|');
        let (endpoint, began, seen) = (parts.next()?, parts.next()?, parts.next()?);
        let session = Self {
            endpoint: endpoint.parse().ok()?,
            began: Duration::from_secs(began.parse().ok()?),
        };
        let seen = Duration::from_secs(seen.parse().ok()?);
        parts.next().is_none().then_some((session, seen))
    }

    /// What the response carries: the name and value of a header field. Renewed with every response where a
    /// pause ends a session.
    pub fn field(&self, rules: &SessionPersistence, now: SystemTime) -> (String, HeaderValue) {
        let seen = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = format!(
            "{}|{}|{}",
            self.endpoint,
            self.began.as_secs(),
            seen.as_secs()
        );
        let value = BASE64URL_NOPAD.encode(text.as_bytes());
        let name = &rules.name;
        let (field, value) = match rules.carrier {
            SessionCarrier::Header => (name.to_string(), value),
            SessionCarrier::SessionCookie => (
                "set-cookie".to_owned(),
                format!("{name}={value}; Path=/; HttpOnly"),
            ),
            SessionCarrier::PermanentCookie => {
                // When it began is the client's word: any number.
                let limit = rules.absolute_timeout;
                let ends = limit.map(|limit| self.began.saturating_add(limit));
                let left = ends.unwrap_or(seen).saturating_sub(seen).as_secs();
                (
                    "set-cookie".to_owned(),
                    format!("{name}={value}; Max-Age={left}; Path=/; HttpOnly"),
                )
            }
        };
        // A name that no header can hold was refused when the route was read.
        let value = HeaderValue::from_str(&value).unwrap_or_else(|_| HeaderValue::from_static(""));
        (field, value)
    }
}
