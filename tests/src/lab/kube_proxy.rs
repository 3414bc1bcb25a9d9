//! What kube-proxy does on a node, for whoever is outside of the mesh: the addresses of services lead to their pods.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::Node;

/// A port of a service, and where it leads. IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The service's address.
    pub address: SocketAddr,
    /// Its pods.
    pub endpoints: Vec<SocketAddr>,
}

impl Node {
    /// Sends what comes from pods for these services to one of their pods in turn. The node calls in its own name, or a pod on
    /// the same bridge would answer past it.
    ///
    /// # Errors
    /// If iptables is missing or refuses.
    pub fn proxy_services(&self, services: &[ServicePort]) -> Result<()> {
        let mut command = Command::new("iptables-nft-restore");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = self.netns().enter(&mut command)?.spawn();
        let mut child = child.context("iptables cannot be started: run `cargo xtask setup`")?;
        let mut input = child.stdin.take().context("iptables has no input")?;
        // What it says of it shows below.
        let _written = input.write_all(rules(services).as_bytes());
        drop(input);
        let output = child.wait_with_output().context("iptables vanished")?;
        let why = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "iptables: {}", why.trim());
        Ok(())
    }
}

/// The table `nat` in the words of `iptables-restore`.
fn rules(services: &[ServicePort]) -> String {
    let mut text = String::from("*nat\n");
    for ServicePort { address, endpoints } in services {
        for (index, endpoint) in endpoints.iter().enumerate() {
            // Of what is left, one in as many as there are left.
            let left = endpoints.len() - index;
            let (ip, port) = (address.ip(), address.port());
            let _infallible = writeln!(
                text,
                "-A PREROUTING -d {ip} -p tcp --dport {port} -m statistic --mode nth --every {left} --packet 0 -j DNAT \
                 --to-destination {endpoint}"
            );
        }
    }
    text.push_str("-A POSTROUTING -m conntrack --ctstate DNAT -j MASQUERADE\nCOMMIT\n");
    text
}

#[cfg(test)]
mod tests {
    use super::{ServicePort, rules};

    #[test]
    fn each_pod_gets_its_share() {
        let service = ServicePort {
            address: ([172, 30, 0, 9], 80).into(),
            endpoints: vec![([10, 0, 0, 1], 8080).into(), ([10, 0, 0, 2], 8080).into()],
        };
        let expected = "*nat\n\
            -A PREROUTING -d 172.30.0.9 -p tcp --dport 80 -m statistic --mode nth --every 2 --packet 0 -j DNAT \
            --to-destination 10.0.0.1:8080\n\
            -A PREROUTING -d 172.30.0.9 -p tcp --dport 80 -m statistic --mode nth --every 1 --packet 0 -j DNAT \
            --to-destination 10.0.0.2:8080\n\
            -A POSTROUTING -m conntrack --ctstate DNAT -j MASQUERADE\nCOMMIT\n";
        assert_eq!(rules(&[service]), expected);
    }
}
