//! Where requests and connections go: routes of every kind, VirtualService, DestinationRule, and what is broken.
//!
//! Names follow Istio's ambient integration tests, or the Gateway API's, where there is one.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{Echo, EchoMesh, Seen};
use e2e::net::http::{Ask, Response};
use e2e::net::serve::Server;
use e2e::net::service::Front;
use e2e::net::{self, h2c};
use e2e::tls::Authority;

/// A route of namespace `shop` for service `echo`.
fn route(version: &str, kind: &str, name: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: shop\n\
         spec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  rules:\n{rules}---\n"
    )
}

fn http_route(name: &str, rules: &str) -> String {
    route("v1", "HTTPRoute", name, rules)
}

/// A shop with these manifests, and where `echo` is.
fn shop_with(manifests: &str) -> Result<(EchoMesh, SocketAddr)> {
    let mesh = EchoMesh::shop()?;
    mesh.apply("routes.yaml", manifests)?;
    let to = mesh.at("echo", 80)?;
    Ok((mesh, to))
}

/// Waits until a request from the client is answered by this pod.
fn reaches(mesh: &EchoMesh, to: SocketAddr, ask: &Ask, pod: &str) -> Result<()> {
    mesh.soon(&format!("{ask:?} reaches {pod}"), || {
        let seen = mesh.seen("client", to, ask)?;
        ensure!(seen.pod == pod, "{} answers", seen.pod);
        Ok(())
    })
}

#[test]
fn routes_match_by_every_part_of_a_request() -> Result<()> {
    let (mesh, to) = shop_with(&http_route(
        "parts",
        "  - matches:\n    - {method: DELETE}\n    - {path: {type: Exact, value: /exact}}\n    - {path: {type: \
         RegularExpression, value: '/re/[0-9]+'}}\n    - {headers: [{name: x-re, type: RegularExpression, value: \
         'a.*z'}]}\n    - {queryParams: [{name: q, type: RegularExpression, value: 'x+'}]}\n    - {headers: [{name: \
         x-a, value: '1'}, {name: x-b, value: '2'}]}\n    backendRefs: [{name: echo-v2, port: 80}]\n",
    ))?;
    let get = Ask::get;
    for (ask, status) in [
        (get("/exact"), 200),
        (Ask::new("DELETE", "/any"), 200),
        (get("/exact/"), 404),
        (get("/exact?a=b"), 200),
        (get("/EXACT"), 404),
        (get("/re/42"), 200),
        (get("/re/42/more"), 404),
        (get("/").with("X-Re", "abcz"), 200),
        (get("/").with("X-Re", "abc"), 404),
        (get("/?q=xxx"), 200),
        (get("/?q=xxy"), 404),
        (get("/").with("X-A", "1").with("X-B", "2"), 200),
        (get("/").with("X-A", "1"), 404),
    ] {
        mesh.soon_answers("client", to, &ask, status)?;
    }
    Ok(())
}

#[test]
fn the_oldest_of_conflicting_routes_wins() -> Result<()> {
    let to_version = |name: &str, time: &str, version: &str| {
        http_route(
            name,
            &format!("  - backendRefs: [{{name: echo-{version}, port: 80}}]\n"),
        )
        .replace(
            "  namespace: shop\n",
            &format!("  namespace: shop\n  creationTimestamp: {time}\n"),
        )
    };
    let (old, new) = ("2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z");
    let (mesh, to) = shop_with(&[to_version("a", new, "v1"), to_version("b", old, "v2")].concat())?;
    reaches(&mesh, to, &Ask::get("/"), "echo-v2")?;
    // Of the same age: by name.
    mesh.apply(
        "routes.yaml",
        &[to_version("b", old, "v2"), to_version("a", old, "v1")].concat(),
    )?;
    reaches(&mesh, to, &Ask::get("/"), "echo-v1")
}

#[test]
fn what_no_route_matches_is_not_found() -> Result<()> {
    let (mesh, to) = shop_with(&http_route(
        "one",
        "  - matches: [{path: {value: /here}}]\n    backendRefs: [{name: echo-v1, port: 80}]\n",
    ))?;
    mesh.soon_answers("client", to, &Ask::get("/elsewhere"), 404)?;
    reaches(&mesh, to, &Ask::get("/here"), "echo-v1")?;
    // No chaining: a backend's own routes are not looked at.
    let text = http_route(
        "two",
        "  - matches: [{path: {value: /never}}]\n    backendRefs: [{name: echo-v1, port: 80}]\n",
    );
    mesh.apply(
        "other.yaml",
        &text.replace(
            "kind: Service, name: echo}",
            "kind: Service, name: echo-v1}",
        ),
    )?;
    mesh.soon_answers("client", mesh.at("echo-v1", 80)?, &Ask::get("/here"), 404)?;
    reaches(&mesh, to, &Ask::get("/here"), "echo-v1")
}

#[test]
fn waypoint_with_invalid_backend() -> Result<()> {
    for backends in [
        "[{name: nobody, port: 80}]",
        "[{name: echo-v1, port: 81}]",
        "[{group: example.com, kind: Thing, name: echo-v1, port: 80}]",
        "[{name: echo-v1, port: 80, weight: 0}]",
        "[]",
    ] {
        let (mesh, to) = shop_with(&http_route(
            "broken",
            &format!("  - backendRefs: {backends}\n"),
        ))?;
        mesh.soon_answers("client", to, &Ask::get("/"), 500)
            .with_context(|| backends.to_owned())?;
    }
    Ok(())
}

#[test]
fn an_invalid_backend_takes_its_share_and_no_more() -> Result<()> {
    let (mesh, to) = shop_with(&http_route(
        "half",
        "  - backendRefs: [{name: nobody, port: 80, weight: 1}, {name: echo-v1, port: 80, weight: 1}]\n",
    ))?;
    mesh.soon("the route is in force", || {
        let statuses = mesh.statuses("client", to, &Ask::get("/"), 20)?;
        ensure!(statuses.contains_key(&500), "{statuses:?}");
        Ok(())
    })?;
    let statuses = mesh.statuses("client", to, &Ask::get("/"), 400)?;
    // Five standard deviations of 400 draws: 5 · √(400 · 0.5 · 0.5) = 50.
    let failed = statuses.get(&500).copied().unwrap_or_default();
    ensure!((150..=250).contains(&failed), "{statuses:?}");
    ensure!(statuses.len() == 2, "{statuses:?}");
    Ok(())
}

#[test]
fn an_invalid_expression_leaves_the_last_good_route_and_is_reported() -> Result<()> {
    let rule = |expression: &str| {
        http_route(
            "regex",
            &format!(
                "  - matches: [{{path: {{type: RegularExpression, value: '{expression}'}}}}]\n    backendRefs: [{{name: \
                 echo-v2, port: 80}}]\n"
            ),
        )
    };
    let (mesh, to) = shop_with(&rule("/re/[0-9]+"))?;
    reaches(&mesh, to, &Ask::get("/re/1"), "echo-v2")?;
    mesh.apply("routes.yaml", &rule("/re/[0-9"))?;
    mesh.soon("somebody says why", || {
        let log = mesh.lab.agent("a")?.log()?;
        let told = log.lines().find(|line| line.contains("`/re/[0-9`"));
        ensure!(told.is_some_and(|line| line.contains("regex")), "{log}");
        Ok(())
    })?;
    // As it was before, on both sides of the match: no request falls through to every endpoint.
    reaches(&mesh, to, &Ask::get("/re/1"), "echo-v2")?;
    let unmatched = mesh.ask("client", to, &Ask::get("/re/x"))?;
    ensure!(unmatched.status == 404, "{}", unmatched.status);
    mesh.apply("routes.yaml", &rule("/re/[a-z]+"))?;
    reaches(&mesh, to, &Ask::get("/re/x"), "echo-v2")
}

#[test]
fn http_route_response_header_modifier_and_rewritten_hosts() -> Result<()> {
    let (mesh, to) = shop_with(&http_route(
        "headers",
        "  - filters:\n    - type: ResponseHeaderModifier\n      responseHeaderModifier: {set: [{name: x-set, value: \
         new}], add: [{name: x-add, value: more}], remove: [x-gone]}\n    - type: URLRewrite\n      urlRewrite: \
         {hostname: other.example.org}\n    backendRefs: [{name: echo-v1, port: 80}]\n",
    ))?;
    let ask = Ask::get("/").wishing("set=x-set:old,set=x-add:one,set=x-gone:1");
    mesh.soon("headers of the response", || {
        let answer = mesh.ask("client", to, &ask)?;
        let values = |name: &str| -> Vec<String> {
            let lines = answer
                .headers
                .iter()
                .filter_map(|line| line.split_once(": "));
            let of = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
            of.flat_map(|(_, value)| value.split(", ").map(str::to_owned))
                .collect()
        };
        ensure!(values("x-set") == ["new"], "{answer:?}");
        ensure!(values("x-add") == ["one", "more"], "{answer:?}");
        ensure!(values("x-gone").is_empty(), "{answer:?}");
        ensure!(
            Seen::in_answer(&answer)?.host == "other.example.org",
            "{answer:?}"
        );
        Ok(())
    })
}

#[test]
fn http_route_retry() -> Result<()> {
    let (mesh, to) = shop_with(&http_route(
        "again",
        "  - retry: {codes: [503], attempts: 3, backoff: 10ms}\n    backendRefs: [{name: echo-v1, port: 80}]\n",
    ))?;
    reaches(&mesh, to, &Ask::get("/"), "echo-v1")?;
    let failing = |key: &str| Ask::get("/").wishing(&format!("fail={key}"));
    mesh.soon_answers("client", to, &Ask::get("/").wishing("status=502"), 502)?;
    let ask = |key| {
        mesh.ask("client", to, &failing(key))
            .map(|answer| answer.status)
    };
    ensure!(ask("3:three")? == 200, "three failures, three retries");
    ensure!(ask("4:four")? == 503, "a fourth failure is the answer");
    // With a body too.
    let post = Ask::new("POST", "/")
        .wishing("fail=2:post")
        .body("again and again");
    let seen = mesh.seen("client", to, &post)?;
    ensure!(seen.body == "again and again", "{seen:?}");
    // Without a policy of its own a 503 of the application is its answer.
    mesh.lab.manifests().delete("routes.yaml")?;
    mesh.soon_answers("client", to, &Ask::get("/").wishing("status=503"), 503)
        .map(drop)
}

#[test]
fn http_route_request_mirror() -> Result<()> {
    let mirror = |percent: &str| {
        format!(
            "    - type: RequestMirror\n      requestMirror: {{backendRef: {{name: echo-v2, port: 80}}{percent}}}\n"
        )
    };
    let text = |filters: &str| {
        http_route(
            "mirror",
            &format!("  - filters:\n{filters}    backendRefs: [{{name: echo-v1, port: 80}}]\n"),
        )
    };
    let (mesh, to) = shop_with(&text(&mirror("")))?;
    reaches(&mesh, to, &Ask::get("/"), "echo-v1")?;
    let copies = |asked: usize| -> Result<usize> {
        let before = mesh.workload("echo-v2")?.requests();
        let statuses = mesh.statuses("client", to, &Ask::get("/"), asked)?;
        ensure!(statuses == BTreeMap::from([(200, asked)]), "{statuses:?}");
        // A copy is sent beside the request, so the last ones may still be under way.
        let count = || Ok(mesh.workload("echo-v2")?.requests() - before);
        let enough = || {
            let count = count()?;
            ensure!(count >= asked / 10, "{count} copies of {asked}");
            Ok(count)
        };
        e2e::lab::eventually("copies arrive", Duration::from_secs(3), enough)?;
        let mut last = count()?;
        e2e::lab::eventually("no more copies arrive", Duration::from_secs(3), || {
            let now = count()?;
            let is_still = now == last;
            last = now;
            ensure!(is_still, "{now}");
            Ok(())
        })?;
        count()
    };
    let all = copies(50)?;
    ensure!((49..=51).contains(&all), "{all} copies of 50");
    mesh.apply("routes.yaml", &text(&mirror(", percent: 30")))?;
    mesh.soon_at_layer7("client", to, true)?;
    let some = copies(400)?;
    // 120 of 400, give or take five standard deviations: 5 · √(400 · 0.3 · 0.7) = 46.
    ensure!((74..=166).contains(&some), "{some} copies of 400");
    Ok(())
}

#[test]
fn http_route_cors() -> Result<()> {
    let (mesh, to) = shop_with(&http_route(
        "cors",
        "  - filters:\n    - type: CORS\n      cors: {allowOrigins: ['https://www.example.com', \
         'https://*.example.org'], allowMethods: [GET, PUT], allowHeaders: [x-one], exposeHeaders: [x-two], \
         allowCredentials: true, maxAge: 600}\n    backendRefs: [{name: echo-v1, port: 80}]\n",
    ))?;
    let preflight = |origin: &str| {
        let ask = Ask::new("OPTIONS", "/").with("Origin", origin);
        ask.with("Access-Control-Request-Method", "PUT")
            .with("Access-Control-Request-Headers", "x-one")
    };
    let header = |answer: &Response, name: &str| answer.header(name).unwrap_or_default().to_owned();
    for origin in ["https://www.example.com", "https://a.example.org"] {
        mesh.soon(&format!("{origin} is let in"), || {
            let answer = mesh.ask("client", to, &preflight(origin))?;
            ensure!(matches!(answer.status, 200 | 204), "{answer:?}");
            ensure!(
                header(&answer, "access-control-allow-origin") == origin,
                "{answer:?}"
            );
            ensure!(
                header(&answer, "access-control-allow-methods").contains("PUT"),
                "{answer:?}"
            );
            ensure!(
                header(&answer, "access-control-allow-headers").contains("x-one"),
                "{answer:?}"
            );
            ensure!(
                header(&answer, "access-control-allow-credentials") == "true",
                "{answer:?}"
            );
            ensure!(
                header(&answer, "access-control-max-age") == "600",
                "{answer:?}"
            );
            let answer = mesh.ask("client", to, &Ask::get("/").with("Origin", origin))?;
            ensure!(
                header(&answer, "access-control-allow-origin") == origin,
                "{answer:?}"
            );
            ensure!(
                header(&answer, "access-control-expose-headers").contains("x-two"),
                "{answer:?}"
            );
            Ok(())
        })?;
    }
    let before = mesh.workload("echo-v1")?.requests();
    let answer = mesh.ask("client", to, &preflight("https://evil.example.net"))?;
    ensure!(
        answer.header("access-control-allow-origin").is_none(),
        "{answer:?}"
    );
    ensure!(
        mesh.workload("echo-v1")?.requests() == before,
        "it was forwarded"
    );
    Ok(())
}

#[test]
fn grpc_routes_match_methods() -> Result<()> {
    let rules = "  - matches: [{method: {service: shop.Books, method: List}}]\n    backendRefs: [{name: echo-v1, port: \
                 7070}]\n  - matches: [{method: {service: shop.Books}}]\n    backendRefs: [{name: echo-v2, port: \
                 7070}]\n";
    let mesh = EchoMesh::shop()?;
    mesh.apply("routes.yaml", &route("v1", "GRPCRoute", "books", rules))?;
    let to = mesh.at("echo", 7070)?;
    let call = |path: &str| {
        let ask = Ask::get(path);
        mesh.pod("client")?
            .run(|| h2c::Connection::open(to)?.call(&ask))
    };
    for (path, pod) in [
        ("/shop.Books/List", "echo-v1"),
        ("/shop.Books/Add", "echo-v2"),
    ] {
        mesh.soon(path, || {
            let seen = Seen::in_answer(&call(path)?.response)?;
            ensure!(seen.pod == pod, "{}", seen.pod);
            Ok(())
        })?;
    }
    // UNIMPLEMENTED.
    ensure!(call("/shop.Cars/List")?.status == 12);
    Ok(())
}

/// A service with a route of bytes to three backends, 3:1:1, of two pods.
fn bytes_by_weight(kind: &str, port: &str) -> Result<(EchoMesh, SocketAddr)> {
    let mut mesh = EchoMesh::shop()?;
    let ports = format!("  - {{name: {port}, port: 9090, targetPort: 9090}}\n");
    for (service, selector) in [
        ("echo", "{app: echo}"),
        ("echo-v1", "{app: echo, version: v1}"),
        ("echo-v2", "{app: echo, version: v2}"),
    ] {
        mesh.service_with("shop", service, "{}", selector, &ports)?;
    }
    let rules = "  - backendRefs: [{name: echo-v1, port: 9090, weight: 3}, {name: echo-v2, port: 9090, weight: 1}, \
                 {name: echo-v2, port: 9090, weight: 1}]\n";
    mesh.apply("routes.yaml", &route("v1alpha2", kind, "bytes", rules))?;
    let to = mesh.at("echo", 9090)?;
    Ok((mesh, to))
}

/// Connections of the client's are spread by weight, and refused where the route leads to nobody. `draw` opens one and says
/// which pod has answered.
fn spreads_connections(
    (mesh, kind): (&EchoMesh, &str),
    draw: impl Fn() -> Result<String> + Sync,
) -> Result<()> {
    let client = mesh.pod("client")?;
    let count = || {
        client.run(|| {
            let mut first = 0;
            for _ in 0..100 {
                let said = draw()?;
                ensure!(["echo-v1", "echo-v2"].contains(&&*said), "{said}");
                first += usize::from(said == "echo-v1");
            }
            Ok(first)
        })
    };
    // 60 of 100, give or take three standard deviations of such a draw.
    e2e::lab::eventually(
        "the heaviest gets the most",
        Duration::from_secs(10),
        || {
            let first = count()?;
            ensure!((45..=75).contains(&first), "{first} of 100");
            Ok(())
        },
    )?;
    // Nobody there: refused, not sent elsewhere.
    let broken = "  - backendRefs: [{name: nobody, port: 9090}]\n";
    mesh.apply("routes.yaml", &route("v1alpha2", kind, "bytes", broken))?;
    mesh.soon("refused", || {
        let answer = client.run(&draw);
        ensure!(
            answer.as_ref().map_or(true, String::is_empty),
            "{answer:?} answers"
        );
        Ok(())
    })
}

/// Of servers that speak first.
#[test]
fn tcp_route() -> Result<()> {
    let (mesh, to) = bytes_by_weight("TCPRoute", "tcp")?;
    let tell = |name: &'static str| {
        move |mut stream: &std::net::TcpStream| {
            Ok(std::io::Write::write_all(&mut stream, name.as_bytes())?)
        }
    };
    let servers = ["echo-v1", "echo-v2"]
        .map(|pod| Server::start(mesh.pod(pod)?, Ipv6Addr::UNSPECIFIED, 9090, tell(pod)));
    let _servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    spreads_connections((&mesh, "TCPRoute"), || {
        let said = net::read_to_end(&net::connect(to)?)?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    })
}

/// Of servers that end TLS by themselves, with a certificate that is nobody else's.
#[test]
fn tls_route() -> Result<()> {
    let (mesh, to) = bytes_by_weight("TLSRoute", "tls")?;
    let authority = Authority::new("shop")?;
    let front = || {
        Ok::<_, anyhow::Error>(Front {
            tls: Some(authority.server(&["echo.shop"], None)?),
            ..Front::default()
        })
    };
    let servers =
        ["echo-v1", "echo-v2"].map(|pod| Echo::start_behind(front()?, mesh.pod(pod)?, &[9090]));
    let _servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    spreads_connections((&mesh, "TLSRoute"), || {
        let answer = authority.ask("echo.shop", to, &Ask::get("/"))?;
        Ok(Seen::in_answer(&answer)?.pod)
    })
}
