//! Prints what the scheduler decides about a trace: `cargo run --release -p penstock-engine --example simulate [FILE]`.
//! Without a file, the one that the tests replay.

use std::io::Write as _;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/traces/mixed.trace");
    let path = std::env::args().nth(1).unwrap_or_else(|| committed.to_owned());
    let decisions = penstock_engine::simulation::replay(&std::fs::read_to_string(Path::new(&path))?)?;
    std::io::stdout().write_all(decisions.as_bytes())?;
    Ok(())
}
