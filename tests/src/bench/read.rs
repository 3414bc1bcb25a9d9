//! Reading what load generators print.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::load::Output;

/// What one run measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Requests or Gbit a second; for connections that are held, their number.
    pub rate: f64,
    /// Units of work in the whole run: requests, GB, or connections.
    pub work: f64,
    /// Requests that failed, where the generator goes on then.
    pub errors: u64,
    /// Median latency in microseconds, where the load has one.
    pub p50_us: Option<f64>,
    /// The latency that one request in a hundred exceeds.
    pub p99_us: Option<f64>,
    /// One in a thousand.
    pub p999_us: Option<f64>,
    /// Share of requests and the latency in microseconds that it does not exceed.
    pub curve: Vec<(f64, f64)>,
}

impl Measured {
    /// Reads a generator's output.
    ///
    /// # Errors
    /// If it is not that, or the generator saw errors that make a run worth nothing: a fast error is no result.
    pub fn read(text: &str, output: Output) -> Result<Self> {
        match output {
            Output::Wrk => wrk(text),
            Output::Iperf => iperf(text),
            Output::Own => own(text),
        }
    }
}

/// Reads wrk's report.
fn wrk(text: &str) -> Result<Measured> {
    for bad in ["Socket errors:", "Non-2xx"] {
        if let Some(line) = text.lines().find(|line| line.contains(bad)) {
            bail!("wrk saw errors:{line}");
        }
    }
    let line = |prefix: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(prefix))
    };
    let rate = line("Requests/sec:")
        .context("wrk printed no rate")?
        .trim()
        .parse()?;
    let work = text
        .lines()
        .find_map(|line| line.split_once(" requests in ")?.0.trim().parse().ok())
        .context("wrk printed no number of requests")?;
    let latency = |share: &str| line(share).and_then(|text| microseconds(text.trim()));
    let percentiles = [("50%", 0.5), ("75%", 0.75), ("90%", 0.9), ("99%", 0.99)];
    let points = percentiles.into_iter();
    Ok(Measured {
        rate,
        work,
        p50_us: latency("50%"),
        p99_us: latency("99%"),
        curve: points
            .filter_map(|(text, share)| Some((share, latency(text)?)))
            .collect(),
        ..Measured::default()
    })
}

/// `812.00us`, `1.25ms`, `2.00s`.
fn microseconds(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    units
        .into_iter()
        .find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
}

/// Reads iperf3's JSON: what the receiver got.
fn iperf(text: &str) -> Result<Measured> {
    let report: Value = serde_json::from_str(text).context("iperf3 printed no JSON")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let received = &report["end"]["sum_received"];
    let bits = received["bits_per_second"]
        .as_f64()
        .context("iperf3 reports no rate")?;
    let bytes = received["bytes"]
        .as_f64()
        .context("iperf3 reports no bytes")?;
    Ok(Measured {
        rate: bits / 1e9,
        work: bytes / 1e9,
        ..Measured::default()
    })
}

/// Reads the JSON of `culvert bench client`. Work is all that was sent, as CPU time is that of all of it.
fn own(text: &str) -> Result<Measured> {
    let report: Value = serde_json::from_str(text).context("culvert bench printed no JSON")?;
    let count = |which: &str| {
        report["requests"][which]
            .as_f64()
            .context("no number of requests")
    };
    let (rate, work) = if report["plan"]["protocol"] == "idle" {
        (count("succeeded")?, count("succeeded")?)
    } else {
        (report["rate"].as_f64().context("no rate")?, count("total")?)
    };
    let errors = report["errors"].as_object().context("no errors")?;
    let latency = &report["latency_us"];
    let points = latency["curve"].as_array().into_iter().flatten();
    Ok(Measured {
        rate,
        work,
        errors: errors.values().filter_map(Value::as_u64).sum(),
        p50_us: latency["p50"].as_f64(),
        p99_us: latency["p99"].as_f64(),
        p999_us: latency["p999"].as_f64(),
        curve: points
            .filter_map(|point| Some((point[0].as_f64()?, point[1].as_f64()?)))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::{Measured, Output};

    #[track_caller]
    fn reads(text: &str, output: Output, expected: &Measured) {
        assert_eq!(Measured::read(text, output).unwrap(), *expected);
    }

    #[test]
    fn wrk_reports_are_read() {
        let report = "Running 2s test @ http://10.0.0.2/\n  2 threads and 64 connections\n  Latency Distribution\n     \
                      50%    1.25ms\n     99%    3.00ms\n  41234 requests in 2.00s, 5.00MB read\nRequests/sec:  20600.10\n";
        let expected = Measured {
            rate: 20600.1,
            work: 41234.0,
            p50_us: Some(1250.0),
            p99_us: Some(3000.0),
            curve: vec![(0.5, 1250.0), (0.99, 3000.0)],
            ..Measured::default()
        };
        reads(report, Output::Wrk, &expected);
    }

    #[test]
    fn a_run_with_errors_is_no_result() {
        for (text, output) in [
            (
                "  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec: 1.0\n",
                Output::Wrk,
            ),
            (r#"{"error": "unable to connect"}"#, Output::Iperf),
            ("{}", Output::Own),
            ("", Output::Own),
        ] {
            assert!(Measured::read(text, output).is_err(), "{text}");
        }
    }

    #[test]
    fn iperf_reports_are_read() {
        let report =
            r#"{"end": {"sum_received": {"bits_per_second": 8.5e9, "bytes": 2125000000}}}"#;
        let expected = Measured {
            rate: 8.5,
            work: 2.125,
            ..Measured::default()
        };
        reads(report, Output::Iperf, &expected);
    }

    #[test]
    fn reports_of_our_own_generator_are_read() {
        let report = r#"{"plan": {"protocol": "http1"}, "rate": 500.5, "requests": {"succeeded": 2002, "total": 2503},
            "errors": {"timeout": 2, "status 503": 1}, "latency_us": {"p50": 90.5, "p99": 400, "p999": 700, "curve": [[0.0, 10.0], [0.5, 90.5], [1.0, 700.0]]}}"#;
        let expected = Measured {
            rate: 500.5,
            work: 2503.0,
            errors: 3,
            p50_us: Some(90.5),
            p99_us: Some(400.0),
            p999_us: Some(700.0),
            curve: vec![(0.0, 10.0), (0.5, 90.5), (1.0, 700.0)],
        };
        reads(report, Output::Own, &expected);
        let idle = r#"{"plan": {"protocol": "idle"}, "rate": 0.5, "requests": {"succeeded": 100}, "errors": {}}"#;
        let expected = Measured {
            rate: 100.0,
            work: 100.0,
            ..Measured::default()
        };
        reads(idle, Output::Own, &expected);
    }
}
