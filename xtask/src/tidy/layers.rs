//! Who may import whom, and which dependency belongs to whom: one table per crate.

use super::source::SourceFile;

/// Layers of the proxy library. A module may name only modules of lower layers, never one of its own.
const PROXY_LAYERS: [&[&str]; 19] = [
    &["model", "error", "time", "envoy", "dormant"],
    &["policy", "route", "telemetry"],
    &["ring", "key_sets", "names", "traffic", "direct"],
    &["io"],
    &["tls"],
    &["hbone", "pod", "connections"],
    &["origination"],
    &["http", "relay"],
    &["hub"],
    &["endpoints"],
    &["dial"],
    &["doubt"],
    &["upstream"],
    &["asking"],
    &["judgement"],
    &["waypoint"],
    &["inbound", "outbound"],
    &["held"],
    &["worker"],
];

/// What each part of the agent may name of the others. `app` and `main` put the parts together and may
/// name all; the parts do not know each other beyond this.
const AGENT_EDGES: [(&str, &[&str]); 23] = [
    // Serves what the mesh says of each object, as the mesh's own value.
    ("admin", &["mesh"]),
    ("bench", &[]),
    ("capture", &[]),
    // What it prints is what the admin server serves; some commands work without a running agent.
    (
        "cli",
        &[
            "admin", "bench", "capture", "cni", "doctor", "mesh", "sources",
        ],
    ),
    ("cni", &[]),
    (
        "config",
        &[
            "admin",
            "capture",
            "cni",
            "controller",
            "dns",
            "identity",
            "keys",
            "mesh",
            "sources",
            "spans",
        ],
    ),
    // Writes what the mesh says to where the source reads it, and signs as an agent's own authority does.
    (
        "controller",
        &["identity", "mesh", "sentence", "signing", "sources"],
    ),
    // Decides by the mesh what capture lets go straight, and shows it to the admin server.
    ("direct", &["admin", "capture", "mesh"]),
    ("discovery", &[]),
    ("dns", &[]),
    ("doctor", &["capture", "privilege"]),
    // Brings pods from what the mesh wants to what capture does, and tells the admin server.
    (
        "enrolment",
        &[
            "admin",
            "capture",
            "direct",
            "discovery",
            "mesh",
            "sentence",
            "zds",
        ],
    ),
    // Names of the mesh are read as the DNS proxy reads them.
    ("fetch", &["dns", "sentence"]),
    ("hosts", &[]),
    // An authority elsewhere is asked over the network.
    ("identity", &["fetch", "sentence", "signing"]),
    ("keys", &["fetch", "sentence"]),
    ("mesh", &[]),
    ("privilege", &[]),
    ("sentence", &[]),
    ("signing", &[]),
    ("sources", &["mesh", "sentence"]),
    ("spans", &["fetch", "sentence"]),
    ("zds", &["sentence"]),
];

/// A dependency or keyword, and the only places that may name it.
const CONFINED: [(&str, &[&str]); 10] = [
    ("tokio_uring::", &["userspace-l7/src/ring"]),
    ("io_uring::", &["userspace-l7/src/ring", "tests/"]),
    (
        "libc::",
        &["userspace-l7/src/ring", "agent/src/capture", "tests/"],
    ),
    ("aya::", &["agent/src/capture", "ebpf/"]),
    ("caps::", &["agent/src/privilege"]),
    (
        "anyhow",
        &[
            "agent/src/main.rs",
            "agent/src/app",
            "agent/src/privilege.rs",
            "xtask/",
            "tests/",
        ],
    ),
    // Wire formats of other servers; whoever decides sees values.
    (
        "prost::",
        &[
            "userspace-l7/src/envoy",
            "agent/src/signing",
            "agent/src/spans",
            "agent/src/bench",
            "agent/src/sources/istiod",
            "agent/src/zds",
            "tests/",
        ],
    ),
    ("kube::", &["agent/src/sources/kubernetes"]),
    ("k8s_openapi::", &["agent/src/mesh", "agent/src/sources"]),
    (
        "unsafe {",
        &[
            "userspace-l7/src/ring",
            "agent/src/capture",
            "agent/src/zds/rights",
            "ebpf/",
            "tests/",
        ],
    ),
];

/// What a file names that it may not.
pub(crate) fn check(file: &SourceFile) -> Vec<String> {
    let mut complaints = confined(file);
    if file.is_test() {
        return complaints;
    }
    let Some((krate, modules)) = file.module() else {
        return complaints;
    };
    let Some(own) = modules.first() else {
        return complaints;
    };
    for (line, target) in file.imports() {
        let allowed = *own == target
            || match krate {
                "userspace-l7" => proxy_edge(own, &target),
                "agent" => agent_edge(own, &target),
                _ => true,
            };
        if !allowed {
            complaints.push(format!(
                "{}:{line}: `{own}` may not name `{target}` (xtask/src/tidy/layers.rs)",
                file.name
            ));
        }
    }
    complaints
}

fn proxy_edge(from: &str, to: &str) -> bool {
    let layer = |module: &str| {
        PROXY_LAYERS
            .iter()
            .position(|layer| layer.contains(&module))
    };
    match (layer(from), layer(to)) {
        (Some(from), Some(to)) => to < from,
        // A module without a layer has no right to anything until the table says which.
        _ => false,
    }
}

fn agent_edge(from: &str, to: &str) -> bool {
    from == "app"
        || AGENT_EDGES
            .iter()
            .any(|(part, others)| *part == from && others.contains(&to))
}

fn confined(file: &SourceFile) -> Vec<String> {
    let mut complaints = Vec::new();
    for (word, places) in CONFINED {
        // The tables above name every word.
        if places.iter().any(|place| file.name.starts_with(place)) || file.name == file!() {
            continue;
        }
        for (index, line) in file.code.iter().enumerate() {
            let is_comment = line.trim_start().starts_with("//");
            if !is_comment && names(line, word) {
                complaints.push(format!(
                    "{}:{}: `{word}` belongs to {}",
                    file.name,
                    index + 1,
                    places.join(", ")
                ));
            }
        }
    }
    complaints
}

/// Whether a line holds the word, not merely as the end of a longer one.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::{SourceFile, check};

    #[track_caller]
    fn complains(name: &str, text: &str, expected: bool) {
        let found = check(&SourceFile::new(name.to_owned(), text));
        assert_eq!(!found.is_empty(), expected, "{name}: {text}: {found:?}");
    }

    #[test]
    fn imports_point_down_only() {
        complains(
            "userspace-l7/src/tls/verify.rs",
            "use crate::ring::Tcp;",
            false,
        );
        complains(
            "userspace-l7/src/tls/verify.rs",
            "use super::super::ring::Tcp;",
            false,
        );
        complains(
            "userspace-l7/src/tls/verify.rs",
            "use crate::tls::Identity;",
            false,
        );
        complains(
            "userspace-l7/src/tls/verify.rs",
            "use crate::hbone::Pool;",
            true,
        );
        complains("userspace-l7/src/hbone.rs", "use crate::hub::Hub;", true);
        complains(
            "userspace-l7/src/policy.rs",
            "use crate::route::Target;",
            true,
        );
        complains(
            "userspace-l7/src/newcomer.rs",
            "use crate::model::Port;",
            true,
        );
        complains("agent/src/app.rs", "use crate::capture::Capture;", false);
        complains(
            "agent/src/admin/server.rs",
            "use crate::capture::Capture;",
            true,
        );
        complains(
            "agent/src/sources/manifests.rs",
            "use crate::mesh::Objects;",
            false,
        );
        complains("agent/src/mesh.rs", "use crate::sources::Manifests;", true);
    }

    #[test]
    fn dependencies_stay_where_they_belong() {
        complains(
            "userspace-l7/src/ring/tcp.rs",
            "use tokio_uring::net::TcpStream;",
            false,
        );
        complains(
            "userspace-l7/src/io.rs",
            "use tokio_uring::net::TcpStream;",
            true,
        );
        complains("userspace-l7/src/io.rs", "// as in tokio_uring::net", false);
        complains("agent/src/admin.rs", "use aya::maps::HashMap;", true);
        complains(
            "agent/src/capture/pods.rs",
            "use aya::maps::HashMap;",
            false,
        );
        complains("agent/src/cli.rs", "use anyhow::Result;", true);
    }
}
