//! What a decision is made from, beside the catalogue, whose version stands here. The router's policy reads the same facts
//! from its own types; these are their recorded form.

use penstock_proto::DataClass;
use serde::{Deserialize, Serialize};

/// Everything that a decision depends on, but the catalogue itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// The catalogue's version; None where nothing was ever applied.
    pub version: Option<u64>,
    /// Who asks.
    pub tenant: String,
    /// The request's class and what raised it.
    pub class: Class,
    /// What the client gave as `model`.
    pub asked: String,
    /// What the request is like.
    pub shape: Shape,
    /// What the cluster's own workers serve, and how far they are behind.
    pub load: Vec<Served>,
    /// Its place in the split, 0 to 9,999.
    pub bucket: u16,
    /// When it came.
    pub time: Time,
    /// Whether anything may leave.
    pub egress: Egress,
    /// Targets that failed too often just then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broken: Vec<Target>,
    /// What the decision before had left of the route's overflow.
    pub tide: Tide,
}

/// A class and everything that asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// The class.
    pub class: DataClass,
    /// What it comes from.
    pub raised_by: Vec<Raised>,
}

/// Something that asked for a class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raised {
    /// What asked.
    pub by: Raiser,
    /// For which class.
    pub to: DataClass,
}

/// What asks for a class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Raiser {
    /// The tenant's least class.
    Tenant,
    /// The header `x-penstock-class`.
    Header,
    /// The request's task.
    Task,
    /// The operator's record of the session.
    Session,
    /// A detector, and the string that it found something in; never what it found.
    Detector {
        /// The detector.
        name: String,
        /// The string: `messages[2].content`.
        place: String,
    },
}

/// What a request is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Bytes of all that the model is to read.
    pub prompt_bytes: u64,
    /// How many messages.
    pub messages: u64,
    /// The client's word; empty where it gave none.
    pub task: String,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// How many tools the model may call.
    pub tools: u64,
}

/// A model that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The model.
    pub model: String,
    /// Its version, where it has one.
    pub version: Option<String>,
    /// How long a new request waits for its first token, as predicted.
    pub wait_ms: u64,
}

/// When a request came, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// 0 to 23.
    pub hour: u8,
    /// 1, a Monday, to 7.
    pub weekday: u8,
}

/// Whether anything may leave the house.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// What the catalogue allows.
    Allowed,
    /// Nothing: `--no-egress`.
    Forbidden,
}

/// Whether a route's overflow is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tide {
    /// It is not.
    Low,
    /// It is.
    High,
}

/// Where a request may go.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Target {
    /// A model outside.
    Upstream {
        /// The provider.
        upstream: String,
        /// The provider's name for it.
        model: String,
    },
    /// A model of the cluster's own.
    Local {
        /// The model.
        model: String,
        /// Its version; None for any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
        /// A LoRA adapter on it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        adapter: Option<String>,
    },
}

impl std::fmt::Display for Target {
    /// As `x-penstock-target` has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Upstream { upstream, model } => write!(f, "{upstream}/{model}"),
            Self::Local { model, version, adapter } => {
                write!(f, "local/{model}")?;
                version.iter().try_for_each(|version| write!(f, "@{version}"))?;
                adapter.iter().try_for_each(|adapter| write!(f, ":{adapter}"))
            }
        }
    }
}
