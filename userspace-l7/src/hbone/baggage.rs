//! The `baggage` header: how a workload's own node describes it (ztunnel's keys, in its order). A peer's word, which
//! nothing is decided by: heads carry it as text, and whoever wants to know parses it.

use std::sync::Arc;

use crate::model::Workload;

/// What one workload is called. Empty parts are unknown and not sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// Cluster name.
    pub cluster: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// `deployment`, `cronjob`, `job` or `pod`.
    pub workload_type: Arc<str>,
    /// Workload name.
    pub workload: Arc<str>,
    /// Canonical service.
    pub service: Arc<str>,
    /// Canonical revision.
    pub revision: Arc<str>,
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
}

/// Values longer than a Kubernetes name are no names.
const MAX_VALUE: usize = 253;

impl Baggage {
    /// Describes a workload.
    pub fn of(workload: &Workload) -> Self {
        Self {
            cluster: Arc::clone(&workload.cluster),
            namespace: Arc::clone(&workload.namespace),
            workload_type: Arc::clone(&workload.workload_type),
            workload: Arc::clone(&workload.workload_name),
            service: Arc::clone(&workload.canonical_name),
            revision: Arc::clone(&workload.canonical_revision),
            region: Arc::clone(&workload.locality.region),
            zone: Arc::clone(&workload.locality.zone),
        }
    }

    /// Reads what it knows and skips the rest.
    pub fn parse(text: &str) -> Self {
        let mut baggage = Self::default();
        for (key, value) in text
            .split(',')
            .filter_map(|part| part.trim().split_once('='))
        {
            if value.is_empty() || value.len() > MAX_VALUE {
                continue;
            }
            let kind = key
                .strip_prefix("k8s.")
                .and_then(|key| key.strip_suffix(".name"));
            match (key, kind) {
                ("k8s.cluster.name", _) => baggage.cluster = value.into(),
                ("k8s.namespace.name", _) => baggage.namespace = value.into(),
                ("service.name", _) => baggage.service = value.into(),
                ("service.version", _) => baggage.revision = value.into(),
                ("cloud.region", _) => baggage.region = value.into(),
                ("cloud.availability_zone", _) => baggage.zone = value.into(),
                (_, Some(kind @ ("deployment" | "cronjob" | "job" | "pod"))) => {
                    baggage.workload_type = kind.into();
                    baggage.workload = value.into();
                }
                _ => {}
            }
        }
        baggage
    }
}

impl Baggage {
    /// The header's text. Every tunnelled connection writes it, so it is put together by hand.
    pub fn text(&self) -> String {
        let kind = if self.workload_type.is_empty() {
            "pod"
        } else {
            &*self.workload_type
        };
        let parts: [(&[&str], &str); 7] = [
            (&["k8s.cluster.name"], &self.cluster),
            (&["k8s.namespace.name"], &self.namespace),
            (&["k8s.", kind, ".name"], &self.workload),
            (&["service.name"], &self.service),
            (&["service.version"], &self.revision),
            (&["cloud.region"], &self.region),
            (&["cloud.availability_zone"], &self.zone),
        ];
        let mut text = String::with_capacity(256);
        for (key, value) in parts.iter().filter(|(_, value)| !value.is_empty()) {
            if !text.is_empty() {
                text.push(',');
            }
            key.iter().for_each(|piece| text.push_str(piece));
            text.push('=');
            text.push_str(value);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Baggage;

    #[test]
    fn baggage_is_written_in_the_order_of_ztunnel_without_empty_parts() {
        let baggage = Baggage {
            cluster: "c".into(),
            namespace: "n".into(),
            workload_type: "deployment".into(),
            workload: "w".into(),
            service: "s".into(),
            zone: "z".into(),
            ..Baggage::default()
        };
        let text = "k8s.cluster.name=c,k8s.namespace.name=n,k8s.deployment.name=w,service.name=s,cloud.availability_zone=z";
        assert_eq!(baggage.text(), text);
        assert_eq!(Baggage::parse(text), baggage);
    }

    #[test]
    fn what_is_not_understood_is_skipped() {
        for text in [
            "",
            ",,,",
            "=",
            "a=b",
            "k8s.name",
            "k8s..name=x",
            "k8s.planet.name=x",
        ] {
            assert_eq!(Baggage::parse(text), Baggage::default(), "{text}");
        }
        let long = format!("service.name={}", "x".repeat(300));
        assert_eq!(Baggage::parse(&long), Baggage::default());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_read_prints_as_something_equal(
            text in "((k8s\\.(pod|job|cluster|namespace)\\.name|service\\.version|x)=[a-z]{0,3},?){0,6}|\\PC*",
        ) {
            let baggage = Baggage::parse(&text);
            prop_assert_eq!(Baggage::parse(&baggage.text()), baggage);
        }
    }
}
