//! The page about performance, written from a report alone, so that no figure in it is anybody's word.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

use super::picture;
use super::report::{Grid, Report};
use crate::output::time;

/// Writes the page, and its pictures into the folder beside it that has its name.
///
/// # Errors
/// Those of the files.
pub(super) fn write(report: &Report, page: &Path) -> anyhow::Result<()> {
    let stem = page.file_stem().context("the page needs a name")?.to_string_lossy().into_owned();
    let folder = page.with_file_name(&stem);
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    picture::write(report, &folder)?;
    std::fs::write(page, text(report, &stem)).with_context(|| format!("{} cannot be written", page.display()))
}

const HEAD: &str = "\
# Performance

Written by `armor bench --write docs/performance.md` (`make bench`) from what it has measured; do not edit it. What is measured is in
[operations.md](operations.md#armor-bench).

Rows are measured beside each other in rounds (A B C A B C …). A cell is the median of the rounds, with half the distance between the quartiles; a ratio is the
median of the ratios of the same rounds. Everything runs on one machine, both nodes too, and links are loopback. What else runs there makes times longer: ratios
travel, times do not.
";

const PICTURES: &str = "\
![Round trip by packet size, beside the thesis's table 6.1](FOLDER/round-trip.svg)

![Bulk throughput](FOLDER/bulk.svg)
";

fn text(report: &Report, folder: &str) -> String {
    let mut text = format!("{HEAD}\nMeasured {}, in {:.0} s.\n\n", time(report.begun_unix_ms), report.took_s);
    for line in report.setting() {
        // Writing to a String does not fail.
        let _ = writeln!(text, "- {line}");
    }
    let _ = write!(text, "\n{}", PICTURES.replace("FOLDER", folder));
    for Grid { title, head, rows } in report.grids() {
        let _ = write!(text, "\n## {title}\n\n{}", line(&head));
        let _ = writeln!(text, "|{}", "---|".repeat(head.len()));
        rows.iter().for_each(|row| text += &line(row));
    }
    if !report.complaints.is_empty() {
        text += "\n## Not measured\n\n";
        report.complaints.iter().for_each(|complaint| text += &format!("- {}\n", complaint.replace('\n', " ")));
    }
    text
}

fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.iter().map(|cell| if cell.is_empty() { " " } else { cell }).collect::<Vec<_>>().join(" | "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn the_page_and_its_pictures_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let page = directory.path().join("performance.md");
        write(&report(), &page).unwrap();
        let text = std::fs::read_to_string(&page).unwrap();
        for expected in [
            "![Bulk throughput](performance/bulk.svg)",
            "\n| direct TCP | 7.00 ±7 % | 8.00 ±6 % | 97.0 ±1 % |\n",
            "\n- Machine: cpu, 2 processors, Linux 6.1; load average 0.1 before, 1.5 after\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        assert!(directory.path().join("performance/round-trip.svg").is_file());
    }
}
