//! Pure: the packets by which a held connection is let go, refused, or told that nobody is there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_ICMPV6: u8 = 58;

/// Hops that a packet may take: it takes none.
const HOP_LIMIT: u8 = 64;

/// RST and ACK (RFC 9293 §3.1).
const TCP_RST_ACK: u8 = 0x14;
/// "Length of the TCP header in 32-bit words" of a header without options, in the upper four bits.
const TCP_NO_OPTIONS: u8 = 5 << 4;

/// Why a destination cannot be reached: what a router on the way would say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// `EHOSTUNREACH`
    Host,
    /// `ENETUNREACH`
    Network,
}

/// The SYN of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Syn<'a> {
    /// Who opens the connection.
    pub(super) source: SocketAddr,
    /// To whom; of the same family.
    pub(super) destination: SocketAddr,
    /// The TCP header with its options, 20 to 60 bytes.
    pub(super) header: &'a [u8],
}

impl Syn<'_> {
    /// The same SYN once more, as a whole IP packet. Data that came with it is left out: the server then
    /// acknowledges the SYN alone, and the client sends the data again (RFC 7413 §3.1).
    pub(super) fn again(&self) -> Option<Vec<u8>> {
        packet(
            (self.source.ip(), self.destination.ip()),
            IPPROTO_TCP,
            &with_checksum(self.header, TCP_CHECKSUM, self.pseudo_header(IPPROTO_TCP)?),
        )
    }

    /// The destination's refusal: `connect` fails with `ECONNREFUSED`.
    pub(super) fn refusal(&self) -> Option<Vec<u8>> {
        let sequence = u32::from_be_bytes(self.header.get(4..8)?.try_into().ok()?);
        // "If the ACK bit is off, sequence number zero is used, <SEQ=0><ACK=SEG.SEQ+SEG.LEN>" (RFC 9293
        // §3.10.7.1); the SYN counts as one.
        let acknowledged = sequence.wrapping_add(1);
        let mut header = Vec::with_capacity(20);
        header.extend(self.destination.port().to_be_bytes());
        header.extend(self.source.port().to_be_bytes());
        header.extend(0_u32.to_be_bytes());
        header.extend(acknowledged.to_be_bytes());
        header.extend([TCP_NO_OPTIONS, TCP_RST_ACK]);
        // Window, checksum, urgent pointer.
        header.extend([0; 6]);
        let segment = with_checksum(&header, TCP_CHECKSUM, self.pseudo_header(IPPROTO_TCP)?);
        packet(
            (self.destination.ip(), self.source.ip()),
            IPPROTO_TCP,
            &segment,
        )
    }

    /// What the pod's own kernel says when nobody answers for the address, quoting the SYN.
    pub(super) fn unreachable(&self, why: Unreachable) -> Option<Vec<u8>> {
        let own = self.source.ip();
        let (protocol, kind, code) = match (own, why) {
            // RFC 792: 0 = net unreachable; 1 = host unreachable.
            (IpAddr::V4(_), Unreachable::Network) => (IPPROTO_ICMP, 3, 0),
            (IpAddr::V4(_), Unreachable::Host) => (IPPROTO_ICMP, 3, 1),
            // RFC 4443 §3.1: 0 - No route to destination; 3 - Address unreachable.
            (IpAddr::V6(_), Unreachable::Network) => (IPPROTO_ICMPV6, 1, 0),
            (IpAddr::V6(_), Unreachable::Host) => (IPPROTO_ICMPV6, 1, 3),
        };
        // Type, code, checksum, and four unused bytes.
        let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
        message.extend(self.again()?);
        let pseudo_header = match own {
            IpAddr::V4(_) => 0,
            IpAddr::V6(_) => pseudo_header(own, own, protocol)?,
        };
        packet(
            (own, own),
            protocol,
            &with_checksum(&message, ICMP_CHECKSUM, pseudo_header),
        )
    }

    fn pseudo_header(&self, protocol: u8) -> Option<u64> {
        pseudo_header(self.source.ip(), self.destination.ip(), protocol)
    }
}

/// Where the checksum stands in the headers.
const TCP_CHECKSUM: usize = 16;
const ICMP_CHECKSUM: usize = 2;

/// The addresses' and the protocol's part of a checksum (RFC 9293 §3.1, RFC 8200 §8.1); the length's part
/// is added with the segment. `None` for addresses of different families.
fn pseudo_header(one: IpAddr, other: IpAddr, protocol: u8) -> Option<u64> {
    let addresses = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => sum(&one.octets()) + sum(&other.octets()),
        (IpAddr::V6(one), IpAddr::V6(other)) => sum(&one.octets()) + sum(&other.octets()),
        _ => return None,
    };
    Some(addresses + u64::from(protocol))
}

fn with_checksum(segment: &[u8], at: usize, pseudo_header: u64) -> Vec<u8> {
    let mut segment = segment.to_vec();
    let field = |segment: &mut Vec<u8>, value: u16| {
        for (to, from) in segment.iter_mut().skip(at).zip(value.to_be_bytes()) {
            *to = from;
        }
    };
    field(&mut segment, 0);
    // ICMP for IPv4 has no pseudo header at all, so no length either.
    let length = if pseudo_header == 0 {
        0
    } else {
        segment.len() as u64
    };
    let checksum = fold(pseudo_header + length + sum(&segment));
    field(&mut segment, checksum);
    segment
}

/// The sum of 16-bit words, an odd byte padded with a zero behind (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let words: u64 = pairs
        .iter()
        .map(|pair| u64::from(u16::from_be_bytes(*pair)))
        .sum();
    words + rest.first().map_or(0, |byte| u64::from(*byte) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits above")]
    let folded = sum as u16;
    !folded
}

/// A whole IP packet; `None` if addresses of two families are to be mixed, or the payload is too long.
fn packet((from, to): (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, protocol, payload.len())?,
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, protocol, payload.len())?,
        _ => return None,
    };
    packet.extend(payload);
    Some(packet)
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: usize) -> Option<Vec<u8>> {
    let length = u16::try_from(20 + payload).ok()?;
    // Version and header length, type of service.
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    // Identification, and "do not fragment": a packet that is never fragmented needs no identification.
    header.extend([0, 0, 0x40, 0]);
    // The checksum; a quoted header is expected to have one (a sent one the kernel computes).
    header.extend([HOP_LIMIT, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let checksum = fold(sum(&header));
    for (to, from) in header.iter_mut().skip(10).zip(checksum.to_be_bytes()) {
        *to = from;
    }
    Some(header)
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: usize) -> Option<Vec<u8>> {
    let length = u16::try_from(payload).ok()?;
    // Version, traffic class, flow label.
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(length.to_be_bytes());
    header.extend([protocol, HOP_LIMIT]);
    header.extend(from.octets());
    header.extend(to.octets());
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ports 40000 and 443, sequence 0x01020304, SYN, with an MSS option; a wrong checksum, as on lo.
    const HEADER: [u8; 24] = [
        0x9c, 0x40, 0x01, 0xbb, 1, 2, 3, 4, 0, 0, 0, 0, 0x60, 0x02, 0xff, 0xff, 0xaa, 0xbb, 0, 0,
        2, 4, 5, 0xb4,
    ];

    const PAIRS: [(&str, &str); 2] = [
        ("10.1.2.3:40000", "203.0.113.9:443"),
        ("[fd00::1]:40000", "[2001:db8::9]:443"),
    ];

    fn syn((source, destination): (&str, &str)) -> Syn<'static> {
        Syn {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            header: &HEADER,
        }
    }

    /// Splits a packet into its addresses and its payload, whose checksums must be right.
    #[track_caller]
    fn opened(packet: &[u8]) -> (IpAddr, IpAddr, &[u8]) {
        if packet[0] >> 4 == 4 {
            assert_eq!(
                usize::from(u16::from_be_bytes([packet[2], packet[3]])),
                packet.len()
            );
            assert_eq!(fold(sum(&packet[..20])), 0, "the header's checksum");
            let [from, to] = [12, 16].map(|at| {
                let octets: [u8; 4] = packet[at..at + 4].try_into().unwrap();
                IpAddr::from(octets)
            });
            let payload = &packet[20..];
            let pseudo = match packet[9] {
                IPPROTO_ICMP => 0,
                protocol => pseudo_header(from, to, protocol).unwrap() + payload.len() as u64,
            };
            assert_eq!(fold(pseudo + sum(payload)), 0, "the payload's checksum");
            (from, to, payload)
        } else {
            let payload = &packet[40..];
            assert_eq!(
                usize::from(u16::from_be_bytes([packet[4], packet[5]])),
                payload.len()
            );
            let [from, to] = [8, 24].map(|at| {
                let octets: [u8; 16] = packet[at..at + 16].try_into().unwrap();
                IpAddr::from(octets)
            });
            let pseudo = pseudo_header(from, to, packet[6]).unwrap() + payload.len() as u64;
            assert_eq!(fold(pseudo + sum(payload)), 0, "the payload's checksum");
            (from, to, payload)
        }
    }

    #[test]
    fn a_syn_goes_out_again_with_a_checksum_of_its_own() {
        for pair in PAIRS {
            let syn = syn(pair);
            let packet = syn.again().unwrap();
            let (from, to, segment) = opened(&packet);
            assert_eq!((from, to), (syn.source.ip(), syn.destination.ip()));
            assert_eq!(segment[..16], HEADER[..16]);
            assert_eq!(segment[18..], HEADER[18..]);
        }
    }

    #[test]
    fn a_refusal_comes_from_the_destination_and_acknowledges_the_syn() {
        for pair in PAIRS {
            let syn = syn(pair);
            let packet = syn.refusal().unwrap();
            let (from, to, segment) = opened(&packet);
            assert_eq!((from, to), (syn.destination.ip(), syn.source.ip()));
            assert_eq!(segment[..4], [0x01, 0xbb, 0x9c, 0x40]);
            assert_eq!(segment[4..12], [0, 0, 0, 0, 1, 2, 3, 5]);
            assert_eq!(segment[12..14], [0x50, 0x14]);
        }
    }

    #[test]
    fn an_unreachable_destination_is_reported_by_the_pods_own_kernel() {
        let table = [
            (Unreachable::Network, [3, 0], [1, 0]),
            (Unreachable::Host, [3, 1], [1, 3]),
        ];
        for (why, v4, v6) in table {
            for (pair, expected) in PAIRS.into_iter().zip([v4, v6]) {
                let syn = syn(pair);
                let packet = syn.unreachable(why).unwrap();
                let (from, to, message) = opened(&packet);
                assert_eq!((from, to), (syn.source.ip(), syn.source.ip()));
                assert_eq!(message[..2], expected, "{why:?}");
                assert_eq!(message[8..], syn.again().unwrap(), "it quotes the SYN");
            }
        }
    }

    #[test]
    fn families_do_not_mix() {
        let mixed = syn(("10.1.2.3:1", "[fd00::1]:2"));
        assert_eq!(mixed.again(), None);
        assert_eq!(mixed.refusal(), None);
        assert_eq!(mixed.unreachable(Unreachable::Host), None);
    }
}
