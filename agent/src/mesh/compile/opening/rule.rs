//! `trafficPolicy.tls` and `trafficPolicy.proxyProtocol` of the DestinationRules about one service.

use std::cell::RefCell;
use std::sync::Arc;

use userspace_l7::model::{
    Authorities, Encryption, LoadBalancerMode, Opening, ProxyProtocol, Service, UpstreamTls,
};

use super::{Unusable, encryption, material};
use crate::mesh::compile::{Compiler, Notices};
use crate::mesh::credential::{AUTHORITIES_SUFFIX, CredentialSource};
use crate::mesh::meta::ObjectName;
use crate::mesh::object::{Kind, ObjectKey};
use crate::mesh::upstream_tls::{self as istio, ClientTls, ProxyVersion, TlsMode};

/// `caCertificates` that stand for the system's authorities (Istio).
const SYSTEM: &str = "system";

/// A rule's settings, with the rule that they are of: it may name Secrets of its own namespace.
pub(in crate::mesh::compile) type OfRule<'a> = (&'a ObjectName, &'a ClientTls);

/// The rules about a service.
pub(in crate::mesh::compile) struct Rules<'a> {
    pub(in crate::mesh::compile) compiler: &'a Compiler,
    pub(in crate::mesh::compile) service: &'a Service,
    /// What the rules' authors are told.
    pub(in crate::mesh::compile) notices: RefCell<Notices>,
}

impl Rules<'_> {
    /// What connections begin with that these settings are about.
    pub(in crate::mesh::compile) fn opening(
        &self,
        tls: Option<OfRule<'_>>,
        proxy: Option<&istio::ProxyProtocol>,
    ) -> Opening {
        Opening {
            proxy_protocol: proxy.map(|proxy| match proxy.version {
                ProxyVersion::V1 => ProxyProtocol::V1,
                ProxyVersion::V2 => ProxyProtocol::V2,
            }),
            encryption: tls.map(|tls| self.encryption(tls)).unwrap_or_default(),
        }
    }

    fn encryption(&self, (rule, tls): OfRule<'_>) -> Encryption {
        let upstream = match tls.mode {
            TlsMode::Disable => return Encryption::None,
            TlsMode::IstioMutual => return Encryption::Mesh,
            TlsMode::Simple | TlsMode::Mutual => self.upstream((rule, tls)),
        };
        encryption((Kind::DestinationRule, rule), upstream, &self.notices)
    }

    fn upstream(&self, (rule, tls): OfRule<'_>) -> Result<UpstreamTls, Unusable> {
        let files = [
            ("clientCertificate", &tls.client_certificate),
            ("privateKey", &tls.private_key),
            ("caCertificates", &tls.ca_certificates),
            ("caCrl", &tls.ca_crl),
        ];
        let is_file = |(name, path): &(&str, &String)| {
            let stands_for_more = *name == "caCertificates" && *path == SYSTEM;
            !path.is_empty() && !stands_for_more
        };
        if let Some((name, path)) = files.into_iter().find(is_file) {
            return Err(format!(
                "names the file {path} in {name}, which would be one of a waypoint's pod: put it into a Secret and name that in credentialName"
            ));
        }
        let named = tls.credential().map(|name| ObjectName {
            namespace: Arc::clone(&rule.namespace),
            name: name.into(),
        });
        let authorities = match &named {
            _ if tls.insecure_skip_verify => Authorities::Unverified,
            None => Authorities::System,
            Some(name) => self.authorities(name)?,
        };
        let credential = match &named {
            Some(name) if tls.mode == TlsMode::Mutual => {
                let (key, source) = self.find(name)?;
                Some(material::credential(&key, source)?)
            }
            _ => None,
        };
        Ok(UpstreamTls {
            server_name: self.server_name(tls)?,
            names: self.names(tls),
            authorities,
            credential,
        })
    }

    /// What is asked for, and proven where no names are given: a host outside of the mesh is called by its own name.
    fn server_name(&self, tls: &ClientTls) -> Result<Arc<str>, Unusable> {
        if !tls.sni.is_empty() {
            return Ok(tls.sni.as_str().into());
        }
        if self.service.load_balancer.mode == LoadBalancerMode::ByName {
            // The one that the client asks for.
            return Ok("".into());
        }
        let host = &self.service.key.hostname;
        if host.starts_with('*') {
            return Err(format!(
                "asks for TLS with {host}, which names no one server: name it in sni"
            ));
        }
        Ok(Arc::clone(host))
    }

    fn names(&self, tls: &ClientTls) -> Vec<Arc<str>> {
        if tls.subject_alt_names.is_empty() {
            // Those of the ServiceEntry (Istio).
            return self.service.subject_alt_names.clone();
        }
        let names = tls.subject_alt_names.iter();
        names.map(|name| name.as_str().into()).collect()
    }

    /// The authorities of a credential: in a Secret of their own, or beside it (Istio).
    fn authorities(&self, name: &ObjectName) -> Result<Authorities, Unusable> {
        let apart = ObjectName {
            namespace: Arc::clone(&name.namespace),
            name: format!("{}{AUTHORITIES_SUFFIX}", name.name).into(),
        };
        let found = self.find(&apart).or_else(|_none| self.find(name));
        let (key, source) = found?;
        material::authorities(&key, source)
    }

    fn find(&self, name: &ObjectName) -> Result<(ObjectKey, &CredentialSource), Unusable> {
        let key = ObjectKey {
            kind: Kind::Secret,
            name: name.clone(),
        };
        match self.compiler.store.secrets.get(name) {
            Some(source) => Ok((key, source)),
            None => Err(format!("names {key}, which is not there")),
        }
    }
}
