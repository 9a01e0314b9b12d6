//! Requests at random: who asks, for what, through which face, and where a canary stands in them, written how.

use std::collections::HashSet;

use fastrand::Rng;
use penstock_proto::DataClass;
use penstock_proto::inference as wire;
use serde_json::{Value, json};

use crate::canary::{Canary, Kind, Spelling, escaped};
use crate::places::{Face, Form, Place, SEAM};
use crate::worker::ids;
use crate::world::{MODELS, TASKS};

/// Says who a request is, wherever it is seen: between two marks, in letters.
pub(crate) fn nonce(number: usize) -> String {
    number.to_string().bytes().fold("zq".to_owned(), |name, digit| {
        name + ["b", "c", "d", "f", "g", "h", "j", "k", "l", "m"][usize::from(digit - b'0')]
    }) + "qz"
}

/// The number of the request whose nonce stands in a text.
pub(crate) fn number(text: &str) -> Option<usize> {
    let (_, rest) = text.split_once("zq")?;
    let (name, _) = rest.split_once("qz")?;
    let digits: Option<String> =
        name.chars().map(|letter| "bcdfghjklm".find(letter).and_then(|at| char::from_digit(at as u32, 10))).collect();
    digits?.parse().ok()
}

/// A canary in a request.
pub(crate) struct Planted {
    pub(crate) canary: Canary,
    pub(crate) spelling: Spelling,
    pub(crate) place: &'static str,
}

/// A request.
pub(crate) struct Plan {
    pub(crate) face: Face,
    pub(crate) tenant: usize,
    pub(crate) class: Option<DataClass>,
    pub(crate) task: Option<&'static str>,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) planted: Option<Planted>,
    /// Every string, key and number of the fields that are part of a typed request.
    pub(crate) typed: HashSet<String>,
    /// In the face's shape; gRPC's in that of a chat completion.
    shape: Value,
    /// What of the body's JSON is written as escapes.
    hidden: Option<String>,
}

/// What stands in fields that nobody may send on, and in headers.
pub(crate) const DECOY: &str = "decoy-of-the-client";

impl Plan {
    pub(crate) fn make(at: usize, rng: &mut Rng, vips: &[String]) -> Self {
        let face = *rng.choice(&Face::ALL).unwrap();
        let hello = format!("hello {}", nonce(at));
        let model = *rng.choice(&MODELS).unwrap();
        let mut shape = match face {
            Face::Chat | Face::Grpc => json!({
                "model": model,
                "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": hello}],
            }),
            Face::Completion | Face::Tokens => json!({"model": model, "prompt": hello}),
            Face::Responses => json!({"model": model, "input": [{"role": "user", "content": hello}]}),
            Face::Messages => json!({
                "model": model, "max_tokens": 16, "system": "be kind",
                "messages": [{"role": "user", "content": hello}],
            }),
        };
        if rng.bool() {
            shape["temperature"] = json!(0.5);
        }
        let (mut planted, mut hidden) = (None, None);
        // Some have nothing in them: they must go out.
        if rng.u8(..10) < 7 {
            let place = *rng.choice(&face.places()).unwrap();
            let (it, text) = plant(place, rng, vips);
            (place.plant)(&mut shape, &text);
            hidden = (it.spelling == Spelling::Escaped).then_some(text);
            planted = Some(it);
        }
        let typed = typed(face, &shape);
        if matches!(face, Face::Chat | Face::Completion | Face::Responses | Face::Messages) {
            shape["stream"] = rng.bool().into();
            let aside = ["mood", "metadata", "user"][rng.usize(..3)];
            if shape[aside].is_null() {
                shape[aside] = if aside == "metadata" { json!({"user_id": DECOY}) } else { DECOY.into() };
            }
        }
        let class = (rng.u8(..8) == 0).then(|| {
            *rng.choice(&[DataClass::Public, DataClass::Internal, DataClass::Confidential, DataClass::Restricted])
                .unwrap()
        });
        let task = (rng.u8(..4) == 0).then(|| *rng.choice(&TASKS).unwrap());
        // Few are always restricted: most must be able to go out.
        let tenant = *rng.choice(&[0, 0, 0, 0, 1, 1, 1, 1, 2]).unwrap();
        let headers = headers(rng, class, task);
        Self { face, tenant, class, task, headers, planted, typed, shape, hidden }
    }

    /// The path of its face, and its body as it is sent.
    pub(crate) fn http(&self) -> (&'static str, String) {
        let mut shape = self.shape.clone();
        if self.face == Face::Tokens {
            shape["prompt"] = ids(shape["prompt"].as_str().unwrap()).into();
        }
        let mut body = shape.to_string();
        if let Some(hidden) = &self.hidden {
            let written = Value::from(hidden.as_str()).to_string();
            body = body.replace(written.trim_matches('"'), &escaped(hidden));
        }
        let path = match self.face {
            Face::Chat | Face::Grpc => "/v1/chat/completions",
            Face::Completion | Face::Tokens => "/v1/completions",
            Face::Responses => "/v1/responses",
            Face::Messages => "/v1/messages",
        };
        (path, body)
    }

    /// It as a message.
    pub(crate) fn grpc(&self) -> wire::GenerateRequest {
        use wire::generate_request::Input;
        let shape = &self.shape;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let json = |value: &Value| if value.is_null() { String::new() } else { value.to_string() };
        let call = |call: &Value| wire::ToolCall {
            id: text(&call["id"]),
            name: text(&call["function"]["name"]),
            arguments_json: text(&call["function"]["arguments"]),
        };
        let message = |message: &Value| wire::Message {
            role: text(&message["role"]),
            content: text(&message["content"]),
            name: text(&message["name"]),
            tool_calls: list(&message["tool_calls"]).iter().map(call).collect(),
            tool_call_id: text(&message["tool_call_id"]),
        };
        let tool = |tool: &Value| wire::Tool {
            name: text(&tool["function"]["name"]),
            description: text(&tool["function"]["description"]),
            parameters_json: json(&tool["function"]["parameters"]),
            strict: false,
        };
        let kind = match (&shape["guided_regex"], &shape["guided_grammar"], &shape["response_format"]) {
            (Value::String(regex), _, _) => Some(wire::constraint::Kind::Regex(regex.clone())),
            (_, Value::String(grammar), _) => Some(wire::constraint::Kind::Grammar(grammar.clone())),
            (_, _, Value::Object(format)) => {
                Some(wire::constraint::Kind::JsonSchema(format["json_schema"]["schema"].to_string()))
            }
            (_, _, _) => None,
        };
        let chosen = shape["tool_choice"]["function"]["name"].as_str();
        let input = match shape["prompt"].as_str() {
            Some(prompt) => Input::Text(prompt.to_owned()),
            None => Input::Chat(wire::Chat {
                messages: list(&shape["messages"]).iter().map(message).collect(),
                omit_generation_prompt: false,
                template_kwargs_json: json(&shape["chat_template_kwargs"]),
            }),
        };
        wire::GenerateRequest {
            model: text(&shape["model"]),
            input: Some(input),
            stop: list(&shape["stop"]).iter().map(text).collect(),
            constraint: kind.map(|kind| wire::Constraint { kind: Some(kind) }),
            tools: list(&shape["tools"]).iter().map(tool).collect(),
            tool_choice: chosen
                .map(|name| wire::ToolChoice { kind: Some(wire::tool_choice::Kind::Tool(name.to_owned())) }),
            ..wire::GenerateRequest::default()
        }
    }
}

/// A canary for a place, and how it is written there.
fn plant(place: &Place, rng: &mut Rng, vips: &[String]) -> (Planted, String) {
    loop {
        let canary = Canary::make(rng, vips);
        let spelling = *rng.choice(&Spelling::all()).unwrap();
        let kind = canary.kind;
        let legal = match place.form {
            Form::Parts => spelling == Spelling::Parts,
            Form::Text => spelling != Spelling::Parts,
            Form::Name => {
                let plain = matches!(spelling, Spelling::Plain | Spelling::Separated("-") | Spelling::Escaped);
                plain && !matches!(kind, Kind::Email | Kind::Phone | Kind::Vip)
            }
            Form::Number => {
                let digits = canary.plain.bytes().all(|byte| byte.is_ascii_digit());
                spelling == Spelling::Plain && digits && kind != Kind::UsSsn
            }
        };
        if !legal || !spelling.fits(kind) {
            continue;
        }
        let text = match (place.form, spelling) {
            (Form::Parts, _) => {
                let (first, second) = Spelling::halves(&canary);
                format!("{first}{SEAM}{second}")
            }
            (Form::Text, Spelling::Json | Spelling::JsonEscaped | Spelling::JsonTwice | Spelling::Fenced) => {
                spelling.write(&canary)
            }
            (Form::Text, _) if rng.bool() => format!("please note {} for me", spelling.write(&canary)),
            (_, _) => spelling.write(&canary),
        };
        return (Planted { canary, spelling, place: place.name }, text);
    }
}

fn headers(rng: &mut Rng, class: Option<DataClass>, task: Option<&'static str>) -> Vec<(&'static str, String)> {
    let mut headers: Vec<(&'static str, String)> = ["cookie", "user-agent", "traceparent", "x-forwarded-for"]
        .into_iter()
        .chain(["openai-organization", "anthropic-beta", "x-penstock-target", "x-request-id"])
        .filter(|_| rng.bool())
        .map(|name| (name, DECOY.to_owned()))
        .collect();
    headers.extend(class.map(|class| ("x-penstock-class", class.to_string())));
    headers.extend(task.map(|task| ("x-penstock-task", task.to_owned())));
    if rng.u8(..3) == 0 {
        headers.push(("x-penstock-session", format!("session-{}", rng.u8(..50))));
    }
    headers
}

/// The strings, keys and numbers of a body's fields that become part of a typed request.
fn typed(face: Face, shape: &Value) -> HashSet<String> {
    let mut found = HashSet::from(["object", "type", "properties"].map(str::to_owned));
    let known: &[&str] = match face {
        Face::Chat | Face::Grpc => {
            &["messages", "prompt", "tools", "tool_choice", "stop", "response_format", "guided_json"]
        }
        Face::Completion | Face::Tokens => &["prompt", "stop"],
        Face::Responses => &["instructions", "input", "tools", "text"],
        Face::Messages => &["system", "messages", "tools", "stop_sequences"],
    };
    known.iter().for_each(|name| gather(&shape[*name], &mut found));
    found
}

/// Adds what stands in a value, and in JSON text within it.
fn gather(value: &Value, found: &mut HashSet<String>) {
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => {
            found.insert(number.to_string());
        }
        Value::String(text) => {
            found.insert(text.clone());
            if let Ok(inner @ (Value::Object(_) | Value::Array(_))) = serde_json::from_str(text) {
                gather(&inner, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| gather(item, found)),
        Value::Object(members) => {
            let is_format = members.get("type").is_some_and(|kind| kind == "json_schema");
            for (name, value) in members.iter().filter(|(name, _)| *name != "mood") {
                // Of a format only its schema is asked for.
                if is_format && (name == "name" || name == "description") {
                    continue;
                }
                if is_format && name == "json_schema" {
                    gather(&value["schema"], found);
                    continue;
                }
                found.insert(name.clone());
                gather(value, found);
            }
        }
    }
}

#[test]
fn a_nonce_says_whose_it_is() {
    for at in [0, 7, 10, 123_456_789] {
        assert_eq!(number(&format!("hello {} there", nonce(at))), Some(at));
    }
}
