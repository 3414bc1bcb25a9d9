//! A collector of spans, as the mesh's configuration describes it.

use hyper::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;

use super::duration::IstioDuration;
use super::field::{Faults, FieldPath};

/// `extensionProviders[].opentelemetry`. gRPC is spoken unless `http` is there.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "Istio's own fields, by their own names")]
pub struct OpenTelemetry {
    pub service: String,
    pub port: u16,
    pub max_tag_length: Option<usize>,
    pub http: Option<HttpTransport>,
    pub grpc: Option<GrpcTransport>,
    pub resource_detectors: Option<ResourceDetectors>,
}

/// `opentelemetry.http`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "Istio's own fields, by their own names")]
pub struct HttpTransport {
    pub path: String,
    pub timeout: Option<IstioDuration>,
    pub headers: Vec<NamedHeader>,
}

/// `opentelemetry.grpc`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "Istio's own fields, by their own names")]
pub struct GrpcTransport {
    pub timeout: Option<IstioDuration>,
    pub initial_metadata: Vec<NamedHeader>,
}

/// A header of requests to the collector.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "Istio's own fields, by their own names")]
pub struct NamedHeader {
    pub name: String,
    pub value: Option<String>,
    pub env_name: Option<String>,
}

/// `opentelemetry.resourceDetectors`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "Istio's own fields, by their own names")]
pub struct ResourceDetectors {
    pub environment: Option<Value>,
    pub dynatrace: Option<Value>,
}

impl OpenTelemetry {
    /// What requests carry besides, whichever way they are sent.
    pub(crate) fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let http = self.http.iter().flat_map(|http| &http.headers);
        let grpc = self.grpc.iter().flat_map(|grpc| &grpc.initial_metadata);
        let named = if self.http.is_some() {
            http.collect::<Vec<_>>()
        } else {
            grpc.collect()
        };
        named.into_iter().filter_map(NamedHeader::read).collect()
    }

    pub(crate) fn check(&self, place: &FieldPath, faults: &mut Faults) {
        if self.service.is_empty() {
            let rule = "is missing: name the collector's host, such as otel.observability.svc.cluster.local";
            faults.add(place.join("service"), rule);
        }
        if self.port == 0 {
            faults.add(
                place.join("port"),
                "is missing: name the port of the service",
            );
        }
        if self.http.is_some() && self.grpc.is_some() {
            let rule = "stands beside grpc, and spans are sent one way: remove one of them";
            faults.add(place.join("http"), rule);
        }
        if let Some(http) = &self.http {
            if !http.path.starts_with('/') {
                faults.add(
                    place.join("http").join("path"),
                    "is no path: write one like /v1/traces",
                );
            }
            check_headers(&place.join("http").join("headers"), &http.headers, faults);
        }
        if let Some(grpc) = &self.grpc {
            let place = place.join("grpc").join("initialMetadata");
            check_headers(&place, &grpc.initial_metadata, faults);
        }
        let detectors = self.resource_detectors.as_ref();
        if detectors.is_some_and(|detectors| detectors.dynatrace.is_some()) {
            faults.add(
                place.join("resourceDetectors").join("dynatrace"),
                "asks for what only Dynatrace's own agent on the host knows: use environment",
            );
        }
    }
}

fn check_headers(place: &FieldPath, headers: &[NamedHeader], faults: &mut Faults) {
    for (index, header) in headers.iter().enumerate() {
        let place = place.join(index);
        if header.env_name.is_some() {
            faults.add(
                place.join("envName"),
                "names a variable of a proxy's environment, and there is no such proxy: write value",
            );
        } else if header.read().is_none() {
            faults.add(place, "is no header: give it a name and a value");
        }
    }
}

impl NamedHeader {
    fn read(&self) -> Option<(HeaderName, HeaderValue)> {
        let name = HeaderName::from_bytes(self.name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_str(self.value.as_deref()?).ok()?))
    }
}
