//! Several choices of one answer: `n`, `best_of`, `echo`.

use super::Delivery;
use crate::api::bounds;
use crate::api::json::{Field, Object};
use crate::fleet::Model;
use crate::request::{Failure, Input, Sampling, TokenLogprob};

/// How many choices a prompt gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choices {
    /// Those that the client sees.
    pub(super) shown: u32,
    /// Those that are made; the best of them are shown.
    pub(super) made: u32,
}

impl Choices {
    /// `n` of a conversation's body.
    pub(super) fn of_chat(object: &mut Object<'_>) -> Result<Self, Failure> {
        let shown = object.take("n").map(|field| count(&field)).transpose()?.unwrap_or(1);
        Ok(Self { shown, made: shown })
    }

    /// `n` and `best_of` of a completion's body.
    pub(super) fn of_completion(object: &mut Object<'_>, delivery: Delivery) -> Result<Self, Failure> {
        let Self { shown, made } = Self::of_chat(object)?;
        let Some(field) = object.take("best_of") else { return Ok(Self { shown, made }) };
        let made = count(&field)?;
        if made < shown {
            return Err(field.refuse(format!("is {made} where n is {shown}")));
        }
        match delivery {
            Delivery::Streamed { .. } if made > shown => {
                Err(field.refuse("needs whole answers: it is not for streams"))
            }
            Delivery::Streamed { .. } | Delivery::Folded => Ok(Self { shown, made }),
        }
    }

    /// The sampling that they are made with: what ranks them is asked for too.
    pub(super) fn sampling(self, asked: Sampling) -> Sampling {
        let ranks = self.made > self.shown;
        Sampling { top_logprobs: asked.top_logprobs.or(ranks.then_some(0)), ..asked }
    }
}

fn count(field: &Field<'_>) -> Result<u32, Failure> {
    let count = field.integer(1, i128::from(bounds::CHOICES))?;
    Ok(u32::try_from(count).expect("the range was checked"))
}

/// How good a choice is: its tokens' mean log-probability. An empty one is a certain end, as far as is known.
pub(super) fn quality(logprobs: &[TokenLogprob]) -> f64 {
    let sum: f64 = logprobs.iter().map(|told| f64::from(told.token.logprob)).sum();
    sum / logprobs.len().max(1) as f64
}

/// A prompt as the text that stands before its choices. Conversations are not echoed.
pub(super) fn echo(input: &Input, model: Option<&Model>) -> String {
    match input {
        Input::Text(text) => text.clone(),
        // Only models of the cluster's own take ids.
        Input::Tokens(ids) => model.map(|model| model.text.vocabulary().decode(ids)).unwrap_or_default(),
        Input::Chat(_) => String::new(),
    }
}
