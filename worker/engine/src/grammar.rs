//! A language that a sequence's outputs are held to, as the sampler sees it: token ids only. What the language is, and
//! how a text becomes one, is known to whoever implements [`Grammar`].

use std::fmt;

use crate::batch::TokenId;

/// A language and how far into one of its words the outputs have come. Its state is a function of the outputs alone.
pub trait Grammar: fmt::Debug + Send {
    /// The ids that may come next: a bit for each, 32 in a word, the lowest first; ids beyond the last word may not.
    /// The model's end-of-text ids are among them exactly where the outputs are a whole word.
    fn allowed(&mut self) -> Result<&[u32], Error>;

    /// Takes an output, which was allowed.
    fn accept(&mut self, token: TokenId) -> Result<(), Error>;
}

/// A grammar that cannot go on: it would take more time or memory than it may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the constraint cannot be followed any further: {0}")]
pub struct Error(pub String);
