//! Which requests suffer an injected fault, and which are copied.

use std::time::Duration;

use crate::model::{AbortAnswer, Fault, Mirror};
use crate::route::Choose;

/// What percentages are counted in: shares of a million.
const MILLION: u32 = 1_000_000;

/// What a request has to suffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Injected {
    /// Wait this long first.
    pub delay: Option<Duration>,
    /// Then answer this in the backend's place.
    pub abort: Option<AbortAnswer>,
}

/// Draws for delay and abort, each on its own (Envoy's fault filter).
pub fn inject(fault: &Fault, choose: &mut Choose<'_>) -> Injected {
    let delay = fault.delay.as_ref();
    let abort = fault.abort.as_ref();
    Injected {
        delay: delay
            .filter(|delay| hits(delay.per_million, choose))
            .map(|delay| delay.duration),
        abort: abort
            .filter(|abort| hits(abort.per_million, choose))
            .map(|abort| abort.answer),
    }
}

/// Whether this request is copied for a mirror.
pub fn is_mirrored(mirror: &Mirror, choose: &mut Choose<'_>) -> bool {
    hits(mirror.per_million, choose)
}

fn hits(per_million: u32, choose: &mut Choose<'_>) -> bool {
    match per_million {
        0 => false,
        MILLION.. => true,
        share => choose(MILLION) < share,
    }
}
