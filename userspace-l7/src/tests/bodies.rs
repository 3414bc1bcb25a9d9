//! Bodies of requests: whole, once, or broken off.

use std::time::Duration;

use ::http::StatusCode;

use super::application::{Application, field};
use super::mesh::{Mesh, forward, routes};
use super::on_both_backends;
use crate::model::{AppProtocol, HttpMatch, HttpRule, PortRoutes, RetryPolicy};

/// Time in which what was sent has been read.
const A_MOMENT: Duration = Duration::from_millis(50);

/// More than what is kept of a body.
const LONG: usize = 100 << 10;

#[test]
fn a_body_that_is_too_long_to_be_kept_is_sent_once() {
    for (length, attempts) in [(10, 3), (LONG, 1)] {
        for trailer in ["", "x-sum: 1\r\n"] {
            on_both_backends(|| async {
                let mesh = Mesh::new();
                let app = Application::start(mesh.server("one"), |mut talk, heads| async move {
                    loop {
                        let head = talk.hear("\r\n\r\n").await;
                        if head.is_empty() {
                            return;
                        }
                        heads.borrow_mut().push(head);
                        drop(talk.hear("0\r\n").await);
                        drop(talk.hear("\r\n").await);
                        talk.say("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
                            .await;
                    }
                });
                let web = mesh.service("web", &["one"]);
                let retry = RetryPolicy {
                    statuses: vec![StatusCode::SERVICE_UNAVAILABLE],
                    backoff: Duration::from_millis(1),
                    ..RetryPolicy::default()
                };
                let rule = HttpRule {
                    retry,
                    ..forward(&[("web", 1)])
                };
                let table = routes(vec![(HttpMatch::default(), rule)]);
                mesh.bind("web", AppProtocol::Http1, table);
                let mut talk = mesh.dial(web).await;
                let body = "x".repeat(length);
                talk.say("POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n")
                    .await;
                talk.say(format!("{length:x}\r\n{body}\r\n0\r\n{trailer}\r\n"))
                    .await;
                let (head, _body) = talk.message().await;
                assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
                assert_eq!(app.heard().len(), attempts, "{length} {trailer:?}");
            });
        }
    }
}

#[test]
fn a_body_arrives_whatever_the_method() {
    const BODY: &str = "transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    for (method, rest, expected) in [
        ("GET", BODY, "hi"),
        ("HEAD", BODY, "hi"),
        ("OPTIONS", BODY, "hi"),
        ("GET", "content-length: 2\r\n\r\nhi", "hi"),
        ("GET", "\r\n", ""),
        ("HEAD", "\r\n", ""),
    ] {
        on_both_backends(|| async {
            let mesh = Mesh::new();
            let _app = Application::start(mesh.server("one"), |mut talk, _heads| async move {
                let head = talk.hear("\r\n\r\n").await;
                let has_body = ["transfer-encoding", "content-length"]
                    .iter()
                    .any(|name| field(&head, name).is_some());
                let seen = if has_body {
                    drop(talk.hear("hi").await);
                    "hi"
                } else {
                    ""
                };
                talk.say(format!(
                    "HTTP/1.1 200 OK\r\nx-heard: {seen}\r\ncontent-length: 0\r\n\r\n"
                ))
                .await;
                drop(talk.hear("never").await);
            });
            let web = mesh.service("web", &["one"]);
            mesh.bind("web", AppProtocol::Http1, PortRoutes::None);
            let mut talk = mesh.dial(web).await;
            talk.say(format!("{method} / HTTP/1.1\r\nhost: web\r\n{rest}"))
                .await;
            let head = talk.hear("\r\n\r\n").await;
            assert_eq!(field(&head, "x-heard"), Some(expected), "{method} {rest:?}");
        });
    }
}

#[test]
fn nothing_passes_behind_a_chunk_in_doubt() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let _app = Application::start(mesh.server("one"), |mut talk, _heads| async move {
            drop(talk.hear("\r\n\r\n").await);
            talk.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n")
                .await;
            if talk.hear("0\r\n\r\n").await.ends_with("0\r\n\r\n") {
                talk.say("0\r\n\r\n").await;
                drop(talk.hear("never").await);
            }
        });
        let web = mesh.service("web", &["one"]);
        mesh.bind("web", AppProtocol::Http1, PortRoutes::None);
        let mut talk = mesh.dial(web).await;
        talk.say("POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        drop(talk.hear("begun\r\n").await);
        // The line has begun in order, so its extension takes up what is to break it off.
        for piece in ["5;x", "\n"] {
            talk.say(piece).await;
            tokio::time::sleep(A_MOMENT).await;
        }
        talk.say("abc\r\n0\r\n\r\n").await;
        let rest = talk.hear("0\r\n\r\n").await;
        assert!(!rest.contains("0\r\n\r\n"), "{rest:?}");
    });
}
