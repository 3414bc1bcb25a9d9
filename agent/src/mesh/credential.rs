//! Certificates and keys in Secrets and ConfigMaps, as far as policies about TLS name them.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1 as core;

use super::field::Faults;
use super::meta::{Interner, Meta};

/// The keys under which they are kept: Kubernetes' own, and Istio's for Secrets of no type.
const CHAIN: [&str; 2] = ["cert", "tls.crt"];
const KEY: [&str; 2] = ["key", "tls.key"];
const AUTHORITIES: [&str; 2] = ["cacert", "ca.crt"];

/// The key of a `ConfigMap` that makes it one of ours.
pub(crate) const CONFIG_MAP_KEY: &str = "ca.crt";

/// What the name of a Secret ends with that only holds the authorities of another (Istio).
pub(crate) const AUTHORITIES_SUFFIX: &str = "-cacert";

/// A Secret or `ConfigMap` with certificates, less everything else in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialSource {
    /// Name, labels, annotations.
    pub meta: Meta,
    held: BTreeMap<&'static str, Hidden>,
}

/// Never shown.
#[derive(Clone, PartialEq, Eq)]
struct Hidden(Vec<u8>);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl CredentialSource {
    pub(crate) fn of_secret(
        secret: core::Secret,
        texts: &mut Interner,
        faults: &mut Faults,
    ) -> Self {
        let data = secret.data.unwrap_or_default();
        // As an API server does: the texts go over the data.
        let texts_given = secret.string_data.unwrap_or_default();
        let given = texts_given
            .into_iter()
            .map(|(key, text)| (key, text.into_bytes()));
        let all = data
            .into_iter()
            .map(|(key, bytes)| (key, bytes.0))
            .chain(given);
        Self {
            meta: Meta::read(secret.metadata, texts, faults),
            held: kept(all),
        }
    }

    pub(crate) fn of_config_map(
        map: core::ConfigMap,
        texts: &mut Interner,
        faults: &mut Faults,
    ) -> Self {
        let data = map.data.unwrap_or_default();
        let all = data.into_iter().filter(|(key, _)| key == CONFIG_MAP_KEY);
        Self {
            meta: Meta::read(map.metadata, texts, faults),
            held: kept(all.map(|(key, text)| (key, text.into_bytes()))),
        }
    }

    /// A certificate with those that vouch for it, PEM.
    pub(crate) fn chain(&self) -> Option<&[u8]> {
        self.first(CHAIN)
    }

    /// Its key, PEM.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.first(KEY)
    }

    /// Who may vouch for others, PEM.
    pub(crate) fn authorities(&self) -> Option<&[u8]> {
        self.first(AUTHORITIES)
    }

    fn first(&self, keys: [&'static str; 2]) -> Option<&[u8]> {
        let mut held = keys.iter().filter_map(|key| self.held.get(key));
        held.next().map(|hidden| &*hidden.0)
    }
}

fn kept(all: impl Iterator<Item = (String, Vec<u8>)>) -> BTreeMap<&'static str, Hidden> {
    let known = [CHAIN, KEY, AUTHORITIES].into_iter().flatten();
    let known: Vec<&'static str> = known.collect();
    let known = |key: &str| known.iter().find(|one| **one == key).copied();
    all.filter_map(|(key, bytes)| Some((known(&key)?, Hidden(bytes))))
        .collect()
}
