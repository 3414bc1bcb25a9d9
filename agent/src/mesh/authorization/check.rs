//! What makes an AuthorizationPolicy invalid, as Istio's own validation has it.

use std::collections::BTreeMap;

use http::HeaderName;

use super::{AuthorizationPolicy, Condition, L4_KEYS, Operation, PolicyAction, PolicyRule, Source};
use crate::mesh::field::{Faults, FieldPath, at};
use crate::mesh::selector::check_targets;
use crate::mesh::syntax::{read_port_text, read_range};

impl AuthorizationPolicy {
    pub(crate) fn check(&self, faults: &mut Faults) {
        let spec = &self.spec;
        let namespace = &self.meta.name.namespace;
        let targets = (spec.target_ref.as_ref(), &spec.target_refs[..]);
        check_targets(namespace, spec.selector.as_ref(), targets, faults);
        self.check_provider(faults);
        for (index, rule) in spec.rules.iter().enumerate() {
            rule.check(&at!["spec", "rules", index], faults);
        }
    }

    fn check_provider(&self, faults: &mut Faults) {
        let named = self
            .spec
            .provider
            .as_ref()
            .is_some_and(|provider| !provider.name.is_empty());
        let custom = self.spec.action == PolicyAction::Custom;
        if custom && !named {
            faults.add(
                at!["spec", "provider"],
                "is missing: action CUSTOM needs provider.name",
            );
        } else if !custom && self.spec.provider.is_some() {
            faults.add(
                at!["spec", "provider"],
                "belongs to action CUSTOM only: remove it",
            );
        }
    }
}

impl PolicyRule {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        for (index, from) in self.from.iter().enumerate() {
            let place = place.join("from").join(index).join("source");
            match &from.source {
                Some(source) => source.check(&place, faults),
                None => faults.add(place, "is missing: an entry of `from` says which source"),
            }
        }
        for (index, to) in self.to.iter().enumerate() {
            let place = place.join("to").join(index).join("operation");
            match &to.operation {
                Some(operation) => operation.check(&place, faults),
                None => faults.add(place, "is missing: an entry of `to` says which operation"),
            }
        }
        for (index, condition) in self.when.iter().enumerate() {
            condition.check(&place.join("when").join(index), faults);
        }
    }
}

/// Refuses an entry without any value, and empty values: Istio's validation does.
fn check_lists(place: &FieldPath, lists: &BTreeMap<&str, &Vec<String>>, faults: &mut Faults) {
    if lists.values().all(|list| list.is_empty()) {
        let known: Vec<_> = lists.keys().copied().collect();
        faults.add(
            place.clone(),
            format!("says nothing: set at least one of {}", known.join(", ")),
        );
    }
    for (name, list) in lists {
        for (index, _) in list
            .iter()
            .enumerate()
            .filter(|(_, value)| value.is_empty())
        {
            faults.add(
                place.join(*name).join(index),
                "is empty: write a value or remove it",
            );
        }
    }
}

impl Source {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        let lists = BTreeMap::from([
            ("principals", &self.principals),
            ("notPrincipals", &self.not_principals),
            ("requestPrincipals", &self.request_principals),
            ("notRequestPrincipals", &self.not_request_principals),
            ("namespaces", &self.namespaces),
            ("notNamespaces", &self.not_namespaces),
            ("serviceAccounts", &self.service_accounts),
            ("notServiceAccounts", &self.not_service_accounts),
            ("trustDomains", &self.trust_domains),
            ("notTrustDomains", &self.not_trust_domains),
            ("ipBlocks", &self.ip_blocks),
            ("notIpBlocks", &self.not_ip_blocks),
            ("remoteIpBlocks", &self.remote_ip_blocks),
            ("notRemoteIpBlocks", &self.not_remote_ip_blocks),
        ]);
        check_lists(place, &lists, faults);
        for name in [
            "ipBlocks",
            "notIpBlocks",
            "remoteIpBlocks",
            "notRemoteIpBlocks",
        ] {
            for (index, text) in lists[name].iter().enumerate() {
                let _checked = read_range(text, place.join(name).join(index), faults);
            }
        }
        for name in ["trustDomains", "notTrustDomains"] {
            for (index, text) in lists[name].iter().enumerate() {
                check_trust_domain(text, place.join(name).join(index), faults);
            }
        }
        for name in ["principals", "notPrincipals"] {
            for (index, text) in lists[name].iter().enumerate() {
                check_principal(text, place.join(name).join(index), faults);
            }
        }
        self.check_accounts(place, faults);
    }

    fn check_accounts(&self, place: &FieldPath, faults: &mut Faults) {
        let identity = [
            &self.principals,
            &self.not_principals,
            &self.namespaces,
            &self.not_namespaces,
        ];
        let accounts = [
            ("serviceAccounts", &self.service_accounts),
            ("notServiceAccounts", &self.not_service_accounts),
        ];
        for (name, list) in accounts {
            if !list.is_empty() && identity.iter().any(|other| !other.is_empty()) {
                let rule =
                    "cannot stand beside principals or namespaces: use one way to name the caller";
                faults.add(place.join(name), rule);
            }
            for (index, text) in list.iter().enumerate() {
                check_account(text, place.join(name).join(index), faults);
            }
        }
    }
}

/// `account` or `namespace/account`, exact. At layer 4 a wildcard could not mean anything.
fn check_account(text: &str, place: FieldPath, faults: &mut Faults) {
    let parts: Vec<_> = text.split('/').collect();
    let wrong = text.contains('*') || parts.len() > 2 || parts.iter().any(|part| part.is_empty());
    if wrong {
        let rule = "write `account` or `namespace/account`, without wildcards";
        faults.add(place, format!("`{text}` is not a service account: {rule}"));
    }
}

/// A pattern in which everything but the wildcard could be part of a trust domain.
fn check_trust_domain(text: &str, place: FieldPath, faults: &mut Faults) {
    let inner = text.strip_prefix('*').unwrap_or(text);
    let inner = if text == "*" {
        ""
    } else {
        inner.strip_suffix('*').unwrap_or(inner)
    };
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    if !inner.chars().all(allowed) {
        let rule = "use lower-case letters, digits, `.`, `-` and `_`";
        faults.add(place, format!("`{text}` is not a trust domain: {rule}"));
    }
}

/// A principal is a SPIFFE ID without its scheme; with it, it would never match.
fn check_principal(text: &str, place: FieldPath, faults: &mut Faults) {
    if text.starts_with("spiffe://") {
        let rule = "leave the scheme out: <trust domain>/ns/<namespace>/sa/<service account>";
        faults.add(place, format!("`{text}` would never match: {rule}"));
        return;
    }
    if text.contains('*') {
        return;
    }
    if format!("spiffe://{text}")
        .parse::<userspace_l7::model::SpiffeId>()
        .is_err()
    {
        let rule = "write <trust domain>/ns/<namespace>/sa/<service account>";
        faults.add(place, format!("`{text}` is not a SPIFFE ID: {rule}"));
    }
}

impl Operation {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        let lists = BTreeMap::from([
            ("hosts", &self.hosts),
            ("notHosts", &self.not_hosts),
            ("ports", &self.ports),
            ("notPorts", &self.not_ports),
            ("methods", &self.methods),
            ("notMethods", &self.not_methods),
            ("paths", &self.paths),
            ("notPaths", &self.not_paths),
        ]);
        check_lists(place, &lists, faults);
        for name in ["ports", "notPorts"] {
            for (index, text) in lists[name].iter().enumerate() {
                let _checked = read_port_text(text, place.join(name).join(index), faults);
            }
        }
        for name in ["paths", "notPaths"] {
            for (index, text) in lists[name].iter().enumerate() {
                if let Err(rule) = check_path_template(text) {
                    let problem = format!("`{text}` is not a path pattern: {rule}");
                    faults.add(place.join(name).join(index), problem);
                }
            }
        }
    }
}

/// Istio's path templates: `{*}` is one segment, `{**}` the rest and last.
fn check_path_template(text: &str) -> Result<(), &'static str> {
    if !text.contains(['{', '}']) {
        return Ok(());
    }
    let mut rest_seen = false;
    for segment in text.split('/') {
        match segment {
            "{*}" | "{**}" if rest_seen => return Err("`{**}` must be the last operator"),
            "{**}" => rest_seen = true,
            "{*}" => {}
            other if other.contains(['{', '}']) => {
                return Err("braces stand only around a whole segment, as `{*}` or `{**}`");
            }
            other if other.contains('*') => {
                return Err("`*` and `{*}` cannot be mixed in one path");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Keys of `when` that only HTTP or TLS processing can answer.
const L7_KEYS: [&str; 5] = [
    "remote.ip",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "connection.sni",
];

/// Prefixes of keys that carry a name in brackets.
const NAMED_KEYS: [&str; 3] = [
    "request.headers[",
    "request.auth.claims[",
    "experimental.envoy.filters.",
];

/// What HTTP/2 says in fields of their own, and conditions may name as if they were headers in any version.
const PSEUDO_HEADERS: [&str; 3] = [":authority", ":method", ":path"];

impl Condition {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        let key = self.key.as_str();
        let bracketed =
            NAMED_KEYS.iter().any(|prefix| key.starts_with(prefix)) && key.ends_with(']');
        if !(bracketed || L4_KEYS.contains(&key) || L7_KEYS.contains(&key)) {
            let known =
                "see the condition keys of Istio's AuthorizationPolicy, such as source.namespace";
            faults.add(
                place.join("key"),
                format!("`{key}` is not a condition key: {known}"),
            );
        }
        let header = key.strip_prefix("request.headers[");
        if let Some(name) = header.and_then(|rest| rest.strip_suffix(']'))
            && !PSEUDO_HEADERS.contains(&name)
            && HeaderName::from_bytes(name.as_bytes()).is_err()
        {
            let known = "write a header's name, `:authority`, `:method` or `:path`";
            faults.add(
                place.join("key"),
                format!("`{key}` names no header: {known}"),
            );
        }
        if self.values.is_empty() && self.not_values.is_empty() {
            faults.add(place.clone(), "says nothing: set values or notValues");
        }
        for (name, list) in [("values", &self.values), ("notValues", &self.not_values)] {
            for (index, text) in list.iter().enumerate() {
                let place = place.join(name).join(index);
                match key {
                    _ if text.is_empty() => {
                        faults.add(place, "is empty: write a value or remove it");
                    }
                    "source.ip" | "destination.ip" | "remote.ip" => {
                        let _checked = read_range(text, place, faults);
                    }
                    "destination.port" => {
                        let _checked = read_port_text(text, place, faults);
                    }
                    "source.serviceAccount" => check_account(text, place, faults),
                    "source.principal" => check_principal(text, place, faults),
                    "source.trustDomain" => check_trust_domain(text, place, faults),
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check_path_template;

    #[test]
    fn path_templates_have_whole_segments_and_one_rest() {
        for (text, valid) in [
            ("/a/b", true),
            ("/a*", true),
            ("*", true),
            ("/a/{*}/b", true),
            ("/a/{*}/{**}", true),
            ("/a/{**}/b", true),
            ("/a/{**}/{*}", false),
            ("/a/{**}/{**}", false),
            ("/a/{x}", false),
            ("/a/b{*}", false),
            ("/a/{*}/b*", false),
            ("/a/}", false),
        ] {
            assert_eq!(check_path_template(text).is_ok(), valid, "{text}");
        }
    }
}
