//! From logits to a token. Order: penalties, logit bias, the masks of `min_tokens` and of a grammar, temperature,
//! `top_k`, `min_p`, `top_p`, as vLLM has them. A draw is a function of the sequence's own logits and of (seed, choice,
//! position) alone.

mod constraint;
mod logprobs;
mod penalties;
mod philox;
mod select;

use crate::batch::TokenId;
use crate::events::Failure;
use crate::grammar::{self, Grammar};
use constraint::Constraint;
use logprobs::Row;
pub use logprobs::TokenLogprob;
use penalties::Penalties;
use select::Filter;
pub(crate) use select::Scratch;

/// How a sequence's tokens are drawn and when they end.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// With the choice and the output position, the key of the random numbers.
    pub seed: u64,
    /// Which of several answers to one prompt this is.
    pub choice_index: u32,
    /// 0: the most likely token, the lowest id among equals.
    pub temperature: f32,
    /// Only so many most likely tokens; 0: off.
    pub top_k: u32,
    /// Only the most likely tokens that together have this share; 1: off.
    pub top_p: f32,
    /// Only tokens at least this likely, as a share of the most likely one's probability; 0: off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt and outputs; 1: off.
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens among the outputs; 0: off.
    pub presence_penalty: f32,
    /// Taken off as often as a token is among the outputs; 0: off.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The answer's length at most; at least 1.
    pub max_tokens: u32,
    /// No token ends the answer before it is so long.
    pub min_tokens: u32,
    /// The model's end-of-text ids are tokens like others; under a grammar, the answer goes on as long as it may.
    pub ignore_eos: bool,
    /// Further ids that end the answer.
    pub stop_token_ids: Vec<TokenId>,
    /// Set: outputs come with their log-probabilities, and with those of so many of the most likely tokens.
    pub top_logprobs: Option<u32>,
}

/// The most `top_logprobs` may be.
pub const MAX_TOP_LOGPROBS: u32 = 20;

/// A sampling parameter that is out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} is {value}, but must be {range}")]
pub struct ParameterError {
    /// The parameter's name.
    pub field: &'static str,
    /// What it is.
    pub value: f64,
    /// What it may be.
    pub range: &'static str,
}

/// Why no token can be drawn, or taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsampleable {
    #[error("the logits are not numbers, or rule every token out")]
    Logits,
    #[error("the constraint leaves no token that the other parameters allow")]
    NothingAllowed,
    #[error(transparent)]
    Grammar(#[from] grammar::Error),
}

/// What was drawn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Draw {
    pub(crate) token: TokenId,
    /// Where asked for.
    pub(crate) logprob: Option<TokenLogprob>,
}

impl From<Unsampleable> for Failure {
    fn from(error: Unsampleable) -> Self {
        match error {
            Unsampleable::Logits => Self::Device(error.to_string()),
            Unsampleable::NothingAllowed | Unsampleable::Grammar(_) => Self::Constraint(error.to_string()),
        }
    }
}

impl Default for SamplingParams {
    /// Plain sampling of one token at temperature 1.
    fn default() -> Self {
        Self {
            seed: 0,
            choice_index: 0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            max_tokens: 1,
            min_tokens: 0,
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            top_logprobs: None,
        }
    }
}

impl SamplingParams {
    pub(crate) fn check(&self, eos: &[TokenId], vocab_size: usize) -> Result<(), ParameterError> {
        let refuse = |field, value, range| Err(ParameterError { field, value, range });
        let ranges = [
            ("temperature", self.temperature, self.temperature >= 0.0 && self.temperature.is_finite(), "0 or more"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            // Within these, no logit that a model gives can become infinite.
            (
                "repetition_penalty",
                self.repetition_penalty,
                (0.01..=100.0).contains(&self.repetition_penalty),
                "from 0.01 to 100",
            ),
            ("presence_penalty", self.presence_penalty, (-2.0..=2.0).contains(&self.presence_penalty), "from -2 to 2"),
            (
                "frequency_penalty",
                self.frequency_penalty,
                (-2.0..=2.0).contains(&self.frequency_penalty),
                "from -2 to 2",
            ),
        ];
        if let Some((field, value, _, range)) = ranges.into_iter().find(|(_, _, holds, _)| !holds) {
            return refuse(field, f64::from(value), range);
        }
        if let Some((_, bias)) = self.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias)) {
            return refuse("logit_bias", f64::from(*bias), "from -100 to 100");
        }
        if let Some(count) = self.top_logprobs.filter(|count| *count > MAX_TOP_LOGPROBS) {
            return refuse("top_logprobs", f64::from(count), "from 0 to 20");
        }
        if self.min_tokens > self.max_tokens {
            return refuse("min_tokens", f64::from(self.min_tokens), "at most max_tokens");
        }
        if self.min_tokens > 0 && self.ending(eos).len() >= vocab_size {
            let count = self.stop_token_ids.len() as f64;
            return refuse("stop_token_ids", count, "fewer than the vocabulary where min_tokens is set");
        }
        Ok(())
    }

    /// The ids that end an answer, in order.
    fn ending(&self, eos: &[TokenId]) -> Vec<TokenId> {
        let eos = if self.ignore_eos { &[] } else { eos };
        let mut ending = [&self.stop_token_ids, eos].concat();
        ending.sort_unstable();
        ending.dedup();
        ending
    }
}

/// Draws the tokens of one sequence.
#[derive(Debug)]
pub(crate) struct Sampler {
    params: SamplingParams,
    penalties: Penalties,
    ending: Vec<TokenId>,
    constraint: Option<Constraint>,
    outputs: usize,
}

impl Sampler {
    /// For a sequence that has `resume` as its outputs so far. The parameters have been checked.
    pub(crate) fn new(params: SamplingParams, prompt: &[TokenId], resume: &[TokenId], eos: &[TokenId]) -> Self {
        let ending = params.ending(eos);
        let mut penalties = Penalties::new(&params);
        prompt.iter().for_each(|token| penalties.note_prompt(*token));
        resume.iter().for_each(|token| penalties.note_output(*token));
        Self { params, penalties, ending, constraint: None, outputs: resume.len() }
    }

    /// Holds the outputs to a grammar, which has taken those that there are.
    pub(crate) fn constrain(&mut self, grammar: Box<dyn Grammar>, eos: &[TokenId]) {
        self.constraint = Some(Constraint::new(grammar, eos));
    }

    /// How many outputs there are.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Whether there are as many outputs as there may be.
    pub(crate) fn is_complete(&self) -> bool {
        self.outputs >= self.params.max_tokens as usize
    }

    /// Whether `token` ends the answer.
    pub(crate) fn ends(&self, token: TokenId) -> bool {
        let whole = self.constraint.as_ref().is_some_and(|constraint| constraint.ends(token));
        whole || self.outputs >= self.params.min_tokens as usize && self.ending.binary_search(&token).is_ok()
    }

    /// Takes a drawn token as an output.
    pub(crate) fn accept(&mut self, token: TokenId) -> Result<(), Unsampleable> {
        self.outputs += 1;
        self.penalties.note_output(token);
        match &mut self.constraint {
            Some(constraint) => Ok(constraint.accept(token)?),
            None => Ok(()),
        }
    }

    /// Draws the token at the next output position from a row of logits, which it overwrites.
    pub(crate) fn sample(&mut self, logits: &mut [f32], scratch: &mut Scratch) -> Result<Draw, Unsampleable> {
        let Some(count) = self.params.top_logprobs else {
            return Ok(Draw { token: self.draw(logits, scratch)?, logprob: None });
        };
        let row = Row::new(logits).ok_or(Unsampleable::Logits)?;
        let token = self.draw(logits, scratch)?;
        Ok(Draw { token, logprob: Some(row.of(token, count)) })
    }

    fn draw(&mut self, logits: &mut [f32], scratch: &mut Scratch) -> Result<TokenId, Unsampleable> {
        let params = &self.params;
        self.penalties.apply(logits);
        for (token, bias) in &params.logit_bias {
            logits[*token as usize] += bias;
        }
        let early = self.outputs < params.min_tokens as usize;
        let nothing = match &mut self.constraint {
            Some(constraint) => {
                let stops = self.ending.iter().filter(|token| early && !constraint.ends(**token));
                stops.for_each(|token| logits[*token as usize] = f32::NEG_INFINITY);
                constraint.apply(logits, early || params.ignore_eos)?;
                Unsampleable::NothingAllowed
            }
            None => {
                if early {
                    self.ending.iter().for_each(|token| logits[*token as usize] = f32::NEG_INFINITY);
                }
                Unsampleable::Logits
            }
        };
        let peak = select::peak(logits).ok_or(nothing)?;
        if params.temperature == 0.0 {
            return Ok(select::first(logits, peak));
        }
        select::weigh(logits, peak, params.temperature, scratch);
        let filter = Filter { top_k: params.top_k, min_p: params.min_p, top_p: params.top_p };
        let random = philox::draw(params.seed, params.choice_index, self.outputs as u64);
        Ok(select::draw(logits, filter, random, scratch))
    }
}

#[cfg(test)]
mod tests;
