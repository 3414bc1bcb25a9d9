//! The report of an invocation: what was run where, on which machine, with which figures. As JSON it can be read again
//! and shown beside a later one, without ratios between the two.

mod html;
mod markdown;
mod plot;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::figures::{Figures, figures};
use super::idle::Idle;
use super::load::{LOADS, Load, Unit};
use super::machine::Machine;
use super::plane::Plane;
use super::round::Run;

pub use html::html;
pub use markdown::markdown;

/// Version of the form.
pub const SCHEMA: &str = "culvert.dev/bench-report/v1";

/// Everything that was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// Name of the invocation that wrote it.
    pub invocation: String,
    /// Where.
    pub machine: Machine,
    /// Seconds of each run.
    pub seconds: u64,
    /// Planes by name, with what they are.
    pub planes: Vec<(String, String)>,
    /// Which plane is compared with which.
    pub compared: Vec<(String, String)>,
    /// An agent that has nothing to do.
    pub idle: Option<Idle>,
    /// Every run.
    pub runs: Vec<Run>,
}

impl Report {
    /// An empty one.
    pub fn new(invocation: &str, planes: &[Plane], seconds: u64) -> Self {
        let name = |plane: &Plane| plane.name().to_owned();
        let compared = planes.iter().flat_map(|plane| {
            let others = [vec![plane.baseline()], plane.rivals(planes)].concat();
            let others = others.into_iter().filter(|other| other != plane);
            others
                .map(|other| (name(plane), name(&other)))
                .collect::<Vec<_>>()
        });
        Self {
            schema: SCHEMA.to_owned(),
            invocation: invocation.to_owned(),
            machine: Machine::look(),
            seconds,
            planes: planes
                .iter()
                .map(|plane| (name(plane), plane.description()))
                .collect(),
            compared: compared.collect(),
            idle: None,
            runs: Vec::new(),
        }
    }

    /// The figures of all runs.
    pub fn figures(&self) -> Vec<Figures> {
        figures(&self.runs, &self.compared)
    }

    /// Adds the runs of an earlier report. They keep their invocation, so no ratio is made with them.
    ///
    /// # Errors
    /// If the file is no such report.
    pub fn beside(&mut self, file: &Path) -> Result<()> {
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let wrong = || format!("{} is no report of `cargo xtask bench`", file.display());
        let earlier: Self = serde_json::from_str(&text).with_context(wrong)?;
        ensure!(earlier.schema == SCHEMA, wrong());
        for plane in earlier.planes {
            if !self.planes.contains(&plane) {
                self.planes.push(plane);
            }
        }
        self.runs.extend(earlier.runs);
        Ok(())
    }

    /// Writes `report.json`, `report.md` and `report.html`.
    ///
    /// # Errors
    /// If a file cannot be written or a plot cannot be drawn.
    pub fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let json = serde_json::to_string_pretty(&Written {
            report: self,
            figures: self.figures(),
        })?;
        for (name, text) in [
            ("report.json", json),
            ("report.md", markdown(self)),
            ("report.html", html(self)?),
        ] {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// The name of a plane in a figure: with its invocation, if that is another one.
    fn label(&self, figures: &Figures) -> String {
        if figures.invocation == self.invocation {
            figures.plane.clone()
        } else {
            format!("{} ({})", figures.plane, figures.invocation)
        }
    }

    /// Why figures that should have a ratio have none.
    fn missing(&self) -> Vec<String> {
        let all = self.figures();
        let mut missing = Vec::new();
        for figures in &all {
            for (_, other) in self
                .compared
                .iter()
                .filter(|(one, _)| *one == figures.plane)
            {
                let has_ratio = figures.ratios.iter().any(|ratio| ratio.to == *other);
                let was_run = all
                    .iter()
                    .any(|found| found.load == figures.load && found.plane == *other);
                if !has_ratio && was_run {
                    missing.push(format!(
                        "{}: no ratio of {} ({}) to {other}, which was not run in that invocation",
                        figures.load, figures.plane, figures.invocation
                    ));
                }
            }
        }
        missing
    }
}

/// Runs and figures in one file; figures are not read again.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    report: &'a Report,
    figures: Vec<Figures>,
}

/// The unit of a load by its name; requests for one that is not known any more.
fn unit(load: &str) -> Unit {
    let found = LOADS.iter().find(|known| known.name == load);
    found.map_or(Unit::Requests, Load::unit)
}

/// Whether the rate of a load is a plane's doing.
fn has_rate(load: &str) -> bool {
    let found = LOADS.iter().find(|known| known.name == load);
    found.is_none_or(Load::has_rate)
}

/// Names of the loads, in order.
fn loads(all: &[Figures]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for figures in all {
        if !names.contains(&&*figures.load) {
            names.push(&figures.load);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::{Report, Run, html, markdown};
    use crate::bench::plane::Plane;

    fn run(invocation: &str, plane: &str, round: usize, rate: f64) -> Run {
        Run {
            invocation: invocation.to_owned(),
            plane: plane.to_owned(),
            load: "latency at 500/s".to_owned(),
            round,
            rate,
            work: 1000.0,
            p50_us: Some(100.0),
            p99_us: Some(400.0),
            curve: vec![(0.0, 50.0), (0.5, 100.0), (0.99, 400.0), (1.0, 900.0)],
            proxy_cpu_us: if plane == "none" { 0.0 } else { 30_000.0 },
            machine_cpu_us: 90_000.0,
            resident: 3e7,
            ..Run::default()
        }
    }

    fn report() -> Report {
        let mut report = Report::new("now", &[Plane::None, Plane::L4], 4);
        for round in 0..2 {
            report.runs.push(run("now", "none", round, 500.0));
            report.runs.push(run("now", "culvert-L4", round, 499.0));
        }
        report
    }

    #[test]
    fn a_report_is_read_again_and_keeps_its_invocation() {
        let directory = std::env::temp_dir().join(format!("culvert-report-{}", std::process::id()));
        let mut earlier = report();
        earlier.invocation = "before".to_owned();
        for run in &mut earlier.runs {
            run.invocation = "before".to_owned();
        }
        earlier.write(&directory).unwrap();
        let mut now = Report::new("now", &[Plane::None, Plane::L4], 4);
        now.runs.push(run("now", "culvert-L4", 0, 400.0));
        now.beside(&directory.join("report.json")).unwrap();
        assert!(now.beside(&directory.join("report.md")).is_err());
        std::fs::remove_dir_all(&directory).unwrap();
        let all = now.figures();
        assert_eq!(all.len(), 3);
        let ratios = all
            .iter()
            .map(|figures| (&*figures.invocation, figures.ratios.len()));
        let expected = [("now", 0), ("before", 0), ("before", 1)];
        assert_eq!(ratios.collect::<Vec<_>>(), expected);
        let text = markdown(&now);
        assert!(text.contains("culvert-L4 (before)"), "{text}");
        assert!(
            text.contains(
                "no ratio of culvert-L4 (now) to none, which was not run in that invocation"
            ),
            "{text}"
        );
    }

    #[test]
    fn people_find_machine_figures_and_ratios() {
        let text = markdown(&report());
        for part in [
            "## latency at 500/s",
            "| culvert-L4 | 499.0 (499.0-499.0) |",
            "30.0 (30.0-30.0) us",
            "to none: p99 1.00 (1.00-1.00) |",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn the_page_has_its_plots_in_it_and_no_foreign_words() {
        let mut report = report();
        report.planes.push(("x".to_owned(), "<script>".to_owned()));
        let page = html(&report).unwrap();
        assert!(page.matches("<svg").count() >= 3, "{page}");
        assert!(!page.contains("<script>"), "{page}");
        assert!(!page.contains("http://") || page.contains("http://www.w3.org/2000/svg"));
    }
}
