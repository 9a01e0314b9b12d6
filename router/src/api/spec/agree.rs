//! Proof that the table and the decoders say the same of every field.

use serde_json::{Value, json};

use super::CALLS;
use super::field::{Body, Fate, Field, Spec, Type};
use crate::api::bounds::Range;
use crate::api::openai::{self, Kind};
use crate::api::{anthropic, responses};
use crate::request::Failure;

/// Decodes a body and returns the names of what nobody knew; None for calls whose decoder needs a model.
fn decode(path: &str, body: &Value) -> Option<Result<Vec<String>, Failure>> {
    let (body, mut ignored) = (body.to_string(), Vec::new());
    let body = body.as_bytes();
    let decoded = match path {
        "/v1/chat/completions" => openai::decode(Kind::Chat, body, &mut ignored).map(drop),
        "/v1/completions" => openai::decode(Kind::Completion, body, &mut ignored).map(drop),
        "/v1/responses" => responses::decode::response(body, &mut ignored).map(drop),
        "/v1/messages" => anthropic::decode::message(body, &mut ignored).map(drop),
        "/v1/messages/count_tokens" => anthropic::decode::count(body, &mut ignored).map(drop),
        _ => return None,
    };
    Some(decoded.map(|()| ignored))
}

/// What must be there.
fn base(path: &str) -> Value {
    let messages = json!([{"role": "user", "content": "hi"}]);
    match path {
        "/v1/completions" => json!({"model": "m", "prompt": "hi"}),
        "/v1/responses" => json!({"model": "m", "input": "hi"}),
        "/v1/messages" => json!({"model": "m", "messages": messages, "max_tokens": 5}),
        _ => json!({"model": "m", "messages": messages}),
    }
}

/// A field that another one needs beside it.
fn companion(path: &str, name: &str) -> Option<&'static str> {
    match (path, name) {
        (_, "stream_options") => Some("stream"),
        ("/v1/chat/completions", "top_logprobs") => Some("logprobs"),
        _ => None,
    }
}

fn with(path: &str, body: &Value, name: &str, value: Value) -> Result<Vec<String>, Failure> {
    let mut body = body.clone();
    body[name] = value;
    decode(path, &body).expect("the decoder needs no model")
}

/// A value of a type.
fn sample(of: &Type) -> Value {
    match of {
        Type::Flag => json!(true),
        Type::Text => json!("a"),
        Type::Null => Value::Null,
        Type::Any | Type::Free | Type::Map(_) => json!({}),
        Type::Number(Range::Within(_, most) | Range::Above(_, most)) => json!(most),
        Type::Number(Range::AtLeast(least) | Range::MoreThan(least)) => json!(least + 1.0),
        Type::Whole(least, _) => json!((*least).max(1)),
        Type::Word(words) => json!(words.first()),
        Type::List(of, _) | Type::Several(of, _) => json!([sample(of)]),
        Type::Object(fields) => {
            let required = fields.iter().filter(|field: &&Field| field.required);
            required.map(|field| (field.name.to_owned(), sample(&field.of))).collect()
        }
        Type::Either(types) => sample(&types[0]),
    }
}

/// A value of no served type.
fn wrong(of: &Type) -> Value {
    match of {
        Type::Either(_) => json!(5),
        Type::Map(_) | Type::Free | Type::Object(_) | Type::Any | Type::Null => json!(true),
        Type::Flag
        | Type::Text
        | Type::Number(_)
        | Type::Whole(..)
        | Type::Word(_)
        | Type::List(..)
        | Type::Several(..) => json!({"a": 1}),
    }
}

fn refused_by_name(result: &Result<Vec<String>, Failure>, name: &str) -> bool {
    result.as_ref().is_err_and(|failure| failure.param.as_deref().is_some_and(|param| param.starts_with(name)))
}

fn check(call: &Spec, body: &Body) {
    let path = call.path;
    for (name, field, fate) in body.fates() {
        let mut body = base(path);
        if let (Fate::Served, Some(other)) = (fate, companion(path, name)) {
            body[other] = json!(true);
        }
        let decoded = |value: Value| with(path, &body, name, value);
        match (fate, field) {
            (Fate::Served, Some(field)) => {
                assert!(refused_by_name(&decoded(wrong(&field.of)), name), "{path} {name} is not read");
                if !field.required {
                    assert_eq!(decoded(sample(&field.of)), Ok(Vec::new()), "{path} {name} is not taken");
                }
            }
            (Fate::Ignored, _) | (Fate::Served, None) => {
                assert_eq!(decoded(json!({"a": 1})), Ok(Vec::new()), "{path} {name} is not taken");
            }
            (Fate::Refused(but), _) => {
                assert!(refused_by_name(&decoded(json!({"a": 1})), name), "{path} {name} is not refused");
                for nothing in but {
                    let value = serde_json::from_str(nothing).unwrap();
                    assert_eq!(decoded(value), Ok(Vec::new()), "{path} {name}: {nothing}");
                }
            }
        }
        assert!(
            !refused_by_name(&decoded(Value::Null), name) || field.is_some_and(|field| field.required),
            "{path} {name}"
        );
    }
    assert_eq!(with(path, &base(path), "made_up", json!(1)), Ok(vec!["made_up".to_owned()]), "{path}");
}

#[test]
fn table_and_decoders_agree() {
    let mut checked = 0;
    for call in CALLS {
        if let Some(body) = &call.body
            && decode(call.path, &json!({})).is_some()
        {
            check(call, body);
            checked += 1;
        }
    }
    assert_eq!(checked, 5);
}
