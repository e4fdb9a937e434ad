//! Pictures: round trips by packet size beside the thesis's table 6.1, and bulk throughput.
//!
//! SVG, so that they need no fonts of this machine. Invariant: draws whatever it is given, nothing too.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use plotters::coord::Shift;
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, DrawingArea, IntoDrawingArea, IntoLogRange as _, PathElement, RGBColor, Rectangle, SVGBackend, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, TextStyle};

use super::metric::{Metric, Pinning};
use super::report::Report;
use super::results::Key;
use super::row::Row;
use super::thesis;

const GRID: RGBColor = RGBColor(226, 226, 226);
const INK: RGBColor = RGBColor(50, 50, 50);

type Drawn = Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Draw = fn(&Report, &mut String) -> Drawn;

/// Writes `round-trip.svg` and `bulk.svg` into a folder.
///
/// # Errors
/// Those of the files.
pub(super) fn write(report: &Report, folder: &Path) -> anyhow::Result<()> {
    let pictures: [(&str, Draw); 2] = [("round-trip.svg", round_trips), ("bulk.svg", bulk)];
    for (name, draw) in pictures {
        // Drawn in memory: plotters does not tell errors of a file reliably.
        let mut svg = String::new();
        draw(report, &mut svg).map_err(|error| anyhow!("{name} cannot be drawn: {error}"))?;
        let path = folder.join(name);
        std::fs::write(&path, svg).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

// Okabe and Ito's: told apart by colour-blind people too.
fn colour(row: Row) -> RGBColor {
    match row {
        Row::Direct => RGBColor(0, 0, 0),
        Row::Own => RGBColor(86, 180, 233),
        Row::Haproxy => RGBColor(230, 159, 0),
        Row::HaproxyBusy => RGBColor(204, 121, 167),
        Row::Socat => RGBColor(150, 150, 150),
        Row::Daemon => RGBColor(0, 114, 178),
        Row::Execution => RGBColor(213, 94, 0),
    }
}

struct Curve {
    name: String,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
}

fn round_trips(report: &Report, svg: &mut String) -> Drawn {
    let root = SVGBackend::with_string(svg, (1320, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let areas = root.split_evenly((1, 3));
    type Column = fn(&(u64, f64, f64, f64)) -> f64;
    let columns: [(&str, Row, Column); 3] =
        [("direct TCP", Row::Direct, |row| row.1), ("dual proxy", Row::Own, |row| row.2), ("ARMOR, daemons", Row::Daemon, |row| row.3)];
    let of_thesis = columns.map(|(name, row, column)| Curve {
        name: name.to_owned(),
        colour: colour(row),
        points: thesis::ROUND_TRIP.iter().map(|row| (row.0 as f64, column(row))).collect(),
    });
    let mut panels = vec![("Thesis, table 6.1 (2002)".to_owned(), of_thesis.into_iter().collect())];
    for pinning in [Pinning::OneCore, Pinning::Free] {
        let curve = |row: &Row| {
            let key = |parameter| Key { metric: Metric::RoundTrip, pinning, parameter };
            let parameters = report.results.parameters(Metric::RoundTrip, pinning);
            let points = parameters.into_iter().filter_map(|size| Some((size as f64, report.results.told(key(size), *row)?.median)));
            Curve { name: row.title().to_owned(), colour: colour(*row), points: points.collect() }
        };
        let curves: Vec<Curve> = report.rows.iter().map(curve).filter(|curve| !curve.points.is_empty()).collect();
        panels.push((format!("Here, {}", pinning.title()), curves));
    }
    for (area, (title, curves)) in areas.iter().zip(&panels) {
        panel(area, title, curves)?;
    }
    root.present()?;
    Ok(())
}

fn panel(area: &Area<'_>, title: &str, curves: &[Curve]) -> Drawn {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let span = |value: fn(&(f64, f64)) -> f64, otherwise: (f64, f64)| {
        let values = || points().map(value).filter(|value| *value > 0.0);
        match (values().min_by(f64::total_cmp), values().max_by(f64::total_cmp)) {
            (Some(low), Some(high)) => (low, high),
            _ => otherwise,
        }
    };
    let (x_low, x_high) = span(|point| point.0, (32.0, 2048.0));
    let (y_low, y_high) = span(|point| point.1, (1.0, 100.0));
    area.draw(&Text::new(title.to_owned(), (16, 10), text(18.0).color(&BLACK)))?;
    let mut chart = ChartBuilder::on(area)
        .margin_top(150)
        .margin_right(20)
        .margin_left(8)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d((x_low * 0.9..x_high * 1.1).log_scale(), (y_low * 0.8..y_high * 1.25).log_scale())?;
    chart
        .configure_mesh()
        .max_light_lines(4)
        .bold_line_style(RGBColor(190, 190, 190))
        .light_line_style(GRID)
        .axis_style(INK)
        .label_style(text(12.0))
        .axis_desc_style(text(13.0))
        .x_desc("bytes in a packet")
        .y_desc("round trip (µs)")
        .x_label_formatter(&label)
        .y_label_formatter(&label)
        .draw()?;
    for (number, Curve { name, colour, points }) in (0..).zip(curves) {
        chart.draw_series([PathElement::new(points.clone(), colour.stroke_width(2))])?;
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        legend(area, number, name, *colour)?;
    }
    Ok(())
}

/// Of a logarithmic axis: 1, 2 and 5 of each decade; more would not be told apart.
fn label(value: &f64) -> String {
    let leading = value / 10f64.powf(value.log10().floor());
    let shown = [1.0, 2.0, 5.0, 10.0].iter().any(|wanted| (leading - wanted).abs() < 0.01);
    if shown { format!("{value:.0}") } else { String::new() }
}

fn legend(area: &Area<'_>, number: i32, name: &str, colour: RGBColor) -> Drawn {
    let y = 42 + 16 * number;
    area.draw(&PathElement::new(vec![(20, y), (48, y)], colour.stroke_width(3)))?;
    area.draw(&Text::new(name.to_owned(), (56, y), text(13.0).pos(Pos::new(HPos::Left, VPos::Center))))?;
    Ok(())
}

const BAR: i32 = 22;
const LABELS: i32 = 210;

fn bulk(report: &Report, svg: &mut String) -> Drawn {
    let rows = i32::try_from(report.rows.len()).unwrap_or(i32::MAX).clamp(1, 100);
    let panels: Vec<(String, Metric, Pinning)> = [("server to client", Metric::Download), ("client to server", Metric::Upload)]
        .into_iter()
        .flat_map(|(name, metric)| {
            [Pinning::OneCore, Pinning::Free].map(|pinning| (format!("Bulk, {name}, {}", pinning.title()), metric, pinning))
        })
        .collect();
    let height = 40 + BAR * rows + 16;
    let root = SVGBackend::with_string(svg, (1200, (2 * height).unsigned_abs())).into_drawing_area();
    root.fill(&WHITE)?;
    let told = |metric, pinning, row| report.results.told(Key { metric, pinning, parameter: 0 }, row);
    let all = panels.iter().flat_map(|(_, metric, pinning)| report.rows.iter().filter_map(|row| told(*metric, *pinning, *row)));
    let most = all.map(|told| told.high).fold(0.1, f64::max);
    for (area, (title, metric, pinning)) in root.split_evenly((2, 2)).iter().zip(&panels) {
        area.draw(&Text::new(format!("{title} (GiB/s)"), (16, 10), text(15.0).color(&BLACK)))?;
        let measured = report.rows.iter().filter_map(|row| Some((row, told(*metric, *pinning, *row)?)));
        for (number, (row, told)) in (0..).zip(measured) {
            let (top, width) = (40 + BAR * number, |value: f64| LABELS + (value / most * 310.0) as i32);
            let middle = top + BAR / 2 - 2;
            let left = Pos::new(HPos::Left, VPos::Center);
            area.draw(&Text::new(row.title(), (LABELS - 8, middle), text(13.0).pos(Pos::new(HPos::Right, VPos::Center))))?;
            area.draw(&Rectangle::new([(LABELS, top), (width(told.median), top + BAR - 5)], colour(*row).mix(0.75).filled()))?;
            area.draw(&PathElement::new(vec![(width(told.low), middle), (width(told.high), middle)], INK.stroke_width(2)))?;
            area.draw(&Text::new(format!("{:.2}", told.median), (width(told.high) + 8, middle), text(13.0).pos(left)))?;
        }
    }
    root.present()?;
    Ok(())
}

fn text(size: f64) -> TextStyle<'static> {
    // plotters makes text smaller than it is asked for, by 1.24.
    ("sans-serif", size * 1.24).into_font().color(&INK)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::report::tests::report;
    use super::super::results::Results;
    use super::*;

    #[test]
    fn curves_and_bars_are_drawn_with_their_names() {
        let report = report();
        for (draw, expected) in [(round_trips as Draw, "Thesis, table 6.1 (2002)"), (bulk, "Bulk, client to server, not pinned (GiB/s)")] {
            let mut svg = String::new();
            draw(&report, &mut svg).unwrap();
            assert!(svg.contains(expected) && svg.contains("ARMOR, Execution ARMORs"), "{expected}");
        }
        if let Some(folder) = std::env::var_os("ARMOR_TEST_PICTURE") {
            write(&report, Path::new(&folder)).unwrap();
        }
    }

    #[test]
    fn labels_of_an_axis_are_few() {
        assert_eq!([1.0, 3.0, 20.0, 500.0, 700.0, 10_000.0].map(|value| label(&value)), ["1", "", "20", "500", "", "10000"]);
    }

    #[test]
    fn a_bench_without_anything_is_drawn_too() {
        let mut report = report();
        (report.results, report.rows) = (Results::default(), Vec::new());
        write(&report, tempfile::tempdir().unwrap().path()).unwrap();
    }
}
