//! What carries the traffic: no mesh, ours in its modes, and what it is measured against.

use std::fmt;

/// A data plane between a client and a server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Plane {
    /// Nothing: two nodes.
    None,
    /// Culvert, two nodes: capture, HBONE.
    L4,
    /// Culvert, two nodes: a route that splits 90/10 and a policy on requests.
    L7,
    /// Two Envoys that do what `L7` does, one on each node.
    Envoy,
    /// Culvert towards a server outside the mesh: capture and one relay, nothing encrypted.
    Plain,
    /// The same with iptables and Envoy: REDIRECT and one relay, nothing encrypted.
    Iptables,
    /// Nothing: one node.
    NoneSameNode,
    /// Culvert, one node.
    SameNode,
    /// Culvert, one node, with HBONE also there.
    SameNodeEncrypted,
    /// Somebody else's, started by a command of the user's.
    Peer {
        /// In the report.
        name: String,
        /// What a shell runs in each of the two pods.
        command: String,
    },
}

impl Plane {
    /// All that need nothing of the user's, in the order of the report.
    pub const OWN: [Self; 9] = [
        Self::None,
        Self::L4,
        Self::L7,
        Self::Envoy,
        Self::Plain,
        Self::Iptables,
        Self::NoneSameNode,
        Self::SameNode,
        Self::SameNodeEncrypted,
    ];

    /// As it is typed and reported.
    pub fn name(&self) -> &str {
        match self {
            Self::None => "none",
            Self::L4 => "culvert-L4",
            Self::L7 => "culvert-L7",
            Self::Envoy => "envoy-L7",
            Self::Plain => "culvert-plain",
            Self::Iptables => "iptables",
            Self::NoneSameNode => "none-same-node",
            Self::SameNode => "culvert-same-node",
            Self::SameNodeEncrypted => "culvert-same-node-encrypted",
            Self::Peer { name, .. } => name,
        }
    }

    /// For people who read the report.
    pub fn description(&self) -> String {
        let text = match self {
            Self::None => "no mesh, two nodes",
            Self::L4 => "two agents, HBONE between two nodes, layer 4",
            Self::L7 => {
                "two agents, HBONE between two nodes, HTTPRoute 90/10 and AuthorizationPolicy"
            }
            Self::Envoy => "two Envoys, mutual TLS between two nodes, the same route and policy",
            Self::Plain => {
                "one agent: capture and a relay towards a server outside the mesh, nothing encrypted"
            }
            Self::Iptables => {
                "iptables REDIRECT and Envoy's TCP proxy as the relay, nothing encrypted"
            }
            Self::NoneSameNode => "no mesh, one node",
            Self::SameNode => "one agent, both pods on its node",
            Self::SameNodeEncrypted => {
                "one agent, both pods on its node, `culvert.dev/same-node: encrypted`"
            }
            Self::Peer { command, .. } => return format!("`{command}` in both pods, two nodes"),
        };
        text.to_owned()
    }

    /// Whether both pods are on one node.
    pub fn is_same_node(&self) -> bool {
        matches!(
            self,
            Self::NoneSameNode | Self::SameNode | Self::SameNodeEncrypted
        )
    }

    /// Whether it looks at requests.
    pub fn is_layer7(&self) -> bool {
        matches!(self, Self::L7 | Self::Envoy)
    }

    /// Whether agents are what is measured.
    pub fn is_ours(&self) -> bool {
        matches!(
            self,
            Self::L4 | Self::L7 | Self::Plain | Self::SameNode | Self::SameNodeEncrypted
        )
    }

    /// The plane without a mesh on the same way.
    #[must_use]
    pub fn baseline(&self) -> Self {
        if self.is_same_node() {
            Self::NoneSameNode
        } else {
            Self::None
        }
    }

    /// What else it is compared with: others that do the same work.
    pub fn rivals(&self, all: &[Self]) -> Vec<Self> {
        match self {
            Self::L7 => vec![Self::Envoy],
            Self::Plain => vec![Self::Iptables],
            Self::SameNode => vec![Self::SameNodeEncrypted],
            Self::L4 => {
                let peers = all
                    .iter()
                    .filter(|plane| matches!(plane, Self::Peer { .. }));
                peers.cloned().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Reads `NAME=COMMAND`.
    ///
    /// # Errors
    /// One sentence, if it is not that, or the name is taken.
    pub fn peer(text: &str) -> Result<Self, String> {
        let Some((name, command)) = text.split_once('=') else {
            return Err("write NAME=COMMAND".to_owned());
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if name.is_empty() || !name.chars().all(is_name) || command.is_empty() {
            return Err("write NAME=COMMAND, the name in letters, digits and `-`".to_owned());
        }
        if Self::OWN.iter().any(|plane| plane.name() == name) {
            return Err(format!("`{name}` is a plane already"));
        }
        Ok(Self::Peer {
            name: name.to_owned(),
            command: command.to_owned(),
        })
    }
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Plane;

    #[test]
    fn planes_are_compared_with_no_mesh_on_the_same_way() {
        for (plane, baseline) in [
            (Plane::L4, Plane::None),
            (Plane::L7, Plane::None),
            (Plane::Iptables, Plane::None),
            (Plane::SameNode, Plane::NoneSameNode),
            (Plane::SameNodeEncrypted, Plane::NoneSameNode),
        ] {
            assert_eq!(plane.baseline(), baseline);
        }
        let peer = Plane::peer("other=run it").unwrap();
        assert_eq!(Plane::L4.rivals(&[Plane::None, peer.clone()]), [peer]);
        assert_eq!(Plane::L7.rivals(&[]), [Plane::Envoy]);
    }

    #[test]
    fn peers_have_a_name_of_their_own_and_a_command() {
        let peer = Plane::peer("ztunnel=FOO=bar ztunnel --now").unwrap();
        assert_eq!(peer.name(), "ztunnel");
        assert!(peer.description().contains("FOO=bar ztunnel --now"));
        for wrong in ["", "x", "=x", "x=", "a b=x", "none=x"] {
            assert!(Plane::peer(wrong).is_err(), "{wrong}");
        }
    }
}
