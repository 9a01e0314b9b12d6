//! OpenAI's shapes, streamed and folded.

use http::Method;
use serde_json::{Value, json};

use crate::support::{CONTEXT, Front, MODEL, Traits, chat, completion, ids};

/// What a chat stream says.
fn said(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn a_chat_is_folded_from_what_it_streams() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        for _ in 0..2 {
            let mut call = worker.call().await;
            assert_eq!(call.prompt(), "user:hi;>");
            call.say("Par").await;
            call.say("is.").await;
            call.finish().await;
        }
    };
    let ask = async {
        let folded = front.post("/v1/chat/completions", chat(json!({}))).await;
        assert_eq!((folded.status, folded.header("content-type")), (200, "application/json"));
        let folded = folded.json().await;
        let options = json!({"stream": true, "stream_options": {"include_usage": true}});
        let streamed = front.post("/v1/chat/completions", chat(options)).await;
        assert_eq!((streamed.status, streamed.header("content-type")), (200, "text/event-stream; charset=utf-8"));
        (folded, streamed.chunks().await)
    };
    let ((), (folded, chunks)) = tokio::join!(speak, ask);

    assert_eq!(folded["object"], "chat.completion");
    assert_eq!(folded["model"], MODEL);
    assert!(folded["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(folded["created"].as_u64().unwrap() > 1_700_000_000);
    let message = json!({"role": "assistant", "content": "Paris.", "refusal": null});
    assert_eq!(folded["choices"], json!([{"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"}]));
    let usage = json!({"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15, "prompt_tokens_details": {"cached_tokens": 1}});
    assert_eq!(folded["usage"], usage);

    assert_eq!(said(&chunks), "Paris.");
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": "", "refusal": null}));
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &usage));
    assert!(rest.iter().all(|chunk| chunk["usage"].is_null() && chunk.as_object().unwrap().contains_key("usage")));
    let reasons: Vec<&Value> = rest.iter().map(|chunk| &chunk["choices"][0]["finish_reason"]).collect();
    assert_eq!(reasons.last(), Some(&&json!("stop")));
    assert!(reasons[..reasons.len() - 1].iter().all(|reason| reason.is_null()));
    assert_eq!(rest.last().unwrap()["choices"][0]["delta"], json!({}));
    for chunk in &chunks {
        assert_eq!((&chunk["id"], &chunk["object"]), (&chunks[0]["id"], &json!("chat.completion.chunk")));
    }
}

#[tokio::test]
async fn a_stream_that_did_not_ask_for_usage_has_none() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        let mut call = worker.call().await;
        call.say("a").await;
        call.finish().await;
    };
    let ask = async { front.post("/v1/chat/completions", chat(json!({"stream": true}))).await.chunks().await };
    let ((), chunks) = tokio::join!(speak, ask);
    assert!(chunks.iter().all(|chunk| !chunk.as_object().unwrap().contains_key("usage")));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn pieces_arrive_while_the_worker_still_speaks() {
    let (front, mut worker) = Front::with_worker().await;
    let (mut answer, mut call) =
        tokio::join!(front.post("/v1/completions", completion(json!({"stream": true}))), async {
            let mut call = worker.call().await;
            call.say("one").await;
            call
        });
    assert_eq!(answer.chunk().await["choices"][0]["text"], "one");
    call.say("two").await;
    assert_eq!(answer.chunk().await["choices"][0]["text"], "two");
    call.finish().await;
    let end = answer.chunk().await;
    assert_eq!(end["choices"], json!([{"index": 0, "text": "", "logprobs": null, "finish_reason": "stop"}]));
    assert_eq!(end["object"], "text_completion");
    assert!(end["id"].as_str().unwrap().starts_with("cmpl-"));
}

#[tokio::test]
async fn several_prompts_are_several_choices_that_mix() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        let mut calls = [worker.call().await, worker.call().await, worker.call().await];
        calls.sort_by_key(|call| call.prompt());
        assert_ne!(calls[0].request.request_id, calls[1].request.request_id);
        for round in ["-", "+"] {
            for call in &mut calls {
                let word = call.prompt() + round;
                call.say(&word).await;
            }
        }
        for call in calls {
            call.finish().await;
        }
    };
    let body = completion(json!({"prompt": [[100], ids("b"), ids("c")]}));
    let ((), answer) = tokio::join!(speak, async { front.post("/v1/completions", body).await.json().await });
    let texts: Vec<&str> =
        answer["choices"].as_array().unwrap().iter().map(|it| it["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a-a+", "b-b+", "c-c+"]);
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    assert_eq!(answer["usage"]["completion_tokens"], 12);
}

#[tokio::test]
async fn characters_are_never_cut() {
    let (front, mut worker) = Front::with_worker().await;
    let text = "日本語 🦜 é";
    let speak = async {
        let mut call = worker.call().await;
        for id in ids(text) {
            call.tokens(vec![id]).await;
        }
        call.finish().await;
    };
    let ask = async { front.post("/v1/chat/completions", chat(json!({"stream": true}))).await.chunks().await };
    let ((), chunks) = tokio::join!(speak, ask);
    assert_eq!(said(&chunks), text);
}

#[tokio::test]
async fn a_stop_text_ends_the_answer_and_the_workers_stream() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        let mut call = worker.call().await;
        call.say("one EN").await;
        call.say("D").await;
        call.dropped().await;
    };
    let ask = async { front.post("/v1/completions", completion(json!({"stop": ["END", "never"]}))).await.json().await };
    let ((), answer) = tokio::join!(speak, ask);
    assert_eq!(answer["choices"][0]["text"], "one ");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 7);
    assert_eq!(answer["usage"]["prompt_tokens"], 2);
}

#[tokio::test]
async fn the_worker_is_told_everything_once() {
    let (front, mut worker) = Front::with_worker().await;
    let headers = [
        ("x-penstock-class", "confidential"),
        ("x-penstock-priority", "batch"),
        ("x-penstock-deadline-ms", "5000"),
        ("x-request-id", "mine-1"),
    ];
    let body = chat(
        json!({"top_p": 0.9, "seed": 7, "logit_bias": {"5": -1}, "min_tokens": 1, "stop_token_ids": [4], "mood": 1}),
    );
    let mut client = front.client().await;
    let speak = async {
        let mut call = worker.call().await;
        call.say("a").await;
        let request = call.request.clone();
        call.finish().await;
        request
    };
    let (answer, request) = tokio::join!(client.ask(Method::POST, "/v1/chat/completions", &headers, body), speak);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-request-id"), "mine-1");
    assert_eq!(answer.header("x-penstock-request-id"), request.request_id);
    assert_eq!(answer.header("x-penstock-target"), format!("local/{MODEL}"));
    assert_eq!(answer.header("x-penstock-class"), "confidential");
    assert_eq!(answer.header("x-penstock-ignored"), "mood");

    assert_eq!((request.class, request.priority, request.tenant.as_str()), (3, 2, "default"));
    assert_eq!(request.model_digest, "d1");
    let left = request.deadline_unix_ms as i128 - penstock_proto::time::unix_now().as_millis() as i128;
    assert!((1..=5000).contains(&left), "{left}");
    let sampling = request.sampling.unwrap();
    // The client's, then the model's own generation config's, then what changes nothing.
    assert_eq!((sampling.top_p, sampling.temperature, sampling.top_k), (0.9, 0.6, 20));
    assert_eq!((sampling.seed, sampling.repetition_penalty, sampling.min_p), (7, 1.0, 0.0));
    assert_eq!(sampling.max_tokens, CONTEXT - request.prompt_ids.len() as u32);
    assert_eq!((sampling.logit_bias[&5], sampling.min_tokens, &sampling.stop_token_ids[..]), (-1.0, 1, &[4][..]));
}

#[tokio::test]
async fn models_are_listed_and_named() {
    let front = Front::start(|_| {}).await;
    assert_eq!(front.get("/v1/models").await.json().await, json!({"object": "list", "data": []}));
    assert_eq!(front.get("/health").await.status, 503);
    let (front, _worker) = Front::with_worker().await;
    let list = front.get("/v1/models").await.json().await;
    assert_eq!((&list["data"][0]["id"], &list["data"][0]["object"]), (&json!(MODEL), &json!("model")));
    let one = front.get("/v1/models/parr%6ft").await.json().await;
    assert_eq!(one, list["data"][0]);
    assert_eq!(front.get("/v1/models/owl").await.status, 404);
    assert_eq!(front.get("/health").await.status, 200);
}

#[tokio::test]
async fn text_becomes_tokens_and_comes_back() {
    let (front, _worker) = Front::with(|_| {}, Traits::default()).await;
    let tokens = front.post("/v1/tokenize", json!({"model": MODEL, "prompt": "hé"})).await.json().await;
    assert_eq!(tokens, json!({"count": 3, "max_model_len": CONTEXT, "tokens": ids("hé")}));
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "a"}], "add_generation_prompt": false});
    let tokens = front.post("/v1/tokenize", body).await.json().await;
    assert_eq!(tokens["tokens"], json!(ids("user:a;")));
    let text = front.post("/v1/detokenize", json!({"model": MODEL, "tokens": ids("hé")})).await.json().await;
    assert_eq!(text, json!({"prompt": "hé"}));
    let refused = front.post("/v1/detokenize", json!({"model": MODEL, "tokens": [9999]})).await.json().await;
    assert_eq!(refused["error"]["param"], "tokens");
}

#[tokio::test]
async fn requests_are_counted_by_how_they_ended() {
    let (front, mut worker) = Front::with_worker().await;
    let speak = async {
        let mut call = worker.call().await;
        call.say("abc").await;
        call.finish().await;
    };
    let ask = async { front.post("/v1/chat/completions", chat(json!({}))).await.text().await };
    tokio::join!(speak, ask);
    front.post("/v1/chat/completions", chat(json!({"model": "made-up"}))).await.text().await;
    front
        .metric(
            r#"penstock_requests_total{code="ok",route="chat_completions",target="local/parrot",tenant="default"} 1"#,
        )
        .await;
    front.metric(r#"penstock_requests_total{code="caller_model_not_found",route="chat_completions",target="none",tenant="default"} 1"#).await;
    front
        .metric(r#"penstock_tokens_total{kind="completion",model="parrot",target="local/parrot",tenant="default"} 3"#)
        .await;
    front.metric(r#"penstock_members{state="ready"} 1"#).await;
    front.metric("penstock_requests_in_flight 0").await;
}
