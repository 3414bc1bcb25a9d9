//! Changes of a header list.

use http::HeaderMap;

use crate::model::HeaderModifier;

/// Removes, sets and adds, in this order, so that a name which is removed and added ends with what was added
/// (Envoy's order). The modifier's `authority` is the caller's business: it is no header in HTTP/2.
pub fn modify(modifier: &HeaderModifier, headers: &mut HeaderMap) {
    for name in &modifier.remove {
        headers.remove(name);
    }
    for (name, value) in &modifier.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &modifier.add {
        headers.append(name, value.clone());
    }
}
