//! What connections to applications begin with: DestinationRule's `tls` and `proxyProtocol`, BackendTLSPolicy.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use rcgen::{CertificateParams, KeyPair};
use userspace_l7::model::{
    Authorities, Encryption, NamespacedHostname, Opening, ProxyProtocol, ServiceTraffic, Snapshot,
    UpstreamTls,
};

use super::{compile, compiler, upserts};
use crate::mesh::compile::Compiler;
use crate::mesh::{Interner, Object, decode};
use crate::sources::for_test::documents;

const MESH: &str = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: a}\nspec: {gatewayClassName: istio-waypoint}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: w}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.9.0.1, selector: {app: x}, ports: [{name: http, port: 80}, {name: other, port: 90}]}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: a}\nspec: {hosts: [e.example, '*.w.example'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, location: MESH_EXTERNAL, addresses: [10.9.0.2], endpoints: [{address: 10.8.0.1}], subjectAltNames: [san.example]}\n";

/// A certificate and its key, PEM.
fn pair() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["c.example".to_owned()]);
    let certificate = certificate.unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// An object that holds texts under keys.
fn map(kind: &str, name: &str, entries: &[(&str, &str)]) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    let data = if kind == "Secret" {
        "stringData"
    } else {
        "data"
    };
    let mut text = format!(
        "---\napiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{data}:\n"
    );
    for (key, value) in entries {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {key}: |");
        for line in value.lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

fn rule(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn policy(name: &str, target: &str, validation: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: {name}, namespace: a}}\nspec: {{targetRefs: [{target}], validation: {{{validation}}}}}\n"
    )
}

fn traffic(snapshot: &Snapshot, host: &str) -> ServiceTraffic {
    let key = NamespacedHostname {
        namespace: "a".into(),
        hostname: host.into(),
    };
    let found = snapshot.traffic.get(&key);
    found
        .map(|found| ServiceTraffic::clone(found))
        .unwrap_or_default()
}

const HOST: &str = "s.a.svc.cluster.local";

/// What connections to a port of `s` begin with.
fn opening(yaml: &str, port: u16, subset: Option<&str>) -> Opening {
    let found = traffic(&compile(&format!("{MESH}{yaml}")), HOST);
    found.policy_for(port, subset).opening.clone()
}

/// In one word: `-`, `mesh`, the server's name, or `!` and why not.
fn said(encryption: &Encryption) -> String {
    match encryption {
        Encryption::None => "-".to_owned(),
        Encryption::Mesh => "mesh".to_owned(),
        Encryption::Tls(tls) => tls.server_name.to_string(),
        Encryption::Unusable(why) => format!("!{why}"),
    }
}

#[track_caller]
fn tls(yaml: &str) -> UpstreamTls {
    match opening(yaml, 80, None).encryption {
        Encryption::Tls(tls) => UpstreamTls::clone(&tls),
        other => panic!("{} for {yaml}", said(&other)),
    }
}

#[test]
fn the_narrower_rule_says_how_connections_begin() {
    let simple = |sni: &str| format!("tls: {{mode: SIMPLE, insecureSkipVerify: true, sni: {sni}}}");
    let whole = |more: &str| {
        format!(
            "host: s, trafficPolicy: {{{}, portLevelSettings: [{{port: {{number: 90}}, {}}}]}}{more}",
            simple("whole"),
            simple("port")
        )
    };
    let own = format!("trafficPolicy: {{{}}}", simple("subset"));
    let both = format!(
        "trafficPolicy: {{{}, portLevelSettings: [{{port: {{number: 90}}, {}}}]}}",
        simple("subset"),
        simple("subset-port")
    );
    let plain = "trafficPolicy: {loadBalancer: {simple: RANDOM}}";
    let subset = |policy: &str| {
        whole(&format!(
            ", subsets: [{{name: v1, labels: {{a: b}}, {policy}}}]"
        ))
    };
    for (spec, port, in_subset, expected) in [
        (whole(""), 80, None, "whole"),
        (whole(""), 90, None, "port"),
        (subset(&own), 80, Some("v1"), "subset"),
        (subset(&own), 90, Some("v1"), "subset"),
        (subset(&both), 90, Some("v1"), "subset-port"),
        (subset(&both), 90, Some("v2"), "port"),
        // A subset without a word about TLS has the rule's.
        (subset(plain), 80, Some("v1"), "whole"),
        (subset(plain), 90, Some("v1"), "port"),
        // Ports inherit nothing.
        (
            "host: s, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}, portLevelSettings: [{port: {number: 90}}]}".to_owned(),
            90,
            None,
            "-",
        ),
        ("host: s, trafficPolicy: {tls: {mode: DISABLE}}".to_owned(), 80, None, "-"),
        ("host: s, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}".to_owned(), 80, None, "mesh"),
    ] {
        let found = opening(&rule("a/r", &spec), port, in_subset);
        assert_eq!(said(&found.encryption), expected, "{spec} {port} {in_subset:?}");
    }
}

#[test]
fn a_proxy_header_holds_for_all_ports() {
    let with = |policy: &str| rule("a/r", &format!("host: s, trafficPolicy: {{{policy}}}"));
    for (policy, port, expected) in [
        ("proxyProtocol: {version: V2}", 80, Some(ProxyProtocol::V2)),
        ("proxyProtocol: {}", 80, Some(ProxyProtocol::V1)),
        (
            "proxyProtocol: {version: V1}, portLevelSettings: [{port: {number: 90}}]",
            90,
            Some(ProxyProtocol::V1),
        ),
        ("tls: {mode: DISABLE}", 80, None),
    ] {
        assert_eq!(
            opening(&with(policy), port, None).proxy_protocol,
            expected,
            "{policy}"
        );
    }
}

#[test]
fn names_and_authorities_are_istios() {
    let with = |tls: &str| {
        rule(
            "a/r",
            &format!("host: s, trafficPolicy: {{tls: {{mode: SIMPLE{tls}}}}}"),
        )
    };
    let own = tls(&with(""));
    assert_eq!((&*own.server_name, own.names.len()), (HOST, 0));
    assert_eq!(own.authorities, Authorities::System);
    assert_eq!(
        tls(&with(", caCertificates: system")).authorities,
        Authorities::System
    );
    let named = tls(&with(
        ", sni: n.example, subjectAltNames: [a.example, spiffe://td/ns/a/sa/b]",
    ));
    assert_eq!((&*named.server_name, named.names.len()), ("n.example", 2));
    let anyone = tls(&with(", insecureSkipVerify: true"));
    assert_eq!(anyone.authorities, Authorities::Unverified);
    // A ServiceEntry's own names count where the rule has none; a wildcard names no server.
    let entry = format!(
        "{MESH}{}{}",
        rule(
            "a/e",
            "host: e.example, trafficPolicy: {tls: {mode: SIMPLE}}"
        ),
        rule(
            "a/w",
            "host: '*.w.example', trafficPolicy: {tls: {mode: SIMPLE}}"
        )
    );
    let snapshot = compile(&entry);
    let Encryption::Tls(found) = &traffic(&snapshot, "e.example").policy.opening.encryption else {
        panic!("no TLS");
    };
    assert_eq!(
        (&*found.server_name, &*found.names[0]),
        ("e.example", "san.example")
    );
    let wildcard = traffic(&snapshot, "*.w.example");
    let wildcard = said(&wildcard.policy.opening.encryption);
    assert!(
        wildcard.starts_with('!') && wildcard.contains("name it in sni"),
        "{wildcard}"
    );
    // Where clients say which host they mean, that is the name.
    let looked_up = entry
        .replace("'*.w.example']", "'*.w.example'], exportTo: ['*']")
        .replace("hosts: [e.example, ", "hosts: [")
        .replace("resolution: STATIC", "resolution: DYNAMIC_DNS")
        .replace(", endpoints: [{address: 10.8.0.1}]", "");
    let wildcard = traffic(&compile(&looked_up), "*.w.example");
    let Encryption::Tls(found) = &wildcard.policy.opening.encryption else {
        panic!("{}", said(&wildcard.policy.opening.encryption));
    };
    assert_eq!(&*found.server_name, "");
    let opening = wildcard.policy.opening.in_name_of("b.w.example").unwrap();
    assert_eq!(said(&opening.encryption), "b.w.example");
    assert_eq!(opening.in_name_of("c.w.example"), None, "it is named");
}

/// A rule that takes its certificates from Secret `a/c`, with these Secrets.
fn with_credential(mode: &str, secrets: &str) -> String {
    let spec = format!("host: s, trafficPolicy: {{tls: {{mode: {mode}, credentialName: c}}}}");
    format!("{}{secrets}", rule("a/r", &spec))
}

#[test]
fn credentials_are_read_under_the_keys_of_kubernetes_and_of_istio() {
    let (certificate, key) = pair();
    let (other, _) = pair();
    let with = with_credential;
    let whole = [
        ("tls.crt", &*certificate),
        ("tls.key", &*key),
        ("ca.crt", &*other),
    ];
    let istios = [("cert", &*certificate), ("key", &*key), ("cacert", &*other)];
    for entries in [whole, istios] {
        let found = tls(&with("MUTUAL", &map("Secret", "a/c", &entries)));
        let Authorities::Certificates(authorities) = &found.authorities else {
            panic!("{:?}", found.authorities);
        };
        let credential = found.credential.unwrap();
        assert_eq!((authorities.len(), credential.chain.len()), (1, 1));
        assert_ne!(authorities[0], credential.chain[0]);
        // SIMPLE shows nothing.
        let simple = tls(&with("SIMPLE", &map("Secret", "a/c", &entries)));
        assert_eq!(
            (simple.credential, simple.authorities),
            (None, found.authorities)
        );
    }
    // The authorities may be in a Secret of their own.
    let apart = format!(
        "{}{}",
        map("Secret", "a/c", &whole[..2]),
        map("Secret", "a/c-cacert", &[("cacert", &*other)])
    );
    assert!(tls(&with("MUTUAL", &apart)).credential.is_some());
}

#[test]
fn a_credential_that_cannot_be_used_is_told_with_what_is_missing() {
    let (certificate, key) = pair();
    let (other, other_key) = pair();
    let with = with_credential;
    let whole = [
        ("tls.crt", &*certificate),
        ("tls.key", &*key),
        ("ca.crt", &*other),
    ];
    for (mode, secrets, why) in [
        (
            "SIMPLE",
            String::new(),
            "names Secret a/c, which is not there",
        ),
        // Secrets of other namespaces are nobody's business.
        (
            "SIMPLE",
            map("Secret", "b/c", &whole),
            "names Secret a/c, which is not there",
        ),
        (
            "SIMPLE",
            map("Secret", "a/c", &whole[..2]),
            "which has no ca.crt",
        ),
        (
            "SIMPLE",
            map("Secret", "a/c", &[("ca.crt", "no certificate")]),
            "holds no certificates",
        ),
        (
            "MUTUAL",
            map("Secret", "a/c", &whole[1..]),
            "which has no tls.crt",
        ),
        (
            "MUTUAL",
            map("Secret", "a/c", &[whole[0], whole[2]]),
            "which has no tls.key",
        ),
        (
            "MUTUAL",
            map(
                "Secret",
                "a/c",
                &[whole[0], ("tls.key", "no key"), whole[2]],
            ),
            "whose tls.key is not in PEM",
        ),
        (
            "MUTUAL",
            map(
                "Secret",
                "a/c",
                &[whole[0], ("tls.key", &*other_key), whole[2]],
            ),
            "certificate and key cannot be used",
        ),
    ] {
        let yaml = with(mode, &secrets);
        let found = said(&opening(&yaml, 80, None).encryption);
        assert!(
            found.starts_with("!DestinationRule a/r") && found.contains(why),
            "{found}"
        );
        let compiler = compiler(&format!("{MESH}{yaml}"));
        let mut notices = compiler.notices();
        assert!(notices.any(|one| one.message.contains(why)), "{why}");
    }
}

#[test]
fn files_of_a_waypoints_pod_are_refused_not_overlooked() {
    for tls in [
        "mode: SIMPLE, caCertificates: /etc/certs/root.pem",
        "mode: SIMPLE, caCrl: /etc/certs/crl.pem",
        "mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem",
    ] {
        let spec = format!("host: s, trafficPolicy: {{tls: {{{tls}}}}}");
        let found = said(&opening(&rule("a/r", &spec), 80, None).encryption);
        assert!(found.contains("credentialName"), "{found}");
    }
}

#[test]
fn rules_and_policies_that_cannot_be_meant_are_refused() {
    for (yaml, path) in [
        (
            rule("a/r", "host: s, trafficPolicy: {tls: {mode: MUTUAL}}"),
            "spec.trafficPolicy.tls.credentialName",
        ),
        (
            rule(
                "a/r",
                "host: s, trafficPolicy: {tls: {mode: SIMPLE, credentialName: c, privateKey: /k}}",
            ),
            "spec.trafficPolicy.tls.privateKey",
        ),
        (
            policy(
                "p",
                "{kind: Service, name: s}",
                "wellKnownCACertificates: System",
            ),
            "spec.validation.hostname",
        ),
        (
            policy("p", "{kind: Service, name: s}", "hostname: h"),
            "spec.validation",
        ),
        (
            policy(
                "p",
                "{kind: Pod, name: s}",
                "hostname: h, wellKnownCACertificates: System",
            ),
            "spec.targetRefs[0].kind",
        ),
    ] {
        let value = documents(&yaml).remove(0);
        let errors = decode(value, &mut Interner::default()).unwrap_err();
        let paths: Vec<_> = errors.iter().map(|error| error.path.to_string()).collect();
        assert!(paths.iter().any(|found| found == path), "{paths:?}");
    }
}

#[test]
fn a_backend_tls_policy_is_about_ports_and_gives_way_to_rules() {
    let system = |host: &str| format!("wellKnownCACertificates: System, hostname: {host}");
    let service = "{group: '', kind: Service, name: s}";
    let port = "{group: '', kind: Service, name: s, sectionName: other}";
    let all = policy("all", service, &system("all"));
    let one = policy("one", port, &system("one"));
    let younger = policy("zz", service, &system("zz"));
    let with_tls = rule(
        "a/r",
        "host: s, trafficPolicy: {tls: {mode: SIMPLE, sni: rule}}",
    );
    let without = rule(
        "a/r",
        "host: s, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1, labels: {a: b}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}]",
    );
    for (yaml, number, subset, expected) in [
        (all.clone(), 80, None, "all"),
        (one.clone(), 80, None, "-"),
        (one.clone(), 90, None, "one"),
        (format!("{all}{one}{younger}"), 80, None, "all"),
        (format!("{all}{one}{younger}"), 90, None, "one"),
        (format!("{all}{with_tls}"), 80, None, "rule"),
        (format!("{all}{without}"), 80, None, "all"),
        (format!("{all}{without}"), 90, Some("v1"), "all"),
        (
            format!(
                "{all}{}",
                rule("a/r", "host: s, trafficPolicy: {tls: {mode: DISABLE}}")
            ),
            80,
            None,
            "-",
        ),
    ] {
        let found = opening(&yaml, number, subset);
        assert_eq!(said(&found.encryption), expected, "{yaml} {number}");
    }
    // What else a rule says stays.
    let both = traffic(&compile(&format!("{MESH}{all}{without}")), HOST);
    let balance = |subset| both.policy_for(80, subset).balance.clone();
    assert_ne!(balance(None), balance(Some("v1")));
    let alternatives = "subjectAltNames: [{type: Hostname, hostname: n.example}, {type: URI, uri: 'spiffe://td/x'}]";
    let named = tls(&policy(
        "p",
        service,
        &format!("{}, {alternatives}", system("h")),
    ));
    assert_eq!((&*named.server_name, named.names.len()), ("h", 2));
    let entry = policy(
        "p",
        "{group: networking.istio.io, kind: ServiceEntry, name: e}",
        &system("h"),
    );
    let snapshot = compile(&format!("{MESH}{entry}"));
    let found = traffic(&snapshot, "e.example");
    assert_eq!(said(&found.policy_for(80, None).opening.encryption), "h");
}

#[test]
fn a_backend_tls_policy_without_its_certificates_connects_nobody() {
    let (certificate, _) = pair();
    let service = "{group: '', kind: Service, name: s}";
    let with = |refs: &str| {
        policy(
            "p",
            service,
            &format!("hostname: h, caCertificateRefs: [{refs}]"),
        )
    };
    let map_ref = "{group: '', kind: ConfigMap, name: m}";
    let good = map("ConfigMap", "a/m", &[("ca.crt", &*certificate)]);
    let later = "{group: '', kind: ConfigMap, name: later}";
    for (yaml, expected, accepted, resolved) in [
        (
            format!("{}{good}", with(map_ref)),
            "h",
            "True Accepted",
            "True ResolvedRefs",
        ),
        (
            with(map_ref),
            "!BackendTLSPolicy a/p names ConfigMap a/m, which is not there or has no ca.crt",
            "False NoValidCACertificate",
            "False InvalidCACertificateRef",
        ),
        (
            with("{group: x, kind: Y, name: m}"),
            "!BackendTLSPolicy a/p names certificates in Y (group \"x\"): use ConfigMap or Secret",
            "False NoValidCACertificate",
            "False InvalidKind",
        ),
        // One good reference is enough.
        (
            format!("{}{good}", with(&format!("{map_ref}, {later}"))),
            "h",
            "True Accepted",
            "False InvalidCACertificateRef",
        ),
    ] {
        assert_eq!(said(&opening(&yaml, 80, None).encryption), expected);
        let statuses = compiler(&format!("{MESH}{yaml}")).object_statuses();
        let own = statuses
            .iter()
            .find(|one| one.kind == "BackendTLSPolicy")
            .unwrap();
        let said: Vec<_> = own
            .conditions()
            .map(|(_, one)| format!("{} {:?} {}", one.kind, one.status, one.reason))
            .collect();
        assert_eq!(
            said,
            [
                format!("Accepted {accepted}"),
                format!("ResolvedRefs {resolved}")
            ]
        );
    }
}

#[test]
fn a_backend_tls_policy_is_told_why_it_does_not_count() {
    let service = |section: &str| format!("{{group: '', kind: Service, name: s{section}}}");
    let system = "wellKnownCACertificates: System, hostname: h";
    let accepted = |yaml: &str, name: &str| {
        let statuses = compiler(yaml).object_statuses();
        let mut own = statuses.iter().filter(|one| one.kind == "BackendTLSPolicy");
        let own = own.find(|one| one.metadata.name == name).unwrap();
        let (_, condition) = own.conditions().next().unwrap();
        condition.reason.clone()
    };
    let two = format!(
        "{MESH}{}{}",
        policy("first", &service(""), system),
        policy("second", &service(""), system)
    );
    assert_eq!(accepted(&two, "first"), "Accepted");
    assert_eq!(accepted(&two, "second"), "Conflicted");
    let other = policy("p", &service(", sectionName: none"), system);
    assert_eq!(accepted(&format!("{MESH}{other}"), "p"), "TargetNotFound");
    let gone = policy("p", "{group: '', kind: Service, name: gone}", system);
    assert_eq!(accepted(&format!("{MESH}{gone}"), "p"), "TargetNotFound");
    let unbound = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.9.0.1, ports: [{name: http, port: 80}]}\n";
    let alone = policy("p", &service(""), system);
    assert_eq!(
        accepted(&format!("{unbound}{alone}"), "p"),
        "AncestorNotBound"
    );
}

#[test]
fn what_changes_is_noticed_and_what_is_named_is_asked_for() {
    let (certificate, _) = pair();
    let spec = "host: s, trafficPolicy: {tls: {mode: SIMPLE, credentialName: c}}";
    let yaml = format!("{MESH}{}", rule("a/r", spec));
    let mut compiler = compiler(&yaml);
    let now = |compiler: &Compiler| {
        said(
            &traffic(&compiler.snapshot(), HOST)
                .policy
                .opening
                .encryption,
        )
    };
    assert!(now(&compiler).starts_with('!'));
    for name in ["a/c", "a/c-cacert"] {
        let secret = upserts(&map("Secret", name, &[("ca.crt", &*certificate)]));
        compiler.apply(secret);
        assert_eq!(now(&compiler), HOST, "{name}");
    }
    assert_eq!(compiler.notices().count(), 0);
    let objects = super::objects(&format!(
        "{yaml}{}",
        policy(
            "p",
            "{group: '', kind: Service, name: s}",
            "hostname: h, caCertificateRefs: [{group: '', kind: ConfigMap, name: m}, {group: '', kind: Secret, name: t}]"
        )
    ));
    let names: BTreeSet<String> = objects
        .iter()
        .flat_map(Object::names)
        .map(|key| key.to_string())
        .collect();
    let expected = [
        "ConfigMap a/m",
        "Secret a/c",
        "Secret a/c-cacert",
        "Secret a/t",
    ];
    assert!(names.iter().eq(expected.iter()), "{names:?}");
}
