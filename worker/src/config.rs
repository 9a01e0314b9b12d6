//! A worker's configuration, typed and whole. The only place of this crate that reads the environment.

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use penstock_proto::{ModelName, WorkerName};

use crate::artifact::{Digest, Origins, Token};

/// What a worker is to serve, and with what.
#[derive(Debug, Clone)]
pub struct Config {
    /// A model's name, the path of its file, or its source; see [`Cache::obtain`](crate::artifact::Cache::obtain).
    pub model: String,
    /// The name that the model is served under; its own where None.
    pub served_name: Option<ModelName>,
    /// The worker's name in the cluster.
    pub name: WorkerName,
    /// Where state and caches live; models in `models/` under it.
    pub data_dir: PathBuf,
    /// What runs the model.
    pub runner: Runner,
    /// What computes.
    pub device: Device,
    /// Threads that compute; one a core where None.
    pub threads: Option<NonZeroUsize>,
    /// Room for keys and values.
    pub kv: KvMemory,
    /// Rows of a step's batch.
    pub max_batch_tokens: usize,
    /// Sequences that are run at once.
    pub max_sequences: usize,
    /// Sequences that may wait; more are refused.
    pub max_waiting: usize,
    /// How long a leaving worker waits for what is in flight.
    pub drain_timeout: Duration,
    /// Where model files come from.
    pub origins: Origins,
}

/// What runs the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Runner {
    /// The model's own weights.
    #[default]
    Model,
    /// A stand-in without weights that takes its time as it is told: to rehearse a fleet.
    Scripted(Timing),
}

/// How long a stand-in's steps take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Tokens of prompts, and decoded ones, that it computes in a second.
    pub tokens_per_second: NonZeroU32,
    /// What a step takes beyond that.
    pub step: Duration,
}

/// What computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Device {
    /// The best that this machine has and this build serves.
    #[default]
    Auto,
    /// The processor's cores.
    Cpu,
}

/// How much memory the KV pool takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KvMemory {
    /// 1 GiB, or one sequence of full context where that is more, or all sequences of full context where that is less;
    /// and never more than half of what the weights leave of the memory that is free at the start.
    #[default]
    Auto,
    /// So many bytes.
    Bytes(u64),
}

/// A word of the configuration that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {value:?}: {problem}")]
pub struct InvalidValue {
    flag: &'static str,
    value: String,
    problem: &'static str,
}

impl Config {
    /// A worker of that name for that model, everything else as it comes. Reads the environment for [`Origins`].
    pub fn new(name: WorkerName, model: impl Into<String>, data_dir: impl Into<PathBuf>) -> Self {
        let engine = penstock_engine::Config::default();
        Self {
            model: model.into(),
            served_name: None,
            name,
            data_dir: data_dir.into(),
            runner: Runner::default(),
            device: Device::default(),
            threads: None,
            kv: KvMemory::default(),
            max_batch_tokens: engine.max_batch_tokens,
            max_sequences: engine.max_sequences,
            max_waiting: engine.max_waiting,
            drain_timeout: Duration::from_secs(600),
            origins: origins(),
        }
    }

    /// The engine's limits, for the model of that digest, whose answers these ids end.
    pub(crate) fn engine(&self, model: Digest, eos_token_ids: Vec<u32>) -> penstock_engine::Config {
        penstock_engine::Config {
            max_batch_tokens: self.max_batch_tokens,
            max_sequences: self.max_sequences,
            max_waiting: self.max_waiting,
            eos_token_ids,
            model_digest: model.to_string(),
            ..penstock_engine::Config::default()
        }
    }

    /// The folder of model files.
    pub fn models_dir(&self) -> PathBuf {
        models_dir(&self.data_dir)
    }
}

/// The folder of model files under a data directory.
pub fn models_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("models")
}

/// Where models come from, with `HF_ENDPOINT` and `HF_TOKEN` as Hugging Face's own tools read them.
pub fn origins() -> Origins {
    let mut origins = Origins::default();
    if let Some(endpoint) = variable("HF_ENDPOINT") {
        origins.hub_endpoint = endpoint.trim_end_matches('/').to_owned();
    }
    origins.hub_token = variable("HF_TOKEN").map(Token::new);
    origins
}

/// `$XDG_DATA_HOME/penstock`, else `~/.local/share/penstock`, else `.penstock` where the user has no home.
pub fn default_data_dir() -> PathBuf {
    // The XDG specification has relative paths ignored.
    let data_home = variable("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || variable("HOME").map(|home| Path::new(&home).join(".local/share"));
    data_home.or_else(home).map_or_else(|| PathBuf::from(".penstock"), |base| base.join("penstock"))
}

#[expect(clippy::disallowed_methods, reason = "config.rs is where the environment is read")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl FromStr for Device {
    type Err = InvalidValue;
    fn from_str(value: &str) -> Result<Self, InvalidValue> {
        let problem = match value {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            cuda if cuda.starts_with("cuda:") => "not served yet; use auto or cpu",
            _ => "expected auto, cpu or cuda:N",
        };
        Err(InvalidValue { flag: "device", value: value.to_owned(), problem })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
        })
    }
}

impl FromStr for KvMemory {
    type Err = InvalidValue;

    /// `auto`, or bytes: digits with `KiB`, `MiB`, `GiB`, or nothing behind them.
    fn from_str(value: &str) -> Result<Self, InvalidValue> {
        if value == "auto" {
            return Ok(Self::Auto);
        }
        let digits = value.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit: Option<u64> = match value[digits.len()..].trim() {
            "" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1 << 30),
            _ => None,
        };
        let bytes = unit.and_then(|unit| digits.parse::<u64>().ok()?.checked_mul(unit)).filter(|bytes| *bytes > 0);
        let problem = "expected auto, or an amount such as 512MiB or 2GiB";
        bytes.map(Self::Bytes).ok_or_else(|| InvalidValue { flag: "kv-memory", value: value.to_owned(), problem })
    }
}

impl fmt::Display for KvMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_are_not_served_are_said_so() {
        assert_eq!("auto".parse(), Ok(Device::Auto));
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        let error = "cuda:0".parse::<Device>().unwrap_err().to_string();
        assert_eq!(error, "device \"cuda:0\": not served yet; use auto or cpu");
        assert!("gpu".parse::<Device>().is_err());
    }

    #[test]
    fn amounts_have_units() {
        assert_eq!("auto".parse(), Ok(KvMemory::Auto));
        assert_eq!("1000".parse(), Ok(KvMemory::Bytes(1000)));
        assert_eq!("2GiB".parse(), Ok(KvMemory::Bytes(2 << 30)));
        assert_eq!("512 MiB".parse(), Ok(KvMemory::Bytes(512 << 20)));
        for wrong in ["", "0", "GiB", "1GB", "-1", "99999999999GiB", "1.5GiB"] {
            assert!(wrong.parse::<KvMemory>().is_err(), "{wrong:?}");
        }
    }
}
