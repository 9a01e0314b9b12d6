//! The nouns that all stages of a request share. No serde, no proto: faces decode into these, dispatch consumes them.

use std::collections::BTreeMap;

use penstock_proto::{DataClass, ErrorCode, ModelName, Priority, RequestId, TenantName};
use tokio::time::Instant;

/// One request for one answer, decoded from a face and valid in itself.
#[derive(Debug, Clone)]
pub struct Request {
    /// The router's id.
    pub id: RequestId,
    /// Whose it is.
    pub tenant: TenantName,
    /// The highest class that anything has raised it to.
    pub class: DataClass,
    /// Whether somebody waits.
    pub priority: Priority,
    /// When it ends, finished or not.
    pub deadline: Instant,
    /// What the client asked for.
    pub model: ModelName,
    /// What the model is to go on from.
    pub input: Input,
    /// How tokens are chosen; what is None comes from the model.
    pub sampling: Sampling,
    /// Texts that end the answer.
    pub stop: Stop,
    /// What the answer must look like, beside what tools ask.
    pub constraint: Option<Constraint>,
    /// What the model may call.
    pub tools: Tools,
    /// Fields of the body that no face knows. They go to upstreams that the catalogue lets them pass to, and nowhere else.
    pub unknown: serde_json::Map<String, serde_json::Value>,
}

/// A language that an answer must be a word of; the worker's grammar engine holds the model to it, token by token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Constraint {
    /// JSON that is valid by this JSON Schema.
    JsonSchema(String),
    /// A regular expression, matched whole.
    Regex(String),
    /// A context-free grammar, as llguidance's dialect of Lark has it.
    Grammar(String),
}

/// The functions that a model may call. Without definitions there are no calls.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tools {
    /// Names are unique.
    pub definitions: Vec<Tool>,
    /// Whether it must.
    pub choice: ToolChoice,
    /// Whether one answer may have several calls.
    pub parallel: bool,
}

/// A function that a model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// 1 to 64 of `a-z A-Z 0-9 _ -`.
    pub name: String,
    /// What it is good for, told to the model.
    pub description: Option<String>,
    /// A JSON Schema of its arguments; an object.
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// Whether arguments must be valid by the schema also where the model was free to call or not.
    pub strict: bool,
}

/// Whether a model calls tools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It does not.
    None,
    /// It does, one or another.
    Required,
    /// It calls this one.
    Named(String),
}

/// What a model goes on from.
#[derive(Debug, Clone)]
pub enum Input {
    /// Messages, rendered by the model's template.
    Chat(Chat),
    /// Text, encoded as it stands.
    Text(String),
    /// Token ids of the model's own vocabulary.
    Tokens(Vec<u32>),
}

/// A conversation.
#[derive(Debug, Clone)]
pub struct Chat {
    /// Never empty.
    pub messages: Vec<Message>,
    /// Whether the template opens the assistant's turn; true unless the client says otherwise.
    pub add_generation_prompt: bool,
    /// Further variables of the template.
    pub template_kwargs: serde_json::Map<String, serde_json::Value>,
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The speaker's name, where there is one.
    pub name: Option<String>,
    /// What is said.
    pub content: String,
    /// What an assistant's turn called.
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool's turn answers.
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A turn of text.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, name: None, content: content.into(), tool_calls: Vec::new(), tool_call_id: None }
    }
}

/// A call that a model has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Unique in its conversation.
    pub id: String,
    /// The tool's.
    pub name: String,
    /// JSON text, as the model wrote it.
    pub arguments: String,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The operator's instructions; OpenAI's `developer` is the same.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a call.
    Tool,
}

impl Role {
    /// The word that templates know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// How tokens are chosen. The faces check ranges; what is None is filled from the model, once, by dispatch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// ≥ 0; 0 takes the most likely token.
    pub temperature: Option<f32>,
    /// 0: off.
    pub top_k: Option<u32>,
    /// In (0, 1].
    pub top_p: Option<f32>,
    /// In [0, 1].
    pub min_p: Option<f32>,
    /// > 0; 1: off.
    pub repetition_penalty: Option<f32>,
    /// In [-2, 2].
    pub presence_penalty: Option<f32>,
    /// In [-2, 2].
    pub frequency_penalty: Option<f32>,
    /// Added to logits, in [-100, 100].
    pub logit_bias: BTreeMap<u32, f32>,
    /// Drawn by dispatch where None.
    pub seed: Option<u64>,
    /// ≥ 1.
    pub max_tokens: Option<u32>,
    /// What `max_tokens` is where it is None, as far as the context has room; all that is left of it where this is None.
    pub default_max_tokens: Option<u32>,
    /// Ends are masked before.
    pub min_tokens: u32,
    /// Goes on past the end of text.
    pub ignore_eos: bool,
    /// Ids that end the answer.
    pub stop_token_ids: Vec<u32>,
    /// Log-probabilities wanted: each token's own, and so many of the most likely ones beside it (0 to 20).
    pub top_logprobs: Option<u32>,
}

/// Texts that end an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stop {
    /// At most four, none empty.
    pub texts: Vec<String>,
    /// Whether the matched text is part of the answer.
    pub include: bool,
}

/// A piece of an answer. The last one has a finish, and nothing follows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delta {
    /// Whole characters; may be empty.
    pub text: String,
    /// Of the tokens that came since the piece before, where asked for. Their text may still be held back.
    pub logprobs: Vec<TokenLogprob>,
    /// Calls begun or continued.
    pub tool_calls: Vec<ToolCallDelta>,
    /// Why and at what cost it ended.
    pub finish: Option<Finish>,
}

/// How likely a token was, before temperature and filters.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: RankedToken,
    /// The most likely tokens at its place, in order.
    pub top: Vec<RankedToken>,
}

/// A token and how likely it was.
#[derive(Debug, Clone, PartialEq)]
pub struct RankedToken {
    /// Its bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
    /// Natural logarithm.
    pub logprob: f32,
}

/// A piece of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCallDelta {
    /// Which of the answer's calls, from 0.
    pub index: u32,
    /// Id and name, with its first piece.
    pub start: Option<ToolCallStart>,
    /// More of its arguments' JSON text.
    pub arguments: String,
}

/// The beginning of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCallStart {
    /// Unique.
    pub id: String,
    /// The tool's.
    pub name: String,
}

/// The end of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// The stop text that ended it, where one did.
    pub stop: Option<String>,
    /// Tokens taken and made.
    pub usage: Usage,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model's own end, a stop token or a stop text.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// The model waits for the results of its calls.
    ToolCalls,
}

/// Tokens taken and made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u32,
    /// Of the prompt's, those that a prefix cache held.
    pub cached_tokens: u32,
    /// Of the answer.
    pub completion_tokens: u32,
}

impl Usage {
    /// Of prompt and answer.
    pub fn total(&self) -> u64 {
        u64::from(self.prompt_tokens) + u64::from(self.completion_tokens)
    }
}

/// A failure that a client sees: one of the closed list, with a sentence that names what was wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Which of the closed list.
    pub code: ErrorCode,
    /// For the client; names no prompt text, key or other tenant.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Seconds after which the same request may succeed.
    pub retry_after: Option<u32>,
}

impl Failure {
    /// A failure that no field is at fault for.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None, retry_after: None }
    }

    /// A field that is malformed, out of range or not served.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = Some(param.into());
        Self { code: ErrorCode::InvalidRequest, message: message.into(), param, retry_after: None }
    }
}
