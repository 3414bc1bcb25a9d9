//! Where a plaintext connection was going, which a rule in the pod may have redirected.
//!
//! istio-cni's rules lead to one port what comes from outside of a pod, and the agent takes pods as they are (ADR 0021). The kernel
//! remembers what was dialled. Without such rules nothing arrives at that port: capture drops it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::destination::Misdirected;
use crate::ring::Tcp;

/// Where the rules lead to (istio `cni/pkg/config`: `ZtunnelInboundPlaintextPort`).
const REDIRECTED_PORT: u16 = 15006;

/// How a plaintext connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    /// What its client dialled.
    pub(super) dialled: SocketAddr,
    /// The pod's address that it has come to.
    own: IpAddr,
}

impl Arrival {
    /// That of a connection.
    ///
    /// # Errors
    /// The connection is gone.
    pub(super) fn of(client: &Tcp) -> io::Result<Self> {
        Ok(Self::at(client.local_addr()?, || {
            client.original_destination()
        }))
    }

    /// One that no rule has redirected is for the port itself, which is no application's.
    fn at(local: SocketAddr, original: impl FnOnce() -> io::Result<SocketAddr>) -> Self {
        let original = || original().unwrap_or(local);
        Self {
            dialled: if local.port() == REDIRECTED_PORT {
                original()
            } else {
                local
            },
            own: local.ip(),
        }
    }

    /// Whether a workload with these addresses is whom the client dialled.
    ///
    /// # Errors
    /// It is not: a rule redirects also what is only passing by, and a neighbour on the pod's link can make it. To dial that for
    /// him would make the pod a relay.
    pub(super) fn check(&self, addresses: &[IpAddr]) -> Result<(), Misdirected> {
        let dialled = self.dialled.ip();
        if dialled == self.own || addresses.contains(&dialled) {
            Ok(())
        } else {
            Err(Misdirected::Elsewhere(self.dialled))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::SocketAddr;

    use super::Arrival;
    use crate::inbound::destination::Misdirected;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[track_caller]
    fn dialled(local: &str, original: Option<&str>, expected: &str) -> Arrival {
        let original = || {
            original
                .map(at)
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        let arrival = Arrival::at(at(local), original);
        assert_eq!(arrival.dialled, at(expected), "{local}");
        arrival
    }

    #[test]
    fn only_at_the_port_of_the_rules_the_kernel_is_asked() {
        dialled("10.0.0.2:80", Some("10.0.0.2:81"), "10.0.0.2:80");
        dialled("10.0.0.2:15006", Some("10.0.0.2:80"), "10.0.0.2:80");
        dialled("[fd00::2]:15006", Some("[fd00::2]:80"), "[fd00::2]:80");
        // Refused later, as the agent's own port.
        dialled("10.0.0.2:15006", Some("10.0.0.2:15006"), "10.0.0.2:15006");
        dialled("10.0.0.2:15006", None, "10.0.0.2:15006");
    }

    #[test]
    fn the_pod_is_nobodys_relay() {
        let addresses = ["10.0.0.2", "fd00::2"].map(|text| text.parse().unwrap());
        for (original, is_own) in [
            ("10.0.0.2:80", true),
            ("192.168.7.2:80", true),
            ("10.0.0.3:80", false),
            ("203.0.113.9:80", false),
        ] {
            // The rules lead to the first address of the device, which the mesh may not have heard of.
            let arrival = dialled("192.168.7.2:15006", Some(original), original);
            let expected = if is_own {
                Ok(())
            } else {
                Err(Misdirected::Elsewhere(at(original)))
            };
            assert_eq!(arrival.check(&addresses), expected, "{original}");
        }
    }
}
