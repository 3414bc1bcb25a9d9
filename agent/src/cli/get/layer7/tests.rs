//! Listeners, routes and backends as people read them.

use super::{backends, listeners, routes};
use crate::admin::{BackendDump, Layer7Dump, ListenerDump, RouteDump};

/// Layer 7 of one service.
pub(in crate::cli) fn sample() -> Layer7Dump {
    let (namespace, hostname) = ("bookinfo".to_owned(), "reviews.bookinfo.svc".to_owned());
    let route =
        |consumer: Option<&str>, origin: &str, rule: &str, matched: &str, action: &str| RouteDump {
            namespace: namespace.clone(),
            hostname: hostname.clone(),
            port: 80,
            consumer: consumer.map(str::to_owned),
            origin: origin.to_owned(),
            rule: rule.to_owned(),
            matched: matched.to_owned(),
            action: action.to_owned(),
        };
    let backend = |rule: &str, backend: &str, port, weight, (healthy, endpoints)| BackendDump {
        namespace: namespace.clone(),
        hostname: hostname.clone(),
        port: 80,
        rule: rule.to_owned(),
        backend: backend.to_owned(),
        backend_port: port,
        weight,
        healthy,
        endpoints,
    };
    Layer7Dump {
        listeners: vec![ListenerDump {
            namespace: namespace.clone(),
            hostname: hostname.clone(),
            port: 80,
            protocol: "http".to_owned(),
            waypoint: "bookinfo/waypoint".to_owned(),
            routes: 2,
            policies: 1,
            jwt_rules: 0,
            rate_limits: 3,
        }],
        routes: vec![
            route(
                None,
                "HTTPRoute bookinfo/reviews",
                "split",
                "path begins with /shop",
                "forward",
            ),
            route(
                Some("curl"),
                "HTTPRoute curl/reviews",
                "curl.reviews.0",
                "everything",
                "redirect",
            ),
        ],
        backends: vec![
            backend("split", "bookinfo/reviews-v1", 9080, 90, (1, 2)),
            backend("", "backend(x) not found", 0, 10, (0, 0)),
        ],
        strict_namespaces: Vec::new(),
    }
}

#[test]
fn each_list_has_its_columns() {
    let layer7 = sample();
    assert_eq!(
        listeners(&layer7.listeners).text(),
        "NAMESPACE SERVICE              PORT PROTOCOL WAYPOINT          ROUTES POLICIES JWT RULES RATE LIMITS\n\
         bookinfo  reviews.bookinfo.svc 80   http     bookinfo/waypoint 2      1        0         3\n"
    );
    assert_eq!(
        routes(&layer7.routes).text(),
        "NAMESPACE SERVICE              PORT CLIENTS ROUTE                      RULE           MATCH                  ACTION\n\
         bookinfo  reviews.bookinfo.svc 80   all     HTTPRoute bookinfo/reviews split          path begins with /shop forward\n\
         bookinfo  reviews.bookinfo.svc 80   curl    HTTPRoute curl/reviews     curl.reviews.0 everything             redirect\n"
    );
    assert_eq!(
        backends(&layer7.backends).text(),
        "NAMESPACE SERVICE              PORT RULE  BACKEND              BACKEND PORT WEIGHT ENDPOINTS\n\
         bookinfo  reviews.bookinfo.svc 80   split bookinfo/reviews-v1  9080         90     1/2\n\
         bookinfo  reviews.bookinfo.svc 80   -     backend(x) not found 0            10     0/0\n"
    );
}
