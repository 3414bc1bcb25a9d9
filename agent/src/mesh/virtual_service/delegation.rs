//! A rule that delegates, and a rule of its delegate, made one: as Istio merges them before anybody routes by them.

use std::collections::BTreeMap;

use super::{TextPattern, VirtualHttpRoute, VirtualMatch};

impl VirtualHttpRoute {
    /// What a rule of the delegate comes to in this one's place: it holds where both match, and what it leaves open is as here.
    /// `None` if one of its matches lies within none of this rule's; Istio then leaves it out.
    pub(crate) fn delegated(&self, rule: &Self) -> Option<Self> {
        let matches = both_match(&self.matches, &rule.matches)?;
        let own = rule.clone();
        Some(Self {
            name: both_names(&self.name, &rule.name),
            matches,
            delegate: None,
            rewrite: own.rewrite.or_else(|| self.rewrite.clone()),
            timeout: own.timeout.or(self.timeout),
            retries: own.retries.or_else(|| self.retries.clone()),
            fault: own.fault.or_else(|| self.fault.clone()),
            mirror: own.mirror.or_else(|| self.mirror.clone()),
            mirrors: or(own.mirrors, &self.mirrors),
            mirror_percent: own.mirror_percent.or(self.mirror_percent),
            mirror_percentage: own.mirror_percentage.or(self.mirror_percentage),
            cors_policy: own.cors_policy.or_else(|| self.cors_policy.clone()),
            headers: or(own.headers, &self.headers),
            route: own.route,
            redirect: own.redirect,
            direct_response: own.direct_response,
        })
    }
}

/// The first, unless it says nothing.
fn or<T: Clone + Default + PartialEq>(own: T, other: &T) -> T {
    if own == T::default() {
        other.clone()
    } else {
        own
    }
}

fn both_names(root: &str, leaf: &str) -> String {
    match (root, leaf) {
        ("", one) | (one, "") => one.to_owned(),
        (root, leaf) => format!("{root}-{leaf}"),
    }
}

/// Each of `leaves` within each of `roots` that it is a part of.
fn both_match(roots: &[VirtualMatch], leaves: &[VirtualMatch]) -> Option<Vec<VirtualMatch>> {
    if roots.is_empty() || leaves.is_empty() {
        return Some([roots, leaves].concat());
    }
    let mut all = Vec::new();
    for leaf in leaves {
        let before = all.len();
        let around = roots.iter().filter(|root| root.contains(leaf));
        all.extend(around.map(|root| root.narrowed(leaf)));
        if all.len() == before {
            return None;
        }
    }
    Some(all)
}

impl VirtualMatch {
    /// Whether every request for which both hold is one that `leaf` may speak of: it asks for no more of anything than this does.
    fn contains(&self, leaf: &Self) -> bool {
        let texts = [
            (&self.uri, &leaf.uri),
            (&self.scheme, &leaf.scheme),
            (&self.method, &leaf.method),
            (&self.authority, &leaf.authority),
        ];
        let fields = [
            (&self.headers, &leaf.headers),
            (&self.without_headers, &leaf.without_headers),
            (&self.query_params, &leaf.query_params),
        ];
        let mut labels = leaf.source_labels.iter();
        let mut gateways = leaf.gateways.iter();
        texts
            .iter()
            .all(|(root, leaf)| is_within(leaf.as_ref(), root.as_ref()))
            && fields.iter().all(|(root, leaf)| are_within(leaf, root))
            && self.ignore_uri_case == leaf.ignore_uri_case
            && is_open_or_same(self.port, leaf.port)
            && is_open_or_same(said(&self.source_namespace), said(&leaf.source_namespace))
            && labels.all(|(key, value)| self.source_labels.get(key).is_none_or(|own| own == value))
            && (self.gateways.is_empty() || gateways.all(|gateway| self.gateways.contains(gateway)))
    }

    /// `leaf`, and what it leaves open as here.
    fn narrowed(&self, leaf: &Self) -> Self {
        let own = leaf.clone();
        Self {
            name: both_names(&self.name, &leaf.name),
            uri: own.uri.or_else(|| self.uri.clone()),
            scheme: own.scheme.or_else(|| self.scheme.clone()),
            method: own.method.or_else(|| self.method.clone()),
            authority: own.authority.or_else(|| self.authority.clone()),
            headers: merged(&self.headers, own.headers),
            without_headers: merged(&self.without_headers, own.without_headers),
            query_params: merged(&self.query_params, own.query_params),
            port: own.port.or(self.port),
            ignore_uri_case: own.ignore_uri_case,
            source_labels: merged(&self.source_labels, own.source_labels),
            source_namespace: or(own.source_namespace, &self.source_namespace),
            gateways: or(own.gateways, &self.gateways),
            stat_prefix: or(own.stat_prefix, &self.stat_prefix),
        }
    }
}

fn merged<V: Clone>(root: &BTreeMap<String, V>, leaf: BTreeMap<String, V>) -> BTreeMap<String, V> {
    let mut all = root.clone();
    all.extend(leaf);
    all
}

fn said(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn is_open_or_same<T: Copy + PartialEq>(root: Option<T>, leaf: Option<T>) -> bool {
    root.is_none() || leaf.is_none() || root == leaf
}

fn are_within(leaf: &BTreeMap<String, TextPattern>, root: &BTreeMap<String, TextPattern>) -> bool {
    let mut fields = leaf.iter();
    fields.all(|(name, leaf)| is_within(Some(leaf), root.get(name)))
}

/// Whether what `leaf` matches is known to be a part of what `root` does. Of expressions that is known only of themselves alone.
fn is_within(leaf: Option<&TextPattern>, root: Option<&TextPattern>) -> bool {
    let (Some(leaf), Some(root)) = (leaf, root) else {
        return true;
    };
    let text = leaf.exact.as_ref().or(leaf.prefix.as_ref());
    match (&root.exact, &root.prefix, &root.regex) {
        (Some(root), ..) => leaf.exact.as_ref() == Some(root),
        (None, Some(root), _) => text.is_some_and(|text| text.starts_with(root.as_str())),
        (None, None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::super::VirtualHttpRoute;

    fn rule(spec: &Value) -> VirtualHttpRoute {
        VirtualHttpRoute::deserialize(spec).unwrap()
    }

    fn matching(matches: &Value) -> VirtualHttpRoute {
        rule(&json!({ "match": matches }))
    }

    #[test]
    fn a_delegates_rule_holds_where_both_match() {
        let a = || json!([{"uri": {"prefix": "/a"}}]);
        for (root, leaf, expected) in [
            (json!([]), json!([]), json!([])),
            (a(), json!([]), a()),
            (json!([]), a(), a()),
            (
                json!([{"uri": {"prefix": "/a"}, "headers": {"x": {"exact": "1"}}}]),
                json!([{"uri": {"exact": "/a/b"}, "name": "b"}]),
                json!([{"uri": {"exact": "/a/b"}, "headers": {"x": {"exact": "1"}}, "name": "b"}]),
            ),
            (
                json!([{"uri": {"prefix": "/a"}, "name": "a"}, {"uri": {"prefix": "/"}}, {"uri": {"prefix": "/c"}}]),
                json!([{"uri": {"prefix": "/a/b"}, "name": "b"}]),
                json!([{"uri": {"prefix": "/a/b"}, "name": "a-b"}, {"uri": {"prefix": "/a/b"}, "name": "b"}]),
            ),
        ] {
            let merged = matching(&root).delegated(&matching(&leaf));
            let merged = merged.map(|one| one.matches);
            assert_eq!(merged, Some(matching(&expected).matches), "{root} {leaf}");
        }
    }

    #[test]
    fn a_rule_of_a_delegate_that_asks_for_more_is_left_out() {
        let a = || json!([{"uri": {"prefix": "/a"}}]);
        for (root, leaf) in [
            (json!([{"uri": {"prefix": "/a/b"}}]), a()),
            (json!([{"uri": {"exact": "/a"}}]), a()),
            (json!([{"uri": {"regex": "/a.*"}}]), a()),
            (a(), json!([{"uri": {"regex": "/a.*"}}])),
            (
                json!([{"headers": {"x": {"exact": "1"}}}]),
                json!([{"headers": {"x": {"exact": "2"}}}]),
            ),
            (json!([{"port": 80}]), json!([{"port": 81}])),
            (json!([{"ignoreUriCase": true}]), a()),
            (
                json!([{"sourceLabels": {"app": "a"}}]),
                json!([{"sourceLabels": {"app": "b"}}]),
            ),
            (
                json!([{"gateways": ["mesh"]}]),
                json!([{"gateways": ["g"]}]),
            ),
            // One of two does.
            (
                a(),
                json!([{"uri": {"prefix": "/a"}}, {"uri": {"prefix": "/b"}}]),
            ),
        ] {
            let merged = matching(&root).delegated(&matching(&leaf));
            assert_eq!(merged, None, "{root} {leaf}");
        }
    }

    #[test]
    fn what_a_delegate_leaves_open_is_as_in_whoever_delegates() {
        let root = json!({"name": "root", "timeout": "1s", "delegate": {"name": "d"}, "rewrite": {"uri": "/r"},
            "headers": {"request": {"set": {"a": "b"}}}});
        let leaf =
            json!({"name": "leaf", "timeout": "2s", "route": [{"destination": {"host": "s"}}]});
        let both = json!({"name": "root-leaf", "timeout": "2s", "rewrite": {"uri": "/r"},
            "headers": {"request": {"set": {"a": "b"}}}, "route": [{"destination": {"host": "s"}}]});
        assert_eq!(rule(&root).delegated(&rule(&leaf)), Some(rule(&both)));
    }
}
