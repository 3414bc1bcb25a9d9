//! Limits that a rate limit service keeps for the whole mesh: what it is asked, and what its answer means
//! (`envoy.service.ratelimit.v3`). Pure.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::envoy::{
    self, CurrentLimit, DescriptorEntry, DescriptorStatus, LimitUnit, RateLimitCode,
    RateLimitDescriptor, RateLimitRequest, RateLimitResponse,
};

/// What is called.
pub const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// The names and values of one limit, in the order of its policy.
pub type Descriptor<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

/// What the service says of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ruling {
    /// It is one too many.
    pub is_over: bool,
    /// What it says of the strictest of the limits, if it knows any.
    pub standing: Option<GlobalStanding>,
    /// What the application shall hear, in place of what a client says.
    pub request_headers: HeaderMap,
    /// What the client shall hear, whoever answers.
    pub response_headers: HeaderMap,
    /// What the client hears if it is one too many.
    pub body: Bytes,
}

/// The limit that has the least left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalStanding {
    /// Requests that are left.
    pub remaining: u32,
    /// `x-ratelimit-limit`, `x-ratelimit-remaining`, `x-ratelimit-reset`, as Envoy writes them
    /// (`DRAFT_VERSION_03`): the first one lists all limits.
    pub fields: Vec<(HeaderName, HeaderValue)>,
}

/// The message that asks about one request: every descriptor counts, and the strictest decides.
pub fn question(domain: &str, descriptors: Vec<Descriptor<'_>>) -> Vec<u8> {
    let entry = |(key, value): (Cow<'_, str>, Cow<'_, str>)| DescriptorEntry {
        key: key.into_owned(),
        value: value.into_owned(),
    };
    let descriptor = |entries: Descriptor<'_>| RateLimitDescriptor {
        entries: entries.into_iter().map(entry).collect(),
    };
    envoy::encode(&RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: descriptors.into_iter().map(descriptor).collect(),
    })
}

/// What a message that answers means; `None` if it is none.
pub fn ruling(message: &[u8]) -> Option<Ruling> {
    let response: RateLimitResponse = envoy::decode(message)?;
    Some(Ruling {
        is_over: response.overall_code() == RateLimitCode::OverLimit,
        standing: standing(&response.statuses),
        request_headers: headers(&response.request_headers_to_add),
        response_headers: headers(&response.response_headers_to_add),
        body: Bytes::from(response.raw_body),
    })
}

fn headers(list: &[envoy::HeaderValue]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in list.iter().filter_map(envoy::HeaderValue::header) {
        let _more = headers.append(name, value);
    }
    headers
}

fn standing(statuses: &[DescriptorStatus]) -> Option<GlobalStanding> {
    let known = || {
        statuses
            .iter()
            .filter_map(|status| Some((status, status.current_limit.as_ref()?)))
    };
    let (strictest, limit) = known().min_by_key(|(status, _)| status.limit_remaining)?;
    let mut text = limit.requests_per_unit.to_string();
    for (_, limit) in known() {
        quota(limit, &mut text);
    }
    let reset = strictest.duration_until_reset.as_ref();
    let reset = reset.map_or(0, |time| time.seconds.max(0));
    let named = |name, value: HeaderValue| (HeaderName::from_static(name), value);
    Some(GlobalStanding {
        remaining: strictest.limit_remaining,
        fields: vec![
            named("x-ratelimit-limit", HeaderValue::try_from(text).ok()?),
            named("x-ratelimit-remaining", strictest.limit_remaining.into()),
            named("x-ratelimit-reset", reset.into()),
        ],
    })
}

/// `, 10;w=60;name="per user"`; nothing for a limit whose unit nobody knows.
fn quota(limit: &CurrentLimit, text: &mut String) {
    let window = match limit.unit() {
        LimitUnit::Unknown => return,
        LimitUnit::Second => 1,
        LimitUnit::Minute => 60,
        LimitUnit::Hour => 60 * 60,
        LimitUnit::Day => 24 * 60 * 60,
        // Envoy's: of 30 and of 365 days.
        LimitUnit::Month => 30 * 24 * 60 * 60,
        LimitUnit::Year => 365 * 24 * 60 * 60,
    };
    // Writing to a String cannot fail.
    let _infallible = write!(text, ", {};w={window}", limit.requests_per_unit);
    let is_quotable = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\') || c == ' ';
    if !limit.name.is_empty() && limit.name.chars().all(is_quotable) {
        let _infallible = write!(text, ";name=\"{}\"", limit.name);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::{question, ruling};
    use crate::envoy::{
        self, CurrentLimit, DescriptorStatus, Duration, HeaderValue, RateLimitRequest,
        RateLimitResponse,
    };

    fn status(limit: u32, unit: i32, name: &str, remaining: u32) -> DescriptorStatus {
        DescriptorStatus {
            current_limit: Some(CurrentLimit {
                requests_per_unit: limit,
                unit,
                name: name.to_owned(),
            }),
            limit_remaining: remaining,
            duration_until_reset: Some(Duration { seconds: 17 }),
        }
    }

    fn header(key: &str, value: &str) -> HeaderValue {
        HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            raw_value: Vec::new(),
        }
    }

    #[test]
    fn a_question_names_its_domain_and_each_descriptor() {
        let descriptors = vec![
            vec![
                ("method".into(), "GET".into()),
                ("x-user".into(), "".into()),
            ],
            vec![("path".into(), "/".into())],
        ];
        let asked: RateLimitRequest = envoy::decode(&question("shop", descriptors)).unwrap();
        let entries: Vec<Vec<(&str, &str)>> = asked
            .descriptors
            .iter()
            .map(|one| {
                let entries = one.entries.iter();
                entries.map(|it| (&*it.key, &*it.value)).collect()
            })
            .collect();
        assert_eq!(asked.domain, "shop");
        assert_eq!(
            entries,
            [vec![("method", "GET"), ("x-user", "")], vec![("path", "/")]]
        );
    }

    #[test]
    fn the_strictest_limit_is_told_and_all_are_listed() {
        let response = RateLimitResponse {
            overall_code: 1,
            statuses: vec![
                status(1000, 3, "", 7),
                DescriptorStatus::default(),
                status(10, 2, "per user", 3),
                status(5, 0, "nobody's", 9),
                status(6, 1, "a\"b", 9),
            ],
            ..RateLimitResponse::default()
        };
        let ruling = ruling(&envoy::encode(&response)).unwrap();
        let standing = ruling.standing.unwrap();
        let fields: HeaderMap = standing.fields.into_iter().collect();
        assert!(!ruling.is_over);
        assert_eq!(standing.remaining, 3);
        assert_eq!(
            fields["x-ratelimit-limit"],
            "10, 1000;w=3600, 10;w=60;name=\"per user\", 6;w=1"
        );
        assert_eq!(fields["x-ratelimit-remaining"], "3");
        assert_eq!(fields["x-ratelimit-reset"], "17");
    }

    #[test]
    fn one_too_many_is_told_in_the_services_words() {
        let response = RateLimitResponse {
            overall_code: 2,
            response_headers_to_add: vec![header("x-why", "too many"), header(":status", "200")],
            request_headers_to_add: vec![header("x-limit", "1"), header("a b", "2")],
            raw_body: b"slow down".to_vec(),
            ..RateLimitResponse::default()
        };
        let ruling = ruling(&envoy::encode(&response)).unwrap();
        assert!(ruling.is_over);
        assert_eq!(ruling.standing, None);
        assert_eq!(&*ruling.body, b"slow down");
        assert_eq!(ruling.response_headers["x-why"], "too many");
        assert_eq!(
            (ruling.response_headers.len(), ruling.request_headers.len()),
            (1, 1)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_ruling_or_none(message: Vec<u8>) {
            let _ruling = ruling(&message);
        }

        #[test]
        fn a_ruling_in_which_bytes_are_wrong_is_a_ruling_or_none(
            place: prop::sample::Index,
            byte: u8,
        ) {
            let response = RateLimitResponse {
                overall_code: 2,
                statuses: vec![status(1000, 3, "x", 7)],
                response_headers_to_add: vec![header("a", "b")],
                ..RateLimitResponse::default()
            };
            let mut message = envoy::encode(&response);
            let place = place.index(message.len());
            message[place] = byte;
            let _ruling = ruling(&message);
        }
    }
}
