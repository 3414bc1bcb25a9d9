//! What a run measured, as JSON for programs and as lines for people.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::plan::{Extent, Loop, Plan};
use super::tally::{Course, Durations, Tally};

/// Version of the report's form.
pub const SCHEMA: &str = "culvert.dev/bench/v1";

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// [`SCHEMA`].
    pub schema: String,
    /// Only runs of one invocation may be compared.
    pub invocation: String,
    /// What carried the traffic.
    pub plane: String,
    /// The load's name; the same load on another plane has the same.
    pub load: String,
    /// What was to be done.
    pub plan: PlanReport,
    /// Whether it was stopped before its time; what it had by then is here.
    pub interrupted: bool,
    /// Seconds that count.
    pub seconds: f64,
    /// Requests done well a second; 0 for bulk.
    pub rate: f64,
    /// Requests by fate.
    pub requests: RequestsReport,
    /// Bytes of request bodies whose requests were done well while it counts.
    pub bytes_sent: u64,
    /// Bytes of their responses' bodies.
    pub bytes_received: u64,
    /// Failures by cause, at any time of the run.
    pub errors: BTreeMap<String, u64>,
    /// From when a request was meant to be sent until it was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<Distribution>,
    /// From when it was sent: what a generator reports that does not look at what it could not send. Open loop only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_us: Option<Distribution>,
    /// How long connecting took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<Distribution>,
    /// How late the generator itself was. Open loop only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pacing_us: Option<Distribution>,
    /// What bulk moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bulk: Option<BulkReport>,
    /// The run's course.
    pub intervals: Vec<IntervalReport>,
    /// What the generator itself needed.
    pub generator: GeneratorReport,
}

/// What was to be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanReport {
    /// As it is typed.
    pub protocol: String,
    /// Host and port.
    pub target: String,
    /// Open at once.
    pub connections: usize,
    /// Requests at once on each.
    pub streams: usize,
    /// Requests a second; absent in closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Bytes of each request's body.
    pub payload_bytes: usize,
    /// Bytes of each response's body, if the run could say so.
    pub response_bytes: usize,
    /// Seconds that did not count.
    pub warmup_seconds: f64,
    /// Which way bulk went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
}

/// Requests by fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestsReport {
    /// Sent, including the first one that tries the server, warm-up and failures: what the server counts too.
    pub total: u64,
    /// Meant for the time that counts and answered well.
    pub succeeded: u64,
    /// Meant for the time that counts and failed.
    pub failed: u64,
    /// Meant for the time that counts and never sent, because no connection was free until the end.
    pub unsent: u64,
}

/// Durations in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// How many.
    pub count: u64,
    /// The shortest.
    pub min: f64,
    /// Their mean.
    pub mean: f64,
    /// Half are at most so long.
    pub p50: f64,
    /// 90 of 100.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// Share and the duration that it does not exceed, closer together towards the end.
    pub curve: Vec<(f64, f64)>,
}

/// What bulk moved, as the receivers counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BulkReport {
    /// Gbit/s from client to server, while it counts.
    pub upload_gbit_s: f64,
    /// Gbit/s from server to client, while it counts.
    pub download_gbit_s: f64,
    /// Bytes from client to server, at any time.
    pub uploaded_bytes: u64,
    /// Bytes from server to client, at any time.
    pub downloaded_bytes: u64,
}

/// One interval of the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct IntervalReport {
    /// Its end, in seconds from when the run counts.
    pub at_s: f64,
    /// Requests done well.
    pub completed: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Bytes of bodies, both ways.
    pub bytes: u64,
    /// Median latency of what was done.
    pub p50_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
}

/// What the generator itself needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GeneratorReport {
    /// Threads.
    pub threads: usize,
    /// CPU time while it counts, in seconds.
    pub cpu_seconds: f64,
    /// CPU time by what its threads could have used: near 1, the figures are the generator's limit.
    pub busy: f64,
}

/// What a run leaves to its report.
pub(super) struct Finished<'a> {
    pub(super) plan: &'a Plan,
    pub(super) tally: &'a Tally,
    pub(super) bulk: Option<BulkReport>,
    pub(super) intervals: Vec<IntervalReport>,
    pub(super) counted: Duration,
    pub(super) cpu: Duration,
    pub(super) interrupted: bool,
}

impl Finished<'_> {
    pub(super) fn report(self) -> RunReport {
        let Self { plan, tally, .. } = self;
        let seconds = self.counted.as_secs_f64();
        let (rate, warmup) = match (plan.pace, plan.extent) {
            (Loop::Open { rate }, extent) => (Some(rate), extent),
            (Loop::Closed, extent) => (None, extent),
        };
        let warmup = match warmup {
            Extent::Time { warmup, .. } => warmup,
            Extent::Requests(_) => Duration::ZERO,
        };
        let open = |durations: &Durations| rate.and_then(|_| Distribution::of(durations));
        RunReport {
            schema: SCHEMA.to_owned(),
            invocation: plan.invocation.clone(),
            plane: plan.plane.clone(),
            load: plan.load(),
            plan: PlanReport {
                protocol: plan.protocol.name().to_owned(),
                target: plan.target.authority(plan.port()),
                connections: plan.connections.get(),
                streams: plan.streams.get(),
                rate,
                payload_bytes: plan.payload,
                response_bytes: plan.response,
                warmup_seconds: warmup.as_secs_f64(),
                direction: self.bulk.map(|_| plan.direction.name().to_owned()),
            },
            interrupted: self.interrupted,
            seconds,
            rate: by(float(tally.completed), seconds),
            requests: RequestsReport {
                total: tally.total,
                succeeded: tally.succeeded,
                failed: tally.failed,
                unsent: tally.unsent,
            },
            bytes_sent: tally.bytes_sent,
            bytes_received: tally.bytes_received,
            errors: tally
                .failures
                .iter()
                .map(|(failure, count)| (failure.to_string(), *count))
                .collect(),
            latency_us: Distribution::of(&tally.latency),
            service_us: open(&tally.service),
            connect_us: Distribution::of(&tally.connect),
            pacing_us: open(&tally.pacing),
            bulk: self.bulk,
            intervals: self.intervals,
            generator: GeneratorReport {
                threads: plan.threads.get(),
                cpu_seconds: self.cpu.as_secs_f64(),
                busy: by(
                    self.cpu.as_secs_f64(),
                    seconds * float(plan.threads.get() as u64),
                ),
            },
        }
    }
}

impl IntervalReport {
    pub(super) fn of(course: &Course, at: Duration) -> Self {
        Self {
            at_s: at.as_secs_f64(),
            completed: course.completed,
            failed: course.failed,
            bytes: course.bytes,
            p50_us: micros(course.latency.percentile(50.0)),
            p99_us: micros(course.latency.percentile(99.0)),
        }
    }
}

impl Distribution {
    /// `None` of nothing.
    pub(super) fn of(durations: &Durations) -> Option<Self> {
        let all = durations.filled()?;
        let at = |percent: f64| micros(durations.percentile(percent));
        // Two points for each halving of what is left: some forty for a million.
        let curve = all.iter_quantiles(2).map(|step| {
            let value = micros(Duration::from_nanos(step.value_iterated_to()));
            (step.quantile_iterated_to(), value)
        });
        Some(Self {
            count: all.len(),
            min: micros(Duration::from_nanos(all.min())),
            mean: rounded(all.mean() / 1e3),
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p999: at(99.9),
            max: micros(Duration::from_nanos(all.max())),
            curve: curve.collect(),
        })
    }
}

/// Microseconds with one digit after the point: the rest is noise.
fn micros(duration: Duration) -> f64 {
    rounded(duration.as_secs_f64() * 1e6)
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// 0 where there is nothing to divide by.
pub(super) fn by(one: f64, other: f64) -> f64 {
    if other > 0.0 { one / other } else { 0.0 }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a report of counts above 2^53 may be off by one"
)]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

/// A number of microseconds as people read it.
pub(super) struct Micros(pub(super) f64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            us if us < 1e3 => format!("{us:.0} us"),
            us if us < 1e6 => format!("{:.2} ms", us / 1e3),
            us => format!("{:.2} s", us / 1e6),
        };
        f.pad(&text)
    }
}

impl RunReport {
    /// Whether nothing failed and something was done.
    pub fn is_clean(&self) -> bool {
        let moved = self
            .bulk
            .is_some_and(|bulk| bulk.uploaded_bytes + bulk.downloaded_bytes > 0);
        self.errors.is_empty() && (self.requests.succeeded > 0 || moved)
    }

    /// Lines for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _infallible = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let stopped = if self.interrupted {
            ", interrupted"
        } else {
            ""
        };
        writeln!(
            out,
            "{} to {} for {:.1} s{stopped}",
            self.load, self.plan.target, self.seconds
        )?;
        if let Some(bulk) = self.bulk {
            writeln!(
                out,
                "  upload {:.2} Gbit/s, download {:.2} Gbit/s",
                bulk.upload_gbit_s, bulk.download_gbit_s
            )?;
        } else {
            let RequestsReport {
                succeeded,
                failed,
                unsent,
                ..
            } = self.requests;
            writeln!(
                out,
                "  {:.1} requests/s: {succeeded} succeeded, {failed} failed, {unsent} never sent",
                self.rate
            )?;
            let body = float(self.bytes_sent + self.bytes_received);
            writeln!(out, "  {:.1} MB/s of bodies", by(body / 1e6, self.seconds))?;
        }
        let rows = [
            ("latency", &self.latency_us),
            ("from sending", &self.service_us),
            ("connecting", &self.connect_us),
            ("generator late", &self.pacing_us),
        ];
        if rows.iter().any(|(_, row)| row.is_some()) {
            writeln!(
                out,
                "  {:<14} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
                "", "min", "p50", "p90", "p99", "p99.9", "max"
            )?;
        }
        for (name, row) in rows {
            let Some(row) = row else { continue };
            write!(out, "  {name:<14}")?;
            for value in [row.min, row.p50, row.p90, row.p99, row.p999, row.max] {
                write!(out, " {:>10}", Micros(value))?;
            }
            out.push('\n');
        }
        for (error, count) in &self.errors {
            writeln!(out, "  {count} x {error}")?;
        }
        for warning in self.warnings() {
            writeln!(out, "  note: {warning}")?;
        }
        Ok(())
    }

    /// What makes the figures less than they seem.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.generator.busy > 0.9 {
            warnings.push(format!(
                "the generator used {:.0} % of its {} threads: these may be its own limits; try more --threads",
                self.generator.busy * 100.0,
                self.generator.threads
            ));
        }
        let late = self.pacing_us.as_ref().map_or(0.0, |pacing| pacing.p99);
        let median = self.latency_us.as_ref().map_or(0.0, |latency| latency.p50);
        if late > median / 2.0 && late > 100.0 {
            warnings.push(format!(
                "the generator itself was late by {} (p99): its machine is busy",
                Micros(late)
            ));
        }
        if self.requests.unsent > 0 {
            warnings.push(
                "what was never sent counts as taking until the end: the true latencies are higher"
                    .to_owned(),
            );
        }
        warnings
    }
}
