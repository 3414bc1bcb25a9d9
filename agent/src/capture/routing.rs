//! Policy routing inside a pod, through rtnetlink: what makes marked packets loop back.
//!
//! Per family one rule sends marked packets to a table whose only route is local, and a second rule
//! behind it makes them unreachable. The second closes every gap of the first: a route that someone
//! deleted or that went away with `lo`, a family without addresses. What no rule sees, the program on the pod's
//! devices drops.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use culvert_ebpf::{MARK_MASK, MARK_OUTBOUND};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, Inet6DevConf, LinkAttribute, LinkFlags, LinkLayerType,
        LinkMessage,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The table with the local route. Any number outside the reserved ones (253 to 255) would do.
const TABLE: u32 = 15001;
/// Priorities of the two rules: behind the local table (0), before everything that could route a
/// marked packet out of the pod.
const LOOP_PRIORITY: u32 = 10;
const BACKSTOP_PRIORITY: u32 = 11;

/// The room for one datagram of a dump: the kernel never sends more than 32 KiB at once.
const DUMP_BYTES: usize = 32 * 1024;

/// One IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// Both families.
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    fn netlink(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

/// A network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Device {
    pub(crate) index: u32,
}

/// What a network namespace holds of what capture needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Routing {
    /// The device `lo`.
    pub(crate) loopback: Option<Device>,
    /// Whether `lo` is up.
    pub(crate) loopback_up: bool,
    /// Families whose loop rule is there.
    pub(crate) loop_rules: Vec<Family>,
    /// Families whose backstop rule is there.
    pub(crate) backstop_rules: Vec<Family>,
    /// Families whose local route is there.
    pub(crate) routes: Vec<Family>,
    /// Addresses of devices other than `lo`.
    pub(crate) addresses: Vec<IpAddr>,
    /// Devices that receive Ethernet frames.
    pub(crate) devices: Vec<Device>,
    /// Families that the kernel has.
    pub(crate) supported: Vec<Family>,
    /// Families in which a route through `lo` can exist.
    pub(crate) routable: Vec<Family>,
}

/// A rtnetlink socket. It serves the network namespace in which it was opened, whichever its user is in.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Reads the state that [`Routing`] describes.
    pub(crate) fn observe(&mut self) -> io::Result<Routing> {
        let mut seen = Routing {
            supported: vec![Family::V4],
            routable: vec![Family::V4],
            ..Routing::default()
        };
        for message in self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
            let RouteNetlinkMessage::NewLink(link) = message else {
                continue;
            };
            if link.header.flags.contains(LinkFlags::Loopback) {
                seen.loopback = Some(Device {
                    index: link.header.index,
                });
                seen.loopback_up = link.header.flags.contains(LinkFlags::Up);
                if let Some(v6) = v6_settings(&link) {
                    seen.supported.push(Family::V6);
                    // Clusters without IPv6 often disable it in pods.
                    seen.routable
                        .extend((v6.disable_ipv6 == 0).then_some(Family::V6));
                }
            } else if link.header.link_layer_type == LinkLayerType::Ether {
                seen.devices.push(Device {
                    index: link.header.index,
                });
            }
        }
        for message in self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
            let RouteNetlinkMessage::NewAddress(address) = message else {
                continue;
            };
            let device = Device {
                index: address.header.index,
            };
            if Some(device) != seen.loopback {
                seen.addresses.extend(own_address(&address));
            }
        }
        for family in seen.supported.clone() {
            self.observe_family(family, &mut seen)?;
        }
        Ok(seen)
    }

    fn observe_family(&mut self, family: Family, seen: &mut Routing) -> io::Result<()> {
        let mut rule = RuleMessage::default();
        rule.header.family = family.netlink();
        for message in self.dump(RouteNetlinkMessage::GetRule(rule))? {
            let RouteNetlinkMessage::NewRule(rule) = message else {
                continue;
            };
            let is = |wanted: &RuleMessage| {
                rule.header.action == wanted.header.action
                    && wanted
                        .attributes
                        .iter()
                        .all(|attribute| rule.attributes.contains(attribute))
            };
            if is(&loop_rule(family)) && !seen.loop_rules.contains(&family) {
                seen.loop_rules.push(family);
            }
            if is(&backstop_rule(family)) && !seen.backstop_rules.contains(&family) {
                seen.backstop_rules.push(family);
            }
        }
        let mut route = RouteMessage::default();
        route.header.address_family = family.netlink();
        for message in self.dump(RouteNetlinkMessage::GetRoute(route))? {
            let RouteNetlinkMessage::NewRoute(route) = message else {
                continue;
            };
            if route.header.kind == RouteType::Local
                && route.header.destination_prefix_length == 0
                && route.attributes.contains(&RouteAttribute::Table(TABLE))
            {
                seen.routes.push(family);
            }
        }
        Ok(())
    }

    /// Brings `lo` up.
    pub(crate) fn raise_loopback(&mut self) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = LOOPBACK_INDEX;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Adds the rule that loops marked packets.
    pub(crate) fn add_loop_rule(&mut self, family: Family) -> io::Result<()> {
        self.request(
            RouteNetlinkMessage::NewRule(loop_rule(family)),
            NLM_F_CREATE,
        )
    }

    /// Adds the rule that stops marked packets which were not looped.
    pub(crate) fn add_backstop_rule(&mut self, family: Family) -> io::Result<()> {
        self.request(
            RouteNetlinkMessage::NewRule(backstop_rule(family)),
            NLM_F_CREATE,
        )
    }

    /// Adds the local route. `source` is the pod's address of that family: without it, IPv4 takes the
    /// foreign destination for the source and `connect` fails.
    pub(crate) fn add_route(&mut self, family: Family, source: Option<IpAddr>) -> io::Result<()> {
        let route = loop_route(family, source);
        // Replaces: with lo down, IPv4's route is gone and IPv6's is still there.
        self.request(
            RouteNetlinkMessage::NewRoute(route),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Removes one loop rule.
    pub(crate) fn remove_loop_rule(&mut self, family: Family) -> io::Result<()> {
        self.request(RouteNetlinkMessage::DelRule(loop_rule(family)), 0)
    }

    /// Removes one backstop rule.
    pub(crate) fn remove_backstop_rule(&mut self, family: Family) -> io::Result<()> {
        self.request(RouteNetlinkMessage::DelRule(backstop_rule(family)), 0)
    }

    /// Removes the local route.
    pub(crate) fn remove_route(&mut self, family: Family) -> io::Result<()> {
        self.request(RouteNetlinkMessage::DelRoute(loop_route(family, None)), 0)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.receive().map(drop)
    }

    fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        self.receive()
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Reads up to the end of the answer to the last request.
    fn receive(&mut self) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        let mut buffer = Vec::with_capacity(DUMP_BYTES);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }
}

/// `LOOPBACK_IFINDEX`: `lo` is the first device of every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// A device's settings of IPv6 (`IFLA_INET6_CONF`); `None` if the kernel was built or booted without it.
fn v6_settings(link: &LinkMessage) -> Option<&Inet6DevConf> {
    let families = link
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::AfSpecUnspec(families) => Some(families),
            _ => None,
        });
    let v6 = families.flatten().filter_map(|family| match family {
        AfSpecUnspec::Inet6(settings) => Some(settings),
        _ => None,
    });
    v6.flatten().find_map(|setting| match setting {
        AfSpecInet6::DevConf(settings) => Some(settings),
        _ => None,
    })
}

fn rule(family: Family, priority: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family.netlink();
    rule.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::FwMark(MARK_OUTBOUND),
        RuleAttribute::FwMask(MARK_MASK),
    ];
    rule
}

fn loop_rule(family: Family) -> RuleMessage {
    let mut rule = rule(family, LOOP_PRIORITY);
    rule.header.action = RuleAction::ToTable;
    rule.attributes.push(RuleAttribute::Table(TABLE));
    rule
}

fn backstop_rule(family: Family) -> RuleMessage {
    let mut rule = rule(family, BACKSTOP_PRIORITY);
    rule.header.action = RuleAction::Unreachable;
    rule
}

fn loop_route(family: Family, source: Option<IpAddr>) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family.netlink();
    route.header.kind = RouteType::Local;
    route.header.scope = RouteScope::Host;
    route.header.protocol = RouteProtocol::Static;
    route.attributes = vec![
        RouteAttribute::Table(TABLE),
        RouteAttribute::Oif(LOOPBACK_INDEX),
    ];
    route.attributes.extend(source.map(|source| {
        RouteAttribute::PrefSource(match source {
            IpAddr::V4(v4) => RouteAddress::Inet(v4),
            IpAddr::V6(v6) => RouteAddress::Inet6(v6),
        })
    }));
    route
}

/// The address a message tells of: `IFA_LOCAL` where there is one, for on a point-to-point device
/// `IFA_ADDRESS` is the peer's (rtnetlink(7)).
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut own = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => return Some(*address),
            AddressAttribute::Address(address) => own = Some(*address),
            _ => {}
        }
    }
    own.filter(|address| {
        *address != IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            && *address != IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    })
}
