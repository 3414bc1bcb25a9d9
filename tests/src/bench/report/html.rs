//! The report as one page with its plots in it: nothing is fetched from anywhere.

use std::fmt::Write as _;

use anyhow::Result;

use super::markdown::{cells, headings, most_disturbed};
use super::plot::{Bar, Curve, bars, curves};
use super::{Report, has_rate, loads, unit};
use crate::bench::figures::{Figures, Spread};

const STYLE: &str = "body{font-family:sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse;font-size:85%;margin:1em 0}td,th{border:1px solid #ccc;padding:.3em .5em;text-align:left}\
    th{background:#f4f4f4}svg{max-width:100%;height:auto}h2{margin-top:2em}";

/// Writes it.
///
/// # Errors
/// If a plot cannot be drawn.
pub fn html(report: &Report) -> Result<String> {
    let machine = &report.machine;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Benchmark {0}</title><style>{STYLE}</style></head>\
         <body>\n<h1>Benchmark {0}</h1>\n<p>{1} CPUs ({2}), Linux {3}, commit {4}, <code>{5}</code>. Runs of {6} s in turns; medians \
         (lowest-highest). A ratio is made of runs of one round. Others used at most {7:.0} % of the machine.</p>\n",
        escaped(&report.invocation),
        machine.cpus,
        escaped(&machine.cpu),
        escaped(&machine.kernel),
        escaped(&machine.commit),
        escaped(&machine.command),
        report.seconds,
        most_disturbed(report) * 100.0
    );
    let planes = report
        .planes
        .iter()
        .map(|(name, what)| vec![name.clone(), what.clone()]);
    page.push_str(&table(&["plane".to_owned(), "what".to_owned()], planes));
    if let Some(idle) = &report.idle {
        // Writing to a String cannot fail.
        let _infallible = writeln!(page, "<p>{}.</p>", escaped(&idle.to_string()));
    }
    let all = report.figures();
    for load in loads(&all) {
        section(report, load, &all, &mut page)?;
    }
    for why in report.missing() {
        let _infallible = writeln!(page, "<p>{}</p>", escaped(&why));
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

fn section(report: &Report, load: &str, all: &[Figures], page: &mut String) -> Result<()> {
    let figures: Vec<&Figures> = all.iter().filter(|figures| figures.load == load).collect();
    let _infallible = writeln!(page, "<h2>{}</h2>", escaped(load));
    let rows = figures
        .iter()
        .map(|figures| cells(report, figures).to_vec());
    page.push_str(&table(&headings(load), rows));
    let unit = unit(load);
    let bar = |value: fn(&Figures) -> Option<Spread>| -> Vec<Bar> {
        let shown = figures.iter().filter_map(|figures| {
            Some(Bar {
                label: report.label(figures),
                value: value(figures)?,
            })
        });
        shown.collect()
    };
    let mut plots = Vec::new();
    if has_rate(load) {
        plots.push((
            format!("{load}: throughput"),
            unit.rate().to_owned(),
            bar(|all| Some(all.rate)),
        ));
    }
    let cpu = format!("CPU microseconds a {}", unit.work());
    plots.push((
        format!("{load}: CPU of the proxies"),
        cpu.clone(),
        bar(|all| all.proxy_cpu_us),
    ));
    plots.push((
        format!("{load}: CPU of the machine"),
        cpu,
        bar(|all| all.machine_cpu_us),
    ));
    let memory = bar(|all| all.resident.map(|bytes| once(bytes / 1e6)));
    plots.push((
        format!("{load}: memory of the proxies"),
        "MB resident".to_owned(),
        memory,
    ));
    let held = bar(|all| all.bytes_per_connection.map(|bytes| once(bytes / 1e3)));
    plots.push((
        format!("{load}: memory of a connection"),
        "KB".to_owned(),
        held,
    ));
    for (title, unit, shown) in plots {
        if !shown.is_empty() {
            page.push_str(&bars(&title, &unit, &shown)?);
        }
    }
    let lines: Vec<Curve> = figures
        .iter()
        .filter(|figures| figures.curve.len() > 1)
        .map(|figures| Curve {
            label: report.label(figures),
            points: figures.curve.clone(),
        })
        .collect();
    if !lines.is_empty() {
        page.push_str(&curves(&format!("{load}: latency"), &lines)?);
    }
    Ok(())
}

/// Measured once.
fn once(value: f64) -> Spread {
    Spread {
        low: value,
        median: value,
        high: value,
    }
}

fn table(headings: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let row = |tag: &str, cells: &[String]| {
        let cells = cells
            .iter()
            .map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let body: String = rows.map(|cells| row("td", &cells)).collect();
    format!("<table>{}{body}</table>\n", row("th", headings))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
