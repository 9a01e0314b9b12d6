//! Samples folded into figures.

use std::time::Duration;

use serde::Serialize;

use super::load::Run;
use super::target::{Outcome, Sample};
use crate::fault::Fault;
use crate::output;

/// What makes a request good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slo {
    pub(super) ttft: Duration,
    pub(super) gap: Duration,
}

/// What the load's clients felt. Times are in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) requests: usize,
    pub(super) ok: usize,
    pub(super) rejected: usize,
    pub(super) failed: usize,
    pub(super) elapsed_seconds: f64,
    pub(super) requests_per_second: f64,
    pub(super) prompt_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) output_tokens_per_second: f64,
    /// Good requests among all that were sent, rejected and failed ones included.
    pub(super) goodput_ratio: f64,
    pub(super) goodput_per_second: f64,
    pub(super) ttft_ms: Spread,
    pub(super) gap_ms: Spread,
    pub(super) total_ms: Spread,
}

/// A distribution, in milliseconds.
#[derive(Debug, Default, Serialize)]
pub(super) struct Spread {
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Slo {
    fn holds(&self, sample: &Sample) -> bool {
        let gap = match sample.gaps.len() {
            0 => Duration::ZERO,
            count => sample.gaps.iter().sum::<Duration>() / count as u32,
        };
        sample.outcome == Outcome::Ok && sample.ttft.is_some_and(|ttft| ttft <= self.ttft) && gap <= self.gap
    }
}

impl Report {
    pub(super) fn of(run: &Run, slo: Slo) -> Self {
        let count = |outcome| run.samples.iter().filter(|sample| sample.outcome == outcome).count();
        let answered = || run.samples.iter().filter(|sample| sample.outcome == Outcome::Ok);
        let good = run.samples.iter().filter(|sample| slo.holds(sample)).count();
        let seconds = run.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let output_tokens = answered().map(|sample| sample.tokens).sum();
        Self {
            requests: run.samples.len(),
            ok: count(Outcome::Ok),
            rejected: count(Outcome::Rejected),
            failed: count(Outcome::Failed),
            elapsed_seconds: seconds,
            requests_per_second: count(Outcome::Ok) as f64 / seconds,
            prompt_tokens: answered().map(|sample| sample.prompt_tokens).sum(),
            output_tokens,
            output_tokens_per_second: output_tokens as f64 / seconds,
            goodput_ratio: good as f64 / run.samples.len().max(1) as f64,
            goodput_per_second: good as f64 / seconds,
            ttft_ms: Spread::of(answered().filter_map(|sample| sample.ttft)),
            gap_ms: Spread::of(answered().flat_map(|sample| sample.gaps.iter().copied())),
            total_ms: Spread::of(answered().map(|sample| sample.total)),
        }
    }

    pub(super) fn print(&self) -> Result<(), Fault> {
        output::line(&format!(
            "{} requests in {:.1} s: {} answered, {} rejected, {} failed",
            self.requests, self.elapsed_seconds, self.ok, self.rejected, self.failed
        ))?;
        output::line(&format!(
            "{:.1} output tokens/s, {:.2} requests/s; {:.0} % good, {:.2} good/s",
            self.output_tokens_per_second,
            self.requests_per_second,
            self.goodput_ratio * 100.0,
            self.goodput_per_second
        ))?;
        let row = |name: &str, spread: &Spread| {
            let cells = [spread.mean, spread.p50, spread.p90, spread.p99, spread.max].map(|ms| format!("{ms:.1}"));
            let [mean, p50, p90, p99, max] = cells;
            [name.to_owned(), mean, p50, p90, p99, max]
        };
        let rows = [row("first token", &self.ttft_ms), row("gap", &self.gap_ms), row("whole answer", &self.total_ms)];
        output::table(["ms", "mean", "p50", "p90", "p99", "max"], &rows)
    }
}

impl Spread {
    fn of(values: impl Iterator<Item = Duration>) -> Self {
        let mut ms: Vec<f64> = values.map(|value| value.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        let Some(max) = ms.last().copied() else {
            return Self::default();
        };
        // The nearest-rank definition: the least value with at least so many at or below it.
        let rank = |share: f64| ms[((ms.len() as f64 * share).ceil() as usize).clamp(1, ms.len()) - 1];
        Self { mean: ms.iter().sum::<f64>() / ms.len() as f64, p50: rank(0.5), p90: rank(0.9), p99: rank(0.99), max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(outcome: Outcome, ttft: u64, gap: u64) -> Sample {
        let ms = Duration::from_millis;
        Sample {
            outcome,
            problem: None,
            ttft: Some(ms(ttft)),
            gaps: vec![ms(gap); 3],
            total: ms(ttft + 3 * gap),
            prompt_tokens: 5,
            tokens: 4,
        }
    }

    #[test]
    fn rejects_count_in_the_denominator_of_goodput() {
        let samples = vec![
            sample(Outcome::Ok, 10, 5),
            sample(Outcome::Ok, 2_000, 5),
            sample(Outcome::Ok, 10, 500),
            sample(Outcome::Rejected, 1, 1),
        ];
        let run = Run { samples, elapsed: Duration::from_secs(2) };
        let slo = Slo { ttft: Duration::from_secs(1), gap: Duration::from_millis(100) };
        let report = Report::of(&run, slo);
        assert_eq!((report.ok, report.rejected, report.failed), (3, 1, 0));
        assert_eq!(report.goodput_ratio, 0.25);
        assert_eq!(report.output_tokens, 12);
        assert_eq!(report.output_tokens_per_second, 6.0);
    }

    #[test]
    fn ranks_are_nearest() {
        let spread = Spread::of((1..=100).map(Duration::from_millis));
        assert_eq!((spread.p50, spread.p90, spread.p99, spread.max), (50.0, 90.0, 99.0, 100.0));
        assert_eq!(Spread::of(std::iter::empty()).max, 0.0);
    }
}
