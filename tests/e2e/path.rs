//! One request from HTTP to text.

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::up::{MODEL, Up};

fn capital() -> Value {
    json!({
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
    })
}

/// The data lines of a body of server-sent events.
fn events(body: &str) -> Vec<&str> {
    body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect()
}

#[tokio::test]
async fn the_capital_of_france_streamed_and_not() {
    let up = Up::start(&[]);
    let (status, folded) = up.ask("/v1/chat/completions", &capital()).await;
    assert_eq!(status, 200, "{folded}");
    let text = folded["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains("Paris"), "{text}");

    let mut streamed = capital();
    streamed["stream"] = json!(true);
    let response = up.post("/v1/chat/completions", streamed.to_string()).await;
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let body = response.text().await.unwrap();
    let events = events(&body);
    assert_eq!(events.last(), Some(&"[DONE]"));
    let chunks = events[..events.len() - 1].iter().map(|event| serde_json::from_str::<Value>(event).unwrap());
    let joined: String =
        chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect();
    assert_eq!(joined, text);
}

#[tokio::test]
async fn headers_say_who_answered_and_echo_the_clients_id() {
    let up = Up::start(&[]);
    let request = up.http.post(format!("{}/v1/completions", up.url)).header("x-request-id", "my-id-7");
    let body = json!({"model": MODEL, "prompt": "Hi", "max_tokens": 1, "colour": "blue"});
    let response = request.header("x-penstock-class", "restricted").body(body.to_string()).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("x-request-id"), "my-id-7");
    assert_eq!(header("x-penstock-request-id").len(), 26);
    assert_eq!(header("x-penstock-class"), "restricted");
    assert_eq!(header("x-penstock-ignored"), "colour");
    assert!(header("x-penstock-target").starts_with(&format!("local/{MODEL}")));
}

#[tokio::test]
async fn tokens_come_one_by_one_and_in_whole_characters() {
    let up = Up::start(&[]);
    // Chinese takes several byte-level tokens a character.
    let body = json!({"model": MODEL, "prompt": "中文：你好，世界。春眠不觉晓，处处", "max_tokens": 48, "temperature": 1,
        "seed": 3, "ignore_eos": true, "stream": true});
    let mut stream = up.post("/v1/completions", body.to_string()).await.bytes_stream();
    let mut chunks = 0;
    let mut whole = Vec::new();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.unwrap();
        chunks += 1;
        std::str::from_utf8(&bytes).expect("a chunk of the body breaks a character");
        whole.extend_from_slice(&bytes);
    }
    assert!(chunks > 10, "the answer came in {chunks} pieces: it was not streamed");
    let body = String::from_utf8(whole).unwrap();
    assert_eq!(events(&body).last(), Some(&"[DONE]"));
}

#[tokio::test]
async fn tokenize_and_detokenize_are_inverse() {
    let up = Up::start(&[]);
    let text = "def f(x):\n    return x + 1  # 你好 👩‍👩‍👧";
    let (status, tokens) = up.ask("/v1/tokenize", &json!({"model": MODEL, "prompt": text})).await;
    assert_eq!(status, 200, "{tokens}");
    assert_eq!(tokens["count"].as_u64().unwrap() as usize, tokens["tokens"].as_array().unwrap().len());
    let (status, back) = up.ask("/v1/detokenize", &json!({"model": MODEL, "tokens": tokens["tokens"]})).await;
    assert_eq!((status, back["prompt"].as_str()), (200, Some(text)), "{back}");
}
