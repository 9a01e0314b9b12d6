//! OpenAI's shape of a failure.

use bytes::Bytes;
use penstock_proto::{ErrorCode, Fault};
use serde::Serialize;

use crate::request::Failure;

#[derive(Serialize)]
struct Body<'a> {
    error: Error<'a>,
}

#[derive(Serialize)]
struct Error<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

/// The body of an error.
pub(in crate::api) fn render(failure: &Failure) -> Bytes {
    let error = Error {
        message: &failure.message,
        r#type: kind(failure.code),
        param: failure.param.as_deref(),
        code: failure.code.as_str(),
    };
    serde_json::to_vec(&Body { error }).expect("strings serialise").into()
}

/// OpenAI's word for whose fault it is.
fn kind(code: ErrorCode) -> &'static str {
    match (code.fault(), code.http()) {
        (Fault::Caller, 401) => "authentication_error",
        (Fault::Caller | Fault::Policy, 403) => "permission_error",
        (Fault::Policy, _) => "rate_limit_error",
        (Fault::Caller, _) => "invalid_request_error",
        (Fault::Capacity | Fault::Provider | Fault::Internal, _) => "server_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_openais_four_fields() {
        let body = render(&Failure::field("n", "n must be 1"));
        let expected = r#"{"error":{"message":"n must be 1","type":"invalid_request_error","param":"n","code":"caller_invalid_request"}}"#;
        assert_eq!(body, expected);
        let body = render(&Failure::new(ErrorCode::NoWorker, "nobody"));
        let expected =
            r#"{"error":{"message":"nobody","type":"server_error","param":null,"code":"capacity_no_worker"}}"#;
        assert_eq!(body, expected);
    }
}
