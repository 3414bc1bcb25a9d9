//! How long one request takes to find its entry among many, by what the entries are told apart.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use userspace_l7::model::{
    HeaderMatch, HeaderModifier, HttpAction, HttpMatch, HttpRouteEntry, HttpRouteTable, HttpRule,
    PathMatch, RequestHead, RetryPolicy, TextMatch,
};
use userspace_l7::route::http::select;

/// Table sizes: a small mesh, and the one that the budget of 2 µs is for.
const SIZES: [usize; 3] = [100, 1_000, 10_000];

/// What the entries of a table are told apart by.
#[derive(Clone, Copy)]
enum By {
    Exact,
    Prefix,
    Header,
    /// All for one prefix, each for a tenant's header.
    PrefixAndHeader,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Prefix => "prefix",
            Self::Header => "header",
            Self::PrefixAndHeader => "prefix and header",
        }
    }

    fn matches(self, number: usize) -> HttpMatch {
        let tenant = || HeaderMatch {
            name: HeaderName::from_static("x-tenant"),
            value: TextMatch::Exact(format!("tenant-{number}").into()),
        };
        let (path, headers) = match self {
            Self::Exact => (PathMatch::Exact(path(number).into()), vec![]),
            Self::Prefix => (PathMatch::Prefix(path(number).into()), vec![]),
            Self::Header => (PathMatch::Any, vec![tenant()]),
            Self::PrefixAndHeader => (PathMatch::Prefix("/api".into()), vec![tenant()]),
        };
        HttpMatch {
            path,
            headers,
            ..HttpMatch::default()
        }
    }
}

fn path(number: usize) -> String {
    format!("/api/v1/{}/things/{number}", number % 17)
}

fn rule() -> Arc<HttpRule> {
    Arc::new(HttpRule {
        name: "r".into(),
        origin: "HTTPRoute app/r".into(),
        action: HttpAction::Forward(vec![]),
        request_headers: HeaderModifier::default(),
        response_headers: HeaderModifier::default(),
        rewrite: None,
        mirrors: vec![],
        cors: None,
        fault: None,
        timeout: None,
        retry: RetryPolicy::default(),
        session: None,
        is_usable: true,
    })
}

fn table(by: By, size: usize) -> HttpRouteTable {
    let rule = rule();
    let entries = (0..size).map(|number| HttpRouteEntry {
        matches: by.matches(number).into(),
        rule: Arc::clone(&rule),
    });
    HttpRouteTable::new(entries.collect(), false)
}

/// What a browser sends, and the tenant.
fn headers(number: usize) -> HeaderMap {
    let mut headers: HeaderMap = [
        ("accept", "text/html,application/xhtml+xml"),
        ("accept-encoding", "gzip, deflate, br"),
        ("accept-language", "en-US,en;q=0.5"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0)"),
        ("x-request-id", "5f3f4a0e-3a52-4d0e-9d0f-3f5f0a0e3a52"),
    ]
    .into_iter()
    .map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    })
    .collect();
    if let Ok(tenant) = HeaderValue::from_str(&format!("tenant-{number}")) {
        headers.insert("x-tenant", tenant);
    }
    headers
}

fn select_one_of_many(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("select");
    for by in [By::Exact, By::Prefix, By::Header, By::PrefixAndHeader] {
        for size in SIZES {
            let table = table(by, size);
            let number = size * 2 / 3;
            let (path, headers) = (path(number), headers(number));
            let head = RequestHead {
                method: &Method::GET,
                scheme: "http",
                authority: "things.app",
                path: &path,
                query: Some("page=2"),
                headers: &headers,
            };
            assert!(select(&table, &head).is_some(), "the request has an entry");
            group.bench_with_input(BenchmarkId::new(by.name(), size), &table, |b, table| {
                b.iter(|| select(black_box(table), black_box(&head)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, select_one_of_many);
criterion_main!(benches);
