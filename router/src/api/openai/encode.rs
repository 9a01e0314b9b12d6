//! OpenAI's shapes of an answer: one stream of pieces, and its two endings, chunks and one body.

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{FutureExt as _, Stream, stream};
use penstock_proto::{ModelName, RequestId};
use serde::Serialize;

use super::called::{self, Called};
use super::choices::{self, Choices};
use super::logprobs::Logprobs;
use super::{Kind, render_error};
use crate::api::answers::Answers;
use crate::request::{Delta, Failure, FinishReason, TokenLogprob, ToolCall, ToolChoice, Usage};

/// Pieces that go out together where they are there together.
const TOGETHER: usize = 32;

/// What is known of an answer before it begins.
pub(super) struct Shape {
    pub(super) kind: Kind,
    pub(super) id: RequestId,
    pub(super) model: ModelName,
    pub(super) choices: Choices,
    /// Which tools were to be called.
    pub(super) choice: ToolChoice,
    /// Whether log-probabilities are told.
    pub(super) logprobs: bool,
    /// What stands before the choices of each prompt; empty where nothing does.
    pub(super) prompts: Vec<String>,
}

/// What all parts of one answer have in common.
pub(super) struct Begun {
    shape: Shape,
    id: String,
    created: u64,
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
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

impl Choice<'_> {
    /// One that says nothing yet.
    fn at(index: usize) -> Self {
        Self { index, delta: None, message: None, text: None, logprobs: None, finish_reason: None }
    }
}

#[derive(Default, Serialize)]
struct Turn<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// Left out, or null where an answer is nothing but calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Option<&'a str>>,
    /// Left out or null: nothing here refuses in OpenAI's sense.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Option<()>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Called<'a>>,
}

impl<'a> Turn<'a> {
    /// The assistant's.
    fn assistant(content: Option<&'a str>) -> Self {
        Self { role: Some("assistant"), content: Some(content), refusal: Some(None), tool_calls: Vec::new() }
    }
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

/// A choice that is put together.
#[derive(Clone, Default)]
struct Whole {
    text: String,
    calls: Vec<ToolCall>,
    logprobs: Vec<TokenLogprob>,
    finish: Option<FinishReason>,
}

impl Shape {
    /// An answer that begins now.
    pub(super) fn begin(self) -> Begun {
        let prefix = match self.kind {
            Kind::Chat => "chatcmpl",
            Kind::Completion => "cmpl",
        };
        let id = format!("{prefix}-{}", self.id);
        Begun { shape: self, id, created: penstock_proto::time::unix_now().as_secs() }
    }

    fn word(&self, reason: FinishReason) -> &'static str {
        match (reason, &self.choice) {
            (FinishReason::Stop, _) => "stop",
            (FinishReason::Length, _) => "length",
            // For OpenAI, a call that was asked for by name is the answer, not a reason to end it.
            (FinishReason::ToolCalls, ToolChoice::Named(_)) => "stop",
            (FinishReason::ToolCalls, ToolChoice::Auto | ToolChoice::None | ToolChoice::Required) => "tool_calls",
        }
    }

    /// What stands before a choice.
    fn before(&self, index: usize) -> &str {
        self.prompts.get(index / self.choices.made as usize).map_or("", String::as_str)
    }

    /// Adds what a choice took. A prompt counts once, however many choices it has.
    fn add(&self, sum: &mut Usage, index: usize, usage: Usage) {
        if index.is_multiple_of(self.choices.made as usize) {
            sum.prompt_tokens += usage.prompt_tokens;
            sum.cached_tokens += usage.cached_tokens;
        }
        sum.completion_tokens += usage.completion_tokens;
    }

    /// Leaves the best choices of each prompt, best first where some are left out.
    fn select(&self, mut made: Vec<Whole>) -> Vec<Whole> {
        if self.choices.made == self.choices.shown {
            return made;
        }
        let best = |choices: &mut [Whole]| {
            choices.sort_by(|a, b| choices::quality(&b.logprobs).total_cmp(&choices::quality(&a.logprobs)));
            choices[..self.choices.shown as usize].to_vec()
        };
        made.chunks_mut(self.choices.made as usize).flat_map(best).collect()
    }
}

impl Begun {
    /// The answer as one body.
    pub(super) async fn fold(self, mut answers: Answers) -> Result<Bytes, Failure> {
        let begin = |index| Whole { text: self.shape.before(index).to_owned(), ..Whole::default() };
        let mut made: Vec<Whole> = (0..answers.open()).map(begin).collect();
        let mut usage = Usage::default();
        while let Some(next) = answers.next().await {
            let (index, delta) = next?;
            let whole = &mut made[index];
            whole.text.push_str(&delta.text);
            called::add(&mut whole.calls, delta.tool_calls);
            whole.logprobs.extend(delta.logprobs);
            if let Some(ended) = delta.finish {
                whole.finish = Some(ended.reason);
                self.shape.add(&mut usage, index, ended.usage);
            }
        }
        let shown = self.shape.select(made);
        let choices: Vec<Choice<'_>> =
            shown.iter().enumerate().map(|(index, whole)| self.whole(index, whole)).collect();
        let object = match self.shape.kind {
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
        let offsets = vec![0; answers.open()];
        let events = Events { shape: self, answers, wants_usage: usage, begun, offsets, usage: Usage::default() };
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
        Frame { id: &self.id, object, created: self.created, model: self.shape.model.as_str(), choices, usage }
    }

    fn whole<'a>(&self, index: usize, whole: &'a Whole) -> Choice<'a> {
        let (message, text) = match self.shape.kind {
            Kind::Chat => (Some(whole.turn()), None),
            Kind::Completion => (None, Some(whole.text.as_str())),
        };
        let logprobs = self.logprobs(&whole.logprobs, &mut 0);
        let finish_reason = whole.finish.map(|reason| self.shape.word(reason));
        Choice { index, delta: None, message, text, logprobs, finish_reason }
    }

    /// Those that are told of tokens after `offset` characters.
    fn logprobs(&self, tokens: &[TokenLogprob], offset: &mut usize) -> Option<Logprobs> {
        self.shape.logprobs.then(|| Logprobs::new(self.shape.kind, tokens, offset))
    }
}

impl Whole {
    fn turn(&self) -> Turn<'_> {
        let content = Some(self.text.as_str()).filter(|text| !text.is_empty() || self.calls.is_empty());
        Turn { tool_calls: self.calls.iter().map(Called::whole).collect(), ..Turn::assistant(content) }
    }
}

/// An answer on its way out as events.
struct Events {
    shape: Begun,
    answers: Answers,
    wants_usage: bool,
    /// Which choices have said whose turn it is.
    begun: Vec<bool>,
    /// Characters that each choice has.
    offsets: Vec<usize>,
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
        let reason = delta.finish.as_ref().map(|finish| self.shape.shape.word(finish.reason));
        let begins = !std::mem::replace(&mut self.begun[index], true);
        let logprobs = match delta.logprobs.is_empty() {
            true => None,
            false => self.shape.logprobs(&delta.logprobs, &mut self.offsets[index]),
        };
        let turn = |turn| Choice { delta: Some(turn), ..Choice::at(index) };
        match self.shape.shape.kind {
            Kind::Chat => {
                if begins {
                    let content = (!delta.text.is_empty() || delta.tool_calls.is_empty()).then_some("");
                    self.chunk(out, &[turn(Turn::assistant(content))], None);
                }
                if !delta.text.is_empty() || logprobs.is_some() {
                    let said = turn(Turn { content: Some(Some(&delta.text)), ..Turn::default() });
                    self.chunk(out, &[Choice { logprobs, ..said }], None);
                }
                for piece in &delta.tool_calls {
                    let tool_calls = vec![Called::piece(piece)];
                    self.chunk(out, &[turn(Turn { tool_calls, ..Turn::default() })], None);
                }
                if reason.is_some() {
                    self.chunk(out, &[Choice { finish_reason: reason, ..turn(Turn::default()) }], None);
                }
            }
            Kind::Completion => {
                let before = self.shape.shape.before(index);
                if begins && !before.is_empty() {
                    self.chunk(out, &[Choice { text: Some(before), ..Choice::at(index) }], None);
                }
                let text = Some(delta.text.as_str());
                self.chunk(out, &[Choice { text, logprobs, finish_reason: reason, ..Choice::at(index) }], None);
            }
        }
        if let Some(finish) = &delta.finish {
            self.shape.shape.add(&mut self.usage, index, finish.usage);
        }
    }

    fn end(&self, out: &mut BytesMut) {
        if self.wants_usage {
            self.chunk(out, &[], Some(tokens(self.usage)));
        }
        event(out, b"[DONE]");
    }

    fn chunk(&self, out: &mut BytesMut, choices: &[Choice<'_>], usage: Option<Tokens>) {
        let object = match self.shape.shape.kind {
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

fn tokens(usage: Usage) -> Tokens {
    Tokens {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        total_tokens: usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details: PromptTokens { cached_tokens: usage.cached_tokens },
    }
}
