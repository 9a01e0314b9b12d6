//! The response object and its items.

use bytes::Bytes;
use penstock_proto::time::unix_now;
use penstock_proto::{ModelName, RequestId};
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::blocks::Block;
use crate::api::openai::logprobs::chosen;
use crate::fleet::Model;
use crate::request::{Failure, Finish, FinishReason, Usage};

/// What of a body its response says again; how tokens are chosen as filled by the model.
#[derive(Debug, Serialize)]
pub(super) struct Echo {
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<u32>,
    pub(super) metadata: Value,
    pub(super) parallel_tool_calls: bool,
    pub(super) temperature: Option<f32>,
    pub(super) text: Value,
    pub(super) tool_choice: Value,
    pub(super) tools: Vec<Value>,
    pub(super) top_logprobs: u32,
    pub(super) top_p: Option<f32>,
    pub(super) user: Option<String>,
    pub(super) safety_identifier: Option<String>,
    pub(super) prompt_cache_key: Option<String>,
    pub(super) prompt_cache_retention: Option<String>,
}

/// What all parts of one answer have in common.
pub(super) struct Shape {
    id: RequestId,
    created_at: u64,
    model: ModelName,
    echo: Echo,
}

/// How far a response has come.
pub(super) enum Status<'a> {
    InProgress,
    Ended(&'a Finish),
    Failed(&'a Failure),
}

#[derive(Serialize)]
struct Body<'a> {
    id: String,
    object: &'static str,
    created_at: u64,
    completed_at: Option<u64>,
    status: &'static str,
    error: Option<Value>,
    incomplete_details: Option<Value>,
    model: &'a str,
    output: Vec<Value>,
    usage: Option<Value>,
    background: bool,
    store: bool,
    previous_response_id: Option<()>,
    max_tool_calls: Option<()>,
    reasoning: Value,
    service_tier: &'static str,
    truncation: &'static str,
    #[serde(flatten)]
    echo: &'a Echo,
}

impl Shape {
    /// `own` is the model where it is one of the cluster's own.
    pub(super) fn new(id: RequestId, model: ModelName, own: Option<&Model>, mut echo: Echo) -> Self {
        let defaults = own.map(|own| own.text.defaults());
        echo.temperature = echo.temperature.or(defaults.and_then(|it| it.temperature)).or(Some(1.0));
        echo.top_p = echo.top_p.or(defaults.and_then(|it| it.top_p)).or(Some(1.0));
        Self { id, created_at: unix_now().as_secs(), model, echo }
    }

    /// The whole answer as one body.
    pub(super) fn response(&self, blocks: &[Block], finish: &Finish) -> Bytes {
        serde_json::to_vec(&self.body(blocks, &Status::Ended(finish))).expect("a response serialises").into()
    }

    /// The response object.
    pub(super) fn body(&self, blocks: &[Block], status: &Status<'_>) -> impl Serialize {
        let (word, finish, failure) = match status {
            Status::InProgress => ("in_progress", None, None),
            Status::Ended(finish) => (ended(finish.reason), Some(finish), None),
            Status::Failed(failure) => ("failed", None, Some(failure)),
        };
        let last = blocks.len().saturating_sub(1);
        let item = |(at, block): (usize, &Block)| self.item(at, block, if at == last { word } else { "completed" });
        Body {
            id: format!("resp_{}", self.id),
            object: "response",
            created_at: self.created_at,
            completed_at: (word == "completed").then(|| unix_now().as_secs()),
            status: word,
            error: failure.map(|failure| json!({"code": failure.code.as_str(), "message": failure.message})),
            incomplete_details: (word == "incomplete").then(|| json!({"reason": "max_output_tokens"})),
            model: self.model.as_str(),
            output: blocks.iter().enumerate().map(item).collect(),
            usage: finish.map(|finish| usage(finish.usage)),
            background: false,
            store: false,
            previous_response_id: None,
            max_tool_calls: None,
            reasoning: json!({"effort": null, "summary": null}),
            service_tier: "default",
            truncation: "disabled",
            echo: &self.echo,
        }
    }

    /// A block as an item, at its place, whole or so far.
    pub(super) fn item(&self, at: usize, block: &Block, status: &str) -> Value {
        let (id, status) = (self.item_id(at, block), if status == "failed" { "incomplete" } else { status });
        match block {
            // A message that has only begun has no parts.
            Block::Text { text, .. } => {
                let content = if text.is_empty() { Vec::new() } else { vec![part(block)] };
                json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
            }
            Block::Call(call) => json!({
                "id": id, "type": "function_call", "status": status,
                "arguments": call.arguments, "call_id": call.id, "name": call.name,
            }),
        }
    }

    /// The id of the item at its place.
    pub(super) fn item_id(&self, at: usize, block: &Block) -> String {
        let prefix = match block {
            Block::Text { .. } => "msg",
            Block::Call(_) => "fc",
        };
        format!("{prefix}_{}_{at}", self.id)
    }
}

/// The one part of a message.
pub(super) fn part(block: &Block) -> Value {
    match block {
        Block::Text { text, logprobs } => {
            json!({"type": "output_text", "text": text, "annotations": [], "logprobs": chosen(logprobs)})
        }
        Block::Call(_) => Value::Null,
    }
}

/// The status of a response that has ended.
pub(super) fn ended(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::ToolCalls => "completed",
        FinishReason::Length => "incomplete",
    }
}

fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}
