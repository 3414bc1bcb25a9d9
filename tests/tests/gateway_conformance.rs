//! The Gateway API's mesh conformance tests of where requests go: ports, matches, weights; each by its own name. Those of
//! filters are in `gateway_conformance_filters.rs`.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{EchoMesh, Seen};
use e2e::gateway_conformance::{
    CONSUMER, MESH, V1, V2, call, each_reaches, http_route, infrastructure, mesh_with, route,
};
use e2e::lab::eventually;
use e2e::net::h2c;
use e2e::net::http::{Ask, Conversation};

#[test]
fn mesh_basic() -> Result<()> {
    let mesh = infrastructure()?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_answers(V1, to, &Ask::get("/"), 200)?;
    Ok(())
}

#[test]
fn mesh_traffic_split() -> Result<()> {
    let mesh = mesh_with(&http_route(
        "  - matches: [{path: {type: Exact, value: /v1}}]\n    backendRefs: [{name: echo-v1, port: 80}]\n  \
         - matches: [{path: {type: Exact, value: /v2}}]\n    backendRefs: [{name: echo-v2, port: 80}]\n",
    ))?;
    each_reaches(&mesh, &[(Ask::get("/v1"), V1), (Ask::get("/v2"), V2)])
}

/// A rule that does nothing but mark the response.
fn marking(value: &str) -> String {
    format!(
        "  - filters:\n    - type: ResponseHeaderModifier\n      responseHeaderModifier:\n        set: [{{name: \
         X-Header-Set, value: {value}}}]\n"
    )
}

/// The same, and forwards to the service itself.
fn marking_and_forwarding(value: &str, backend: &str) -> String {
    marking(value)
        + &format!("    backendRefs: [{{name: {backend}, namespace: {MESH}, port: 80}}]\n")
}

/// What the response to a GET is marked with.
fn mark(
    mesh: &EchoMesh,
    from: &str,
    to: SocketAddr,
    ask: &Ask,
) -> Result<(Option<String>, String)> {
    let answer = mesh.ask(from, to, ask)?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    let mark = answer.header("X-Header-Set").map(str::to_owned);
    Ok((mark, Seen::in_answer(&answer)?.pod))
}

#[track_caller]
fn is_marked(
    mesh: &EchoMesh,
    from: &str,
    to: SocketAddr,
    ask: &Ask,
    expected: (Option<&str>, &str),
) -> Result<()> {
    mesh.soon(&format!("from {from} to {to}: {expected:?}"), || {
        let (mark, pod) = mark(mesh, from, to, ask)?;
        ensure!((mark.as_deref(), &*pod) == expected, "{mark:?} by {pod}");
        Ok(())
    })
}

#[test]
fn mesh_ports() -> Result<()> {
    let one_port = [(V1, Some(80))];
    let mesh = mesh_with(
        &[
            route(
                "HTTPRoute",
                MESH,
                "on-a-port",
                &one_port,
                &marking_and_forwarding("v1", V1),
            ),
            route(
                "HTTPRoute",
                MESH,
                "on-all",
                &[(V2, None)],
                &marking_and_forwarding("v2", V2),
            ),
        ]
        .concat(),
    )?;
    for (service, port, mark) in [
        (V1, 80, Some("v1")),
        (V1, 8080, None),
        (V2, 80, Some("v2")),
        (V2, 8080, Some("v2")),
    ] {
        let to = mesh.at(service, port)?;
        is_marked(&mesh, V1, to, &Ask::get("/"), (mark, service))?;
    }
    Ok(())
}

#[test]
fn mesh_frontend() -> Result<()> {
    let rules = marking_and_forwarding("set", V2);
    let mesh = mesh_with(&route("HTTPRoute", MESH, "front", &[(V2, None)], &rules))?;
    let ask = Ask::get("/");
    is_marked(&mesh, V1, mesh.at(V2, 80)?, &ask, (Some("set"), V2))?;
    let itself = SocketAddr::new(mesh.pod(V2)?.v4(), 8080);
    is_marked(&mesh, V1, itself, &ask, (None, V2))
}

#[test]
fn mesh_frontend_hostname() -> Result<()> {
    let rules = marking_and_forwarding("set", V2);
    let mesh = mesh_with(&route("HTTPRoute", MESH, "front", &[(V2, None)], &rules))?;
    let named_v1 = Ask::get("/").host(V1);
    is_marked(&mesh, V1, mesh.at(V2, 80)?, &named_v1, (Some("set"), V2))?;
    let named_v2 = Ask::get("/").host(V2);
    is_marked(&mesh, V1, mesh.at(V1, 80)?, &named_v2, (None, V1))
}

#[test]
fn mesh_consumer_route() -> Result<()> {
    let rules = marking_and_forwarding("consumer", V1);
    let mesh = mesh_with(&route("HTTPRoute", CONSUMER, "ours", &[(V1, None)], &rules))?;
    let (to, ask) = (mesh.at(V1, 80)?, Ask::get("/"));
    is_marked(&mesh, "consumer", to, &ask, (Some("consumer"), V1))?;
    is_marked(&mesh, V2, to, &ask, (None, V1))
}

#[test]
fn mesh_http_route_simple_same_namespace() -> Result<()> {
    let mesh = mesh_with(&http_route(
        "  - backendRefs: [{name: echo-v1, port: 80}]\n",
    ))?;
    let rows = vec![(Ask::get("/"), V1); 10];
    each_reaches(&mesh, &rows)
}

#[test]
fn mesh_http_route_matching() -> Result<()> {
    let mesh = mesh_with(&http_route(
        "  - matches:\n    - path: {value: /}\n    - headers: [{name: version, value: one}]\n    backendRefs: \
         [{name: echo-v1, port: 80}]\n  \
         - matches:\n    - path: {value: /v2}\n    - headers: [{name: version, value: two}]\n    backendRefs: \
         [{name: echo-v2, port: 80}]\n",
    ))?;
    let version = |version: &str| Ask::get("/").with("Version", version);
    let rows = [
        (Ask::get("/"), V1),
        (Ask::get("/example"), V1),
        (version("one"), V1),
        (Ask::get("/v2"), V2),
        (Ask::get("/v2/example"), V2),
        (Ask::get("/v2/"), V2),
        (version("two"), V2),
        (Ask::get("/v2example"), V1),
        (Ask::get("/foo/v2/example"), V1),
    ];
    each_reaches(&mesh, &rows)
}

#[test]
fn mesh_http_route_query_param_matching() -> Result<()> {
    let mesh = mesh_with(&http_route(
        "  - matches: [{queryParams: [{name: animal, value: whale}]}]\n    backendRefs: [{name: echo-v1, port: 80}]\n  \
         - matches: [{queryParams: [{name: animal, value: dolphin}]}]\n    backendRefs: [{name: echo-v2, port: 80}]\n  \
         - matches:\n    - {path: {value: /path1}, queryParams: [{name: animal, value: whale}]}\n    backendRefs: [{name: \
         echo-v1, port: 80}]\n  \
         - matches:\n    - {headers: [{name: version, value: one}], queryParams: [{name: animal, value: whale}]}\n    \
         backendRefs: [{name: echo-v2, port: 80}]\n  \
         - matches:\n    - {path: {value: /path3}, queryParams: [{name: animal, value: shark}]}\n    - {path: {value: \
         /path4}, queryParams: [{name: animal, value: kraken}], headers: [{name: version, value: three}]}\n    \
         backendRefs: [{name: echo-v1, port: 80}]\n  \
         - matches: [{path: {value: /path5}}]\n    backendRefs: [{name: echo-v1, port: 80}]\n  \
         - matches: [{queryParams: [{name: animal, value: hydra}]}]\n    backendRefs: [{name: echo-v2, port: 80}]\n",
    ))?;
    let version = |path: &str, version: &str| Ask::get(path).with("version", version);
    let rows = [
        (Ask::get("/?animal=whale"), V1),
        (Ask::get("/?animal=dolphin"), V2),
        (Ask::get("/?animal=whale&otherparam=irrelevant"), V1),
        (Ask::get("/?animal=dolphin&color=yellow"), V2),
        (Ask::get("/path1?animal=whale"), V1),
        (version("/?animal=whale", "one"), V2),
        // The longer path weighs more than the header.
        (version("/path1?animal=whale", "one"), V1),
        (Ask::get("/path3?animal=shark"), V1),
        (version("/path4?animal=kraken", "three"), V1),
        // The path weighs more than the parameter.
        (Ask::get("/path5?animal=hydra"), V1),
        (Ask::get("/?animal=hydra"), V2),
    ];
    each_reaches(&mesh, &rows)?;
    for path in [
        "/",
        "/?color=blue",
        "/?animal=dog",
        "/?animal=whaledolphin",
        "/?Animal=whale",
        "/path3",
        "/path3?animal=kraken",
        "/path4?animal=kraken",
    ] {
        mesh.soon_answers(V1, mesh.at("echo", 80)?, &Ask::get(path), 404)?;
    }
    Ok(())
}

/// The suite's own sample, tolerance and patience.
const SAMPLE: usize = 500;
const TOLERANCE: f64 = 0.05;
const ATTEMPTS: usize = 10;

/// Draws samples until one shows 70 % at v1 and 30 % at v2.
fn splits(mut draw: impl FnMut() -> Result<Vec<String>>) -> Result<()> {
    let mut last = None;
    for _attempt in 0..ATTEMPTS {
        let pods = draw()?;
        ensure!(pods.len() == SAMPLE, "{} answers", pods.len());
        let share = |name: &str| {
            let count = pods.iter().filter(|pod| *pod == name).count();
            #[expect(clippy::cast_precision_loss, reason = "hundreds")]
            let share = count as f64 / SAMPLE as f64;
            share
        };
        let (v1, v2) = (share(V1), share(V2));
        if (v1 - 0.7).abs() <= TOLERANCE && (v2 - 0.3).abs() <= TOLERANCE {
            return Ok(());
        }
        last = Some((v1, v2));
    }
    anyhow::bail!("after {ATTEMPTS} samples of {SAMPLE}: {last:?}")
}

#[test]
fn mesh_http_route_weight() -> Result<()> {
    let mesh = mesh_with(&http_route(
        "  - backendRefs: [{name: echo-v1, port: 80, weight: 70}, {name: echo-v2, port: 80, weight: 30}]\n",
    ))?;
    let to = mesh.at("echo", 80)?;
    mesh.pod(V1)?.run(|| {
        splits(|| {
            let mut conversation = Conversation::open(to)?;
            let one = |_| Ok(Seen::in_answer(&conversation.ask(&Ask::get("/"))?)?.pod);
            (0..SAMPLE).map(one).collect()
        })
    })
}

#[test]
fn mesh_http_route_named_rule() -> Result<()> {
    let mesh = mesh_with(&http_route(
        "  - name: named-rule\n    matches: [{path: {value: /named}}]\n    backendRefs: [{name: echo-v1, port: 80}]\n  \
         - matches: [{path: {value: /unnamed}}]\n    backendRefs: [{name: echo-v2, port: 80}]\n",
    ))?;
    each_reaches(
        &mesh,
        &[(Ask::get("/named"), V1), (Ask::get("/unnamed"), V2)],
    )
}

#[test]
fn mesh_grpc_route_weight() -> Result<()> {
    let mut mesh = infrastructure()?;
    mesh.service(MESH, "echo-nobody", "{}", "{app: nobody}")?;
    let rules = "  - backendRefs: [{name: echo-v1, port: 7070, weight: 70}, {name: echo-v2, port: 7070, weight: 30}, \
                 {name: echo-nobody, port: 7070, weight: 0}]\n";
    mesh.apply(
        "routes.yaml",
        &route("GRPCRoute", MESH, "calls", &[("echo", None)], rules),
    )?;
    let to = mesh.at("echo", 7070)?;
    let ask = Ask::get("/shop.Books/List");
    eventually("calls end well", std::time::Duration::from_secs(5), || {
        call(&mesh, to, &ask)
    })?;
    mesh.pod(V1)?.run(|| {
        splits(|| {
            // One connection carries them all: what is balanced is each call.
            let mut connection = h2c::Connection::open(to)?;
            let mut pods = Vec::new();
            for _batch in 0..SAMPLE / 50 {
                for answer in connection.call_at_once(&vec![ask.clone(); 50]) {
                    let answer = answer?;
                    ensure!(answer.status == 0, "{answer:?}");
                    pods.push(Seen::in_answer(&answer.response).context("an echo")?.pod);
                }
            }
            Ok(pods)
        })
    })
}
