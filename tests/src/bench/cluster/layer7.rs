//! Layer 7 across nodes: a route that splits 90/10 and a policy, by two agents or by two Envoys.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use super::{End, Site};
use crate::bench::load::{GRPC_PORT, HTTP_PORT};
use crate::bench::plane::Plane;
use crate::envoy::Envoy;
use crate::lab::{Lab, Pod, PodSpec};

/// Workers of each Envoy: as many as an agent has on the machines that this is for.
const ENVOY_WORKERS: usize = 2;
/// Address of the service that the mesh's client calls.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Weights of the server's two versions.
const WEIGHTS: [u32; 2] = [90, 10];
const VERSIONS: [&str; 2] = ["v1", "v2"];

/// A client, two versions of a server, and the mesh's objects for them.
pub(super) fn pods(site: &mut Site<'_>, plane: &Plane) -> Result<End> {
    let client = site.pod(&PodSpec::new("a", "l7-client"))?;
    let mut versions = Vec::new();
    for version in VERSIONS {
        let spec = PodSpec::new("b", &format!("l7-{version}"));
        let spec = spec.with_label("app", "l7-server");
        versions.push(site.server(&spec.with_label("version", version))?);
    }
    site.lab.manifests().apply("layer7.yaml", &manifests())?;
    let mut end = End::new(plane, client, first(versions)?);
    end.address = SERVICE.into();
    Ok(end)
}

/// A client with room for an Envoy, a pod for the other one, and two versions of a server behind that.
pub(super) fn pods_of_envoys(site: &mut Site<'_>, plane: &Plane) -> Result<End> {
    let outside = |node: &str, name: &str| PodSpec::new(node, name).uncaptured();
    let client = site.pod(&outside("a", "envoy-client"))?;
    let authorizer = site.pod(&outside("b", "envoy-server"))?;
    let mut end = End::new(plane, client, authorizer);
    for version in VERSIONS {
        let pod = site.server(&outside("b", &format!("envoy-{version}")))?;
        end.backends.push(pod);
    }
    end.address = Ipv4Addr::LOCALHOST.into();
    Ok(end)
}

/// Starts both, when the mesh's authority is there to issue their certificates.
pub(super) fn start_envoys(lab: &Lab, end: &mut End) -> Result<()> {
    let backends = end
        .backends
        .iter()
        .map(|pod| SocketAddr::new(pod.v4(), HTTP_PORT));
    let backends: Vec<SocketAddr> = backends.collect();
    let client = end.client.identity();
    let behind = (backends.as_slice(), ENVOY_WORKERS);
    end.envoys
        .push(Envoy::authorizer(lab, &end.server, &client, behind)?);
    let local = SocketAddr::new(end.address, HTTP_PORT);
    let split = (WEIGHTS.as_slice(), ENVOY_WORKERS);
    end.envoys
        .push(Envoy::router(lab, &end.client, local, &end.server, split)?);
    Ok(())
}

fn first(pods: Vec<Pod>) -> Result<Pod> {
    let first = pods.into_iter().next();
    first.ok_or_else(|| anyhow::anyhow!("no version of the server"))
}

/// The server's service with its two versions, a waypoint, the routes and the policy.
fn manifests() -> String {
    let ports = format!(
        "[{{name: http, port: {HTTP_PORT}, targetPort: {HTTP_PORT}, appProtocol: http}}, {{name: grpc, port: {GRPC_PORT}, \
         targetPort: {GRPC_PORT}, appProtocol: grpc}}]"
    );
    let service = |name: &str, address: &str, selector: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: app\n  labels: \
             {{istio.io/use-waypoint: waypoint}}\nspec:\n  selector: {selector}\n  clusterIP: {address}\n  ports: {ports}\n---\n"
        )
    };
    let [v1, v2] = WEIGHTS;
    let route = |kind: &str, port: u16| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata:\n  name: l7-server\n  namespace: app\nspec:\n  \
             parentRefs: [{{group: \"\", kind: Service, name: l7-server, port: {port}}}]\n  rules:\n  - backendRefs: [{{name: \
             l7-server-v1, port: {port}, weight: {v1}}}, {{name: l7-server-v2, port: {port}, weight: {v2}}}]\n---\n"
        )
    };
    [
        service("l7-server", &SERVICE.to_string(), "{app: l7-server}"),
        service("l7-server-v1", "10.96.0.11", "{app: l7-server, version: v1}"),
        service("l7-server-v2", "10.96.0.12", "{app: l7-server, version: v2}"),
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: waypoint\n  namespace: app\nspec:\n  \
         gatewayClassName: istio-waypoint\n  listeners: [{name: mesh, port: 15008, protocol: HBONE}]\n---\n"
            .to_owned(),
        route("HTTPRoute", HTTP_PORT),
        route("GRPCRoute", GRPC_PORT),
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: l7-server\n  namespace: app\nspec:\n  \
         targetRefs: [{kind: Service, group: \"\", name: l7-server}]\n  rules:\n  - from: [{source: {principals: \
         [cluster.local/ns/app/sa/l7-client]}}]\n    to: [{operation: {methods: [GET]}}, {operation: {methods: [POST], \
         paths: [/culvert.bench.v1.Bench/*]}}]\n"
            .to_owned(),
    ]
    .concat()
}
