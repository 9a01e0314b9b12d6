//! The scheduler's decisions about a trace are what they were: see `examples/simulate.rs`, which prints them.

use penstock_engine::simulation::replay;

#[test]
fn the_committed_trace_gives_the_committed_decisions() {
    let decisions = replay(include_str!("traces/mixed.trace")).unwrap();
    assert_eq!(decisions, include_str!("traces/mixed.decisions"));
}
