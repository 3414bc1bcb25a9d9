//! From runs to figures: medians, spreads, and ratios of runs that were made together.

use serde::Serialize;

use super::round::Run;

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
pub struct Figures {
    /// The load.
    pub load: String,
    /// The plane.
    pub plane: String,
    /// Of which invocation.
    pub invocation: String,
    /// How many runs.
    pub runs: usize,
    /// In the load's unit.
    pub rate: Spread,
    /// Requests that failed, in all runs.
    pub errors: u64,
    /// Median latency in microseconds; the median over the runs.
    pub p50_us: Option<f64>,
    /// Of 99 in 100.
    pub p99_us: Option<f64>,
    /// Of 999 in 1,000.
    pub p999_us: Option<f64>,
    /// Distribution of the run whose median latency is in the middle.
    pub curve: Vec<(f64, f64)>,
    /// The plane's own CPU microseconds for each request, GB or connection.
    pub proxy_cpu_us: Option<Spread>,
    /// The whole machine's for each of them, generator and server included.
    pub machine_cpu_us: Option<Spread>,
    /// Resident memory of the plane's processes after the last run, in bytes.
    pub resident: Option<f64>,
    /// What each held connection takes of it.
    pub bytes_per_connection: Option<f64>,
    /// The largest share of the machine that others used.
    pub others: f64,
    /// Compared with other planes.
    pub ratios: Vec<Ratio>,
}

/// This plane by another one, round by round, because what disturbs one run disturbs those right after it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The other one.
    pub to: String,
    /// Of rates.
    pub rate: Spread,
    /// Of latencies that one request in a hundred exceeds.
    pub p99: Option<Spread>,
    /// Of the planes' own CPU time for the same work.
    pub proxy_cpu: Option<Spread>,
    /// Of the whole machine's.
    pub machine_cpu: Option<Spread>,
}

/// Figures of all runs, in the order in which loads and planes appear. `compared` says which plane is compared with
/// which; where both were not run in one invocation there is no ratio.
pub fn figures(runs: &[Run], compared: &[(String, String)]) -> Vec<Figures> {
    let mut keys: Vec<(&str, &str, &str)> = Vec::new();
    for run in runs {
        let key = (&*run.load, &*run.invocation, &*run.plane);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    // Loads together, however runs were interleaved.
    let mut loads: Vec<&str> = Vec::new();
    for (load, ..) in &keys {
        if !loads.contains(load) {
            loads.push(load);
        }
    }
    let of = |(load, invocation, plane): (&str, &str, &str)| -> Vec<&Run> {
        let found = runs
            .iter()
            .filter(|run| run.load == load && run.plane == plane && run.invocation == invocation);
        found.collect()
    };
    let mut all = Vec::new();
    for load in loads {
        for key in keys.iter().filter(|key| key.0 == load) {
            let (_, invocation, plane) = *key;
            let own = of(*key);
            let others = compared.iter().filter(|(one, _)| one == plane);
            let ratios =
                others.filter_map(|(_, other)| ratio(other, &own, &of((load, invocation, other))));
            let ratios = ratios.collect();
            all.extend(summary(&own, ratios));
        }
    }
    all
}

fn summary(runs: &[&Run], ratios: Vec<Ratio>) -> Option<Figures> {
    let (first, last) = (runs.first()?, runs.last()?);
    let median = |pick: fn(&Run) -> Option<f64>| {
        Spread::of(runs.iter().filter_map(|run| pick(run))).map(|spread| spread.median)
    };
    let p50_us = median(|run| run.p50_us);
    let typical = runs.iter().find(|run| run.p50_us == p50_us)?;
    let others = runs.iter().map(|run| run.others);
    Some(Figures {
        load: first.load.clone(),
        plane: first.plane.clone(),
        invocation: first.invocation.clone(),
        runs: runs.len(),
        rate: Spread::of(runs.iter().map(|run| run.rate))?,
        errors: runs.iter().map(|run| run.errors).sum(),
        p50_us,
        p99_us: median(|run| run.p99_us),
        p999_us: median(|run| run.p999_us),
        curve: typical.curve.clone(),
        proxy_cpu_us: Spread::of(runs.iter().filter_map(|run| proxy_cpu(run))),
        machine_cpu_us: Spread::of(runs.iter().filter_map(|run| machine_cpu(run))),
        resident: (last.resident > 0.0).then_some(last.resident),
        bytes_per_connection: last.bytes_per_connection,
        others: others.fold(0.0, f64::max),
        ratios,
    })
}

/// CPU time of the plane for one piece of work.
fn proxy_cpu(run: &Run) -> Option<f64> {
    (run.proxy_cpu_us > 0.0 && run.work > 0.0).then(|| run.proxy_cpu_us / run.work)
}

fn machine_cpu(run: &Run) -> Option<f64> {
    (run.machine_cpu_us > 0.0 && run.work > 0.0).then(|| run.machine_cpu_us / run.work)
}

/// `None` if no run of the one is of the same invocation and round as one of the other.
fn ratio(name: &str, own: &[&Run], other: &[&Run]) -> Option<Ratio> {
    let partner = |run: &Run| {
        other
            .iter()
            .find(|other| other.round == run.round && other.invocation == run.invocation)
    };
    let pairs: Vec<(&Run, &Run)> = own
        .iter()
        .filter_map(|run| Some((*run, *partner(run)?)))
        .collect();
    let of = |pick: fn(&Run) -> Option<f64>| {
        let values = pairs
            .iter()
            .filter_map(|(own, other)| Some((pick(own)?, pick(other)?)));
        Spread::of(
            values
                .filter(|(_, other)| *other > 0.0)
                .map(|(own, other)| own / other),
        )
    };
    Some(Ratio {
        to: name.to_owned(),
        rate: of(|run| Some(run.rate))?,
        p99: of(|run| run.p99_us),
        proxy_cpu: of(proxy_cpu),
        machine_cpu: of(machine_cpu),
    })
}

#[cfg(test)]
mod tests {
    use super::{Figures, Run, Spread, figures};

    fn run(invocation: &str, plane: &str, round: usize, rate: f64) -> Run {
        Run {
            invocation: invocation.to_owned(),
            plane: plane.to_owned(),
            load: "load".to_owned(),
            round,
            rate,
            work: rate,
            p50_us: Some(1e6 / rate),
            p99_us: Some(4e6 / rate),
            proxy_cpu_us: if plane == "none" { 0.0 } else { 2000.0 },
            machine_cpu_us: 8000.0,
            ..Run::default()
        }
    }

    fn compared() -> Vec<(String, String)> {
        let pairs = [("mesh", "none"), ("mesh", "other")];
        let pairs = pairs.map(|(one, other)| (one.to_owned(), other.to_owned()));
        pairs.to_vec()
    }

    fn of<'a>(all: &'a [Figures], plane: &str) -> &'a Figures {
        all.iter().find(|figures| figures.plane == plane).unwrap()
    }

    #[test]
    fn the_spread_has_its_median_in_the_middle() {
        for (values, expected) in [
            (&[3.0, 1.0, 2.0][..], Some((1.0, 2.0, 3.0))),
            (&[1.0, 2.0], Some((1.0, 2.0, 2.0))),
            (&[], None),
        ] {
            let expected = expected.map(|(low, median, high)| Spread { low, median, high });
            assert_eq!(Spread::of(values.iter().copied()), expected);
        }
    }

    #[test]
    fn ratios_are_those_of_rounds() {
        let runs = [
            run("i", "none", 0, 1000.0),
            run("i", "mesh", 0, 500.0),
            run("i", "other", 0, 250.0),
            run("i", "none", 1, 2000.0),
            run("i", "mesh", 1, 500.0),
        ];
        let all = figures(&runs, &compared());
        assert_eq!(all.len(), 3);
        assert!(of(&all, "none").ratios.is_empty());
        let mesh = of(&all, "mesh");
        assert_eq!((mesh.runs, mesh.p50_us), (2, Some(2000.0)));
        let four = Spread {
            low: 4.0,
            median: 4.0,
            high: 4.0,
        };
        assert_eq!(mesh.proxy_cpu_us, Some(four));
        let [to_none, to_other] = &mesh.ratios[..] else {
            panic!("{:?}", mesh.ratios);
        };
        let spread = |low, median, high| Spread { low, median, high };
        assert_eq!(to_none.rate, spread(0.25, 0.5, 0.5));
        assert_eq!(to_none.p99, Some(spread(2.0, 4.0, 4.0)));
        assert_eq!(to_none.proxy_cpu, None, "nothing has no CPU time");
        assert_eq!(to_none.machine_cpu, Some(spread(2.0, 4.0, 4.0)));
        // Only one round was run on both.
        assert_eq!(to_other.rate, spread(2.0, 2.0, 2.0));
        assert_eq!(to_other.proxy_cpu, Some(spread(0.5, 0.5, 0.5)));
    }

    #[test]
    fn runs_of_different_invocations_have_no_ratio() {
        let runs = [run("old", "none", 0, 1000.0), run("new", "mesh", 0, 500.0)];
        let all = figures(&runs, &compared());
        assert_eq!(all.len(), 2);
        assert!(of(&all, "mesh").ratios.is_empty());
        // The same plane of two invocations stays two.
        let runs = [run("old", "mesh", 0, 1000.0), run("new", "mesh", 0, 500.0)];
        assert_eq!(figures(&runs, &compared()).len(), 2);
    }
}
