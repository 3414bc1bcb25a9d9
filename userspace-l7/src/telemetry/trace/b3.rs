//! B3, Zipkin's form of a trace context: one header `b3`, or one header for each part.

use http::{HeaderMap, HeaderName};

use super::traceparent::hex;
use super::{Received, TraceContext, insert, only};

pub(super) const SINGLE: HeaderName = HeaderName::from_static("b3");
pub(super) const TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// The one header before the several (B3: "the single-header variant takes precedence").
pub(super) fn read(headers: &HeaderMap) -> Option<Received> {
    read_single(headers).or_else(|| read_multi(headers))
}

/// `{trace}-{span}[-{sampled}[-{parent}]]`.
fn read_single(headers: &HeaderMap) -> Option<Received> {
    let mut parts = only(headers, &SINGLE)?.split('-');
    let (trace, span) = (trace(parts.next()?)?, identifier(parts.next()?)?);
    let is_sampled = match parts.next() {
        Some(state) => Some(sampling(state)?),
        None => None,
    };
    let is_whole = parts
        .next()
        .is_none_or(|parent| identifier(parent).is_some());
    (is_whole && parts.next().is_none()).then_some(Received {
        trace,
        span,
        is_sampled,
    })
}

fn read_multi(headers: &HeaderMap) -> Option<Received> {
    Some(Received {
        trace: trace(only(headers, &TRACE)?)?,
        span: identifier(only(headers, &SPAN)?)?,
        is_sampled: decision(headers),
    })
}

/// What the sender decided about sampling, whether or not it names a trace.
pub(super) fn decision(headers: &HeaderMap) -> Option<bool> {
    let alone = only(headers, &SINGLE).and_then(sampling);
    let debug = || (only(headers, &FLAGS)? == "1").then_some(true);
    let sampled = || only(headers, &SAMPLED).and_then(sampling);
    alone.or_else(debug).or_else(sampled)
}

/// `d` is debug, which implies that it is sampled; `true` and `false` are what old senders write.
fn sampling(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// 32 digits, or 16: the lower half.
fn trace(text: &str) -> Option<[u8; 16]> {
    let whole = if text.len() == 32 {
        hex::<16>(text.as_bytes())?
    } else {
        let mut whole = [0; 16];
        whole[8..].copy_from_slice(&hex::<8>(text.as_bytes())?);
        whole
    };
    (whole != [0; 16]).then_some(whole)
}

fn identifier(text: &str) -> Option<[u8; 8]> {
    hex::<8>(text.as_bytes()).filter(|found| *found != [0; 8])
}

/// Takes away what would contradict what is written. `x-b3-flags` goes too: debug is a decision to sample,
/// and it is told as that.
pub(super) fn clear(headers: &mut HeaderMap) {
    for name in [SINGLE, TRACE, SPAN, PARENT, SAMPLED, FLAGS] {
        let _old = headers.remove(name);
    }
}

pub(super) fn write_single(context: &TraceContext, headers: &mut HeaderMap) {
    let mut text = format!(
        "{}-{}-{}",
        trace_digits(context),
        digits(&context.span),
        u8::from(context.is_sampled)
    );
    if let Some(parent) = &context.parent {
        text.push('-');
        text.push_str(&digits(parent));
    }
    insert(headers, SINGLE, &text);
}

pub(super) fn write_multi(context: &TraceContext, headers: &mut HeaderMap) {
    insert(headers, TRACE, &trace_digits(context));
    insert(headers, SPAN, &digits(&context.span));
    if let Some(parent) = &context.parent {
        insert(headers, PARENT, &digits(parent));
    }
    let sampled = if context.is_sampled { "1" } else { "0" };
    insert(headers, SAMPLED, sampled);
}

/// A short identifier stays short: whoever sent it may not know the long form.
fn trace_digits(context: &TraceContext) -> String {
    let (high, low) = context.trace.split_at(8);
    if high == [0; 8] {
        digits(low)
    } else {
        digits(&context.trace)
    }
}

fn digits(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
