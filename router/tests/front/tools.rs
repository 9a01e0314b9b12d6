//! Tools on every face: what the worker is asked, and what of its words are calls.

use futures_util::StreamExt as _;
use penstock_proto::inference::{
    self, FinishReason, GenerateRequest, InferenceClient, Message, generate_request::Input,
};
use penstock_proto::worker::constraint::Kind;
use serde_json::{Value, json};
use tonic::transport::Endpoint;

use crate::support::{Call, FakeWorker, Front, MODEL, Traits, chat, soon};

const CALL: &str = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"sky\"}}\n</tool_call>";

/// A router whose model has room for definitions, a token a byte.
async fn front() -> (Front, FakeWorker) {
    Front::with(|_| {}, Traits { context: 5000, ..Traits::default() }).await
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]});
    json!([{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": parameters}}])
}

fn with_tools(change: Value) -> Value {
    let mut body = chat(json!({"tools": tools()}));
    change.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    body
}

/// Asks, and has the worker say these pieces.
async fn ask(front: &Front, worker: &mut FakeWorker, body: Value, pieces: &[&str]) -> (Value, String) {
    let speak = async {
        let mut call = worker.call().await;
        for piece in pieces {
            call.say(piece).await;
        }
        let prompt = call.prompt();
        call.finish().await;
        prompt
    };
    tokio::join!(async { front.post("/v1/chat/completions", body).await.json().await }, speak)
}

fn grammar(call: &Call) -> Option<&str> {
    match call.request.constraint.as_ref()?.kind.as_ref()? {
        Kind::Grammar(grammar) => Some(grammar),
        Kind::JsonSchema(_) | Kind::Regex(_) => None,
    }
}

#[tokio::test]
async fn a_call_is_no_text_and_ends_the_turn() {
    let (front, mut worker) = front().await;
    let (answer, prompt) = ask(&front, &mut worker, with_tools(json!({})), &[CALL]).await;
    assert!(prompt.starts_with("system:You can call functions."), "{prompt}");
    assert!(
        prompt.contains(r#"{"type": "function", "function": {"name": "look", "description": "Looks.", "#),
        "{prompt}"
    );
    assert!(prompt.ends_with(";user:hi;>"), "{prompt}");
    let choice = &answer["choices"][0];
    let id = choice["message"]["tool_calls"][0]["id"].as_str().unwrap();
    assert!(id.starts_with("call_") && id.len() == 29, "{id}");
    let function = json!({"name": "look", "arguments": "{\"at\": \"sky\"}"});
    let calls = json!([{"id": id, "type": "function", "function": function}]);
    let message = json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": calls});
    assert_eq!((&choice["message"], &choice["finish_reason"]), (&message, &json!("tool_calls")));

    let both = [&format!("Well. {CALL}\n{CALL}\n")[..]];
    let (answer, _) = ask(&front, &mut worker, with_tools(json!({})), &both).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], "Well. ");
    let [one, two] = &message["tool_calls"].as_array().unwrap()[..] else { panic!("{message}") };
    assert_ne!(one["id"], two["id"]);
}

#[tokio::test]
async fn calls_stream_as_openai_streams_them() {
    let (front, mut worker) = front().await;
    let speak = async {
        let mut call = worker.call().await;
        let (head, tail) = CALL.split_at(CALL.find("sky").unwrap());
        for piece in ["Hm", " ", head, tail] {
            call.say(piece).await;
        }
        call.finish().await;
    };
    let body = with_tools(json!({"stream": true}));
    let ask = async { front.post("/v1/chat/completions", body).await.chunks().await };
    let ((), chunks) = tokio::join!(speak, ask);
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    assert_eq!(deltas[0], &json!({"role": "assistant", "content": "", "refusal": null}));
    let said: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
    assert_eq!(said, "Hm ");
    let calls: Vec<&Value> = deltas.iter().filter_map(|delta| delta.get("tool_calls")).collect();
    let id = &calls[0][0]["id"];
    let first =
        json!([{"index": 0, "id": id, "type": "function", "function": {"name": "look", "arguments": "{\"at\": \""}}]);
    assert_eq!(calls, [&first, &json!([{"index": 0, "function": {"arguments": "sky\"}"}}])]);
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("tool_calls")));
}

#[tokio::test]
async fn an_answer_of_calls_alone_streams_no_content() {
    let (front, mut worker) = front().await;
    let speak = async {
        let mut call = worker.call().await;
        call.say(CALL).await;
        call.finish().await;
    };
    let body = with_tools(json!({"stream": true}));
    let ask = async { front.post("/v1/chat/completions", body).await.chunks().await };
    let ((), chunks) = tokio::join!(speak, ask);
    let first = json!({"role": "assistant", "content": null, "refusal": null});
    assert_eq!(chunks[0]["choices"][0]["delta"], first);
    assert!(chunks.iter().all(|chunk| chunk["choices"][0]["delta"]["content"].is_null()));
}

#[tokio::test]
async fn a_choice_of_none_tells_of_tools_and_reads_no_calls() {
    let (front, mut worker) = front().await;
    let (answer, prompt) = ask(&front, &mut worker, with_tools(json!({"tool_choice": "none"})), &[CALL]).await;
    assert!(prompt.contains("\"look\""));
    let choice = &answer["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(CALL), &json!("stop")));
    assert!(choice["message"].get("tool_calls").is_none());
}

#[tokio::test]
async fn one_call_that_may_be_the_only_one_ends_the_workers_stream() {
    let (front, mut worker) = front().await;
    let named = json!({"type": "function", "function": {"name": "look"}});
    for (change, reason, forced) in
        [(json!({"parallel_tool_calls": false}), "tool_calls", false), (json!({"tool_choice": named}), "stop", true)]
    {
        let speak = async {
            let mut call = worker.call().await;
            assert_eq!(grammar(&call).is_some(), forced);
            call.say(CALL).await;
            call.dropped().await;
        };
        let ask = async { front.post("/v1/chat/completions", with_tools(change)).await.json().await };
        let ((), answer) = tokio::join!(speak, ask);
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"at\": \"sky\"}");
        assert_eq!(choice["finish_reason"], reason);
        assert_eq!(answer["usage"]["completion_tokens"], CALL.len());
    }
}

#[tokio::test]
async fn a_call_that_must_be_made_holds_the_worker_to_a_grammar() {
    let (front, mut worker) = front().await;
    let speak = async {
        let mut call = worker.call().await;
        let grammar = grammar(&call).unwrap().to_owned();
        call.say(CALL).await;
        call.finish().await;
        grammar
    };
    let body = with_tools(json!({"tool_choice": "required"}));
    let (answer, grammar) = tokio::join!(async { front.post("/v1/chat/completions", body).await.json().await }, speak);
    assert!(grammar.starts_with("start: calls\n") && grammar.contains("\"required\":[\"at\"]"), "{grammar}");
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn results_go_back_to_the_model() {
    let (front, mut worker) = front().await;
    let call = json!({"id": "a", "type": "function", "function": {"name": "look", "arguments": "{\"at\": \"sky\"}"}});
    let messages = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "blue"},
    ]);
    let body = with_tools(json!({"messages": messages}));
    let (answer, prompt) = ask(&front, &mut worker, body, &["It is blue."]).await;
    let turns = format!(";user:hi;assistant:{CALL};user:<tool_response>\nblue\n</tool_response>;>");
    assert!(prompt.ends_with(&turns), "{prompt}");
    let choice = &answer["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("It is blue."), &json!("stop")));
}

#[tokio::test]
async fn what_is_no_tool_is_refused() {
    let (front, mut worker) = front().await;
    let named = json!({"type": "function", "function": {"name": "gone"}});
    let answered = json!([{"role": "tool", "tool_call_id": "a", "content": "blue"}]);
    for (change, param) in [
        (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "tools[0].function.name"),
        (json!({"tool_choice": named}), "tool_choice"),
        (json!({"messages": answered}), "messages[0].tool_call_id"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
    ] {
        let answer = front.post("/v1/chat/completions", with_tools(change)).await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json().await["error"]["param"], param);
    }
    assert!(!worker.was_called());
}

#[tokio::test]
async fn tokens_of_messages_count_their_tools() {
    let (front, _worker) = front().await;
    let count = async |body: Value| front.post("/v1/tokenize", body).await.json().await["count"].as_u64().unwrap();
    assert!(count(with_tools(json!({}))).await > count(chat(json!({}))).await + 100);
}

#[tokio::test]
async fn grpc_has_calls_too() {
    let (front, mut worker) = front().await;
    let message = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: content.to_owned(),
        ..Message::default()
    };
    let made = inference::ToolCall { id: "a".to_owned(), name: "look".to_owned(), arguments_json: "{}".to_owned() };
    let messages = vec![
        message("user", "hi"),
        Message { tool_calls: vec![made], ..message("assistant", "") },
        Message { tool_call_id: "a".to_owned(), ..message("tool", "dark") },
    ];
    let tool = inference::Tool { name: "look".to_owned(), ..inference::Tool::default() };
    let request = GenerateRequest {
        model: MODEL.to_owned(),
        input: Some(Input::Chat(inference::Chat { messages, ..Default::default() })),
        tools: vec![tool],
        ..GenerateRequest::default()
    };
    let channel =
        Endpoint::from_shared(format!("http://{}", front.router.grpc_addr())).unwrap().connect().await.unwrap();
    let mut client = InferenceClient::new(channel);
    let speak = async {
        let mut call = worker.call().await;
        call.say("Hm. ").await;
        call.say(CALL).await;
        let prompt = call.prompt();
        call.finish().await;
        prompt
    };
    let (response, prompt) = soon(async { tokio::join!(client.generate(request), speak) }).await;
    assert!(prompt.contains("<tool_response>\ndark\n</tool_response>"), "{prompt}");
    let pieces: Vec<_> = soon(response.unwrap().into_inner().map(Result::unwrap).collect()).await;
    let text: String = pieces.iter().map(|piece: &inference::GenerateResponse| piece.text.as_str()).collect();
    assert_eq!(text, "Hm. ");
    let calls: Vec<_> = pieces.iter().flat_map(|piece| &piece.tool_calls).collect();
    assert_eq!(calls[0].name, "look");
    assert!(calls[0].id.starts_with("call_") && calls[1..].iter().all(|piece| piece.id.is_empty()));
    let arguments: String = calls.iter().map(|piece| piece.arguments_json.as_str()).collect();
    assert_eq!(arguments, "{\"at\": \"sky\"}");
    assert_eq!(pieces.last().unwrap().finish_reason(), FinishReason::ToolCalls);
}
