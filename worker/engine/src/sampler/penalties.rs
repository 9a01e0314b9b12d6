//! Penalties on tokens that have been there: counted as they come, applied to the tokens counted alone.

use std::collections::BTreeMap;

use super::SamplingParams;
use crate::batch::TokenId;

#[derive(Debug)]
pub(super) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    /// How often each token of prompt and outputs is among the outputs. Empty where no penalty is on.
    seen: BTreeMap<TokenId, u32>,
}

impl Penalties {
    pub(super) fn new(params: &SamplingParams) -> Self {
        Self {
            repetition: params.repetition_penalty,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            seen: BTreeMap::new(),
        }
    }

    pub(super) fn note_prompt(&mut self, token: TokenId) {
        if self.repetition != 1.0 {
            self.seen.entry(token).or_insert(0);
        }
    }

    pub(super) fn note_output(&mut self, token: TokenId) {
        if self.repetition != 1.0 || self.presence != 0.0 || self.frequency != 0.0 {
            *self.seen.entry(token).or_insert(0) += 1;
        }
    }

    pub(super) fn apply(&self, logits: &mut [f32]) {
        for (token, outputs) in &self.seen {
            let logit = &mut logits[*token as usize];
            *logit = if *logit > 0.0 { *logit / self.repetition } else { *logit * self.repetition };
            if *outputs > 0 {
                *logit -= self.frequency * *outputs as f32 + self.presence;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_counts_for_repetition_alone() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..SamplingParams::default()
        };
        let mut penalties = Penalties::new(&params);
        [0, 1, 1].into_iter().for_each(|token| penalties.note_prompt(token));
        [1, 2, 2].into_iter().for_each(|token| penalties.note_output(token));
        let mut logits = [4.0, -4.0, 3.0, 3.0];
        penalties.apply(&mut logits);
        assert_eq!(logits, [2.0, -8.0 - 0.75, 1.5 - 1.0, 3.0]);
    }

    #[test]
    fn nothing_is_counted_in_vain() {
        let mut penalties = Penalties::new(&SamplingParams::default());
        penalties.note_prompt(1);
        penalties.note_output(1);
        assert!(penalties.seen.is_empty());
    }
}
