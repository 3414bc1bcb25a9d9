//! Which endpoint takes a request (DestinationRule `loadBalancer`). Pure: loads, luck and the turn are
//! passed in.

mod consistent;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use consistent::ConsistentHash;
use http::header::COOKIE;
use smallvec::SmallVec;

use super::{Choose, MAX_ATTEMPTS};
use crate::model::{Balance, HashKey, RequestHead, Warmup};

/// An endpoint that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where it is.
    pub address: SocketAddr,
    /// Its share; 0 is never chosen.
    pub weight: u32,
    /// Requests of this node that it is busy with.
    pub active: u32,
    /// Who is nearer, 0 being the nearest.
    pub tier: u8,
}

/// What one choice depends on besides the endpoints.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn<'a> {
    /// How many choices were made before, for round robin.
    pub number: u64,
    /// The request's hash and where hashes lead; without a hash the choice is random (Envoy).
    pub hash: Option<(u64, &'a ConsistentHash)>,
}

/// Chooses an endpoint; its place among `choices`. `None` if there is none with a weight, or if the address
/// that was dialled is wanted.
pub fn choose_endpoint(
    balance: &Balance,
    choices: &[Choice],
    turn: Turn<'_>,
    choose: &mut Choose<'_>,
) -> Option<usize> {
    match balance {
        Balance::Passthrough => None,
        Balance::Random => draw(choices, choose),
        Balance::RoundRobin => {
            let total = total(choices);
            let point = turn.number.checked_rem(total.into())?;
            at(choices, u32::try_from(point).ok()?)
        }
        Balance::LeastRequest => {
            let first = draw(choices, choose)?;
            let second = draw(choices, choose)?;
            let active = |place: usize| choices.get(place).map_or(u32::MAX, |one| one.active);
            Some(if active(second) < active(first) {
                second
            } else {
                first
            })
        }
        Balance::ConsistentHash { .. } => {
            let found = turn.hash.and_then(|(hash, table)| {
                let address = table.find(hash)?;
                choices.iter().position(|one| one.address == address)
            });
            found.or_else(|| draw(choices, choose))
        }
    }
}

/// Different endpoints in the order to try them; their places among `choices`, whose weights are 0 then. A
/// consistent hash has one place only: another attempt goes there again (Istio avoids no host then).
pub fn order(
    balance: &Balance,
    choices: &mut [Choice],
    turn: Turn<'_>,
    choose: &mut Choose<'_>,
) -> SmallVec<[usize; MAX_ATTEMPTS]> {
    // What was dialled is an address of the service's own, behind which there is nothing else to be found.
    let balance = match balance {
        Balance::Passthrough => &Balance::Random,
        other => other,
    };
    let is_fixed = matches!(balance, Balance::ConsistentHash { .. }) && turn.hash.is_some();
    let most = if is_fixed { 1 } else { MAX_ATTEMPTS };
    let mut order = SmallVec::new();
    while order.len() < most
        && let Some(place) = choose_endpoint(balance, choices, turn, choose)
    {
        order.push(place);
        if let Some(chosen) = choices.get_mut(place) {
            chosen.weight = 0;
        }
    }
    order
}

/// What a new endpoint's weight comes to at this age, in hundredths: it grows from the policy's minimum to all of
/// it (Envoy's slow start: `max(minimum, (age / duration) ^ (1 / aggression))`).
pub fn warmed(weight: u32, warmup: &Warmup, age: Duration) -> u32 {
    let share = if age < warmup.duration {
        let part = age.as_secs_f64() / warmup.duration.as_secs_f64();
        let grown = part.powf(warmup.aggression.max(f64::MIN_POSITIVE).recip());
        percent(grown * 100.0).max(warmup.minimum_percent.clamp(1, 100).into())
    } else {
        100
    };
    weight.saturating_mul(share)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to what fits"
)]
fn percent(share: f64) -> u32 {
    share.clamp(0.0, 100.0) as u32
}

fn total(choices: &[Choice]) -> u32 {
    let weights = choices.iter().map(|one| one.weight);
    weights.fold(0, u32::saturating_add)
}

/// By weight.
fn draw(choices: &[Choice], choose: &mut Choose<'_>) -> Option<usize> {
    match total(choices) {
        0 => None,
        total => at(choices, choose(total)),
    }
}

/// The endpoint in whose part of the sum of weights a point lies.
fn at(choices: &[Choice], mut point: u32) -> Option<usize> {
    choices.iter().position(|one| {
        let hit = point < one.weight;
        point = point.saturating_sub(one.weight);
        hit
    })
}

/// The hash of what a request is told apart by; `None` if it has no such thing.
pub fn request_hash(key: &HashKey, head: &RequestHead<'_>, source: IpAddr) -> Option<u64> {
    match key {
        HashKey::Header(name) => Some(hash(head.header(name)?.as_bytes())),
        HashKey::SourceIp => Some(address_hash(source)),
        HashKey::QueryParameter(name) => {
            let mut parameters = form_urlencoded::parse(head.query?.as_bytes());
            let (_, value) = parameters.find(|(key, _)| **key == **name)?;
            Some(hash(value.as_bytes()))
        }
        HashKey::Cookie { name, .. } => {
            let lists = head.headers.get_all(COOKIE).iter();
            let mut pairs = lists
                .filter_map(|list| list.to_str().ok())
                .flat_map(|list| list.split(';'))
                .filter_map(|pair| pair.trim().split_once('='));
            let (_, value) = pairs.find(|(key, _)| **key == **name)?;
            Some(hash(value.as_bytes()))
        }
    }
}

/// The hash of an address, whichever way it is written.
pub(crate) fn address_hash(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => hash(&address.octets()),
        IpAddr::V6(address) => hash(&address.octets()),
    }
}

/// FNV-1a, its bits stirred by `SplitMix64`'s finalizer. The same on every node, so that a key leads to the
/// same endpoint from everywhere; clients who look for collisions only burden one endpoint, as they could by
/// sending one key.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let folded = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let stirred = (folded ^ (folded >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let stirred = (stirred ^ (stirred >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    stirred ^ (stirred >> 31)
}

#[cfg(test)]
mod tests;
