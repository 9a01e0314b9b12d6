//! Anthropic's shape of a failure; `code` and `param` are ours beside it.

use bytes::Bytes;
use penstock_proto::{ErrorCode, RequestId};
use serde::Serialize;

use crate::request::Failure;

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    error: Error<'a>,
    request_id: String,
}

#[derive(Serialize)]
struct Error<'a> {
    r#type: &'static str,
    message: &'a str,
    code: &'static str,
    param: Option<&'a str>,
}

/// The body of an error.
pub(in crate::api) fn render(failure: &Failure, id: RequestId) -> Bytes {
    let error = Error {
        r#type: kind(failure.code),
        message: &failure.message,
        code: failure.code.as_str(),
        param: failure.param.as_deref(),
    };
    let body = Body { r#type: "error", error, request_id: id.to_string() };
    serde_json::to_vec(&body).expect("strings serialise").into()
}

/// Anthropic's word for a status.
fn kind(code: ErrorCode) -> &'static str {
    match code.http() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_anthropics_shape_and_our_code() {
        let id = RequestId::generate();
        let body = render(&Failure::field("max_tokens", "max_tokens is missing"), id);
        let error = r#"{"type":"invalid_request_error","message":"max_tokens is missing","code":"caller_invalid_request","param":"max_tokens"}"#;
        assert_eq!(body, format!(r#"{{"type":"error","error":{error},"request_id":"{id}"}}"#));
    }

    #[test]
    fn every_code_has_the_word_of_its_status() {
        for (code, word) in [
            (ErrorCode::ContextTooLong, "invalid_request_error"),
            (ErrorCode::Unauthenticated, "authentication_error"),
            (ErrorCode::Forbidden, "permission_error"),
            (ErrorCode::ModelNotFound, "not_found_error"),
            (ErrorCode::BodyTooLarge, "request_too_large"),
            (ErrorCode::NoWorker, "overloaded_error"),
            (ErrorCode::DeadlineExceeded, "timeout_error"),
            (ErrorCode::Internal, "api_error"),
        ] {
            assert_eq!(kind(code), word, "{code:?}");
        }
    }
}
