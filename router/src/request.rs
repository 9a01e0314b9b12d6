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
}

impl Role {
    /// The word that templates know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
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
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    /// Whole characters; may be empty.
    pub text: String,
    /// Why and at what cost it ended.
    pub finish: Option<Finish>,
}

/// The end of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
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
