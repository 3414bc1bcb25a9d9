//! A node: a namespace with a bridge for its pods and a link to the other node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result};

use super::netns::{self, Netns};

/// The interface towards the other node.
pub(crate) const LINK: &str = "link0";

/// Pods whose addresses share their first three bytes.
const SUBNET: u16 = 250;

/// One node.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    next_pod: AtomicU16,
    netns: Arc<Netns>,
}

impl Node {
    pub(crate) fn new(lab: &str, name: &str, number: u8) -> Result<Self> {
        let netns = Netns::new(format!("{lab}-node-{name}"))?;
        netns.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ])?;
        netns.ip_batch(&format!(
            "link add cbr0 type bridge mcast_snooping 0\n\
             addr add 10.244.{number}.1/24 dev cbr0\n\
             addr add fd00:244:{number}::1/64 dev cbr0 nodad\n\
             link set cbr0 up\n"
        ))?;
        Ok(Self {
            name: name.to_owned(),
            number,
            next_pod: AtomicU16::new(0),
            netns: Arc::new(netns),
        })
    }

    /// Lays the link between two nodes and routes to each other's pods.
    pub(crate) fn connect(one: &Self, other: &Self) -> Result<()> {
        let peer = ["peer", "name", LINK, "netns", other.netns.name()];
        let mut words = vec![
            "link",
            "add",
            LINK,
            "netns",
            one.netns.name(),
            "type",
            "veth",
        ];
        words.extend(peer);
        netns::ip(&words)?;
        for (node, remote) in [(one, other), (other, one)] {
            let (own, far) = (node.number, remote.number);
            let further = remote.further();
            node.netns.ip_batch(&format!(
                "addr add 172.18.0.{own}/24 dev {LINK}\n\
                 addr add fd00:18::{own}/64 dev {LINK} nodad\n\
                 link set {LINK} up\n\
                 route add 10.244.{far}.0/24 via 172.18.0.{far}\n\
                 route add 10.{further}.0.0/16 via 172.18.0.{far}\n\
                 route add fd00:244:{far}::/64 via fd00:18::{far}\n"
            ))?;
        }
        Ok(())
    }

    /// The node's name in the manifests.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's own namespace, where its agent runs.
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// The node's address on the link.
    pub fn v4(&self) -> IpAddr {
        Ipv4Addr::new(172, 18, 0, self.number).into()
    }

    /// Runs `culvert` with arguments on the node.
    ///
    /// # Errors
    /// If the program cannot be started; not if it fails.
    pub fn culvert(&self, arguments: &[&str]) -> Result<std::process::Output> {
        let mut command = Command::new(super::culvert()?);
        let output = self.netns.enter(command.args(arguments))?.output();
        output.context("culvert cannot be started")
    }

    /// Plugs a pod's namespace into the bridge and returns its addresses.
    pub(crate) fn plug(&self, pod: &Netns) -> Result<[IpAddr; 2]> {
        let count = self.next_pod.fetch_add(1, Ordering::Relaxed);
        // The first address is the bridge's, the one before it the subnet's.
        let (subnet, number) = (count / SUBNET, count % SUBNET + 2);
        let [a, b, c] = self.subnet(subnet)?;
        if subnet > 0 && count.is_multiple_of(SUBNET) {
            self.netns
                .ip_batch(&format!("addr add {a}.{b}.{c}.1/24 dev cbr0\n"))?;
        }
        let port = format!("pod{}", count + 2);
        let eth0 = ["link", "add", "eth0", "netns", pod.name(), "type", "veth"];
        let peer = ["peer", "name", &port, "netns", self.netns.name()];
        netns::ip(&[eth0.as_slice(), &peer].concat())?;
        self.netns.ip_batch(&format!(
            "link set {port} master cbr0\nlink set {port} up\n"
        ))?;
        let v4 = Ipv4Addr::new(a, b, c, u8::try_from(number)?);
        let v6 = Ipv6Addr::new(0xfd00, 0x244, self.number.into(), 0, 0, 0, subnet, number);
        pod.ip_batch(&format!(
            "addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {a}.{b}.{c}.1\n\
             route add default via fd00:244:{}::1\n",
            self.number
        ))?;
        Ok([v4.into(), v6.into()])
    }

    /// The first three bytes of pods' addresses: `10.244.NODE`, and for pods beyond the first 250 others.
    fn subnet(&self, subnet: u16) -> Result<[u8; 3]> {
        let subnet = u8::try_from(subnet).context("a node has room for 64,000 pods")?;
        Ok(match subnet {
            0 => [10, 244, self.number],
            _ => [10, self.further(), subnet],
        })
    }

    /// The second byte of pods beyond the first 250.
    fn further(&self) -> u8 {
        244 + self.number
    }

    pub(crate) fn manifest(&self) -> String {
        let Self { name, number, .. } = self;
        format!(
            "apiVersion: v1\n\
             kind: Node\n\
             metadata:\n\
             \x20 name: {name}\n\
             \x20 labels:\n\
             \x20   topology.kubernetes.io/region: lab\n\
             \x20   topology.kubernetes.io/zone: zone-{name}\n\
             status:\n\
             \x20 addresses:\n\
             \x20 - type: InternalIP\n\
             \x20   address: 172.18.0.{number}\n\
             \x20 - type: InternalIP\n\
             \x20   address: fd00:18::{number}\n"
        )
    }
}
