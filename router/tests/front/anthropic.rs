//! Anthropic's shapes: messages folded and streamed, counts, refusals.

use http::Method;
use penstock_proto::ErrorCode;
use serde_json::{Value, json};

use crate::sse::{events, names};
use crate::support::{Answer, CONTEXT, Front, MODEL};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

fn message(change: Value) -> Value {
    let mut body = json!({"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in change.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// What a refusal says: status, type, code, param; its shape is Anthropic's whatever it says.
async fn refusal(answer: Answer) -> (u16, String, String, Option<String>) {
    let (status, id) = (answer.status, answer.header("request-id").to_owned());
    assert_eq!(answer.header("x-penstock-request-id"), id);
    let body = answer.json().await;
    assert_eq!((&body["type"], &body["request_id"]), (&json!("error"), &json!(id)), "{body}");
    let error = &body["error"];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    let word = |name: &str| error[name].as_str().unwrap().to_owned();
    (status, word("type"), word("code"), error["param"].as_str().map(str::to_owned))
}

#[tokio::test]
async fn a_message_is_folded_from_what_it_streams() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        for _ in 0..2 {
            let mut call = worker.call().await;
            assert_eq!(call.prompt(), "system:be kind;user:hi;>");
            call.say("Par").await;
            call.say("is.").await;
            call.finish().await;
        }
    };
    let ask = async {
        let folded = front.post(MESSAGES, message(json!({"system": "be kind"}))).await;
        assert_eq!((folded.status, folded.header("content-type")), (200, "application/json"));
        assert!(!folded.header("request-id").is_empty());
        let streamed = front.post(MESSAGES, message(json!({"system": "be kind", "stream": true}))).await;
        assert_eq!((streamed.status, streamed.header("content-type")), (200, "text/event-stream; charset=utf-8"));
        (folded.json().await, events(streamed).await)
    };
    let ((), (folded, events)) = tokio::join!(speak, ask);

    let prompt = "system:be kind;user:hi;>".len();
    assert!(folded["id"].as_str().unwrap().starts_with("msg_"));
    let expected = json!({
        "id": folded["id"], "type": "message", "role": "assistant", "model": MODEL,
        "content": [{"type": "text", "text": "Paris."}], "stop_reason": "end_turn", "stop_sequence": null,
        "usage": {"input_tokens": prompt - 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 1, "output_tokens": 6},
    });
    assert_eq!(folded, expected);

    let expected = [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(names(&events), expected);
    let start = &events[0].1["message"];
    assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &Value::Null));
    assert_eq!(start["usage"]["input_tokens"], prompt);
    assert_eq!(events[2].1["content_block"], json!({"type": "text", "text": ""}));
    let text: String = events.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
    assert_eq!(text, "Paris.");
    let end = &events[events.len() - 2].1;
    assert_eq!(end["delta"], json!({"stop_reason": "end_turn", "stop_sequence": null}));
    assert_eq!(end["usage"], folded["usage"]);
}

#[tokio::test]
async fn a_stop_sequence_is_named_folded_and_streamed() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        for _ in 0..2 {
            let mut call = worker.call().await;
            call.say("one EN").await;
            call.say("D").await;
            call.dropped().await;
        }
    };
    let ask = async {
        let body = json!({"stop_sequences": ["never", "END"]});
        let folded = front.post(MESSAGES, message(body.clone())).await.json().await;
        let streamed = front.post(MESSAGES, message(json!({"stop_sequences": ["END"], "stream": true}))).await;
        (folded, events(streamed).await)
    };
    let ((), (folded, events)) = tokio::join!(speak, ask);
    assert_eq!(folded["content"], json!([{"type": "text", "text": "one "}]));
    assert_eq!((&folded["stop_reason"], &folded["stop_sequence"]), (&json!("stop_sequence"), &json!("END")));
    let (_, end) = events.iter().find(|(name, _)| name == "message_delta").unwrap();
    assert_eq!(end["delta"], json!({"stop_reason": "stop_sequence", "stop_sequence": "END"}));
}

#[tokio::test]
async fn a_conversations_results_become_turns_and_fields_reach_the_worker() {
    let (front, mut worker) = Front::with_worker().await;
    let body = message(json!({
        "temperature": 0.5, "top_k": 7, "top_p": 0.9, "metadata": {"user_id": "u"}, "mood": 1,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
    }));
    let speak = async {
        let mut call = worker.call().await;
        call.say("x").await;
        let request = (call.prompt(), call.request.clone());
        call.finish().await;
        request
    };
    let headers = [("x-api-key", "none"), ("anthropic-version", "2023-06-01"), ("x-penstock-class", "restricted")];
    let mut client = front.client().await;
    let (answer, (prompt, request)) = tokio::join!(client.ask(Method::POST, MESSAGES, &headers, body), speak);
    assert_eq!((answer.status, answer.header("x-penstock-ignored")), (200, "mood"));
    assert_eq!((answer.header("x-penstock-class"), answer.header("x-penstock-target")), ("restricted", "local/parrot"));
    assert_eq!(prompt, "user:a;assistant:b;user:c;>");
    let sampling = request.sampling.unwrap();
    assert_eq!((sampling.max_tokens, sampling.temperature, sampling.top_k), (50, 0.5, 7));
}

#[tokio::test]
async fn a_count_is_the_prompts_tokens() {
    let (front, mut worker) = Front::with_worker().await;
    let body = json!({"model": MODEL, "system": "s", "messages": [{"role": "user", "content": "hi"}]});
    let count = front.post(COUNT, body).await.json().await;
    assert_eq!(count, json!({"input_tokens": "system:s;user:hi;>".len()}));
    assert!(!worker.was_called());
}

#[tokio::test]
async fn every_refusal_of_the_face_has_its_shape() {
    let (front, mut worker) = Front::with(|config| config.limits.body_bytes = 4000, Default::default()).await;
    let invalid = |param: &str| {
        let code = ErrorCode::InvalidRequest.as_str().to_owned();
        (400, "invalid_request_error".to_owned(), code, Some(param.to_owned()))
    };
    for (body, param) in [
        (json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}), "max_tokens"),
        (message(json!({"max_tokens": CONTEXT + 1})), "max_tokens"),
        (message(json!({"temperature": 1.5})), "temperature"),
        (message(json!({"messages": []})), "messages"),
        (message(json!({"thinking": {"type": "enabled", "budget_tokens": 1024}})), "thinking"),
        (
            message(json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]})),
            "messages[0].content[0].type",
        ),
        (
            message(json!({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]})),
            "messages[0].content[0].tool_use_id",
        ),
        (message(json!({"tool_choice": {"type": "any"}})), "tool_choice"),
    ] {
        assert_eq!(refusal(front.post(MESSAGES, body).await).await, invalid(param));
    }
    let mut client = front.client().await;
    let ask =
        async |client: &mut crate::support::Client, method, path: &str, headers: &[(&str, &str)], body: String| {
            let (status, kind, code, _) = refusal(client.ask(method, path, headers, body).await).await;
            (status, kind, code)
        };
    let said = |status: u16, kind: &str, code: &str| (status, kind.to_owned(), code.to_owned());
    let unknown = message(json!({"model": "owl"})).to_string();
    assert_eq!(
        ask(&mut client, Method::POST, MESSAGES, &[], unknown).await,
        said(404, "not_found_error", "caller_model_not_found")
    );
    for (method, path) in [(Method::GET, MESSAGES), (Method::POST, "/v1/messages/batches")] {
        let refused = ask(&mut client, method, path, &[], String::new()).await;
        assert_eq!(refused, said(404, "not_found_error", "caller_not_found"));
    }
    let foreign = ask(&mut client, Method::POST, MESSAGES, &[("host", "evil.example")], String::new()).await;
    assert_eq!(foreign, said(403, "permission_error", "caller_forbidden"));
    let large = ask(&mut client, Method::POST, COUNT, &[], " ".repeat(5000)).await;
    assert_eq!(large, said(413, "request_too_large", "caller_body_too_large"));
    assert!(!worker.was_called());
}

#[tokio::test]
async fn a_failure_amid_the_answer_is_an_event_and_the_last() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        let mut call = worker.call().await;
        call.say("one").await;
        call
    };
    let (mut answer, call) = tokio::join!(front.post(MESSAGES, message(json!({"stream": true}))), speak);
    let mut seen = Vec::new();
    while !seen.iter().any(|event: &String| event.contains("one")) {
        seen.push(answer.event().await.unwrap());
    }
    call.fail(ErrorCode::Internal.status("broken", None)).await;
    let last = events(answer).await;
    assert_eq!(names(&last), ["error"]);
    assert_eq!(last[0].1["error"]["code"], "internal_error");
    assert_eq!(last[0].1["error"]["type"], "api_error");
    front.metric(r#"penstock_requests_total{code="internal_error",route="messages",target="local/parrot",tenant="default"} 1"#).await;
}
