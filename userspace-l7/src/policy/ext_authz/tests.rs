//! What authorizers are told, and what their answers come to.

mod answers;
mod questions;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use super::{Checked, CheckedPeer, ShownBody};
use crate::model::{HttpAuthorizer, RequestHead, SpiffeId, StringMatch};

/// Headers by name and value, several of one name in their order.
fn headers(list: &[(&str, &str)]) -> HeaderMap {
    let parsed = list.iter().map(|(name, value)| {
        let name: HeaderName = name.parse().unwrap();
        (name, HeaderValue::from_str(value).unwrap())
    });
    parsed.collect()
}

/// The same the other way round.
fn pairs(headers: &HeaderMap) -> Vec<(&str, &str)> {
    let pairs = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
    pairs.collect()
}

/// Istio's notation.
fn patterns(list: &[&str]) -> Vec<StringMatch> {
    let pattern = |text: &&str| match (text.strip_suffix('*'), text.strip_prefix('*')) {
        (Some(""), _) => StringMatch::Presence,
        (Some(prefix), _) => StringMatch::Prefix(prefix.into()),
        (None, Some(suffix)) => StringMatch::Suffix(suffix.into()),
        (None, None) => StringMatch::Exact((*text).into()),
    };
    list.iter().map(pattern).collect()
}

/// A POST of `/a?b=c` to `shop.example:80` with these headers.
struct Request {
    headers: HeaderMap,
    body: Option<ShownBody>,
    client: SpiffeId,
}

impl Request {
    fn with(list: &[(&str, &str)]) -> Self {
        Self {
            headers: headers(list),
            body: None,
            client: "spiffe://td/ns/web/sa/client".parse().unwrap(),
        }
    }

    fn showing(mut self, bytes: &'static [u8], is_partial: bool) -> Self {
        self.body = Some(ShownBody {
            bytes: bytes.into(),
            is_partial,
        });
        self
    }

    fn checked(&self) -> Checked<'_> {
        Checked {
            head: RequestHead {
                method: &Method::POST,
                scheme: "http",
                authority: "shop.example:80",
                path: "/x/../a",
                query: Some("b=c"),
                headers: &self.headers,
            },
            path: "/a",
            version: Version::HTTP_11,
            source: CheckedPeer {
                address: "[::ffff:10.0.0.1]:4711".parse().unwrap(),
                identity: Some(&self.client),
            },
            destination: CheckedPeer {
                address: "10.0.0.2:8080".parse().unwrap(),
                identity: None,
            },
            body: self.body.clone(),
        }
    }
}

fn settings() -> HttpAuthorizer {
    HttpAuthorizer::default()
}
