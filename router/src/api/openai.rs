//! OpenAI's face: JSON bodies → [`Request`]s, pieces of answers → chunks or one body. Nothing behind it knows OpenAI.

mod called;
mod chat;
mod choices;
mod completion;
mod encode;
mod error;
pub(super) mod logprobs;
mod models;
pub(super) mod sampling;
mod structure;
mod tools;
pub(super) mod unserved;

use futures_util::StreamExt as _;
use http::{Method, StatusCode};
use penstock_proto::{ModelName, RequestId};

use super::answers::Begun;
use super::face::Call;
use super::json::{Field, Object};
use super::{Api, Notes, Reply, not_found};
use crate::metrics::{Observation, Route};
use crate::request::{Failure, Input, Request, Sampling, Stop, Tools};

use choices::Choices;
pub(super) use error::render as render_error;

/// What a body asks for.
pub(super) struct Ask {
    model: ModelName,
    /// So many choices of the answer each.
    inputs: Vec<Input>,
    choices: Choices,
    tools: Tools,
    /// Whether the prompt stands before each choice.
    echo: bool,
    sampling: Sampling,
    stop: Stop,
    constraint: Option<structure::Asked>,
    delivery: Delivery,
    /// The name by which the client gave `max_tokens`.
    max_tokens_name: &'static str,
}

/// How the answer goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    /// One body.
    Folded,
    /// Chunks, the last one with the usage if wanted.
    Streamed { usage: bool },
}

/// The two kinds of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Completion,
}

/// Which call of the face a method and a path mean.
pub(super) fn route(method: &Method, path: &str) -> Route {
    match (method.as_str(), path) {
        ("POST", "/v1/chat/completions") => Route::ChatCompletions,
        ("POST", "/v1/completions") => Route::Completions,
        ("GET", "/v1/models") => Route::Models,
        ("GET", path) if path.starts_with("/v1/models/") => Route::Models,
        ("GET", "/health") => Route::Health,
        ("POST", "/v1/tokenize") => Route::Tokenize,
        ("POST", "/v1/detokenize") => Route::Detokenize,
        _ => Route::Unknown,
    }
}

impl Api {
    /// Answers a call of the face.
    pub(super) async fn openai(
        &self,
        call: Call<'_>,
        notes: &mut Notes,
        mut observation: Observation,
    ) -> Result<Reply, Failure> {
        let result = match route(call.method, call.path) {
            Route::ChatCompletions => return self.generate(Kind::Chat, &call, notes, observation).await,
            Route::Completions => return self.generate(Kind::Completion, &call, notes, observation).await,
            Route::Models => self.list_models(&call),
            Route::Health => models::health(&self.dispatch),
            Route::Tokenize => self.tokenize(&call, notes).await,
            Route::Detokenize => self.detokenize(&call, notes).await,
            // `route` gives no other face's.
            Route::Responses
            | Route::Messages
            | Route::CountTokens
            | Route::OpenApi
            | Route::Generate
            | Route::ListModels
            | Route::Unknown => Err(not_found(call.method, call.path)),
        };
        match &result {
            Ok(_) => observation.done(),
            Err(failure) => observation.failed(failure),
        }
        result
    }

    async fn generate(
        &self,
        kind: Kind,
        call: &Call<'_>,
        notes: &mut Notes,
        mut observation: Observation,
    ) -> Result<Reply, Failure> {
        let ask = match decode(kind, &call.body, &mut notes.ignored) {
            Ok(ask) => ask,
            Err(failure) => {
                observation.failed(&failure);
                return Err(failure);
            }
        };
        let names = Names { max_tokens: ask.max_tokens_name, constraint: ask.constraint.as_ref().map(|it| it.1) };
        let (delivery, choices, choice) = (ask.delivery, ask.choices, ask.tools.choice.clone());
        let logprobs = ask.sampling.top_logprobs.is_some();
        let prompts = if ask.echo { ask.inputs.clone() } else { Vec::new() };
        let asking = call.asking(matches!(delivery, Delivery::Streamed { .. }));
        let begun = self.choices(&asking, (requests(ask, call), choices.made), notes, observation).await;
        let Begun { name, model, answers } = begun.map_err(|failure| names.rename(failure))?;
        let echo = |input: &Input| choices::echo(input, model.as_deref());
        let prompts = prompts.iter().map(echo).collect();
        let shape = encode::Shape { kind, id: call.head.id, model: name, choices, choice, logprobs, prompts }.begin();
        Ok(match delivery {
            Delivery::Folded => Reply::Json(StatusCode::OK, shape.fold(answers).await?),
            Delivery::Streamed { usage } => Reply::Events(shape.stream(answers, usage).boxed()),
        })
    }
}

/// The names by which the client gave what dispatch and workers know under names of their own.
pub(super) struct Names {
    pub(super) max_tokens: &'static str,
    pub(super) constraint: Option<&'static str>,
}

impl Names {
    /// A complaint under the name that the client used.
    pub(super) fn rename(&self, failure: Failure) -> Failure {
        let name = match (failure.param.as_deref(), self.constraint) {
            (Some("max_tokens"), _) => self.max_tokens,
            (Some("constraint"), Some(name)) => {
                let message = format!("{name}: {}", failure.message);
                return Failure { message, param: Some(name.to_owned()), ..failure };
            }
            (Some(_), _) | (None, _) => return failure,
        };
        Failure { message: failure.message.replace("max_tokens", name), param: Some(name.to_owned()), ..failure }
    }
}

pub(super) fn decode(kind: Kind, body: &[u8], ignored: &mut Vec<String>) -> Result<Ask, Failure> {
    let mut object = Object::body(body)?;
    let ask = match kind {
        Kind::Chat => chat::decode(&mut object, ignored)?,
        Kind::Completion => completion::decode(&mut object, ignored)?,
    };
    ignored.extend(object.left());
    Ok(ask)
}

/// Every prompt is a request of its own; the first has the id that the client is told.
fn requests(ask: Ask, call: &Call<'_>) -> Vec<Request> {
    let head = call.head;
    let sampling = ask.choices.sampling(ask.sampling);
    let constraint = ask.constraint.map(|(constraint, _)| constraint);
    let request = |(at, input)| Request {
        id: if at == 0 { head.id } else { RequestId::generate() },
        tenant: call.caller.tenant.clone(),
        class: call.caller.class_of(head),
        priority: head.priority,
        deadline: head.deadline,
        model: ask.model.clone(),
        input,
        sampling: sampling.clone(),
        stop: ask.stop.clone(),
        constraint: constraint.clone(),
        tools: ask.tools.clone(),
    };
    ask.inputs.into_iter().enumerate().map(request).collect()
}

/// The body's `model`.
pub(super) fn model(object: &mut Object<'_>) -> Result<ModelName, Failure> {
    let field = object.need("model")?;
    ModelName::new(field.string()?).map_err(|error| Failure::field("model", error.to_string()))
}

/// `stream` and `stream_options`.
fn delivery(object: &mut Object<'_>, ignored: &mut Vec<String>) -> Result<Delivery, Failure> {
    let stream = object.take("stream").map(|field| field.bool()).transpose()?.unwrap_or(false);
    let options = object.take("stream_options");
    match (stream, options) {
        (false, None) => Ok(Delivery::Folded),
        (false, Some(field)) => Err(field.refuse("is for streams: set stream to true")),
        (true, None) => Ok(Delivery::Streamed { usage: false }),
        (true, Some(field)) => {
            let mut options = field.object()?;
            let usage = options.take("include_usage").map(|field: Field<'_>| field.bool()).transpose()?;
            // Asks that chunks be padded against eavesdroppers who see their sizes; false is what happens here.
            unserved::check(&mut options, &[("include_obfuscation", &["false"])])?;
            ignored.extend(options.left());
            Ok(Delivery::Streamed { usage: usage.unwrap_or(false) })
        }
    }
}
