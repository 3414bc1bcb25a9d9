//! EndpointSlices: who serves a Service, as the cluster's controller (or a person) wrote it down.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1;

use super::field::{Faults, at};
use super::meta::{Interner, Meta, ObjectName};
use super::syntax::{is_host_address, read_address, read_port};

/// The label that ties a slice to its Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// The pod behind it, if the slice says so.
    pub pod: Option<ObjectName>,
    /// Takes traffic.
    pub ready: bool,
    /// Its node; empty if unknown.
    pub node: Arc<str>,
}

/// An EndpointSlice, reduced to what the mesh depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// The Service it belongs to; none if the label is absent.
    pub service: Option<ObjectName>,
    /// TCP ports: name (empty if unnamed) and number.
    pub ports: Vec<(Arc<str>, u16)>,
    /// Endpoints. A slice of address type FQDN has none that the mesh could use.
    pub endpoints: Vec<SliceEndpoint>,
}

impl EndpointSlice {
    pub(crate) fn read(
        slice: v1::EndpointSlice,
        texts: &mut Interner,
        faults: &mut Faults,
    ) -> Self {
        let meta = Meta::read(slice.metadata, texts, faults);
        if !["IPv4", "IPv6", "FQDN"].contains(&slice.address_type.as_str()) {
            let problem = format!(
                "`{}` is not known: use IPv4, IPv6 or FQDN",
                slice.address_type
            );
            faults.add(at!["addressType"], problem);
        }
        let mut endpoints = Vec::new();
        if slice.address_type != "FQDN" {
            for (index, endpoint) in slice.endpoints.into_iter().enumerate() {
                read_endpoint(&meta, index, &endpoint, (texts, &mut endpoints), faults);
            }
        }
        let mut ports = Vec::new();
        for (index, port) in slice.ports.into_iter().flatten().enumerate() {
            let place = at!["ports", index, "port"];
            let number = port
                .port
                .and_then(|number| read_port(number.into(), place, faults));
            if matches!(port.protocol.as_deref(), None | Some("TCP")) {
                let name = texts.intern(port.name.as_deref().unwrap_or_default());
                ports.extend(number.map(|number| (name, number)));
            }
        }
        let service = meta.labels.shared(SERVICE_NAME).map(|name| ObjectName {
            namespace: Arc::clone(&meta.name.namespace),
            name: Arc::clone(name),
        });
        Self {
            meta,
            service,
            ports,
            endpoints,
        }
    }
}

fn read_endpoint(
    meta: &Meta,
    index: usize,
    endpoint: &v1::Endpoint,
    (texts, out): (&mut Interner, &mut Vec<SliceEndpoint>),
    faults: &mut Faults,
) {
    let place = at!["endpoints", index, "addresses"];
    if endpoint.addresses.is_empty() {
        faults.add(
            place.clone(),
            "is missing: an endpoint has at least one address",
        );
    }
    let pod = endpoint
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    let pod = pod
        .and_then(|target| target.name.as_deref())
        .map(|name| ObjectName {
            namespace: Arc::clone(&meta.name.namespace),
            name: texts.intern(name),
        });
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    for (number, text) in endpoint.addresses.iter().enumerate() {
        let Some(address) = read_address(text, place.join(number), faults) else {
            continue;
        };
        if !is_host_address(address) {
            let rule = "loopback, unspecified and multicast addresses are no one's";
            faults.add(
                place.join(number),
                format!("{address} cannot be an endpoint: {rule}"),
            );
            continue;
        }
        out.push(SliceEndpoint {
            address,
            pod: pod.clone(),
            // Kubernetes: "nil should be interpreted as true".
            ready: conditions.ready != Some(false),
            node: texts.intern(endpoint.node_name.as_deref().unwrap_or_default()),
        });
    }
}
