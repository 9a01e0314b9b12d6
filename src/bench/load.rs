//! Sends requests as the load asks and takes the time of every piece of every answer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::target::{Sample, Target};
use crate::fault::Fault;

/// When requests are sent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arrivals {
    /// So many clients, each asking once it is answered.
    Closed { clients: usize },
    /// A Poisson process of so many a second.
    Open { rate: f64 },
}

/// What is asked, how often, how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) arrivals: Arrivals,
    pub(super) requests: u64,
    pub(super) duration: Duration,
    pub(super) prompt_tokens: usize,
    pub(super) shared_prefix: usize,
    pub(super) max_tokens: u32,
    pub(super) seed: u64,
}

/// All samples, and how long they took together.
pub(super) struct Run {
    pub(super) samples: Vec<Sample>,
    pub(super) elapsed: Duration,
}

impl Load {
    /// Sends requests that are not measured, so that caches and connections are warm.
    pub(super) async fn warm(&self, target: &Target, count: u64) -> Result<(), Fault> {
        for number in 0..count {
            let sample = target.ask(self.prompt(u64::MAX - number), self.max_tokens).await;
            if let Some(problem) = sample.problem {
                return Err(Fault::not_reachable(format!("{target} does not answer as it should: {problem}")));
            }
        }
        Ok(())
    }

    /// Runs to the end: every request that was sent is awaited.
    pub(super) async fn run(self, target: &Target) -> Run {
        let start = Instant::now();
        let samples = match self.arrivals {
            Arrivals::Closed { clients } => {
                let numbers = (0..self.requests).take_while(|_| start.elapsed() < self.duration);
                let asked =
                    futures_util::stream::iter(numbers).map(|number| target.ask(self.prompt(number), self.max_tokens));
                asked.buffer_unordered(clients).collect().await
            }
            Arrivals::Open { rate } => self.open(target, rate, start).await,
        };
        Run { samples, elapsed: start.elapsed() }
    }

    async fn open(self, target: &Target, rate: f64, start: Instant) -> Vec<Sample> {
        let target = Arc::new(target.clone());
        let mut random = Random(self.seed ^ 0x6f70_656e);
        let mut due = start;
        let mut asked = JoinSet::new();
        for number in 0..self.requests {
            due += Duration::from_secs_f64(-(1.0 - random.unit()).ln() / rate);
            if due.duration_since(start) > self.duration {
                break;
            }
            tokio::time::sleep_until(due).await;
            let (target, prompt) = (Arc::clone(&target), self.prompt(number));
            asked.spawn(async move { target.ask(prompt, self.max_tokens).await });
        }
        asked.join_all().await
    }

    /// The prompt of a request: words drawn by seed and number, after the shared ones.
    fn prompt(&self, number: u64) -> String {
        let mut shared = Random(self.seed);
        let mut own = Random(self.seed ^ number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let words = (0..self.prompt_tokens).map(|at| if at < self.shared_prefix { shared.word() } else { own.word() });
        words.collect::<Vec<_>>().join(" ")
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough for prompts and arrivals, the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn word(&mut self) -> &'static str {
        const WORDS: [&str; 16] = [
            "river", "water", "city", "house", "time", "people", "light", "school", "music", "world", "book", "table",
            "road", "family", "garden", "morning",
        ];
        WORDS[(self.next() % WORDS.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_their_prefix_and_nothing_more() {
        let load = Load {
            arrivals: Arrivals::Closed { clients: 1 },
            requests: 2,
            duration: Duration::MAX,
            prompt_tokens: 40,
            shared_prefix: 10,
            max_tokens: 1,
            seed: 5,
        };
        let (one, two) = (load.prompt(0), load.prompt(1));
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&one)[..10], words(&two)[..10]);
        assert_ne!(words(&one)[10..], words(&two)[10..]);
        assert_eq!(load.prompt(1), two);
    }

    #[test]
    fn units_lie_in_their_range() {
        let mut random = Random(1);
        let mean = (0..10_000).map(|_| random.unit()).inspect(|u| assert!((0.0..1.0).contains(u))).sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 0.02);
    }
}
