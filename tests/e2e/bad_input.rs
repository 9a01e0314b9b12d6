//! Every bad request gets the contract's error with the field's name, and everything else goes on.

use serde_json::{Value, json};

use crate::up::{MODEL, Up};

/// A chat request with a field changed.
fn chat(field: &str, value: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    body[field] = value;
    body
}

#[tokio::test]
async fn fields_that_are_wrong_or_not_served_are_named() {
    let up = Up::start(&[]);
    let message = |role: &str, content: Value| json!([{"role": role, "content": content}]);
    let cases = [
        ("messages", json!([]), "messages"),
        ("messages", json!("hello"), "messages"),
        ("messages", message("wizard", json!("Hi")), "messages[0].role"),
        ("messages", message("user", json!(7)), "messages[0].content"),
        (
            "messages",
            message("user", json!([{"type": "image_url", "image_url": {"url": "x"}}])),
            "messages[0].content[0]",
        ),
        ("max_tokens", json!(0), "max_tokens"),
        ("max_tokens", json!(100_000), "max_tokens"),
        ("max_tokens", json!("many"), "max_tokens"),
        ("temperature", json!(-0.5), "temperature"),
        ("temperature", json!("hot"), "temperature"),
        ("top_p", json!(0), "top_p"),
        ("top_p", json!(1.5), "top_p"),
        ("min_p", json!(-1), "min_p"),
        ("repetition_penalty", json!(0), "repetition_penalty"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "stop"),
        ("stop", json!(""), "stop"),
        ("logit_bias", json!({"999999": 1}), "logit_bias"),
        ("logit_bias", json!({"1": 1000}), "logit_bias"),
        ("seed", json!("x"), "seed"),
        ("stream", json!("yes"), "stream"),
        (
            "tools",
            json!([{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}]),
            "tools[1].function.name",
        ),
        ("response_format", json!({"type": "xml"}), "response_format.type"),
        ("n", json!(17), "n"),
        ("logprobs", json!("yes"), "logprobs"),
    ];
    for (field, value, param) in cases {
        let (status, answer) = up.ask("/v1/chat/completions", &chat(field, value.clone())).await;
        let error = &answer["error"];
        assert_eq!(status, 400, "{field}: {value}: {answer}");
        assert_eq!(error["code"], "caller_invalid_request", "{field}: {answer}");
        assert!(error["param"].as_str().is_some_and(|named| named.starts_with(param)), "{field}: {value}: {answer}");
        let about = error["message"].as_str().unwrap();
        assert!(about.contains(param.split(['[', '.']).next().unwrap()), "{about}");
    }
    let (status, answer) = up.ask("/v1/chat/completions", &chat("top_k", json!(3))).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn bodies_that_are_no_request_are_refused() {
    let up = Up::start(&[]);
    for (body, code) in [
        ("{\"model\": ", 400),
        ("", 400),
        ("[]", 400),
        ("\u{feff}null", 400),
        ("{\"model\":\"smollm2-135m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"temperature\":NaN}", 400),
        (
            "{\"model\":\"smollm2-135m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"temperature\":1e999}",
            400,
        ),
        ("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 400),
    ] {
        let response = up.post("/v1/chat/completions", body).await;
        assert_eq!(response.status().as_u16(), code, "{body}");
        let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(answer["error"]["code"], "caller_invalid_request", "{body}: {answer}");
    }
    let response = up.post("/v1/completions", "x".repeat(64 << 20)).await;
    assert_eq!(response.status(), 413);
    let response = up.post("/v1/nothing", "{}").await;
    assert_eq!(response.status(), 404);
    assert_eq!(up.ask("/v1/chat/completions", &chat("top_k", json!(3))).await.0, 200);
}

#[tokio::test]
async fn an_unknown_model_is_answered_with_the_names_that_exist() {
    let up = Up::start(&[]);
    let (status, answer) = up.ask("/v1/chat/completions", &chat("model", json!("gpt-9"))).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("caller_model_not_found")));
    assert_eq!(answer["error"]["param"], "model");
    assert!(answer["error"]["message"].as_str().unwrap().contains(MODEL), "{answer}");
}

#[tokio::test]
async fn a_prompt_over_the_context_is_refused_with_the_numbers() {
    let up = Up::start(&[]);
    let body = json!({"model": MODEL, "prompt": "word ".repeat(9_000)});
    let (status, answer) = up.ask("/v1/completions", &body).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("caller_context_too_long")), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("8192"), "{answer}");
}

#[tokio::test]
async fn a_foreign_host_or_origin_is_forbidden() {
    let up = Up::start(&[]);
    for (name, value) in [("host", "evil.example"), ("origin", "https://evil.example")] {
        let request = up.http.get(format!("{}/v1/models", up.url)).header(name, value);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 403, "{name}");
        assert!(response.text().await.unwrap().contains("caller_forbidden"));
    }
    let request = up.http.get(format!("{}/v1/models", up.url)).header("origin", "http://localhost:3000");
    assert_eq!(request.send().await.unwrap().status(), 200);
}
