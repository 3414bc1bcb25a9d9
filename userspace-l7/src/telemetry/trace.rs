//! Trace contexts of requests: read from what came in, or started; passed on to the next hop. Pure.
//!
//! Both forms that Istio's meshes use are understood: W3C Trace Context, and B3 with one header or several.
//! A context goes on in every form that it came in, so that an application which knows only one of them
//! finds it; one that starts here goes in the form that the mesh's provider wants.

mod b3;
#[cfg(test)]
mod tests;
mod traceparent;

use http::{HeaderMap, HeaderName, HeaderValue};

pub use traceparent::Traceparent;

use crate::model::{Propagation, TracingSettings};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Decides about traces that start here.
pub struct Sampler<'a> {
    settings: &'a TracingSettings,
    random: &'a mut dyn FnMut() -> u64,
}

impl<'a> Sampler<'a> {
    /// `random` gives numbers for identifiers and for the draw: spread evenly, and unlikely to come twice.
    pub fn new(settings: &'a TracingSettings, random: &'a mut dyn FnMut() -> u64) -> Self {
        Self { settings, random }
    }

    fn draw(&mut self, received: &HeaderMap) -> bool {
        let named = received
            .get(REQUEST_ID)
            .filter(|_| self.settings.by_request_id)
            .and_then(|id| lot_of(id.as_bytes()));
        // The modulus favours no number by more than one part in ten million million; of the eight digits of
        // a name by no more than one in four thousand.
        let lot = named.unwrap_or_else(|| (self.random)());
        lot % MILLION < u64::from(self.settings.sampled_per_million)
    }

    /// All zero is no identifier (W3C Trace Context §3.2.2.3).
    fn identifier(&mut self) -> [u8; 8] {
        (self.random)().max(1).to_be_bytes()
    }

    fn trace(&mut self) -> [u8; 16] {
        let mut trace = [0; 16];
        let (high, low) = trace.split_at_mut(8);
        high.copy_from_slice(&self.identifier());
        low.copy_from_slice(&self.identifier());
        trace
    }
}

const MILLION: u64 = 1_000_000;

/// The first eight digits of a UUID, which Envoy samples by, too.
fn lot_of(request_id: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(request_id.get(..8)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

/// The span that a request is within, here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    parent: Option<[u8; 8]>,
    span: [u8; 8],
    is_sampled: bool,
    forms: Forms,
}

/// In which forms a context is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Forms {
    w3c: bool,
    b3_single: bool,
    b3_multi: bool,
}

impl Forms {
    fn of(headers: &HeaderMap) -> Self {
        Self {
            w3c: headers.contains_key(TRACEPARENT),
            b3_single: headers.contains_key(b3::SINGLE),
            b3_multi: headers.contains_key(b3::TRACE),
        }
    }

    fn preferred(propagation: Propagation) -> Self {
        match propagation {
            Propagation::W3c => Self {
                w3c: true,
                ..Self::default()
            },
            Propagation::B3 => Self {
                b3_multi: true,
                ..Self::default()
            },
        }
    }
}

/// What came in, in whichever form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Received {
    trace: [u8; 16],
    span: [u8; 8],
    /// `None`: the sender left the decision to us (B3 only).
    is_sampled: Option<bool>,
}

impl TraceContext {
    /// Goes on with the context of `received`, or starts one. A context that does not parse counts as none
    /// (W3C Trace Context §3.3). Where both forms came in and disagree, W3C's holds.
    pub fn of(received: &HeaderMap, sampler: &mut Sampler<'_>) -> Self {
        let found = read_w3c(received).or_else(|| b3::read(received));
        let span = sampler.identifier();
        match found {
            Some(found) => Self {
                trace: found.trace,
                parent: Some(found.span),
                span,
                is_sampled: found.is_sampled.unwrap_or_else(|| sampler.draw(received)),
                forms: Forms::of(received),
            },
            None => Self {
                trace: sampler.trace(),
                parent: None,
                span,
                // B3 lets a sender decide without being in a trace itself: `b3: 0`.
                is_sampled: b3::decision(received).unwrap_or_else(|| sampler.draw(received)),
                forms: Forms::preferred(sampler.settings.propagation),
            },
        }
    }

    /// Names the trace. Never all zero.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace
    }

    /// Names the span here. Never all zero.
    pub fn span_id(&self) -> [u8; 8] {
        self.span
    }

    /// The sender's span; `None` if the trace starts here.
    pub fn parent_id(&self) -> Option<[u8; 8]> {
        self.parent
    }

    /// Whether the span is recorded.
    pub fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// Writes the context for the next hop, in place of what is there. A `tracestate` stays only beside the
    /// `traceparent` that it belongs to (W3C Trace Context §3.3.1.2).
    pub fn inject(&self, headers: &mut HeaderMap) {
        if self.forms.w3c && self.parent.is_some() {
            // Several lines of `tracestate` are one list: they go on as they are.
        } else {
            let _old = headers.remove(TRACESTATE);
        }
        let _old = headers.remove(TRACEPARENT);
        b3::clear(headers);
        if self.forms.w3c {
            let parent = Traceparent::with_sampling(self.trace, self.span, self.is_sampled);
            insert(headers, TRACEPARENT, &parent.to_string());
        }
        if self.forms.b3_single {
            b3::write_single(self, headers);
        }
        if self.forms.b3_multi {
            b3::write_multi(self, headers);
        }
    }
}

/// Reads the context of `received` or starts one, and writes it to the headers that go to the next hop.
pub fn propagate(
    received: &HeaderMap,
    sampler: &mut Sampler<'_>,
    upstream: &mut HeaderMap,
) -> TraceContext {
    let context = TraceContext::of(received, sampler);
    context.inject(upstream);
    context
}

/// A context stands in one line; two are as good as none.
fn read_w3c(headers: &HeaderMap) -> Option<Received> {
    let parent = Traceparent::parse_any_version(only(headers, &TRACEPARENT)?)?;
    Some(Received {
        trace: parent.trace_id(),
        span: parent.parent_id(),
        is_sampled: Some(parent.is_sampled()),
    })
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    value.to_str().ok().map(str::trim)
}

/// For texts of our own making, which are always legal values.
fn insert(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        let _old = headers.insert(name, value);
    }
}
