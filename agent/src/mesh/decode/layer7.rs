//! The kinds that only layer 7 depends on.

use std::sync::Arc;

use serde_json::Value;

use super::typed::partly_typed;
use super::{decode_metadata, resource};
use crate::mesh::backend_tls_policy::BackendTlsPolicy;
use crate::mesh::destination_rule::DestinationRule;
use crate::mesh::field::{Faults, at};
use crate::mesh::gateway::{Gateway, GatewayAddress, GatewayClass};
use crate::mesh::grpc_route::GrpcRoute;
use crate::mesh::http_route::HttpRoute;
use crate::mesh::mesh_config::MeshConfig;
use crate::mesh::meta::{Interner, Meta};
use crate::mesh::object::{Kind, Object};
use crate::mesh::rate_limit_policy::RateLimitPolicy;
use crate::mesh::request_authentication::RequestAuthentication;
use crate::mesh::stream_route::StreamRoute;
use crate::mesh::telemetry::Telemetry;
use crate::mesh::virtual_service::VirtualService;

/// Reads an object of Gateway API, of Istio or of our own.
pub(super) fn decode(
    kind: &Kind,
    value: Value,
    texts: &mut Interner,
    faults: &mut Faults,
) -> Option<Object> {
    Some(match kind {
        Kind::Gateway => {
            let (meta, spec, status) = resource(value, texts, faults)?;
            let spec = faults.require(spec, at!["spec"], "say at least which class it has")?;
            let gateway = Gateway {
                meta,
                spec,
                reachable_at: status.as_ref().map(addresses).unwrap_or_default(),
            };
            gateway.check(faults);
            Object::Gateway(Arc::new(gateway))
        }
        Kind::GatewayClass => {
            let (meta, spec, _) = resource(value, texts, faults)?;
            let spec = spec.unwrap_or_default();
            Object::GatewayClass(Arc::new(GatewayClass { meta, spec }))
        }
        Kind::HttpRoute => {
            let (meta, spec, _) = resource(value, texts, faults)?;
            let spec = spec.unwrap_or_default();
            let route = HttpRoute { meta, spec };
            route.check(faults);
            Object::HttpRoute(Arc::new(route))
        }
        Kind::GrpcRoute => {
            let (meta, spec, _) = resource(value, texts, faults)?;
            let spec = spec.unwrap_or_default();
            let route = GrpcRoute { meta, spec };
            route.check(faults);
            Object::GrpcRoute(Arc::new(route))
        }
        Kind::TlsRoute | Kind::TcpRoute => {
            let (meta, spec, _) = resource(value, texts, faults)?;
            let spec = spec.unwrap_or_default();
            let route = StreamRoute { meta, spec };
            route.check(*kind == Kind::TlsRoute, faults);
            if *kind == Kind::TlsRoute {
                Object::TlsRoute(Arc::new(route))
            } else {
                Object::TcpRoute(Arc::new(route))
            }
        }
        _ => return decode_policy(kind, value, texts, faults),
    })
}

fn decode_policy(
    kind: &Kind,
    value: Value,
    texts: &mut Interner,
    faults: &mut Faults,
) -> Option<Object> {
    Some(match kind {
        Kind::RequestAuthentication => {
            let (meta, spec, _) = resource(value, texts, faults)?;
            let policy = RequestAuthentication {
                meta,
                spec: spec.unwrap_or_default(),
            };
            policy.check(faults);
            Object::RequestAuthentication(Arc::new(policy))
        }
        Kind::DestinationRule => {
            let (meta, spec, _) = resource(value, texts, faults)?;
            let spec = faults.require(spec, at!["spec"], "say at least which host it is about")?;
            let rule = DestinationRule { meta, spec };
            rule.check(faults);
            Object::DestinationRule(Arc::new(rule))
        }
        Kind::BackendTlsPolicy => {
            let (meta, spec, _) = resource(value, texts, faults)?;
            let spec =
                faults.require(spec, at!["spec"], "say at least which server it is about")?;
            let policy = BackendTlsPolicy { meta, spec };
            policy.check(faults);
            Object::BackendTlsPolicy(Arc::new(policy))
        }
        Kind::VirtualService => {
            let (meta, spec, _) = resource(value, texts, faults)?;
            let spec = faults.require(spec, at!["spec"], "say at least which hosts it is about")?;
            let route = VirtualService { meta, spec };
            route.check(faults);
            Object::VirtualService(Arc::new(route))
        }
        Kind::RateLimitPolicy => {
            let (meta, spec, _) = resource(value, texts, faults)?;
            let spec = faults.require(spec, at!["spec"], "say at least what is limited")?;
            let policy = RateLimitPolicy { meta, spec };
            policy.check(faults);
            Object::RateLimitPolicy(Arc::new(policy))
        }
        Kind::Telemetry => {
            let (meta, spec, _) = resource(value, texts, faults)?;
            let spec = spec.unwrap_or_default();
            let telemetry = Telemetry { meta, spec };
            telemetry.check(faults);
            Object::Telemetry(Arc::new(telemetry))
        }
        Kind::MeshConfig => Object::MeshConfig(Arc::new(mesh_config(value, texts, faults)?)),
        _ => return None,
    })
}

fn mesh_config(mut value: Value, texts: &mut Interner, faults: &mut Faults) -> Option<MeshConfig> {
    let mesh = value.get_mut("data")?.get_mut("mesh")?.take();
    let meta = decode_metadata(value, texts, faults)?;
    let spec = partly_typed(&at!["data", "mesh"], mesh, faults)?;
    let config = MeshConfig {
        meta: Meta::clone(&meta),
        spec,
    };
    config.check(faults);
    Some(config)
}

/// `status.addresses` of a Gateway.
fn addresses(status: &Value) -> Vec<GatewayAddress> {
    let listed = status.get("addresses").and_then(Value::as_array);
    let address = |one: &Value| {
        let value = one.get("value")?.as_str()?.to_owned();
        Some(match one.get("type").and_then(Value::as_str) {
            Some("Hostname") => GatewayAddress::Hostname(value.to_ascii_lowercase()),
            _ => GatewayAddress::Other(value),
        })
    };
    listed.into_iter().flatten().filter_map(address).collect()
}
