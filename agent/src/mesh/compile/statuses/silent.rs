//! What Istio leaves silent: objects in order of which nothing comes. No status says it, because none is wrong.

use userspace_l7::model::{AppProtocol, PortRoutes, ServiceLayer7};

use crate::mesh::compile::store::Owner;
use crate::mesh::compile::{Compiler, Notice};
use crate::mesh::object::{Kind, ObjectKey};

impl Compiler {
    /// Routes of services that no waypoint serves, and ports of bound services that have no layer 7 to speak about.
    pub fn silent_faults(&self) -> Vec<Notice> {
        let mut all = Vec::new();
        for (key, route) in &self.store.routes {
            for attachment in route.attachments() {
                let parent = &attachment.parent;
                if self.has_owner(parent) && matches!(self.waypoint_of(parent), Ok(None)) {
                    let message = format!(
                        "has no effect at {}: neither it nor its namespace has the label istio.io/use-waypoint",
                        parent.name()
                    );
                    all.push(warning(key.clone(), message));
                }
            }
        }
        for (service, layer7) in &self.current.services_layer7 {
            let Some(owner) = self.declarer(service) else {
                continue;
            };
            let kind = match owner {
                Owner::Service(_) => Kind::Service,
                Owner::Entry(_) => Kind::ServiceEntry,
            };
            let key = ObjectKey {
                kind,
                name: owner.name().clone(),
            };
            let ports = without_layer7(layer7);
            all.extend(ports.map(|message| warning(key.clone(), message)));
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    fn has_owner(&self, owner: &Owner) -> bool {
        match owner {
            Owner::Service(name) => self.store.services.get(name).is_some(),
            Owner::Entry(name) => self.store.service_entries.get(name).is_some(),
        }
    }
}

/// What is said of ports whose bytes nobody looks into, if somebody speaks about their requests. Of AuthorizationPolicies
/// nothing: what they say of identities holds there, too.
fn without_layer7(layer7: &ServiceLayer7) -> impl Iterator<Item = String> {
    let asks_tokens = !layer7.demands.authentication.is_empty();
    layer7.ports.iter().filter_map(move |(number, port)| {
        let declared = match port.protocol {
            AppProtocol::Tcp => "TCP",
            AppProtocol::Tls => "TLS",
            _ => return None,
        };
        let of_http = |routes: &PortRoutes| matches!(routes, PortRoutes::Http(_));
        let has_routes = of_http(&port.routes) || port.consumer_routes.values().any(of_http);
        let what = match (has_routes, asks_tokens) {
            (true, true) => "HTTP routes and RequestAuthentications",
            (true, false) => "HTTP routes",
            (false, true) => "RequestAuthentications",
            (false, false) => return None,
        };
        Some(format!(
            "has {what} that say nothing about port {number}, which is {declared} by its appProtocol, name or number: declare \
             it as http, http2 or grpc if it is that"
        ))
    })
}

fn warning(object: ObjectKey, message: String) -> Notice {
    Notice {
        object,
        warning: true,
        message,
    }
}
