//! Bad input: the contract's error with the field's name, and everything else untouched.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use http::Method;
use penstock_cluster::store::MemoryStore;
use penstock_router::{AdminKey, Cluster, Config, Error, Router, ServerError};
use serde_json::{Value, json};

use crate::support::{Answer, CONTEXT, Front, MODEL, chat, completion};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// What a refusal names: status, code, param.
async fn refusal(answer: Answer) -> (u16, String, Option<String>) {
    let (status, body) = (answer.status, answer.json().await);
    let error = &body["error"];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    assert_eq!(error["type"], if status == 403 { "permission_error" } else { "invalid_request_error" });
    (status, error["code"].as_str().unwrap().to_owned(), error["param"].as_str().map(str::to_owned))
}

#[tokio::test]
async fn every_bad_field_is_named() {
    let (front, mut worker) = Front::with_worker().await;
    let mut client = front.client().await;
    let message = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    for (path, body, param) in [
        (CHAT, chat(json!({"temperature": "hot"})), "temperature"),
        (CHAT, chat(json!({"temperature": -0.5})), "temperature"),
        (CHAT, chat(json!({"messages": []})), "messages"),
        (CHAT, chat(json!({"messages": "hi"})), "messages"),
        (CHAT, chat(json!({"messages": null})), "messages"),
        (CHAT, chat(json!({"messages": [{"role": "wizard", "content": "hi"}]})), "messages[0].role"),
        (CHAT, chat(message(json!(5))), "messages[0].content"),
        (CHAT, chat(message(json!([{"type": "image_url"}]))), "messages[0].content[0].type"),
        (CHAT, chat(json!({"max_tokens": 0})), "max_tokens"),
        (CHAT, chat(json!({"max_tokens": CONTEXT + 1})), "max_tokens"),
        (CHAT, chat(json!({"max_completion_tokens": CONTEXT + 1})), "max_completion_tokens"),
        (CHAT, chat(json!({"response_format": {"type": "xml"}})), "response_format.type"),
        (CHAT, chat(json!({"guided_regex": "a", "guided_choice": ["b"]})), "guided_choice"),
        (CHAT, chat(json!({"n": 17})), "n"),
        (CHAT, chat(json!({"n": 16, "max_tokens": 200})), "n"),
        (CHAT, chat(json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs"),
        (CHAT, chat(json!({"top_logprobs": 1})), "top_logprobs"),
        (CHAT, chat(json!({"tools": [{"type": "function"}]})), "tools[0].function"),
        (CHAT, chat(json!({"stream": "yes"})), "stream"),
        (CHAT, chat(json!({"stream_options": {"include_usage": true}})), "stream_options"),
        (CHAT, chat(json!({"logit_bias": {"9999": 1}})), "logit_bias"),
        (CHAT, chat(json!({"stop_token_ids": [9999]})), "stop_token_ids"),
        (CHAT, chat(json!({"min_tokens": 9, "max_tokens": 8})), "min_tokens"),
        (CHAT, chat(json!({"chat_template_kwargs": []})), "chat_template_kwargs"),
        (CHAT, chat(json!({"chat_template_kwargs": {"messages": 1}})), "chat_template_kwargs"),
        (CHAT, json!({"messages": []}), "model"),
        (COMPLETIONS, completion(json!({"prompt": ""})), "prompt"),
        (COMPLETIONS, completion(json!({"prompt": []})), "prompt"),
        (COMPLETIONS, completion(json!({"prompt": [9999]})), "prompt"),
        (COMPLETIONS, completion(json!({"prompt": {}})), "prompt"),
        (COMPLETIONS, completion(json!({"echo": true, "logprobs": 1})), "echo"),
        (COMPLETIONS, completion(json!({"suffix": "x"})), "suffix"),
        (COMPLETIONS, completion(json!({"best_of": 2, "stream": true})), "best_of"),
        (COMPLETIONS, completion(json!({"logprobs": 21})), "logprobs"),
    ] {
        let shown = body.to_string();
        let code = if body["max_tokens"] == 200 { "caller_context_too_long" } else { "caller_invalid_request" };
        let expected = (400, code.to_owned(), Some(param.to_owned()));
        assert_eq!(refusal(client.post(path, body).await).await, expected, "{shown}");
    }
    assert!(!worker.was_called());
    let speak = async {
        let mut call = worker.call().await;
        call.say("fine").await;
        call.finish().await;
    };
    let (answer, ()) = tokio::join!(client.post(CHAT, chat(json!({}))), speak);
    assert_eq!(answer.json().await["choices"][0]["message"]["content"], "fine");
}

#[tokio::test]
async fn a_body_that_is_no_json_is_named_where_it_breaks() {
    let (front, _worker) = Front::with_worker().await;
    for (body, param) in [
        ("", None),
        ("{", None),
        ("[]", None),
        (r#"{"model":"parrot","temperature":NaN}"#, Some("temperature")),
        (r#"{"model":"parrot","messages":[{"role":"user","content":"hi"}],"temperature":1e999}"#, Some("temperature")),
        (r#"{"model":"parrot","model":"owl"}"#, Some("model")),
        (r#"{"model":"parrot","messages":[{"role":"user""#, Some("messages")),
    ] {
        let expected = (400, "caller_invalid_request".to_owned(), param.map(str::to_owned));
        assert_eq!(refusal(front.post(CHAT, body).await).await, expected, "{body}");
    }
}

#[tokio::test]
async fn an_unknown_model_is_answered_with_those_that_exist() {
    let (front, _worker) = Front::with_worker().await;
    let answer = front.post(CHAT, chat(json!({"model": "owl"}))).await;
    assert_eq!(answer.status, 404);
    let body = answer.json().await;
    assert_eq!((&body["error"]["code"], &body["error"]["param"]), (&json!("caller_model_not_found"), &json!("model")));
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("owl") && message.contains(MODEL), "{message}");
}

#[tokio::test]
async fn a_prompt_over_the_context_is_refused_with_the_numbers() {
    let (front, _worker) = Front::with_worker().await;
    let body = chat(json!({"messages": [{"role": "user", "content": "x".repeat(9000)}]}));
    let answer = front.post(CHAT, body).await;
    assert_eq!(answer.status, 400);
    let body = answer.json().await;
    assert_eq!(body["error"]["code"], "caller_context_too_long");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("9007") && message.contains(&CONTEXT.to_string()), "{message}");
    let body = completion(json!({"prompt": "x".repeat(400), "max_tokens": 101}));
    let expected = (400, "caller_context_too_long".to_owned(), Some("max_tokens".to_owned()));
    assert_eq!(refusal(front.post(COMPLETIONS, body).await).await, expected);
}

#[tokio::test]
async fn an_unknown_path_or_method_is_named() {
    let front = Front::start(|_| {}).await;
    for (method, path) in
        [(Method::POST, "/v1/nothing"), (Method::GET, CHAT), (Method::DELETE, "/v1/models"), (Method::GET, "/")]
    {
        let answer = front.client().await.ask(method.clone(), path, &[], "").await;
        assert_eq!(answer.status, 404);
        let body = answer.json().await;
        assert_eq!(body["error"]["code"], "caller_not_found");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(method.as_str()) && message.contains(path), "{message}");
    }
}

#[tokio::test]
async fn bad_headers_are_named() {
    let (front, _worker) = Front::with_worker().await;
    let mut client = front.client().await;
    for (name, value) in
        [("x-penstock-class", "secret"), ("x-penstock-deadline-ms", "soon"), ("x-penstock-priority", "urgent")]
    {
        let answer = client.ask(Method::POST, CHAT, &[(name, value)], chat(json!({}))).await;
        assert_eq!(refusal(answer).await, (400, "caller_invalid_request".to_owned(), Some(name.to_owned())));
    }
}

#[tokio::test]
async fn without_keys_only_this_machine_may_ask() {
    let front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    let foreign: [&[(&str, &str)]; 3] = [
        &[("host", "evil.example")],
        &[("origin", "https://evil.example")],
        &[("host", "localhost"), ("origin", "null")],
    ];
    for headers in foreign {
        let answer = client.ask(Method::GET, "/v1/models", headers, "").await;
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
        assert_eq!(refusal(answer).await, (403, "caller_forbidden".to_owned(), None));
    }
    let own = [("host", "127.0.0.1:8080"), ("origin", "http://localhost:3000")];
    assert_eq!(client.ask(Method::GET, "/v1/models", &own, "").await.status, 200);
    let open = Front::start(|config| config.insecure = true).await;
    let answer = open.client().await.ask(Method::GET, "/v1/models", &[("host", "llm.corp.example")], "").await;
    assert_eq!(answer.status, 200);
}

async fn refused_start(config: Config) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let key = AdminKey::read_or_create(&dir.path().join("admin.key")).unwrap();
    let cluster = Cluster {
        store: Arc::new(MemoryStore::new()),
        members: futures_util::stream::pending().boxed(),
        staleness: Arc::new(|| Duration::ZERO),
        connect: penstock_router::Tcp::default().connect(),
    };
    let started = Router::start(config, key, cluster, &prometheus::Registry::new()).await;
    started.err().expect("must not start")
}

#[tokio::test]
async fn an_admin_port_that_others_reach_needs_tls_and_a_taken_one_names_its_flag() {
    let readable = refused_start(Config { admin: ([0, 0, 0, 0], 0).into(), ..Config::default() }).await;
    assert!(matches!(readable, Error::Server(ServerError::Plaintext { .. })));
    assert!(readable.to_string().contains("--tls-cert") && readable.to_string().contains("--admin"));
    let front = Front::start(|_| {}).await;
    let taken = refused_start(Config { http: front.address(), ..Config::default() }).await.to_string();
    assert!(taken.contains("--http") && taken.contains(&front.address().to_string()), "{taken}");
}
