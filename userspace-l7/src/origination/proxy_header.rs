//! The PROXY protocol's header (HAProxy's `proxy-protocol.txt`, §2.1 and §2.2), with what Istio's waypoints read behind the
//! addresses of a binary one. Pure.

use std::net::{IpAddr, SocketAddr};

use super::Ends;
use crate::model::ProxyProtocol;

/// What begins each header of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2 with the command LOCAL, and with PROXY.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
/// TCP over IPv4, and over IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
/// Who the client has proven to be, as a SPIFFE ID; and the hostname of what it called (Istio's own kinds of "TLV", in the
/// range for those, §2.2.8).
const IDENTITY: u8 = 0xd0;
const HOSTNAME: u8 = 0xd1;

/// The header of a connection with these ends. Where there is no client it says that the connection is the proxy's own.
/// Names are told in binary only.
pub(super) fn write(version: ProxyProtocol, ends: Ends<'_>) -> Vec<u8> {
    let pair = ends.client.map(|client| of_one_family(client, ends.server));
    match version {
        ProxyProtocol::V1 => text(pair),
        ProxyProtocol::V2 => binary(pair, &names(ends)),
    }
}

/// What is told besides the addresses.
fn names(ends: Ends<'_>) -> Vec<u8> {
    let identity = ends.identity.map(ToString::to_string);
    let told = [(IDENTITY, identity.as_deref()), (HOSTNAME, ends.hostname)];
    let mut names = Vec::new();
    for (kind, text) in told {
        // Neither a SPIFFE ID (2048 bytes) nor a hostname (253) is too long for it.
        let sized = text.and_then(|text| Some((text, u16::try_from(text.len()).ok()?)));
        if let Some((text, length)) = sized {
            names.push(kind);
            names.extend(length.to_be_bytes());
            names.extend(text.as_bytes());
        }
    }
    names
}

/// Both addresses in one family, as a header has them: that of IPv4 if both have it.
fn of_one_family(client: SocketAddr, server: SocketAddr) -> (SocketAddr, SocketAddr) {
    let canonical = |one: SocketAddr| SocketAddr::new(one.ip().to_canonical(), one.port());
    let (client, server) = (canonical(client), canonical(server));
    if client.is_ipv4() == server.is_ipv4() {
        return (client, server);
    }
    let mapped = |one: SocketAddr| match one.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), one.port()),
        IpAddr::V6(_) => one,
    };
    (mapped(client), mapped(server))
}

fn text(pair: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let Some((client, server)) = pair else {
        return b"PROXY UNKNOWN\r\n".to_vec();
    };
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (client.ip(), server.ip());
    let line = format!(
        "PROXY {family} {from} {to} {} {}\r\n",
        client.port(),
        server.port()
    );
    line.into_bytes()
}

fn binary(pair: Option<(SocketAddr, SocketAddr)>, names: &[u8]) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    let Some((client, server)) = pair else {
        header.extend([LOCAL, 0, 0, 0]);
        return header;
    };
    let mut addresses = Vec::with_capacity(36);
    for one in [client, server] {
        match one.ip() {
            IpAddr::V4(v4) => addresses.extend(v4.octets()),
            IpAddr::V6(v6) => addresses.extend(v6.octets()),
        }
    }
    addresses.extend(client.port().to_be_bytes());
    addresses.extend(server.port().to_be_bytes());
    header.push(PROXY);
    header.push(if client.is_ipv4() { TCP4 } else { TCP6 });
    // 12 or 36, and at most 2307.
    let length = u16::try_from(addresses.len() + names.len()).unwrap_or_default();
    header.extend(length.to_be_bytes());
    header.extend(addresses);
    header.extend(names);
    header
}

#[cfg(test)]
mod tests {
    use super::{Ends, ProxyProtocol, SIGNATURE, write};

    fn ends(client: Option<&str>, server: &str) -> Ends<'static> {
        let client = client.map(|client| client.parse().unwrap());
        Ends::of(client, server.parse().unwrap())
    }

    #[test]
    fn a_line_of_text_names_both_ends() {
        for (client, server, expected) in [
            (
                Some("10.0.0.1:4000"),
                "10.0.0.2:80",
                "PROXY TCP4 10.0.0.1 10.0.0.2 4000 80\r\n",
            ),
            (
                Some("[::ffff:10.0.0.1]:4000"),
                "10.0.0.2:80",
                "PROXY TCP4 10.0.0.1 10.0.0.2 4000 80\r\n",
            ),
            (
                Some("[fd00::1]:4000"),
                "[fd00::2]:80",
                "PROXY TCP6 fd00::1 fd00::2 4000 80\r\n",
            ),
            (
                Some("10.0.0.1:4000"),
                "[fd00::2]:80",
                "PROXY TCP6 ::ffff:10.0.0.1 fd00::2 4000 80\r\n",
            ),
            (None, "10.0.0.2:80", "PROXY UNKNOWN\r\n"),
        ] {
            let header = write(ProxyProtocol::V1, ends(client, server));
            assert_eq!(String::from_utf8(header).unwrap(), expected);
        }
    }

    #[test]
    fn the_binary_header_has_its_length_and_addresses_in_network_order() {
        let header = write(ProxyProtocol::V2, ends(Some("10.0.0.1:258"), "10.0.0.2:80"));
        let (signature, rest) = header.split_at(12);
        assert_eq!(signature, SIGNATURE);
        let expected = [0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 0, 80];
        assert_eq!(rest, expected);
        let v6 = write(ProxyProtocol::V2, ends(Some("[fd00::1]:1"), "[fd00::2]:2"));
        assert_eq!((v6.len(), &v6[12..16]), (52, &[0x21, 0x21, 0, 36][..]));
        let own = write(ProxyProtocol::V2, ends(None, "10.0.0.2:80"));
        assert_eq!(&own[12..], [0x20, 0, 0, 0]);
    }

    #[test]
    fn names_follow_the_addresses_each_with_its_kind_and_length() {
        let identity = "spiffe://td/ns/n/sa/a".parse().unwrap();
        let named = Ends {
            identity: Some(&identity),
            hostname: Some("a.n"),
            ..ends(Some("10.0.0.1:258"), "10.0.0.2:80")
        };
        let header = write(ProxyProtocol::V2, named);
        let expected = [
            &[0x21, 0x11, 0, 12 + 24 + 6][..],
            &[10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 0, 80],
            &[0xd0, 0, 21],
            b"spiffe://td/ns/n/sa/a",
            &[0xd1, 0, 3],
            b"a.n",
        ];
        assert_eq!(&header[12..], expected.concat());
        let text = write(ProxyProtocol::V1, named);
        assert_eq!(text, b"PROXY TCP4 10.0.0.1 10.0.0.2 258 80\r\n");
    }
}
