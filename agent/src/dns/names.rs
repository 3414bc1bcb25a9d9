//! The names that a query may mean. A pod's resolver library tries the search domains of Kubernetes one
//! by one; seeing through them here answers the first try. The pod's own `resolv.conf` is not read: the
//! search domains are those that Kubernetes gives every pod.

/// One reading of a query's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The host to look for.
    pub(super) host: String,
    /// How many labels of the query's name are meant, if a search domain was taken off its end.
    pub(super) stripped_to: Option<usize>,
}

/// All readings, the most literal first. `name` is lower case without the last dot.
pub(super) fn candidates(name: &str, namespace: &str, cluster_domain: &str) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    let mut add = |host: String, stripped_to: Option<usize>| {
        if !found.iter().any(|known| known.host == host) {
            found.push(Candidate { host, stripped_to });
        }
    };
    let mut read = |literal: &str, stripped_to: Option<usize>| {
        add(literal.to_owned(), stripped_to);
        if let Some(service) = kubernetes_name(literal, namespace, cluster_domain) {
            add(service, stripped_to);
        }
    };
    read(name, None);
    let searched = [
        format!(".{namespace}.svc.{cluster_domain}"),
        format!(".svc.{cluster_domain}"),
        format!(".{cluster_domain}"),
    ];
    for suffix in searched {
        if let Some(meant) = name.strip_suffix(&suffix).filter(|rest| !rest.is_empty()) {
            read(meant, Some(labels(meant)));
        }
    }
    found
}

/// `reviews`, `reviews.bookinfo` and `reviews.bookinfo.svc` in full.
fn kubernetes_name(name: &str, namespace: &str, cluster_domain: &str) -> Option<String> {
    match labels(name) {
        1 => Some(format!("{name}.{namespace}.svc.{cluster_domain}")),
        2 => Some(format!("{name}.svc.{cluster_domain}")),
        3 if name.rsplit('.').next() == Some("svc") => Some(format!("{name}.{cluster_domain}")),
        _ => None,
    }
}

fn labels(name: &str) -> usize {
    name.split('.').count()
}

/// The wildcards that cover a host, the most specific first: `*.b.c`, then `*.c`.
pub(super) fn wildcards(host: &str) -> impl Iterator<Item = String> {
    host.match_indices('.')
        .map(|(dot, _)| format!("*{}", host.get(dot..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::{candidates, wildcards};

    #[track_caller]
    fn check(name: &str, expected: &[(&str, Option<usize>)]) {
        let found = candidates(name, "shop", "cluster.local");
        let found: Vec<_> = found
            .iter()
            .map(|c| (c.host.as_str(), c.stripped_to))
            .collect();
        assert_eq!(found, expected, "{name}");
    }

    #[test]
    fn names_are_read_as_kubernetes_means_them() {
        check(
            "cart",
            &[("cart", None), ("cart.shop.svc.cluster.local", None)],
        );
        check(
            "cart.other",
            &[("cart.other", None), ("cart.other.svc.cluster.local", None)],
        );
        check(
            "cart.other.svc",
            &[
                ("cart.other.svc", None),
                ("cart.other.svc.cluster.local", None),
            ],
        );
        check("a.b.c", &[("a.b.c", None)]);
        check(
            "cart.shop.svc.cluster.local",
            &[
                ("cart.shop.svc.cluster.local", None),
                ("cart", Some(1)),
                ("cart.shop", Some(2)),
                ("cart.shop.svc", Some(3)),
            ],
        );
        check(
            "api.example.com.shop.svc.cluster.local",
            &[
                ("api.example.com.shop.svc.cluster.local", None),
                ("api.example.com", Some(3)),
                ("api.example.com.shop", Some(4)),
                ("api.example.com.shop.svc", Some(5)),
            ],
        );
        check(
            "cart.other.shop.svc.cluster.local",
            &[
                ("cart.other.shop.svc.cluster.local", None),
                ("cart.other", Some(2)),
                ("cart.other.svc.cluster.local", Some(2)),
                ("cart.other.shop", Some(3)),
                ("cart.other.shop.svc", Some(4)),
            ],
        );
        check(
            "svc.cluster.local",
            &[
                ("svc.cluster.local", None),
                ("svc", Some(1)),
                ("svc.shop.svc.cluster.local", Some(1)),
            ],
        );
    }

    #[test]
    fn wildcards_go_from_specific_to_general() {
        let found: Vec<_> = wildcards("x.b.example.com").collect();
        assert_eq!(found, ["*.b.example.com", "*.example.com", "*.com"]);
        assert_eq!(wildcards("com").count(), 0);
    }
}
