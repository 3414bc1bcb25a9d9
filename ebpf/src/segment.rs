//! Reading the TCP header of a received packet, and the SYN above all.

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

/// What every packet that may be one has: the Ethernet header, and an IPv4 header or half of an IPv6 one.
type Head = [u8; 34];
/// Where the latter begin in it.
const IP: usize = ETHERNET_HEADER as usize;
/// A TCP header up to its flags.
type TcpHead = [u8; 14];

/// A whole TCP segment, as the packet's headers tell.
pub struct Segment {
    head: Head,
    tcp: TcpHead,
    is_v4: bool,
    /// Where in the packet the TCP header begins.
    tcp_offset: u32,
}

impl Segment {
    /// The segment that the packet is, if it is not a part of one. Every packet that a pod receives is asked: what tells is
    /// read by as few calls as there can be.
    #[inline(always)]
    pub fn of(packet: &Packet) -> Option<Self> {
        let head: Head = packet.bytes(0)?;
        let is_v4 = match u16::from_be_bytes([head[IP - 2], head[IP - 1]]) {
            ETHERTYPE_IPV4 => true,
            ETHERTYPE_IPV6 => false,
            _ => return None,
        };
        let tcp_offset = if is_v4 {
            behind_ipv4(&head)?
        } else {
            behind_ipv6(&head)?
        };
        Some(Self {
            head,
            tcp: packet.bytes(tcp_offset)?,
            is_v4,
            tcp_offset,
        })
    }

    /// Whether it opens a connection.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.tcp[13] & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// The connection as the receiving side sees it.
    #[inline(always)]
    pub fn key(&self, packet: &Packet) -> Option<TupleKey> {
        let (remote, local) = if self.is_v4 {
            let address = |at| Address::v4(word(&self.head, at));
            (address(IP + 12), address(IP + 16))
        } else {
            let addresses: [u8; 32] = packet.bytes(IPV6_ADDRESSES)?;
            let address = |at| Address {
                words_be: [
                    word(&addresses, at),
                    word(&addresses, at + 4),
                    word(&addresses, at + 8),
                    word(&addresses, at + 12),
                ],
            };
            (address(0), address(16))
        };
        Some(TupleKey {
            netns_cookie: POD_COOKIE.load(),
            local,
            remote,
            local_port: u16::from_be_bytes([self.tcp[2], self.tcp[3]]),
            remote_port: u16::from_be_bytes([self.tcp[0], self.tcp[1]]),
            pad: 0,
        })
    }

    /// What it opens.
    #[inline(always)]
    pub fn opening(&self, packet: &Packet) -> Option<Opening> {
        Some(Opening {
            key: self.key(packet)?,
            tcp_offset: self.tcp_offset,
        })
    }
}

/// A connection that a packet opens.
pub struct Opening {
    /// The connection as the receiving side sees it.
    pub key: TupleKey,
    /// Where in the packet the TCP header begins.
    pub tcp_offset: u32,
}

impl Opening {
    /// What the packet opens, if it is a whole, plain TCP SYN; hardly any packet is.
    #[inline(always)]
    pub fn of(packet: &Packet) -> Option<Self> {
        let segment = Segment::of(packet)?;
        if !segment.opens() {
            return None;
        }
        segment.opening(packet)
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

/// Where the TCP header begins, if one does.
#[inline(always)]
fn behind_ipv4(head: &Head) -> Option<u32> {
    let fragment = u16::from_be_bytes([head[IP + 6], head[IP + 7]]);
    if head[IP + 9] != IPPROTO_TCP || fragment & IPV4_FRAGMENT != 0 {
        return None;
    }
    Some(ETHERNET_HEADER + u32::from(head[IP] & 0x0f) * 4)
}

/// As [`behind_ipv4`]; a packet with extension headers is left to `sk_lookup`.
#[inline(always)]
fn behind_ipv6(head: &Head) -> Option<u32> {
    (head[IP + 6] == IPPROTO_TCP).then_some(ETHERNET_HEADER + IPV6_HEADER)
}

/// Four bytes as they lie in the packet.
#[inline(always)]
fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
