//! Ratios are of runs that were made together, or they are not there.

use crate::bench::report::{
    Distribution, GeneratorReport, PlanReport, RequestsReport, RunReport, SCHEMA,
};
use crate::bench::{BenchError, Comparison, compare, read_runs};

fn run(invocation: &str, plane: &str, rate: f64) -> RunReport {
    RunReport {
        schema: SCHEMA.to_owned(),
        invocation: invocation.to_owned(),
        plane: plane.to_owned(),
        load: "http1 c=64".to_owned(),
        plan: PlanReport {
            protocol: "http1".to_owned(),
            target: "server:8080".to_owned(),
            connections: 64,
            streams: 1,
            rate: None,
            payload_bytes: 0,
            response_bytes: 64,
            warmup_seconds: 1.0,
            direction: None,
        },
        interrupted: false,
        seconds: 10.0,
        rate,
        requests: RequestsReport::default(),
        bytes_sent: 0,
        bytes_received: 0,
        errors: [("timeout".to_owned(), 1)].into(),
        latency_us: Some(Distribution {
            count: 1,
            min: 1.0,
            mean: 1e6 / rate,
            p50: 1e6 / rate,
            p90: 2e6 / rate,
            p99: 4e6 / rate,
            p999: 8e6 / rate,
            max: 9e6 / rate,
            curve: Vec::new(),
        }),
        service_us: None,
        connect_us: None,
        pacing_us: None,
        bulk: None,
        intervals: Vec::new(),
        generator: GeneratorReport::default(),
    }
}

fn ratio(comparison: &Comparison, plane: &str) -> Option<[f64; 4]> {
    let row = comparison.rows.iter().find(|row| row.plane == plane);
    let versus = row.unwrap().versus?;
    let rate = versus.rate;
    Some([rate.low, rate.median, rate.high, versus.p99.unwrap().median])
}

#[test]
fn ratios_are_paired_run_by_run() {
    let runs = [
        run("one", "direct", 1000.0),
        run("one", "mesh", 500.0),
        run("one", "direct", 2000.0),
        run("one", "mesh", 1500.0),
        run("one", "direct", 4000.0),
        run("one", "mesh", 1000.0),
    ];
    let comparison = compare(&runs, None).unwrap();
    assert_eq!(comparison.baseline, "direct");
    assert_eq!(ratio(&comparison, "mesh"), Some([0.25, 0.5, 0.75, 2.0]));
    assert_eq!(ratio(&comparison, "direct"), None);
    assert_eq!(comparison.notes, Vec::<String>::new());
    let cells = comparison.cells();
    let expected = [
        "http1 c=64",
        "mesh",
        "3",
        "1000/s",
        "(500-1500)",
        "0.50 (0.25-0.75)",
        "1.00 ms",
        "4.00 ms",
        "2.00 (1.33-4.00)",
        "3",
    ];
    assert_eq!(cells[1], expected);
}

#[test]
fn runs_of_different_invocations_have_no_ratio() {
    let runs = [run("one", "direct", 1000.0), run("two", "mesh", 500.0)];
    let comparison = compare(&runs, Some("direct")).unwrap();
    assert_eq!(ratio(&comparison, "mesh"), None);
    assert_eq!(
        comparison.notes,
        [
            "http1 c=64: no ratio of `mesh` (two) to `direct` (one), because they were not run in one invocation"
        ]
    );
    // Only what has a partner makes the ratio.
    let more = [
        &runs[..],
        &[run("two", "direct", 250.0), run("three", "mesh", 9.0)],
    ]
    .concat();
    let comparison = compare(&more, None).unwrap();
    assert_eq!(ratio(&comparison, "mesh"), Some([2.0, 2.0, 2.0, 0.5]));
}

#[test]
fn a_missing_baseline_is_named() {
    let comparison = compare(&[run("one", "mesh", 1.0)], Some("direct")).unwrap();
    assert_eq!(
        comparison.notes,
        ["http1 c=64: no ratio of `mesh`, because `direct` has no such run"]
    );
    assert!(matches!(compare(&[], None), Err(BenchError::Nothing)));
}

#[test]
fn reports_are_read_as_logs_have_them() {
    let (one, other) = (run("one", "direct", 1.0), run("one", "mesh", 2.0));
    let text = format!(
        "{}\n{}",
        serde_json::to_string_pretty(&one).unwrap(),
        serde_json::to_string(&other).unwrap()
    );
    assert_eq!(read_runs("log", &text).unwrap(), [one, other]);
    let error = read_runs("log", "Error: no server")
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "log holds no report of `culvert bench client -o json`"
    );
}
