//! What neither protocol has a word for, refused by the name of its field. What a request asks for in vain is never
//! left out in silence; what has no effect may be.

use crate::request::{Constraint, Failure, Input, Request};

/// A refusal of the fields that are in use, the first of them first.
pub(super) fn refuse(protocol: &str, fields: impl IntoIterator<Item = (&'static str, bool)>) -> Result<(), Failure> {
    match fields.into_iter().find(|(_, used)| *used) {
        Some((field, _)) => Err(refusal(protocol, field)),
        None => Ok(()),
    }
}

/// A refusal of one field.
pub(super) fn refusal(protocol: &str, field: impl Into<String>) -> Failure {
    let field = field.into();
    let message = format!("{field} cannot be asked of an upstream that speaks {protocol}");
    Failure::field(field, message)
}

/// The fields that only models of the cluster's own know.
pub(super) fn local_only(request: &Request) -> [(&'static str, bool); 11] {
    let sampling = &request.sampling;
    let (no_prompt, kwargs) = match &request.input {
        Input::Chat(chat) => (!chat.add_generation_prompt, !chat.template_kwargs.is_empty()),
        Input::Text(_) | Input::Tokens(_) => (false, false),
    };
    [
        // Ids are those of a vocabulary that only the cluster's own models are known to have.
        ("prompt", matches!(request.input, Input::Tokens(_))),
        ("logit_bias", !sampling.logit_bias.is_empty()),
        ("stop_token_ids", !sampling.stop_token_ids.is_empty()),
        ("min_p", sampling.min_p.is_some_and(|min_p| min_p > 0.0)),
        ("repetition_penalty", sampling.repetition_penalty.is_some_and(|penalty| penalty != 1.0)),
        ("min_tokens", sampling.min_tokens > 0),
        ("ignore_eos", sampling.ignore_eos),
        ("include_stop_str_in_output", request.stop.include && !request.stop.texts.is_empty()),
        ("add_generation_prompt", no_prompt),
        ("chat_template_kwargs", kwargs),
        ("response_format", matches!(request.constraint, Some(Constraint::Regex(_) | Constraint::Grammar(_)))),
    ]
}

/// The schema of a constraint as JSON; None where there is none.
pub(super) fn schema(request: &Request) -> Result<Option<serde_json::Value>, Failure> {
    match &request.constraint {
        Some(Constraint::JsonSchema(schema)) => {
            let malformed = |error| Failure::field("response_format", format!("response_format is no JSON: {error}"));
            serde_json::from_str(schema).map(Some).map_err(malformed)
        }
        // Refused before, by `local_only`.
        Some(Constraint::Regex(_) | Constraint::Grammar(_)) | None => Ok(None),
    }
}

/// Whether a schema is the one that every object satisfies, and nothing else: "some JSON", as protocols call it.
pub(super) fn is_any_object(schema: &serde_json::Value) -> bool {
    schema.as_object().is_some_and(|fields| fields.len() == 1 && schema["type"] == "object")
}
