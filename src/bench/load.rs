//! Sends requests as the load asks and takes the time of every piece of every answer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::fault::Fault;
use crate::sse::Events;

/// Whom the load asks.
pub(super) struct Target {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
    model: String,
}

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

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered to its end.
    Ok,
    /// Turned away with 429 or 503.
    Rejected,
    /// Anything else.
    Failed,
}

/// What one request's client saw.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) outcome: Outcome,
    pub(super) problem: Option<String>,
    pub(super) ttft: Option<Duration>,
    pub(super) gaps: Vec<Duration>,
    pub(super) total: Duration,
    pub(super) prompt_tokens: u64,
    pub(super) tokens: u64,
}

/// All samples, and how long they took together.
pub(super) struct Run {
    pub(super) samples: Vec<Sample>,
    pub(super) elapsed: Duration,
}

impl Target {
    pub(super) fn new(url: &str, key: Option<String>, model: String) -> Result<Self, Fault> {
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build().map_err(Fault::failed)?;
        Ok(Self { http, url: format!("{}/v1/completions", url.trim_end_matches('/')), key, model })
    }

    async fn ask(&self, prompt: String, max_tokens: u32) -> Sample {
        let body = json!({"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
            "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true}});
        let mut request = self.http.post(&self.url).header("content-type", "application/json").body(body.to_string());
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let mut watch = Watch::start();
        let end = watch.answer(request).await;
        watch.sample(end)
    }
}

impl Load {
    /// Sends requests that are not measured, so that caches and connections are warm.
    pub(super) async fn warm(&self, target: &Target, count: u64) -> Result<(), Fault> {
        for number in 0..count {
            let sample = target.ask(self.prompt(u64::MAX - number), self.max_tokens).await;
            if let Some(problem) = sample.problem {
                return Err(Fault::not_reachable(format!("{} does not answer as it should: {problem}", target.url)));
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
        let target = Arc::new(Target {
            http: target.http.clone(),
            url: target.url.clone(),
            key: target.key.clone(),
            model: target.model.clone(),
        });
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

/// Takes the times of one answer.
struct Watch {
    start: Instant,
    last: Instant,
    ttft: Option<Duration>,
    gaps: Vec<Duration>,
    usage: Option<(u64, u64)>,
}

impl Watch {
    fn start() -> Self {
        let start = Instant::now();
        Self { start, last: start, ttft: None, gaps: Vec::new(), usage: None }
    }

    async fn answer(&mut self, request: reqwest::RequestBuilder) -> Result<(), (Outcome, String)> {
        let failed = |error: reqwest::Error| (Outcome::Failed, error.to_string());
        let response = request.send().await.map_err(failed)?;
        let status = response.status().as_u16();
        if status != 200 {
            let outcome = if matches!(status, 429 | 503) { Outcome::Rejected } else { Outcome::Failed };
            return Err((outcome, format!("{status}: {}", response.text().await.unwrap_or_default())));
        }
        let mut stream = response.bytes_stream();
        let mut events = Events::default();
        while let Some(bytes) = stream.next().await {
            for data in events.push(&bytes.map_err(failed)?) {
                if data == "[DONE]" {
                    return Ok(());
                }
                self.event(&data)?;
            }
        }
        Err((Outcome::Failed, "the stream ended without [DONE]".to_owned()))
    }

    fn event(&mut self, data: &str) -> Result<(), (Outcome, String)> {
        let chunk: Value = serde_json::from_str(data).map_err(|error| (Outcome::Failed, error.to_string()))?;
        if !chunk["error"].is_null() {
            return Err((Outcome::Failed, chunk["error"].to_string()));
        }
        let usage = &chunk["usage"];
        if let (Some(prompt), Some(made)) = (usage["prompt_tokens"].as_u64(), usage["completion_tokens"].as_u64()) {
            self.usage = Some((prompt, made));
        }
        if chunk["choices"][0]["text"].as_str().is_none_or(str::is_empty) {
            return Ok(());
        }
        let now = Instant::now();
        match self.ttft {
            None => self.ttft = Some(now - self.start),
            Some(_) => self.gaps.push(now - self.last),
        }
        self.last = now;
        Ok(())
    }

    fn sample(self, end: Result<(), (Outcome, String)>) -> Sample {
        let (outcome, problem) = match end {
            Ok(()) => (Outcome::Ok, None),
            Err((outcome, problem)) => (outcome, Some(problem)),
        };
        let pieces = self.gaps.len() as u64 + u64::from(self.ttft.is_some());
        let (prompt_tokens, tokens) = self.usage.unwrap_or((0, pieces));
        let total = self.start.elapsed();
        Sample { outcome, problem, ttft: self.ttft, gaps: self.gaps, total, prompt_tokens, tokens }
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
