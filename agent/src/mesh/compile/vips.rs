//! Virtual addresses for ServiceEntry hosts that have none, from the ranges that Istio uses. Every agent
//! computes the same ones without talking to any other: an address follows from the host's name, and among
//! names that collide from their order.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::mesh::meta::ObjectName;

/// First address of 240.240.0.0/16 (Istio's automatic range; class E, so never a real host).
const V4_BASE: u32 = u32::from_be_bytes([240, 240, 0, 0]);
/// First address of `2001:2::/48`.
const V6_BASE: u128 = 0x2001_0002_u128 << 96;
/// Addresses handed out: all of the /16 but its first and last.
const COUNT: u32 = (1 << 16) - 2;

/// A host that wants an address: its ServiceEntry, then its name.
pub(super) type Wanting = (ObjectName, Arc<str>);

/// Gives each host an address of both families. Hosts beyond the range get none.
pub(super) fn allocate(wanting: &BTreeSet<Wanting>) -> BTreeMap<Wanting, [IpAddr; 2]> {
    let mut taken = HashSet::new();
    let mut given = BTreeMap::new();
    for wish in wanting.iter().take(COUNT as usize) {
        let start = hash(wish);
        let free = (0..COUNT)
            .map(|step| (start % COUNT + step) % COUNT)
            .find(|slot| taken.insert(*slot));
        if let Some(slot) = free {
            let host = slot + 1;
            let v4 = IpAddr::V4(Ipv4Addr::from_bits(V4_BASE + host));
            let v6 = IpAddr::V6(Ipv6Addr::from_bits(V6_BASE + u128::from(host)));
            given.insert(wish.clone(), [v4, v6]);
        }
    }
    given
}

/// FNV-1a: must be the same in every agent and every release.
fn hash((name, host): &Wanting) -> u32 {
    let text = [&*name.namespace, "/", &*name.name, "/", &**host];
    let bytes = text.iter().flat_map(|part| part.bytes());
    bytes.fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::{Wanting, allocate};
    use crate::mesh::meta::ObjectName;

    fn wish(number: usize) -> Wanting {
        let name = ObjectName {
            namespace: "a".into(),
            name: format!("e{number}").into(),
        };
        (name, "api.example.com".into())
    }

    #[test]
    fn addresses_are_distinct_and_follow_from_names() {
        let many: BTreeSet<_> = (0..5000).map(wish).collect();
        let given = allocate(&many);
        let distinct: HashSet<_> = given.values().flatten().collect();
        assert_eq!((given.len(), distinct.len()), (5000, 10_000));
        assert!(given.values().all(|[v4, v6]| {
            v4.to_string().starts_with("240.240.") && v6.to_string().starts_with("2001:2:")
        }));
        let alone = BTreeSet::from([wish(7)]);
        assert_eq!(allocate(&alone), allocate(&alone));
    }

    #[test]
    fn a_known_name_keeps_its_address_across_releases() {
        let given = allocate(&BTreeSet::from([wish(7)]));
        let texts: Vec<_> = given.values().flatten().map(ToString::to_string).collect();
        assert_eq!(texts, ["240.240.206.212", "2001:2::ced4"]);
    }
}
