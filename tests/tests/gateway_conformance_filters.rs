//! The Gateway API's mesh conformance tests of filters: headers, redirects, rewrites; each by its own name.

use anyhow::{Result, ensure};
use e2e::echo::{EchoMesh, Seen};
use e2e::gateway_conformance::{MESH, V1, V2, call, each_redirects, http_route, mesh_with, route};
use e2e::net::http::Ask;

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
