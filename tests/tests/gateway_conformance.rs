//! The Gateway API's mesh conformance tests, each by its own name, with manifests of ours.
//!
//! The client is the pod of `echo-v1`, as there; so a request to `echo` may find its own pod.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{EchoMesh, Seen};
use e2e::lab::{PodSpec, eventually};
use e2e::net::h2c;
use e2e::net::http::{Ask, Conversation, Response};

const MESH: &str = "gateway-conformance-mesh";
const CONSUMER: &str = "gateway-conformance-mesh-consumer";
/// The client.
const V1: &str = "echo-v1";
const V2: &str = "echo-v2";

/// The suite's infrastructure: two versions of echo, a service for both and one for each, a waypoint for their
/// namespace, and a client in another namespace.
fn infrastructure() -> Result<EchoMesh> {
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
fn route(
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
fn http_route(rules: &str) -> String {
    route("HTTPRoute", MESH, "mesh-route", &[("echo", None)], rules)
}

/// A mesh in which this manifest is in force, or will be soon.
fn mesh_with(manifest: &str) -> Result<EchoMesh> {
    let mesh = infrastructure()?;
    mesh.apply("routes.yaml", manifest)?;
    Ok(mesh)
}

/// Each request to `echo` ends at the workload of this name.
fn each_reaches(mesh: &EchoMesh, rows: &[(Ask, &str)]) -> Result<()> {
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
fn each_redirects(mesh: &EchoMesh, rows: &[(&str, u16, &str)]) -> Result<()> {
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

/// Request header modifiers by path, for a rule or for a backend.
const MODIFIERS: [(&str, &str); 5] = [
    (
        "/set",
        "set: [{name: X-Header-Set, value: set-overwrites-values}]",
    ),
    (
        "/add",
        "add: [{name: X-Header-Add, value: add-appends-values}]",
    ),
    ("/remove", "remove: [X-Header-Remove]"),
    (
        "/multiple",
        "set: [{name: X-Header-Set-1, value: header-set-1}, {name: X-Header-Set-2, value: header-set-2}], \
         add: [{name: X-Header-Add-1, value: header-add-1}, {name: X-Header-Add-2, value: header-add-2}, \
         {name: X-Header-Add-3, value: header-add-3}], remove: [X-Header-Remove-1, X-Header-Remove-2]",
    ),
    (
        "/case",
        "set: [{name: X-Header-Set, value: header-set}], add: [{name: X-Header-Add, value: header-add}], \
         remove: [X-Header-Remove]",
    ),
];

/// A header by name and the value that the application sees, if any.
type Expected = (&'static str, Option<&'static str>);

/// A path, the headers that are sent, and which headers reach the application.
type Modified = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [Expected],
);

const MODIFIED: [Modified; 7] = [
    (
        "/set",
        &[("Some-Other-Header", "val")],
        &[
            ("Some-Other-Header", Some("val")),
            ("X-Header-Set", Some("set-overwrites-values")),
        ],
    ),
    (
        "/set",
        &[
            ("Some-Other-Header", "val"),
            ("X-Header-Set", "some-other-value"),
        ],
        &[
            ("Some-Other-Header", Some("val")),
            ("X-Header-Set", Some("set-overwrites-values")),
        ],
    ),
    ("/add", &[], &[("X-Header-Add", Some("add-appends-values"))]),
    (
        "/add",
        &[("X-Header-Add", "some-other-value")],
        &[("X-Header-Add", Some("some-other-value,add-appends-values"))],
    ),
    (
        "/remove",
        &[("X-Header-Remove", "val")],
        &[("X-Header-Remove", None)],
    ),
    (
        "/multiple",
        &[
            ("X-Header-Set-2", "set-val-2"),
            ("X-Header-Add-2", "add-val-2"),
            ("X-Header-Remove-2", "remove-val-2"),
            ("Another-Header", "another-header-val"),
        ],
        &[
            ("X-Header-Set-1", Some("header-set-1")),
            ("X-Header-Set-2", Some("header-set-2")),
            ("X-Header-Add-1", Some("header-add-1")),
            ("X-Header-Add-2", Some("add-val-2,header-add-2")),
            ("X-Header-Add-3", Some("header-add-3")),
            ("X-Header-Remove-1", None),
            ("X-Header-Remove-2", None),
            ("Another-Header", Some("another-header-val")),
        ],
    ),
    (
        "/case",
        &[
            ("x-header-set", "original-val-set"),
            ("x-header-add", "original-val-add"),
            ("x-header-remove", "original-val-remove"),
        ],
        &[
            ("X-Header-Set", Some("header-set")),
            ("X-Header-Add", Some("original-val-add,header-add")),
            ("X-Header-Remove", None),
        ],
    ),
];

/// A GET with headers.
fn ask_with(path: &str, headers: &[(&str, &str)]) -> Ask {
    let ask = Ask::get(path);
    headers
        .iter()
        .fold(ask, |ask, (name, value)| ask.with(name, value))
}

/// The application sees what the table says.
fn has_headers(seen: &Seen, expected: &[Expected]) -> Result<()> {
    for (name, value) in expected {
        let got = seen.header(name).map(|value| value.replace(", ", ","));
        ensure!(
            got.as_deref() == *value,
            "{name}: {got:?}, wanted {value:?}"
        );
    }
    Ok(())
}

fn modifies(mesh: &EchoMesh) -> Result<()> {
    let to = mesh.at("echo", 80)?;
    for (path, sent, expected) in MODIFIED {
        let ask = ask_with(path, sent);
        mesh.soon(&format!("{path} with {sent:?} has {expected:?}"), || {
            has_headers(&mesh.seen(V1, to, &ask)?, expected)
        })?;
    }
    Ok(())
}

#[test]
fn mesh_http_route_request_header_modifier() -> Result<()> {
    let rule = |(path, modifier): (&str, &str)| {
        format!(
            "  - matches: [{{path: {{value: {path}}}}}]\n    filters: [{{type: RequestHeaderModifier, \
             requestHeaderModifier: {{{modifier}}}}}]\n    backendRefs: [{{name: echo-v1, port: 80}}]\n"
        )
    };
    modifies(&mesh_with(&http_route(&MODIFIERS.map(rule).concat()))?)
}

#[test]
fn mesh_http_route_backend_request_header_modifier() -> Result<()> {
    let rule = |(path, modifier): (&str, &str)| {
        format!(
            "  - matches: [{{path: {{value: {path}}}}}]\n    backendRefs:\n    - name: echo-v1\n      port: 80\n      \
             filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{modifier}}}}}]\n"
        )
    };
    modifies(&mesh_with(&http_route(&MODIFIERS.map(rule).concat()))?)
}

/// A rule for a path that redirects.
fn redirecting((path, redirect): (&str, &str)) -> String {
    format!(
        "  - matches: [{{path: {{value: {path}}}}}]\n    filters: [{{type: RequestRedirect, requestRedirect: \
         {{{redirect}}}}}]\n"
    )
}

#[test]
fn mesh_http_route_redirect_host_and_status() -> Result<()> {
    let rules = [
        ("/hostname-redirect", "hostname: example.org"),
        ("/host-and-status", "hostname: example.org, statusCode: 301"),
    ];
    let mesh = mesh_with(&http_route(&rules.map(redirecting).concat()))?;
    let rows = [
        (
            "/hostname-redirect",
            302,
            "http://example.org/hostname-redirect",
        ),
        (
            "/host-and-status",
            301,
            "http://example.org/host-and-status",
        ),
    ];
    each_redirects(&mesh, &rows)
}

#[test]
fn mesh_http_route_redirect_path() -> Result<()> {
    let prefix = "path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement-prefix}";
    let full = "path: {type: ReplaceFullPath, replaceFullPath: /full-path-replacement}";
    let (host, status) = (", hostname: example.org", ", statusCode: 301");
    let mesh = mesh_with(&http_route(
        &[
            redirecting(("/original-prefix", prefix)),
            redirecting(("/full", full)),
            redirecting(("/prefix-and-host", &(prefix.to_owned() + host))),
            redirecting(("/prefix-and-status", &(prefix.to_owned() + status))),
            redirecting(("/full-and-host", &(full.to_owned() + host))),
            redirecting(("/full-and-status", &(full.to_owned() + status))),
        ]
        .concat(),
    ))?;
    let rows = [
        (
            "/original-prefix/lemon",
            302,
            "http://echo/replacement-prefix/lemon",
        ),
        (
            "/full/path/original",
            302,
            "http://echo/full-path-replacement",
        ),
        (
            "/prefix-and-host/lemon",
            302,
            "http://example.org/replacement-prefix/lemon",
        ),
        (
            "/prefix-and-status/lemon",
            301,
            "http://echo/replacement-prefix/lemon",
        ),
        (
            "/full-and-host/lemon",
            302,
            "http://example.org/full-path-replacement",
        ),
        (
            "/full-and-status/lemon",
            301,
            "http://echo/full-path-replacement",
        ),
        (
            "/original-prefix?a=b",
            302,
            "http://echo/replacement-prefix?a=b",
        ),
    ];
    each_redirects(&mesh, &rows)
}

#[test]
fn mesh_http_route_redirect_port() -> Result<()> {
    let rules = [
        ("/port", "port: 8083"),
        ("/port-and-host", "port: 8083, hostname: example.org"),
        ("/port-and-status", "port: 8083, statusCode: 301"),
        (
            "/port-and-host-and-status",
            "port: 8083, hostname: example.org, statusCode: 302",
        ),
    ];
    let mesh = mesh_with(&http_route(&rules.map(redirecting).concat()))?;
    let rows = [
        ("/port", 302, "http://echo:8083/port"),
        (
            "/port-and-host",
            302,
            "http://example.org:8083/port-and-host",
        ),
        ("/port-and-status", 301, "http://echo:8083/port-and-status"),
        (
            "/port-and-host-and-status",
            302,
            "http://example.org:8083/port-and-host-and-status",
        ),
    ];
    each_redirects(&mesh, &rows)
}

#[test]
fn mesh_http_route_scheme_redirect() -> Result<()> {
    let rules = [
        ("/scheme", "scheme: https"),
        ("/scheme-and-host", "scheme: https, hostname: example.org"),
        ("/scheme-and-status", "scheme: https, statusCode: 301"),
        (
            "/scheme-and-host-and-status",
            "scheme: https, hostname: example.org, statusCode: 301",
        ),
    ];
    let mesh = mesh_with(&http_route(&rules.map(redirecting).concat()))?;
    let rows = [
        ("/scheme", 302, "https://echo/scheme"),
        (
            "/scheme-and-host",
            302,
            "https://example.org/scheme-and-host",
        ),
        ("/scheme-and-status", 301, "https://echo/scheme-and-status"),
        (
            "/scheme-and-host-and-status",
            301,
            "https://example.org/scheme-and-host-and-status",
        ),
    ];
    each_redirects(&mesh, &rows)
}

#[test]
fn mesh_http_route_rewrite_path() -> Result<()> {
    let rewriting = |path: &str, rewrite: &str, more: &str| {
        format!(
            "  - matches: [{{path: {{value: {path}}}}}]\n    filters:\n    - {{type: URLRewrite, urlRewrite: {{path: \
             {{{rewrite}}}}}}}\n{more}    backendRefs: [{{name: echo-v1, port: 80}}]\n"
        )
    };
    let headers = "    - type: RequestHeaderModifier\n      requestHeaderModifier:\n        set: [{name: X-Header-Set, \
                   value: set}]\n        add: [{name: X-Header-Add, value: added}]\n        remove: [X-Header-Remove]\n";
    let prefix = |to: &str| format!("type: ReplacePrefixMatch, replacePrefixMatch: {to}");
    let full = "type: ReplaceFullPath, replaceFullPath: /one";
    let mesh = mesh_with(&http_route(
        &[
            rewriting("/prefix/one", &prefix("/one"), ""),
            rewriting("/strip-prefix", &prefix("/"), ""),
            rewriting("/full/one", full, ""),
            rewriting("/prefix/headers", &prefix("/prefix"), headers),
            rewriting("/full/headers", full, headers),
        ]
        .concat(),
    ))?;
    let to = mesh.at("echo", 80)?;
    for (path, expected, has_headers) in [
        ("/prefix/one/two", "/one/two", false),
        ("/strip-prefix/three", "/three", false),
        ("/strip-prefix", "/", false),
        ("/full/one/two", "/one", false),
        ("/full/one/two?a=b", "/one?a=b", false),
        ("/prefix/headers/two", "/prefix/two", true),
        ("/full/headers/two", "/one", true),
    ] {
        let ask = Ask::get(path).with("X-Header-Remove", "gone");
        mesh.soon(&format!("{path} becomes {expected}"), || {
            let seen = mesh.seen(V1, to, &ask)?;
            ensure!(seen.path == expected, "{}", seen.path);
            let header = |name: &str| seen.header(name);
            if has_headers {
                ensure!(header("X-Header-Set").as_deref() == Some("set"), "{seen:?}");
                ensure!(
                    header("X-Header-Add").as_deref() == Some("added"),
                    "{seen:?}"
                );
                ensure!(header("X-Header-Remove").is_none(), "{seen:?}");
            }
            Ok(())
        })?;
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

/// A redirect of the whole path with one of the later statuses.
fn redirects_with(path: &str, status: u16) -> Result<()> {
    let redirect = format!(
        "path: {{type: ReplaceFullPath, replaceFullPath: /elsewhere}}, statusCode: {status}"
    );
    let mesh = mesh_with(&http_route(&redirecting((path, &redirect))))?;
    each_redirects(&mesh, &[(path, status, "http://echo/elsewhere")])
}

#[test]
fn mesh_http_route_303_redirect() -> Result<()> {
    redirects_with("/see-other", 303)
}

#[test]
fn mesh_http_route_307_redirect() -> Result<()> {
    redirects_with("/temporary", 307)
}

#[test]
fn mesh_http_route_308_redirect() -> Result<()> {
    redirects_with("/permanent", 308)
}

#[test]
fn mesh_grpc_route_request_header_modifier() -> Result<()> {
    let rule = |case: &str, modifier: &str, backend: &str| {
        format!(
            "  - matches: [{{headers: [{{name: x-test-case, value: {case}}}]}}]\n    filters: [{{type: \
             RequestHeaderModifier, requestHeaderModifier: {{{modifier}}}}}]\n    backendRefs: [{{name: {backend}, port: \
             7070}}]\n"
        )
    };
    let rules = [
        rule("set", MODIFIERS[0].1, V1),
        rule("add", MODIFIERS[1].1, V1),
        rule("remove", MODIFIERS[2].1, V1),
        rule("multiple", MODIFIERS[3].1, V2),
    ];
    let route = route(
        "GRPCRoute",
        MESH,
        "calls",
        &[("echo", None)],
        &rules.concat(),
    );
    let mesh = mesh_with(&route)?;
    let to = mesh.at("echo", 7070)?;
    for (path, sent, expected) in MODIFIED {
        let case = path.trim_start_matches('/');
        if case == "case" {
            continue;
        }
        let pod = if case == "multiple" { V2 } else { V1 };
        let ask = ask_with("/shop.Books/List", sent).with("x-test-case", case);
        mesh.soon(&format!("{case} has {expected:?} at {pod}"), || {
            let seen = Seen::in_answer(&call(&mesh, to, &ask)?)?;
            ensure!(seen.pod == pod, "{} answers", seen.pod);
            has_headers(&seen, expected)
        })?;
    }
    Ok(())
}

/// A gRPC call from the client that has to end well.
fn call(mesh: &EchoMesh, to: SocketAddr, ask: &Ask) -> Result<Response> {
    let answer = mesh.pod(V1)?.run(|| h2c::Connection::open(to)?.call(ask))?;
    ensure!(answer.status == 0, "{answer:?}");
    Ok(answer.response)
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
