//! Anthropic's face: messages → one [`Request`](crate::request::Request), pieces of its answer → a message or its events.

pub(super) mod decode;
mod encode;
mod error;
mod tools;
mod turns;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, StatusCode};
use serde::Serialize;

use super::answers::Begun;
use super::caller::target;
use super::face::Call;
use super::{Api, Notes, Reply, events, not_found};
use crate::metrics::{Observation, Route};
use crate::request::Failure;

pub(super) use error::render as render_error;

/// The response header in which Anthropic's clients look for an id.
pub(super) const REQUEST_ID: &str = "request-id";

#[derive(Serialize)]
struct Count {
    input_tokens: usize,
}

/// Which call of the face a method and a path mean.
pub(super) fn route(method: &Method, path: &str) -> Route {
    match (method.as_str(), path) {
        ("POST", "/v1/messages") => Route::Messages,
        ("POST", "/v1/messages/count_tokens") => Route::CountTokens,
        _ => Route::Unknown,
    }
}

impl Api {
    /// Answers a call of the face.
    pub(super) async fn anthropic(
        &self,
        call: Call<'_>,
        notes: &mut Notes,
        mut observation: Observation,
    ) -> Result<Reply, Failure> {
        let result = match route(call.method, call.path) {
            Route::Messages => return self.message(&call, notes, observation).await,
            Route::CountTokens => self.count_tokens(&call, notes).await,
            // `route` gives no other face's.
            Route::ChatCompletions
            | Route::Completions
            | Route::Models
            | Route::Health
            | Route::Tokenize
            | Route::Detokenize
            | Route::Responses
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

    async fn message(&self, call: &Call<'_>, notes: &mut Notes, observation: Observation) -> Result<Reply, Failure> {
        let decoded = decode::message(&call.body, &mut notes.ignored);
        let decoded = decoded.map(|(asked, streams)| (call.request(asked), streams, ()));
        let (begun, streams, ()) = self.answer_one(call.asking(false), decoded, notes, observation).await?;
        let Begun { name, answers, .. } = begun;
        let shape = encode::Shape::new(call.head.id, name);
        if streams {
            let prompt_tokens = answers.prompt_tokens();
            return Ok(Reply::Events(events::stream(answers, shape.events(prompt_tokens)).boxed()));
        }
        let (blocks, finish) = answers.whole().await?;
        Ok(Reply::Json(StatusCode::OK, shape.message(blocks.all(), &finish)))
    }

    async fn count_tokens(&self, call: &Call<'_>, notes: &mut Notes) -> Result<Reply, Failure> {
        let asked = decode::count(&call.body, &mut notes.ignored)?;
        let model = self.local(call.caller, &asked.model)?;
        notes.target = Some(target(&model));
        let input_tokens = self.dispatch.encode(&model.text, asked.input, asked.tools).await?.len();
        let body = serde_json::to_vec(&Count { input_tokens }).expect("a number serialises");
        Ok(Reply::Json(StatusCode::OK, Bytes::from(body)))
    }
}
