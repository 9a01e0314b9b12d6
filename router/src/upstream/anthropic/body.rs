//! A request as the body of a call.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::Prepared;
use super::super::express::{is_any_object, local_only, refusal, refuse, schema};
use super::super::reader::Reader as AnyReader;
use super::turns::{Block, Turn, turns};
use super::{ANSWER_TOOL, Form, PROTOCOL, Reader};
use crate::request::{Failure, Input, Request, Tool, ToolChoice, Tools};

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<Block<'a>>,
    messages: Vec<Turn<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<ToolBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    stop_sequences: &'a [String],
    stream: bool,
}

#[derive(Serialize)]
struct ToolBody<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    input_schema: Value,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    strict: bool,
}

/// Puts a request into Anthropic's words.
pub(in crate::upstream) fn prepare(model: &str, request: &Request, max_tokens: u32) -> Result<Prepared, Failure> {
    let sampling = &request.sampling;
    refuse(PROTOCOL, local_only(request))?;
    refuse(
        PROTOCOL,
        [
            ("presence_penalty", sampling.presence_penalty.is_some_and(|penalty| penalty != 0.0)),
            ("frequency_penalty", sampling.frequency_penalty.is_some_and(|penalty| penalty != 0.0)),
            ("seed", sampling.seed.is_some()),
            ("logprobs", sampling.top_logprobs.is_some()),
            ("stop", request.stop.texts.iter().any(|text| text.trim().is_empty())),
        ],
    )?;
    if sampling.temperature.is_some_and(|temperature| temperature > 1.0) {
        let message = format!("temperature must be at most 1 for an upstream that speaks {PROTOCOL}");
        return Err(Failure::field("temperature", message));
    }
    let chat = match &request.input {
        Input::Chat(chat) => chat,
        Input::Text(_) | Input::Tokens(_) => return Err(refusal(PROTOCOL, "prompt")),
    };
    let (system, messages) = turns(&chat.messages)?;
    let (form, tools, tool_choice) = tools(request)?;
    let body = Body {
        model,
        max_tokens,
        system,
        messages,
        tools,
        tool_choice,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k.filter(|top_k| *top_k > 0),
        stop_sequences: &request.stop.texts,
        stream: true,
    };
    let body: Bytes = serde_json::to_vec(&body).expect("texts, numbers and maps of texts are JSON").into();
    Ok(Prepared::new("/messages", body, AnyReader::Anthropic(Reader::new(form)), (request, max_tokens)))
}

/// The tools, the choice among them, and what that makes of the answer. A schema is kept by a strict tool that the
/// model must call, which leaves no room for other tools and holds only objects; any other is refused, since without
/// it the answer could be anything.
fn tools(request: &Request) -> Result<(Form, Vec<ToolBody<'_>>, Option<Value>), Failure> {
    let tools = &request.tools;
    match schema(request)? {
        Some(schema) if tools.definitions.is_empty() && schema["type"] == "object" => {
            // Arguments are an object whatever is said; strict schemas must say more.
            let strict = !is_any_object(&schema);
            let tool = ToolBody { name: ANSWER_TOOL, description: None, input_schema: schema, strict };
            let choice = json!({"type": "tool", "name": ANSWER_TOOL, "disable_parallel_tool_use": true});
            Ok((Form::Structured, vec![tool], Some(choice)))
        }
        Some(_) => Err(refusal(PROTOCOL, "response_format")),
        None => {
            let offered = !tools.definitions.is_empty();
            Ok((Form::Plain, tools.definitions.iter().map(tool).collect(), offered.then(|| choice(tools))))
        }
    }
}

fn tool(tool: &Tool) -> ToolBody<'_> {
    // A tool without parameters has an empty object as its arguments.
    let any = || json!({"type": "object"});
    let input_schema = if tool.parameters.is_empty() { any() } else { Value::Object(tool.parameters.clone()) };
    ToolBody { name: &tool.name, description: tool.description.as_deref(), input_schema, strict: tool.strict }
}

fn choice(tools: &Tools) -> Value {
    let one = !tools.parallel;
    match &tools.choice {
        ToolChoice::Auto => json!({"type": "auto", "disable_parallel_tool_use": one}),
        ToolChoice::None => json!({"type": "none"}),
        ToolChoice::Required => json!({"type": "any", "disable_parallel_tool_use": one}),
        ToolChoice::Named(name) => json!({"type": "tool", "name": name, "disable_parallel_tool_use": one}),
    }
}
