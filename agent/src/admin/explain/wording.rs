//! Rules in words.

use hyper::StatusCode;
use userspace_l7::model::{
    AbortAnswer, AppProtocol, BackendTarget, FaultAbort, HeaderModifier, HttpMatch, HttpPolicy,
    HttpPolicyAction, HttpRule, PathChange, PathMatch, TextMatch,
};
use userspace_l7::policy::http::HttpDenial;

use super::Expectation;

pub(in crate::admin) fn protocol(protocol: AppProtocol) -> &'static str {
    match protocol {
        AppProtocol::Http1 => "http",
        AppProtocol::Http2 => "http2",
        AppProtocol::Tcp => "tcp",
        AppProtocol::Tls => "tls",
        AppProtocol::Detect => "detect",
    }
}

/// Whom a policy asks, to be read after what its rules match; nothing for one that asks nobody.
pub(super) fn asks(policy: &HttpPolicy) -> String {
    match &policy.action {
        HttpPolicyAction::Custom(Some(authorizer)) => {
            let (name, service, port) = (&authorizer.name, &authorizer.service, authorizer.port);
            format!("; asks {name} ({service}:{port})")
        }
        HttpPolicyAction::Custom(None) => {
            "; would ask a provider that does not exist, so it refuses".to_owned()
        }
        HttpPolicyAction::Allow | HttpPolicyAction::Deny | HttpPolicyAction::Audit => String::new(),
    }
}

/// `path prefix /v2, method GET, header x-user=jason`; `everything` without a condition.
pub(in crate::admin) fn matched(matches: &HttpMatch) -> String {
    let mut parts = Vec::new();
    match &matches.path {
        PathMatch::Any => {}
        PathMatch::Exact(path) => parts.push(format!("path {path}")),
        PathMatch::Prefix(path) | PathMatch::TextPrefix(path) if path.is_empty() => {}
        PathMatch::Prefix(path) => parts.push(format!("path prefix {path}")),
        PathMatch::TextPrefix(path) => parts.push(format!("path beginning with {path}")),
        PathMatch::Regex(regex) => parts.push(format!("path like {}", regex.pattern())),
    }
    if let Some(method) = &matches.method {
        parts.push(format!("method {}", text(method)));
    }
    if let Some(authority) = &matches.authority {
        parts.push(format!("authority {}", text(authority)));
    }
    for header in &matches.headers {
        parts.push(format!("header {}={}", header.name, text(&header.value)));
    }
    for header in &matches.without_headers {
        parts.push(format!("no header {}={}", header.name, text(&header.value)));
    }
    for query in &matches.query {
        parts.push(format!("query {}={}", query.name, text(&query.value)));
    }
    if parts.is_empty() {
        "everything".to_owned()
    } else {
        parts.join(", ")
    }
}

fn text(matched: &TextMatch) -> String {
    match matched {
        TextMatch::Exact(text) => text.to_string(),
        TextMatch::Prefix(text) => format!("{text}…"),
        TextMatch::Regex(regex) => format!("/{}/", regex.pattern()),
        TextMatch::Present => "(any)".to_owned(),
    }
}

/// What a rule does besides its action, in the order in which it is done.
pub(super) fn filters(rule: &HttpRule) -> Vec<String> {
    let mut lines = Vec::new();
    if rule.cors.is_some() {
        lines.push("answers CORS preflights".to_owned());
    }
    if let Some(delay) = rule.fault.as_ref().and_then(|fault| fault.delay.as_ref()) {
        let share = percent(delay.per_million);
        lines.push(format!(
            "delays {share} of requests by {:?}",
            delay.duration
        ));
    }
    if let Some(abort) = rule.fault.as_ref().and_then(|fault| fault.abort.as_ref()) {
        let share = percent(abort.per_million);
        let answer = abort_answer(abort.answer);
        lines.push(format!("aborts {share} of requests with {answer}"));
    }
    lines.extend(modifier("request", &rule.request_headers));
    if let Some(rewrite) = &rule.rewrite {
        if let Some(host) = &rewrite.hostname {
            lines.push(format!(
                "rewrites the host to {}",
                String::from_utf8_lossy(host.as_bytes())
            ));
        }
        if let Some(path) = &rewrite.path {
            lines.push(format!("rewrites the path: {}", change(path)));
        }
    }
    for mirror in &rule.mirrors {
        let share = percent(mirror.per_million);
        lines.push(format!(
            "mirrors {share} of requests to {}",
            target(&mirror.target)
        ));
    }
    lines.extend(modifier("response", &rule.response_headers));
    if let Some(timeout) = rule.timeout {
        lines.push(format!("times out after {timeout:?}"));
    }
    if rule.retry.attempts > 0 {
        lines.push(format!("retries up to {} times", rule.retry.attempts));
    }
    if let Some(session) = &rule.session {
        lines.push(format!("keeps sessions by `{}`", session.name));
    }
    lines
}

fn modifier(whose: &str, modifier: &HeaderModifier) -> Vec<String> {
    let list = |verb: &str, names: Vec<String>| {
        (!names.is_empty()).then(|| format!("{verb} {whose} headers: {}", names.join(", ")))
    };
    let names = |pairs: &[(hyper::header::HeaderName, hyper::header::HeaderValue)]| {
        pairs.iter().map(|(name, _)| name.to_string()).collect()
    };
    [
        list("sets", names(&modifier.set)),
        list("adds", names(&modifier.add)),
        list(
            "removes",
            modifier.remove.iter().map(ToString::to_string).collect(),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn change(change: &PathChange) -> String {
    match change {
        PathChange::Full(path) => format!("all of it becomes {path}"),
        PathChange::Prefix(path) => format!("the matched prefix becomes {path}"),
        PathChange::Regex {
            pattern,
            replacement,
        } => format!("/{}/ becomes {replacement}", pattern.0.as_str()),
    }
}

pub(super) fn target(target: &BackendTarget) -> String {
    match target {
        BackendTarget::Service {
            service, subset, ..
        } => match subset {
            Some(subset) => format!("{service} (subset {subset})"),
            None => service.to_string(),
        },
        BackendTarget::Invalid { why } => format!("invalid: {why}"),
    }
}

/// A share of a million, in percent.
fn abort_answer(answer: AbortAnswer) -> String {
    match answer {
        AbortAnswer::Http(status) => format!("{status}"),
        AbortAnswer::Grpc(code) => format!("grpc-status {code}"),
    }
}

/// What is expected of a request that an injected fault may answer before all else.
pub(super) fn unless_aborted(abort: &FaultAbort, expected: Expectation) -> Expectation {
    let answer = abort_answer(abort.answer);
    match abort.per_million {
        0 => expected,
        1_000_000.. => {
            let status = match abort.answer {
                AbortAnswer::Http(status) => status,
                AbortAnswer::Grpc(_) => StatusCode::OK,
            };
            let why = format!("an injected fault answers every request with {answer}");
            Expectation::answered(status, why)
        }
        share => Expectation {
            why: format!(
                "{}; an injected fault answers {} of requests with {answer} instead",
                expected.why,
                percent(share)
            ),
            ..expected
        },
    }
}

fn percent(per_million: u32) -> String {
    let (whole, rest) = (per_million / 10_000, per_million % 10_000);
    if rest == 0 {
        return format!("{whole} %");
    }
    let digits = format!("{rest:04}");
    format!("{whole}.{} %", digits.trim_end_matches('0'))
}

pub(super) fn denial(denial: &HttpDenial) -> String {
    match denial {
        HttpDenial::Explicit(rule) => format!(
            "RBAC: access denied: policy {} denies it by rule {}",
            rule.policy, rule.rule
        ),
        HttpDenial::NotAllowed => {
            "RBAC: access denied: ALLOW policies exist, and none of their rules matches".to_owned()
        }
        HttpDenial::NoAuthorizer(rule) => format!(
            "RBAC: access denied: policy {} asks a provider that does not exist",
            rule.policy
        ),
        HttpDenial::Unseen => {
            "tokens are to be looked at, and no request can be seen: declare what the port speaks"
                .to_owned()
        }
        HttpDenial::InvalidPath(why) => why.to_string(),
        HttpDenial::AmbiguousPath => {
            "the path could mean another one to the server, and policies speak of paths".to_owned()
        }
    }
}
