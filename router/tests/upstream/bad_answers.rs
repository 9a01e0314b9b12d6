//! Upstreams that refuse, lie, break off, or never end.

use std::time::Duration;

use penstock_proto::ErrorCode;
use penstock_router::request::Failure;
use penstock_router::upstream::Protocol;
use serde_json::json;

use crate::support::{BIG, Call, Fake, KEY, MAX_TOKENS, OPENAI, Read, hi, read, target, target_with};

const SSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
const TOKEN: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"so\"}}]}\n\n";

/// What a request ends with where the upstream does this: before the first piece, or after it.
async fn end(protocol: Protocol, act: impl AsyncFnOnce(Call)) -> Result<Read, Failure> {
    let mut fake = Fake::start().await;
    let target = target(fake.address, protocol);
    let request = hi();
    let asked = async {
        match target.generate(&BIG, &request, MAX_TOKENS).await {
            Ok(mut answer) => Ok(read(&mut answer).await),
            Err(failure) => Err(failure),
        }
    };
    let (end, ()) = tokio::join!(asked, async { act(fake.call().await).await });
    assert!(fake.is_quiet(), "it is not called again");
    end
}

/// Sends these bytes and closes the connection.
async fn says(bytes: &str) -> Failure {
    end(OPENAI, async |mut call| assert!(call.write(bytes).await)).await.unwrap_err()
}

#[tokio::test]
async fn a_refusal_is_told_with_the_upstreams_words_but_without_the_key() {
    let refuse = async |status: &str, message: &str| {
        let body = json!({"error": {"message": message, "type": "x", "code": null}}).to_string();
        end(OPENAI, async |call| call.answer(status, "content-type: application/json\r\n", &body).await)
            .await
            .unwrap_err()
    };
    let bad = refuse("400 Bad Request", &format!("no field x;\nnot with {KEY}")).await;
    assert_eq!(bad.code, ErrorCode::ProviderRejected);
    assert_eq!(bad.message, "upstream acme answered with 400 Bad Request: no field x; not with …");
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let failure = refuse(status, "wrong key sk-can…").await;
        assert_eq!(failure.code, ErrorCode::ProviderUnauthenticated);
        assert!(failure.message.contains("acme") && !failure.message.contains("sk-"), "{failure}");
    }
    assert_eq!(refuse("404 Not Found", "no model big").await.code, ErrorCode::ProviderModelNotFound);
    assert_eq!(refuse("500 Internal Server Error", "oops").await.code, ErrorCode::ProviderUnavailable);
    assert_eq!(refuse("504 Gateway Timeout", "slow").await.code, ErrorCode::ProviderTimeout);
    let limited = "429 Too Many Requests\r\nretry-after: 3600";
    let failure = refuse(limited, "slow down").await;
    assert_eq!((failure.code, failure.retry_after), (ErrorCode::ProviderRateLimited, Some(3600)));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Fake::start().await;
    let to = format!("location: http://{}/v1/chat/completions\r\n", other.address);
    let failure = end(OPENAI, async |call| call.answer("307 Temporary Redirect", &to, "").await).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::ProviderInvalidAnswer);
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn what_is_no_answer_is_called_so() {
    let whole = |kind: &str, body: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let cases = [
        whole("text/html", "<html>"),
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned(),
        whole("application/json", "nonsense"),
        whole("application/json", "{}"),
        whole("application/json", "[1]"),
        whole("application/json\r\ncontent-encoding: gzip", "{}"),
        format!("{SSE}data: nonsense\n\n"),
        format!("{SSE}data: [DONE]\n\n"),
        format!("{SSE}data: {{\"choices\":[{{\"index\":1,\"delta\":{{}}}}]}}\n\n"),
        format!("{SSE}data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"odd\"}}]}}\n\n"),
        format!("{SSE}data: {{\"choices\":[{{\"delta\":{{\"tool_calls\":[{{\"index\":0}}]}}}}]}}\n\n"),
        format!("{SSE}data: \u{1}\u{2}\n\n"),
        format!("{SSE}data: {}\n\n", "[".repeat(100_000)),
    ];
    for case in cases {
        let failure = says(&case).await;
        assert_eq!(failure.code, ErrorCode::ProviderInvalidAnswer, "{failure} for {}", &case[..case.len().min(200)]);
        assert!(failure.message.starts_with("upstream acme sent what is no answer: "), "{failure}");
    }
    let mut bytes = SSE.as_bytes().to_vec();
    bytes.extend(b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\xff\"}}]}\n\n");
    let failure = end(OPENAI, async |mut call| assert!(call.write(bytes).await)).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::ProviderInvalidAnswer);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_lost_wherever_it_does() {
    let half = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"choices\":[{\"mess";
    let cut = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 17\r\n\r\n{\"choices\":[{\"mes";
    for case in [
        half,
        cut,
        SSE,
        "HTTP/1.1 200 OK\r\ncontent-ty",
        &SSE.replace("event-stream", "event-stream\r\ncontent-length: 9"),
    ] {
        assert_eq!(says(case).await.code, ErrorCode::ProviderLost, "{case}");
    }
    for rest in ["", "data: {\"choices\":[{\"ind", "data: {}\n\n", "data: {}"] {
        let bytes = format!("{SSE}{TOKEN}{rest}");
        let read = end(OPENAI, async |mut call| assert!(call.write(&bytes).await)).await.unwrap();
        assert_eq!((read.text.as_str(), read.end.unwrap_err().code), ("so", ErrorCode::ProviderLost), "{rest}");
    }
}

#[tokio::test]
async fn an_error_in_the_middle_ends_the_answer_with_the_upstreams_words() {
    let error = |kind: &str| json!({"error": {"type": kind, "message": format!("it is {KEY}")}}).to_string();
    let cases = [
        ("server_error", ErrorCode::ProviderUnavailable),
        ("rate_limit_exceeded", ErrorCode::ProviderRateLimited),
        ("invalid_request_error", ErrorCode::ProviderRejected),
    ];
    for (kind, code) in cases {
        let bytes = format!("{SSE}{TOKEN}data: {}\n\n", error(kind));
        let read = end(OPENAI, async |mut call| assert!(call.write(&bytes).await)).await.unwrap();
        let failure = read.end.unwrap_err();
        assert_eq!((failure.code, failure.message.as_str()), (code, "upstream acme reported an error: it is …"));
    }
    let bytes =
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"busy\"}}\n\n";
    let busy = end(Protocol::Anthropic, async |mut call| assert!(call.write(format!("{SSE}{bytes}")).await)).await;
    assert_eq!(busy.unwrap_err().code, ErrorCode::ProviderUnavailable);
    let filtered =
        format!("{SSE}{TOKEN}data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"content_filter\"}}]}}\n\n");
    let read = end(OPENAI, async |mut call| assert!(call.write(&filtered).await)).await.unwrap();
    assert_eq!(read.end.unwrap_err().code, ErrorCode::ProviderFiltered);
}

/// Sends a beginning, and then more of the same until nobody takes it.
async fn endless(begin: &str, more: &str) -> Failure {
    let more = more.repeat((64 << 10) / more.len());
    let babble = async |mut call: Call| {
        assert!(call.write(begin).await);
        while call.write(&more).await {}
    };
    end(OPENAI, babble).await.unwrap_err()
}

#[tokio::test]
async fn what_never_ends_is_cut_off() {
    let head = endless("HTTP/1.1 200 OK\r\n", "x-more: 0123456789\r\n").await;
    assert_eq!(head.code, ErrorCode::ProviderLost);
    let line = endless("HTTP/1.1 200 OK\r\nx-more: ", "x").await;
    assert_eq!(line.code, ErrorCode::ProviderLost);
    let event = endless(&format!("{SSE}data: "), "x").await;
    assert_eq!(
        (event.code, event.message.as_str()),
        (ErrorCode::ProviderInvalidAnswer, "upstream acme sent what is no answer: an event is too long")
    );
    let lines = endless(SSE, "data: x\n").await;
    assert_eq!(lines.message, event.message);
    let whole = endless("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n", " ").await;
    assert_eq!(
        (whole.code, whole.message.as_str()),
        (ErrorCode::ProviderInvalidAnswer, "upstream acme sent what is no answer: the answer is too long")
    );
    let refusal = endless("HTTP/1.1 400 Bad Request\r\n\r\n", " ").await;
    assert_eq!(refusal.code, ErrorCode::ProviderRejected);
}

#[tokio::test]
async fn headers_that_speak_for_penstock_say_nothing() {
    let forged =
        "x-penstock-class: public\r\nx-penstock-target: local/x@v1\r\nx-penstock-request-id: 1\r\nset-cookie: a=b\r\n";
    let bytes = SSE.replacen("content-type", &format!("{forged}content-type"), 1)
        + TOKEN
        + "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    let mut fake = Fake::start().await;
    let target = target(fake.address, OPENAI);
    let request = hi();
    for _ in 0..2 {
        let (answer, call) = tokio::join!(target.generate(&BIG, &request, MAX_TOKENS), async {
            let mut call = fake.call().await;
            assert!(call.write(&bytes).await);
            call.head
        });
        let read = read(&mut answer.unwrap()).await;
        assert!(read.end.is_ok() && read.text == "so");
        assert!(!call.contains("cookie") && !call.contains("x-penstock"), "{call}");
    }
}

#[tokio::test]
async fn silence_is_borne_for_so_long() {
    let mut fake = Fake::start().await;
    let short = Duration::from_millis(100);
    let first = target_with(fake.address, OPENAI, |config| config.timeouts.first_byte = short);
    let idle = target_with(fake.address, OPENAI, |config| config.timeouts.idle = short);
    let request = hi();
    for begin in ["", SSE] {
        let (answer, _call) = tokio::join!(first.generate(&BIG, &request, MAX_TOKENS), async {
            let mut call = fake.call().await;
            call.write(begin).await;
            call
        });
        let failure = answer.err().unwrap();
        assert_eq!((failure.code, failure.code.http()), (ErrorCode::ProviderTimeout, 504), "after {begin:?}");
    }
    let (answer, _call) = tokio::join!(idle.generate(&BIG, &request, MAX_TOKENS), async {
        let mut call = fake.call().await;
        call.write(format!("{SSE}{TOKEN}")).await;
        call
    });
    assert_eq!(read(&mut answer.unwrap()).await.end.unwrap_err().code, ErrorCode::ProviderTimeout);
    let mut hurried = hi();
    hurried.deadline = tokio::time::Instant::now() + short;
    let (answer, _call) = tokio::join!(idle.generate(&BIG, &hurried, MAX_TOKENS), fake.call());
    assert_eq!(answer.err().unwrap().code, ErrorCode::DeadlineExceeded);
}
