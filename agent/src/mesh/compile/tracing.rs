//! Where spans go and what they carry: providers of the mesh's configuration, tags of Telemetry objects.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use userspace_l7::model::{
    Propagation, SpanCollector, SpanTag, SpanTagValue, SpanTransport, TracingSettings,
};

use super::Compiler;
use crate::mesh::gateway::Gateway;
use crate::mesh::open_telemetry::OpenTelemetry;
use crate::mesh::telemetry::CustomTag;

/// How long a collector may take (Istio).
const COLLECTOR_TIMEOUT: Duration = Duration::from_secs(3);

/// Takes a provider for spans. One that is not there collects none, and says nothing about the form.
pub(super) fn report_to(settings: &mut TracingSettings, compiler: &Compiler, provider: &str) {
    let config = compiler.mesh_config();
    let mut providers = config.iter().flat_map(|config| &config.extension_providers);
    let named = providers.find(|one| one.name == provider);
    let is_zipkin = named.is_some_and(|one| one.zipkin.is_some());
    settings.propagation = if is_zipkin {
        Propagation::B3
    } else {
        Propagation::W3c
    };
    let named = named.and_then(|one| one.opentelemetry.as_ref());
    settings.longest_path = named
        .and_then(|one| one.max_tag_length)
        .unwrap_or_else(|| TracingSettings::default().longest_path);
    settings.collector = named.map(|one| Arc::new(collector(compiler, provider, one)));
}

fn collector(compiler: &Compiler, provider: &str, settings: &OpenTelemetry) -> SpanCollector {
    let (http, grpc) = (settings.http.as_ref(), settings.grpc.as_ref());
    let limit = http
        .and_then(|http| http.timeout)
        .or_else(|| grpc.and_then(|grpc| grpc.timeout));
    let detectors = settings.resource_detectors.as_ref();
    SpanCollector {
        provider: provider.into(),
        service: compiler.provider_service(&settings.service),
        port: settings.port,
        transport: match http {
            Some(http) => SpanTransport::Http(http.path.as_str().into()),
            None => SpanTransport::Grpc,
        },
        timeout: limit.map_or(COLLECTOR_TIMEOUT, |limit| limit.0),
        headers: settings.headers(),
        detects_environment: detectors.is_some_and(|one| one.environment.is_some()),
    }
}

/// Which waypoint a span is from, in Istio's tags.
pub(super) fn istio_tags(compiler: &Compiler, gateway: &Gateway) -> Vec<SpanTag> {
    let config = compiler.mesh_config();
    let mesh_id = config.map(|config| config.default_config.mesh_id.as_str());
    let mesh = &compiler.options.mesh;
    let mesh_id = mesh_id.filter(|id| !id.is_empty());
    let name = &gateway.meta.name;
    [
        ("istio.canonical_revision", "latest"),
        ("istio.canonical_service", &*name.name),
        ("istio.cluster_id", &*mesh.cluster),
        (
            "istio.mesh_id",
            mesh_id.unwrap_or(mesh.trust_domain.as_str()),
        ),
        ("istio.namespace", &*name.namespace),
    ]
    .map(|(name, value)| SpanTag {
        name: name.into(),
        value: SpanTagValue::Literal(value.into()),
    })
    .into()
}

/// An attribute that a Telemetry object asks for; `None`: its value is nothing that a request has here.
pub(super) fn span_tag(name: &str, tag: &CustomTag) -> Option<SpanTag> {
    let value = if let Some(literal) = &tag.literal {
        SpanTagValue::Literal(literal.value.as_str().into())
    } else if let Some(header) = &tag.header {
        SpanTagValue::Header {
            name: HeaderName::from_bytes(header.name.as_bytes()).ok()?,
            default: header.default_value.as_deref().map(Arc::from),
        }
    } else {
        let environment = tag.environment.as_ref()?;
        SpanTagValue::Literal(environment.default_value.as_deref()?.into())
    };
    Some(SpanTag {
        name: name.into(),
        value,
    })
}
