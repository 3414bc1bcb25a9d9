//! Requests: routed where their client lives, judged where they arrive.

use super::application::{Application, field};
use super::mesh::{Mesh, forward, policy, routes};
use super::on_both_backends;
use crate::model::{
    AppProtocol, HttpMatch, HttpPolicyAction, HttpPolicyRule, OperationMatch, PortRoutes,
    StringMatch,
};

const GET: &str = "GET /path HTTP/1.1\r\nhost: web\r\n\r\n";

/// What `named` applications add up to, over some requests on one connection.
async fn bodies(talk: &mut super::application::Talk, requests: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    for _ in 0..requests {
        talk.say(GET).await;
        let (head, body) = talk.message().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        bodies.push(body);
    }
    bodies
}

#[test]
fn each_request_of_a_connection_is_balanced_by_itself() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let one = Application::named(mesh.server("one"), "one");
        let two = Application::named(mesh.server("two"), "two");
        let web = mesh.service("web", &["one", "two"]);
        mesh.bind("web", AppProtocol::Http1, PortRoutes::None);
        let mut talk = mesh.dial(web).await;
        let bodies = bodies(&mut talk, 40).await;
        for name in ["one", "two"] {
            assert!(
                bodies.iter().any(|body| body == name),
                "{name} answered none of 40"
            );
        }
        // Connections are kept: a client that asks in turn needs one for each endpoint, and another where it
        // asks before the last one is seen to be free.
        let accepted = one.accepted() + two.accepted();
        assert!(accepted <= 8, "{accepted} connections for 40 requests");
    });
}

#[test]
fn a_request_gets_an_id_and_a_response_says_how_long_it_took() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let app = Application::named(mesh.server("one"), "one");
        let web = mesh.service("web", &["one"]);
        mesh.bind("web", AppProtocol::Http1, PortRoutes::None);
        let mut talk = mesh.dial(web).await;
        talk.say(
            "GET / HTTP/1.1\r\nhost: web\r\nconnection: x-hop\r\nx-hop: 1\r\nx-own: 2\r\n\r\n",
        )
        .await;
        let (head, _body) = talk.message().await;
        assert!(
            field(&head, "x-envoy-upstream-service-time").is_some(),
            "{head}"
        );
        assert_eq!(field(&head, "server"), Some("istio-envoy"));
        let seen = app.heard().remove(0);
        assert_eq!(
            field(&seen, "x-request-id").map(str::len),
            Some(36),
            "{seen}"
        );
        assert_eq!(field(&seen, "x-forwarded-proto"), Some("http"));
        assert_eq!(
            (field(&seen, "x-hop"), field(&seen, "x-own")),
            (None, Some("2"))
        );
        assert_eq!(field(&seen, "host"), Some("web"));
    });
}

#[test]
fn weights_split_requests() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let _one = Application::named(mesh.server("one"), "one");
        let _two = Application::named(mesh.server("two"), "two");
        let web = mesh.service("web", &[]);
        let _vips = (mesh.service("v1", &["one"]), mesh.service("v2", &["two"]));
        let rule = forward(&[("v1", 90), ("v2", 10)]);
        mesh.bind(
            "web",
            AppProtocol::Detect,
            routes(vec![(HttpMatch::default(), rule)]),
        );
        let mut talk = mesh.dial(web).await;
        let bodies = bodies(&mut talk, 500).await;
        let second = bodies.iter().filter(|body| *body == "two").count();
        // 50 expected; five standard deviations are about 34.
        assert!((16..84).contains(&second), "{second} of 500");
    });
}

#[test]
fn a_port_with_routes_that_do_not_match_answers_404() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let web = mesh.service("web", &[]);
        mesh.bind("web", AppProtocol::Http1, routes(vec![]));
        let mut talk = mesh.dial(web).await;
        talk.say(GET).await;
        let (head, _body) = talk.message().await;
        assert!(head.starts_with("HTTP/1.1 404 Not Found\r\n"), "{head}");
    });
}

#[test]
fn nobody_to_answer_is_503_with_envoys_words() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let web = mesh.service("web", &[]);
        mesh.bind("web", AppProtocol::Http1, PortRoutes::None);
        let mut talk = mesh.dial(web).await;
        talk.say(GET).await;
        let (head, body) = talk.message().await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert_eq!(body, "no healthy upstream");
    });
}

#[test]
fn the_servers_node_judges_each_request() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let app = Application::named(mesh.server("one"), "one");
        let web = mesh.service("web", &["one"]);
        let get = OperationMatch {
            methods: vec![StringMatch::Exact("GET".into())],
            ..OperationMatch::default()
        };
        let rule = HttpPolicyRule {
            to: vec![get],
            ..HttpPolicyRule::default()
        };
        let demands = policy(HttpPolicyAction::Allow, rule);
        mesh.demand("web", AppProtocol::Http1, PortRoutes::None, demands);
        let mut talk = mesh.dial(web).await;
        assert_eq!(bodies(&mut talk, 2).await, ["one", "one"]);
        talk.say("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 2\r\n\r\nhi")
            .await;
        let (head, body) = talk.message().await;
        assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
        assert_eq!(body, "RBAC: access denied");
        assert_eq!(
            app.heard().len(),
            2,
            "the refused request reached the application"
        );
        // The connection goes on: the next request is judged by itself.
        assert_eq!(bodies(&mut talk, 1).await, ["one"]);
    });
}

#[test]
fn a_policy_change_holds_for_the_next_request_of_a_live_connection() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let _app = Application::named(mesh.server("one"), "one");
        let web = mesh.service("web", &["one"]);
        let allow = policy(HttpPolicyAction::Allow, HttpPolicyRule::default());
        mesh.demand("web", AppProtocol::Http1, PortRoutes::None, allow);
        let mut talk = mesh.dial(web).await;
        assert_eq!(bodies(&mut talk, 1).await, ["one"]);
        let deny = policy(HttpPolicyAction::Deny, HttpPolicyRule::default());
        mesh.demand("web", AppProtocol::Http1, PortRoutes::None, deny);
        talk.say(GET).await;
        assert!(talk.message().await.0.starts_with("HTTP/1.1 403 "));
    });
}

#[test]
fn what_is_not_http_is_carried_as_bytes() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let _echo = Application::start(mesh.server("one"), |mut talk, _heads| async move {
            let line = talk.hear("\n").await;
            talk.say(format!("you said {line}")).await;
        });
        let web = mesh.service("web", &["one"]);
        mesh.bind("web", AppProtocol::Detect, PortRoutes::None);
        let mut talk = mesh.dial(web).await;
        talk.say("EHLO there\n").await;
        assert_eq!(talk.hear("\n").await, "you said EHLO there\n");
    });
}
