//! OpenAI's Responses, stateless: items → one [`Request`](crate::request::Request), pieces of its answer → a response
//! object or its events. Nothing is stored, so nothing can be gone on from.

pub(super) mod decode;
mod encode;
mod format;
mod items;
mod shape;
mod tools;

use futures_util::StreamExt as _;
use http::{Method, StatusCode};

use super::answers::Begun;
use super::face::Call;
use super::openai::Names;
use super::{Api, Notes, Reply, events, not_found};
use crate::metrics::{Observation, Route};
use crate::request::Failure;

/// Which call of the face a method and a path mean.
pub(super) fn route(method: &Method, path: &str) -> Route {
    match (method.as_str(), path) {
        ("POST", "/v1/responses") => Route::Responses,
        _ => Route::Unknown,
    }
}

/// What dispatch and workers complain of, as this face's clients call it.
const NAMES: Names = Names { max_tokens: "max_output_tokens", constraint: Some("text.format") };

impl Api {
    /// Answers a call of the face.
    pub(super) async fn responses(
        &self,
        call: Call<'_>,
        notes: &mut Notes,
        mut observation: Observation,
    ) -> Result<Reply, Failure> {
        if route(call.method, call.path) == Route::Unknown {
            let failure = not_found(call.method, call.path);
            observation.failed(&failure);
            return Err(failure);
        }
        let decoded = decode::response(&call.body, &mut notes.ignored);
        let decoded = decoded.map(|asking| (call.request(asking.asked), asking.streams, asking.echo));
        let begun = self.answer_one(call.asking(false), decoded, notes, observation).await;
        let (begun, streams, echo) = begun.map_err(|failure| NAMES.rename(failure))?;
        let Begun { name, model, answers } = begun;
        let shape = shape::Shape::new(call.head.id, name, model.as_deref(), echo);
        if streams {
            return Ok(Reply::Events(events::stream(answers, encode::Events::new(shape)).boxed()));
        }
        let (blocks, finish) = answers.whole().await?;
        Ok(Reply::Json(StatusCode::OK, shape.response(blocks.all(), &finish)))
    }
}
