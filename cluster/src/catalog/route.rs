//! Routes: what clients ask for as `model`, and where it goes.

use penstock_proto::ModelName;
use serde::{Deserialize, Serialize};

use super::document::Lined;
use super::name::{InvalidWord, Name, Ratio, Span};
use super::rule::Rule;

/// What clients ask for as `model`, and where it goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// What clients ask for.
    pub name: Name,
    /// Where its requests go, in shares of their weights.
    pub targets: Vec<Lined<Share>>,
    /// Exceptions: the first that holds wins.
    #[serde(default)]
    pub rules: Vec<Lined<RouteRule>>,
    /// Where requests go while the targets are behind.
    #[serde(default)]
    pub overflow: Option<Lined<Overflow>>,
    /// What is tried after everything else.
    #[serde(default)]
    pub fallback: Vec<Lined<Share>>,
    /// The order that candidates are tried in.
    #[serde(default)]
    pub order: Order,
    /// Copies of requests.
    #[serde(default)]
    pub shadow: Option<Lined<Shadow>>,
    /// What its answers and its requests are searched for.
    #[serde(default)]
    pub filter: Option<Filter>,
    /// A version that takes over step by step.
    #[serde(default)]
    pub canary: Option<Lined<Canary>>,
}

impl Route {
    /// Every target that it names, wherever, in the order of its fields.
    pub fn every_target(&self) -> impl Iterator<Item = &Target> {
        let rules = self.rules.iter().flat_map(|rule| &rule.targets);
        let overflow = self.overflow.iter().flat_map(|overflow| &overflow.targets);
        let shadow = self.shadow.iter().flat_map(|shadow| &shadow.targets);
        let shares = self.targets.iter().chain(rules).chain(overflow).chain(&self.fallback).chain(shadow);
        shares.map(|share| &share.target)
    }
}

/// The order that candidates are tried in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// As they are written.
    #[default]
    Listed,
    /// The cheapest first, of those that may be called.
    Cheapest,
}

/// A place that can answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The cluster's own workers.
    Local {
        /// The model.
        model: Name,
        /// The version; None: any.
        version: Option<Name>,
        /// The adapter.
        adapter: Option<Name>,
    },
    /// A provider outside.
    Upstream {
        /// The provider.
        upstream: Name,
        /// Its name of the model.
        model: ModelName,
    },
}

/// A target and its part of the traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenShare", into = "WrittenShare")]
pub struct Share {
    /// The target.
    pub target: Target,
    /// Its part, in proportion to the others'; None counts as 1.
    pub weight: Option<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenShare {
    model: ModelName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    adapter: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    upstream: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
}

/// Why this is no target.
#[derive(Debug, thiserror::Error)]
enum InvalidTarget {
    #[error("a model of an upstream has no {0} here")]
    External(&'static str),
    #[error(transparent)]
    Name(#[from] InvalidWord),
}

impl TryFrom<WrittenShare> for Share {
    type Error = InvalidTarget;
    fn try_from(written: WrittenShare) -> Result<Self, InvalidTarget> {
        let WrittenShare { model, version, adapter, upstream, weight } = written;
        let target = match (upstream, version, adapter) {
            (Some(_), Some(_), _) => return Err(InvalidTarget::External("version")),
            (Some(_), None, Some(_)) => return Err(InvalidTarget::External("adapter")),
            (Some(upstream), None, None) => Target::Upstream { upstream, model },
            (None, version, adapter) => Target::Local { model: Name::new(model.as_str())?, version, adapter },
        };
        Ok(Self { target, weight })
    }
}

impl From<Share> for WrittenShare {
    fn from(share: Share) -> Self {
        let weight = share.weight;
        match share.target {
            Target::Local { model, version, adapter } => {
                let model = ModelName::new(model.as_str()).expect("a name has no white space and is short");
                Self { model, version, adapter, upstream: None, weight }
            }
            Target::Upstream { upstream, model } => {
                Self { model, version: None, adapter: None, upstream: Some(upstream), weight }
            }
        }
    }
}

/// An exception of a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteRule {
    /// Whom it is for.
    pub when: Rule,
    /// Where they go instead.
    pub targets: Vec<Lined<Share>>,
}

/// Where requests go while the targets are behind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overflow {
    /// Where they go.
    pub targets: Vec<Lined<Share>>,
    /// It begins when the predicted wait is over this.
    pub above_wait_ms: u64,
    /// It ends when the predicted wait is under this.
    pub below_wait_ms: u64,
}

/// Copies of requests, whose answers nobody sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shadow {
    /// Where the copies go.
    pub targets: Vec<Lined<Share>>,
    /// The part of the requests that is copied.
    pub sample: Ratio,
}

/// What answers are searched for, and what requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// The detectors that look through answers.
    #[serde(default)]
    pub output: Vec<Lined<Name>>,
    /// The detectors whose matches in a request are replaced before a model sees them, and put back in the answer. The
    /// request's class stays what they raised it to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub input: Vec<Lined<Name>>,
    /// What happens to a match in an answer.
    #[serde(default)]
    pub action: FilterAction,
}

/// What happens to a match in an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilterAction {
    /// A placeholder takes its place.
    #[default]
    Redact,
    /// The answer ends.
    Block,
}

/// A version that takes over step by step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// The version that serves.
    pub from: Name,
    /// The version that is to serve.
    pub to: Name,
    /// Its parts of the traffic, in percent, one after the other.
    pub steps: Vec<u8>,
    /// How long each lasts.
    pub hold: Span,
    /// What ends it.
    pub abort_if: AbortIf,
}

/// What ends a canary; None: nothing does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AbortIf {
    /// More failures than this.
    pub error_rate_above: Option<Ratio>,
    /// Slower first tokens than this.
    pub ttft_p99_above_ms: Option<u64>,
    /// Worse answers than this.
    pub quality_below: Option<Ratio>,
}
