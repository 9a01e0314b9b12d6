//! What an engine publishes about itself once a step: its load, for those who choose among engines, and its counters.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::door::Unseen;
use crate::handle::Tenant;
use crate::kv::BlockCounts;
use crate::scheduler::Census;

/// How loaded an engine is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    /// Sequences with a seat, and those whose reader keeps them paused.
    pub running: usize,
    /// Sequences without a seat.
    pub waiting: usize,
    /// Tokens that must be read before every sequence decodes, less those that a cache holds.
    pub queued_tokens: usize,
    /// Prompt tokens a second, measured; 0 until measured.
    pub prefill_rate: f64,
    /// The pool's blocks.
    pub kv_blocks: BlockCounts,
    /// Seconds that a new submission would wait for its first token to be worked on: the queued tokens over the
    /// prefill rate, and the steps until a seat is free.
    pub predicted_wait: f64,
    /// New submissions are refused.
    pub draining: bool,
}

/// Counters since the engine's start.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Seconds of a step to choose what is run.
    pub schedule_seconds: Histogram,
    /// Seconds of a step on the device.
    pub execute_seconds: Histogram,
    /// Seconds of a step to draw its tokens.
    pub sample_seconds: Histogram,
    /// Seconds of a step to write down and send what came of it.
    pub commit_seconds: Histogram,
    /// Rows of a step.
    pub batch_tokens: Histogram,
    /// Sequences that lost their blocks or their seat to another one.
    pub preemptions: u64,
    /// Tokens drawn, without those that ended an answer.
    pub output_tokens: u64,
    /// Tokens of the prompts that were started, without what they resumed from.
    pub prompt_tokens: u64,
    /// Those of them that the prefix cache held.
    pub cached_tokens: u64,
    /// Seconds of steps by whom they were spent for; of sequences that have ended.
    pub compute_seconds: BTreeMap<Tenant, f64>,
    /// Sequences without a seat.
    pub waiting: usize,
    /// Sequences with a seat.
    pub running: usize,
    /// Sequences whose reader does not keep up.
    pub paused: usize,
}

/// A cumulative histogram, as Prometheus has them.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One a bound, not cumulated yet; what lies above all of them is in `count` alone.
    buckets: Vec<u64>,
    count: u64,
    sum: f64,
}

const SECONDS: &[f64] = &[0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const TOKENS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, buckets: vec![0; bounds.len()], count: 0, sum: 0.0 }
    }

    fn observe(&mut self, value: f64) {
        if let Some(at) = self.bounds.iter().position(|bound| value <= *bound) {
            self.buckets[at] += 1;
        }
        self.count += 1;
        self.sum += value;
    }

    /// Upper bounds with the number of values up to each.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.bounds.iter().zip(&self.buckets).scan(0, |up_to, (bound, here)| {
            *up_to += here;
            Some((*bound, *up_to))
        })
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum.
    pub fn sum(&self) -> f64 {
        self.sum
    }
}

/// What one step did and took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepReport {
    pub(crate) schedule: Duration,
    pub(crate) execute: Duration,
    pub(crate) sample: Duration,
    pub(crate) commit: Duration,
    pub(crate) rows: usize,
    pub(crate) prefill_rows: usize,
    pub(crate) output_tokens: usize,
}

/// Where the engine's thread writes and everyone reads.
#[derive(Debug)]
pub(crate) struct Board(Mutex<Posted>);

#[derive(Debug)]
struct Posted {
    stats: Stats,
    census: Census,
    prefill_rate: Option<f64>,
    step_seconds: Option<f64>,
}

impl Board {
    pub(crate) fn new(kv_blocks: usize) -> Self {
        let seconds = || Histogram::new(SECONDS);
        let stats = Stats {
            schedule_seconds: seconds(),
            execute_seconds: seconds(),
            sample_seconds: seconds(),
            commit_seconds: seconds(),
            batch_tokens: Histogram::new(TOKENS),
            preemptions: 0,
            output_tokens: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            compute_seconds: BTreeMap::new(),
            waiting: 0,
            running: 0,
            paused: 0,
        };
        let kv_blocks = BlockCounts { free: kv_blocks, ..BlockCounts::default() };
        let census = Census { kv_blocks, ..Census::default() };
        Self(Mutex::new(Posted { stats, census, prefill_rate: None, step_seconds: None }))
    }

    pub(crate) fn post_step(&self, report: &StepReport) {
        let mut posted = self.posted();
        let Posted { stats, prefill_rate, step_seconds, .. } = &mut *posted;
        stats.schedule_seconds.observe(report.schedule.as_secs_f64());
        stats.execute_seconds.observe(report.execute.as_secs_f64());
        stats.sample_seconds.observe(report.sample.as_secs_f64());
        stats.commit_seconds.observe(report.commit.as_secs_f64());
        stats.batch_tokens.observe(report.rows as f64);
        stats.output_tokens += report.output_tokens as u64;
        let seconds = (report.schedule + report.execute + report.sample + report.commit).as_secs_f64();
        if report.prefill_rows > 0 && seconds > 0.0 {
            blend(prefill_rate, report.prefill_rows as f64 / seconds);
        }
        blend(step_seconds, seconds);
    }

    pub(crate) fn post_census(&self, census: Census) {
        let mut posted = self.posted();
        let stats = &mut posted.stats;
        (stats.waiting, stats.running, stats.paused) = (census.waiting, census.running, census.paused);
        stats.preemptions = census.preemptions;
        posted.census = census;
    }

    pub(crate) fn post_start(&self, prompt_tokens: usize, cached_tokens: usize) {
        let stats = &mut self.posted().stats;
        stats.prompt_tokens += prompt_tokens as u64;
        stats.cached_tokens += cached_tokens as u64;
    }

    pub(crate) fn post_end(&self, tenant: &Tenant, seconds: f64) {
        *self.posted().stats.compute_seconds.entry(tenant.clone()).or_insert(0.0) += seconds;
    }

    pub(crate) fn stats(&self) -> Stats {
        self.posted().stats.clone()
    }

    pub(crate) fn load(&self, unseen: Unseen, draining: bool) -> Load {
        let posted = self.posted();
        let census = &posted.census;
        let waiting = census.waiting + unseen.submissions;
        let queued_tokens = census.queued_tokens + unseen.tokens;
        let read = posted.prefill_rate.map_or(0.0, |rate| queued_tokens as f64 / rate);
        let seat = census.steps_to_seat(waiting) as f64 * posted.step_seconds.unwrap_or(0.0);
        Load {
            running: census.running + census.paused,
            waiting,
            queued_tokens,
            prefill_rate: posted.prefill_rate.unwrap_or(0.0),
            kv_blocks: census.kv_blocks,
            predicted_wait: read + seat,
            draining,
        }
    }

    fn posted(&self) -> MutexGuard<'_, Posted> {
        // What is under the lock are figures: any state of them will do.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An exponentially weighted mean over about the last ten values.
fn blend(mean: &mut Option<f64>, value: f64) {
    *mean = Some(mean.map_or(value, |mean| mean + 0.1 * (value - mean)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        [0.5, 2.0, 3.0].into_iter().for_each(|value| histogram.observe(value));
        assert_eq!(histogram.buckets().collect::<Vec<_>>(), [(1.0, 1), (2.0, 2)]);
        assert_eq!((histogram.count(), histogram.sum()), (3, 5.5));
    }

    #[test]
    fn the_wait_is_what_is_queued_over_the_measured_rate() {
        let board = Board::new(8);
        let unseen = Unseen { submissions: 1, tokens: 300 };
        assert_eq!(board.load(unseen, false).predicted_wait, 0.0, "nothing is measured yet");
        let zero = Duration::ZERO;
        let execute = Duration::from_secs(2);
        let report = StepReport {
            schedule: zero,
            execute,
            sample: zero,
            commit: zero,
            rows: 200,
            prefill_rows: 200,
            output_tokens: 1,
        };
        board.post_step(&report);
        let census = Census { queued_tokens: 100, seats: 1, running: 1, remaining: vec![5], ..Census::default() };
        board.post_census(census);
        let load = board.load(unseen, false);
        assert_eq!((load.prefill_rate, load.queued_tokens, load.waiting), (100.0, 400, 1));
        // 400 tokens at 100 a second; the one that waits gets the seat after 5 steps of 2 s, the newcomer after 5 more.
        assert_eq!(load.predicted_wait, 4.0 + 20.0);
    }
}
