//! Several runs beside each other: medians, spreads, and ratios of runs that were made together.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize as _, Serialize};

use super::failure::BenchError;
use super::report::{Micros, RunReport};

/// Lowest, median, highest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The lowest.
    pub low: f64,
    /// The one in the middle; of an even number the upper of two.
    pub median: f64,
    /// The highest.
    pub high: f64,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            low: *sorted.first()?,
            median: *sorted.get(sorted.len() / 2)?,
            high: *sorted.last()?,
        })
    }
}

/// One load on one plane.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The load.
    pub load: String,
    /// What carried it.
    pub plane: String,
    /// How many runs.
    pub runs: usize,
    /// `requests/s` or `Gbit/s`.
    pub unit: &'static str,
    /// In that unit.
    pub rate: Spread,
    /// Median latency in microseconds; the median over the runs.
    pub p50_us: Option<f64>,
    /// 99 of 100.
    pub p99_us: Option<f64>,
    /// 999 of 1,000.
    pub p999_us: Option<f64>,
    /// Failures of all runs.
    pub errors: u64,
    /// To the baseline, where both sides are of one invocation.
    pub versus: Option<Versus>,
}

/// Ratios to the baseline, run by run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Versus {
    /// Of the rates.
    pub rate: Spread,
    /// Of the latencies that one of 100 exceeds.
    pub p99: Option<Spread>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The plane that the others are compared with.
    pub baseline: String,
    /// By load, the baseline first.
    pub rows: Vec<Row>,
    /// Why a ratio is missing.
    pub notes: Vec<String>,
}

/// Reads the reports of a text: JSON documents one after the other, as the logs of several runs have them.
///
/// # Errors
/// [`BenchError::Decode`] with `origin`, if something else is in it.
pub fn read_runs(origin: &str, text: &str) -> Result<Vec<RunReport>, BenchError> {
    let documents = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
    let mut runs = Vec::new();
    for document in documents {
        let run = document.and_then(RunReport::deserialize);
        runs.push(run.map_err(|source| BenchError::Decode {
            origin: origin.to_owned(),
            source,
        })?);
    }
    Ok(runs)
}

/// Puts runs beside each other. A ratio is made of two runs of one invocation only: the first of one plane with the
/// first of the other, and so on, because what disturbs a machine disturbs runs that follow each other alike.
///
/// # Errors
/// [`BenchError::Nothing`] if there are no runs.
pub fn compare(runs: &[RunReport], baseline: Option<&str>) -> Result<Comparison, BenchError> {
    let first = runs.first().ok_or(BenchError::Nothing)?;
    let baseline = baseline.unwrap_or(&first.plane).to_owned();
    let mut loads: Vec<&str> = Vec::new();
    let mut planes: Vec<&str> = vec![&baseline];
    for run in runs {
        if !loads.contains(&&*run.load) {
            loads.push(&run.load);
        }
        if !planes.contains(&&*run.plane) {
            planes.push(&run.plane);
        }
    }
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for load in loads {
        let of = |plane: &str| -> Vec<&RunReport> {
            let found = runs
                .iter()
                .filter(|run| run.load == load && run.plane == plane);
            found.collect()
        };
        let base = of(&baseline);
        for plane in &planes {
            let own = of(plane);
            let Some(mut row) = row(load, plane, &own) else {
                continue;
            };
            if **plane != baseline {
                match versus(&own, &base) {
                    Some(found) => row.versus = Some(found),
                    None => notes.push(refusal(load, plane, &own, &baseline, &base)),
                }
            }
            rows.push(row);
        }
    }
    Ok(Comparison {
        baseline,
        rows,
        notes,
    })
}

fn rate(run: &RunReport) -> f64 {
    run.bulk
        .map_or(run.rate, |bulk| bulk.upload_gbit_s + bulk.download_gbit_s)
}

fn row(load: &str, plane: &str, runs: &[&RunReport]) -> Option<Row> {
    let latency = |pick: fn(&super::Distribution) -> f64| {
        let picked = runs
            .iter()
            .filter_map(|run| run.latency_us.as_ref().map(pick));
        Spread::of(picked).map(|spread| spread.median)
    };
    let is_bulk = runs.first()?.bulk.is_some();
    Some(Row {
        load: load.to_owned(),
        plane: plane.to_owned(),
        runs: runs.len(),
        unit: if is_bulk { "Gbit/s" } else { "requests/s" },
        rate: Spread::of(runs.iter().map(|run| rate(run)))?,
        p50_us: latency(|all| all.p50),
        p99_us: latency(|all| all.p99),
        p999_us: latency(|all| all.p999),
        errors: runs.iter().flat_map(|run| run.errors.values()).sum(),
        versus: None,
    })
}

fn versus(own: &[&RunReport], base: &[&RunReport]) -> Option<Versus> {
    let pairs = pairs(own, base);
    let p99 = |run: &RunReport| run.latency_us.as_ref().map(|all| all.p99);
    let rates = pairs.iter().map(|(own, base)| (rate(own), rate(base)));
    let latencies = pairs
        .iter()
        .filter_map(|(own, base)| Some((p99(own)?, p99(base)?)));
    Some(Versus {
        rate: ratios(rates)?,
        p99: ratios(latencies),
    })
}

/// The n-th run of each invocation on one plane with the n-th of the same invocation on the other.
fn pairs<'a>(own: &[&'a RunReport], base: &[&'a RunReport]) -> Vec<(&'a RunReport, &'a RunReport)> {
    let by_invocation = |runs: &[&'a RunReport]| {
        let mut sorted: BTreeMap<&'a str, Vec<&'a RunReport>> = BTreeMap::new();
        for run in runs {
            sorted.entry(&run.invocation).or_default().push(run);
        }
        sorted
    };
    let base = by_invocation(base);
    let own = by_invocation(own);
    let both = own
        .into_iter()
        .filter_map(|(invocation, own)| Some((own, base.get(invocation)?)));
    both.flat_map(|(own, base)| own.into_iter().zip(base.iter().copied()))
        .collect()
}

fn ratios(pairs: impl Iterator<Item = (f64, f64)>) -> Option<Spread> {
    Spread::of(
        pairs
            .filter(|(_, base)| *base > 0.0)
            .map(|(own, base)| own / base),
    )
}

fn refusal(
    load: &str,
    plane: &str,
    own: &[&RunReport],
    baseline: &str,
    base: &[&RunReport],
) -> String {
    if base.is_empty() {
        return format!("{load}: no ratio of `{plane}`, because `{baseline}` has no such run");
    }
    let invocations = |runs: &[&RunReport]| {
        let names: BTreeSet<&str> = runs.iter().map(|run| &*run.invocation).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    };
    if pairs(own, base).is_empty() {
        return format!(
            "{load}: no ratio of `{plane}` ({}) to `{baseline}` ({}), because they were not run in one invocation",
            invocations(own),
            invocations(base)
        );
    }
    format!("{load}: no ratio of `{plane}`, because `{baseline}` did nothing")
}

impl Comparison {
    /// Headings of the table.
    pub const HEADINGS: [&str; 10] = [
        "LOAD",
        "PLANE",
        "RUNS",
        "RATE",
        "(LOW-HIGH)",
        "RATIO",
        "P50",
        "P99",
        "P99 RATIO",
        "ERRORS",
    ];

    /// Cells of the table.
    pub fn cells(&self) -> Vec<[String; 10]> {
        let mut cells = Vec::new();
        let latency = |us: Option<f64>| us.map_or_else(String::new, |us| Micros(us).to_string());
        let ratio = |spread: Option<Spread>| {
            spread.map_or_else(String::new, |spread| {
                format!(
                    "{:.2} ({:.2}-{:.2})",
                    spread.median, spread.low, spread.high
                )
            })
        };
        for row in &self.rows {
            let digits = usize::from(row.unit == "Gbit/s") * 2;
            let Spread { low, median, high } = row.rate;
            let unit = if digits > 0 { " Gbit/s" } else { "/s" };
            cells.push([
                row.load.clone(),
                row.plane.clone(),
                row.runs.to_string(),
                format!("{median:.digits$}{unit}"),
                format!("({low:.digits$}-{high:.digits$})"),
                ratio(row.versus.map(|versus| versus.rate)),
                latency(row.p50_us),
                latency(row.p99_us),
                ratio(row.versus.and_then(|versus| versus.p99)),
                row.errors.to_string(),
            ]);
        }
        cells
    }
}
