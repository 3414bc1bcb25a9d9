//! Near endpoints before far ones, as a DestinationRule wants it (`localityLbSetting`). Pure.

use smallvec::SmallVec;

use super::Choose;
use super::balance::Candidate;
use crate::model::{ComparedLabel, LocalityShares, Nearness, PriorityLabel, Tiering, Workload};

/// A tier's share is more than its part of healthy endpoints, in hundredths (Envoy's overprovisioning factor): as
/// long as 72 of a hundred are well, none of its requests goes farther.
const OVERPROVISIONING: u64 = 140;

/// Parts of a locality's share that one endpoint may be.
const PARTS: u64 = 1_000;

/// Gives each candidate its share and its tier; who gets no share is left out.
pub(super) fn arrange(nearness: &Nearness, source: &Workload, candidates: &mut Vec<Candidate>) {
    match nearness {
        Nearness::Shares(all) => {
            let mut meant = all.iter();
            if let Some(shares) = meant.find(|shares| shares.from.matches(&source.locality)) {
                share_out(shares, candidates);
            }
        }
        Nearness::Tiers { by, .. } => {
            for candidate in candidates {
                candidate.tier = tier(by, source, &candidate.workload);
            }
        }
    }
}

/// Divides each locality's share among its endpoints by their capacity. An endpoint belongs to the first that it
/// matches.
fn share_out(shares: &LocalityShares, candidates: &mut Vec<Candidate>) {
    let place = |candidate: &Candidate| {
        let locality = &candidate.workload.locality;
        let mut to = shares.to.iter();
        to.position(|(pattern, _)| pattern.matches(locality))
    };
    let mut capacities = vec![0_u64; shares.to.len()];
    for candidate in &*candidates {
        if let Some(sum) = place(candidate).and_then(|place| capacities.get_mut(place)) {
            *sum += u64::from(candidate.workload.capacity);
        }
    }
    candidates.retain_mut(|candidate| {
        let found = place(candidate);
        let share = found.and_then(|place| shares.to.get(place));
        let whole = found.and_then(|place| capacities.get(place));
        let (Some((_, percent)), Some(whole)) = (share, whole) else {
            return false;
        };
        let part = u64::from(*percent) * PARTS * u64::from(candidate.workload.capacity);
        // At least one, where there is any: with a thousand endpoints more than the parts there are.
        let share = part.checked_div(*whole).unwrap_or(0).max(part.min(1));
        candidate.share = u32::try_from(share).unwrap_or(u32::MAX);
        share > 0
    });
}

/// 0 is the nearest.
fn tier(by: &Tiering, source: &Workload, other: &Workload) -> u8 {
    match by {
        Tiering::Locality { failover } => {
            let (here, there) = (&source.locality, &other.locality);
            if here.region == there.region {
                return match (here.zone == there.zone, here.subzone == there.subzone) {
                    (true, true) => 0,
                    (true, false) => 1,
                    (false, _) => 2,
                };
            }
            let mut ways = failover.iter();
            match ways.find(|(from, _)| *from == here.region) {
                Some((_, to)) if *to != there.region => 4,
                _ => 3,
            }
        }
        Tiering::Labels(labels) => {
            let is_like = |label: &&PriorityLabel| {
                let wanted = label.value.as_deref();
                value(&label.label, other) == wanted.unwrap_or_else(|| value(&label.label, source))
            };
            let alike = labels.iter().take_while(is_like).count();
            u8::try_from(labels.len() - alike).unwrap_or(u8::MAX)
        }
    }
}

/// Empty where there is none: two workloads without a label are alike in it (Istio).
fn value<'w>(label: &ComparedLabel, workload: &'w Workload) -> &'w str {
    match label {
        ComparedLabel::Network => &workload.network,
        ComparedLabel::Region => &workload.locality.region,
        ComparedLabel::Zone => &workload.locality.zone,
        ComparedLabel::Subzone => &workload.locality.subzone,
        ComparedLabel::Cluster => &workload.cluster,
        ComparedLabel::Node => &workload.node,
        ComparedLabel::Own(name) => workload.labels.get(name).unwrap_or_default(),
    }
}

/// The tiers in the order to try them: one drawn by how many of each are well, then the others from the nearest on.
///
/// `all` are the tiers of all endpoints, `well` those of the endpoints that may be chosen.
pub(crate) fn draw_tiers(
    all: impl Iterator<Item = u8>,
    well: impl Iterator<Item = u8>,
    choose: &mut Choose<'_>,
) -> SmallVec<[u8; 4]> {
    let mut counts: SmallVec<[(u8, u64, u64); 4]> = SmallVec::new();
    let mut count = |tier: u8, (any, healthy): (u64, u64)| match counts
        .binary_search_by_key(&tier, |entry| entry.0)
    {
        Ok(place) => {
            if let Some(entry) = counts.get_mut(place) {
                entry.1 += any;
                entry.2 += healthy;
            }
        }
        Err(place) => counts.insert(place, (tier, any, healthy)),
    };
    for tier in all {
        count(tier, (1, 0));
    }
    for tier in well {
        count(tier, (0, 1));
    }
    if let [(tier, ..)] = counts.as_slice() {
        return SmallVec::from_slice(&[*tier]);
    }
    let mut left = 100_u64;
    let mut loads: SmallVec<[(u8, u64); 4]> = SmallVec::new();
    for (tier, any, healthy) in &counts {
        let health = (OVERPROVISIONING * healthy).checked_div(*any).unwrap_or(0);
        let load = health.min(left);
        left -= load;
        loads.push((*tier, load));
    }
    let total: u64 = loads.iter().map(|(_, load)| load).sum();
    let drawn = match loads.as_slice() {
        // One has all: nothing to draw.
        [(tier, 100), ..] => Some(*tier),
        _ => u32::try_from(total)
            .ok()
            .filter(|total| *total > 0)
            .and_then(|total| {
                let mut point = u64::from(choose(total));
                let hit = loads.iter().find(|(_, load)| {
                    let inside = point < *load;
                    point = point.saturating_sub(*load);
                    inside
                });
                hit.map(|(tier, _)| *tier)
            }),
    };
    let nearest = counts.iter().map(|(tier, ..)| *tier);
    drawn
        .into_iter()
        .chain(nearest.filter(|tier| Some(*tier) != drawn))
        .collect()
}

#[cfg(test)]
mod tests;
