//! Events, or one body, as pieces of an answer.

use serde::Deserialize;
use serde_json::Value;

use super::super::fault::{ErrorBody, Fault};
use super::super::key::Key;
use super::super::reader::{End, Piece, count, parse, usage};
use super::super::sse::Event;
use super::Form;
use crate::request::{Delta, FinishReason, ToolCallDelta, ToolCallStart, Usage};

/// Blocks of one answer.
const BLOCKS_LIMIT: usize = 1024;

/// An event. Those of other types, `ping` among them, say nothing.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum EventBody {
    MessageStart {
        message: Start,
    },
    ContentBlockStart {
        index: usize,
        content_block: BlockBody,
    },
    ContentBlockDelta {
        index: usize,
        delta: DeltaBody,
    },
    ContentBlockStop {
        index: usize,
    },
    MessageDelta {
        delta: Stopped,
        #[serde(default, deserialize_with = "usage")]
        usage: Option<UsageBody>,
    },
    MessageStop,
    Error {
        error: ErrorBody,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Start {
    #[serde(default, deserialize_with = "usage")]
    usage: Option<UsageBody>,
}

#[derive(Deserialize)]
struct Stopped {
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum BlockBody {
    Text {
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
        #[serde(default)]
        input: Value,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum DeltaBody {
    TextDelta {
        text: String,
    },
    InputJsonDelta {
        partial_json: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
struct UsageBody {
    input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Whole {
    content: Vec<BlockBody>,
    stop_reason: String,
    #[serde(default, deserialize_with = "usage")]
    usage: Option<UsageBody>,
}

/// Reads one answer.
#[derive(Debug, Clone)]
pub(in crate::upstream) struct Reader {
    form: Form,
    blocks: Vec<(usize, Block)>,
    calls: u32,
    reason: Option<FinishReason>,
    usage: UsageBody,
}

/// What a block has become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    /// The tool that a structured answer comes by.
    Answer,
    Call {
        index: u32,
        /// Whether any of its arguments have come.
        argued: bool,
    },
    /// Of a type that was not asked for, such as thinking.
    Other,
}

impl Reader {
    pub(super) fn new(form: Form) -> Self {
        Self { form, blocks: Vec::new(), calls: 0, reason: None, usage: UsageBody::default() }
    }

    /// One event.
    pub(in crate::upstream) fn event(&mut self, event: &Event, key: Option<&Key>) -> Result<Piece, Fault> {
        let delta = match parse(&event.data)? {
            EventBody::MessageStart { message } => {
                // Its number of output tokens is of the first piece alone.
                self.usage = UsageBody { output_tokens: None, ..message.usage.unwrap_or_default() };
                Delta::default()
            }
            EventBody::ContentBlockStart { index, content_block } => self.begin(index, content_block)?,
            EventBody::ContentBlockDelta { index, delta } => self.go_on(index, delta)?,
            EventBody::ContentBlockStop { index } => self.complete(index),
            EventBody::MessageDelta { delta, usage } => {
                self.usage = self.usage.or(usage.unwrap_or_default());
                if let Some(reason) = delta.stop_reason {
                    self.reason = Some(self.finish_reason(&reason)?);
                }
                Delta::default()
            }
            EventBody::MessageStop => return Ok(Piece { delta: Delta::default(), end: Some(self.end()?) }),
            EventBody::Error { error } => return Err(Fault::reported(error, key)),
            EventBody::Other => Delta::default(),
        };
        Ok(Piece { delta, end: None })
    }

    /// A whole answer.
    pub(in crate::upstream) fn whole(&mut self, body: &[u8]) -> Result<Piece, Fault> {
        let Whole { content, stop_reason, usage } = parse(body)?;
        let mut delta = Delta::default();
        for (index, mut block) in content.into_iter().enumerate() {
            let input = match &mut block {
                BlockBody::ToolUse { input, .. } => Some(input.take().to_string()),
                BlockBody::Text { .. } | BlockBody::Other => None,
            };
            let mut pieces = vec![self.begin(index, block)?];
            if let Some(partial_json) = input {
                pieces.push(self.go_on(index, DeltaBody::InputJsonDelta { partial_json })?);
            }
            for piece in pieces {
                delta.text += &piece.text;
                delta.tool_calls.extend(piece.tool_calls);
            }
        }
        self.usage = usage.unwrap_or_default();
        self.reason = Some(self.finish_reason(&stop_reason)?);
        Ok(Piece { delta, end: Some(self.end()?) })
    }

    fn begin(&mut self, index: usize, body: BlockBody) -> Result<Delta, Fault> {
        if self.blocks.len() == BLOCKS_LIMIT || self.blocks.iter().any(|(begun, _)| *begun == index) {
            return Err(Fault::Invalid("its blocks are too many, or one begins twice"));
        }
        let (block, delta) = match (body, self.form) {
            (BlockBody::Text { text }, Form::Plain) => (Block::Text, Delta { text, ..Delta::default() }),
            (BlockBody::Text { text }, Form::Structured) if text.is_empty() => (Block::Text, Delta::default()),
            (BlockBody::Text { .. }, Form::Structured) => return Err(unstructured()),
            (BlockBody::ToolUse { .. }, Form::Structured) => (Block::Answer, Delta::default()),
            (BlockBody::ToolUse { id, name, .. }, Form::Plain) => {
                let index = self.calls;
                self.calls += 1;
                let start = Some(ToolCallStart { id, name });
                let call = ToolCallDelta { index, start, arguments: String::new() };
                (Block::Call { index, argued: false }, Delta { tool_calls: vec![call], ..Delta::default() })
            }
            (BlockBody::Other, Form::Plain | Form::Structured) => (Block::Other, Delta::default()),
        };
        self.blocks.push((index, block));
        Ok(delta)
    }

    fn go_on(&mut self, index: usize, delta: DeltaBody) -> Result<Delta, Fault> {
        let form = self.form;
        let begun = self.blocks.iter_mut().find(|(begun, _)| *begun == index);
        let (_, block) = begun.ok_or(Fault::Invalid("a block goes on that has not begun"))?;
        match (block, delta) {
            (Block::Text, DeltaBody::TextDelta { text }) => match form {
                Form::Plain => Ok(Delta { text, ..Delta::default() }),
                Form::Structured => Err(unstructured()),
            },
            (Block::Answer, DeltaBody::InputJsonDelta { partial_json: text }) => Ok(Delta { text, ..Delta::default() }),
            (Block::Call { index, argued }, DeltaBody::InputJsonDelta { partial_json }) => {
                *argued |= !partial_json.is_empty();
                Ok(arguments(*index, partial_json))
            }
            (Block::Other, _) | (_, DeltaBody::Other) => Ok(Delta::default()),
            (Block::Text | Block::Answer | Block::Call { .. }, _) => {
                Err(Fault::Invalid("a block goes on as another kind of block"))
            }
        }
    }

    /// A call without arguments has an empty object.
    fn complete(&mut self, index: usize) -> Delta {
        match self.blocks.iter().find(|(begun, _)| *begun == index) {
            Some((_, Block::Call { index, argued: false })) => arguments(*index, "{}".to_owned()),
            Some((_, Block::Call { argued: true, .. } | Block::Text | Block::Answer | Block::Other)) | None => {
                Delta::default()
            }
        }
    }

    fn finish_reason(&self, word: &str) -> Result<FinishReason, Fault> {
        match (word, self.form) {
            ("end_turn" | "stop_sequence", _) => Ok(FinishReason::Stop),
            ("max_tokens" | "model_context_window_exceeded", _) => Ok(FinishReason::Length),
            ("tool_use", Form::Plain) => Ok(FinishReason::ToolCalls),
            ("tool_use", Form::Structured) => Ok(FinishReason::Stop),
            ("refusal", _) => Err(Fault::Filtered),
            _ => Err(Fault::Invalid("its stop reason is unknown")),
        }
    }

    fn end(&self) -> Result<End, Fault> {
        let reason = self.reason.ok_or(Fault::Invalid("it ends without a stop reason"))?;
        let answered = self.blocks.iter().any(|(_, block)| *block == Block::Answer);
        if self.form == Form::Structured && reason == FinishReason::Stop && !answered {
            return Err(unstructured());
        }
        Ok(End { reason, usage: self.usage.told() })
    }
}

fn unstructured() -> Fault {
    Fault::Invalid("it is not of the structure that was asked for")
}

fn arguments(index: u32, arguments: String) -> Delta {
    let tool_calls = vec![ToolCallDelta { index, start: None, arguments }];
    Delta { tool_calls, ..Delta::default() }
}

impl UsageBody {
    /// What a later event tells, and where it is silent what was told before.
    fn or(self, later: Self) -> Self {
        Self {
            input_tokens: later.input_tokens.or(self.input_tokens),
            cache_creation_input_tokens: later.cache_creation_input_tokens.or(self.cache_creation_input_tokens),
            cache_read_input_tokens: later.cache_read_input_tokens.or(self.cache_read_input_tokens),
            output_tokens: later.output_tokens.or(self.output_tokens),
        }
    }

    /// None where either side is missing. Input tokens are told without those that the cache took or gave.
    fn told(self) -> Option<Usage> {
        let (input, output) = (self.input_tokens?, self.output_tokens?);
        let cached = self.cache_read_input_tokens.unwrap_or(0);
        let prompt = input.saturating_add(self.cache_creation_input_tokens.unwrap_or(0)).saturating_add(cached);
        let [prompt_tokens, cached_tokens, completion_tokens] = [prompt, cached, output].map(count);
        Some(Usage { prompt_tokens, cached_tokens, completion_tokens })
    }
}
