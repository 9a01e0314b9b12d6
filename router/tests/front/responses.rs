//! Responses' shapes: the object folded and streamed, refusals.

use http::Method;
use penstock_proto::ErrorCode;
use serde_json::{Value, json};

use crate::sse::{events, names};
use crate::support::{CONTEXT, Front, MODEL};

const RESPONSES: &str = "/v1/responses";

fn response(change: Value) -> Value {
    let mut body = json!({"model": MODEL, "input": "hi"});
    for (name, value) in change.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn a_response_is_folded_from_what_it_streams() {
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
        let body = json!({"instructions": "be kind", "metadata": {"a": "b"}, "mood": 1});
        let folded = front.post(RESPONSES, response(body)).await;
        assert_eq!((folded.status, folded.header("x-penstock-ignored")), (200, "mood"));
        let body = json!({"instructions": "be kind", "metadata": {"a": "b"}, "stream": true});
        (folded.json().await, events(front.post(RESPONSES, response(body)).await).await)
    };
    let ((), (folded, events)) = tokio::join!(speak, ask);

    let part = json!({"type": "output_text", "text": "Paris.", "annotations": [], "logprobs": []});
    let item = &folded["output"][0];
    let expected =
        json!([{"id": item["id"], "type": "message", "status": "completed", "role": "assistant", "content": [part]}]);
    assert_eq!(folded["output"], expected);
    assert!(folded["id"].as_str().unwrap().starts_with("resp_") && item["id"].as_str().unwrap().starts_with("msg_"));
    let prompt = "system:be kind;user:hi;>".len();
    let usage = json!({
        "input_tokens": prompt, "input_tokens_details": {"cached_tokens": 1},
        "output_tokens": 6, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": prompt + 6,
    });
    for (name, value) in [
        ("object", json!("response")),
        ("status", json!("completed")),
        ("model", json!(MODEL)),
        ("instructions", json!("be kind")),
        ("metadata", json!({"a": "b"})),
        ("store", json!(false)),
        ("error", Value::Null),
        ("incomplete_details", Value::Null),
        // The model's own; 1.0 where it has none.
        ("temperature", json!(0.6)),
        ("top_p", json!(1.0)),
        ("tool_choice", json!("auto")),
        ("text", json!({"format": {"type": "text"}, "verbosity": "medium"})),
        ("usage", usage),
    ] {
        assert_eq!(folded[name], value, "{name}");
    }

    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(names(&events), expected);
    for (number, (_, data)) in events.iter().enumerate() {
        assert_eq!(data["sequence_number"], number);
    }
    let deltas = events.iter().filter(|(name, _)| name == "response.output_text.delta");
    let text: String = deltas.map(|(_, data)| data["delta"].as_str().unwrap()).collect();
    assert_eq!(text, "Paris.");
    let created = &events[0].1["response"];
    assert_eq!(
        (&created["status"], &created["output"], &created["usage"]),
        (&json!("in_progress"), &json!([]), &Value::Null)
    );
    let (_, completed) = events.last().unwrap();
    let mut whole = completed["response"].clone();
    // What two answers can differ in.
    for name in ["id", "created_at", "completed_at", "output"] {
        whole[name] = folded[name].clone();
    }
    assert_eq!(whole, folded);
}

#[tokio::test]
async fn an_answer_that_its_limit_ended_is_incomplete() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        for _ in 0..2 {
            let mut call = worker.call().await;
            assert_eq!(call.request.sampling.as_ref().unwrap().max_tokens, 3);
            call.say("abc").await;
            let mut end = call.honest_end();
            end.reason = penstock_proto::worker::FinishReason::Length.into();
            call.send(3, Some(penstock_proto::worker::worker_generate_event::Event::Finished(end))).await;
        }
    };
    let ask = async {
        let folded = front.post(RESPONSES, response(json!({"max_output_tokens": 3}))).await.json().await;
        let body = response(json!({"max_output_tokens": 3, "stream": true}));
        (folded, events(front.post(RESPONSES, body).await).await)
    };
    let ((), (folded, events)) = tokio::join!(speak, ask);
    assert_eq!((&folded["status"], &folded["output"][0]["status"]), (&json!("incomplete"), &json!("incomplete")));
    assert_eq!(folded["incomplete_details"], json!({"reason": "max_output_tokens"}));
    let (name, data) = events.last().unwrap();
    assert_eq!((name.as_str(), &data["response"]["status"]), ("response.incomplete", &json!("incomplete")));
    assert_eq!(data["response"]["max_output_tokens"], 3);
}

#[tokio::test]
async fn items_become_turns() {
    let (front, mut worker) = Front::with_worker().await;
    let input = json!([
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"role": "user", "content": "c"},
    ]);
    let speak = async {
        let mut call = worker.call().await;
        call.say("x").await;
        let prompt = call.prompt();
        call.finish().await;
        prompt
    };
    let ask = async { front.post(RESPONSES, response(json!({"input": input}))).await };
    let (prompt, answer) = tokio::join!(speak, ask);
    assert_eq!((answer.status, prompt.as_str()), (200, "user:a;assistant:b;user:c;>"));
    assert_eq!(answer.header("x-penstock-ignored"), "");
}

#[tokio::test]
async fn what_needs_a_store_and_what_is_not_served_is_refused_by_name() {
    let (front, mut worker) = Front::with_worker().await;
    for (change, param) in [
        (json!({"store": true}), "store"),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"reasoning": {"effort": "high"}}), "reasoning"),
        (json!({"input": []}), "input"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}), "input[0].content[0].type"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
        (json!({"max_output_tokens": CONTEXT + 1}), "max_output_tokens"),
        (json!({"top_logprobs": 21}), "top_logprobs"),
    ] {
        let answer = front.post(RESPONSES, response(change)).await;
        let (status, body) = (answer.status, answer.json().await);
        assert_eq!((status, &body["error"]["param"]), (400, &json!(param)), "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(param), "{body}");
        assert_eq!(body["error"]["code"], "caller_invalid_request");
    }
    let gone = front.client().await.ask(Method::GET, "/v1/responses/resp_1", &[], "").await;
    assert_eq!((gone.status, &gone.json().await["error"]["code"]), (404, &json!("caller_not_found")));
    assert!(!worker.was_called());
}

#[tokio::test]
async fn a_failure_amid_the_answer_is_two_events_and_the_last_ones() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        let mut call = worker.call().await;
        call.say("one").await;
        call
    };
    let (mut answer, call) = tokio::join!(front.post(RESPONSES, response(json!({"stream": true}))), speak);
    let mut seen = Vec::new();
    while !seen.iter().any(|event: &String| event.contains("output_text.delta")) {
        seen.push(answer.event().await.unwrap());
    }
    call.fail(ErrorCode::Internal.status("broken", None)).await;
    let last = events(answer).await;
    assert_eq!(names(&last), ["error", "response.failed"]);
    assert_eq!(last[0].1["code"], "internal_error");
    assert_eq!(last[0].1["sequence_number"], seen.len());
    let failed = &last[1].1["response"];
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("internal_error")));
    assert_eq!(failed["output"][0]["content"][0]["text"], "one");
}
