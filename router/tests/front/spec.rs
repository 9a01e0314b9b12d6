//! What describes the faces.

use http::Method;
use serde_json::{Value, json};

use crate::support::Front;

/// Every `$ref` within a value.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str));
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[tokio::test]
async fn the_document_names_every_call_and_its_references_lead_somewhere() {
    let front = Front::start(|_| {}).await;
    let answer = front.get("/openapi.json").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    let document = answer.json().await;
    assert_eq!(document["openapi"], "3.1.0");
    for (method, path, error) in [
        ("post", "/v1/chat/completions", "Error"),
        ("post", "/v1/completions", "Error"),
        ("post", "/v1/responses", "Error"),
        ("post", "/v1/messages", "AnthropicError"),
        ("post", "/v1/messages/count_tokens", "AnthropicError"),
        ("get", "/v1/models", "Error"),
        ("get", "/v1/models/{model}", "Error"),
        ("post", "/v1/tokenize", "Error"),
        ("post", "/v1/detokenize", "Error"),
        ("get", "/openapi.json", "Error"),
    ] {
        let refusal = &document["paths"][path][method]["responses"]["4XX"]["content"]["application/json"]["schema"];
        assert_eq!(refusal["$ref"], format!("#/components/schemas/{error}"), "{method} {path}");
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn the_document_is_only_read() {
    let front = Front::start(|_| {}).await;
    let answer = front.client().await.ask(Method::POST, "/openapi.json", &[], "{}").await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json().await["error"]["code"], json!("caller_not_found"));
    front
        .metric(r#"penstock_requests_total{code="caller_not_found",route="unknown",target="none",tenant="default"} 1"#)
        .await;
}
