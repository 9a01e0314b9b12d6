//! A grammar's say in a draw.

use crate::batch::TokenId;
use crate::grammar::{Error, Grammar};

/// A grammar and the ids that mean the end of its word.
#[derive(Debug)]
pub(super) struct Constraint {
    grammar: Box<dyn Grammar>,
    /// In order.
    eos: Vec<TokenId>,
}

impl Constraint {
    pub(super) fn new(grammar: Box<dyn Grammar>, eos: &[TokenId]) -> Self {
        let mut eos = eos.to_vec();
        eos.sort_unstable();
        Self { grammar, eos }
    }

    /// Whether `token` means the end. It is drawn only where the word is whole.
    pub(super) fn ends(&self, token: TokenId) -> bool {
        self.eos.binary_search(&token).is_ok()
    }

    /// Rules out what the grammar does not allow. Where the answer had better go on, the end is ruled out too, unless
    /// nothing else is left: a word that is whole and can grow no further ends.
    pub(super) fn apply(&mut self, logits: &mut [f32], goes_on: bool) -> Result<(), Error> {
        let Self { grammar, eos } = self;
        let allowed = grammar.allowed()?;
        rule_out(logits, allowed);
        if goes_on && grows(allowed, eos) {
            eos.iter().for_each(|id| logits[*id as usize] = f32::NEG_INFINITY);
        }
        Ok(())
    }

    pub(super) fn accept(&mut self, token: TokenId) -> Result<(), Error> {
        self.grammar.accept(token)
    }
}

fn rule_out(logits: &mut [f32], allowed: &[u32]) {
    let mut words = allowed.iter();
    for logits in logits.chunks_mut(u32::BITS as usize) {
        match words.next().copied().unwrap_or(0) {
            u32::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            word => {
                let bits = (0..u32::BITS).map(|bit| word >> bit & 1 == 1);
                logits.iter_mut().zip(bits).filter(|(_, set)| !set).for_each(|(logit, _)| *logit = f32::NEG_INFINITY);
            }
        }
    }
}

/// Whether anything but an end is allowed.
fn grows(allowed: &[u32], eos: &[TokenId]) -> bool {
    let all: u32 = allowed.iter().map(|word| word.count_ones()).sum();
    let is_allowed = |id: &&TokenId| allowed.get(**id as usize / 32).is_some_and(|word| word >> (**id % 32) & 1 == 1);
    all as usize > eos.iter().filter(is_allowed).count()
}
