//! What becomes of a request, sentence by sentence of Gateway API and Istio.

mod changing;
mod cors;
mod index;
mod original;
mod retrying;
mod selecting;
mod session;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::RequestHead;
use crate::model::{
    BackendTarget, HeaderMatch, HeaderModifier, HttpAction, HttpMatch, HttpRouteEntry,
    HttpRouteTable, HttpRule, NamespacedHostname, PathMatch, QueryMatch, RetryPolicy, TextMatch,
    WeightedBackend,
};

/// A request of a test, owned.
#[derive(Debug)]
struct Request {
    method: Method,
    authority: &'static str,
    target: String,
    headers: HeaderMap,
}

impl Request {
    fn get(target: &str) -> Self {
        Self {
            method: Method::GET,
            authority: "echo:80",
            target: target.to_owned(),
            headers: HeaderMap::new(),
        }
    }

    fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap();
        self.headers
            .append(name, HeaderValue::from_str(value).unwrap());
        self
    }

    fn head(&self) -> RequestHead<'_> {
        let (path, query) = match self.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.target.as_str(), None),
        };
        RequestHead {
            method: &self.method,
            scheme: "http",
            authority: self.authority,
            path,
            query,
            headers: &self.headers,
        }
    }
}

fn backend(name: &str, weight: u32) -> WeightedBackend {
    WeightedBackend {
        weight,
        target: BackendTarget::Service {
            service: NamespacedHostname {
                namespace: "app".into(),
                hostname: name.into(),
            },
            port: 80,
            subset: None,
        },
        request_headers: HeaderModifier::default(),
        response_headers: HeaderModifier::default(),
    }
}

fn rule(name: &str) -> Arc<HttpRule> {
    Arc::new(HttpRule {
        name: name.into(),
        origin: "HTTPRoute app/r".into(),
        action: HttpAction::Forward(vec![backend(name, 1)]),
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

fn exactly(text: &str) -> TextMatch {
    TextMatch::Exact(text.into())
}

fn path(path: PathMatch) -> HttpMatch {
    HttpMatch {
        path,
        ..HttpMatch::default()
    }
}

fn prefix(text: &str) -> HttpMatch {
    path(PathMatch::Prefix(text.trim_end_matches('/').into()))
}

fn header(name: &str, value: TextMatch) -> HeaderMatch {
    HeaderMatch {
        name: name.parse().unwrap(),
        value,
    }
}

fn query(name: &str, value: TextMatch) -> QueryMatch {
    QueryMatch {
        name: name.into(),
        value,
    }
}

fn table(entries: impl IntoIterator<Item = (HttpMatch, &'static str)>) -> HttpRouteTable {
    let entries = entries.into_iter().map(|(matches, name)| HttpRouteEntry {
        matches: matches.into(),
        rule: rule(name),
    });
    HttpRouteTable::new(entries.collect(), false)
}
