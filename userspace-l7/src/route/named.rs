//! Names that clients of a wildcard ask for (ServiceEntry with `resolution: DYNAMIC_DNS`), and the addresses that these
//! may lead to. Pure: who looks names up is elsewhere.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use super::{MAX_ATTEMPTS, RACERS, Target};
use crate::model::Snapshot;

/// As long as a name may be in its text form (RFC 1035 §2.3.4, without the length octets at either end).
const LONGEST: usize = 253;
/// As long as one of its labels may be.
const LONGEST_LABEL: usize = 63;

/// Where EC2 serves an instance's metadata in IPv6: the one such place that is not link-local.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// What gateways of IPv6-only networks make IPv4 addresses of (RFC 6052 §2.1): 96 bits, then the address.
const NAT64: [u8; 12] = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];

/// A DNS name that a wildcard stands for, in the one form in which it is looked up: lower case, no last dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// What a request's authority, or the server name in TLS, means among the names that `wildcard` stands for (`*.` and
    /// a name in lower case). `None`: it is none of them. The port that an authority may carry says nothing: the entry's
    /// own is the one that counts.
    pub fn asked_for(wildcard: &str, authority: &str) -> Option<Self> {
        let host = match authority.rsplit_once(':') {
            None => authority,
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            Some(_) => return None,
        };
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let within = wildcard.strip_prefix('*')?;
        let is_below = within.starts_with('.') && host.len() > within.len();
        let is_name = host.len() <= LONGEST && host.split('.').all(is_label);
        (is_below && is_name && host.ends_with(within)).then(|| Self(host.into()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Underscores are in no host's name by the book, and in many that are in use.
fn is_label(label: &str) -> bool {
    let is_part = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
    };
    (1..=LONGEST_LABEL).contains(&label.len()) && label.bytes().all(is_part)
}

/// Why nobody is connected to an address that a name leads to. Whoever answers for a name is not who wrote the entry:
/// it must open no way to what is behind this node, or past what the mesh demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// The client itself.
    #[error("a loopback address")]
    Loopback,
    /// Nobody.
    #[error("an address of no host")]
    NoHost,
    /// Many.
    #[error("a multicast address")]
    Multicast,
    /// Neighbours only, as the metadata of cloud providers' machines.
    #[error("a link-local address or one of instance metadata")]
    LinkLocal,
    /// Somebody who is reached, and judged, by another way.
    #[error("an address that the mesh knows by another name")]
    Mesh,
}

/// Whether a name may lead clients of a namespace to an address.
///
/// # Errors
/// [`Forbidden`].
pub fn permit(snapshot: &Snapshot, namespace: &str, address: IpAddr) -> Result<(), Forbidden> {
    let address = address.to_canonical();
    let is_known = || {
        snapshot.workload_at(address).is_some() || snapshot.service_at(address, namespace).is_some()
    };
    match special(address) {
        Some(why) => Err(why),
        None if is_known() => Err(Forbidden::Mesh),
        None => Ok(()),
    }
}

fn special(address: IpAddr) -> Option<Forbidden> {
    match address {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) if v6.is_loopback() => Some(Forbidden::Loopback),
        IpAddr::V6(v6) if v6.is_unspecified() => Some(Forbidden::NoHost),
        IpAddr::V6(v6) if v6.is_multicast() => Some(Forbidden::Multicast),
        IpAddr::V6(v6) if v6.is_unicast_link_local() || v6 == METADATA => {
            Some(Forbidden::LinkLocal)
        }
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            let embedded = octets.strip_prefix(&NAT64)?;
            special_v4(Ipv4Addr::from(<[u8; 4]>::try_from(embedded).ok()?))
        }
    }
}

fn special_v4(address: Ipv4Addr) -> Option<Forbidden> {
    match address.octets()[0] {
        127 => Some(Forbidden::Loopback),
        // "This host on this network" (RFC 1122 §3.2.1.3), and what is reserved, the broadcast address among it.
        0 | 240.. => Some(Forbidden::NoHost),
        224..240 => Some(Forbidden::Multicast),
        _ if address.is_link_local() => Some(Forbidden::LinkLocal),
        _ => None,
    }
}

/// Of the addresses that a name leads to those that are dialled: one family, IPv4 if there is one, as most nodes have no
/// other way out of their cluster; both where they race. In the order that they came in.
///
/// # Errors
/// The first that is forbidden, if all are.
pub fn places(
    snapshot: &Snapshot,
    namespace: &str,
    found: &[IpAddr],
    is_raced: bool,
) -> Result<Vec<IpAddr>, (IpAddr, Forbidden)> {
    let mut refused = None;
    let mut places = Vec::with_capacity(found.len());
    for address in found {
        match permit(snapshot, namespace, *address) {
            Ok(()) => places.push(address.to_canonical()),
            Err(why) => refused = refused.or(Some((*address, why))),
        }
    }
    if let Some(refused) = refused.filter(|_| places.is_empty()) {
        return Err(refused);
    }
    if !is_raced && places.iter().any(IpAddr::is_ipv4) {
        places.retain(IpAddr::is_ipv4);
    }
    Ok(places)
}

/// How these are reached, in the order to try them.
pub fn targets(places: &[IpAddr], port: u16, is_raced: bool) -> SmallVec<[Target; MAX_ATTEMPTS]> {
    let addresses = places.iter().map(|place| SocketAddr::new(*place, port));
    if !is_raced {
        return addresses.take(MAX_ATTEMPTS).map(Target::outside).collect();
    }
    let mut racers = addresses.take(RACERS);
    let first = racers.next();
    let all = first.map(|first| Target {
        rivals: racers.collect(),
        ..Target::outside(first)
    });
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use proptest::prelude::*;

    use super::{Forbidden, LONGEST, Name, places, targets};
    use crate::model::{MeshSettings, Snapshot, TrustDomain};

    const WILDCARD: &str = "*.wild.example";

    #[track_caller]
    fn check(authority: &str, expected: Option<&str>) {
        let name = Name::asked_for(WILDCARD, authority);
        assert_eq!(name.as_ref().map(Name::as_str), expected, "{authority:?}");
    }

    #[test]
    fn names_below_the_wildcard_are_read_in_one_form() {
        for spelling in [
            "a.wild.example",
            "A.Wild.EXAMPLE",
            "a.wild.example.",
            "a.wild.example:8443",
            "a.wild.example.:80",
            "a.wild.example:",
        ] {
            check(spelling, Some("a.wild.example"));
        }
        check("a.b.wild.example", Some("a.b.wild.example"));
        check("_x.wild.example", Some("_x.wild.example"));
    }

    #[test]
    fn everything_else_is_none_of_them() {
        for other in [
            "",
            ".",
            ":80",
            "wild.example",
            ".wild.example",
            "..wild.example",
            "a..wild.example",
            "a.wild.example..",
            "awild.example",
            "a.wild.example.org",
            "a.wild.example:80:80",
            "a.wild.example:x",
            "*.wild.example",
            "a b.wild.example",
            "a%2ewild.example",
            "u@a.wild.example",
            "127.0.0.1",
            "[::1]:80",
            "ä.wild.example",
        ] {
            check(other, None);
        }
        let label = "x".repeat(64);
        check(&format!("{label}.wild.example"), None);
        check(&format!("{}.wild.example", "x.".repeat(LONGEST / 2)), None);
        // What stands for nothing stands for no name.
        for none in ["wild.example", "*", "*wild.example", ""] {
            assert_eq!(Name::asked_for(none, "a.wild.example"), None, "{none:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_below_the_wildcard_and_reads_as_itself(text in "[ -~ä]{0,80}") {
            for authority in [text.clone(), format!("{text}.wild.example")] {
                if let Some(name) = Name::asked_for(WILDCARD, &authority) {
                    prop_assert!(name.as_str().ends_with(".wild.example"));
                    prop_assert_eq!(Name::asked_for(WILDCARD, name.as_str()), Some(name));
                }
            }
        }
    }

    fn mesh() -> Snapshot {
        let mut snapshot = Snapshot::empty(MeshSettings {
            trust_domain: TrustDomain::new("td").unwrap(),
            cluster_domain: "cluster.local".into(),
            cluster: "k".into(),
            network: "".into(),
        });
        let pod = crate::route::tests::workload("pod", "10.0.0.7");
        let pod = std::sync::Arc::new(pod);
        snapshot
            .workloads_by_address
            .insert("10.0.0.7".parse().unwrap(), pod);
        snapshot
    }

    #[track_caller]
    fn check_address(address: &str, expected: Option<Forbidden>) {
        let address: IpAddr = address.parse().unwrap();
        let found = places(&mesh(), "app", &[address], false);
        let expected = match expected {
            None => Ok(vec![address.to_canonical()]),
            Some(why) => Err((address, why)),
        };
        assert_eq!(found, expected, "{address}");
    }

    #[test]
    fn no_name_leads_to_the_node_its_neighbours_or_the_mesh() {
        for (address, expected) in [
            ("198.51.100.1", None),
            ("10.0.0.8", None),
            ("2001:db8::1", None),
            ("fd00::1", None),
            ("64:ff9b::198.51.100.1", None),
            ("127.0.0.1", Some(Forbidden::Loopback)),
            ("127.9.9.9", Some(Forbidden::Loopback)),
            ("::1", Some(Forbidden::Loopback)),
            ("::ffff:127.0.0.1", Some(Forbidden::Loopback)),
            ("64:ff9b::127.0.0.1", Some(Forbidden::Loopback)),
            ("0.0.0.0", Some(Forbidden::NoHost)),
            ("0.1.2.3", Some(Forbidden::NoHost)),
            ("::", Some(Forbidden::NoHost)),
            ("240.240.0.1", Some(Forbidden::NoHost)),
            ("255.255.255.255", Some(Forbidden::NoHost)),
            ("224.0.0.1", Some(Forbidden::Multicast)),
            ("239.255.255.255", Some(Forbidden::Multicast)),
            ("ff02::1", Some(Forbidden::Multicast)),
            ("169.254.169.254", Some(Forbidden::LinkLocal)),
            ("64:ff9b::169.254.169.254", Some(Forbidden::LinkLocal)),
            ("fe80::1", Some(Forbidden::LinkLocal)),
            ("fd00:ec2::254", Some(Forbidden::LinkLocal)),
            ("10.0.0.7", Some(Forbidden::Mesh)),
            ("::ffff:10.0.0.7", Some(Forbidden::Mesh)),
        ] {
            check_address(address, expected);
        }
    }

    #[test]
    fn of_several_addresses_those_are_dialled_that_may_be() {
        let read = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let all = read(&["2001:db8::1", "127.0.0.1", "198.51.100.2", "198.51.100.1"]);
        let mesh = mesh();
        assert_eq!(
            places(&mesh, "app", &all, false),
            Ok(read(&["198.51.100.2", "198.51.100.1"]))
        );
        assert_eq!(
            places(&mesh, "app", &all, true),
            Ok(read(&["2001:db8::1", "198.51.100.2", "198.51.100.1"]))
        );
        assert_eq!(
            places(&mesh, "app", &read(&["2001:db8::1"]), false),
            Ok(read(&["2001:db8::1"]))
        );
        assert_eq!(places(&mesh, "app", &[], false), Ok(vec![]));
    }

    #[test]
    fn places_are_tried_in_turn_or_race() {
        let places: Vec<IpAddr> = (1..=20).map(|host| [192, 0, 2, host].into()).collect();
        let shown = |count: usize, is_raced: bool| -> Vec<(SocketAddr, usize)> {
            let targets = targets(&places[..count], 80, is_raced);
            let targets = targets.iter();
            targets
                .map(|one| (one.destination, one.rivals.len()))
                .collect()
        };
        let at = |host: u8| SocketAddr::from(([192, 0, 2, host], 80));
        assert_eq!(shown(0, false), []);
        assert_eq!(shown(2, false), [(at(1), 0), (at(2), 0)]);
        assert_eq!(shown(20, false), [(at(1), 0), (at(2), 0), (at(3), 0)]);
        assert_eq!(shown(0, true), []);
        assert_eq!(shown(1, true), [(at(1), 0)]);
        assert_eq!(shown(2, true), [(at(1), 1)]);
        assert_eq!(shown(20, true), [(at(1), 7)]);
    }
}
