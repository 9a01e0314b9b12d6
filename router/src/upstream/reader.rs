//! What the protocols' readers have in common: events or a whole body in, pieces of an answer out.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use super::fault::Fault;
use super::key::Key;
use super::sse::Event;
use super::{anthropic, openai};
use crate::request::{Delta, FinishReason, Usage};

/// A piece of an answer; the delta's own finish stays empty.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Piece {
    pub(super) delta: Delta,
    pub(super) end: Option<End>,
}

/// The end of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) reason: FinishReason,
    /// Where the upstream told it.
    pub(super) usage: Option<Usage>,
}

/// Reads one answer of a protocol.
#[derive(Debug, Clone)]
pub(super) enum Reader {
    OpenAi(openai::Reader),
    Anthropic(anthropic::Reader),
}

impl Reader {
    /// One event of a stream; most say nothing or little.
    pub(super) fn event(&mut self, event: &Event, key: Option<&Key>) -> Result<Piece, Fault> {
        match self {
            Self::OpenAi(reader) => reader.event(event, key),
            Self::Anthropic(reader) => reader.event(event, key),
        }
    }

    /// The end of a stream whose events did not say that it ends.
    pub(super) fn end(&mut self) -> Result<Piece, Fault> {
        match self {
            Self::OpenAi(reader) => reader.end().ok_or(Fault::Lost),
            Self::Anthropic(_) => Err(Fault::Lost),
        }
    }

    /// A whole answer from an upstream that does not stream.
    pub(super) fn whole(&mut self, body: &[u8], key: Option<&Key>) -> Result<Piece, Fault> {
        match self {
            Self::OpenAi(reader) => reader.whole(body, key),
            Self::Anthropic(reader) => reader.whole(body),
        }
    }
}

/// Reads JSON of an upstream. A body that ends in the middle is one that broke off.
pub(super) fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(json).map_err(|error| {
        let (column, kind) = (error.column(), error.classify());
        tracing::warn!(line = error.line(), column, ?kind, "upstream sent no answer");
        if error.is_eof() { Fault::Lost } else { Fault::Invalid("its JSON is not of the protocol") }
    })
}

/// Reads a usage block. One that no usage can be read from (counts below nothing, or above what anybody counts to) is as
/// good as none: the answer is still one.
pub(super) fn usage<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let Some(block) = Option::<serde_json::Value>::deserialize(deserializer)? else { return Ok(None) };
    let read = serde_json::from_value(block);
    if let Err(error) = &read {
        tracing::warn!(kind = ?error.classify(), "an upstream has told a usage that cannot be: it counts as none");
    }
    Ok(read.ok())
}

/// A number of tokens, of which nobody has more than fit.
pub(super) fn count(tokens: u64) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
