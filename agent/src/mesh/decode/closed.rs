//! What holds in place of a policy that cannot be read, so that a mistake in it opens nothing.

use serde_json::{Value, json};

use super::decode;
use crate::mesh::meta::Interner;
use crate::mesh::object::{Kind, Object};

/// The strictest policy of this kind for the same workloads: an AuthorizationPolicy that allows nobody, a
/// PeerAuthentication that demands mTLS. For the whole namespace, if whom the policy selects cannot be read either.
/// `None` for kinds that grant nothing by their absence.
pub fn closed(kind: &Kind, value: &Value, texts: &mut Interner) -> Option<Object> {
    let strict = match kind {
        Kind::AuthorizationPolicy => json!({ "action": "ALLOW" }),
        Kind::PeerAuthentication => json!({ "mtls": { "mode": "STRICT" } }),
        _ => return None,
    };
    let mut selecting = strict.clone();
    for key in ["selector", "targetRef", "targetRefs"] {
        if let Some(selection) = value.get("spec").and_then(|spec| spec.get(key)) {
            selecting[key] = selection.clone();
        }
    }
    [selecting, strict].into_iter().find_map(|spec| {
        let substitute = json!({
            "apiVersion": value.get("apiVersion")?,
            "kind": value.get("kind")?,
            "metadata": {
                "name": value.get("metadata")?.get("name")?,
                "namespace": value.get("metadata")?.get("namespace")?,
            },
            "spec": spec,
        });
        Some(decode(substitute, texts).ok()?.object)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::closed;
    use crate::mesh::{Interner, Kind, MtlsMode, Object};

    #[test]
    fn a_policy_that_cannot_be_read_lets_nobody_in() {
        let policy = |spec| {
            json!({
                "apiVersion": "security.istio.io/v1",
                "kind": "AuthorizationPolicy",
                "metadata": { "name": "p", "namespace": "app" },
                "spec": spec,
            })
        };
        let read = |spec| {
            let object = closed(
                &Kind::AuthorizationPolicy,
                &policy(spec),
                &mut Interner::default(),
            );
            match object {
                Some(Object::AuthorizationPolicy(policy)) => policy,
                other => panic!("{other:?}"),
            }
        };
        let selector = json!({ "matchLabels": { "app": "x" } });
        let kept = read(json!({ "action": "DENY", "rules": [{ "new": 1 }], "selector": selector }));
        assert!(
            kept.spec.rules.is_empty() && kept.spec.selector.is_some(),
            "{kept:?}"
        );
        let whole = read(json!({ "selector": 7 }));
        assert!(
            whole.spec.rules.is_empty() && whole.spec.selector.is_none(),
            "{whole:?}"
        );
    }

    #[test]
    fn a_peer_authentication_that_cannot_be_read_demands_mtls() {
        let value = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": { "name": "p", "namespace": "app" },
            "spec": { "mtls": { "mode": "WHATEVER" } },
        });
        let object = closed(&Kind::PeerAuthentication, &value, &mut Interner::default());
        let Some(Object::PeerAuthentication(policy)) = object else {
            panic!("{object:?}");
        };
        let mode = policy.spec.mtls.as_ref().map(|mtls| mtls.mode);
        assert_eq!(mode, Some(MtlsMode::Strict));
        let route = closed(&Kind::HttpRoute, &value, &mut Interner::default());
        assert_eq!(route, None);
    }
}
