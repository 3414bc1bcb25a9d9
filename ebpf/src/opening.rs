//! Reading the TCP SYN in a received packet.

use culvert_ebpf::{Address, TupleKey};

use crate::{context::Packet, maps::POD_COOKIE};

const ETHERNET_HEADER: u32 = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const IPPROTO_TCP: u8 = 6;
const IPV6_HEADER: u32 = 40;
/// Source and destination address, one behind the other.
const IPV4_ADDRESSES: u32 = ETHERNET_HEADER + 12;
const IPV6_ADDRESSES: u32 = ETHERNET_HEADER + 8;
/// "More fragments" and the fragment offset (RFC 791 §3.1).
const IPV4_FRAGMENT: u16 = 0x3fff;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

/// A connection that a packet opens.
pub struct Opening {
    /// The connection as the receiving side sees it.
    pub key: TupleKey,
    /// Where in the packet the TCP header begins.
    pub tcp_offset: u32,
}

impl Opening {
    /// What the packet opens, if it is a whole, plain TCP SYN.
    #[inline(always)]
    pub fn of(packet: &Packet) -> Option<Self> {
        let ethertype = packet.bytes::<2>(ETHERNET_HEADER - 2)?;
        let (local, remote, tcp_offset) = match u16::from_be_bytes(ethertype) {
            ETHERTYPE_IPV4 => ipv4(packet)?,
            ETHERTYPE_IPV6 => ipv6(packet)?,
            _ => return None,
        };
        let [sport_high, sport_low, dport_high, dport_low] = packet.bytes::<4>(tcp_offset)?;
        let [flags] = packet.bytes::<1>(tcp_offset + 13)?;
        if flags & (TCP_SYN | TCP_ACK) != TCP_SYN {
            return None;
        }
        let key = TupleKey {
            netns_cookie: POD_COOKIE.load(),
            local,
            remote,
            local_port: u16::from_be_bytes([dport_high, dport_low]),
            remote_port: u16::from_be_bytes([sport_high, sport_low]),
            pad: 0,
        };
        Some(Self { key, tcp_offset })
    }

    /// Exchanges the packet's addresses; false if it cannot be written.
    #[inline(always)]
    pub fn exchange_addresses(&self, packet: &Packet) -> bool {
        let [local, remote] = [self.key.local.words_be, self.key.remote.words_be];
        if self.key.local.is_v4() {
            return packet.store(IPV4_ADDRESSES, &[local[3], remote[3]]);
        }
        packet.store(IPV6_ADDRESSES, &[local, remote])
    }
}

/// Local and remote address and the offset of the TCP header.
#[inline(always)]
fn ipv4(packet: &Packet) -> Option<(Address, Address, u32)> {
    let [version_and_length] = packet.bytes::<1>(ETHERNET_HEADER)?;
    let fragment = packet.bytes::<2>(ETHERNET_HEADER + 6)?;
    let [protocol] = packet.bytes::<1>(ETHERNET_HEADER + 9)?;
    if protocol != IPPROTO_TCP || u16::from_be_bytes(fragment) & IPV4_FRAGMENT != 0 {
        return None;
    }
    let remote = u32::from_ne_bytes(packet.bytes::<4>(IPV4_ADDRESSES)?);
    let local = u32::from_ne_bytes(packet.bytes::<4>(IPV4_ADDRESSES + 4)?);
    let header_length = u32::from(version_and_length & 0x0f) * 4;
    Some((
        Address::v4(local),
        Address::v4(remote),
        ETHERNET_HEADER + header_length,
    ))
}

/// As [`ipv4`]; a packet with extension headers is left to `sk_lookup`.
#[inline(always)]
fn ipv6(packet: &Packet) -> Option<(Address, Address, u32)> {
    let [next_header] = packet.bytes::<1>(ETHERNET_HEADER + 6)?;
    if next_header != IPPROTO_TCP {
        return None;
    }
    let remote = ipv6_address(packet, IPV6_ADDRESSES)?;
    let local = ipv6_address(packet, IPV6_ADDRESSES + 16)?;
    Some((local, remote, ETHERNET_HEADER + IPV6_HEADER))
}

#[inline(always)]
fn ipv6_address(packet: &Packet, offset: u32) -> Option<Address> {
    Some(Address {
        words_be: [
            u32::from_ne_bytes(packet.bytes::<4>(offset)?),
            u32::from_ne_bytes(packet.bytes::<4>(offset + 4)?),
            u32::from_ne_bytes(packet.bytes::<4>(offset + 8)?),
            u32::from_ne_bytes(packet.bytes::<4>(offset + 12)?),
        ],
    })
}
