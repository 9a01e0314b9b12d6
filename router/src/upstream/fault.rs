//! What can go wrong with an upstream, and the one place that decides what it means: the code that the client gets,
//! whether the call is tried again, what the breaker learns.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use penstock_proto::ErrorCode;
use serde::Deserialize;

use super::breaker::Outcome;
use super::key::{Key, KeyError};
use crate::request::Failure;

/// The pause before the second call of an upstream that could not be reached; doubled for the third.
const PAUSE: Duration = Duration::from_millis(50);
/// Characters of an upstream's message that a client is shown.
const MESSAGE_LIMIT: usize = 300;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("could not be reached")]
    Unreachable,
    #[error("closed the connection before its answer was complete")]
    Lost,
    #[error("was silent for too long")]
    Silent,
    #[error("did not answer before the deadline")]
    Deadline,
    #[error("sent what is no answer: {0}")]
    Invalid(&'static str),
    #[error("withheld the answer")]
    Filtered,
    /// An answer with another status than 200.
    #[error("answered with {status}{}", colon(message))]
    Refused { status: StatusCode, retry_after: Option<u32>, message: Option<String> },
    /// An error in the middle of an answer that had begun well.
    #[error("reported an error{}", colon(message))]
    Reported { kind: Report, message: Option<String> },
}

/// What an error in the middle of an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    RateLimited,
    Rejected,
    Unavailable,
}

/// The error that both protocols describe in the same words: `{"error": {"type", "message"}}`.
#[derive(Debug, Deserialize)]
pub(super) struct ErrorBody {
    #[serde(rename = "type")]
    kind: Option<String>,
    message: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    error: ErrorBody,
}

fn colon(message: &Option<String>) -> String {
    message.as_ref().map(|message| format!(": {message}")).unwrap_or_default()
}

impl Fault {
    /// What a status other than 200 and its body say. `body` may be cut off.
    pub(super) fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8], key: Option<&Key>) -> Self {
        // What is said of a key may show a part of it.
        let about_key = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let refusal: Option<Refusal> = serde_json::from_slice(body).ok().filter(|_| !about_key);
        let message = refusal.and_then(|refusal| refusal.error.message).map(|message| presentable(&message, key));
        let retry_after = headers.get(http::header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        Self::Refused { status, retry_after, message }
    }

    /// What an error in the middle of an answer says.
    pub(super) fn reported(error: ErrorBody, key: Option<&Key>) -> Self {
        let kind = match error.kind.as_deref() {
            Some("rate_limit_error" | "rate_limit_exceeded" | "insufficient_quota") => Report::RateLimited,
            Some("invalid_request_error") => Report::Rejected,
            Some(_) | None => Report::Unavailable,
        };
        Self::Reported { kind, message: error.message.map(|message| presentable(&message, key)) }
    }

    /// What a client is told.
    pub(super) fn failure(&self, upstream: &str) -> Failure {
        let (code, retry_after) = match self {
            Self::Key(_) => (ErrorCode::ProviderUnauthenticated, None),
            Self::Unreachable => (ErrorCode::ProviderUnavailable, None),
            Self::Lost => (ErrorCode::ProviderLost, None),
            Self::Silent => (ErrorCode::ProviderTimeout, None),
            Self::Deadline => (ErrorCode::DeadlineExceeded, None),
            Self::Invalid(_) => (ErrorCode::ProviderInvalidAnswer, None),
            Self::Filtered => (ErrorCode::ProviderFiltered, None),
            Self::Refused { status, retry_after, .. } => (code(*status), *retry_after),
            Self::Reported { kind, .. } => match kind {
                Report::RateLimited => (ErrorCode::ProviderRateLimited, None),
                Report::Rejected => (ErrorCode::ProviderRejected, None),
                Report::Unavailable => (ErrorCode::ProviderUnavailable, None),
            },
        };
        let message = match self {
            // Where keys lie is for operators to know.
            Self::Key(_) => format!("the key of upstream {upstream} cannot be read"),
            _ if code == ErrorCode::ProviderUnauthenticated => {
                format!("upstream {upstream} does not accept the key that the catalogue names for it")
            }
            _ => format!("upstream {upstream} {self}"),
        };
        Failure { retry_after, ..Failure::new(code, message) }
    }

    /// How long to wait before the same call is made again; None where it must not be. An answer that has begun is paid
    /// for, and a request that may have arrived is too.
    pub(super) fn again(&self, attempt: u32) -> Option<Duration> {
        match self {
            Self::Unreachable => Some(PAUSE * 2_u32.saturating_pow(attempt - 1)),
            Self::Refused { status, retry_after: Some(seconds), .. } => match *status {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                    Some(Duration::from_secs(u64::from(*seconds)))
                }
                _ => None,
            },
            Self::Refused { retry_after: None, .. }
            | Self::Key(_)
            | Self::Lost
            | Self::Silent
            | Self::Deadline
            | Self::Invalid(_)
            | Self::Filtered
            | Self::Reported { .. } => None,
        }
    }

    /// What it says of the upstream's health.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Unreachable | Self::Lost | Self::Silent | Self::Invalid(_) => Outcome::Failure,
            // A client with a short deadline must not close an upstream to everybody else.
            Self::Key(_) | Self::Deadline => Outcome::Neutral,
            Self::Filtered => Outcome::Success,
            Self::Refused { status, .. } if status.is_server_error() => Outcome::Failure,
            Self::Refused { status: StatusCode::TOO_MANY_REQUESTS, .. } => Outcome::Neutral,
            Self::Refused { .. } => Outcome::Success,
            Self::Reported { kind, .. } => match kind {
                Report::RateLimited => Outcome::Neutral,
                Report::Rejected => Outcome::Success,
                Report::Unavailable => Outcome::Failure,
            },
        }
    }
}

fn code(status: StatusCode) -> ErrorCode {
    match status.as_u16() {
        401 | 403 => ErrorCode::ProviderUnauthenticated,
        404 => ErrorCode::ProviderModelNotFound,
        429 => ErrorCode::ProviderRateLimited,
        408 | 504 | 524 => ErrorCode::ProviderTimeout,
        400..=499 => ErrorCode::ProviderRejected,
        500..=599 => ErrorCode::ProviderUnavailable,
        // A redirect, which is never followed, or a success that holds nothing.
        _ => ErrorCode::ProviderInvalidAnswer,
    }
}

/// An upstream's words as a client may see them: one line, not endless, without the key.
fn presentable(message: &str, key: Option<&Key>) -> String {
    let message = match key {
        Some(key) => message.replace(key.expose(), "…"),
        None => message.to_owned(),
    };
    let line = message.chars().map(|char| if char.is_control() { ' ' } else { char });
    let mut short: String = line.clone().take(MESSAGE_LIMIT).collect();
    if line.count() > MESSAGE_LIMIT {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Fault {
        let header = |(name, value): &(&'static str, &'static str)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
        };
        let headers = headers.iter().map(header).collect();
        Fault::refused(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes(), None)
    }

    #[test]
    fn statuses_have_codes_retries_and_outcomes() {
        let after = &[("retry-after", "3")];
        let cases = [
            (400, ErrorCode::ProviderRejected, None, Outcome::Success),
            (401, ErrorCode::ProviderUnauthenticated, None, Outcome::Success),
            (403, ErrorCode::ProviderUnauthenticated, None, Outcome::Success),
            (404, ErrorCode::ProviderModelNotFound, None, Outcome::Success),
            (408, ErrorCode::ProviderTimeout, None, Outcome::Success),
            (429, ErrorCode::ProviderRateLimited, Some(3), Outcome::Neutral),
            (500, ErrorCode::ProviderUnavailable, None, Outcome::Failure),
            (503, ErrorCode::ProviderUnavailable, Some(3), Outcome::Failure),
            (504, ErrorCode::ProviderTimeout, None, Outcome::Failure),
            (529, ErrorCode::ProviderUnavailable, None, Outcome::Failure),
            (302, ErrorCode::ProviderInvalidAnswer, None, Outcome::Success),
            (204, ErrorCode::ProviderInvalidAnswer, None, Outcome::Success),
        ];
        for (status, code, again, outcome) in cases {
            let fault = refused(status, after, "");
            let failure = fault.failure("acme");
            assert_eq!((failure.code, failure.retry_after), (code, Some(3)), "{status}");
            assert_eq!(fault.again(1), again.map(Duration::from_secs), "{status}");
            assert_eq!(fault.outcome(), outcome, "{status}");
            assert!(failure.message.contains("acme"), "{}", failure.message);
        }
        assert_eq!(refused(429, &[], "").again(1), None);
        assert_eq!(refused(429, &[("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")], "").again(1), None);
    }

    #[test]
    fn an_upstreams_words_are_shown_on_one_short_line_and_none_about_the_key() {
        let body =
            serde_json::json!({"error": {"message": format!("no\r\nsuch\u{7}{}", "x".repeat(1000))}}).to_string();
        let message = refused(400, &[], &body).failure("acme").message;
        assert!(message.starts_with("upstream acme answered with 400 Bad Request: no  such x"), "{message}");
        assert!(message.chars().count() < 400 && message.ends_with('…'));
        let told = refused(401, &[], r#"{"error":{"message":"wrong key sk-…1234"}}"#).failure("acme").message;
        assert_eq!(told, "upstream acme does not accept the key that the catalogue names for it");
        for garbage in ["", "<html>", "{\"error\":1}", "{\"error\":{\"message\":{}}}"] {
            assert_eq!(
                refused(500, &[], garbage).failure("acme").message,
                "upstream acme answered with 500 Internal Server Error"
            );
        }
    }
}
