//! OpenAI's shapes of an answer: one stream of pieces, and its two endings, chunks and one body.

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{FutureExt as _, Stream, stream};
use penstock_proto::{ModelName, RequestId};
use serde::Serialize;

use super::{Kind, render_error};
use crate::api::answers::Answers;
use crate::request::{Delta, Failure, FinishReason, Usage};

/// Pieces that go out together where they are there together.
const TOGETHER: usize = 32;

/// What all parts of one answer have in common.
pub(super) struct Shape {
    kind: Kind,
    id: String,
    created: u64,
    model: ModelName,
}

#[derive(Serialize)]
struct Frame<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [Choice<'a>],
    /// Left out, null or there.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Tokens>>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Turn<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Turn<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Turn<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    /// Left out or null: nothing here refuses in OpenAI's sense.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Option<()>>,
}

#[derive(Clone, Copy, Serialize)]
struct Tokens {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptTokens,
}

#[derive(Clone, Copy, Serialize)]
struct PromptTokens {
    cached_tokens: u32,
}

impl Shape {
    pub(super) fn new(kind: Kind, id: RequestId, model: ModelName) -> Self {
        let prefix = match kind {
            Kind::Chat => "chatcmpl",
            Kind::Completion => "cmpl",
        };
        Self { kind, id: format!("{prefix}-{id}"), created: penstock_proto::time::unix_now().as_secs(), model }
    }

    /// The answer as one body.
    pub(super) async fn fold(self, mut answers: Answers) -> Result<Bytes, Failure> {
        let mut choices = vec![(String::new(), None); answers.open()];
        let mut usage = Usage::default();
        while let Some(next) = answers.next().await {
            let (index, delta) = next?;
            let (text, finish) = &mut choices[index];
            text.push_str(&delta.text);
            if let Some(ended) = delta.finish {
                *finish = Some(ended.reason);
                add(&mut usage, ended.usage);
            }
        }
        let choices: Vec<Choice<'_>> =
            choices.iter().enumerate().map(|(index, (text, finish))| self.whole(index, text, *finish)).collect();
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Completion => "text_completion",
        };
        Ok(serde_json::to_vec(&self.frame(object, &choices, Some(Some(tokens(usage)))))
            .expect("a frame serialises")
            .into())
    }

    /// The answer as server-sent events.
    pub(super) fn stream(self, answers: Answers, usage: bool) -> impl Stream<Item = Bytes> + Send {
        let begun = vec![false; answers.open()];
        let events = Events { shape: self, answers, wants_usage: usage, begun, usage: Usage::default() };
        stream::unfold(Some(events), |events| async move {
            let mut events = events?;
            let mut out = BytesMut::new();
            let goes_on = events.write(&mut out).await;
            Some((out.freeze(), goes_on.then_some(events)))
        })
    }

    fn frame<'a>(
        &'a self,
        object: &'static str,
        choices: &'a [Choice<'a>],
        usage: Option<Option<Tokens>>,
    ) -> Frame<'a> {
        Frame { id: &self.id, object, created: self.created, model: self.model.as_str(), choices, usage }
    }

    fn whole<'a>(&self, index: usize, text: &'a str, finish: Option<FinishReason>) -> Choice<'a> {
        let turn = || Turn { role: Some("assistant"), content: Some(text), refusal: Some(None) };
        let (message, text) = match self.kind {
            Kind::Chat => (Some(turn()), None),
            Kind::Completion => (None, Some(text)),
        };
        Choice { index, delta: None, message, text, logprobs: None, finish_reason: finish.map(word) }
    }
}

/// An answer on its way out as events.
struct Events {
    shape: Shape,
    answers: Answers,
    wants_usage: bool,
    /// Which choices have said whose turn it is.
    begun: Vec<bool>,
    usage: Usage,
}

impl Events {
    /// Writes what comes next, and what is there with it. Returns whether more is to come.
    async fn write(&mut self, out: &mut BytesMut) -> bool {
        let mut next = self.answers.next().await;
        for _ in 0..TOGETHER {
            match next {
                Some(Ok((index, delta))) => self.delta(out, index, &delta),
                Some(Err(failure)) => {
                    out.put_slice(b"event: error\n");
                    event(out, &render_error(&failure));
                    return false;
                }
                None => {
                    self.end(out);
                    return false;
                }
            }
            match self.answers.next().now_or_never() {
                Some(there) => next = there,
                None => break,
            }
        }
        true
    }

    fn delta(&mut self, out: &mut BytesMut, index: usize, delta: &Delta) {
        let reason = delta.finish.as_ref().map(|finish| word(finish.reason));
        match self.shape.kind {
            Kind::Chat => {
                if !std::mem::replace(&mut self.begun[index], true) {
                    let turn = Turn { role: Some("assistant"), content: Some(""), refusal: Some(None) };
                    self.turn(out, index, turn, None);
                }
                if !delta.text.is_empty() {
                    self.turn(out, index, Turn { content: Some(&delta.text), ..Turn::default() }, None);
                }
                if reason.is_some() {
                    self.turn(out, index, Turn::default(), reason);
                }
            }
            Kind::Completion => {
                let text = Some(delta.text.as_str());
                let (message, finish_reason) = (None, reason);
                self.chunk(out, &[Choice { index, delta: None, message, text, logprobs: None, finish_reason }], None);
            }
        }
        if let Some(finish) = &delta.finish {
            add(&mut self.usage, finish.usage);
        }
    }

    fn turn(&self, out: &mut BytesMut, index: usize, turn: Turn<'_>, finish_reason: Option<&'static str>) {
        let (delta, message, text) = (Some(turn), None, None);
        self.chunk(out, &[Choice { index, delta, message, text, logprobs: None, finish_reason }], None);
    }

    fn end(&self, out: &mut BytesMut) {
        if self.wants_usage {
            self.chunk(out, &[], Some(tokens(self.usage)));
        }
        event(out, b"[DONE]");
    }

    fn chunk(&self, out: &mut BytesMut, choices: &[Choice<'_>], usage: Option<Tokens>) {
        let object = match self.shape.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        };
        let frame = self.shape.frame(object, choices, self.wants_usage.then_some(usage));
        out.put_slice(b"data: ");
        serde_json::to_writer(out.writer(), &frame).expect("a frame serialises into memory");
        out.put_slice(b"\n\n");
    }
}

fn event(out: &mut BytesMut, data: &[u8]) {
    out.put_slice(b"data: ");
    out.put_slice(data);
    out.put_slice(b"\n\n");
}

fn word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
    }
}

fn add(sum: &mut Usage, usage: Usage) {
    sum.prompt_tokens += usage.prompt_tokens;
    sum.cached_tokens += usage.cached_tokens;
    sum.completion_tokens += usage.completion_tokens;
}

fn tokens(usage: Usage) -> Tokens {
    Tokens {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        total_tokens: usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details: PromptTokens { cached_tokens: usage.cached_tokens },
    }
}
