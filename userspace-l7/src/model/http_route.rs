//! Compiled HTTP routes: what HTTPRoute, GRPCRoute and VirtualService mean, in one form.

mod index;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use index::RouteIndex;
use regex::Regex;

use super::request_head::RequestHead;
use super::service::NamespacedHostname;

/// All routes of one service port, in order of precedence: the first entry that matches is the one.
///
/// What compiles a table sorts it (Gateway API HTTPRoute: exact path, longest prefix, method, most headers,
/// most query parameters, then the oldest route, its name, the rule's place). VirtualService is not sorted:
/// its own order is its precedence.
#[derive(Clone, Debug, Default)]
pub struct HttpRouteTable {
    entries: Vec<HttpRouteEntry>,
    index: RouteIndex,
    /// GRPCRoutes: what matches nothing is answered with UNIMPLEMENTED.
    pub is_grpc: bool,
}

impl PartialEq for HttpRouteTable {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries && self.is_grpc == other.is_grpc
    }
}

impl HttpRouteTable {
    /// A table of entries that stand in their order of precedence.
    pub fn new(entries: Vec<HttpRouteEntry>, is_grpc: bool) -> Self {
        Self {
            index: RouteIndex::new(&entries),
            entries,
            is_grpc,
        }
    }

    /// All entries, one for each match of each rule, in their order of precedence.
    pub fn entries(&self) -> &[HttpRouteEntry] {
        &self.entries
    }

    /// The entries that a request could match, in their order of precedence: all that it does match, and few
    /// others.
    pub fn candidates<'t>(
        &'t self,
        head: &RequestHead<'_>,
    ) -> impl Iterator<Item = &'t HttpRouteEntry> {
        let places = self.index.candidates(head);
        places.filter_map(|place| self.entries.get(usize::try_from(place).ok()?))
    }
}

/// One match, and what to do then.
#[derive(Clone, Debug)]
pub struct HttpRouteEntry {
    /// When. The tables that a match stands in share it.
    pub matches: Arc<HttpMatch>,
    /// What. Matches of one rule share it.
    pub rule: Arc<HttpRule>,
}

/// What is shared is equal: thousands of entries stay as they are when one changes.
impl PartialEq for HttpRouteEntry {
    fn eq(&self, other: &Self) -> bool {
        (Arc::ptr_eq(&self.matches, &other.matches) || self.matches == other.matches)
            && (Arc::ptr_eq(&self.rule, &other.rule) || self.rule == other.rule)
    }
}

/// AND of its fields.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct HttpMatch {
    /// Path, without the query.
    pub path: PathMatch,
    /// Whether the path is compared without regard to case (VirtualService only).
    pub ignore_path_case: bool,
    /// Method.
    pub method: Option<TextMatch>,
    /// `:authority` or `Host` (VirtualService only: Gateway API routes of a mesh ignore hostnames).
    pub authority: Option<TextMatch>,
    /// AND. Several values of one header are matched as one, joined by commas.
    pub headers: Vec<HeaderMatch>,
    /// AND: none of these may match (VirtualService only).
    pub without_headers: Vec<HeaderMatch>,
    /// AND. The first value of a repeated parameter counts.
    pub query: Vec<QueryMatch>,
}

/// How a path is matched.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum PathMatch {
    /// Any path.
    #[default]
    Any,
    /// The same path.
    Exact(Arc<str>),
    /// By path element: `/v2` matches `/v2`, `/v2/` and `/v2/x`, not `/v2x`. Kept without a trailing slash;
    /// `/` is [`PathMatch::Any`] with a length, kept as the empty text.
    Prefix(Arc<str>),
    /// By text: `/v2` matches `/v2x` too (VirtualService).
    TextPrefix(Arc<str>),
    /// The whole path, in RE2's syntax.
    Regex(FullRegex),
}

/// How a text is matched.
#[derive(Clone, Debug, PartialEq)]
pub enum TextMatch {
    /// The same text.
    Exact(Arc<str>),
    /// A beginning (VirtualService).
    Prefix(Arc<str>),
    /// The whole text, in RE2's syntax.
    Regex(FullRegex),
    /// There at all, whatever its value (VirtualService: an empty match).
    Present,
}

/// A regular expression that the whole text has to match.
#[derive(Clone, Debug)]
pub struct FullRegex(Regex);

/// Largest compiled form, so that one route cannot take a node's memory.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

impl FullRegex {
    /// Compiles a pattern. The engine takes linear time in the text, as RE2 does.
    ///
    /// # Errors
    /// The pattern is no regular expression, or too large.
    pub fn new(pattern: &str) -> Result<Self, regex::Error> {
        regex::RegexBuilder::new(&format!("^(?:{pattern})$"))
            .size_limit(REGEX_SIZE_LIMIT)
            .build()
            .map(Self)
    }

    /// Whether the whole text matches.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// The pattern as it was written.
    pub fn pattern(&self) -> &str {
        let anchored = self.0.as_str();
        anchored
            .strip_prefix("^(?:")
            .and_then(|rest| rest.strip_suffix(")$"))
            .unwrap_or(anchored)
    }
}

impl PartialEq for FullRegex {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// How a header is matched.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    /// Name; compared without regard to case.
    pub name: HeaderName,
    /// Value.
    pub value: TextMatch,
}

/// How a query parameter is matched.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryMatch {
    /// Name; compared with regard to case, after percent-decoding.
    pub name: Arc<str>,
    /// Value, percent-decoded.
    pub value: TextMatch,
}

/// What happens to a request that matched.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRule {
    /// The rule's own name, or `<namespace>.<route>.<rule index>`: what the access log calls `ROUTE_NAME`.
    pub name: Arc<str>,
    /// The object that it is from, `<kind> <namespace>/<name>`, for people.
    pub origin: Arc<str>,
    /// The end.
    pub action: HttpAction,
    /// Applied to the request before it is forwarded.
    pub request_headers: HeaderModifier,
    /// Applied to the response.
    pub response_headers: HeaderModifier,
    /// New host or path.
    pub rewrite: Option<Rewrite>,
    /// Copies of the request, whose answers nobody reads.
    pub mirrors: Vec<Mirror>,
    /// Cross-origin requests.
    pub cors: Option<Arc<Cors>>,
    /// Delays and aborts on purpose.
    pub fault: Option<Fault>,
    /// From the request's arrival to the end of the response; `None` without limit.
    pub timeout: Option<Duration>,
    /// When to try again.
    pub retry: RetryPolicy,
    /// Which later requests go to the same endpoint.
    pub session: Option<SessionPersistence>,
    /// Whether this rule was valid in all its parts; `false` answers 500 to what matches.
    pub is_usable: bool,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum HttpAction {
    /// One of these takes it, by weight. No backend or no weight: 500.
    Forward(Vec<WeightedBackend>),
    /// The client shall ask elsewhere.
    Redirect(Redirect),
    /// An answer of the proxy's own (VirtualService's `directResponse`).
    Respond {
        /// Its status.
        status: StatusCode,
        /// Its body.
        body: Arc<str>,
    },
}

/// One backend of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedBackend {
    /// Its share of the sum of all weights, invalid ones included; 0 is never chosen.
    pub weight: u32,
    /// What it is.
    pub target: BackendTarget,
    /// Applied to the request, after the rule's.
    pub request_headers: HeaderModifier,
    /// Applied to the response, before the rule's.
    pub response_headers: HeaderModifier,
}

/// What a backend reference came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendTarget {
    /// A service's endpoints.
    Service {
        /// Which service.
        service: NamespacedHostname,
        /// Its service port.
        port: u16,
        /// Only this subset of the endpoints (DestinationRule).
        subset: Option<Arc<str>>,
    },
    /// Nothing that can be used: 500 for its share.
    Invalid {
        /// Why, for people: the route's `ResolvedRefs` message.
        why: Arc<str>,
    },
}

/// Changes of a header list: `set` overwrites, `add` appends, `remove` takes away.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct HeaderModifier {
    /// In place of what is there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Besides what is there.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Names to take away.
    pub remove: Vec<HeaderName>,
    /// `Host` or `:authority` is set to this.
    pub authority: Option<HeaderValue>,
}

/// A redirect (Gateway API `RequestRedirect`, Istio's `HTTPRedirect`).
#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    /// `http` or `https`; `None` keeps the request's.
    pub scheme: Option<Arc<str>>,
    /// `None` keeps the request's. Istio's may have a port.
    pub hostname: Option<Arc<str>>,
    /// `None` keeps the request's path.
    pub path: Option<PathChange>,
    /// Which port it names.
    pub port: RedirectPort,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// The port that a redirect names. A scheme's well-known one is never spelled out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedirectPort {
    /// The well-known one of the redirect's scheme if it sets one, else the service's that was called (Gateway API).
    #[default]
    Derived,
    /// The service's that was called (Istio's `FROM_REQUEST_PORT`).
    Called,
    /// What its authority has, which may be none (Istio).
    OfAuthority,
    /// This one.
    Number(u16),
}

/// A change of the request's target.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Rewrite {
    /// New `Host` or `:authority`.
    pub hostname: Option<HeaderValue>,
    /// New path.
    pub path: Option<PathChange>,
}

/// How a path changes; the query stays.
#[derive(Clone, Debug, PartialEq)]
pub enum PathChange {
    /// The whole path.
    Full(Arc<str>),
    /// The prefix that the match named, by path element.
    Prefix(Arc<str>),
    /// What matches is replaced, `\1` standing for the first group (VirtualService's `uriRegexRewrite`).
    Regex {
        /// Searched for in the path.
        pattern: SearchRegex,
        /// In `regex`'s replacement syntax.
        replacement: Arc<str>,
    },
}

/// A regular expression that is searched for.
#[derive(Clone, Debug)]
pub struct SearchRegex(pub Regex);

impl PartialEq for SearchRegex {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// A copy of the request for somebody else.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// For whom.
    pub target: BackendTarget,
    /// Of a million requests, how many are copied.
    pub per_million: u32,
    /// Whether `-shadow` is appended to the host, so that the copy can be told apart (Istio's default).
    pub shadow_host: bool,
}

/// Cross-origin resource sharing (Gateway API `CORS`, Istio `corsPolicy`).
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Cors {
    /// Origins that are let in.
    pub allow_origins: Vec<OriginMatch>,
    /// Methods for a preflight; `*` for any.
    pub allow_methods: Vec<Arc<str>>,
    /// Headers for a preflight; `*` for any.
    pub allow_headers: Vec<Arc<str>>,
    /// Headers that scripts may read; `*` for any.
    pub expose_headers: Vec<Arc<str>>,
    /// Whether credentials are let in.
    pub allow_credentials: bool,
    /// How long a preflight's answer holds.
    pub max_age: Option<Duration>,
    /// Whether a preflight from elsewhere is still forwarded (Istio `unmatchedPreflights: FORWARD`).
    pub forward_unmatched: bool,
}

/// How an origin is matched.
#[derive(Clone, Debug, PartialEq)]
pub enum OriginMatch {
    /// `*`.
    Any,
    /// The same text.
    Exact(Arc<str>),
    /// `https://*.example.com`: scheme and suffix, at least one label between.
    Wildcard {
        /// With `://`.
        scheme: Arc<str>,
        /// With the leading dot, and the port if it has one.
        suffix: Arc<str>,
    },
    /// A beginning (Istio).
    Prefix(Arc<str>),
    /// The whole origin (Istio).
    Regex(FullRegex),
}

/// A fault injected on purpose (VirtualService's `fault`).
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Fault {
    /// Wait before anything else.
    pub delay: Option<FaultDelay>,
    /// Answer in the backend's place.
    pub abort: Option<FaultAbort>,
}

/// A delay.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultDelay {
    /// How long.
    pub duration: Duration,
    /// Of a million requests, how many.
    pub per_million: u32,
}

/// An abort.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultAbort {
    /// What the client gets.
    pub answer: AbortAnswer,
    /// Of a million requests, how many.
    pub per_million: u32,
}

/// What an aborted request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortAnswer {
    /// An HTTP status.
    Http(StatusCode),
    /// A gRPC status code, with HTTP 200.
    Grpc(u16),
}

/// When a failed attempt is made again.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts besides the first; 0 never tries again.
    pub attempts: u32,
    /// What is worth another attempt.
    pub on: RetryOn,
    /// HTTP statuses that are worth another attempt.
    pub statuses: Vec<StatusCode>,
    /// Time that one attempt has.
    pub per_try_timeout: Option<Duration>,
    /// The first pause; later ones double, with full jitter, up to ten times this.
    pub backoff: Duration,
    /// Whether an endpoint that failed is tried again for the same request.
    pub same_endpoint: bool,
}

/// Envoy's default pause before the first retry.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);

/// Istio's default policy: two more attempts, where the request cannot have been processed.
impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            on: RetryOn {
                connect_failure: true,
                refused_stream: true,
                grpc_unavailable: true,
                grpc_cancelled: true,
                ..RetryOn::default()
            },
            statuses: Vec::new(),
            per_try_timeout: None,
            backoff: DEFAULT_BACKOFF,
            same_endpoint: false,
        }
    }
}

impl RetryPolicy {
    /// One attempt only.
    pub fn never() -> Self {
        Self {
            attempts: 0,
            ..Self::default()
        }
    }
}

/// Conditions for another attempt, by Envoy's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a word of Envoy's `retry_on`, and any set of them may be chosen"
)]
pub struct RetryOn {
    /// No connection could be made: no byte has left.
    pub connect_failure: bool,
    /// The server refused the stream before processing it.
    pub refused_stream: bool,
    /// The connection ended without a response.
    pub reset: bool,
    /// As `reset`, but only before any of the request was sent.
    pub reset_before_request: bool,
    /// 502, 503 or 504, or no response.
    pub gateway_error: bool,
    /// Any 5xx, or no response.
    pub server_error: bool,
    /// 409.
    pub retriable_4xx: bool,
    /// A response whose server says that it is one of too many (`x-envoy-ratelimited`).
    pub rate_limited: bool,
    /// gRPC 1.
    pub grpc_cancelled: bool,
    /// gRPC 4.
    pub grpc_deadline_exceeded: bool,
    /// gRPC 13.
    pub grpc_internal: bool,
    /// gRPC 8.
    pub grpc_resource_exhausted: bool,
    /// gRPC 14.
    pub grpc_unavailable: bool,
}

/// Session persistence (Gateway API).
#[derive(Clone, Debug, PartialEq)]
pub struct SessionPersistence {
    /// Name of the cookie or header.
    pub name: Arc<str>,
    /// Where it is carried.
    pub carrier: SessionCarrier,
    /// Longest life of a session.
    pub absolute_timeout: Option<Duration>,
    /// Longest pause in a session.
    pub idle_timeout: Option<Duration>,
}

/// Where a session is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionCarrier {
    /// A cookie that ends with the browser's session.
    SessionCookie,
    /// A cookie with the absolute timeout as its age.
    PermanentCookie,
    /// A header.
    Header,
}

/// A method match for one method.
impl From<Method> for TextMatch {
    fn from(method: Method) -> Self {
        Self::Exact(method.as_str().into())
    }
}
