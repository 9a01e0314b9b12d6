//! How likely tokens are by a row of raw logits: natural logarithms of its softmax.

use super::select;
use crate::batch::TokenId;

/// How likely an output was, by the model alone: before penalties, bias, mask and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// Of the output.
    pub logprob: f32,
    /// The most likely tokens at its place, the lower id first among equals.
    pub top: Vec<(TokenId, f32)>,
}

/// A row, kept until its token is drawn.
#[derive(Debug)]
pub(super) struct Row {
    logits: Vec<f32>,
    /// The logarithm of the sum of the logits' exponentials.
    total: f64,
}

impl Row {
    /// `None` where the logits are not numbers.
    pub(super) fn new(logits: &[f32]) -> Option<Self> {
        let peak = select::peak(logits)?;
        Some(Self { logits: logits.to_vec(), total: f64::from(peak) + select::sum_of_exp(logits, peak).ln() })
    }

    /// Of `token`, and of the `count` most likely ones.
    pub(super) fn of(&self, token: TokenId, count: u32) -> TokenLogprob {
        let logprob = |logit: f32| (f64::from(logit) - self.total) as f32;
        let top = self.most(count as usize).into_iter().map(|id| (id, logprob(self.logits[id as usize]))).collect();
        TokenLogprob { logprob: logprob(self.logits[token as usize]), top }
    }

    /// The `count` ids with the highest logits, in order. `count` is small: a list is kept and nearly never touched.
    fn most(&self, count: usize) -> Vec<TokenId> {
        let mut most: Vec<(f32, TokenId)> = Vec::with_capacity(count + 1);
        for (logit, id) in self.logits.iter().copied().zip(0..) {
            if most.len() == count && most.last().is_none_or(|(least, _)| logit <= *least) {
                continue;
            }
            let at = most.partition_point(|(other, _)| *other >= logit);
            most.insert(at, (logit, id));
            most.truncate(count);
        }
        most.into_iter().map(|(_, id)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_the_logarithm_of_the_softmax() {
        let logits: Vec<f32> = (0..1000).map(|id| ((id * 37 % 101) as f32 - 50.0) * 0.31).collect();
        let exact = |token: usize| {
            let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            f64::from(logits[token]) - sum.ln()
        };
        let row = Row::new(&logits).unwrap();
        let told = row.of(7, 20);
        assert!((f64::from(told.logprob) - exact(7)).abs() < 1e-5);
        let mut sorted: Vec<u32> = (0..1000).collect();
        sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        assert_eq!(told.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), sorted[..20]);
        for (id, logprob) in told.top {
            assert!((f64::from(logprob) - exact(id as usize)).abs() < 1e-5);
        }
        assert!(row.of(7, 0).top.is_empty());
        assert_eq!(row.of(7, 2000).top.len(), 1000);
    }

    #[test]
    fn logits_that_are_no_numbers_have_none() {
        assert!(Row::new(&[0.0, f32::NAN]).is_none());
        let ruled_out = Row::new(&[f32::NEG_INFINITY, 3.0]).unwrap();
        assert!(ruled_out.of(1, 0).logprob.abs() < 1e-9);
    }
}
