//! Who meets whose demands: whichever way a request takes, nothing that is demanded of it is gone around.

use std::sync::Arc;

use super::application::Application;
use super::mesh::{Mesh, forward, key, policy, routes};
use super::on_both_backends;
use crate::model::{
    AppProtocol, Demands, HttpMatch, HttpPolicyAction, HttpPolicyRule, OperationMatch, PortRoutes,
    StringMatch,
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
    let path = crate::model::PathPattern::Text(StringMatch::Exact(path.into()));
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
