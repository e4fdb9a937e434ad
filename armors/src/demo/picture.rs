//! The picture of a demo: bytes that each client has received over time, with crashes and recoveries (thesis §4.6, §6.1).
//!
//! Above, the whole stream; below, the surroundings of each crash. SVG, so that it needs no fonts of this machine.
//!
//! Invariant: draws whatever it is given, an empty demo too.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    BLACK, Cartesian2d, ChartBuilder, ChartContext, Circle, DashedLineSeries, DrawingArea, IntoDrawingArea, LineSeries, PathElement,
    RGBColor, Rectangle, SVGBackend, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, TextStyle};

use super::report::{Arrival, Client, Crash};

/// Okabe and Ito's colours: told apart by colour-blind people too.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(120, 94, 240),
];
const CRASH: RGBColor = RGBColor(198, 40, 40);
const PACE: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(226, 226, 226);
const INK: RGBColor = RGBColor(50, 50, 50);

const SIZE: (u32, u32) = (1200, 860);
const HEAD: u32 = 84;
const WHOLE: u32 = 470;
/// Crashes that are shown from near.
const NEAR: usize = 3;
/// Clients for each of which there is room in the legend.
const NAMED: usize = 4;
/// Points of a curve of the whole stream; more would not be seen.
const POINTS: usize = 1500;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// What is drawn. Times are in seconds since the streams began.
pub(crate) struct Picture<'a> {
    /// One for each client.
    pub(crate) curves: Vec<Curve<'a>>,
    /// In the order of time.
    pub(crate) crashes: &'a [Crash],
    /// Pace of the stream.
    pub(crate) bytes_per_second: f64,
    /// Length of the stream.
    pub(crate) seconds: f64,
}

/// What one client received.
pub(crate) struct Curve<'a> {
    /// Name of the client.
    pub(crate) name: &'a str,
    /// When it began.
    pub(crate) start_s: f64,
    /// Bytes so far, at times since it began.
    pub(crate) arrivals: &'a [Arrival],
    /// Longest gap at each crash, in milliseconds.
    pub(crate) gaps_ms: &'a [Option<f64>],
}

impl<'a> Curve<'a> {
    pub(crate) fn of(client: &'a Client) -> Curve<'a> {
        Curve { name: &client.name, start_s: client.start_s, arrivals: &client.arrivals, gaps_ms: &client.gaps_ms }
    }

    /// Seconds and kilobytes, starting at nothing.
    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        let arrivals = self.arrivals.iter().map(|arrival| (self.start_s + arrival.at_ms / 1e3, arrival.bytes as f64 / 1e3));
        std::iter::once((self.start_s, 0.0)).chain(arrivals)
    }
}

impl Picture<'_> {
    /// Writes the picture as SVG.
    ///
    /// # Errors
    /// Those of the file.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        // Drawn in memory: plotters does not tell errors of a file reliably.
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| anyhow!("the picture cannot be drawn: {error}"))?;
        std::fs::write(path, svg).with_context(|| format!("{} cannot be written", path.display()))
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let size = (SIZE.0, if self.crashes.is_empty() { HEAD + WHOLE } else { SIZE.1 });
        let root = SVGBackend::with_string(svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, rest) = root.split_vertically(HEAD);
        self.head(&head)?;
        let (whole, near) = rest.split_vertically(WHOLE);
        self.whole(&whole)?;
        if !self.crashes.is_empty() {
            self.near(&near)?;
        }
        root.present()?;
        Ok(())
    }

    fn head(&self, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
        let plural = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        let clients = plural(self.curves.len(), "client");
        let crashes = plural(self.crashes.len(), "crash").replace("crashs", "crashes");
        let title = format!("Audio stream to {clients} over {crashes} of the server");
        area.draw(&Text::new(title, (70, 12), text(22.0).color(&BLACK)))?;
        let (mut x, y) = (72, 60);
        let mut entry = |label: &str, colour: RGBColor, dashed: bool| -> Result<(), Box<dyn std::error::Error>> {
            let strokes: &[(i32, i32)] = if dashed { &[(0, 7), (10, 17), (20, 27)] } else { &[(0, 27)] };
            for (from, to) in strokes {
                area.draw(&PathElement::new(vec![(x + from, y), (x + to, y)], colour.stroke_width(3)))?;
            }
            area.draw(&Text::new(label.to_owned(), (x + 34, y), text(14.0).pos(Pos::new(HPos::Left, VPos::Center))))?;
            x += 34 + 26 + i32::try_from(label.chars().count()).unwrap_or(0) * 8;
            Ok(())
        };
        if self.curves.len() <= NAMED {
            for (number, curve) in self.curves.iter().enumerate() {
                entry(curve.name, colour(number), false)?;
            }
        } else {
            entry(&format!("clients 1 to {}, from the left", self.curves.len()), colour(0), false)?;
        }
        entry("real time (as due)", PACE, true)?;
        if !self.crashes.is_empty() {
            entry("crash (SIGKILL)", CRASH, false)?;
            let top = y - 8;
            area.draw(&Rectangle::new([(x, top), (x + 27, y + 8)], CRASH.mix(0.14).filled()))?;
            area.draw(&Text::new("recovery, until bytes flow", (x + 34, y), text(14.0).pos(Pos::new(HPos::Left, VPos::Center))))?;
        }
        Ok(())
    }

    fn whole(&self, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
        let kilobytes = self.seconds * self.bytes_per_second / 1e3;
        let last = self.curves.iter().flat_map(Curve::points).map(|point| point.0);
        let end = last.fold(self.curves.iter().map(|curve| curve.start_s + self.seconds).fold(1.0, f64::max), f64::max);
        let top = self.curves.iter().flat_map(|curve| curve.points().last()).map(|point| point.1).fold(kilobytes.max(1.0), f64::max) * 1.13;
        let mut chart = ChartBuilder::on(area)
            .margin_right(24)
            .margin_left(8)
            .x_label_area_size(44)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..end * 1.01, 0.0..top)?;
        mesh(&mut chart, 12, 8, "time (s)", "received (KB)")?;
        for crash in self.crashes {
            let flowing = crash.recovery.as_ref().and_then(|recovery| recovery.flowing_ms);
            if let Some(flowing) = flowing {
                let until = crash.at_s + flowing as f64 / 1e3;
                chart.draw_series([Rectangle::new([(crash.at_s, 0.0), (until, top)], CRASH.mix(0.14).filled())])?;
            }
            chart.draw_series([PathElement::new(vec![(crash.at_s, 0.0), (crash.at_s, top)], CRASH.stroke_width(2))])?;
        }
        for (number, curve) in self.curves.iter().enumerate() {
            chart.draw_series(LineSeries::new(thinned(curve.points().collect()), colour(number).stroke_width(3)))?;
        }
        // Over the curves: where a curve is in time, it would hide its own pace.
        for curve in &self.curves {
            let pace = [(curve.start_s, 0.0), (curve.start_s + self.seconds, kilobytes)];
            chart.draw_series(DashedLineSeries::new(pace, 4, 8, PACE.stroke_width(1)))?;
        }
        for (index, crash) in self.crashes.iter().enumerate() {
            let lines = self.label(index, crash);
            let (side, shift) = if crash.at_s > end * 0.86 { (HPos::Right, -end * 0.006) } else { (HPos::Left, end * 0.006) };
            for (line, label) in lines.into_iter().enumerate() {
                let style = text(if line == 0 { 14.0 } else { 13.0 }).pos(Pos::new(side, VPos::Top));
                let style = if line == 0 { style.color(&CRASH) } else { style };
                chart.draw_series([Text::new(label, (crash.at_s + shift, top * (0.985 - 0.042 * line as f64)), style)])?;
            }
        }
        Ok(())
    }

    /// What is written at a crash: its number alone when there are many.
    fn label(&self, index: usize, crash: &Crash) -> Vec<String> {
        if self.crashes.len() > 5 {
            return vec![crash.number.to_string()];
        }
        let flowing = crash.recovery.as_ref().and_then(|recovery| recovery.flowing_ms);
        let flowing = flowing.map_or("not recovered".to_owned(), |ms| format!("flowing after {ms} ms"));
        let gap = self.curves.iter().filter_map(|curve| curve.gaps_ms.get(index).copied().flatten()).max_by(f64::total_cmp);
        let gap = gap.map(|ms| format!("longest gap {ms:.0} ms"));
        [format!("crash {} at {:.1} s", crash.number, crash.at_s), flowing].into_iter().chain(gap).collect()
    }

    fn near(&self, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
        let shown = &self.crashes[..self.crashes.len().min(NEAR)];
        let flowing = shown.iter().filter_map(|crash| crash.recovery.as_ref()?.flowing_ms).max().unwrap_or(400);
        // Twice the outage, rounded up to whole 50 ms.
        let after_ms = ((flowing as f64 * 2.2).clamp(250.0, 6000.0) / 50.0).ceil() * 50.0;
        for (crash, part) in shown.iter().zip(area.split_evenly((1, shown.len()))) {
            self.crash(&part, crash, after_ms)?;
        }
        Ok(())
    }

    /// Kilobytes beyond those that were due at the crash, over milliseconds since it. Clients are told apart by the phases of
    /// their packets.
    fn crash(&self, area: &Area<'_>, crash: &Crash, after_ms: f64) -> Result<(), Box<dyn std::error::Error>> {
        let before_ms = after_ms / 5.0;
        let pace = self.bytes_per_second / 1e6;
        let (low, high) = (-before_ms * pace, after_ms * pace * 1.5);
        let mut chart = ChartBuilder::on(area)
            .margin_right(24)
            .margin_left(8)
            .margin_top(30)
            .x_label_area_size(44)
            .y_label_area_size(56)
            .build_cartesian_2d(-before_ms..after_ms, low..high)?;
        mesh(&mut chart, 6, 5, "time since the crash (ms)", "received - due at crash (KB)")?;
        let flowing = crash.recovery.as_ref().and_then(|recovery| recovery.flowing_ms);
        if let Some(flowing) = flowing {
            chart.draw_series([Rectangle::new([(0.0, low), ((flowing as f64).min(after_ms), high)], CRASH.mix(0.14).filled())])?;
        }
        chart.draw_series(DashedLineSeries::new([(-before_ms, low), (after_ms, after_ms * pace)], 6, 5, PACE.stroke_width(1)))?;
        chart.draw_series([PathElement::new(vec![(0.0, low), (0.0, high)], CRASH.stroke_width(2))])?;
        for (number, curve) in self.curves.iter().enumerate() {
            let due = (crash.at_s - curve.start_s).clamp(0.0, self.seconds.max(0.0)) * self.bytes_per_second / 1e3;
            let relative = |point: (f64, f64)| ((point.0 - crash.at_s) * 1e3, point.1 - due);
            let steps = steps(curve.points().map(relative), -before_ms, after_ms);
            chart.draw_series(LineSeries::new(steps, colour(number).stroke_width(2)))?;
            let dots = curve
                .points()
                .map(relative)
                .filter(|point| point.0 >= -before_ms && point.0 <= after_ms && point.1 >= low && point.1 <= high);
            chart.draw_series(dots.map(|point| Circle::new(point, 2, colour(number).filled())))?;
        }
        let title = format!("Crash {}: process {} killed", crash.number, crash.pid);
        area.draw(&Text::new(title, (70, 8), text(15.0).color(&CRASH)))?;
        let (width, _) = area.dim_in_pixel();
        for (line, (step, ms)) in
            crash.recovery.iter().flat_map(|recovery| recovery.steps()).filter_map(|(step, ms)| Some((step, ms?))).enumerate()
        {
            let at = |x: i32| (x, 42 + 17 * i32::try_from(line).unwrap_or(0));
            // The upper left corner is free (nothing had come by then), but for the shaded part's edge.
            let left = 66 + i32::try_from(width.saturating_sub(90)).unwrap_or(0) / 6 + 12;
            area.draw(&Text::new(step.to_owned(), at(left), text(12.0)))?;
            area.draw(&Text::new(format!("{ms} ms"), at(left + 128), text(12.0).pos(Pos::new(HPos::Right, VPos::Top))))?;
        }
        Ok(())
    }
}

fn mesh(chart: &mut Chart<'_, '_>, columns: usize, rows: usize, x: &str, y: &str) -> Result<(), Box<dyn std::error::Error>> {
    chart
        .configure_mesh()
        .x_labels(columns)
        .y_labels(rows)
        .max_light_lines(0)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(text(13.0))
        .axis_desc_style(text(14.0))
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    Ok(())
}

fn text(size: f64) -> TextStyle<'static> {
    // plotters makes text smaller than it is asked for, by 1.24.
    ("sans-serif", size * 1.24).into_font().color(&INK)
}

fn colour(number: usize) -> RGBColor {
    COLOURS[number % COLOURS.len()]
}

/// At most `POINTS` points, the last one among them.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let every = points.len().div_ceil(POINTS).max(1);
    let last = points.len().saturating_sub(1);
    points.into_iter().enumerate().filter(|(index, _)| index % every == 0 || *index == last).map(|(_, point)| point).collect()
}

/// A staircase between two times: bytes are there when they arrive, not before.
fn steps(points: impl Iterator<Item = (f64, f64)>, from: f64, to: f64) -> Vec<(f64, f64)> {
    let mut stairs = Vec::new();
    let mut level = None;
    for (at, value) in points {
        if at > to {
            break;
        }
        if at >= from {
            if let Some(level) = level {
                if stairs.is_empty() {
                    stairs.push((from, level));
                }
                stairs.push((at, level));
            }
            stairs.push((at, value));
        }
        level = Some(value);
    }
    if let Some(level) = level {
        stairs.push((to, level));
    }
    stairs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::recovery::Recovery;

    /// 20 s of 640 bytes each 20 ms, with outages of 130 ms after which the rest comes at once.
    fn arrivals(start_s: f64, crashes: &[Crash]) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        for packet in 0..1000_u64 {
            let due = packet as f64 * 20.0;
            let held = crashes.iter().map(|crash| (crash.at_s - start_s) * 1e3).find(|crash| (*crash..crash + 130.0).contains(&due));
            arrivals.push(Arrival {
                at_ms: held.map_or(due + start_s * 6.0 + 0.3, |crash| crash + 130.0 + (due - crash) / 100.0),
                bytes: 44 + 640 * (packet + 1),
            });
        }
        arrivals
    }

    fn crash(number: usize, at_s: f64) -> Crash {
        let recovery = Recovery {
            service: "audio".to_owned(),
            incarnation: number as u64 + 1,
            detected_ms: Some(1),
            restarted_ms: Some(54),
            bound_ms: Some(97),
            ready_ms: Some(98),
            reconnected_ms: Some(99),
            replayed_ms: Some(120),
            flowing_ms: Some(128),
            ..Recovery::default()
        };
        Crash { number, at_s, pid: 4711, recovery: Some(recovery), ..Crash::default() }
    }

    fn draw(picture: &Picture<'_>) -> String {
        let mut svg = String::new();
        picture.draw(&mut svg).unwrap();
        svg
    }

    #[test]
    fn a_demo_is_drawn_with_its_clients_and_crashes() {
        let crashes = [crash(1, 6.67), crash(2, 13.34)];
        let starts = [0.0, 1.0, 2.0];
        let all: Vec<_> = starts.iter().map(|&start| arrivals(start, &crashes)).collect();
        let names = ["client 1", "client 2", "client 3"];
        let curves = names
            .iter()
            .zip(&all)
            .zip(starts)
            .map(|((name, arrivals), start_s)| Curve { name, start_s, arrivals, gaps_ms: &[Some(131.0), Some(149.6)] })
            .collect();
        let svg = draw(&Picture { curves, crashes: &crashes, bytes_per_second: 32_000.0, seconds: 20.0 });
        for expected in ["client 3", "crash 2 at 13.3 s", "flowing after 128 ms", "longest gap 150 ms", "received (KB)", "reconnected"] {
            assert!(svg.contains(expected), "{expected}");
        }
        if let Some(path) = std::env::var_os("ARMOR_TEST_PICTURE") {
            std::fs::write(path, svg).unwrap();
        }
    }

    #[test]
    fn a_demo_without_anything_is_drawn_too() {
        let bare = Crash { number: 1, ..Crash::default() };
        let nothing = || vec![Curve { name: "client 1", start_s: 0.0, arrivals: &[], gaps_ms: &[] }];
        draw(&Picture { curves: nothing(), crashes: &[], bytes_per_second: 0.0, seconds: 0.0 });
        draw(&Picture { curves: Vec::new(), crashes: &[bare], bytes_per_second: 32_000.0, seconds: 20.0 });
    }

    #[test]
    fn a_staircase_begins_and_ends_at_its_borders() {
        let points = [(-50.0, 1.0), (10.0, 2.0), (90.0, 3.0)];
        assert_eq!(steps(points.into_iter(), 0.0, 50.0), [(0.0, 1.0), (10.0, 1.0), (10.0, 2.0), (50.0, 2.0)]);
    }
}
