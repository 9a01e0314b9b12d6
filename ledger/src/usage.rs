//! What was used and what it cost: from settled records, by tenant, model, target, day or task, beside what the same
//! tokens cost elsewhere.

mod html;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::calendar::Day;
use crate::record::{Price, Record, Settled, Tokens};

/// What lines are made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// Who asked.
    Tenant,
    /// What was asked for.
    Model,
    /// What answered.
    Target,
    /// The day, UTC.
    Day,
    /// The client's word.
    Task,
}

impl By {
    const ALL: [Self; 5] = [Self::Tenant, Self::Model, Self::Target, Self::Day, Self::Task];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Model => "model",
            Self::Target => "target",
            Self::Day => "day",
            Self::Task => "task",
        }
    }
}

/// Where the same tokens might have gone, and at which price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PricedAs {
    /// `UPSTREAM/MODEL`.
    pub name: String,
    /// Its price.
    pub price: Price,
}

/// What was used by one of what lines are made by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The tenant, the model, …
    pub name: String,
    /// Requests, copies aside.
    pub requests: u64,
    /// Of these, those that ended in an error.
    pub failed: u64,
    /// Of these, those whose tokens and cost are what was reserved.
    pub estimated: u64,
    /// Tokens of the requests, copies aside.
    pub tokens: Tokens,
    /// Time of the cluster's own machines, in microseconds, copies too.
    pub compute_us: u64,
    /// In thousand millionths of a dollar, copies too.
    pub cost_nanos: u64,
    /// What the same tokens cost elsewhere, in the order of [`Usage::elsewhere`].
    pub elsewhere_nanos: Vec<u64>,
}

impl Line {
    fn new(name: &str, prices: &[PricedAs]) -> Self {
        Self { name: name.to_owned(), elsewhere_nanos: vec![0; prices.len()], ..Self::default() }
    }

    /// What was saved against each place elsewhere, in thousand millionths of a dollar; below 0 where it would have been
    /// cheaper there.
    pub fn saved_nanos(&self) -> Vec<i64> {
        let nanos = |nanos: u64| i64::try_from(nanos).unwrap_or(i64::MAX);
        self.elsewhere_nanos.iter().map(|elsewhere| nanos(*elsewhere).saturating_sub(nanos(self.cost_nanos))).collect()
    }

    fn add(&mut self, settled: &Settled, prices: &[PricedAs]) {
        self.compute_us = self.compute_us.saturating_add(settled.compute_us);
        self.cost_nanos = self.cost_nanos.saturating_add(settled.cost_nanos);
        // Nobody would have sent copies elsewhere.
        if settled.shadow {
            return;
        }
        self.requests += 1;
        self.failed += u64::from(settled.outcome != "ok");
        self.estimated += u64::from(settled.estimated);
        self.tokens.prompt = self.tokens.prompt.saturating_add(settled.tokens.prompt);
        self.tokens.cached = self.tokens.cached.saturating_add(settled.tokens.cached);
        self.tokens.completion = self.tokens.completion.saturating_add(settled.tokens.completion);
        for (sum, priced) in self.elsewhere_nanos.iter_mut().zip(prices) {
            *sum = sum.saturating_add(priced.price.of(&settled.tokens));
        }
    }

    fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.estimated += other.estimated;
        self.tokens.prompt = self.tokens.prompt.saturating_add(other.tokens.prompt);
        self.tokens.cached = self.tokens.cached.saturating_add(other.tokens.cached);
        self.tokens.completion = self.tokens.completion.saturating_add(other.tokens.completion);
        self.compute_us = self.compute_us.saturating_add(other.compute_us);
        self.cost_nanos = self.cost_nanos.saturating_add(other.cost_nanos);
        for (sum, nanos) in self.elsewhere_nanos.iter_mut().zip(&other.elsewhere_nanos) {
            *sum = sum.saturating_add(*nanos);
        }
    }
}

/// What was used, line by line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Where the same tokens might have gone.
    pub elsewhere: Vec<PricedAs>,
    /// One for each tenant, model, …, by name.
    pub lines: Vec<Line>,
    /// Time of the cluster's own machines that no request used.
    pub idle: Line,
    /// All together, idle time included.
    pub total: Line,
}

/// Adds records up, month by month.
#[derive(Debug)]
pub struct Accounts {
    prices: Vec<PricedAs>,
    months: BTreeMap<(u64, u64), Month>,
}

#[derive(Debug)]
struct Month {
    lines: BTreeMap<(By, String), Line>,
    idle: Line,
}

impl Accounts {
    /// None yet; the same tokens are priced at each of `prices`, too.
    pub fn new(prices: Vec<PricedAs>) -> Self {
        Self { prices, months: BTreeMap::new() }
    }

    /// Adds a record that was written at a time, in microseconds since 1970; only settled ones and idle time count.
    pub fn add(&mut self, time: u64, record: &Record) {
        let (day, prices) = (Day::of(time), &self.prices);
        let new = || Month { lines: BTreeMap::new(), idle: Line::new("idle", prices) };
        match record {
            Record::Settled(settled) => {
                let month = self.months.entry((day.year, day.month)).or_insert_with(new);
                for by in By::ALL {
                    let name = name(by, settled, day);
                    let line = month.lines.entry((by, name)).or_insert_with_key(|(_, name)| Line::new(name, prices));
                    line.add(settled, prices);
                }
            }
            Record::Idle(idle) => {
                let line = &mut self.months.entry((day.year, day.month)).or_insert_with(new).idle;
                line.compute_us = line.compute_us.saturating_add(idle.compute_us);
                line.cost_nanos = line.cost_nanos.saturating_add(idle.cost_nanos);
            }
            Record::Decided(_) | Record::Catalogue(_) | Record::Operator(_) => {}
        }
    }

    /// All months together.
    pub fn usage(&self, by: By) -> Usage {
        self.sum(by, self.months.values())
    }

    /// The months, each with a plot of its days and its lines by all but those: a page that opens from disk.
    pub fn html(&self) -> String {
        html::page(self)
    }

    fn sum<'a>(&self, by: By, months: impl Iterator<Item = &'a Month>) -> Usage {
        let mut lines: BTreeMap<&str, Line> = BTreeMap::new();
        let (mut idle, mut total) = (Line::new("idle", &self.prices), Line::new("total", &self.prices));
        for month in months {
            for ((_, name), line) in month.lines.iter().filter(|((of, _), _)| *of == by) {
                lines.entry(name).or_insert_with(|| Line::new(name, &self.prices)).merge(line);
                total.merge(line);
            }
            idle.merge(&month.idle);
            total.merge(&month.idle);
        }
        Usage { elsewhere: self.prices.clone(), lines: lines.into_values().collect(), idle, total }
    }
}

fn name(by: By, settled: &Settled, day: Day) -> String {
    let name = match by {
        By::Tenant => &settled.tenant,
        By::Model => &settled.model,
        By::Target => settled.target.as_ref().map_or("", String::as_str),
        By::Day => return day.to_string(),
        By::Task => &settled.task,
    };
    if name.is_empty() { "none".to_owned() } else { name.to_string() }
}

/// An amount for people: `$12.34`, and with more digits where it is small.
pub fn dollars(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    match nanos {
        0 => "$0.00".to_owned(),
        1..10_000_000 => format!("{sign}${}.{:06}", nanos / 1_000_000_000, nanos.div_ceil(1_000) % 1_000_000),
        _ => {
            let cents = (nanos + 5_000_000) / 10_000_000;
            format!("{sign}${}.{:02}", cents / 100, cents % 100)
        }
    }
}

#[cfg(test)]
mod tests;
