//! Tables in which a hash leads to an endpoint, and to the same one though others come and go.

use std::net::SocketAddr;

use super::hash;
use crate::model::HashAlgorithm;

/// Points on a ring, and slots of a Maglev table, at most: what a configuration may ask of a node's memory
/// (Envoy's limits).
const MOST_POINTS: u32 = 8 << 20;
const MOST_SLOTS: u32 = 5_000_011;

/// A table for one set of endpoints. Costs far more to make than to ask: it is kept until they change.
#[derive(Clone, Debug)]
pub struct ConsistentHash(Table);

#[derive(Clone, Debug)]
enum Table {
    /// Points in order; a hash belongs to the first one that is not before it.
    Ring(Vec<(u64, SocketAddr)>),
    /// Slots; a hash belongs to the one that it leaves as a remainder.
    Maglev(Vec<SocketAddr>),
}

impl ConsistentHash {
    /// Makes a table of these endpoints, in whatever order they come.
    pub fn new(algorithm: HashAlgorithm, endpoints: &[SocketAddr]) -> Self {
        let mut endpoints = endpoints.to_vec();
        endpoints.sort_unstable();
        endpoints.dedup();
        Self(match algorithm {
            HashAlgorithm::Ring { minimum_size } => Table::Ring(ring(&endpoints, minimum_size)),
            HashAlgorithm::Maglev { table_size } => Table::Maglev(maglev(&endpoints, table_size)),
        })
    }

    /// Where a hash leads; `None` if there is no endpoint.
    pub fn find(&self, hash: u64) -> Option<SocketAddr> {
        match &self.0 {
            Table::Ring(points) => {
                let behind = points.partition_point(|(point, _)| *point < hash);
                let next = points.get(behind).or_else(|| points.first());
                next.map(|(_, endpoint)| *endpoint)
            }
            Table::Maglev(slots) => {
                let count = u64::try_from(slots.len()).ok()?;
                let slot = hash.checked_rem(count)?;
                slots.get(usize::try_from(slot).ok()?).copied()
            }
        }
    }
}

/// At least as many points for each endpoint as it takes to have the minimum (Ketama). A power of two, so that
/// one endpoint less does not give all others new points, which would move keys between those that stay.
fn ring(endpoints: &[SocketAddr], minimum: u32) -> Vec<(u64, SocketAddr)> {
    let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX).max(1);
    let each = minimum.min(MOST_POINTS).div_ceil(count).max(1);
    let each = each.next_power_of_two();
    let points = endpoints.iter().flat_map(|endpoint| {
        (0..each).map(move |number| (hash(format!("{endpoint}_{number}").as_bytes()), *endpoint))
    });
    let mut points: Vec<_> = points.collect();
    points.sort_unstable();
    points
}

/// Each endpoint in turn takes the next slot of its own permutation that is still free (Eisenbud et al.,
/// NSDI 2016, §3.4). The permutation has every slot once because the size is a prime.
fn maglev(endpoints: &[SocketAddr], size: u32) -> Vec<SocketAddr> {
    let size = u64::from(prime_from(size.clamp(2, MOST_SLOTS)));
    let mut walks: Vec<Walk> = endpoints
        .iter()
        .map(|endpoint| {
            let name = endpoint.to_string();
            Walk {
                endpoint: *endpoint,
                at: hash(name.as_bytes()) % size,
                step: hash(format!("{name}/step").as_bytes()) % (size - 1) + 1,
            }
        })
        .collect();
    let mut slots: Vec<Option<SocketAddr>> = (0..size).map(|_| None).collect();
    let mut left = if walks.is_empty() { 0 } else { slots.len() };
    while left > 0 {
        for walk in &mut walks {
            if left == 0 {
                break;
            }
            while let Some(slot) = walk.next_slot(&mut slots, size) {
                if slot.is_none() {
                    *slot = Some(walk.endpoint);
                    left -= 1;
                    break;
                }
            }
        }
    }
    slots.into_iter().flatten().collect()
}

/// One endpoint's way through the slots.
struct Walk {
    endpoint: SocketAddr,
    at: u64,
    step: u64,
}

impl Walk {
    fn next_slot<'s>(
        &mut self,
        slots: &'s mut [Option<SocketAddr>],
        size: u64,
    ) -> Option<&'s mut Option<SocketAddr>> {
        let place = usize::try_from(self.at).ok()?;
        self.at = (self.at + self.step) % size;
        slots.get_mut(place)
    }
}

/// The first prime that is not below a number: Istio asks for one, and a user may not give one.
fn prime_from(number: u32) -> u32 {
    let is_prime = |candidate: &u32| {
        let mut divisors = 2..=candidate.isqrt();
        divisors.all(|divisor| !candidate.is_multiple_of(divisor))
    };
    (number..=u32::MAX).find(is_prime).unwrap_or(number)
}
