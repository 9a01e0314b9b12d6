//! Log-probabilities of ids → of what they spell.

use crate::replica::{Logprob, Tokens};
use crate::request::{RankedToken, TokenLogprob};
use crate::text::Vocabulary;

/// Those of some outputs, none where none were asked for.
pub(super) fn spelled(tokens: Tokens, vocabulary: &Vocabulary) -> Vec<TokenLogprob> {
    let ranked = |id: u32, logprob: f32| RankedToken { bytes: vocabulary.spelling(id), logprob };
    let told = |(id, told): (u32, Logprob)| TokenLogprob {
        token: ranked(id, told.logprob),
        top: told.top.into_iter().map(|(id, logprob)| ranked(id, logprob)).collect(),
    };
    tokens.ids.into_iter().zip(tokens.logprobs).map(told).collect()
}
