//! Prints what the scheduler takes a step while 256 sequences decode:
//! `cargo run --release -p penstock-engine --example schedule_cost`. The model is the scripted one; only the phase that
//! chooses and fills the batch is told.

use std::io::Write as _;
use std::time::Duration;

use penstock_engine::runner::scripted::{Script, ScriptedRunner};
use penstock_engine::{Config, Engine, Event, PrefixScope, Priority, SamplingParams, Submission, Tenant, clock};

const SEQUENCES: usize = 256;
const TENANTS: usize = 8;
const OUTPUTS: u32 = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for waiting in [0, 256] {
        let engine = start()?;
        let streams: Result<Vec<_>, _> = (0..SEQUENCES + waiting).map(|at| engine.submit(submission(at))).collect();
        let readers = streams?.into_iter().map(|mut events| {
            std::thread::spawn(move || while let Some(Event::Tokens { .. }) = events.blocking_recv() {})
        });
        readers
            .collect::<Vec<_>>()
            .into_iter()
            .try_for_each(|reader| reader.join().map_err(|_| "a reader panicked"))?;
        let stats = engine.stats();
        let (steps, seconds) = (stats.schedule_seconds.count(), stats.schedule_seconds.sum());
        let below = |bound| stats.schedule_seconds.buckets().find(|(upper, _)| *upper >= bound).map_or(0, |(_, n)| n);
        writeln!(
            std::io::stdout(),
            "{SEQUENCES} decode, {waiting} wait behind them: {:.1} µs a step over {steps} steps, {:.1} % of them within 100 µs",
            seconds / steps as f64 * 1e6,
            below(0.0001) as f64 / steps as f64 * 100.0,
        )?;
    }
    Ok(())
}

fn start() -> Result<Engine, Box<dyn std::error::Error>> {
    let script = Script { vocab_size: 8, speaks: 0..8, kv_blocks: SEQUENCES * 16, ..Script::default() };
    let config = Config {
        max_batch_tokens: 2048,
        max_sequences: SEQUENCES,
        max_waiting: 2 * SEQUENCES,
        event_buffer: OUTPUTS as usize,
        ..Config::default()
    };
    Ok(Engine::start(config, Box::new(ScriptedRunner::new(script)))?)
}

/// A prompt whose first half is its tenant's.
fn submission(at: usize) -> Submission {
    let tenant = at % TENANTS;
    let prompt = (0..128).map(|position| if position < 64 { tenant } else { at * 31 + position } as u32 % 8).collect();
    Submission {
        tenant: Tenant(format!("tenant-{tenant}").into()),
        priority: Priority::Interactive,
        deadline: clock::now() + Duration::from_secs(600),
        prompt,
        resume: Vec::new(),
        sampling: SamplingParams { max_tokens: OUTPUTS, ignore_eos: true, ..SamplingParams::default() },
        scope: PrefixScope::Tenant,
        cache_salt: Vec::new(),
    }
}
