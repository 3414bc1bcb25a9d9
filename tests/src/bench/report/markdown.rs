//! The report as Markdown: a table for each load.

use std::fmt::{self, Write as _};

use super::{Report, has_rate, loads, unit};
use crate::bench::figures::{Figures, Ratio, Spread};
use crate::bench::load::Unit;

/// Writes it.
pub fn markdown(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _infallible = write(report, &mut text);
    text
}

fn write(report: &Report, out: &mut String) -> fmt::Result {
    let machine = &report.machine;
    writeln!(out, "# Benchmark {}\n", report.invocation)?;
    writeln!(
        out,
        "{} CPUs ({}), Linux {}, commit {}, `{}`. Runs of {} s in turns; medians (lowest-highest). A ratio is made of runs of one \
         round. Others used at most {:.0} % of the machine.\n",
        machine.cpus,
        machine.cpu,
        machine.kernel,
        machine.commit,
        machine.command,
        report.seconds,
        most_disturbed(report) * 100.0
    )?;
    writeln!(out, "| plane | what |\n|---|---|")?;
    for (name, what) in &report.planes {
        writeln!(out, "| {name} | {} |", what.replace('|', "\\|"))?;
    }
    if let Some(idle) = &report.idle {
        writeln!(out, "\n{idle}.")?;
    }
    let all = report.figures();
    for load in loads(&all) {
        table(report, load, &all, out)?;
    }
    let missing = report.missing();
    if !missing.is_empty() {
        writeln!(out)?;
    }
    for why in missing {
        writeln!(out, "- {why}")?;
    }
    Ok(())
}

pub(super) fn most_disturbed(report: &Report) -> f64 {
    report.runs.iter().map(|run| run.others).fold(0.0, f64::max)
}

/// Headings of a load's table.
pub(super) fn headings(load: &str) -> [String; 8] {
    let unit = unit(load);
    [
        "plane".to_owned(),
        unit.rate().to_owned(),
        "ratios".to_owned(),
        format!("proxies' CPU a {}", unit.work()),
        format!("machine's CPU a {}", unit.work()),
        "p50 / p99 / p99.9".to_owned(),
        "memory".to_owned(),
        "errors".to_owned(),
    ]
}

/// The cells of one plane.
pub(super) fn cells(report: &Report, figures: &Figures) -> [String; 8] {
    let latencies = [figures.p50_us, figures.p99_us, figures.p999_us];
    let latencies = latencies.map(|us| us.map_or_else(|| "-".to_owned(), micros));
    let memory = match (figures.bytes_per_connection, figures.resident) {
        (Some(bytes), _) => format!("{:.2} KB a connection", bytes / 1e3),
        (None, Some(bytes)) => format!("{:.1} MB", bytes / 1e6),
        (None, None) => String::new(),
    };
    let shown = figures.ratios.iter().map(|to| ratio(to, &figures.load));
    let ratios: Vec<String> = shown.flatten().collect();
    [
        report.label(figures),
        spread(figures.rate),
        ratios.join("; "),
        figures.proxy_cpu_us.map_or_else(String::new, cpu),
        figures.machine_cpu_us.map_or_else(String::new, cpu),
        if figures.p50_us.is_some() {
            latencies.join(" / ")
        } else {
            String::new()
        },
        memory,
        figures.errors.to_string(),
    ]
}

fn table(report: &Report, load: &str, all: &[Figures], out: &mut String) -> fmt::Result {
    writeln!(out, "\n## {load}\n")?;
    let headings = headings(load);
    writeln!(out, "| {} |", headings.join(" | "))?;
    writeln!(out, "|{}", "---|".repeat(headings.len()))?;
    for figures in all.iter().filter(|figures| figures.load == load) {
        writeln!(out, "| {} |", cells(report, figures).join(" | "))?;
    }
    Ok(())
}

/// `None` where there is nothing to compare. A rate that the generator sets is no plane's doing, and connections that are
/// held are all asked at once in the end.
fn ratio(ratio: &Ratio, load: &str) -> Option<String> {
    let is_held = unit(load) == Unit::Connections;
    let parts = [
        ("rate", Some(ratio.rate).filter(|_| has_rate(load))),
        ("CPU", ratio.proxy_cpu),
        ("p99", ratio.p99.filter(|_| !is_held)),
    ];
    let parts = parts
        .into_iter()
        .filter_map(|(what, spread)| Some(format!("{what} {}", two(spread?))));
    let text = parts.collect::<Vec<_>>().join(", ");
    (!text.is_empty()).then(|| format!("to {}: {text}", ratio.to))
}

fn two(Spread { low, median, high }: Spread) -> String {
    format!("{median:.2} ({low:.2}-{high:.2})")
}

fn spread(Spread { low, median, high }: Spread) -> String {
    let digits = usize::from(high < 1000.0);
    format!("{median:.digits$} ({low:.digits$}-{high:.digits$})")
}

fn cpu(all: Spread) -> String {
    if all.median >= 1e5 {
        let Spread { low, median, high } = all;
        return format!("{:.2} ({:.2}-{:.2}) s", median / 1e6, low / 1e6, high / 1e6);
    }
    format!("{} us", spread(all))
}

/// Microseconds as people read them.
pub(super) fn micros(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.0} us"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}
