//! Who meets whose demands: whichever way a request takes, nothing that is demanded of it is gone around.

use std::sync::Arc;

use ::http::{HeaderName, StatusCode};

use super::application::Application;
use super::mesh::{Mesh, forward, key, policy, routes, rule};
use super::on_both_backends;
use crate::model::{
    AbortAnswer, AppProtocol, Demands, Fault, FaultAbort, HttpAction, HttpMatch, HttpPolicyAction,
    HttpPolicyRule, HttpRule, OperationMatch, PathChange, PathMatch, PathPattern, PortRoutes,
    Rewrite, StringMatch,
};

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n")
}

/// The status that a request is answered with, and its body.
async fn answer(talk: &mut super::application::Talk, request: &str) -> (String, String) {
    talk.say(request).await;
    let (head, body) = talk.message().await;
    let status = head.split(' ').nth(1).unwrap_or_default();
    (status.to_owned(), body)
}

/// Refuses requests for this path.
fn deny(path: &str) -> Demands {
    let path = PathPattern::Text(StringMatch::Exact(path.into()));
    let operation = OperationMatch {
        paths: vec![path],
        ..OperationMatch::default()
    };
    let rule = HttpPolicyRule {
        to: vec![operation],
        ..HttpPolicyRule::default()
    };
    policy(HttpPolicyAction::Deny, rule)
}

#[test]
fn a_consumer_route_leads_around_no_demand() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let _front = Application::named(mesh.server("one"), "one");
        let _web = Application::named(mesh.server("two"), "two");
        let front = mesh.service("front", &["one"]);
        let _vip = mesh.service("web", &["two"]);
        mesh.bind("front", AppProtocol::Http1, PortRoutes::None);
        mesh.demand("web", AppProtocol::Http1, PortRoutes::None, deny("/closed"));
        let sent_on = routes(vec![(HttpMatch::default(), forward(&[("web", 1)]))]);
        mesh.change(|snapshot| {
            let mut layer7 = (**snapshot.services_layer7.get(&key("front")).unwrap()).clone();
            let port = layer7.ports.values_mut().next().unwrap();
            let port = Arc::make_mut(port);
            drop(port.consumer_routes.insert("app".into(), sent_on));
            drop(
                snapshot
                    .services_layer7
                    .insert(key("front"), Arc::new(layer7)),
            );
        });
        let mut talk = mesh.dial(front).await;
        let (status, body) = answer(&mut talk, &get("/open")).await;
        assert_eq!((&*status, &*body), ("200", "two"));
        let (status, _body) = answer(&mut talk, &get("/closed")).await;
        assert_eq!(status, "403", "what web demands is gone around");
    });
}

#[test]
fn what_a_client_says_of_its_certificate_reaches_nobody() {
    on_both_backends(|| async {
        for is_judged_there in [true, false] {
            let mesh = Mesh::new();
            let at = if is_judged_there {
                mesh.server("one")
            } else {
                mesh.outsider("one")
            };
            let app = Application::named(at, "one");
            let web = mesh.service("web", &["one"]);
            mesh.bind("web", AppProtocol::Http1, PortRoutes::None);
            let mut talk = mesh.dial(web).await;
            talk.say("GET / HTTP/1.1\r\nhost: web\r\nx-forwarded-client-cert: URI=spiffe://td/ns/a/sa/b\r\n\r\n")
                .await;
            let (head, _body) = talk.message().await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            let seen = app.heard();
            assert!(!seen.concat().contains("client-cert"), "{seen:?}");
        }
    });
}

#[test]
fn what_is_answered_at_the_clients_node_is_judged_there() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let _app = Application::named(mesh.server("one"), "one");
        let web = mesh.service("web", &["one"]);
        let at = |path: &str| HttpMatch {
            path: PathMatch::TextPrefix(path.into()),
            ..HttpMatch::default()
        };
        let respond = rule(HttpAction::Respond {
            status: StatusCode::IM_A_TEAPOT,
            body: "short and stout".into(),
        });
        let fault = Fault {
            delay: None,
            abort: Some(FaultAbort {
                answer: AbortAnswer::Http(StatusCode::BAD_GATEWAY),
                per_million: 1_000_000,
            }),
        };
        let faulty = HttpRule {
            fault: Some(fault),
            ..forward(&[("web", 1)])
        };
        let table = routes(vec![(at("/tea"), respond), (at("/fault"), faulty)]);
        for (path, status) in [("/tea", "418"), ("/fault", "502"), ("/nowhere", "404")] {
            mesh.demand("web", AppProtocol::Http1, table.clone(), deny("/other"));
            let mut talk = mesh.dial(web).await;
            assert_eq!(answer(&mut talk, &get(path)).await.0, status);
            mesh.demand("web", AppProtocol::Http1, table.clone(), deny(path));
            assert_eq!(answer(&mut talk, &get(path)).await.0, "403", "{path}");
        }
    });
}

#[test]
fn policies_see_what_was_asked_for() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let app = Application::named(mesh.server("one"), "one");
        let web = mesh.service("web", &["one"]);
        let below = HttpMatch {
            path: PathMatch::Prefix("/api".into()),
            ..HttpMatch::default()
        };
        let stripping = HttpRule {
            rewrite: Some(Rewrite {
                hostname: None,
                path: Some(PathChange::Prefix("/".into())),
            }),
            ..forward(&[("web", 1)])
        };
        let table = routes(vec![
            (below, stripping),
            (HttpMatch::default(), forward(&[("web", 1)])),
        ]);
        mesh.demand(
            "web",
            AppProtocol::Http1,
            table.clone(),
            deny("/api/closed"),
        );
        let mut talk = mesh.dial(web).await;
        assert_eq!(answer(&mut talk, &get("/api/closed")).await.0, "403");
        assert_eq!(answer(&mut talk, &get("/closed")).await.0, "200");
        mesh.demand("web", AppProtocol::Http1, table.clone(), deny("/closed"));
        assert_eq!(answer(&mut talk, &get("/api/closed")).await.0, "200");
        assert_eq!(answer(&mut talk, &get("/closed")).await.0, "403");
        let mut allow = deny("/api/open");
        let policy = Arc::make_mut(&mut allow.authorization[0]);
        policy.action = HttpPolicyAction::Allow;
        mesh.demand("web", AppProtocol::Http1, table, allow);
        assert_eq!(answer(&mut talk, &get("/api/open")).await.0, "200");
        assert_eq!(answer(&mut talk, &get("/open")).await.0, "403");
        let heard = app.heard();
        let last = heard.last().unwrap();
        assert!(last.starts_with("GET /open HTTP/1.1"), "{last}");
        assert!(!heard.concat().contains("x-culvert"), "{heard:?}");
    });
}

#[test]
fn what_is_more_than_who_judges_can_be_told_is_refused() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let app = Application::named(mesh.server("one"), "one");
        let web = mesh.service("web", &["one"]);
        let mut removing = forward(&[("web", 1)]);
        removing.request_headers.remove = vec![HeaderName::from_static("x-told")];
        let table = routes(vec![(HttpMatch::default(), removing)]);
        mesh.bind("web", AppProtocol::Http1, table);
        let mut talk = mesh.dial(web).await;
        for (name, length, expected) in [
            ("x-told", 1000, "200"),
            ("x-told", 13 * 1024, "431"),
            // Only what a filter may change is told.
            ("x-other", 13 * 1024, "200"),
            ("x-told", 1000, "200"),
        ] {
            let value = "a".repeat(length);
            let request = format!("GET / HTTP/1.1\r\nhost: web\r\n{name}: {value}\r\n\r\n");
            let (status, _body) = answer(&mut talk, &request).await;
            assert_eq!(status, expected, "{name}: {length} bytes");
        }
        assert_eq!(app.heard().len(), 3, "what is refused reaches nobody");
    });
}
