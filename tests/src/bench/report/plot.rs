//! Plots as SVG text: bars with their spread, and latency curves.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::markdown::micros;
use crate::bench::figures::Spread;

/// Pixels.
const WIDTH: u32 = 860;
const BAR: u32 = 26;
const MARGIN: u32 = 90;
const CURVES: u32 = 420;
/// Colours that stay apart for those who see few.
const COLORS: [RGBColor; 10] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(100, 100, 100),
    RGBColor(150, 75, 0),
    RGBColor(120, 94, 240),
    RGBColor(0, 0, 0),
];

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) value: Spread,
}

/// Bars from left to right, one below the other; a line shows from the lowest to the highest of the runs.
pub(super) fn bars(title: &str, unit: &str, bars: &[Bar]) -> Result<String> {
    let count = u32::try_from(bars.len())?;
    let longest = bars.iter().map(|bar| bar.value.high).fold(0.0, f64::max);
    let mut svg = String::new();
    {
        let area =
            SVGBackend::with_string(&mut svg, (WIDTH, MARGIN + BAR * count)).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 16))
            .margin(6)
            .x_label_area_size(40)
            .y_label_area_size(210)
            .build_cartesian_2d(
                0.0..longest.max(f64::MIN_POSITIVE) * 1.08,
                (0..count).into_segmented(),
            )
            .map_err(drawing)?;
        let name = |at: &SegmentValue<u32>| match at {
            // The first one is on top. The axis asks for one name more than there are bars.
            SegmentValue::CenterOf(at) if *at < count => label(bars, count - at - 1),
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(bars.len())
            .y_label_formatter(&name)
            .x_desc(unit)
            .x_label_formatter(&|value| short(*value))
            .label_style(("sans-serif", 12))
            .draw()
            .map_err(drawing)?;
        let rows = (0..count).rev().zip(bars).zip(COLORS.iter().cycle());
        for ((row, bar), color) in rows {
            let (from, to) = (SegmentValue::Exact(row), SegmentValue::Exact(row + 1));
            let mut rectangle = Rectangle::new(
                [(0.0, from), (bar.value.median, to)],
                color.mix(0.8).filled(),
            );
            rectangle.set_margin(3, 3, 0, 0);
            let middle = SegmentValue::CenterOf(row);
            let whisker = [(bar.value.low, middle.clone()), (bar.value.high, middle)];
            chart.draw_series([rectangle]).map_err(drawing)?;
            chart
                .draw_series([PathElement::new(whisker, BLACK.stroke_width(2))])
                .map_err(drawing)?;
        }
        area.present().map_err(drawing)?;
    }
    Ok(svg)
}

fn label(bars: &[Bar], at: u32) -> String {
    let bar = usize::try_from(at).ok().and_then(|at| bars.get(at));
    bar.map_or_else(String::new, |bar| bar.label.clone())
}

/// One line of a distribution: share of requests and the latency in microseconds that it does not exceed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve {
    pub(super) label: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Latency by share, the share's end stretched as `HdrHistogram`'s plots have it: 90 %, 99 %, 99.9 % are equally far apart.
pub(super) fn curves(title: &str, curves: &[Curve]) -> Result<String> {
    let points = |curve: &Curve| -> Vec<(f64, f64)> {
        let shown = curve
            .points
            .iter()
            .filter(|(share, us)| *share < 1.0 && *us > 0.0);
        shown
            .map(|(share, us)| (1.0 / (1.0 - share), *us))
            .collect()
    };
    let all: Vec<(f64, f64)> = curves.iter().flat_map(points).collect();
    let right = all.iter().map(|(at, _)| *at).fold(10.0, f64::max);
    let top = all.iter().map(|(_, us)| *us).fold(10.0, f64::max);
    let bottom = all.iter().map(|(_, us)| *us).fold(top, f64::min);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, CURVES)).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 16))
            .margin(6)
            .margin_right(20)
            .x_label_area_size(40)
            .y_label_area_size(80)
            .build_cartesian_2d(
                (1.0..right * 1.2).log_scale(),
                (bottom * 0.8..top * 1.2).log_scale(),
            )
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .x_desc("share of requests")
            .x_label_formatter(&|at| share(*at))
            .y_label_formatter(&|us| micros(*us))
            .label_style(("sans-serif", 12))
            .draw()
            .map_err(drawing)?;
        for (curve, color) in curves.iter().zip(COLORS.iter().cycle()) {
            let line = LineSeries::new(points(curve), color.stroke_width(2));
            chart
                .draw_series(line)
                .map_err(drawing)?
                .label(&curve.label)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .label_font(("sans-serif", 12))
            .draw()
            .map_err(drawing)?;
        area.present().map_err(drawing)?;
    }
    Ok(svg)
}

fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("a plot cannot be drawn: {error}")
}

/// `90 %`, `99 %`, `99.9 %` for 10, 100, 1,000.
fn share(at: f64) -> String {
    let percent = 100.0 * (1.0 - 1.0 / at);
    let digits = match at {
        at if at < 200.0 => 0,
        at if at < 2_000.0 => 1,
        at if at < 20_000.0 => 2,
        _ => 3,
    };
    format!("{percent:.digits$} %")
}

fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.1}M", value / 1e6),
        value if value >= 1e4 => format!("{:.0}k", value / 1e3),
        value if value >= 100.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Bar, Curve, Spread, bars, curves, share, short};

    #[test]
    fn axes_are_named_as_people_read_them() {
        for (at, text) in [
            (1.0, "0 %"),
            (10.0, "90 %"),
            (100.0, "99 %"),
            (1e3, "99.9 %"),
            (1e4, "99.99 %"),
        ] {
            assert_eq!(share(at), text);
        }
        for (value, text) in [
            (0.0, "0.0"),
            (27.44, "27.4"),
            (999.0, "999"),
            (52_918.0, "53k"),
            (2.5e6, "2.5M"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn each_bar_and_each_curve_is_drawn_and_named() {
        let value = Spread {
            low: 1.0,
            median: 2.0,
            high: 3.0,
        };
        let label = |text: &str| text.to_owned();
        let two = ["none", "culvert-L4"].map(|name| Bar {
            label: label(name),
            value,
        });
        let svg = bars("rates", "requests/s", &two).unwrap();
        let points = vec![(0.0, 10.0), (0.5, 20.0), (0.99, 80.0), (1.0, 900.0)];
        let one = [Curve {
            label: label("none"),
            points,
        }];
        let other = curves("latency", &one).unwrap();
        for (svg, words) in [
            (svg, &["rates", "none", "culvert-L4", "requests/s"][..]),
            (other, &["latency", "none", "<polyline"]),
        ] {
            assert!(
                svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"),
                "{svg}"
            );
            for word in words {
                assert!(svg.contains(word), "{word} is not in {svg}");
            }
        }
    }

    #[test]
    fn nothing_is_drawn_without_values() {
        let nothing = Spread {
            low: 0.0,
            median: 0.0,
            high: 0.0,
        };
        let bar = Bar {
            label: String::new(),
            value: nothing,
        };
        assert!(bars("", "", &[bar]).is_ok());
        assert!(bars("", "", &[]).is_ok());
        assert!(curves("", &[]).is_ok());
    }
}
