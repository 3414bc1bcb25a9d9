//! Pods that the nodes of the mesh do not agree about: what is for them waits a moment, and goes nowhere in the clear
//! but where the mesh says so.

use std::time::{Duration, Instant};

use super::application::{Application, Talk};
use super::mesh::{Mesh, forward, policy, routes};
use super::on_both_backends;
use crate::model::{
    AppProtocol, Demands, HttpMatch, HttpPolicyAction, HttpPolicyRule, HttpRule, OperationMatch,
    PathChange, PathMatch, PathPattern, PortRoutes, Rewrite, StringMatch,
};

/// Time in which a request is sent, and found not to be taken.
const A_MOMENT: Duration = Duration::from_millis(50);

async fn ask(talk: &Talk, path: &str) {
    talk.say(format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n"))
        .await;
}

async fn status(talk: &mut Talk) -> String {
    let (head, _body) = talk.message().await;
    head.split(' ').nth(1).unwrap_or_default().to_owned()
}

fn deny(path: &str) -> Demands {
    let operation = OperationMatch {
        paths: vec![PathPattern::Text(StringMatch::Exact(path.into()))],
        ..OperationMatch::default()
    };
    let rule = HttpPolicyRule {
        to: vec![operation],
        ..HttpPolicyRule::default()
    };
    policy(HttpPolicyAction::Deny, rule)
}

/// A rule that serves `/api` from `/inner`.
fn rewritten() -> PortRoutes {
    let below = HttpMatch {
        path: PathMatch::Prefix("/api".into()),
        ..HttpMatch::default()
    };
    let rewrite = Rewrite {
        hostname: None,
        path: Some(PathChange::Prefix("/inner".into())),
    };
    let rule = HttpRule {
        rewrite: Some(rewrite),
        ..forward(&[("web", 1)])
    };
    routes(vec![(below, rule)])
}

#[test]
fn requests_to_a_pod_that_has_left_wait_for_the_mesh_to_say_so_and_are_judged_here() {
    on_both_backends(|| async {
        for (path, expected, heard) in [
            ("/api/open", "200", Some("GET /inner/open ")),
            ("/api/closed", "403", None),
        ] {
            for routes in [PortRoutes::None, rewritten()] {
                let heard = match routes {
                    PortRoutes::None => heard.map(|_| "GET /api/open "),
                    _ => heard,
                };
                let mesh = Mesh::new();
                let app = Application::named(mesh.announced("one"), "one");
                let web = mesh.service("web", &["one"]);
                mesh.demand("web", AppProtocol::Http1, routes, deny("/api/closed"));
                let mut talk = mesh.dial(web).await;
                ask(&talk, path).await;
                tokio::time::sleep(A_MOMENT).await;
                mesh.release("one");
                assert_eq!(status(&mut talk).await, expected, "{path}");
                let seen = app.heard();
                assert_eq!(seen.len(), usize::from(heard.is_some()), "{seen:?}");
                for (seen, heard) in seen.iter().zip(heard) {
                    assert!(seen.starts_with(heard), "{seen}");
                    assert!(!seen.contains("x-culvert"), "{seen}");
                }
            }
        }
    });
}

#[test]
fn requests_to_a_pod_that_is_about_to_be_captured_wait_for_that() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let at = mesh.announced("one");
        let _app = Application::named(at, "one");
        let web = mesh.service("web", &["one"]);
        mesh.demand("web", AppProtocol::Http1, PortRoutes::None, deny("/closed"));
        let mut talk = mesh.dial(web).await;
        ask(&talk, "/open").await;
        tokio::time::sleep(A_MOMENT).await;
        mesh.capture(at.ip(), "one");
        assert_eq!(status(&mut talk).await, "200");
        ask(&talk, "/closed").await;
        assert_eq!(status(&mut talk).await, "403");
    });
}

#[test]
fn nothing_goes_out_in_the_clear_because_no_tunnel_is_taken() {
    on_both_backends(|| async {
        for is_bound in [true, false] {
            let mesh = Mesh::new();
            let app = Application::named(mesh.announced("one"), "one");
            let web = mesh.service("web", &["one"]);
            if is_bound {
                mesh.bind("web", AppProtocol::Http1, PortRoutes::None);
            }
            let begun = Instant::now();
            let mut talk = mesh.dial(web).await;
            ask(&talk, "/").await;
            let answered = talk.hear("\r\n").await;
            let expected = if is_bound { "HTTP/1.1 503 " } else { "" };
            assert!(answered.starts_with(expected), "{answered}");
            assert!(is_bound || answered.is_empty(), "{answered}");
            assert_eq!(app.accepted(), 0, "it went out in the clear");
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(2), "the refusal took {took:?}");
        }
    });
}

#[test]
fn bytes_to_a_pod_that_has_left_wait_for_the_mesh_to_say_so() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let app = Application::named(mesh.announced("one"), "one");
        let web = mesh.service("web", &["one"]);
        let mut talk = mesh.dial(web).await;
        ask(&talk, "/").await;
        tokio::time::sleep(A_MOMENT).await;
        mesh.release("one");
        assert_eq!(status(&mut talk).await, "200");
        assert_eq!(app.heard().len(), 1);
    });
}

/// A connection that was kept from when the pod was not captured is not one on which anybody judges.
#[test]
fn what_was_kept_in_the_clear_is_not_used_once_the_pod_is_captured() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let at = mesh.announced("one");
        let app = Application::named(at, "one");
        mesh.release("one");
        let web = mesh.service("web", &["one"]);
        mesh.demand("web", AppProtocol::Http1, PortRoutes::None, deny("/closed"));
        let mut talk = mesh.dial(web).await;
        ask(&talk, "/open").await;
        assert_eq!(status(&mut talk).await, "200");
        mesh.recapture(at.ip(), "one");
        ask(&talk, "/closed").await;
        assert_eq!(status(&mut talk).await, "403");
        ask(&talk, "/open").await;
        assert_eq!(status(&mut talk).await, "200");
        assert_eq!(app.accepted(), 2, "the kept connection was used");
    });
}
