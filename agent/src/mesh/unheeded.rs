//! Fields that are understood and not acted on. Pure. Whoever writes one is told so, and what happens instead: a
//! manifest that works with Istio and is silently something else here would be the worst of surprises.

mod table;

use serde_json::Value;

use self::table::ROWS;
use super::field::{FieldError, FieldPath, Segment};
use super::object::Kind;

/// One field of a kind.
pub(super) struct Row {
    kind: Kind,
    /// The way to it; `[]` after a name stands for each item of a list, `*` for each key of a map.
    path: &'static str,
    /// Which values of it are meant, if not all: asked with the whole object and the value.
    says: Option<fn(&Value, &Value) -> bool>,
    /// What happens instead, after the field's name.
    instead: &'static str,
}

/// What an object of a kind asks for in vain.
pub(super) fn remarks(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut found = Vec::new();
    for row in ROWS.iter().filter(|row| row.kind == *kind) {
        let mut places = Vec::new();
        follow(object, row.path, &FieldPath::default(), &mut places);
        let meant = places
            .into_iter()
            .filter(|(_, value)| row.says.is_none_or(|says| says(object, value)));
        found.extend(meant.map(|(path, _)| FieldError {
            path,
            problem: row.instead.to_owned(),
        }));
    }
    found
}

/// Everything that a way leads to. Empty lists, maps and texts ask for nothing.
fn follow<'v>(
    value: &'v Value,
    way: &str,
    path: &FieldPath,
    found: &mut Vec<(FieldPath, &'v Value)>,
) {
    if way.is_empty() {
        if !is_empty(value) {
            found.push((path.clone(), value));
        }
        return;
    }
    let (step, rest) = way.split_once('.').unwrap_or((way, ""));
    let (name, is_list) = match step.strip_suffix("[]") {
        Some(name) => (name, true),
        None => (step, false),
    };
    let Some(map) = value.as_object() else {
        return;
    };
    let named = map.iter().filter(|(key, _)| name == "*" || *key == name);
    for (key, value) in named {
        let path = path.join(key.as_str());
        if !is_list {
            follow(value, rest, &path, found);
            continue;
        }
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            follow(item, rest, &path.join(Segment::Index(index)), found);
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// Kinds that are known and do nothing here, with what that means; the rest of the unused kinds are no business of a
/// mesh's.
const KINDS: [(&str, &str); 7] = [
    (
        "EnvoyFilter",
        "has no effect: there is no Envoy to configure; DestinationRule, RateLimitPolicy and Telemetry cover its usual purposes",
    ),
    (
        "ProxyConfig",
        "has no effect: there is no Envoy to configure",
    ),
    ("Sidecar", "has no effect: there are no sidecars"),
    ("WasmPlugin", "has no effect: nothing here runs WebAssembly"),
    (
        "WorkloadGroup",
        "has no effect: no machine registers here; write a WorkloadEntry for each",
    ),
    ("UDPRoute", "has no effect: UDP is not captured"),
    (
        "ListenerSet",
        "has no effect: a waypoint has its own listener only",
    ),
];

/// What to say of an object of a known kind without effect; nothing if nobody would expect any.
pub(crate) fn of_kind(kind: &Kind) -> Option<&'static str> {
    let Kind::Other(group, name) = kind else {
        return None;
    };
    let is_meshs = group.ends_with(".istio.io") || &**group == "gateway.networking.k8s.io";
    let found = KINDS.iter().find(|(known, _)| **name == **known);
    found.filter(|_| is_meshs).map(|(_, message)| *message)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::remarks;
    use super::table::ROWS;
    use crate::mesh::{Interner, Kind, decode};
    use crate::sources::for_test::documents;

    #[track_caller]
    fn check(yaml: &str, expected: &[&str]) {
        let value = documents(yaml).remove(0);
        let decoded = decode(value, &mut Interner::default()).unwrap();
        let fields = decoded.remarks.iter().map(|one| one.path.to_string());
        assert_eq!(fields.collect::<Vec<_>>(), expected, "{yaml}");
    }

    fn istio(group: &str, kind: &str, spec: &str) -> String {
        format!(
            "apiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata: {{name: x}}\nspec: {spec}\n"
        )
    }

    #[test]
    fn fields_without_effect_are_named_where_they_stand() {
        let rule = |spec: &str| {
            istio(
                "networking",
                "DestinationRule",
                &format!("{{host: s, {spec}}}"),
            )
        };
        check(&rule("trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}"), &[]);
        check(&rule("trafficPolicy: {tls: {mode: SIMPLE}}"), &[]);
        check(
            &rule("trafficPolicy: {tunnel: {protocol: CONNECT}}"),
            &["spec.trafficPolicy.tunnel"],
        );
        check(&rule("exportTo: ['*']"), &[]);
        check(&rule("exportTo: ['.']"), &["spec.exportTo"]);
        let entry = |to: &str| {
            let spec = format!("{{hosts: [a.b], exportTo: {to}}}");
            istio("networking", "ServiceEntry", &spec)
        };
        // The namespace of an object that names none is `default`.
        for to in ["['*']", "['.']", "[default, '.']", "[shop, '*']", "[]"] {
            check(&entry(to), &[]);
        }
        for to in ["['~']", "[shop]", "['.', shop]"] {
            check(&entry(to), &["spec.exportTo"]);
        }
        let route = |spec: &str| {
            istio(
                "networking",
                "VirtualService",
                &format!("{{hosts: [s], {spec}}}"),
            )
        };
        check(
            &route(
                "http: [{match: [{sourceLabels: {app: a}, uri: {prefix: /}}], route: [{destination: {host: s}}]}]",
            ),
            &["spec.http[0].match[0].sourceLabels"],
        );
        check(
            &route("gateways: [ingress], http: [{route: [{destination: {host: s}}]}]"),
            &["spec.gateways"],
        );
        check(
            &route("gateways: [ingress, mesh], http: [{route: [{destination: {host: s}}]}]"),
            &[],
        );
        check(
            &istio(
                "security",
                "RequestAuthentication",
                "{jwtRules: [{issuer: a, jwks: '{\"keys\":[]}'}], selector: {matchLabels: {app: a}}}",
            ),
            &["spec.selector"],
        );
        check(
            &istio("security", "PeerAuthentication", "{mtls: {mode: DISABLE}}"),
            &["spec.mtls.mode"],
        );
        check(
            &istio("security", "PeerAuthentication", "{mtls: {mode: STRICT}}"),
            &[],
        );
    }

    #[test]
    fn labels_that_are_computed_are_told_of() {
        let telemetry = |value: &str| {
            format!(
                "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: t}}\nspec: {{metrics: [{{overrides: [{{tagOverrides: {{team: {{value: {value}}}}}}}]}}]}}\n"
            )
        };
        let place = "spec.metrics[0].overrides[0].tagOverrides.team.value";
        check(&telemetry("request.host"), &[place]);
        check(&telemetry("\"'shop'\""), &[]);
    }

    #[test]
    fn an_annotation_of_pods_is_told_of() {
        let pod = |annotations: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, annotations: {{{annotations}}}}}\nspec: {{serviceAccountName: s}}\n"
            )
        };
        check(
            &pod("istio.io/reroute-virtual-interfaces: tap0"),
            &["metadata.annotations"],
        );
        check(&pod("ambient.istio.io/dns-capture: 'false'"), &[]);
    }

    #[test]
    fn what_istios_configuration_says_in_vain_is_told_of() {
        let config = |mesh: &str| {
            format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio-canary}}\ndata: {{mesh: {{{mesh}}}}}\n"
            )
        };
        for (mesh, expected) in [
            (
                "outboundTrafficPolicy: {mode: REGISTRY_ONLY}",
                &["data.mesh.outboundTrafficPolicy.mode"][..],
            ),
            ("outboundTrafficPolicy: {mode: ALLOW_ANY}", &[]),
            (
                "discoverySelectors: [{matchLabels: {mesh: x}}]",
                &["data.mesh.discoverySelectors"],
            ),
            (
                "meshMTLS: {cipherSuites: [a], minProtocolVersion: TLSV1_2}",
                &["data.mesh.meshMTLS.cipherSuites"],
            ),
            (
                "serviceEntryVisibility: {default: NAMESPACE}",
                &["data.mesh.serviceEntryVisibility"],
            ),
            (
                "defaultServiceExportTo: ['.']",
                &["data.mesh.defaultServiceExportTo"],
            ),
            ("trustDomain: x", &[]),
        ] {
            check(&config(mesh), expected);
        }
    }

    #[test]
    fn only_waypoints_of_ours_are_told_what_a_waypoint_does_not_do() {
        let gateway = |class: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w}}\nspec: {{gatewayClassName: {class}, addresses: [{{value: 10.0.0.1}}], listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n"
            )
        };
        check(&gateway("istio-waypoint"), &["spec.addresses"]);
        check(&gateway("istio"), &[]);
    }

    /// An object that has exactly what a row's way leads to.
    fn sample(way: &str, leaf: Value) -> Value {
        let Some((step, rest)) = way
            .split_once('.')
            .or(Some((way, "")))
            .filter(|_| !way.is_empty())
        else {
            return leaf;
        };
        let inner = sample(rest, leaf);
        match step.strip_suffix("[]") {
            Some(name) => serde_json::json!({ name: [inner] }),
            None if step == "*" => serde_json::json!({ "any": inner }),
            None => serde_json::json!({ step: inner }),
        }
    }

    #[test]
    fn each_row_finds_its_field_and_says_what_happens_instead() {
        for row in ROWS {
            assert!(row.instead.starts_with("is not acted on: "), "{}", row.path);
            if row.says.is_none() {
                let object = sample(row.path, Value::String("x".to_owned()));
                assert_eq!(remarks(&row.kind, &object).len(), 1, "{}", row.path);
            }
        }
        assert!(remarks(&Kind::Pod, &Value::Null).is_empty());
    }
}
