//! What a proxy owes HTTP, seen from both ends.

use super::application::{Application, Ended, Talk, field};
use super::mesh::{Mesh, forward, policy, routes};
use super::on_both_backends;
use crate::model::{AppProtocol, Demands, HttpMatch, HttpPolicyAction, HttpPolicyRule, PortRoutes};

/// A client's connection to an application that runs `script`, with and without the server's node looking at
/// requests.
fn between<C, F, S, G>(client: C, script: S)
where
    C: Fn(Talk) -> F,
    F: Future<Output = ()>,
    S: Fn(Talk) -> G + Copy + 'static,
    G: Future<Output = ()> + 'static,
{
    let allow_all = policy(HttpPolicyAction::Allow, HttpPolicyRule::default());
    for demands in [Demands::default(), allow_all] {
        on_both_backends(|| async {
            let mesh = Mesh::new();
            let _app = Application::start(mesh.server("one"), move |talk, _heads| script(talk));
            let web = mesh.service("web", &["one"]);
            mesh.demand("web", AppProtocol::Http1, PortRoutes::None, demands.clone());
            client(mesh.dial(web).await).await;
        });
    }
}

#[test]
fn a_chunked_body_streams_both_ways() {
    between(
        |mut talk| async move {
            talk.say("POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n")
                .await;
            for round in ["one", "two"] {
                talk.say(format!("3\r\n{round}\r\n")).await;
                // The answer to each piece comes before the next piece leaves: nothing is held back.
                assert!(
                    talk.hear(&format!("<{round}>"))
                        .await
                        .ends_with(&format!("<{round}>"))
                );
            }
            talk.say("0\r\n\r\n").await;
            assert!(talk.hear("0\r\n\r\n").await.ends_with("0\r\n\r\n"));
        },
        |mut talk| async move {
            drop(talk.hear("\r\n\r\n").await);
            talk.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                .await;
            for round in ["one", "two"] {
                drop(talk.hear(&format!("{round}\r\n")).await);
                talk.say(format!("5\r\n<{round}>\r\n")).await;
            }
            drop(talk.hear("0\r\n\r\n").await);
            talk.say("0\r\n\r\n").await;
            drop(talk.hear("never").await);
        },
    );
}

#[test]
fn an_expectation_is_met_by_whoever_reads_the_body() {
    between(
        |mut talk| async move {
            let head =
                "POST / HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
            talk.say(head).await;
            assert_eq!(talk.hear("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
            talk.say("hi").await;
            let (head, body) = talk.message().await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert_eq!(body, "hi");
        },
        |mut talk| async move {
            let (head, body) = talk.message().await;
            let length = field(&head, "content-length").unwrap();
            talk.say(format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}"
            ))
            .await;
            drop(talk.hear("never").await);
        },
    );
}

#[test]
fn a_granted_upgrade_becomes_a_tunnel() {
    between(
        |mut talk| async move {
            talk.say("GET /chat HTTP/1.1\r\nhost: web\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
                .await;
            let (head, _none) = talk.message().await;
            assert!(
                head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"),
                "{head}"
            );
            assert_eq!(field(&head, "upgrade"), Some("websocket"));
            talk.say("\0ping").await;
            assert_eq!(talk.hear("\0pong").await, "\0pong");
            talk.finish();
            assert_eq!(talk.ends().await, Ended::InOrder);
        },
        |mut talk| async move {
            let (head, _none) = talk.message().await;
            assert_eq!(field(&head, "upgrade"), Some("websocket"), "{head}");
            talk.say("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                .await;
            drop(talk.hear("\0ping").await);
            talk.say("\0pong").await;
            assert_eq!(talk.ends().await, Ended::InOrder);
            talk.finish();
        },
    );
}

#[test]
fn nothing_is_carried_unjudged_behind_another_protocol_than_websocket() {
    between(
        |mut talk| async move {
            talk.say("GET / HTTP/1.1\r\nhost: web\r\nconnection: Upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n")
                .await;
            let (head, _body) = talk.message().await;
            assert!(head.starts_with("HTTP/1.1 50"), "{head}");
            drop(talk);
        },
        |mut talk| async move {
            let (head, _none) = talk.message().await;
            for name in ["upgrade", "connection", "http2-settings"] {
                assert_eq!(field(&head, name), None, "{head}");
            }
            // It switches nevertheless.
            talk.say(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
            )
            .await;
            drop(talk);
        },
    );
}

#[test]
fn a_body_that_breaks_off_never_ends_in_order() {
    for head in [
        "content-length: 10\r\n\r\nhalf",
        "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        on_both_backends(|| async {
            let mesh = Mesh::new();
            let _app = Application::start(mesh.server("one"), move |mut talk, _heads| async move {
                drop(talk.hear("\r\n\r\n").await);
                talk.say(format!("HTTP/1.1 200 OK\r\n{head}")).await;
                // Not before the client has the beginning.
                drop(talk.hear("go on").await);
                talk.cut();
            });
            let web = mesh.service("web", &["one"]);
            mesh.bind("web", AppProtocol::Http1, PortRoutes::None);
            let mut talk = mesh.dial(web).await;
            talk.say("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 6\r\n\r\ngo")
                .await;
            drop(talk.hear("half").await);
            talk.say(" on!").await;
            let rest = talk.hear("\r\n0\r\n\r\n").await;
            assert!(
                !rest.contains("\r\n0\r\n"),
                "a cut looks like the end: {rest:?}"
            );
        });
    }
}

#[test]
fn a_client_that_goes_away_cancels_its_request() {
    between(
        |mut talk| async move {
            talk.say("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
            drop(talk.hear("begun").await);
            talk.cut();
        },
        |mut talk| async move {
            drop(talk.hear("\r\n\r\n").await);
            talk.say("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nbegun")
                .await;
            // Ends only because the client has gone.
            drop(talk.hear("never").await);
        },
    );
}

#[test]
fn what_has_no_body_is_not_waited_for() {
    between(
        |mut talk| async move {
            for (method, status) in [("HEAD", "200"), ("GET", "204"), ("GET", "304")] {
                talk.say(format!("{method} /{status} HTTP/1.1\r\nhost: web\r\n\r\n"))
                    .await;
                let head = talk.hear("\r\n\r\n").await;
                assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
            }
        },
        |mut talk| async move {
            loop {
                let head = talk.hear("\r\n\r\n").await;
                let Some(path) = head.split(' ').nth(1) else {
                    return;
                };
                let length = if path == "/204" {
                    ""
                } else {
                    "content-length: 5\r\n"
                };
                let status = &path[1..4];
                talk.say(format!("HTTP/1.1 {status} X\r\n{length}\r\n"))
                    .await;
            }
        },
    );
}

#[test]
fn an_http_1_0_client_is_answered_in_its_own_way() {
    between(
        |mut talk| async move {
            talk.say("GET / HTTP/1.0\r\n\r\n").await;
            let head = talk.hear("\r\n\r\n").await;
            assert!(head.starts_with("HTTP/1.0 200"), "{head}");
            assert_eq!(talk.hear("never").await, "no length");
        },
        |mut talk| async move {
            let head = talk.hear("\r\n\r\n").await;
            assert!(field(&head, "host").is_some(), "{head}");
            talk.say(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nno length\r\n0\r\n\r\n",
            )
            .await;
            drop(talk.hear("never").await);
        },
    );
}

/// Sends this and expects a refusal with this status; nothing reaches the application.
#[track_caller]
fn refused(request: &'static str, status: &'static str) {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let app = Application::named(mesh.server("one"), "one");
        let web = mesh.service("web", &["one"]);
        mesh.bind("web", AppProtocol::Http1, PortRoutes::None);
        let mut talk = mesh.dial(web).await;
        talk.say(request).await;
        let head = talk.hear("\r\n\r\n").await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status}")),
            "{request:?}: {head:?}"
        );
        assert_eq!(app.heard(), Vec::<String>::new(), "{request:?}");
    });
}

#[test]
fn smuggled_requests_are_refused() {
    for request in [
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\nhost: a\n\n",
        "GET /\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
    ] {
        refused(request, "400");
    }
}

#[test]
fn heads_have_a_limit() {
    let many = "a: b\r\n".repeat(101);
    let many: &'static str =
        Box::leak(format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n").into_boxed_str());
    refused(many, "431");
    let large = "x".repeat(62 << 10);
    let large: &'static str =
        Box::leak(format!("GET / HTTP/1.1\r\nhost: a\r\nx: {large}\r\n\r\n").into_boxed_str());
    refused(large, "431");
}

#[test]
fn demands_are_enforced_at_the_source_where_the_destination_judges_nothing() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let app = Application::named(mesh.outsider("one"), "one");
        let web = mesh.service("web", &["one"]);
        let deny = policy(HttpPolicyAction::Deny, HttpPolicyRule::default());
        mesh.demand("web", AppProtocol::Http1, PortRoutes::None, deny);
        let mut talk = mesh.dial(web).await;
        talk.say("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        let (head, body) = talk.message().await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
        assert_eq!(
            (body.as_str(), app.heard().len()),
            ("RBAC: access denied", 0)
        );
    });
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_passed_over() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let _closed = mesh.outsider("closed");
        let _open = Application::named(mesh.outsider("open"), "open");
        let web = mesh.service("web", &[]);
        let _both = mesh.service("both", &["closed", "open"]);
        let rule = forward(&[("both", 1)]);
        mesh.bind(
            "web",
            AppProtocol::Http1,
            routes(vec![(HttpMatch::default(), rule)]),
        );
        let mut talk = mesh.dial(web).await;
        for _ in 0..10 {
            talk.say("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
            assert_eq!(talk.message().await.1, "open");
        }
    });
}
