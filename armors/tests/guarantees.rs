//! docs/guarantees.md names a test in each row of its tables, and each test that it names is there.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// A test as the page names it: `file.rs::name`, in this directory unless the file has a path from the repository's root.
fn named(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(".rs::"))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What is wrong with a name; `None` when there is such a test.
fn missing(file: &str, name: &str) -> Option<String> {
    let path = if file.contains('/') { format!("{file}.rs") } else { format!("armors/tests/{file}.rs") };
    let Ok(source) = std::fs::read_to_string(repository().join(&path)) else { return Some(format!("there is no {path}")) };
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let Some(at) = lines.iter().position(|line| line.strip_prefix("fn ").is_some_and(|line| line.starts_with(&format!("{name}(")))) else {
        return Some(format!("{path} has no fn {name}"));
    };
    let attributes = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    (!attributes.into_iter().any(|line| *line == "#[test]")).then(|| format!("{name} in {path} is no test"))
}

/// What is wrong with a page, and how many rows it has.
fn checked(page: &str) -> (Vec<String>, usize) {
    let mut wrong: Vec<String> = named(page).filter_map(|(file, name)| missing(file, name)).collect();
    let lines: Vec<&str> = page.lines().map(str::trim).collect();
    let is_ruler = |line: &&str| line.starts_with("|---");
    // Of a table, the rows behind its ruler; the one before it is its head.
    let rows =
        lines.iter().enumerate().filter(|(at, line)| line.starts_with('|') && !is_ruler(line) && !lines.get(at + 1).is_some_and(is_ruler));
    let mut count = 0;
    for (at, row) in rows {
        count += 1;
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        if named(last).next().is_none() {
            wrong.push(format!("line {}: the last cell names no test: {row}", at + 1));
        }
        let head = lines[..at].iter().rev().take_while(|line| line.starts_with('|')).last().unwrap_or(row);
        if head.matches('|').count() != row.matches('|').count() {
            wrong.push(format!("line {}: not as many cells as its table's head", at + 1));
        }
    }
    (wrong, count)
}

#[test]
fn every_guarantee_names_tests_and_they_are_there() {
    let page = std::fs::read_to_string(repository().join("docs/guarantees.md")).unwrap();
    let (wrong, rows) = checked(&page);
    assert!(wrong.is_empty(), "docs/guarantees.md:\n{}", wrong.join("\n"));
    assert!(rows > 50, "the tables are read: {rows} rows");
}

#[test]
fn every_test_of_correlated_failures_is_on_the_page() {
    let page = std::fs::read_to_string(repository().join("docs/guarantees.md")).unwrap();
    for file in ["correlated", "migration_policies"] {
        let source = std::fs::read_to_string(repository().join(format!("armors/tests/{file}.rs"))).unwrap();
        let tests = source.split("#[test]\nfn ").skip(1).map(|test| test.split('(').next().unwrap());
        let absent: Vec<&str> = tests.filter(|name| !named(&page).any(|named| named == (file, name))).collect();
        assert!(absent.is_empty(), "docs/guarantees.md does not say what these tests of {file}.rs show: {absent:?}");
    }
}

#[test]
fn a_page_that_rots_is_found_out() {
    let page = "| what | test |\n|---|---|\n| good | `guarantees.rs::a_page_that_rots_is_found_out` |\n| none | it is so |\n\
                | gone | `guarantees.rs::nobody_wrote_this` |\n| file | `nowhere/at_all.rs::x` |\n| helper | `guarantees.rs::missing` |\n\
                | one | too many | `guarantees.rs::a_page_that_rots_is_found_out` |\n";
    let (wrong, rows) = checked(page);
    assert_eq!(rows, 6);
    assert_eq!(
        wrong,
        [
            "armors/tests/guarantees.rs has no fn nobody_wrote_this",
            "there is no nowhere/at_all.rs",
            "missing in armors/tests/guarantees.rs is no test",
            "line 4: the last cell names no test: | none | it is so |",
            "line 8: not as many cells as its table's head",
        ]
    );
}
