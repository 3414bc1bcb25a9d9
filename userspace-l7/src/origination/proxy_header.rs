//! The PROXY protocol's header (HAProxy's `proxy-protocol.txt`, §2.1 and §2.2). Pure.

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

/// The header of a connection with these ends. Where there is no client it says that the connection is the proxy's own.
pub(super) fn write(version: ProxyProtocol, ends: Ends) -> Vec<u8> {
    let pair = ends.client.map(|client| of_one_family(client, ends.server));
    match version {
        ProxyProtocol::V1 => text(pair),
        ProxyProtocol::V2 => binary(pair),
    }
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

fn binary(pair: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
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
    // 12 or 36.
    let length = u16::try_from(addresses.len()).unwrap_or_default();
    header.extend(length.to_be_bytes());
    header.extend(addresses);
    header
}

#[cfg(test)]
mod tests {
    use super::{Ends, ProxyProtocol, SIGNATURE, write};

    fn ends(client: Option<&str>, server: &str) -> Ends {
        Ends {
            client: client.map(|client| client.parse().unwrap()),
            server: server.parse().unwrap(),
        }
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
}
