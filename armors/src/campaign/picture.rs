//! The picture of a campaign: for each cell every run's detection and first new byte, with median, 95th percentile and worst.
//!
//! SVG, so that it needs no fonts of this machine. Invariant: draws whatever it is given, an empty campaign too.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, IntoDrawingArea, IntoLogRange as _, PathElement, RGBColor, Rectangle, SVGBackend, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, TextStyle};

use super::measure::{Run, Spread};
use super::report::{Report, Row};

// Okabe and Ito's: told apart by colour-blind people too.
const DETECTION: RGBColor = RGBColor(230, 159, 0);
const RECOVERY: RGBColor = RGBColor(0, 114, 178);
const GRID: RGBColor = RGBColor(226, 226, 226);
const INK: RGBColor = RGBColor(50, 50, 50);

const WIDTH: u32 = 1200;
const HEAD: u32 = 84;
const CELL: u32 = 34;
const FOOT: u32 = 52;
const LABELS: u32 = 300;
/// Dots of one series of a cell; more would not be seen.
const DOTS: usize = 400;
/// What is shorter is drawn here.
const SHORTEST_MS: f64 = 0.1;

type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Writes the picture as SVG.
///
/// # Errors
/// Those of the file.
pub(crate) fn write(report: &Report, path: &Path) -> anyhow::Result<()> {
    // Drawn in memory: plotters does not tell errors of a file reliably.
    let mut svg = String::new();
    draw(report, &mut svg).map_err(|error| anyhow!("the picture cannot be drawn: {error}"))?;
    std::fs::write(path, svg).with_context(|| format!("{} cannot be written", path.display()))
}

fn draw(report: &Report, svg: &mut String) -> Drawn {
    let rows = &report.cells;
    let count = u32::try_from(rows.len()).unwrap_or(u32::MAX).clamp(1, 1000);
    let root = SVGBackend::with_string(svg, (WIDTH, HEAD + CELL * count + FOOT)).into_drawing_area();
    root.fill(&WHITE)?;
    let runs: usize = rows.iter().map(|row| row.runs.len()).sum();
    root.draw(&Text::new(format!("{runs} injected faults, seed {}", report.seed), (20, 12), text(22.0).color(&BLACK)))?;
    let legend = [("detection", DETECTION), ("first new byte at the client (recovery, for FTM and vault)", RECOVERY)];
    for (number, (label, colour)) in (0..).zip(legend) {
        let x = 24 + 160 * number;
        root.draw(&Circle::new((x, 60), 5, colour.filled()))?;
        root.draw(&Text::new(label, (x + 12, 60), text(14.0).pos(Pos::new(HPos::Left, VPos::Center))))?;
    }
    let marks = "box: median to 95th percentile; line: worst";
    root.draw(&Text::new(marks, (640, 60), text(14.0).pos(Pos::new(HPos::Left, VPos::Center))))?;
    let (_, area) = root.split_vertically(HEAD);
    let worst = rows.iter().flat_map(|row| [row.detection, recovery_spread(row)]).flatten().map(|spread| spread.worst_ms);
    let longest = worst.fold(100.0, f64::max) * 1.5;
    let mut chart = ChartBuilder::on(&area)
        .margin_right(24)
        .x_label_area_size(FOOT)
        .y_label_area_size(LABELS)
        .build_cartesian_2d((SHORTEST_MS..longest).log_scale(), f64::from(count)..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .max_light_lines(8)
        .bold_line_style(RGBColor(170, 170, 170))
        .light_line_style(GRID)
        .axis_style(INK)
        .label_style(text(13.0))
        .axis_desc_style(text(14.0))
        .x_desc("time since the fault (ms)")
        .x_label_formatter(&|value| if *value < 1.0 { format!("{value:.1}") } else { format!("{value:.0}") })
        .draw()?;
    for (number, row) in (0..).zip(rows) {
        let top = f64::from(number);
        let cell = row.cell;
        let label = format!("{} {}, {}, {} ({})", cell.target, cell.fault, cell.placement, cell.policy, row.runs.len());
        let y = i32::try_from(CELL).unwrap_or(34) * number + i32::try_from(CELL / 2).unwrap_or(17);
        let right = i32::try_from(LABELS).unwrap_or(300) - 10;
        area.draw(&Text::new(label, (right, y), text(13.0).pos(Pos::new(HPos::Right, VPos::Center))))?;
        let detections = row.runs.iter().filter_map(|run| run.detected_ms).collect();
        let recoveries = row.runs.iter().filter_map(|run| recovery(row, run)).collect();
        let series: [(_, _, _, Vec<f64>); 2] =
            [(DETECTION, 0.28, row.detection, detections), (RECOVERY, 0.7, recovery_spread(row), recoveries)];
        for (colour, middle, spread, values) in series {
            let y = top + middle;
            let at = |ms: f64| ms.max(SHORTEST_MS);
            if let Some(Spread { median_ms, p95_ms, worst_ms }) = spread {
                chart.draw_series([PathElement::new(vec![(at(median_ms), y), (at(worst_ms), y)], colour.stroke_width(1))])?;
                let corners = [(at(median_ms), y - 0.13), (at(p95_ms), y + 0.13)];
                chart.draw_series([Rectangle::new(corners, colour.mix(0.35).filled())])?;
                chart
                    .draw_series([PathElement::new(vec![(at(median_ms), y - 0.18), (at(median_ms), y + 0.18)], colour.stroke_width(3))])?;
                chart.draw_series([PathElement::new(vec![(at(worst_ms), y - 0.1), (at(worst_ms), y + 0.1)], colour.stroke_width(2))])?;
            }
            let every = values.len().div_ceil(DOTS).max(1);
            chart.draw_series(values.iter().step_by(every).map(|&ms| Circle::new((at(ms), y), 2, colour.mix(0.4).filled())))?;
        }
    }
    root.present()?;
    Ok(())
}

fn recovery(row: &Row, run: &Run) -> Option<f64> {
    if row.cell.target.clients_do_not_notice() { run.recovered_ms } else { run.resumed_ms }
}

fn recovery_spread(row: &Row) -> Option<Spread> {
    if row.cell.target.clients_do_not_notice() { row.recovery } else { row.resumed }
}

fn text(size: f64) -> TextStyle<'static> {
    // plotters makes text smaller than it is asked for, by 1.24.
    ("sans-serif", size * 1.24).into_font().color(&INK)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::matrix::Target;
    use super::super::report::Machine;
    use super::super::report::tests::{row, run};
    use super::*;

    fn picture(rows: Vec<Row>) -> String {
        let mut svg = String::new();
        draw(&Report::new(7, 0, 1.0, Machine::this(), Vec::new(), rows), &mut svg).unwrap();
        svg
    }

    #[test]
    fn a_campaign_is_drawn_with_its_cells() {
        let runs = |scale: f64| {
            (0..100).map(|number| run(number, f64::from(number % 7) / 5.0 * scale, f64::from(5 + number % 31) * scale)).collect()
        };
        let svg = picture(vec![
            row(Target::Server, runs(1.0)),
            row(Target::Daemon, runs(2.0)),
            row(Target::Ftm, runs(9.0)),
            row(Target::Node, Vec::new()),
        ]);
        for expected in ["server kill, groups, request (100)", "node kill", "time since the fault (ms)", "203 injected", "300 injected"] {
            assert_eq!(svg.contains(expected), expected != "203 injected", "{expected}");
        }
        if let Some(path) = std::env::var_os("ARMOR_TEST_PICTURE") {
            std::fs::write(path, svg).unwrap();
        }
    }

    #[test]
    fn a_campaign_without_anything_is_drawn_too() {
        picture(Vec::new());
    }
}
