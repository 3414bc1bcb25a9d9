//! A service and a pod as people read them.

use std::collections::BTreeMap;

use super::{DescribedService, described_pod, pod_text, service_text};
use crate::admin::{ConfigDump, EndpointDump, PolicyDump, ServiceDump, WorkloadDump};
use crate::cli::get::layer7;

/// One service, which a pod of another node serves, and one that is gone.
fn dump() -> ConfigDump {
    let endpoint = |uid: &str, status: &str| {
        let endpoint = EndpointDump {
            workload_uid: uid.to_owned(),
            port: BTreeMap::from([(80, 9080)]),
            status: status.to_owned(),
        };
        (uid.to_owned(), endpoint)
    };
    let policy = |namespace: &str, name: &str, scope: &str, action: &str| PolicyDump {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: scope.to_owned(),
        action: action.to_owned(),
        ..PolicyDump::default()
    };
    ConfigDump {
        workloads: vec![WorkloadDump {
            uid: "Kubernetes//Pod/bookinfo/reviews-v1".to_owned(),
            workload_ips: vec!["10.0.0.1".to_owned()],
            protocol: "HBONE".to_owned(),
            name: "reviews-v1".to_owned(),
            namespace: "bookinfo".to_owned(),
            service_account: "reviews".to_owned(),
            node: "node-b".to_owned(),
            authorization_policies: vec!["bookinfo/readers".to_owned()],
            status: "Healthy".to_owned(),
            ..WorkloadDump::default()
        }],
        services: vec![ServiceDump {
            name: "reviews".to_owned(),
            namespace: "bookinfo".to_owned(),
            hostname: "reviews.bookinfo.svc".to_owned(),
            vips: vec!["/10.96.0.9".to_owned()],
            ports: BTreeMap::from([(80, 9080)]),
            endpoints: BTreeMap::from([
                endpoint("Kubernetes//Pod/bookinfo/gone", "Unhealthy"),
                endpoint("Kubernetes//Pod/bookinfo/reviews-v1", "Healthy"),
            ]),
            ..ServiceDump::default()
        }],
        policies: vec![
            policy("bookinfo", "readers", "WorkloadSelector", "Allow"),
            policy("bookinfo", "others", "WorkloadSelector", "Allow"),
            policy("default", "elsewhere", "Namespace", "Deny"),
            policy("istio-system", "strict", "Global", "Deny"),
        ],
        ..ConfigDump::default()
    }
}

#[test]
fn a_service_is_shown_with_its_layer_7() {
    let dump = dump();
    let described = DescribedService {
        service: dump.services[0].clone(),
        layer7: layer7::tests::sample(),
    };
    assert_eq!(
        service_text(&dump, &described),
        "Name       reviews\n\
         Namespace  bookinfo\n\
         Hostname   reviews.bookinfo.svc\n\
         Addresses  /10.96.0.9\n\
         Ports      80:9080\n\
         Waypoint   bookinfo/waypoint\n\
         \n\
         ENDPOINT                      ADDRESS  NODE   STATUS\n\
         Kubernetes//Pod/bookinfo/gone -        -      Unhealthy\n\
         reviews-v1                    10.0.0.1 node-b Healthy\n\
         \n\
         NAMESPACE SERVICE              PORT PROTOCOL WAYPOINT          ROUTES POLICIES JWT RULES RATE LIMITS\n\
         bookinfo  reviews.bookinfo.svc 80   http     bookinfo/waypoint 2      1        0         3\n\
         \n\
         NAMESPACE SERVICE              PORT CLIENTS ROUTE                      RULE           MATCH                  ACTION\n\
         bookinfo  reviews.bookinfo.svc 80   all     HTTPRoute bookinfo/reviews split          path begins with /shop forward\n\
         bookinfo  reviews.bookinfo.svc 80   curl    HTTPRoute curl/reviews     curl.reviews.0 everything             redirect\n\
         \n\
         NAMESPACE SERVICE              PORT RULE  BACKEND              BACKEND PORT WEIGHT ENDPOINTS\n\
         bookinfo  reviews.bookinfo.svc 80   split bookinfo/reviews-v1  9080         90     1/2\n\
         bookinfo  reviews.bookinfo.svc 80   -     backend(x) not found 0            10     0/0\n"
    );
}

#[test]
fn a_service_without_layer_7_has_no_tables_of_it() {
    let dump = dump();
    let described = DescribedService {
        service: ServiceDump {
            endpoints: BTreeMap::new(),
            ..dump.services[0].clone()
        },
        layer7: crate::admin::Layer7Dump::default(),
    };
    let text = service_text(&dump, &described);
    assert!(text.ends_with("\nWaypoint   None\n"), "{text}");
}

#[test]
fn a_pod_is_shown_with_what_speaks_about_it() {
    let dump = dump();
    let none = crate::admin::Layer7Dump::default();
    let described = described_pod(&dump, &none, &dump.workloads[0]);
    let strict = crate::admin::Layer7Dump {
        strict_namespaces: vec!["bookinfo".to_owned()],
        ..none
    };
    let guarded = pod_text(&described_pod(&dump, &strict, &dump.workloads[0]));
    let says =
        "Strict     ports of services behind a waypoint are reached through the service only\n";
    assert_eq!(guarded.replace(says, ""), pod_text(&described));
    assert!(guarded.contains(says), "{guarded}");
    assert_eq!(
        pod_text(&described),
        "Name       reviews-v1\n\
         Namespace  bookinfo\n\
         Node       node-b\n\
         Addresses  10.0.0.1\n\
         Account    reviews\n\
         Protocol   HBONE\n\
         Status     Healthy\n\
         Capture    on another node\n\
         Waypoint   None\n\
         Services   bookinfo/reviews.bookinfo.svc\n\
         \n\
         NAMESPACE    POLICY NAME ACTION SCOPE\n\
         bookinfo     readers     Allow  WorkloadSelector\n\
         istio-system strict      Deny   Global\n"
    );
}
