//! Waypoint Gateways and their classes, as far as the node agents are their controller.

use super::{conditioned, object, observed};
use crate::mesh::compile::Compiler;
use crate::mesh::gateway::{Gateway, GatewayClass, Listener};
use crate::mesh::object::Kind;
use crate::mesh::status::{
    Condition, ListenerStatus, ObjectStatus, Status, StatusAddress, fails, holds,
};

impl Compiler {
    pub(super) fn gateway_statuses(&self, all: &mut Vec<ObjectStatus>) {
        let gateways = self.store.gateways.iter();
        for gateway in gateways.filter(|gateway| self.is_ours(gateway)) {
            all.push(self.gateway_status(gateway));
        }
        let classes = self.store.classes.values();
        for class in classes.filter(|class| class.is_ours()) {
            all.push(class_status(class));
        }
    }

    fn gateway_status(&self, gateway: &Gateway) -> ObjectStatus {
        let destination = self.reference(gateway).destination;
        let hostname = destination.hostname.to_string();
        let mut addresses = vec![address("Hostname", hostname.clone())];
        // Only where somebody keeps a Service of that name: the agents need none.
        let service = self.current.services.get(&destination);
        let vips = service.into_iter().flat_map(|service| &service.vips);
        addresses.extend(vips.map(|vip| address("IPAddress", vip.to_string())));
        let programmed = format!("Resource programmed, assigned to service(s) {hostname}:15008");
        let conditions = vec![
            holds("Accepted", "Accepted", "Resource accepted"),
            holds("Programmed", "Programmed", programmed),
            holds("ResolvedRefs", "ResolvedRefs", "All references resolved"),
        ];
        let listeners = gateway.spec.listeners.iter();
        let is_single = gateway.spec.listeners.len() == 1;
        let status = Status {
            conditions: observed(conditions, &gateway.meta),
            addresses,
            listeners: listeners
                .map(|one| ListenerStatus {
                    name: one.name.clone(),
                    // Routes are attached to services.
                    attached_routes: 0,
                    supported_kinds: Vec::new(),
                    conditions: observed(listener_conditions(one, is_single), &gateway.meta),
                })
                .collect(),
            ..Status::default()
        };
        object(&Kind::Gateway, &gateway.meta.name, status)
    }
}

/// A listener that is not the waypoint's is not accepted; the waypoint works all the same, as in Istio.
fn listener_conditions(listener: &Listener, is_single: bool) -> Vec<Condition> {
    let fine = "No errors found";
    let accepted = if is_single && listener.is_waypoints() {
        holds("Accepted", "Accepted", fine)
    } else {
        let rule = "Expected a single listener on port 15008 with protocol \"HBONE\"";
        fails("Accepted", "UnsupportedProtocol", rule)
    };
    vec![
        accepted,
        fails("Conflicted", "NoConflicts", fine),
        holds("Programmed", "Programmed", fine),
        holds("ResolvedRefs", "ResolvedRefs", fine),
    ]
}

fn address(kind: &str, value: String) -> StatusAddress {
    StatusAddress {
        kind: kind.to_owned(),
        value,
    }
}

fn class_status(class: &GatewayClass) -> ObjectStatus {
    let accepted = holds("Accepted", "Accepted", "Handled by the node agents");
    conditioned(&Kind::GatewayClass, &class.meta, vec![accepted])
}
