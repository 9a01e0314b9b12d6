//! What every call of every face takes and gives: one table, from which `/openapi.json` and `docs/api.md` are made. What
//! is refused or ignored comes from the lists that the decoders themselves go by.

#[cfg(test)]
mod agree;
mod answered;
mod asked;
#[cfg(test)]
mod docs;
mod field;
mod openapi;

use std::sync::OnceLock;

use bytes::Bytes;
use http::{Method, StatusCode};

use super::face::Call;
use super::{Api, Reply, not_found};
use crate::metrics::{Observation, Route};
use crate::request::Failure;
use field::Spec;

/// Where the document is.
pub(super) const PATH: &str = "/openapi.json";

const OPENAI: &str = "Error";
const ANTHROPIC: &str = "AnthropicError";

const CALLS: &[Spec] = &[
    Spec {
        method: "POST",
        path: "/v1/chat/completions",
        summary: "A conversation goes on",
        body: Some(asked::CHAT_COMPLETION),
        answer: "ChatCompletion",
        streams: true,
        error: OPENAI,
    },
    Spec {
        method: "POST",
        path: "/v1/completions",
        summary: "A text goes on",
        body: Some(asked::TEXT_COMPLETION),
        answer: "Completion",
        streams: true,
        error: OPENAI,
    },
    Spec {
        method: "POST",
        path: "/v1/responses",
        summary: "A conversation goes on, in items; nothing is stored",
        body: Some(asked::RESPONSE),
        answer: "Response",
        streams: true,
        error: OPENAI,
    },
    Spec {
        method: "POST",
        path: "/v1/messages",
        summary: "A conversation goes on, in Anthropic's shapes",
        body: Some(asked::ANTHROPIC_MESSAGE),
        answer: "Message",
        streams: true,
        error: ANTHROPIC,
    },
    Spec {
        method: "POST",
        path: "/v1/messages/count_tokens",
        summary: "How many tokens a conversation is, in Anthropic's shapes",
        body: Some(asked::COUNT),
        answer: "TokenCount",
        streams: false,
        error: ANTHROPIC,
    },
    Spec {
        method: "GET",
        path: "/v1/models",
        summary: "The models that are served now",
        body: None,
        answer: "Models",
        streams: false,
        error: OPENAI,
    },
    Spec {
        method: "GET",
        path: "/v1/models/{model}",
        summary: "One model",
        body: None,
        answer: "Model",
        streams: false,
        error: OPENAI,
    },
    Spec {
        method: "POST",
        path: "/v1/tokenize",
        summary: "The token ids of a text, or of messages in the model's template",
        body: Some(asked::TOKENIZE),
        answer: "Tokens",
        streams: false,
        error: OPENAI,
    },
    Spec {
        method: "POST",
        path: "/v1/detokenize",
        summary: "The text of token ids",
        body: Some(asked::DETOKENIZE),
        answer: "Text",
        streams: false,
        error: OPENAI,
    },
    Spec {
        method: "GET",
        path: "/health",
        summary: "Whether any model could answer now, for gateways and balancers; 503 where none could",
        body: None,
        answer: "Health",
        streams: false,
        error: OPENAI,
    },
    Spec {
        method: "GET",
        path: PATH,
        summary: "This, as OpenAPI",
        body: None,
        answer: "OpenApi",
        streams: false,
        error: OPENAI,
    },
];

/// Which call a method and a path mean.
pub(super) fn route(method: &Method, path: &str) -> Route {
    match (method.as_str(), path) {
        ("GET", PATH) => Route::OpenApi,
        _ => Route::Unknown,
    }
}

impl Api {
    /// Answers a call of the face.
    pub(super) fn spec(&self, call: &Call<'_>, mut observation: Observation) -> Result<Reply, Failure> {
        static DOCUMENT: OnceLock<Bytes> = OnceLock::new();
        if route(call.method, call.path) == Route::Unknown {
            let failure = not_found(call.method, call.path);
            observation.failed(&failure);
            return Err(failure);
        }
        let document = DOCUMENT.get_or_init(|| {
            serde_json::to_vec(&openapi::document()).expect("a document of JSON values serialises").into()
        });
        observation.done();
        Ok(Reply::Json(StatusCode::OK, document.clone()))
    }
}
