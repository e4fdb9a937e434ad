//! What a capture costs: `cargo run --release -p armor-core --example capture_cost`.

use std::time::{Duration, Instant};

use armor_core::capture::CapturedStates;

const CAPTURES: usize = 2000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::temp_dir().join(format!("armor-capture-cost-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    for size in [100, 10_000, 1_000_000] {
        for file in [None, Some(directory.join(size.to_string()))] {
            let mut states = CapturedStates::open(None, file.as_deref())?;
            let state = vec![7; size];
            let mut took = Vec::with_capacity(CAPTURES);
            for _ in 0..CAPTURES {
                let begun = Instant::now();
                states.save("e", &state)?;
                took.push(begun.elapsed());
            }
            took.sort();
            let all: Duration = took.iter().sum();
            let transactions = states.file().map(|file| file.state().transactions);
            let disk = transactions.map_or_else(|| "memory".to_owned(), |count| format!("memory and disk ({count} transactions)"));
            println!("{size} bytes, {disk}: median {:?}, p99 {:?}, all {all:?}", took[CAPTURES / 2], took[CAPTURES * 99 / 100]);
        }
    }
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}
