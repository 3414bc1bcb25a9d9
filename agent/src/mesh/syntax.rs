//! The small grammars of Kubernetes and Istio: names, labels, addresses, ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::field::{Faults, FieldPath};

/// Longest DNS label (RFC 1123 §2.1, RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;
/// Longest DNS name.
const MAX_NAME: usize = 253;

/// An RFC 1123 label: namespaces, service names.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !text.is_empty()
        && text.len() <= MAX_LABEL
        && text.bytes().all(|b| inner(b) || b == b'-')
        && text.bytes().next().is_some_and(inner)
        && text.bytes().next_back().is_some_and(inner)
}

/// An RFC 1123 subdomain: most object names.
pub(crate) fn is_dns_name(text: &str) -> bool {
    text.len() <= MAX_NAME && text.split('.').all(is_dns_label)
}

/// A host of a ServiceEntry: a DNS name, possibly with `*` as its first label. Lower case by then.
pub(crate) fn is_host(text: &str) -> bool {
    let plain = text.strip_prefix("*.").unwrap_or(text);
    let label = |label: &str| {
        let inner = label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        !label.is_empty() && label.len() <= MAX_LABEL && inner
    };
    text.len() <= MAX_NAME && plain.split('.').all(label)
}

/// A label value, or the name part of a label key.
fn is_label_text(text: &str) -> bool {
    let edge = |b: u8| b.is_ascii_alphanumeric();
    text.len() <= MAX_LABEL
        && text.bytes().all(|b| edge(b) || b"-_.".contains(&b))
        && text.bytes().next().is_none_or(edge)
        && text.bytes().next_back().is_none_or(edge)
}

/// Checks one `key: value` of labels or of a selector at `path`.
pub(crate) fn check_label(key: &str, value: &str, path: &FieldPath, faults: &mut Faults) {
    let (prefix, name) = key
        .split_once('/')
        .map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if name.is_empty() || !is_label_text(name) || prefix.is_some_and(|prefix| !is_dns_name(prefix))
    {
        let rule =
            "use up to 63 letters, digits, `-`, `_` and `.`, with an optional DNS prefix and `/`";
        faults.add(
            path.join(key),
            format!("`{key}` is not a label key: {rule}"),
        );
    }
    if !is_label_text(value) {
        let rule =
            "use up to 63 letters, digits, `-`, `_` and `.`, first and last a letter or digit";
        faults.add(
            path.join(key),
            format!("`{value}` is not a label value: {rule}"),
        );
    }
}

/// An address, without zone or prefix length.
pub(crate) fn read_address(text: &str, path: FieldPath, faults: &mut Faults) -> Option<IpAddr> {
    let parsed = text
        .parse::<IpAddr>()
        .ok()
        .map(|address| address.to_canonical());
    if parsed.is_none() {
        let example = "write one like 10.1.2.3 or 2001:db8::1";
        faults.add(path, format!("`{text}` is not an IP address: {example}"));
    }
    parsed
}

/// An address or a range, the bits beyond the prefix zeroed as Istio does.
pub(crate) fn read_range(text: &str, path: FieldPath, faults: &mut Faults) -> Option<IpNet> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let parsed = text
        .parse::<IpNet>()
        .or(address)
        .ok()
        .map(|net| net.trunc());
    if parsed.is_none() {
        let example = "write one like 10.1.0.0/16, 10.1.2.3 or 2001:db8::/64";
        faults.add(
            path,
            format!("`{text}` is not an address or CIDR range: {example}"),
        );
    }
    parsed
}

/// A port number in 1-65535.
pub(crate) fn read_port(number: i64, path: FieldPath, faults: &mut Faults) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    if port.is_none() {
        faults.add(path, format!("{number} is not a port: use 1 to 65535"));
    }
    port
}

/// A port number written as text.
pub(crate) fn read_port_text(text: &str, path: FieldPath, faults: &mut Faults) -> Option<u16> {
    let port = text.parse::<u16>().ok().filter(|port| *port != 0);
    if port.is_none() {
        faults.add(
            path,
            format!("`{text}` is not a port: use a number from 1 to 65535"),
        );
    }
    port
}

/// Whether an address can be another host's: not unspecified, loopback or multicast.
pub(crate) fn is_host_address(address: IpAddr) -> bool {
    let special = [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    !(special.contains(&address) || address.is_loopback() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::{check_label, is_dns_label, is_dns_name, is_host};
    use crate::mesh::field::{Faults, at};

    #[test]
    fn names_follow_rfc_1123() {
        for (text, label, name) in [
            ("a", true, true),
            ("a-1", true, true),
            ("a.b", false, true),
            ("", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("A", false, false),
            ("a_b", false, false),
            ("a..b", false, false),
        ] {
            assert_eq!(
                (is_dns_label(text), is_dns_name(text)),
                (label, name),
                "{text}"
            );
        }
        let long = "a".repeat(64);
        assert!(!is_dns_label(&long) && is_dns_label(&long[1..]));
    }

    #[test]
    fn only_the_first_label_of_a_host_may_be_a_wildcard() {
        for (text, expected) in [
            ("api.example.com", true),
            ("*.example.com", true),
            ("*", false),
            ("a.*.com", false),
            ("https://a.com", false),
            ("a.com/", false),
            ("", false),
        ] {
            assert_eq!(is_host(text), expected, "{text}");
        }
    }

    #[test]
    fn labels_follow_kubernetes() {
        for (key, value, expected) in [
            ("app", "reviews", true),
            ("app.kubernetes.io/name", "", true),
            ("app", "a b", false),
            ("app", "-a", false),
            ("a b", "x", false),
            ("/a", "x", false),
            ("B.c/a", "x", false),
        ] {
            let mut faults = Faults::default();
            check_label(key, value, &at![], &mut faults);
            assert_eq!(faults.into_errors().is_empty(), expected, "{key}: {value}");
        }
    }
}
