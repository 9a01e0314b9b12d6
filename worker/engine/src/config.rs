//! How much an engine takes on at once, checked at its start.

use crate::batch::TokenId;
use crate::prefix::Secret;

/// An engine's limits. What concerns the model itself is the runner's [`Shape`](crate::runner::Shape).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Rows of a step's batch, prompts' chunks and decoded tokens together.
    pub max_batch_tokens: usize,
    /// Sequences that are run at once.
    pub max_sequences: usize,
    /// Submissions that may wait for their first step; more are refused.
    pub max_waiting: usize,
    /// Events that wait for a reader before its sequence pauses.
    pub event_buffer: usize,
    /// Ids that end an answer unless its submission ignores them.
    pub eos_token_ids: Vec<TokenId>,
    /// The digest of the model's weights: prefixes of one model are not those of another.
    pub model_digest: String,
    /// What prefixes are keyed with; a random one of this process where None.
    pub secret: Option<Secret>,
}

/// A configuration that no engine could run with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A limit that must be at least 1.
    #[error("{field} is 0")]
    Zero {
        /// The limit's name.
        field: &'static str,
    },
    /// Every running sequence decodes a row a step, so the batch must have a row for each.
    #[error("max_batch_tokens is {max_batch_tokens}, less than max_sequences, {max_sequences}")]
    Batch {
        /// Rows of a batch.
        max_batch_tokens: usize,
        /// Sequences that are run at once.
        max_sequences: usize,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_batch_tokens: 512,
            max_sequences: 64,
            max_waiting: 256,
            event_buffer: 64,
            eos_token_ids: Vec::new(),
            model_digest: String::new(),
            secret: None,
        }
    }
}

impl Config {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let limits = [
            ("max_batch_tokens", self.max_batch_tokens),
            ("max_sequences", self.max_sequences),
            ("max_waiting", self.max_waiting),
            ("event_buffer", self.event_buffer),
        ];
        if let Some((field, _)) = limits.into_iter().find(|(_, limit)| *limit == 0) {
            return Err(Error::Zero { field });
        }
        let Self { max_batch_tokens, max_sequences, .. } = *self;
        if max_batch_tokens < max_sequences {
            return Err(Error::Batch { max_batch_tokens, max_sequences });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_could_not_work_are_named() {
        assert_eq!(Config::default().check(), Ok(()));
        let config = Config { event_buffer: 0, ..Config::default() };
        assert_eq!(config.check(), Err(Error::Zero { field: "event_buffer" }));
        let config = Config { max_batch_tokens: 8, ..Config::default() };
        assert_eq!(config.check(), Err(Error::Batch { max_batch_tokens: 8, max_sequences: 64 }));
    }
}
