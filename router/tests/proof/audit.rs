//! What upstreams were sent, held against what they may be sent: fields of the typed request, under headers of the
//! router's own, of a class up to their ceiling.

use http::HeaderMap;
use serde_json::Value;

use crate::outside::Sent;
use crate::plan::{DECOY, Plan};
use crate::world::Side;

/// The key that the router has for the upstreams.
pub(crate) const KEY: &str = "the-key-of-the-house";

/// What may stand at a path.
#[derive(Clone, Copy)]
enum Leaf {
    /// One of these words.
    Word(&'static [&'static str]),
    /// A number or a bool.
    Plain,
    /// A text of the request's.
    Text,
    /// Any JSON whose strings, keys and numbers are the request's.
    Tree,
}

use Leaf::{Plain, Text, Tree, Word};

const OPENAI: [(&str, Leaf); 34] = [
    ("model", Word(&["big"])),
    ("prompt", Text),
    ("messages[].role", Word(&["system", "user", "assistant", "tool"])),
    ("messages[].content", Text),
    ("messages[].name", Text),
    ("messages[].tool_call_id", Text),
    ("messages[].tool_calls[].id", Text),
    ("messages[].tool_calls[].type", Word(&["function"])),
    ("messages[].tool_calls[].function.name", Text),
    ("messages[].tool_calls[].function.arguments", Text),
    ("tools[].type", Word(&["function"])),
    ("tools[].function.name", Text),
    ("tools[].function.description", Text),
    ("tools[].function.parameters", Tree),
    ("tools[].function.strict", Plain),
    ("tool_choice", Word(&["auto", "none", "required"])),
    ("tool_choice.type", Word(&["function"])),
    ("tool_choice.function.name", Text),
    ("parallel_tool_calls", Plain),
    ("response_format.type", Word(&["json_object", "json_schema"])),
    ("response_format.json_schema.name", Word(&["answer"])),
    ("response_format.json_schema.schema", Tree),
    ("response_format.json_schema.strict", Plain),
    ("stop[]", Text),
    ("temperature", Plain),
    ("top_p", Plain),
    ("presence_penalty", Plain),
    ("frequency_penalty", Plain),
    ("seed", Plain),
    ("logprobs", Plain),
    ("max_tokens", Plain),
    ("max_completion_tokens", Plain),
    ("stream", Plain),
    ("stream_options.include_usage", Plain),
];

const ANTHROPIC: [(&str, Leaf); 24] = [
    ("model", Word(&["large"])),
    ("max_tokens", Plain),
    ("stream", Plain),
    ("temperature", Plain),
    ("top_p", Plain),
    ("top_k", Plain),
    ("stop_sequences[]", Text),
    ("system[].type", Word(&["text"])),
    ("system[].text", Text),
    ("messages[].role", Word(&["user", "assistant"])),
    ("messages[].content[].type", Word(&["text", "tool_use", "tool_result"])),
    ("messages[].content[].text", Text),
    ("messages[].content[].id", Text),
    ("messages[].content[].name", Text),
    ("messages[].content[].input", Tree),
    ("messages[].content[].tool_use_id", Text),
    ("messages[].content[].content", Text),
    ("tools[].name", Text),
    ("tools[].description", Text),
    ("tools[].input_schema", Tree),
    ("tools[].strict", Plain),
    ("tool_choice.type", Word(&["auto", "none", "any", "tool"])),
    ("tool_choice.name", Text),
    ("tool_choice.disable_parallel_tool_use", Plain),
];

/// The names that the router itself gives to the tool by which an Anthropic upstream answers in a structure.
const OWN_NAMES: [&str; 1] = ["answer"];

/// Says what of a call no upstream may be sent.
pub(crate) fn complaints(sent: &Sent, plan: &Plan) -> Vec<String> {
    let mut complaints = headers(sent);
    if sent.trailed || sent.method != "POST" {
        complaints.push(format!("{} with trailers: {}", sent.method, sent.trailed));
    }
    match serde_json::from_slice(&sent.body) {
        Ok(body) => {
            let mut path = String::new();
            let rules: &[(&str, Leaf)] = if sent.side == Side::Acme { &OPENAI } else { &ANTHROPIC };
            walk(&body, &mut path, (rules, plan), &mut complaints);
        }
        Err(error) => complaints.push(format!("a body that is no JSON: {error}")),
    }
    if String::from_utf8_lossy(&sent.body).contains(DECOY) {
        complaints.push("what stands in no typed field".to_owned());
    }
    complaints
}

fn headers(sent: &Sent) -> Vec<String> {
    let key = match sent.side {
        Side::Acme => ("authorization", format!("Bearer {KEY}")),
        Side::Ocean => ("x-api-key", KEY.to_owned()),
    };
    let is_own = |name: &str, value: &str| match name {
        "content-type" => value == "application/json",
        "accept" => value == "text/event-stream, application/json",
        "user-agent" => value == concat!("penstock/", env!("CARGO_PKG_VERSION")),
        "anthropic-version" => sent.side == Side::Ocean && value == "2023-06-01",
        "content-length" => value == sent.body.len().to_string(),
        "host" => value.starts_with("127.0.0.1:"),
        _ => name == key.0 && value == key.1,
    };
    let map: &HeaderMap = &sent.headers;
    let others = map.iter().filter(|(name, value)| !value.to_str().is_ok_and(|value| is_own(name.as_str(), value)));
    let mut complaints: Vec<String> = others.map(|(name, value)| format!("header {name}: {value:?}")).collect();
    if !map.contains_key(key.0) {
        complaints.push("no key".to_owned());
    }
    complaints
}

type Rules<'a> = (&'a [(&'static str, Leaf)], &'a Plan);

fn walk(value: &Value, path: &mut String, (rules, plan): Rules<'_>, complaints: &mut Vec<String>) {
    let rule = rules.iter().find(|(rule, _)| rule == path).map(|(_, leaf)| *leaf);
    let fits = match (value, rule) {
        (Value::Null, Some(Text)) => true,
        (_, Some(Tree)) => is_typed_tree(value, plan),
        (Value::String(text), Some(Word(words))) => words.contains(&text.as_str()),
        (Value::String(text), Some(Text)) => is_typed(text, plan) || OWN_NAMES.contains(&text.as_str()),
        (Value::Number(_) | Value::Bool(_), Some(Plain)) => true,
        (Value::Array(items), None) => {
            let length = path.len();
            path.push_str("[]");
            items.iter().for_each(|item| walk(item, path, (rules, plan), complaints));
            path.truncate(length);
            return;
        }
        (Value::Object(members), None | Some(Word(_))) => {
            for (name, value) in members {
                let length = path.len();
                path.push_str(if path.is_empty() { "" } else { "." });
                path.push_str(name);
                walk(value, path, (rules, plan), complaints);
                path.truncate(length);
            }
            return;
        }
        (_, _) => false,
    };
    if !fits {
        complaints.push(format!("{path}: {value}"));
    }
}

/// Whether a text is one of the request's, or several of its parts.
fn is_typed(text: &str, plan: &Plan) -> bool {
    let known = |text: &str| text.is_empty() || plan.typed.contains(text);
    known(text)
        || split_known(text, plan)
        || serde_json::from_str(text).is_ok_and(|value: Value| is_typed_tree(&value, plan))
}

/// Parts are joined by line ends, and may have some of their own.
fn split_known(text: &str, plan: &Plan) -> bool {
    let ends = text.match_indices('\n').map(|(at, _)| at);
    text.contains('\n')
        && ends.into_iter().any(|at| {
            let (first, rest) = (&text[..at], &text[at + 1..]);
            plan.typed.contains(first) && (plan.typed.contains(rest) || split_known(rest, plan))
        })
}

fn is_typed_tree(value: &Value, plan: &Plan) -> bool {
    match value {
        Value::Null | Value::Bool(_) => true,
        Value::Number(number) => plan.typed.contains(&number.to_string()),
        Value::String(text) => plan.typed.contains(text),
        Value::Array(items) => items.iter().all(|item| is_typed_tree(item, plan)),
        Value::Object(members) => {
            members.iter().all(|(name, value)| plan.typed.contains(name) && is_typed_tree(value, plan))
        }
    }
}
