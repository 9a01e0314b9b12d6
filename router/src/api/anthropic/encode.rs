//! Anthropic's shapes of an answer: a message, and its events.

use bytes::{Bytes, BytesMut};
use penstock_proto::{ModelName, RequestId};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::render_error;
use crate::api::blocks::{Block, Blocks, Progress};
use crate::api::events::{self, Encode};
use crate::request::{Delta, Failure, Finish, FinishReason, Usage};

/// What all parts of one answer have in common.
pub(super) struct Shape {
    id: RequestId,
    model: ModelName,
}

#[derive(Serialize)]
struct Message<'a> {
    id: String,
    r#type: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<Value>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<&'a str>,
    usage: Tokens,
}

/// Anthropic counts a prompt's tokens in three parts: read from a cache, written to one, and neither.
#[derive(Serialize)]
struct Tokens {
    input_tokens: u32,
    /// Nothing is written for later at a price of its own.
    cache_creation_input_tokens: u32,
    cache_read_input_tokens: u32,
    output_tokens: u32,
}

#[derive(Serialize)]
struct BlockDelta<'a> {
    r#type: &'static str,
    index: usize,
    delta: Piece<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Piece<'a> {
    TextDelta { text: &'a str },
    InputJsonDelta { partial_json: &'a str },
}

impl Shape {
    pub(super) fn new(id: RequestId, model: ModelName) -> Self {
        Self { id, model }
    }

    /// The answer as one body.
    pub(super) fn message(&self, blocks: &[Block], finish: &Finish) -> Bytes {
        let content = blocks.iter().map(whole).collect();
        let message = self.frame(content, Some(finish), tokens(finish.usage));
        serde_json::to_vec(&message).expect("a message serialises").into()
    }

    /// The answer as events, to a prompt of so many tokens.
    pub(super) fn events(self, prompt_tokens: u32) -> Events {
        Events { shape: self, prompt_tokens, blocks: Blocks::default() }
    }

    fn frame<'a>(&'a self, content: Vec<Value>, finish: Option<&'a Finish>, usage: Tokens) -> Message<'a> {
        Message {
            id: format!("msg_{}", self.id),
            r#type: "message",
            role: "assistant",
            model: self.model.as_str(),
            content,
            stop_reason: finish.map(reason),
            stop_sequence: finish.and_then(stop),
            usage,
        }
    }
}

/// An answer on its way out as events.
pub(super) struct Events {
    shape: Shape,
    prompt_tokens: u32,
    blocks: Blocks,
}

impl Encode for Events {
    fn begin(&mut self, out: &mut BytesMut) {
        // What of the prompt a cache held is known at the end.
        let usage = tokens(Usage { prompt_tokens: self.prompt_tokens, ..Usage::default() });
        let message = self.shape.frame(Vec::new(), None, usage);
        events::write(out, "message_start", &json!({"type": "message_start", "message": message}));
        events::write(out, "ping", &json!({"type": "ping"}));
    }

    fn delta(&mut self, mut delta: Delta, out: &mut BytesMut) {
        let finish = delta.finish.clone();
        // Nobody here asks for them.
        delta.logprobs.clear();
        self.blocks.take(delta, |at, block, progress| block_event(out, at, block, progress));
        let Some(finish) = finish else { return };
        let end = json!({
            "type": "message_delta",
            "delta": {"stop_reason": reason(&finish), "stop_sequence": stop(&finish)},
            "usage": tokens(finish.usage),
        });
        events::write(out, "message_delta", &end);
        events::write(out, "message_stop", &json!({"type": "message_stop"}));
    }

    fn failed(&mut self, failure: &Failure, out: &mut BytesMut) {
        let body: Box<serde_json::value::RawValue> =
            serde_json::from_slice(&render_error(failure, self.shape.id)).expect("an error's body is JSON");
        events::write(out, "error", &body);
    }
}

fn block_event(out: &mut BytesMut, index: usize, block: &Block, progress: Progress<'_>) {
    let mut piece =
        |delta| events::write(out, "content_block_delta", &BlockDelta { r#type: "content_block_delta", index, delta });
    match progress {
        Progress::Text { text, .. } => piece(Piece::TextDelta { text }),
        Progress::Arguments(partial_json) => piece(Piece::InputJsonDelta { partial_json }),
        Progress::Begun => {
            let start = json!({"type": "content_block_start", "index": index, "content_block": whole(block)});
            events::write(out, "content_block_start", &start);
        }
        Progress::Done { .. } => {
            events::write(out, "content_block_stop", &json!({"type": "content_block_stop", "index": index}))
        }
    }
}

/// A block, or the beginning of one.
fn whole(block: &Block) -> Value {
    match block {
        Block::Text { text, .. } => json!({"type": "text", "text": text}),
        // Arguments that the end of the answer cut off are no JSON: `stop_reason` tells.
        Block::Call(call) => {
            let input: Map<String, Value> = serde_json::from_str(&call.arguments).unwrap_or_default();
            json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input})
        }
    }
}

fn reason(finish: &Finish) -> &'static str {
    match (finish.reason, &finish.stop) {
        (FinishReason::Stop, Some(_)) => "stop_sequence",
        (FinishReason::Stop, None) => "end_turn",
        (FinishReason::Length, _) => "max_tokens",
        (FinishReason::ToolCalls, _) => "tool_use",
    }
}

/// The stop text, where it is why the answer ended.
fn stop(finish: &Finish) -> Option<&str> {
    match finish.reason {
        FinishReason::Stop => finish.stop.as_deref(),
        FinishReason::Length | FinishReason::ToolCalls => None,
    }
}

fn tokens(usage: Usage) -> Tokens {
    Tokens {
        input_tokens: usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        cache_creation_input_tokens: 0,
        cache_read_input_tokens: usage.cached_tokens,
        output_tokens: usage.completion_tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{ToolCallDelta, ToolCallStart};

    fn shape() -> Shape {
        Shape::new(RequestId::generate(), ModelName::new("m").unwrap())
    }

    fn finish(reason: FinishReason, stop: Option<&str>) -> Finish {
        let usage = Usage { prompt_tokens: 9, cached_tokens: 4, completion_tokens: 3 };
        Finish { reason, stop: stop.map(str::to_owned), usage }
    }

    fn called() -> Vec<Delta> {
        let start = Some(ToolCallStart { id: "t".into(), name: "look".into() });
        let piece = |start, arguments: &str| Delta {
            tool_calls: vec![ToolCallDelta { index: 0, start, arguments: arguments.into() }],
            ..Delta::default()
        };
        let end = Delta { finish: Some(finish(FinishReason::ToolCalls, None)), ..Delta::default() };
        vec![Delta { text: "so".into(), ..Delta::default() }, piece(start, "{\"a\":"), piece(None, "1}"), end]
    }

    #[test]
    fn a_message_has_text_calls_and_anthropics_accounting() {
        let mut blocks = Blocks::default();
        called().into_iter().for_each(|delta| blocks.take(delta, |_, _, _| {}));
        let body = shape().message(blocks.all(), &finish(FinishReason::ToolCalls, None));
        let message: Value = serde_json::from_slice(&body).unwrap();
        let call = json!({"type": "tool_use", "id": "t", "name": "look", "input": {"a": 1}});
        assert_eq!(message["content"], json!([{"type": "text", "text": "so"}, call]));
        assert_eq!(message["stop_reason"], "tool_use");
        let usage = json!({"input_tokens": 5, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 3});
        assert_eq!(message["usage"], usage);
    }

    #[test]
    fn every_end_has_its_word() {
        for (reason_, stop, word) in [
            (FinishReason::Stop, None, "end_turn"),
            (FinishReason::Stop, Some("END"), "stop_sequence"),
            (FinishReason::Length, None, "max_tokens"),
            (FinishReason::ToolCalls, None, "tool_use"),
        ] {
            let message: Value = serde_json::from_slice(&shape().message(&[], &finish(reason_, stop))).unwrap();
            assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!(word), &json!(stop)));
        }
    }

    #[test]
    fn a_calls_events_are_its_start_its_json_in_pieces_and_its_stop() {
        let mut out = BytesMut::new();
        let mut events = shape().events(9);
        events.begin(&mut out);
        called().into_iter().for_each(|delta| events.delta(delta, &mut out));
        let text = std::str::from_utf8(&out).unwrap();
        let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        let expected = [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ];
        assert_eq!(names, expected);
        for line in [
            r#"data: {"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t","name":"look","input":{}}}"#,
            r#"data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"1}"}}"#,
            r#"data: {"type":"content_block_stop","index":1}"#,
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
