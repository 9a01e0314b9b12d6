//! Chunks, or one body, as pieces of an answer.

use penstock_proto::RequestId;
use serde::Deserialize;

use super::super::fault::{ErrorBody, Fault};
use super::super::key::Key;
use super::super::reader::{End, Piece, count, parse, usage};
use super::super::sse::Event;
use super::Call;
use crate::request::{Delta, FinishReason, RankedToken, TokenLogprob, ToolCallDelta, ToolCallStart, Usage};

/// Calls of one answer.
const CALLS_LIMIT: usize = 128;

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    #[serde(default, deserialize_with = "usage")]
    usage: Option<UsageBody>,
    error: Option<ErrorBody>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    /// In a chunk of a chat.
    delta: Option<Turn>,
    /// In a whole answer of a chat.
    message: Option<Turn>,
    /// In completions of text.
    text: Option<String>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Turn {
    content: Option<String>,
    /// What the model says where it does not do as asked; its answer all the same.
    refusal: Option<String>,
    tool_calls: Option<Vec<CallBody>>,
}

#[derive(Deserialize)]
struct CallBody {
    index: Option<usize>,
    id: Option<String>,
    function: Option<FunctionBody>,
}

#[derive(Default, Deserialize)]
struct FunctionBody {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct Logprobs {
    content: Option<Vec<TokenBody>>,
}

#[derive(Deserialize)]
struct TokenBody {
    token: String,
    bytes: Option<Vec<u8>>,
    logprob: f32,
    top_logprobs: Option<Vec<TokenBody>>,
}

#[derive(Deserialize)]
struct UsageBody {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

/// Reads one answer.
#[derive(Debug, Clone)]
pub(in crate::upstream) struct Reader {
    call: Call,
    /// The upstream's numbers of the calls that have begun.
    calls: Vec<usize>,
    reason: Option<FinishReason>,
    usage: Option<Usage>,
}

impl Reader {
    pub(super) fn new(call: Call) -> Self {
        Self { call, calls: Vec::new(), reason: None, usage: None }
    }

    /// One event. The finish waits for the usage, which comes after it.
    pub(in crate::upstream) fn event(&mut self, event: &Event, key: Option<&Key>) -> Result<Piece, Fault> {
        if event.data == b"[DONE]" {
            return self.end().ok_or(Fault::Invalid("it ends without a finish reason"));
        }
        self.chunk(parse(&event.data)?, key)
    }

    /// The end, where a finish reason has come.
    pub(in crate::upstream) fn end(&mut self) -> Option<Piece> {
        let reason = match self.reason? {
            // A call that the request forced ends as if it were none.
            FinishReason::Stop | FinishReason::ToolCalls if !self.calls.is_empty() => FinishReason::ToolCalls,
            reason @ (FinishReason::Stop | FinishReason::Length | FinishReason::ToolCalls) => reason,
        };
        Some(Piece { delta: Delta::default(), end: Some(End { reason, usage: self.usage }) })
    }

    /// A whole answer.
    pub(in crate::upstream) fn whole(&mut self, body: &[u8], key: Option<&Key>) -> Result<Piece, Fault> {
        let Piece { delta, .. } = self.chunk(parse(body)?, key)?;
        let end = self.end().ok_or(Fault::Invalid("it has no finish reason"))?;
        Ok(Piece { delta, ..end })
    }

    fn chunk(&mut self, chunk: Chunk, key: Option<&Key>) -> Result<Piece, Fault> {
        if let Some(error) = chunk.error {
            return Err(Fault::reported(error, key));
        }
        if let Some(usage) = chunk.usage {
            self.usage = Some(usage.into());
        }
        let mut delta = Delta::default();
        for choice in chunk.choices.unwrap_or_default() {
            self.choice(choice, &mut delta)?;
        }
        Ok(Piece { delta, end: None })
    }

    fn choice(&mut self, choice: Choice, delta: &mut Delta) -> Result<(), Fault> {
        if choice.index != 0 {
            return Err(Fault::Invalid("it has choices that were not asked for"));
        }
        match self.call {
            Call::Chat => {
                if let Some(turn) = choice.delta.or(choice.message) {
                    delta.text.extend(turn.content.into_iter().chain(turn.refusal));
                    for (at, call) in turn.tool_calls.unwrap_or_default().into_iter().enumerate() {
                        delta.tool_calls.push(self.tool_call(at, call)?);
                    }
                }
                let tokens = choice.logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default();
                delta.logprobs.extend(tokens.into_iter().map(TokenLogprob::from));
            }
            Call::Text => delta.text.extend(choice.text),
        }
        if let Some(reason) = choice.finish_reason {
            self.reason = Some(finish_reason(&reason)?);
        }
        Ok(())
    }

    fn tool_call(&mut self, at: usize, call: CallBody) -> Result<ToolCallDelta, Fault> {
        let number = call.index.unwrap_or(at);
        let FunctionBody { name, arguments } = call.function.unwrap_or_default();
        let begun = self.calls.iter().position(|begun| *begun == number);
        let index = begun.unwrap_or(self.calls.len());
        let start = match (begun, name.filter(|name| !name.is_empty())) {
            (Some(_), _) => None,
            (None, None) => return Err(Fault::Invalid("a call has no name")),
            (None, Some(_)) if index == CALLS_LIMIT => return Err(Fault::Invalid("it has too many calls")),
            (None, Some(name)) => {
                self.calls.push(number);
                let made_up = || format!("call_{}", RequestId::generate());
                Some(ToolCallStart { id: call.id.filter(|id| !id.is_empty()).unwrap_or_else(made_up), name })
            }
        };
        let index = u32::try_from(index).expect("calls are few");
        Ok(ToolCallDelta { index, start, arguments: arguments.unwrap_or_default() })
    }
}

fn finish_reason(word: &str) -> Result<FinishReason, Fault> {
    match word {
        "stop" => Ok(FinishReason::Stop),
        "length" => Ok(FinishReason::Length),
        "tool_calls" | "function_call" => Ok(FinishReason::ToolCalls),
        "content_filter" => Err(Fault::Filtered),
        _ => Err(Fault::Invalid("its finish reason is unknown")),
    }
}

impl From<UsageBody> for Usage {
    fn from(body: UsageBody) -> Self {
        let cached = body.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
        Self {
            prompt_tokens: count(body.prompt_tokens),
            cached_tokens: count(cached.min(body.prompt_tokens)),
            completion_tokens: count(body.completion_tokens),
        }
    }
}

impl From<TokenBody> for TokenLogprob {
    fn from(mut body: TokenBody) -> Self {
        let ranked = |body: TokenBody| RankedToken {
            bytes: body.bytes.unwrap_or_else(|| body.token.into_bytes()),
            logprob: body.logprob,
        };
        let top = body.top_logprobs.take().unwrap_or_default().into_iter().map(ranked).collect();
        Self { token: ranked(body), top }
    }
}
