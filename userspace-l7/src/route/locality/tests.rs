//! Shares and tiers, and who is drawn of them.

use std::sync::Arc;

use proptest::prelude::*;

use super::{arrange, draw_tiers, tier};
use crate::model::{
    ComparedLabel, Locality, LocalityPattern, LocalityShares, Nearness, PriorityLabel, Tiering,
    Workload, WorkloadLabels,
};
use crate::route::balance::Candidate;
use crate::route::tests::workload;

/// A workload at `region/zone/subzone` of a node.
fn at(place: &str, node: &str) -> Workload {
    let mut parts = place.split('/').map(Arc::<str>::from);
    let mut next = || parts.next().unwrap_or_default();
    Workload {
        locality: Locality {
            region: next(),
            zone: next(),
            subzone: next(),
        },
        node: node.into(),
        ..workload("w", "10.0.0.1")
    }
}

fn candidates(places: &[&str]) -> Vec<Candidate> {
    let candidate = |place: &&str| Candidate {
        workload: Arc::new(at(place, "far")),
        address: "10.0.0.1:80".parse().unwrap(),
        share: 1,
        tier: 0,
    };
    places.iter().map(candidate).collect()
}

/// The tiers of endpoints as a client at `here` sees them.
fn tiers(by: Tiering, here: &str, places: &[&str]) -> Vec<u8> {
    let nearness = Nearness::Tiers {
        by,
        is_explicit: true,
    };
    let mut found = candidates(places);
    arrange(&nearness, &at(here, "near"), &mut found);
    found.iter().map(|candidate| candidate.tier).collect()
}

const PLACES: [&str; 5] = ["r1/z1/s1", "r1/z1/s2", "r1/z2/s1", "r2/z1/s1", "r3/z1/s1"];

#[test]
fn the_same_subzone_is_nearest_and_another_region_farthest() {
    let plain = || Tiering::Locality { failover: vec![] };
    assert_eq!(tiers(plain(), "r1/z1/s1", &PLACES), [0, 1, 2, 3, 3]);
    assert_eq!(tiers(plain(), "r2/z1/s1", &PLACES), [3, 3, 3, 0, 3]);
    assert_eq!(tiers(plain(), "", &["", "r1"]), [0, 3]);
}

#[test]
fn a_region_may_have_another_to_fall_back_on() {
    let failover = vec![("r1".into(), "r3".into()), ("r2".into(), "r1".into())];
    let by = || Tiering::Locality {
        failover: failover.clone(),
    };
    assert_eq!(tiers(by(), "r1/z1/s1", &PLACES), [0, 1, 2, 4, 3]);
    assert_eq!(tiers(by(), "r2/z9/s9", &PLACES), [3, 3, 3, 2, 4]);
    assert_eq!(tiers(by(), "r3/z1/s1", &PLACES), [3, 3, 3, 3, 0]);
}

#[test]
fn labels_count_in_a_row_from_the_first_on() {
    let label = |label, value: Option<&str>| PriorityLabel {
        label,
        value: value.map(Arc::from),
    };
    let by = Tiering::Labels(vec![
        label(ComparedLabel::Region, None),
        label(ComparedLabel::Zone, Some("z2")),
        label(ComparedLabel::Subzone, None),
    ]);
    assert_eq!(tiers(by, "r1/z1/s1", &PLACES), [2, 2, 0, 3, 3]);
    let nodes = Tiering::Labels(vec![label(ComparedLabel::Node, Some("far"))]);
    assert_eq!(tiers(nodes, "r1", &PLACES[..2]), [0, 0]);
}

#[test]
fn labels_of_their_own_tell_endpoints_apart() {
    let labelled = |labels: &[(&str, &str)]| {
        let pairs = labels
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        Workload {
            labels: WorkloadLabels::new(pairs.collect()),
            ..at("r1/z1/s1", "n")
        }
    };
    let client = labelled(&[("team", "red"), ("track", "canary")]);
    let endpoints: [&[(&str, &str)]; 5] = [
        &[("team", "red"), ("track", "canary")],
        &[("team", "red"), ("track", "stable")],
        &[("team", "red")],
        &[("team", "blue"), ("track", "canary")],
        &[],
    ];
    let tiers = |labels: &[(&str, Option<&str>)]| -> Vec<u8> {
        let labels = labels.iter().map(|(name, value)| PriorityLabel {
            label: ComparedLabel::named(name),
            value: value.map(Arc::from),
        });
        let by = Tiering::Labels(labels.collect());
        let endpoints = endpoints.iter().map(|labels| labelled(labels));
        endpoints
            .map(|endpoint| tier(&by, &client, &endpoint))
            .collect()
    };
    assert_eq!(tiers(&[("team", None)]), [0, 0, 0, 1, 1]);
    assert_eq!(tiers(&[("team", None), ("track", None)]), [0, 1, 1, 2, 2]);
    // A value of its own in place of the client's.
    assert_eq!(tiers(&[("track", Some("stable"))]), [1, 0, 1, 1, 1]);
    // Where somebody is comes from the node, whatever its labels.
    assert_eq!(
        tiers(&[("topology.kubernetes.io/zone", None), ("team", None)]),
        [0, 0, 0, 1, 1]
    );
    // A label that the client has not: endpoints without it are like it.
    assert_eq!(tiers(&[("shard", None), ("track", None)]), [0, 1, 1, 0, 1]);
    assert_eq!(
        tiers(&[("shard", Some("1")), ("team", None)]),
        [2, 2, 2, 2, 2]
    );
}

/// What is left of the endpoints, each with its share.
fn shares(to: &[(&str, u32)], places: &[&str]) -> Vec<(String, u32)> {
    let pattern = |text: &str| LocalityPattern(text.into());
    let shares = LocalityShares {
        from: pattern("r1/z1/*"),
        to: to
            .iter()
            .map(|(text, share)| (pattern(text), *share))
            .collect(),
    };
    let mut found = candidates(places);
    arrange(
        &Nearness::Shares(vec![shares]),
        &at("r1/z1/s1", "near"),
        &mut found,
    );
    let told = found.iter().map(|candidate| {
        let Locality { region, zone, .. } = &candidate.workload.locality;
        (format!("{region}/{zone}"), candidate.share)
    });
    told.collect()
}

#[test]
fn shares_are_divided_among_the_endpoints_of_a_locality() {
    let told = shares(&[("r1/*", 80), ("r2", 20)], &PLACES);
    let expected = [
        ("r1/z1", 26_666),
        ("r1/z1", 26_666),
        ("r1/z2", 26_666),
        ("r2/z1", 20_000),
    ];
    assert_eq!(
        told,
        expected.map(|(place, share)| (place.to_owned(), share))
    );
    // A place of an earlier pattern is none of a later one; what has no share is left out.
    let told = shares(&[("r1/z2/*", 0), ("*", 100)], &PLACES[1..4]);
    let expected = [("r1/z1", 50_000), ("r2/z1", 50_000)];
    assert_eq!(
        told,
        expected.map(|(place, share)| (place.to_owned(), share))
    );
}

#[test]
fn clients_that_no_share_is_meant_for_go_anywhere() {
    let shares = LocalityShares {
        from: LocalityPattern("r9/*".into()),
        to: vec![(LocalityPattern("r9".into()), 100)],
    };
    let mut found = candidates(&PLACES);
    arrange(
        &Nearness::Shares(vec![shares]),
        &at("r1/z1/s1", "near"),
        &mut found,
    );
    assert_eq!(found.len(), PLACES.len());
}

#[test]
fn patterns_end_where_the_rest_is_all_the_same() {
    let place = at("r1/z1/s1", "n").locality;
    for (pattern, expected) in [
        ("*", true),
        ("r1", true),
        ("r1/*", true),
        ("r1/z1", true),
        ("r1/z1/*", true),
        ("r1/z1/s1", true),
        ("r2", false),
        ("r1/z2/*", false),
        ("r1/z1/s2", false),
        ("r1/z1/s1/x", false),
        ("", false),
    ] {
        assert_eq!(
            LocalityPattern(pattern.into()).matches(&place),
            expected,
            "{pattern}"
        );
    }
}

/// How many of a hundred requests begin at each tier, given how many endpoints each has and how many are well.
fn begin(tiers: &[(u8, u8, u8)]) -> Vec<(u8, usize)> {
    let all = || {
        tiers
            .iter()
            .flat_map(|(tier, all, _)| std::iter::repeat_n(*tier, (*all).into()))
    };
    let well = || {
        tiers
            .iter()
            .flat_map(|(tier, _, well)| std::iter::repeat_n(*tier, (*well).into()))
    };
    let mut counts = vec![0; 256];
    for number in 0..100 {
        let order = draw_tiers(all(), well(), &mut |bound| number * bound / 100);
        counts[usize::from(order[0])] += 1;
    }
    let found = tiers
        .iter()
        .map(|(tier, ..)| (*tier, counts[usize::from(*tier)]));
    found.collect()
}

#[test]
fn the_next_tier_helps_out_as_the_nearer_one_falls_ill() {
    for (tiers, expected) in [
        (&[(0, 4, 4), (3, 4, 4)][..], &[(0, 100), (3, 0)][..]),
        (&[(0, 4, 3), (3, 4, 4)], &[(0, 100), (3, 0)]),
        // Half of it is 70 of a hundred; the rest goes farther.
        (&[(0, 4, 2), (3, 4, 4)], &[(0, 70), (3, 30)]),
        (
            &[(0, 4, 0), (1, 4, 2), (3, 4, 4)],
            &[(0, 0), (1, 70), (3, 30)],
        ),
        // Too few everywhere: by what there is.
        (&[(0, 4, 1), (3, 4, 1)], &[(0, 50), (3, 50)]),
        (&[(0, 4, 1)], &[(0, 100)]),
        (&[(2, 1, 0), (3, 1, 0)], &[(2, 100), (3, 0)]),
    ] {
        assert_eq!(begin(tiers), expected, "{tiers:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_tier_is_tried_once(tiers in prop::collection::vec((0_u8..6, any::<bool>()), 0..20), luck: u32) {
        let all = tiers.iter().map(|(tier, _)| *tier);
        let well = tiers.iter().filter(|(_, is_well)| *is_well).map(|(tier, _)| *tier);
        let mut order = draw_tiers(all.clone(), well, &mut |bound| luck % bound).to_vec();
        let others = order.get(1..).unwrap_or_default();
        prop_assert!(others.is_sorted(), "after the drawn one, from the nearest on");
        order.sort_unstable();
        let mut expected: Vec<u8> = all.collect();
        expected.sort_unstable();
        expected.dedup();
        prop_assert_eq!(order, expected);
    }
}
