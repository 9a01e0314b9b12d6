//! OpenAI's face: JSON bodies → [`Request`]s, pieces of answers → chunks or one body. Nothing behind it knows OpenAI.

mod chat;
mod completion;
mod encode;
mod error;
mod models;
pub(super) mod sampling;
pub(super) mod unserved;

use futures_util::StreamExt as _;
use http::{Method, StatusCode};
use penstock_proto::{ModelName, RequestId};

use super::face::Call;
use super::json::{Field, Object};
use super::{Api, Notes, Reply, not_found};
use crate::metrics::{Observation, Route};
use crate::request::{Failure, Input, Request, Sampling, Stop, Tools};

pub(super) use error::render as render_error;

/// What a body asks for.
pub(super) struct Ask {
    model: ModelName,
    /// One choice of the answer each.
    inputs: Vec<Input>,
    sampling: Sampling,
    stop: Stop,
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
        let dispatch = &self.dispatch;
        let result = match route(call.method, call.path) {
            Route::ChatCompletions => return self.generate(Kind::Chat, &call, notes, observation).await,
            Route::Completions => return self.generate(Kind::Completion, &call, notes, observation).await,
            Route::Models => models::list(dispatch, call.path),
            Route::Tokenize => models::tokenize(dispatch, &call.body, notes).await,
            Route::Detokenize => models::detokenize(dispatch, &call.body, notes).await,
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
        let found = decode(kind, &call.body, &mut notes.ignored)
            .and_then(|ask| self.dispatch.model(&ask.model).map(|model| (ask, model)));
        let (ask, model) = match found {
            Ok(found) => found,
            Err(failure) => {
                observation.failed(&failure);
                return Err(failure);
            }
        };
        notes.target = Some(model.name.clone());
        observation.targets(&model.name);
        let (delivery, name) = (ask.delivery, ask.max_tokens_name);
        let answers = self.answers(&model, requests(ask, call), observation).await.map_err(|it| renamed(it, name))?;
        let shape = encode::Shape::new(kind, call.head.id, model.name.clone());
        Ok(match delivery {
            Delivery::Folded => Reply::Json(StatusCode::OK, shape.fold(answers).await?),
            Delivery::Streamed { usage } => Reply::Events(shape.stream(answers, usage).boxed()),
        })
    }
}

/// A complaint about `max_tokens` under the name that the client used.
fn renamed(failure: Failure, name: &'static str) -> Failure {
    match failure.param.as_deref() {
        Some("max_tokens") => {
            Failure { message: failure.message.replace("max_tokens", name), param: Some(name.to_owned()), ..failure }
        }
        Some(_) | None => failure,
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

/// Every choice is a request of its own; the first has the id that the client is told.
fn requests(ask: Ask, call: &Call<'_>) -> Vec<Request> {
    let head = call.head;
    let request = |(at, input)| Request {
        id: if at == 0 { head.id } else { RequestId::generate() },
        tenant: call.tenant.clone(),
        class: head.class,
        priority: head.priority,
        deadline: head.deadline,
        model: ask.model.clone(),
        input,
        sampling: ask.sampling.clone(),
        stop: ask.stop.clone(),
        constraint: None,
        tools: Tools::default(),
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
