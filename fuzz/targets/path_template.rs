//! A template allows what its plain reading allows: the first line is a template, the second a path.

#![no_main]

use std::sync::Arc;

use http::{HeaderMap, Method};
use libfuzzer_sys::fuzz_target;
use userspace_l7::model::{
    Demands, HttpPolicy, HttpPolicyAction, HttpPolicyRule, OperationMatch, PathNormalization,
    PathPattern, PathTemplate, PolicyKey, RequestHead, TemplateSegment,
};
use userspace_l7::policy::http::{HttpDecision, HttpRequest, judge_http};

fuzz_target!(|text: &str| {
    let Some((template, path)) = text.split_once('\n') else {
        return;
    };
    let segments: Vec<_> = template.split('/').map(segment).collect();
    let rests = segments.iter().filter(|one| **one == TemplateSegment::Rest);
    if rests.count() > 1 {
        return;
    }
    let demands = allow(PathTemplate {
        segments: segments.clone(),
    });
    let headers = HeaderMap::new();
    let verdict = judge_http(&demands, &request(path, &headers));
    if let HttpDecision::Allowed(allowed) = verdict.decision {
        let path = allowed.path().as_str();
        let parts: Vec<&str> = path.strip_prefix('/').expect("absolute").split('/').collect();
        assert!(reads(&segments, &parts), "{template} allows {path}");
    }
});

fn segment(text: &str) -> TemplateSegment {
    match text {
        "{*}" => TemplateSegment::One,
        "{**}" => TemplateSegment::Rest,
        literal => TemplateSegment::Literal(literal.into()),
    }
}

/// The plain reading: try every length of the rest.
fn reads(template: &[TemplateSegment], parts: &[&str]) -> bool {
    match (template.split_first(), parts.split_first()) {
        (None, None) => true,
        (Some((TemplateSegment::Rest, after)), Some(_)) => {
            (1..=parts.len()).any(|taken| reads(after, &parts[taken..]))
        }
        (Some((TemplateSegment::One, after)), Some((part, rest))) => {
            !part.is_empty() && reads(after, rest)
        }
        (Some((TemplateSegment::Literal(literal), after)), Some((part, rest))) => {
            **literal == **part && reads(after, rest)
        }
        _ => false,
    }
}

fn allow(template: PathTemplate) -> Demands {
    let operation = OperationMatch {
        paths: vec![PathPattern::Template(template)],
        ..OperationMatch::default()
    };
    let rule = HttpPolicyRule {
        to: vec![operation],
        ..HttpPolicyRule::default()
    };
    Demands {
        authorization: vec![Arc::new(HttpPolicy {
            key: PolicyKey {
                namespace: "app".into(),
                name: "p".into(),
            },
            action: HttpPolicyAction::Allow,
            dry_run: false,
            rules: vec![rule],
        })],
        ..Demands::default()
    }
}

fn request<'a>(path: &'a str, headers: &'a HeaderMap) -> HttpRequest<'a> {
    let address = std::net::IpAddr::from([10, 0, 0, 1]);
    HttpRequest {
        head: RequestHead {
            method: &Method::GET,
            scheme: "http",
            authority: "echo",
            path,
            query: None,
            headers,
        },
        normalization: PathNormalization::Base,
        identity: None,
        source: address,
        destination: (address, 80).into(),
        service_port: 80,
        token: None,
    }
}
