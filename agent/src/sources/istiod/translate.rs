//! What istiod sends → what the mesh takes. Pure. A resource that cannot be understood is refused as a whole, in a
//! sentence that istiod is answered with.

mod policy;
mod service;
#[cfg(test)]
mod tests;
mod workload;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use prost::Message as _;
use userspace_l7::model::{NamespacedHostname, PolicyKey, WaypointReference};

use super::messages::{Address, AddressKind, Any, Authorization, GatewayAddress};
use crate::mesh::Announcement;

pub(super) use self::policy::closed;

/// Type of workloads and services.
pub(super) const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Type of policies.
pub(super) const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

/// What istiod's defaults stand for.
#[derive(Clone, Debug)]
pub(super) struct Defaults {
    /// Of workloads that name no cluster.
    pub(super) cluster: Arc<str>,
}

/// Why a resource is not taken over, to be read after its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(String);

impl Refused {
    fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// The announcement of a resource.
///
/// # Errors
/// [`Refused`]: it is of another type, or something in it means nothing here.
pub(super) fn announcement(
    resource: Option<&Any>,
    defaults: &Defaults,
) -> Result<Announcement, Refused> {
    let Any { type_url, value } = resource.ok_or_else(|| Refused::new("has no content"))?;
    let unread = |error: prost::DecodeError| Refused::new(format!("cannot be decoded: {error}"));
    match type_url.as_str() {
        ADDRESS => match Address::decode(&**value).map_err(unread)?.kind {
            Some(AddressKind::Workload(one)) => workload::translate(*one, defaults),
            Some(AddressKind::Service(one)) => service::translate(*one),
            None => Err(Refused::new("is neither a workload nor a service")),
        },
        AUTHORIZATION => policy::translate(&Authorization::decode(&**value).map_err(unread)?),
        other => Err(Refused::new(format!(
            "is of type {other}, which was not asked for"
        ))),
    }
}

/// A name that has to be there.
fn required(text: String, what: &str) -> Result<Arc<str>, Refused> {
    if text.is_empty() {
        return Err(Refused::new(format!("has no {what}")));
    }
    Ok(text.into())
}

/// A text, or what no text stands for.
fn or<'t>(text: &'t str, otherwise: &'t str) -> Arc<str> {
    if text.is_empty() { otherwise } else { text }.into()
}

fn ip(bytes: &[u8]) -> Result<IpAddr, Refused> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let found = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    let found = found
        .map_err(|_length| Refused::new(format!("has an address of {} bytes", bytes.len())))?;
    Ok(found.to_canonical())
}

fn network(address: &[u8], length: u32) -> Result<IpNet, Refused> {
    let ip = ip(address)?;
    let wrong = || Refused::new(format!("has the range {ip}/{length}, which is none"));
    let length = u8::try_from(length).map_err(|_long| wrong())?;
    let net = IpNet::new(ip, length).map_err(|_long| wrong())?;
    Ok(net.trunc())
}

fn port(number: u32) -> Result<u16, Refused> {
    u16::try_from(number)
        .map_err(|_large| Refused::new(format!("has port {number}, which is none")))
}

/// `<namespace>/<hostname>`.
fn hostname(text: &str) -> Result<NamespacedHostname, Refused> {
    let (namespace, hostname) = text.split_once('/').ok_or_else(|| {
        Refused::new(format!(
            "names service `{text}`, which is not NAMESPACE/HOSTNAME"
        ))
    })?;
    Ok(NamespacedHostname {
        namespace: namespace.into(),
        hostname: hostname.to_ascii_lowercase().into(),
    })
}

/// `<namespace>/<name>`.
fn policy_key(text: &str) -> Result<PolicyKey, Refused> {
    let (namespace, name) = text.split_once('/').ok_or_else(|| {
        Refused::new(format!(
            "names policy `{text}`, which is not NAMESPACE/NAME"
        ))
    })?;
    Ok(PolicyKey {
        namespace: namespace.into(),
        name: name.into(),
    })
}

/// A waypoint of somebody else's: whether it is one of the node agents is what its Gateway says, and that is no part of
/// this.
fn waypoint(gateway: Option<GatewayAddress>) -> Result<Option<WaypointReference>, Refused> {
    let Some(GatewayAddress {
        hostname,
        address,
        hbone_mtls_port,
    }) = gateway
    else {
        return Ok(None);
    };
    let Some(destination) = hostname else {
        let by = if address.is_some() {
            "an address alone"
        } else {
            "nothing"
        };
        return Err(Refused::new(format!(
            "has a waypoint that is named by {by}"
        )));
    };
    Ok(Some(WaypointReference {
        destination: NamespacedHostname {
            namespace: destination.namespace.into(),
            hostname: destination.hostname.to_ascii_lowercase().into(),
        },
        hbone_port: port(hbone_mtls_port)?,
        is_foreign: true,
    }))
}
