//! An answer's pieces as blocks, one after the other: what is said, and calls. Faces whose answers have parts make their
//! bodies and their events of these.

use crate::request::{Delta, TokenLogprob, ToolCall, ToolCallDelta};

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Block {
    /// What is said.
    Text {
        text: String,
        /// Of its tokens, where asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// A call.
    Call(ToolCall),
}

/// What becomes of a block.
#[derive(Debug)]
pub(super) enum Progress<'a> {
    /// It begins; nothing is in it.
    Begun,
    /// More text.
    Text { text: &'a str, logprobs: &'a [TokenLogprob] },
    /// More of a call's arguments.
    Arguments(&'a str),
    /// It is whole.
    Done {
        /// Whether the answer ends with it.
        last: bool,
    },
}

/// The blocks of an answer so far. A block ends where another begins; the last one ends with the answer.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    blocks: Vec<Block>,
    open: bool,
    /// Of tokens whose text is still held back.
    logprobs: Vec<TokenLogprob>,
}

impl Blocks {
    /// Takes a piece and tells what becomes of which block.
    pub(super) fn take(&mut self, delta: Delta, mut tell: impl FnMut(usize, &Block, Progress<'_>)) {
        self.logprobs.extend(delta.logprobs);
        if !delta.text.is_empty() {
            self.say(&delta.text, &mut tell);
        }
        for call in delta.tool_calls {
            self.call(call, &mut tell);
        }
        if delta.finish.is_some() {
            self.close(true, &mut tell);
        }
    }

    /// The blocks.
    pub(super) fn all(&self) -> &[Block] {
        &self.blocks
    }

    fn say(&mut self, more: &str, tell: &mut impl FnMut(usize, &Block, Progress<'_>)) {
        if !matches!((self.open, self.blocks.last()), (true, Some(Block::Text { .. }))) {
            self.begin(Block::Text { text: String::new(), logprobs: Vec::new() }, tell);
        }
        let tokens = std::mem::take(&mut self.logprobs);
        let at = self.blocks.len() - 1;
        tell(at, &self.blocks[at], Progress::Text { text: more, logprobs: &tokens });
        if let Block::Text { text, logprobs } = &mut self.blocks[at] {
            text.push_str(more);
            logprobs.extend(tokens);
        }
    }

    /// A call's pieces come together: the next call begins after it.
    fn call(&mut self, delta: ToolCallDelta, tell: &mut impl FnMut(usize, &Block, Progress<'_>)) {
        if let Some(start) = delta.start {
            self.begin(Block::Call(ToolCall { id: start.id, name: start.name, arguments: String::new() }), tell);
        }
        if delta.arguments.is_empty() {
            return;
        }
        let Some(at) = self.blocks.len().checked_sub(1) else { return };
        tell(at, &self.blocks[at], Progress::Arguments(&delta.arguments));
        if let Block::Call(call) = &mut self.blocks[at] {
            call.arguments.push_str(&delta.arguments);
        }
    }

    fn begin(&mut self, block: Block, tell: &mut impl FnMut(usize, &Block, Progress<'_>)) {
        self.close(false, tell);
        self.open = true;
        self.blocks.push(block);
        let at = self.blocks.len() - 1;
        tell(at, &self.blocks[at], Progress::Begun);
    }

    fn close(&mut self, last: bool, tell: &mut impl FnMut(usize, &Block, Progress<'_>)) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        let at = self.blocks.len() - 1;
        if let Block::Text { logprobs, .. } = &mut self.blocks[at] {
            logprobs.append(&mut self.logprobs);
        }
        tell(at, &self.blocks[at], Progress::Done { last });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Finish, FinishReason, RankedToken, ToolCallStart, Usage};

    fn said(text: &str) -> Delta {
        Delta { text: text.to_owned(), ..Delta::default() }
    }

    fn called(index: u32, start: Option<&str>, arguments: &str) -> Delta {
        let start = start.map(|name| ToolCallStart { id: format!("id{index}"), name: name.to_owned() });
        let call = ToolCallDelta { index, start, arguments: arguments.to_owned() };
        Delta { tool_calls: vec![call], ..Delta::default() }
    }

    fn ended() -> Delta {
        let finish = Finish { reason: FinishReason::ToolCalls, stop: None, usage: Usage::default() };
        Delta { finish: Some(finish), ..Delta::default() }
    }

    #[test]
    fn a_block_ends_where_the_next_begins_or_the_answer_ends() {
        let mut blocks = Blocks::default();
        let mut told = Vec::new();
        for delta in [
            said("let me "),
            said("see"),
            called(0, Some("look"), ""),
            called(0, None, "{\"a\""),
            called(0, None, ":1}"),
            called(1, Some("find"), "{}"),
            ended(),
        ] {
            blocks.take(delta, |at, _, progress| {
                told.push(match progress {
                    Progress::Begun => format!("{at} begun"),
                    Progress::Text { text, .. } => format!("{at} {text}"),
                    Progress::Arguments(text) => format!("{at} {text}"),
                    Progress::Done { last } => format!("{at} done {last}"),
                });
            });
        }
        let expected = [
            "0 begun",
            "0 let me ",
            "0 see",
            "0 done false",
            "1 begun",
            "1 {\"a\"",
            "1 :1}",
            "1 done false",
            "2 begun",
            "2 {}",
            "2 done true",
        ];
        assert_eq!(told, expected);
        let call = |id: &str, name: &str, arguments: &str| {
            Block::Call(ToolCall { id: id.to_owned(), name: name.to_owned(), arguments: arguments.to_owned() })
        };
        let text = Block::Text { text: "let me see".to_owned(), logprobs: Vec::new() };
        assert_eq!(blocks.all(), [text, call("id0", "look", "{\"a\":1}"), call("id1", "find", "{}")]);
    }

    #[test]
    fn log_probabilities_go_with_the_text_that_comes_after_them() {
        let logprob =
            |byte: u8| TokenLogprob { token: RankedToken { bytes: vec![byte], logprob: -0.5 }, top: Vec::new() };
        let mut blocks = Blocks::default();
        let mut told = Vec::new();
        let mut counts = |_: usize, _: &Block, progress: Progress<'_>| match progress {
            Progress::Text { logprobs, .. } => told.push(logprobs.len()),
            Progress::Begun | Progress::Arguments(_) | Progress::Done { .. } => {}
        };
        blocks.take(Delta { logprobs: vec![logprob(0xc3)], ..Delta::default() }, &mut counts);
        blocks.take(Delta { logprobs: vec![logprob(0xa9)], ..said("é") }, &mut counts);
        blocks.take(Delta { logprobs: vec![logprob(b'x')], ..ended() }, &mut counts);
        assert_eq!(told, [2]);
        assert!(matches!(blocks.all(), [Block::Text { logprobs, .. }] if logprobs.len() == 3));
    }

    #[test]
    fn an_answer_of_nothing_has_no_blocks() {
        let mut blocks = Blocks::default();
        blocks.take(ended(), |_, _, progress| panic!("{progress:?}"));
        assert!(blocks.all().is_empty());
    }
}
