//! One answer's way from its worker's tokens to pieces: text, calls, log-probabilities, the end.

use std::collections::VecDeque;
use std::sync::Arc;

use super::logprobs;
use crate::prompt::ModelText;
use crate::replica::{Event, Tokens};
use crate::request::{Delta, Finish, FinishReason, Stop, Tools, Usage};
use crate::text::{Step, TextStream, Vocabulary};
use crate::tools::Parser;

/// An answer being read.
pub(super) struct Reading {
    /// None once it has given out its end.
    text: Option<TextStream>,
    vocabulary: Arc<Vocabulary>,
    /// Where the model may call tools: what reads its calls out of the text.
    calls: Option<Parser>,
    prompt_tokens: u32,
}

impl Reading {
    /// At the beginning of a model's answer to a prompt of so many tokens.
    pub(super) fn new(model: &ModelText, stop: &Stop, tools: &Tools, prompt_tokens: u32, min_tokens: u32) -> Self {
        let vocabulary = Arc::clone(model.vocabulary());
        let text = TextStream::new(Arc::clone(&vocabulary), stop, min_tokens);
        let format = model.format();
        let (text, calls) = if tools.are_callable() {
            let text = text.showing(format.special_markers(&vocabulary));
            (text, Some(Parser::new(format, tools, fastrand::Rng::new())))
        } else {
            (text, None)
        };
        Self { text: Some(text), vocabulary, calls, prompt_tokens }
    }

    /// Tokens of its prompt.
    pub(super) fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// Takes the worker's next event, and adds the pieces that it completes. Nothing is to be read after a piece with
    /// a finish.
    pub(super) fn read(&mut self, event: Event, out: &mut VecDeque<Delta>) {
        let delta = match event {
            Event::Tokens(tokens) => self.push(tokens),
            Event::Finished(finish) => self.finish(finish),
        };
        if delta.text.is_empty() && delta.logprobs.is_empty() && delta.finish.is_none() {
            return;
        }
        let Some(calls) = &mut self.calls else { return out.push_back(delta) };
        out.extend(calls.pass(delta));
        if !calls.is_done() {
            return;
        }
        // The one call that may be is there: the worker has nothing more to say.
        if let (Some(text), Some(last)) = (self.text.take(), out.back_mut()) {
            let usage = usage(self.prompt_tokens, &text);
            last.finish.get_or_insert(Finish { reason: FinishReason::ToolCalls, stop: None, usage });
        }
    }

    fn push(&mut self, tokens: Tokens) -> Delta {
        let text = self.text.as_mut().expect("nothing is asked for after the end");
        let step = text.push(&tokens.ids);
        let logprobs = logprobs::spelled(tokens, &self.vocabulary);
        match step {
            Step::Text(text) => Delta { text, logprobs, ..Delta::default() },
            Step::Stopped { text: said, stop } => {
                let usage = usage(self.prompt_tokens, text);
                let finish = Some(Finish { reason: FinishReason::Stop, stop: Some(stop), usage });
                Delta { text: said, logprobs, finish, ..Delta::default() }
            }
        }
    }

    fn finish(&mut self, finish: Finish) -> Delta {
        let text = self.text.take().expect("nothing is asked for after the end");
        match text.finish() {
            Step::Text(text) => Delta { text, finish: Some(finish), ..Delta::default() },
            Step::Stopped { text, stop } => {
                let finish = Finish { reason: FinishReason::Stop, stop: Some(stop), ..finish };
                Delta { text, finish: Some(finish), ..Delta::default() }
            }
        }
    }
}

/// The usage of an answer that ends here, before its worker has told.
fn usage(prompt_tokens: u32, text: &TextStream) -> Usage {
    Usage { prompt_tokens, cached_tokens: 0, completion_tokens: text.received() }
}
