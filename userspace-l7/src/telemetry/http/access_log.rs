//! Whether a request is logged, and how: events of target `access::line` whose message is the whole line.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use cel::objects::{Key, Map};
use cel::{Context, Value};

use super::record::{Finished, cluster_name, milliseconds};
use crate::model::CelExpression;
use crate::telemetry::labels::Security;

/// Writes a line to each log whose filter the request passes.
pub(super) fn write(request: &Finished<'_>) {
    for log in &request.flow.telemetry.access_logs {
        let passes = log.filter.as_ref().is_none_or(|it| passes(it, request));
        if passes {
            tracing::info!(target: "access::line", "{}", request.line(log.format));
        }
    }
}

/// An expression that asks for what this request does not have (a header that is not there) does not hold,
/// as in Envoy.
fn passes(filter: &CelExpression, request: &Finished<'_>) -> bool {
    let program = filter.program();
    let mut context = Context::default();
    for root in program.references().variables() {
        context.add_variable_from_value(root, attributes(root, request));
    }
    matches!(program.execute(&context), Ok(Value::Bool(true)))
}

/// Envoy's attributes by root. What is unknown is left out.
fn attributes(root: &str, request: &Finished<'_>) -> Value {
    let mut found = Attributes::default();
    match root {
        "request" => fill_request(&mut found, request),
        "response" => fill_response(&mut found, request),
        "connection" => {
            let is_mutual = request.flow.client.security == Security::MutualTls;
            found.set("mtls", is_mutual);
        }
        "source" => fill_source(&mut found, request),
        "destination" => found.address(request.flow.client.dialled),
        "upstream" => {
            if let Some(upstream) = &request.end.upstream {
                found.address(upstream.host);
            }
        }
        "xds" => {
            found.text("route_name", request.end.route_name);
            let cluster = request.end.upstream.as_ref().map(cluster_name);
            found.text("cluster_name", cluster.as_deref());
        }
        // The compiler refuses every other root (`CelExpression::ATTRIBUTES`).
        _ => {}
    }
    found.into_value()
}

fn fill_request(found: &mut Attributes, request: &Finished<'_>) {
    let head = request.head;
    found.text("path", Some(head.path()));
    found.text("url_path", Some(head.uri.path()));
    found.text("query", head.uri.query());
    found.text("host", head.authority());
    found.text("scheme", Some(head.uri.scheme_str().unwrap_or("http")));
    found.text("method", Some(head.method.as_str()));
    found.text("protocol", Some(head.protocol()));
    found.text("referer", head.header("referer"));
    found.text("useragent", head.header("user-agent"));
    found.text("id", head.header("x-request-id"));
    found.set("size", number(request.request_bytes));
    found.set("duration", number(milliseconds(request.duration)));
    let mut headers = Attributes::default();
    for name in head.headers.keys() {
        let values = head.headers.get_all(name).iter();
        let texts: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
        headers.text(name.as_str(), Some(&texts.join(",")));
    }
    found.set("headers", headers.into_value());
}

fn fill_response(found: &mut Attributes, request: &Finished<'_>) {
    let end = request.end;
    let code = end.status.map_or(0, |status| status.as_u16());
    found.set("code", i64::from(code));
    found.text("code_details", end.details);
    found.set("flags", i64::from(end.flags.envoys_bits()));
    if let Some(status) = end.grpc_status {
        found.set("grpc_status", i64::from(status));
    }
    found.set("size", number(request.response_bytes));
}

fn fill_source(found: &mut Attributes, request: &Finished<'_>) {
    let client = &request.flow.client;
    found.address(client.address);
    let principal = client.identity.as_ref().map(ToString::to_string);
    found.text("principal", principal.as_deref());
    let workload = client.workload.as_deref();
    found.text("workload", workload.map(|found| &*found.workload_name));
    found.text("namespace", workload.map(|found| &*found.namespace));
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[derive(Default)]
struct Attributes(HashMap<Key, Value>);

impl Attributes {
    fn set(&mut self, name: &str, value: impl Into<Value>) {
        let _old = self.0.insert(Key::from(name.to_owned()), value.into());
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        if let Some(text) = value {
            self.set(name, text.to_owned());
        }
    }

    fn address(&mut self, address: SocketAddr) {
        self.set("address", address.to_string());
        self.set("port", i64::from(address.port()));
    }

    fn into_value(self) -> Value {
        Value::Map(Map {
            map: Arc::new(self.0),
        })
    }
}
