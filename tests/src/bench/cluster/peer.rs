//! Somebody else's data plane, started by the user's command in both pods.
//!
//! The command runs by a shell in the pod's network namespace and goes on until it is killed. It redirects what it wants
//! to carry by itself, and finds in its environment what it needs:
//!
//! | variable | what |
//! |---|---|
//! | `BENCH_ROLE` | `client` or `server` |
//! | `BENCH_POD_IP`, `BENCH_PEER_IP` | this pod's address and the other one's |
//! | `BENCH_PORTS` | ports of the server that are called |
//! | `BENCH_IDENTITY`, `BENCH_PEER_IDENTITY` | SPIFFE IDs |
//! | `BENCH_CERT_CHAIN`, `BENCH_KEY`, `BENCH_ROOT` | PEM files of this identity, and of the authority of both |

use std::path::Path;

use anyhow::Result;

use super::{CARRIED, End};
use crate::bench::servers::Program;
use crate::envoy::issue;
use crate::lab::{Lab, Pod};

/// Starts it in both.
pub(super) fn start(lab: &Lab, end: &mut End, command: &str) -> Result<()> {
    for (role, pod, other) in [
        ("server", &end.server, &end.client),
        ("client", &end.client, &end.server),
    ] {
        let variables = environment(lab, role, pod, other)?;
        end.peers.push(Program::shell(pod, command, &variables)?);
    }
    Ok(())
}

fn environment(
    lab: &Lab,
    role: &str,
    pod: &Pod,
    other: &Pod,
) -> Result<Vec<(&'static str, String)>> {
    let svid = issue(lab, &pod.identity())?;
    let path = |path: &Path| path.display().to_string();
    let ports = CARRIED.map(|port| port.to_string()).join(",");
    Ok(vec![
        ("BENCH_ROLE", role.to_owned()),
        ("BENCH_POD_IP", pod.v4().to_string()),
        ("BENCH_PEER_IP", other.v4().to_string()),
        ("BENCH_PORTS", ports),
        ("BENCH_IDENTITY", pod.identity()),
        ("BENCH_PEER_IDENTITY", other.identity()),
        ("BENCH_CERT_CHAIN", path(&svid.chain)),
        ("BENCH_KEY", path(&svid.key)),
        ("BENCH_ROOT", path(&svid.root)),
    ])
}
