//! The events of a response.

use bytes::BytesMut;
use serde::Serialize;
use serde_json::json;

use super::shape::{Shape, Status, ended, part};
use crate::api::blocks::{Block, Blocks, Progress};
use crate::api::events::{self, Encode};
use crate::api::openai::logprobs::chosen;
use crate::request::{Delta, Failure};

/// An answer on its way out as events.
pub(super) struct Events {
    shape: Shape,
    blocks: Blocks,
    numbered: Numbered,
}

/// Counts the events.
#[derive(Default)]
struct Numbered {
    next: u64,
}

#[derive(Serialize)]
struct Event<'a, T> {
    r#type: &'static str,
    sequence_number: u64,
    #[serde(flatten)]
    rest: &'a T,
}

/// Not by way of a JSON value, in which a temperature of 0.6 has the digits of its f64.
#[derive(Serialize)]
struct Carrying<T> {
    response: T,
}

impl Events {
    pub(super) fn new(shape: Shape) -> Self {
        Self { shape, blocks: Blocks::default(), numbered: Numbered::default() }
    }

    fn response(&mut self, out: &mut BytesMut, name: &'static str, status: &Status<'_>) {
        let response = self.shape.body(self.blocks.all(), status);
        self.numbered.write(out, name, &Carrying { response });
    }
}

impl Encode for Events {
    fn begin(&mut self, out: &mut BytesMut) {
        self.response(out, "response.created", &Status::InProgress);
        self.response(out, "response.in_progress", &Status::InProgress);
    }

    fn delta(&mut self, delta: Delta, out: &mut BytesMut) {
        let finish = delta.finish.clone();
        let status = finish.as_ref().map_or("completed", |finish| ended(finish.reason));
        let Self { shape, blocks, numbered } = self;
        blocks.take(delta, |at, block, progress| match block {
            Block::Text { .. } => numbered.said(out, &Place { shape, at, block, status }, progress),
            Block::Call(_) => numbered.called(out, &Place { shape, at, block, status }, progress),
        });
        if let Some(finish) = &finish {
            let name = if status == "completed" { "response.completed" } else { "response.incomplete" };
            self.response(out, name, &Status::Ended(finish));
        }
    }

    fn failed(&mut self, failure: &Failure, out: &mut BytesMut) {
        let (code, message) = (failure.code.as_str(), &failure.message);
        self.numbered.write(out, "error", &json!({"code": code, "message": message, "param": failure.param}));
        self.response(out, "response.failed", &Status::Failed(failure));
    }
}

/// A block at its place in an answer.
struct Place<'a> {
    shape: &'a Shape,
    at: usize,
    block: &'a Block,
    /// How it ends, if it does now.
    status: &'a str,
}

impl Numbered {
    fn write(&mut self, out: &mut BytesMut, name: &'static str, rest: &impl Serialize) {
        events::write(out, name, &Event { r#type: name, sequence_number: self.next, rest });
        self.next += 1;
    }

    fn said(&mut self, out: &mut BytesMut, place: &Place<'_>, progress: Progress<'_>) {
        let Place { shape, at, block, status } = *place;
        let item_id = shape.item_id(at, block);
        match progress {
            Progress::Begun => {
                let item = shape.item(at, block, "in_progress");
                self.write(out, "response.output_item.added", &json!({"output_index": at, "item": item}));
                let added = json!({"item_id": item_id, "output_index": at, "content_index": 0, "part": part(block)});
                self.write(out, "response.content_part.added", &added);
            }
            Progress::Text { text, logprobs } => {
                let delta = json!({
                    "item_id": item_id, "output_index": at, "content_index": 0,
                    "delta": text, "logprobs": chosen(logprobs),
                });
                self.write(out, "response.output_text.delta", &delta);
            }
            Progress::Arguments(_) => {}
            Progress::Done { last } => {
                let part = part(block);
                let done = json!({
                    "item_id": item_id, "output_index": at, "content_index": 0,
                    "text": part["text"], "logprobs": part["logprobs"],
                });
                self.write(out, "response.output_text.done", &done);
                let done = json!({"item_id": item_id, "output_index": at, "content_index": 0, "part": part});
                self.write(out, "response.content_part.done", &done);
                self.item_done(out, place, if last { status } else { "completed" });
            }
        }
    }

    fn called(&mut self, out: &mut BytesMut, place: &Place<'_>, progress: Progress<'_>) {
        let Place { shape, at, block, status } = *place;
        let item_id = shape.item_id(at, block);
        match progress {
            Progress::Begun => {
                let item = shape.item(at, block, "in_progress");
                self.write(out, "response.output_item.added", &json!({"output_index": at, "item": item}));
            }
            Progress::Arguments(delta) => {
                let delta = json!({"item_id": item_id, "output_index": at, "delta": delta});
                self.write(out, "response.function_call_arguments.delta", &delta);
            }
            Progress::Text { .. } => {}
            Progress::Done { last } => {
                let item = shape.item(at, block, "completed");
                let done = json!({
                    "item_id": item_id, "output_index": at, "name": item["name"], "arguments": item["arguments"],
                });
                self.write(out, "response.function_call_arguments.done", &done);
                self.item_done(out, place, if last { status } else { "completed" });
            }
        }
    }

    fn item_done(&mut self, out: &mut BytesMut, place: &Place<'_>, status: &str) {
        let item = place.shape.item(place.at, place.block, status);
        self.write(out, "response.output_item.done", &json!({"output_index": place.at, "item": item}));
    }
}
