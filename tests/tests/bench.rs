//! The load generator that people run in their clusters: through the mesh, with counts that agree at both ends.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::bench::generator::{LoadServer, client, generate, output};
use e2e::lab::{culvert, eventually};
use e2e::scenario::Pair;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Makes 300 requests with some options and checks that client and server have counted the same.
fn agree(
    pair: &Pair,
    server: &LoadServer,
    to: IpAddr,
    counted: &str,
    options: &[&str],
) -> Result<()> {
    let before = server.count(counted, "requests")?;
    let words = [&["-n", "300", "-c", "4", "--payload", "100"], options].concat();
    let report = generate(&pair.client, to, &words)?;
    let requests = &report["requests"];
    ensure!(requests["succeeded"] == 300, "{report}");
    ensure!(report["errors"] == serde_json::json!({}), "{report}");
    ensure!(report["rate"].as_f64() > Some(0.0), "{report}");
    ensure!(report["latency_us"]["count"] == 300, "{report}");
    let after = server.count(counted, "requests")?;
    ensure!(
        requests["total"].as_u64() == Some(after - before),
        "the server counts {}: {report}",
        after - before
    );
    Ok(())
}

#[test]
fn each_protocol_is_measured_through_the_mesh() -> Result<()> {
    let pair = Pair::new()?;
    let server = LoadServer::start(&pair.server)?;
    for address in [pair.server.v4(), pair.server.v6()] {
        pair.encrypted("x-bench-secret", || {
            let run = |counted: &str, options: &[&str]| {
                agree(&pair, &server, address, counted, options)
                    .with_context(|| format!("{options:?} to {address}"))
            };
            run("http1", &["-p", "http1", "-H", "x-of: x-bench-secret"])?;
            run("http1", &["-p", "http1", "--response-size", "1M"])?;
            run("http1", &["-p", "http1", "--rate", "1000"])?;
            run("h2", &["-p", "h2", "-m", "8"])?;
            run("grpc", &["-p", "grpc", "-m", "8", "--response-size", "16k"])?;
            run("tcp", &["-p", "tcp"])?;
            run("tcp", &["-p", "connect"])
        })?;
    }
    let opened = pair
        .lab
        .agent("a")?
        .metric("istio_tcp_connections_opened_total", &[])?;
    ensure!(opened > 600.0, "{opened} connections went through the mesh");
    Ok(())
}

#[test]
fn bulk_and_idle_connections_are_measured_through_the_mesh() -> Result<()> {
    let pair = Pair::new()?;
    let server = LoadServer::start(&pair.server)?;
    let to = pair.server.v4();
    let time = ["--warmup", "0s", "--duration", "500ms"];
    let both = ["-p", "bulk", "-c", "2", "--direction", "both"];
    let report = generate(&pair.client, to, &[&both[..], &time].concat())?;
    let bulk = &report["bulk"];
    for way in ["upload_gbit_s", "download_gbit_s"] {
        ensure!(bulk[way].as_f64() > Some(0.0), "{report}");
    }
    let received = server.count("bulk", "bytes_received")?;
    ensure!(
        bulk["uploaded_bytes"].as_u64() == Some(received),
        "{received}: {report}"
    );

    let idle = ["-p", "idle", "-c", "200"];
    let report = generate(&pair.client, to, &[&idle[..], &time].concat())?;
    ensure!(report["requests"]["succeeded"] == 200, "{report}");
    let asked = server.count("tcp", "requests")?;
    ensure!(
        report["requests"]["total"].as_u64() == Some(asked),
        "{asked}: {report}"
    );
    Ok(())
}

#[test]
fn a_run_that_is_interrupted_reports_what_it_has() -> Result<()> {
    let pair = Pair::new()?;
    let server = LoadServer::start(&pair.server)?;
    let mut command = client(pair.server.v4(), &["--warmup", "0s", "--duration", "1h"])?;
    let child = pair.client.enter(command.stdout(Stdio::piped()))?.spawn()?;
    eventually("requests arrive", Duration::from_secs(10), || {
        let count = server.count("http1", "requests")?;
        ensure!(count > 100, "{count}");
        Ok(())
    })?;
    kill(Pid::from_raw(child.id().try_into()?), Signal::SIGINT)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(report["interrupted"] == true, "{report}");
    ensure!(
        report["requests"]["succeeded"].as_u64() > Some(50),
        "{report}"
    );
    Ok(())
}

#[test]
fn failures_and_wrong_words_have_exit_codes() -> Result<()> {
    let pair = Pair::new()?;
    for (options, code, words) in [
        (
            &["-p", "tcp"][..],
            1,
            "does `culvert bench server` run there?",
        ),
        (
            &["-p", "tcp", "--streams", "2"],
            2,
            "--streams does not go with tcp",
        ),
        (&["--rate", "0"], 2, "--rate"),
    ] {
        let output = output(&pair.client, pair.server.v4(), options)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(code),
            "{options:?}: {}",
            output.status
        );
        ensure!(said.contains(words), "{options:?}: {said}");
    }
    Ok(())
}

#[test]
fn runs_with_and_without_the_mesh_become_one_report() -> Result<()> {
    let pair = Pair::new()?;
    let _server = LoadServer::start(&pair.server)?;
    let file = |name: &str, invocation: &str, plane: &str| -> Result<String> {
        let options = ["-n", "100", "--invocation", invocation, "--plane", plane];
        let report = generate(&pair.client, pair.server.v4(), &options)?;
        let path = pair.lab.directory().join(name);
        std::fs::write(&path, report.to_string())?;
        Ok(path.display().to_string())
    };
    let runs = [
        file("one.json", "first", "direct")?,
        file("two.json", "first", "mesh")?,
        file("three.json", "second", "other")?,
    ];
    let output = Command::new(culvert()?)
        .args(["bench", "report", "--output", "json"])
        .args(&runs)
        .output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let versus = |at: usize| &report["rows"][at]["versus"];
    ensure!(versus(1)["rate"]["median"].as_f64() > Some(0.0), "{report}");
    ensure!(versus(2).is_null(), "{report}");
    let why = report["notes"][0].as_str().unwrap_or_default();
    ensure!(why.contains("not run in one invocation"), "{report}");
    Ok(())
}
