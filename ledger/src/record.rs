//! What is recorded: plain owned data, so that it can be read without the program that wrote it. Texts of requests and
//! answers stand here as [`Mac`]s only.
//!
//! Records are read by newer programs too: a field that comes later has a default, and none changes its meaning.

mod inputs;

use penstock_proto::RequestId;
use serde::{Deserialize, Serialize};

pub use inputs::{Class, Egress, Inputs, Raised, Raiser, Served, Shape, Target, Tide, Time};

use crate::key::Mac;

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// Where a request may go.
    Decided(Box<Decided>),
    /// Where it went, and what that cost.
    Settled(Box<Settled>),
    /// A catalogue came into force.
    Catalogue(Catalogue),
    /// An operator did something.
    Operator(Operator),
    /// A machine was paid for, and nobody used it.
    Idle(Idle),
}

/// Which kind a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// [`Decided`].
    Decided,
    /// [`Settled`].
    Settled,
    /// [`Catalogue`].
    Catalogue,
    /// [`Operator`].
    Operator,
    /// [`Idle`].
    Idle,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Decided, Self::Settled, Self::Catalogue, Self::Operator, Self::Idle];

    /// The word that is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decided => "decided",
            Self::Settled => "settled",
            Self::Catalogue => "catalogue",
            Self::Operator => "operator",
            Self::Idle => "idle",
        }
    }
}

/// Stored bytes that are no record.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRecord {
    /// Of a kind that this program does not know.
    #[error("a record of kind {0:?}, which this Penstock does not know")]
    Kind(String),
    /// Not what a record of its kind is.
    #[error("a {kind} record that cannot be read: {source}")]
    Body {
        /// Its kind.
        kind: &'static str,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl Record {
    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Decided(_) => Kind::Decided,
            Self::Settled(_) => Kind::Settled,
            Self::Catalogue(_) => Kind::Catalogue,
            Self::Operator(_) => Kind::Operator,
            Self::Idle(_) => Kind::Idle,
        }
    }

    /// The request that it is of.
    pub fn request(&self) -> Option<RequestId> {
        match self {
            Self::Decided(decided) => Some(decided.request),
            Self::Settled(settled) => Some(settled.request),
            Self::Catalogue(_) | Self::Operator(_) | Self::Idle(_) => None,
        }
    }

    /// The bytes that are stored and hashed.
    pub(crate) fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(1024);
        let written = match self {
            Self::Decided(decided) => serde_json::to_writer(&mut body, decided),
            Self::Settled(settled) => serde_json::to_writer(&mut body, settled),
            Self::Catalogue(catalogue) => serde_json::to_writer(&mut body, catalogue),
            Self::Operator(operator) => serde_json::to_writer(&mut body, operator),
            Self::Idle(idle) => serde_json::to_writer(&mut body, idle),
        };
        written.expect("records have string keys only, and memory takes every byte");
        body
    }

    /// The record as JSON, as exports have it.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body()).expect("a record is written as JSON")
    }

    /// Reads what was stored.
    ///
    /// # Errors
    ///
    /// [`InvalidRecord`].
    pub fn read(kind: &str, body: &[u8]) -> Result<Self, InvalidRecord> {
        let known = Kind::ALL.into_iter().find(|known| known.as_str() == kind);
        let known = known.ok_or_else(|| InvalidRecord::Kind(kind.to_owned()))?;
        let record = match known {
            Kind::Decided => serde_json::from_slice(body).map(Self::Decided),
            Kind::Settled => serde_json::from_slice(body).map(Self::Settled),
            Kind::Catalogue => serde_json::from_slice(body).map(Self::Catalogue),
            Kind::Operator => serde_json::from_slice(body).map(Self::Operator),
            Kind::Idle => serde_json::from_slice(body).map(Self::Idle),
        };
        record.map_err(|source| InvalidRecord::Body { kind: known.as_str(), source })
    }
}

/// Where a request may go, and everything that this was decided by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// The request.
    #[serde(with = "request_id")]
    pub request: RequestId,
    /// Which of the tenant's keys was used; never the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The client's session, hidden.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Mac>,
    /// What the decision was made from: it can be made again.
    pub inputs: Inputs,
    /// Why the first targets are those, in words.
    pub arm: String,
    /// What may be called, in the order to try it.
    pub candidates: Vec<Candidate>,
    /// What was passed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// Where copies go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shadows: Vec<Candidate>,
    /// Rules that could not be evaluated: `FILE:LINE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_rules: Vec<String>,
    /// All that the model is to read, hidden.
    pub prompt: Mac,
}

/// A target that may be called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The target.
    pub target: Target,
    /// What named it: `direct`, `rule`, `split`, `overflow`, `fallback`, `shadow`.
    pub stage: String,
    /// What an upstream asks; None for the cluster's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
}

/// A target that may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The target.
    pub target: Target,
    /// What named it.
    pub stage: String,
    /// Why not, in words.
    pub reason: String,
}

/// Thousand millionths of a dollar for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Of prompts.
    pub input: u64,
    /// Of answers.
    pub output: u64,
    /// Of prompts that the provider had cached; None: as others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<u64>,
}

impl Price {
    /// What tokens cost, in thousand millionths of a dollar, rounded up.
    pub fn of(&self, tokens: &Tokens) -> u64 {
        let cached = tokens.cached.min(tokens.prompt);
        let cost = u128::from(tokens.prompt - cached) * u128::from(self.input)
            + u128::from(cached) * u128::from(self.cached_input.unwrap_or(self.input))
            + u128::from(tokens.completion) * u128::from(self.output);
        u64::try_from(cost.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Read.
    pub prompt: u64,
    /// Of these, found in a cache.
    pub cached: u64,
    /// Written.
    pub completion: u64,
}

/// Where a request went, what came of it and what it cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settled {
    /// The request.
    #[serde(with = "request_id")]
    pub request: RequestId,
    /// Who asked.
    pub tenant: String,
    /// The client's word; empty where it gave none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub task: String,
    /// What the client gave as `model`.
    pub model: String,
    /// What was called last: `local/MODEL@VERSION` or `UPSTREAM/MODEL`; None where nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The worker, for a target of the cluster's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Whether this was a copy, whose answer nobody saw.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shadow: bool,
    /// How many calls were begun.
    pub attempts: u32,
    /// `ok`, or the error's code.
    pub outcome: String,
    /// Why the answer ended: `stop`, `length`, `tool_calls`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<String>,
    /// What was read and written.
    pub tokens: Tokens,
    /// Whether the provider told no usable numbers, so that tokens and cost are those reserved.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
    /// The request's share of its worker's time, in microseconds.
    #[serde(default)]
    pub compute_us: u64,
    /// In thousand millionths of a dollar.
    pub cost_nanos: u64,
    /// From the request to the end of its answer, in microseconds.
    pub duration_us: u64,
    /// To the answer's first token; None where none came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_us: Option<u64>,
    /// The answer, hidden; None where none came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Mac>,
    /// What the output filter found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filtered: Vec<FilterHit>,
}

/// What the output filter found in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterHit {
    /// By which detector.
    pub detector: String,
    /// What was done: `redact`, `block`.
    pub action: String,
    /// How often.
    pub count: u32,
}

/// A catalogue that came into force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalogue {
    /// Its version.
    pub version: u64,
    /// Who applied it.
    pub by: String,
    /// The version that it brings back, after a rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<u64>,
}

/// What an operator did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// Who.
    pub name: String,
    /// What: `drain`, `undrain`, `rotate-key`, …
    pub action: String,
    /// To what.
    pub on: String,
}

/// Time of a model's machines that no request used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// The model that they serve.
    pub model: String,
    /// How long, in microseconds.
    pub compute_us: u64,
    /// In thousand millionths of a dollar.
    pub cost_nanos: u64,
}

/// Request ids as their text.
mod request_id {
    use std::borrow::Cow;

    use penstock_proto::RequestId;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(id: &RequestId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RequestId, D::Error> {
        <Cow<'de, str>>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
