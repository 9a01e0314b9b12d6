//! Token ids → text: where tokens end. Owns the incremental decoding, the stop texts and what is held back for them;
//! not where the ids come from, nor what becomes of the text.

mod detokenizer;
mod stop;
mod vocabulary;

use std::sync::Arc;

pub use detokenizer::Detokenizer;
pub use stop::{Step, StopMatcher};
pub use vocabulary::Vocabulary;

use crate::request::Stop;

/// One answer's way from token ids to text.
///
/// The concatenation of what it gives out is the one-shot decoding of all ids, cut at the first stop text, however
/// the ids were grouped; each piece is whole characters.
#[derive(Debug)]
pub struct TextStream {
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    /// Text of the first so many tokens is not searched for stop texts.
    min_tokens: u32,
    received: u32,
}

impl TextStream {
    /// A stream of a model's answer. Text of the first `min_tokens` tokens never stops it.
    pub fn new(vocabulary: Arc<Vocabulary>, stop: &Stop, min_tokens: u32) -> Self {
        let matcher = StopMatcher::new(stop);
        Self { detokenizer: Detokenizer::new(vocabulary), matcher, min_tokens, received: 0 }
    }

    /// The same stream, in which these special tokens are text, spelled out.
    pub fn showing(mut self, ids: Vec<u32>) -> Self {
        self.detokenizer.show(ids);
        self
    }

    /// Takes the next ids. After [`Step::Stopped`] the worker's stream is to be dropped and nothing more pushed; ids
    /// behind the match count as received all the same.
    pub fn push(&mut self, ids: &[u32]) -> Step {
        let mut given = String::new();
        for (index, id) in ids.iter().enumerate() {
            self.received += 1;
            let text = self.detokenizer.push(*id);
            if self.received <= self.min_tokens {
                given.push_str(&text);
                continue;
            }
            match self.matcher.push(&text) {
                Step::Text(text) => given.push_str(&text),
                Step::Stopped { text, stop } => {
                    self.received += (ids.len() - index - 1) as u32;
                    return Step::Stopped { text: given + &text, stop };
                }
            }
        }
        Step::Text(given)
    }

    /// The end of the worker's stream: gives out what was held back. It can still complete a stop text, where the
    /// answer ends within a character.
    pub fn finish(mut self) -> Step {
        let rest = self.detokenizer.finish();
        match self.matcher.push(&rest) {
            Step::Text(text) => Step::Text(text + &self.matcher.finish()),
            stopped @ Step::Stopped { .. } => stopped,
        }
    }

    /// Tokens received so far: the answer's length in its usage.
    pub fn received(&self) -> u32 {
        self.received
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prompt::fixture;

    fn run(vocabulary: &Arc<Vocabulary>, stop: &Stop, chunks: &[Vec<u32>]) -> (String, bool, u32) {
        let mut stream = TextStream::new(vocabulary.clone(), stop, 0);
        let mut all = String::new();
        for chunk in chunks {
            match stream.push(chunk) {
                Step::Text(text) => all += &text,
                Step::Stopped { text, .. } => return (all + &text, true, stream.received()),
            }
        }
        let received = stream.received();
        match stream.finish() {
            Step::Text(text) => (all + &text, false, received),
            Step::Stopped { text, .. } => (all + &text, true, received),
        }
    }

    #[test]
    fn a_stop_text_across_tokens_cuts_before_it_and_counts_what_came() {
        let vocabulary = Arc::new(fixture::byte_level());
        let ids = fixture::spell(&vocabulary, "one END two");
        let stop = Stop { texts: vec!["END".into()], include: false };
        assert_eq!(run(&vocabulary, &stop, std::slice::from_ref(&ids)), ("one ".into(), true, ids.len() as u32));
        let included = Stop { include: true, ..stop };
        assert_eq!(run(&vocabulary, &included, &[ids[..5].to_vec(), ids[5..].to_vec()]).0, "one END");
    }

    #[test]
    fn min_tokens_come_through_whatever_they_spell() {
        let vocabulary = Arc::new(fixture::byte_level());
        let ids = fixture::spell(&vocabulary, "ab ab");
        let stop = Stop { texts: vec!["ab".into()], include: false };
        let mut stream = TextStream::new(vocabulary, &stop, 3);
        assert_eq!(stream.push(&ids), Step::Stopped { text: "ab ".into(), stop: "ab".into() });
    }

    proptest! {
        #[test]
        fn grouping_changes_nothing(
            text in "[a-c €你😀]{0,40}",
            stops in prop::collection::vec("[a-c€你😀]{1,4}", 0..4),
            include: bool,
            cuts in prop::collection::vec(1usize..9, 1..60),
        ) {
            let vocabulary = Arc::new(fixture::byte_level());
            let ids = fixture::spell(&vocabulary, &text);
            let stop = Stop { texts: stops, include };
            let singly: Vec<Vec<u32>> = ids.iter().map(|id| vec![*id]).collect();
            let mut grouped = Vec::new();
            let mut rest = ids.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                grouped.push(head.to_vec());
                rest = tail;
            }
            let (one, grouped) = (run(&vocabulary, &stop, &singly), run(&vocabulary, &stop, &grouped));
            prop_assert_eq!((&one.0, one.1), (&grouped.0, grouped.1));
        }
    }
}
