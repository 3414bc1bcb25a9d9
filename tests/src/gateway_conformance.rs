//! What the Gateway API's mesh conformance suite is run on, with manifests of ours.
//!
//! The client is the pod of `echo-v1`, as there; so a request to `echo` may find its own pod.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::echo::EchoMesh;
use crate::lab::PodSpec;
use crate::net::h2c;
use crate::net::http::{Ask, Response};

/// The namespace of the services.
pub const MESH: &str = "gateway-conformance-mesh";
/// The namespace of a client of theirs.
pub const CONSUMER: &str = "gateway-conformance-mesh-consumer";
/// The first version, which is the client, too.
pub const V1: &str = "echo-v1";
/// The other version.
pub const V2: &str = "echo-v2";

/// The suite's infrastructure: two versions of echo, a service for both and one for each, a waypoint for their
/// namespace, and a client in another namespace.
///
/// # Errors
/// If the lab cannot be built or an agent does not start.
pub fn infrastructure() -> Result<EchoMesh> {
    let mut mesh = EchoMesh::new()?;
    let bound = [
        ("istio.io/use-waypoint", "namespace"),
        ("gateway-conformance", "mesh"),
    ];
    mesh.namespace(MESH, &bound)?;
    mesh.namespace(CONSUMER, &[])?;
    for (node, name) in [("a", V1), ("b", V2)] {
        let version = &name["echo-".len()..];
        let spec = PodSpec::new(node, name).in_namespace(MESH);
        let spec = spec.with_label("app", "echo");
        mesh.echo(&spec.with_label("version", version))?;
        let selector = format!("{{app: echo, version: {version}}}");
        mesh.service(MESH, name, "{}", &selector)?;
    }
    mesh.echo(&PodSpec::new("b", "consumer").in_namespace(CONSUMER))?;
    mesh.service(MESH, "echo", "{}", "{app: echo}")?;
    mesh.waypoint(MESH, "namespace", "{}", "")?;
    mesh.start()?;
    Ok(mesh)
}

/// A route of `kind` that is attached to services of the mesh's namespace, each with or without a port.
#[must_use]
pub fn route(
    kind: &str,
    namespace: &str,
    name: &str,
    parents: &[(&str, Option<u16>)],
    rules: &str,
) -> String {
    let parents: Vec<String> = parents
        .iter()
        .map(|(service, port)| {
            let port = port.map_or_else(String::new, |port| format!(", port: {port}"));
            format!(
                "  - {{group: \"\", kind: Service, name: {service}, namespace: {MESH}{port}}}\n"
            )
        })
        .collect();
    let parents = parents.concat();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: {namespace}\n\
         spec:\n  parentRefs:\n{parents}  rules:\n{rules}---\n"
    )
}

/// An HTTPRoute of the mesh's namespace, attached to all ports of `echo`.
#[must_use]
pub fn http_route(rules: &str) -> String {
    route("HTTPRoute", MESH, "mesh-route", &[("echo", None)], rules)
}

/// A mesh in which this manifest is in force, or will be soon.
///
/// # Errors
/// As [`infrastructure`], or if the manifest cannot be written.
pub fn mesh_with(manifest: &str) -> Result<EchoMesh> {
    let mesh = infrastructure()?;
    mesh.apply("routes.yaml", manifest)?;
    Ok(mesh)
}

/// Each request to `echo` ends at the workload of this name.
///
/// # Errors
/// If one keeps ending elsewhere; says where.
pub fn each_reaches(mesh: &EchoMesh, rows: &[(Ask, &str)]) -> Result<()> {
    let to = mesh.at("echo", 80)?;
    for (ask, pod) in rows {
        mesh.soon(&format!("{ask:?} reaches {pod}"), || {
            let seen = mesh.seen(V1, to, ask)?;
            ensure!(seen.pod == *pod, "{} answers", seen.pod);
            Ok(())
        })?;
    }
    Ok(())
}

/// Each path is redirected with this status to this location.
///
/// # Errors
/// If one keeps being answered otherwise; says how.
pub fn each_redirects(mesh: &EchoMesh, rows: &[(&str, u16, &str)]) -> Result<()> {
    let to = mesh.at("echo", 80)?;
    for (path, status, location) in rows {
        mesh.soon(&format!("{path} is redirected"), || {
            let answer = mesh.ask(V1, to, &Ask::get(path))?;
            let got = (answer.status, answer.header("location"));
            ensure!(
                got == (*status, Some(*location)),
                "{got:?}, wanted {location}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// A gRPC call from the client that has to end well.
///
/// # Errors
/// If it does not.
pub fn call(mesh: &EchoMesh, to: SocketAddr, ask: &Ask) -> Result<Response> {
    let answer = mesh.pod(V1)?.run(|| h2c::Connection::open(to)?.call(ask))?;
    ensure!(answer.status == 0, "{answer:?}");
    Ok(answer.response)
}
