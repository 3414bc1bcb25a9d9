//! What people and tools see of a running agent: tables, JSON, metrics, readiness, the log level, capabilities.

use std::net::Ipv6Addr;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::lab::{Lab, Pod, culvert, eventually};
use e2e::net;
use e2e::net::serve::{Server, echo};
use e2e::scenario::{Pair, echoes};
use serde_json::Value;

const PORT: u16 = 7000;

/// What a successful command prints.
fn prints(lab: &Lab, arguments: &[&str]) -> Result<String> {
    printed(arguments, &lab.node("a")?.culvert(arguments)?)
}

/// As [`prints`], of a command that changes the agent.
fn changes(lab: &Lab, arguments: &[&str]) -> Result<String> {
    printed(arguments, &lab.agent("a")?.command(arguments)?)
}

fn printed(arguments: &[&str], output: &Output) -> Result<String> {
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "culvert {arguments:?}: {}\n{told}\n{complained}",
        output.status
    );
    Ok(told)
}

/// A pair with a service, and one connection that is open.
fn busy_pair() -> Result<(Pair, Server, std::net::TcpStream)> {
    let pair = Pair::new()?;
    pair.lab
        .service("server", &["10.96.0.1", "fd00:96::1"], &[(80, "7000")])?;
    let server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let stream = eventually("the service answers", Duration::from_secs(5), || {
        pair.client.run(|| {
            let stream = net::connect("10.96.0.1:80".parse()?)?;
            echoes(&stream, "hello")?;
            Ok(stream)
        })
    })?;
    Ok((pair, server, stream))
}

/// A pod's addresses as the tables show them.
fn addresses(pod: &Pod) -> String {
    format!("{},{}", pod.v4(), pod.v6())
}

/// The row of a table whose cells contain all of these.
fn row<'a>(table: &'a str, cells: &[&str]) -> Result<&'a str> {
    let found = table.lines().find(|line| {
        cells
            .iter()
            .all(|cell| line.split_whitespace().any(|word| word == *cell))
    });
    found.with_context(|| format!("no row with {cells:?} in\n{table}"))
}

#[test]
fn tables_have_the_columns_of_istioctl() -> Result<()> {
    let (pair, _server, _stream) = busy_pair()?;
    let services = prints(&pair.lab, &["get", "services"])?;
    for column in [
        "NAMESPACE",
        "SERVICE NAME",
        "SERVICE VIP",
        "WAYPOINT",
        "ENDPOINTS",
    ] {
        ensure!(
            services
                .lines()
                .next()
                .is_some_and(|head| head.contains(column)),
            "no {column} in\n{services}"
        );
    }
    row(&services, &["app", "server", "None", "1/1"])?;

    let workloads = prints(&pair.lab, &["get", "workloads"])?;
    for column in [
        "NAMESPACE",
        "POD NAME",
        "ADDRESS",
        "NODE",
        "WAYPOINT",
        "PROTOCOL",
    ] {
        ensure!(
            workloads
                .lines()
                .next()
                .is_some_and(|head| head.contains(column)),
            "no {column} in\n{workloads}"
        );
    }
    row(
        &workloads,
        &["app", "client", &addresses(&pair.client), "a", "HBONE"],
    )?;
    row(
        &workloads,
        &["app", "server", &addresses(&pair.server), "b", "HBONE"],
    )?;

    let certificates = prints(&pair.lab, &["get", "certificates"])?;
    ensure!(
        certificates.contains(&pair.client.identity()),
        "{certificates}"
    );
    let connections = prints(&pair.lab, &["get", "connections"])?;
    ensure!(
        connections.contains("client") && connections.contains("HBONE"),
        "{connections}"
    );
    let all = prints(&pair.lab, &["get", "all"])?;
    ensure!(
        all.contains("ENDPOINTS") && all.contains("PROTOCOL"),
        "{all}"
    );
    Ok(())
}

#[test]
fn json_and_yaml_hold_what_the_table_shows() -> Result<()> {
    let (pair, _server, _stream) = busy_pair()?;
    let json: Value =
        serde_json::from_str(&prints(&pair.lab, &["get", "services", "-o", "json"])?)?;
    let services = json.as_array().context("an array")?;
    let server = services
        .iter()
        .find(|service| service["name"] == "server")
        .context("the service")?;
    ensure!(
        server["namespace"] == "app" && server["vips"].to_string().contains("10.96.0.1"),
        "{server}"
    );
    let yaml = prints(&pair.lab, &["get", "services", "-o", "yaml"])?;
    ensure!(
        yaml.contains("name: server") && yaml.contains("10.96.0.1"),
        "{yaml}"
    );
    let wide = prints(&pair.lab, &["get", "workloads", "-o", "wide"])?;
    let narrow = prints(&pair.lab, &["get", "workloads"])?;
    let columns = |table: &str| {
        table
            .lines()
            .next()
            .unwrap_or_default()
            .split("  ")
            .filter(|c| !c.is_empty())
            .count()
    };
    ensure!(columns(&wide) > columns(&narrow), "{wide}");
    Ok(())
}

#[test]
fn the_config_dump_has_ztunnels_shape() -> Result<()> {
    let (pair, _server, _stream) = busy_pair()?;
    let dump = pair.lab.agent("a")?.config_dump()?;
    for (key, array) in [
        ("workloads", true),
        ("services", true),
        ("policies", true),
        ("certificates", true),
    ] {
        ensure!(dump[key].is_array() == array, "{key} is {}", dump[key]);
    }
    ensure!(
        dump["version"].is_object() && dump["config"].is_object(),
        "{dump}"
    );
    let workload = dump["workloads"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["name"] == "server"));
    let workload = workload.context("the server")?;
    for key in [
        "uid",
        "workloadIps",
        "protocol",
        "namespace",
        "serviceAccount",
        "node",
        "status",
        "clusterId",
    ] {
        ensure!(!workload[key].is_null(), "no {key} in {workload}");
    }
    let states = dump["workloadState"].as_object().context("workloadState")?;
    let outbound = states.values().any(|state| {
        state["connections"]["outbound"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one["protocol"] == "HBONE"))
    });
    ensure!(
        outbound,
        "no outbound connection in {}",
        dump["workloadState"]
    );
    Ok(())
}

#[test]
fn standard_metrics_count_connections_on_both_ends() -> Result<()> {
    let (pair, _server, stream) = busy_pair()?;
    drop(stream);
    let labels = [
        "source_workload=\"client\"",
        "destination_workload=\"server\"",
        "connection_security_policy=\"mutual_tls\"",
        "source_principal=\"spiffe://cluster.local/ns/app/sa/client\"",
        "destination_principal=\"spiffe://cluster.local/ns/app/sa/server\"",
        "destination_service_name=\"server\"",
        "request_protocol=\"tcp\"",
        "response_flags=\"-\"",
    ];
    for (node, reporter) in [
        ("a", "reporter=\"source\""),
        ("b", "reporter=\"destination\""),
    ] {
        let labels: Vec<&str> = labels.iter().copied().chain([reporter]).collect();
        for metric in [
            "istio_tcp_connections_opened_total",
            "istio_tcp_connections_closed_total",
            "istio_tcp_received_bytes_total",
            "istio_tcp_sent_bytes_total",
        ] {
            eventually(
                &format!("{metric} on node {node}"),
                Duration::from_secs(5),
                || {
                    let value = pair.lab.agent(node)?.metric(metric, &labels)?;
                    ensure!(value >= 1.0, "{value}");
                    Ok(())
                },
            )?;
        }
    }
    Ok(())
}

#[test]
fn the_access_log_names_both_identities_on_both_ends() -> Result<()> {
    let (pair, _server, stream) = busy_pair()?;
    drop(stream);
    let (client, server) = (pair.client.identity(), pair.server.identity());
    for (node, direction) in [("a", "outbound"), ("b", "inbound")] {
        eventually(
            &format!("the log of node {node}"),
            Duration::from_secs(5),
            || {
                let log = pair.lab.agent(node)?.log()?;
                let words = [
                    &*client,
                    &server,
                    direction,
                    "connection complete",
                    "bytes_sent",
                    "bytes_recv",
                    "duration",
                ];
                let line = log
                    .lines()
                    .find(|line| words.iter().all(|word| line.contains(word)));
                line.map(drop)
                    .with_context(|| format!("no line with {words:?}"))
            },
        )?;
    }
    Ok(())
}

#[test]
fn the_log_level_changes_at_run_time() -> Result<()> {
    let pair = Pair::new()?;
    changes(&pair.lab, &["log", "debug"])?;
    let shown = changes(&pair.lab, &["log"])?;
    ensure!(shown.contains("debug"), "{shown}");
    changes(&pair.lab, &["log", "--reset"])?;
    let shown = changes(&pair.lab, &["log"])?;
    ensure!(!shown.contains("debug"), "{shown}");
    Ok(())
}

/// Any process on the node's network reaches the address.
#[test]
fn nobody_changes_the_agent_over_tcp() -> Result<()> {
    let pair = Pair::new()?;
    let refused = pair.lab.node("a")?.culvert(&["stop", "--unenrol"])?;
    let why = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        !refused.status.success() && why.contains("(403): only root changes the agent"),
        "{why}"
    );
    pair.lab.agent("a")?.wait_ready()
}

#[test]
fn the_agent_is_ready_only_when_each_pod_is_armed() -> Result<()> {
    let pair = Pair::new()?;
    let ready =
        || Ok::<_, anyhow::Error>(pair.lab.agent("a")?.get(15021, "/healthz/ready")?.status);
    ensure!(ready()? == 200, "{}", ready()?);
    let ghost = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: ghost\n  namespace: app\n  annotations:\n    \
                 culvert.dev/netns: /run/netns/there-is-no-such-namespace\nspec:\n  nodeName: a\nstatus:\n  phase: \
                 Running\n  podIPs:\n  - ip: 10.244.1.99\n";
    pair.lab.manifests().apply("pod-ghost.yaml", ghost)?;
    eventually("the agent is not ready", Duration::from_secs(5), || {
        ensure!(ready()? == 500, "{}", ready()?);
        Ok(())
    })?;
    let status = pair.lab.node("a")?.culvert(&["status"])?;
    ensure!(status.status.code() == Some(1), "{}", status.status);
    ensure!(
        String::from_utf8_lossy(&status.stdout).contains("ghost"),
        "status names the pod"
    );
    pair.lab.manifests().delete("pod-ghost.yaml")?;
    eventually("the agent is ready again", Duration::from_secs(5), || {
        ensure!(ready()? == 200, "{}", ready()?);
        Ok(())
    })
}

/// The bits of a capability set, by the numbers of capabilities(7).
fn capabilities(agent: &e2e::lab::Agent, field: &str) -> Result<Vec<u8>> {
    let set = u64::from_str_radix(&agent.status_field(field)?, 16).context("a capability set")?;
    Ok((0..64).filter(|bit| set >> bit & 1 == 1).collect())
}

#[test]
fn a_running_agent_holds_exactly_the_documented_capabilities() -> Result<()> {
    // The README's table, in the order of their numbers.
    let documented: Vec<u8> = README_CAPABILITIES
        .iter()
        .map(|(number, _)| *number)
        .collect();
    let readme = include_str!("../../README.md");
    let mut listed: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `CAP_")?.split('`').next())
        .collect();
    listed.sort_unstable();
    let mut expected: Vec<&str> = README_CAPABILITIES.iter().map(|(_, name)| *name).collect();
    expected.sort_unstable();
    ensure!(
        listed == expected,
        "the README lists {listed:?}, this test {expected:?}"
    );

    let pair = Pair::new()?;
    for node in ["a", "b"] {
        let agent = pair.lab.agent(node)?;
        for field in ["CapEff:", "CapPrm:"] {
            ensure!(
                capabilities(agent, field)? == documented,
                "{field} {:?}",
                capabilities(agent, field)?
            );
        }
        for field in ["CapInh:", "CapAmb:"] {
            ensure!(
                capabilities(agent, field)?.is_empty(),
                "{field} {:?}",
                capabilities(agent, field)?
            );
        }
    }
    Ok(())
}

/// Numbers as in linux/capability.h.
const README_CAPABILITIES: [(u8, &str); 5] = [
    (12, "NET_ADMIN"),
    (13, "NET_RAW"),
    (21, "SYS_ADMIN"),
    (38, "PERFMON"),
    (39, "BPF"),
];

fn run(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(culvert()?).args(arguments).output()?)
}

#[test]
fn exit_codes_are_0_1_and_2() -> Result<()> {
    ensure!(run(&["--help"])?.status.code() == Some(0), "help is fine");
    ensure!(
        run(&["version"])?.status.code() == Some(0),
        "version is fine"
    );
    ensure!(
        run(&["get", "nonsense"])?.status.code() == Some(2),
        "wrong usage is 2"
    );
    // Nobody listens on the discard port of loopback.
    let unreachable = run(&["get", "services", "--admin", "127.0.0.1:9"])?;
    ensure!(unreachable.status.code() == Some(1), "a failure is 1");
    let complaint = String::from_utf8_lossy(&unreachable.stderr).into_owned();
    ensure!(
        complaint.trim().lines().count() == 1 && complaint.contains("127.0.0.1:9"),
        "{complaint}"
    );
    Ok(())
}

#[test]
fn the_agent_refuses_wrong_settings_in_one_sentence() -> Result<()> {
    let lab = Lab::two_nodes()?;
    let manifests = lab.manifests().directory().display().to_string();
    let agent = |more: &[&str]| {
        let words = ["agent", "--node", "a", "--manifests", &manifests];
        lab.node("a")?.culvert(&[words.as_slice(), more].concat())
    };
    let output = agent(&["--run-dir", "/dev/null/nowhere"])?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(1),
        "{}: {complaint}",
        output.status
    );
    ensure!(
        complaint.contains("/dev/null/nowhere") && complaint.trim().lines().count() == 1,
        "{complaint}"
    );
    for wrong in [
        ["--trust-domain", "NOT/VALID"],
        ["--admin", "somewhere"],
        ["--workers", "0"],
    ] {
        let output = agent(&wrong)?;
        ensure!(
            output.status.code() == Some(2),
            "{wrong:?}: {}",
            output.status
        );
    }
    ensure!(
        run(&["agent"])?.status.code() == Some(2),
        "a node name is needed"
    );
    Ok(())
}

#[test]
fn an_agent_without_privileges_says_what_it_lacks_in_one_sentence() -> Result<()> {
    use std::os::unix::process::CommandExt as _;
    const NOBODY: u32 = 65_534;
    let lab = Lab::two_nodes()?;
    // Where anybody may start it from.
    let program = std::env::temp_dir().join(format!("culvert-{}", std::process::id()));
    std::fs::copy(culvert()?, &program)?;
    let output = Command::new(&program)
        .args(["agent", "--node", "a", "--manifests"])
        .arg(lab.manifests().directory())
        .arg("--run-dir")
        .arg(lab.directory().join("run-nobody"))
        .uid(NOBODY)
        .gid(NOBODY)
        .output();
    std::fs::remove_file(&program)?;
    let output = output?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(1),
        "{}: {complaint}",
        output.status
    );
    ensure!(
        complaint.trim().lines().count() == 1
            && complaint.contains("CAP_BPF")
            && complaint.contains("run it as root"),
        "{complaint}"
    );
    Ok(())
}

#[test]
fn the_doctor_reports_each_requirement() -> Result<()> {
    let output = run(&["doctor"])?;
    ensure!(
        output.status.success(),
        "this kernel serves: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    for requirement in ["BTF", "cgroup", "sk_lookup", "io_uring"] {
        ensure!(
            report.contains(requirement),
            "no word of {requirement} in\n{report}"
        );
    }
    Ok(())
}

#[test]
fn certificates_and_keys_are_where_istio_keeps_them() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let pair = Pair::new()?;
    let directory = pair.lab.ca_directory();
    for file in [
        "ca-cert.pem",
        "ca-key.pem",
        "root-cert.pem",
        "cert-chain.pem",
    ] {
        let metadata = std::fs::metadata(directory.join(file)).with_context(|| file.to_owned())?;
        if file == "ca-key.pem" {
            let mode = metadata.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "{file} has mode {mode:o}");
        }
    }
    let secret = std::fs::read_to_string(directory.join("ca-key.pem"))?;
    let line = secret.lines().nth(1).context("a key")?;
    for node in ["a", "b"] {
        ensure!(
            !pair.lab.agent(node)?.log()?.contains(line),
            "the key is in the log of node {node}"
        );
        ensure!(
            !pair
                .lab
                .agent(node)?
                .config_dump()?
                .to_string()
                .contains(line),
            "the key is in the dump"
        );
    }
    Ok(())
}

#[test]
fn an_idle_agent_is_small_and_quiet() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    for number in 0..10 {
        lab.pod("a", &format!("pod{number}"))?;
    }
    lab.start()?;
    let agent = lab.agent("a")?;
    // What is resident of the program's own file depends on how it was compiled; the rest does not. What enrolling took is
    // given back soon after.
    eventually("memory is given back", Duration::from_secs(10), || {
        let memory: u64 = agent.status_field("RssAnon:")?.parse()?;
        ensure!(memory < 8 * 1024, "{memory} KiB resident with ten pods");
        Ok(())
    })?;
    let before = agent.cpu_ticks()?;
    // There is nothing to wait for but time itself.
    std::thread::sleep(Duration::from_secs(5));
    let used = agent.cpu_ticks()? - before;
    ensure!(used <= 3, "{used} ticks of 10 ms in 5 s of idleness");
    Ok(())
}
