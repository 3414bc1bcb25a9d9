//! Namespaces that are strict about the waypoints of their services.

use std::sync::Arc;

use super::mark::Marks;
use super::workloads::warn_of_system;
use super::{Compiler, Notices, Unit};
use crate::mesh::object::Kind;

/// Refuses who dials pods around the waypoint of their services: a label or an annotation of the Namespace.
const STRICT_WAYPOINT: &str = "culvert.dev/strict-waypoint";

impl Compiler {
    /// Brings marked namespaces into the snapshot.
    pub(super) fn update_strict(&mut self, marks: &mut Marks) -> bool {
        let mut changed = false;
        for name in std::mem::take(&mut marks.strict) {
            let mut notices = Notices::default();
            let meta = self.store.namespaces.get(&name);
            let said = meta.and_then(|meta| {
                let annotated = meta.annotations.get(STRICT_WAYPOINT);
                annotated.or_else(|| meta.labels.get(STRICT_WAYPOINT))
            });
            if let (Some(meta), Some(other)) = (meta, said)
                && !matches!(other, "true" | "false")
            {
                let other = other.escape_debug();
                let what = format!(
                    "says {STRICT_WAYPOINT}: {other}, which means nothing: write \"true\" or \"false\""
                );
                notices.warn(Kind::Namespace, &meta.name, what);
            }
            warn_of_system(meta.map(|meta| &**meta), &mut notices);
            let strict = &mut self.current.strict_namespaces;
            changed |= match said {
                Some("true") => strict.insert(Arc::clone(&name)).is_none(),
                _ => strict.remove(&name).is_some(),
            };
            self.say(Unit::Namespace(name), notices.0);
        }
        changed
    }
}
