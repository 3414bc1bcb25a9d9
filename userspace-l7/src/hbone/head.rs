//! What a tunnel's HEADERS mean: CONNECT requests and their answers (RFC 9113 §8.5, with ztunnel's headers).
//!
//! Everything here parses what a peer sent, and none of it decides who the peer is. Headers that only inform
//! and do not parse are as good as absent; unknown ones are ignored.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;

use smallvec::SmallVec;

use super::authority::{Authority, ServiceClaim};
use super::baggage::Baggage;
use super::cause::Cause;
use super::forwarded::Forwarded;
use super::hpack::{ENTRY_OVERHEAD, put_field};
use super::opening::OpeningClaim;
use crate::model::Side;
use crate::telemetry::trace::Traceparent;

/// The largest list of fields that we send (ztunnel's client accepts no more).
const MAX_SENT: usize = 16 << 10;

/// The header that says why an application could not be reached.
const CAUSE: &str = "x-culvert-errno";

/// The header that says through which of a service's waypoints a connection goes, where it is not the first.
const WAYPOINT: &str = "x-culvert-waypoint";
/// Its one value.
const CANARY: &str = "canary";

/// The header that says as what a connection to the application has to begin.
const OPENING: &str = "x-culvert-opening";

/// The header that says in words why an application could not be reached.
const REASON: &str = "x-culvert-reason";
/// Longest reason that is told.
const MAX_REASON: usize = 512;

/// Longest network name that is believed.
const MAX_NETWORK: usize = 253;

/// A decoded header list; names are lower case on the wire. One buffer holds all of it.
#[derive(Debug, Default)]
pub(super) struct Fields {
    text: Vec<u8>,
    /// Where each field's name and value end.
    ends: SmallVec<[(usize, usize); 8]>,
}

impl Fields {
    /// With room for what a block of `length` bytes usually stands for.
    pub(super) fn of_block(length: usize) -> Self {
        Self {
            text: Vec::with_capacity((2 * length).max(512)),
            ends: SmallVec::new(),
        }
    }

    pub(super) fn push(&mut self, name: &[u8], value: &[u8]) {
        self.text.extend_from_slice(name);
        let name = self.text.len();
        self.text.extend_from_slice(value);
        self.ends.push((name, self.text.len()));
    }

    /// Names and values in the order of the wire.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(name, value)| {
            let field = (&self.text[start..name], &self.text[name..value]);
            start = value;
            field
        })
    }
}

/// A request for a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Whom it asks for.
    pub authority: Authority,
    /// The source workload, as its own node describes it: what [`Baggage::parse`] reads.
    pub baggage: Option<String>,
    /// The client's address and the service it called, as its own node says.
    pub forwarded: Forwarded,
    /// Trace context; made anew where the peer sent none that is valid.
    pub traceparent: Traceparent,
    /// The client's network, if the request crossed from another one.
    pub forwarded_network: Option<String>,
    /// The service that the client says it called.
    pub service: Option<ServiceClaim>,
    /// As what the connection to the application has to begin: whoever does not know that must not begin it.
    pub opening: Option<OpeningClaim>,
}

impl ConnectRequest {
    /// A request for `authority`, with a trace of its own.
    pub fn new(authority: Authority) -> Self {
        Self {
            authority,
            baggage: None,
            forwarded: Forwarded::default(),
            traceparent: Traceparent::random(),
            forwarded_network: None,
            service: None,
            opening: None,
        }
    }

    /// A request for an address.
    pub fn to_address(address: SocketAddr) -> Self {
        Self::new(Authority::Address(address))
    }

    /// Says which workload the connection comes from.
    #[must_use]
    pub fn from_workload(mut self, baggage: &Baggage) -> Self {
        self.baggage = Some(baggage.text());
        self
    }

    /// Says which client the connection comes from, unless it is the workload itself, and the hostname of the service that it called.
    #[must_use]
    pub fn forwarded(mut self, client: Option<SocketAddr>, host: Option<&str>) -> Self {
        self.forwarded = Forwarded {
            client,
            host: host.map(str::to_owned),
        };
        self
    }

    /// Says which service the client called.
    #[must_use]
    pub fn for_service(mut self, service: ServiceClaim) -> Self {
        self.service = Some(service);
        self
    }

    /// Says as what the connection to the application has to begin.
    #[must_use]
    pub fn opened_as(mut self, opening: OpeningClaim) -> Self {
        self.opening = Some(opening);
        self
    }

    /// The client's address, as its node says.
    pub fn forwarded_for(&self) -> Option<SocketAddr> {
        self.forwarded.client
    }

    /// The hostname of the service that the client called, as its node says.
    pub fn forwarded_host(&self) -> Option<&str> {
        self.forwarded.host.as_deref()
    }

    /// The header block, fields in the order that ztunnel sends them; informing ones that would exceed `limit`
    /// are left out.
    pub(super) fn encode(&self, limit: usize) -> Vec<u8> {
        let mut block = Block::new(limit);
        block.put(":method", Some("CONNECT"));
        let mut text = String::with_capacity(64);
        block.put_displayed(":authority", &self.authority, &mut text);
        // Before all that may have to be left out for want of room.
        if let Some(opening) = &self.opening {
            block.put_displayed(OPENING, opening, &mut text);
        }
        block.put("baggage", self.baggage.as_deref());
        if !self.forwarded.is_empty() {
            block.put_displayed("forwarded", &self.forwarded, &mut text);
        }
        block.put_displayed("traceparent", &self.traceparent, &mut text);
        block.put("x-forwarded-network", self.forwarded_network.as_deref());
        if let Some(service) = &self.service {
            block.put_displayed("x-culvert-service", service, &mut text);
        }
        let side = self.service.as_ref().map(|service| service.side);
        block.put(
            WAYPOINT,
            side.filter(|side| *side == Side::Canary).map(|_| CANARY),
        );
        block.bytes
    }

    /// Reads a request. `None` where it is no CONNECT, or names no one (RFC 9113 §8.5); both are answered with
    /// 400.
    pub(super) fn decode(fields: &Fields) -> Option<Self> {
        if only(fields, ":method")? != "CONNECT" {
            return None;
        }
        // Extended CONNECT (RFC 8441) carries these and asks for something else.
        let mut names = fields.iter().map(|(name, _)| name);
        if names.any(|name| [&b":scheme"[..], b":path", b":protocol"].contains(&name)) {
            return None;
        }
        let authority = Authority::parse(only(fields, ":authority")?)?;
        let traceparent = only(fields, "traceparent").and_then(Traceparent::parse);
        let network = only(fields, "x-forwarded-network");
        // It informs no one: what cannot be read cannot be overlooked.
        let opening = if fields.iter().any(|(name, _)| name == OPENING.as_bytes()) {
            Some(OpeningClaim::parse(only(fields, OPENING)?)?)
        } else {
            None
        };
        let side = match only(fields, WAYPOINT) {
            Some(CANARY) => Side::Canary,
            _ => Side::Primary,
        };
        Some(Self {
            authority,
            baggage: only(fields, "baggage").map(str::to_owned),
            forwarded: only(fields, "forwarded")
                .map(Forwarded::parse)
                .unwrap_or_default(),
            traceparent: traceparent.unwrap_or_else(Traceparent::random),
            forwarded_network: network
                .filter(|name| name.len() <= MAX_NETWORK)
                .map(str::to_owned),
            service: only(fields, "x-culvert-service")
                .and_then(ServiceClaim::parse)
                .map(|claim| ServiceClaim { side, ..claim }),
            opening,
        })
    }
}

/// The answer to a request for a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectResponse {
    /// 200, or why not.
    pub status: u16,
    /// The destination workload, as its own node describes it ([`Baggage::parse`]); only with 200.
    pub baggage: Option<String>,
    /// Why the application could not be reached; only with 503, and only from Culvert.
    pub cause: Option<Cause>,
    /// The same in words, where no `connect` would have failed; only from Culvert.
    pub reason: Option<String>,
}

impl ConnectResponse {
    /// The tunnel stands; `baggage` describes the destination.
    pub fn accepted(baggage: Option<&Baggage>) -> Self {
        Self {
            status: 200,
            baggage: baggage.map(Baggage::text),
            cause: None,
            reason: None,
        }
    }

    /// A refusal, and why nobody answered if that is the reason.
    pub fn refused(status: u16, cause: Option<Cause>) -> Self {
        Self {
            status,
            baggage: None,
            cause,
            reason: None,
        }
    }

    /// Says in words why, as far as a header can hold them.
    #[must_use]
    pub fn because(mut self, reason: &str) -> Self {
        let printable = reason.chars().filter(|c| matches!(c, ' '..='~'));
        self.reason = Some(printable.take(MAX_REASON).collect());
        self
    }

    /// Whether there is a tunnel now: "Any 2xx response" (RFC 9110 §9.3.6).
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub(super) fn encode(&self, limit: usize) -> Vec<u8> {
        let mut block = Block::new(limit);
        let status = match self.status {
            200 => Cow::Borrowed("200"),
            other => Cow::Owned(format!("{other:03}")),
        };
        block.put(":status", Some(&status));
        block.put("baggage", self.baggage.as_deref());
        block.put(CAUSE, self.cause.map(Cause::name));
        block.put(REASON, self.reason.as_deref());
        block.bytes
    }

    /// Reads an answer; `None` without a status of three digits.
    pub(super) fn decode(fields: &Fields) -> Option<Self> {
        let status = only(fields, ":status")?;
        let digits = status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit());
        let status = digits.then(|| status.parse().ok())??;
        Some(Self {
            status,
            baggage: only(fields, "baggage").map(str::to_owned),
            cause: only(fields, CAUSE).and_then(Cause::parse),
            reason: only(fields, REASON)
                .filter(|reason| reason.len() <= MAX_REASON)
                .map(str::to_owned),
        })
    }
}

/// A header block being written, within a limit on the list that it stands for.
struct Block {
    bytes: Vec<u8>,
    left: usize,
}

impl Block {
    fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(512),
            left: limit.min(MAX_SENT),
        }
    }

    /// As [`put`](Self::put), by way of `text`, whose content is of no interest before or after.
    fn put_displayed(&mut self, name: &str, value: &impl fmt::Display, text: &mut String) {
        text.clear();
        // Writing to a string does not fail, and a header that informs may be left out.
        let written = write!(text, "{value}");
        self.put(name, written.is_ok().then_some(&**text));
    }

    /// A value that HTTP forbids (RFC 9110 §5.5) would break the request for a header that only informs.
    fn put(&mut self, name: &str, value: Option<&str>) {
        let Some(value) =
            value.filter(|value| !value.bytes().any(|byte| byte < b' ' || byte == 0x7f))
        else {
            return;
        };
        let Some(left) = self
            .left
            .checked_sub(name.len() + value.len() + ENTRY_OVERHEAD)
        else {
            return;
        };
        self.left = left;
        put_field(&mut self.bytes, name, value.as_bytes());
    }
}

/// The value of a field that stands once and is text. A field that stands twice is trusted no more than one
/// that is absent: two readers could pick different ones.
fn only<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    let mut values = fields.iter().filter(|(field, _)| *field == name.as_bytes());
    let (_, value) = values.next().filter(|_| values.next().is_none())?;
    std::str::from_utf8(value).ok()
}

#[cfg(test)]
mod tests {
    use super::super::hpack::Decoder;
    use super::*;

    fn fields(list: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::default();
        for (name, value) in list {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        fields
    }

    fn decoded(block: &[u8]) -> Fields {
        let mut fields = Fields::default();
        Decoder::new()
            .decode(block, |name, value| fields.push(name, value))
            .unwrap();
        fields
    }

    #[track_caller]
    fn check(list: &[(&str, &str)], accepted: bool) {
        assert_eq!(
            ConnectRequest::decode(&fields(list)).is_some(),
            accepted,
            "{list:?}"
        );
    }

    #[test]
    fn only_a_plain_connect_asks_for_a_tunnel() {
        let (method, authority) = ((":method", "CONNECT"), (":authority", "10.0.0.1:80"));
        check(&[method, authority], true);
        check(
            &[
                method,
                authority,
                ("x-more", "y"),
                ("baggage", ",,"),
                ("traceparent", "?"),
            ],
            true,
        );
        check(&[(":method", "GET"), authority], false);
        check(&[(":method", "connect"), authority], false);
        check(&[method], false);
        check(&[authority], false);
        check(&[method, authority, authority], false);
        check(&[method, authority, (":protocol", "websocket")], false);
        check(&[method, authority, (":path", "/")], false);
        check(
            &[
                method,
                authority,
                (":scheme", "https"),
                (":scheme", "https"),
            ],
            false,
        );
    }

    fn request() -> ConnectRequest {
        let baggage = Baggage {
            namespace: "web".into(),
            workload: "curl".into(),
            ..Baggage::default()
        };
        ConnectRequest {
            forwarded_network: Some("n1".to_owned()),
            ..ConnectRequest::to_address("[fd00::2]:9080".parse().unwrap())
                .from_workload(&Baggage {
                    workload_type: "pod".into(),
                    ..baggage
                })
                .forwarded(
                    Some("10.0.0.9:4711".parse().unwrap()),
                    Some("reviews.web.svc.cluster.local"),
                )
                .for_service(ServiceClaim::parse("web/reviews:9080").unwrap())
        }
    }

    #[test]
    fn requests_and_responses_survive_the_wire() {
        let wire = decoded(&request().encode(MAX_SENT));
        let names: Vec<_> = wire
            .iter()
            .map(|(name, _)| std::str::from_utf8(name).unwrap())
            .collect();
        let order = [
            ":method",
            ":authority",
            "baggage",
            "forwarded",
            "traceparent",
            "x-forwarded-network",
            "x-culvert-service",
        ];
        assert_eq!(names, order);
        let read = ConnectRequest::decode(&wire).unwrap();
        assert_eq!(
            ConnectRequest {
                traceparent: read.traceparent,
                ..request()
            },
            read
        );
        let accepted = ConnectResponse::accepted(Some(&Baggage::default()));
        let refused = ConnectResponse::refused(503, None);
        let unreachable = ConnectResponse::refused(503, Some(Cause::HostUnreachable));
        let told = ConnectResponse::refused(503, None).because("TLS_error:\r\n no");
        assert_eq!(told.reason.as_deref(), Some("TLS_error: no"));
        for response in [refused, unreachable, told, accepted] {
            assert_eq!(
                ConnectResponse::decode(&decoded(&response.encode(MAX_SENT))),
                Some(response)
            );
        }
    }

    #[test]
    fn an_opening_that_cannot_be_read_is_no_request() {
        let with = |opening: &str| {
            ConnectRequest::decode(&fields(&[
                (":method", "CONNECT"),
                (":authority", "10.0.0.1:80"),
                ("x-culvert-opening", opening),
            ]))
        };
        let claim = with("web/reviews:9080;speaks=http2").unwrap();
        assert!(claim.opening.is_some());
        for broken in ["", "reviews", "web/reviews:9080;later=1"] {
            assert_eq!(with(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_status_has_three_digits() {
        for status in ["", "20", "2000", "+20", "abc"] {
            assert_eq!(
                ConnectResponse::decode(&fields(&[(":status", status)])),
                None,
                "{status}"
            );
        }
        let success = |status| ConnectResponse::refused(status, None).is_success();
        assert_eq!(
            [199, 200, 204, 299, 300, 503].map(success),
            [false, true, true, true, false, false]
        );
    }

    #[test]
    fn what_the_peer_would_not_accept_is_left_out() {
        let mut request = request();
        request.forwarded.host = Some("x".repeat(20_000));
        request.forwarded_network = Some("a\r\nb".to_owned());
        let wire = decoded(&request.encode(usize::MAX));
        assert!(only(&wire, "forwarded").is_none());
        assert!(only(&wire, "x-forwarded-network").is_none());
        assert!(only(&wire, "x-culvert-service").is_some());
    }
}
