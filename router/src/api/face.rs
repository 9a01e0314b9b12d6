//! Which face a request is for. Every face is a module with the same three: `route`, a method of [`Api`] that answers,
//! `render_error`.

use bytes::Bytes;
use http::Method;
use penstock_proto::{ModelName, RequestId};

use super::caller::{Asking, Caller};
use super::head::Head;
use super::{Api, Notes, Reply, anthropic, openai, responses, spec};
use crate::metrics::{Observation, Route};
use crate::request::{Constraint, Failure, Input, Request, Sampling, Stop, Tools};

/// Whose shapes a path's answers have, refusals too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Face {
    /// Chat and text completions, models, and every path that is no other face's.
    OpenAi,
    /// OpenAI's Responses.
    Responses,
    /// Anthropic's messages.
    Anthropic,
    /// What describes the others.
    Spec,
}

/// One call of a face.
pub(super) struct Call<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) head: &'a Head,
    pub(super) caller: &'a Caller,
    pub(super) body: Bytes,
}

/// What a body asks for, beside what the head says.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) model: ModelName,
    pub(super) input: Input,
    pub(super) sampling: Sampling,
    pub(super) stop: Stop,
    pub(super) constraint: Option<Constraint>,
    pub(super) tools: Tools,
}

impl Face {
    /// The face that a path belongs to, with whatever method.
    pub(super) fn of(path: &str) -> Self {
        let within = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if within("/v1/messages") {
            Self::Anthropic
        } else if within("/v1/responses") {
            Self::Responses
        } else if path == spec::PATH {
            Self::Spec
        } else {
            Self::OpenAi
        }
    }

    /// Which of its calls a method and a path mean.
    pub(super) fn route(self, method: &Method, path: &str) -> Route {
        match self {
            Self::OpenAi => openai::route(method, path),
            Self::Responses => responses::route(method, path),
            Self::Anthropic => anthropic::route(method, path),
            Self::Spec => spec::route(method, path),
        }
    }

    /// The body of an error.
    pub(super) fn render_error(self, failure: &Failure, id: RequestId) -> Bytes {
        match self {
            Self::OpenAi | Self::Responses | Self::Spec => openai::render_error(failure),
            Self::Anthropic => anthropic::render_error(failure, id),
        }
    }

    /// Answers a call.
    pub(super) async fn answer(
        self,
        api: &Api,
        call: Call<'_>,
        notes: &mut Notes,
        observation: Observation,
    ) -> Result<Reply, Failure> {
        match self {
            Self::OpenAi => api.openai(call, notes, observation).await,
            Self::Responses => api.responses(call, notes, observation).await,
            Self::Anthropic => api.anthropic(call, notes, observation).await,
            Self::Spec => api.spec(&call, observation),
        }
    }
}

impl Call<'_> {
    /// What is asked for beside the requests, of an answer that is streamed or not.
    pub(super) fn asking(&self, streams: bool) -> Asking<'_> {
        Asking { head: self.head, caller: self.caller, body: Some(&self.body), streams }
    }

    /// The request for the one choice of an answer.
    pub(super) fn request(&self, asked: Asked) -> Request {
        Request {
            id: self.head.id,
            tenant: self.caller.tenant.clone(),
            class: self.caller.class_of(self.head),
            priority: self.head.priority,
            deadline: self.head.deadline,
            model: asked.model,
            input: asked.input,
            sampling: asked.sampling,
            stop: asked.stop,
            constraint: asked.constraint,
            tools: asked.tools,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_belongs_to_one_face_whatever_its_method() {
        for (path, face) in [
            ("/v1/messages", Face::Anthropic),
            ("/v1/messages/count_tokens", Face::Anthropic),
            ("/v1/messages/batches", Face::Anthropic),
            ("/v1/messagesque", Face::OpenAi),
            ("/v1/responses", Face::Responses),
            ("/v1/responses/resp_1", Face::Responses),
            ("/v1/chat/completions", Face::OpenAi),
            ("/openapi.json", Face::Spec),
            ("/", Face::OpenAi),
        ] {
            assert_eq!(Face::of(path), face, "{path}");
        }
    }
}
