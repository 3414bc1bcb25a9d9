//! Which of a rule's backends takes a request.

use crate::model::WeightedBackend;
use crate::route::Choose;

/// Draws a backend by weight. `None`, which is answered with 500, if there is no backend or no weight.
///
/// Invalid backends take part: "their share" of the requests is answered with 500 (Gateway API, backendRefs).
pub fn choose_backend<'r>(
    backends: &'r [WeightedBackend],
    choose: &mut Choose<'_>,
) -> Option<&'r WeightedBackend> {
    let weights = backends.iter().map(|backend| backend.weight);
    // Gateway API bounds the sum at 16 000 000; only a VirtualService can saturate it.
    let total = weights.fold(0_u32, u32::saturating_add);
    if total == 0 {
        return None;
    }
    let mut point = choose(total);
    backends.iter().find(|backend| {
        let hit = point < backend.weight;
        point = point.saturating_sub(backend.weight);
        hit
    })
}
