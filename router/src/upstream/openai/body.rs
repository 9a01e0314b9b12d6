//! A request as the body of a call.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::express::{is_any_object, local_only, refusal, refuse, schema};
use super::super::reader::Reader as AnyReader;
use super::super::{OpenAiBound, Prepared};
use super::{Call, PROTOCOL, Reader};
use crate::request::{Failure, Input, Message, Request, Role, Sampling, Tool, ToolCall, ToolChoice, Tools};

/// Seeds are whole numbers of 64 bits with a sign.
const LARGEST_SEED: u64 = i64::MAX as u64;

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(flatten)]
    input: InputBody<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    stream: bool,
    stream_options: StreamOptions,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum InputBody<'a> {
    Chat(ChatBody<'a>),
    Text { prompt: &'a str },
}

#[derive(Serialize)]
struct ChatBody<'a> {
    messages: Vec<MessageBody<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<ToolBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallel_tool_calls: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<u32>,
}

#[derive(Serialize)]
struct MessageBody<'a> {
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    /// Null in a turn that only calls.
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a str>,
}

#[derive(Serialize)]
struct CallBody<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    function: CallFunction<'a>,
}

#[derive(Serialize)]
struct CallFunction<'a> {
    name: &'a str,
    arguments: &'a str,
}

#[derive(Serialize)]
struct ToolBody<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    function: ToolFunction<'a>,
}

#[derive(Serialize)]
struct ToolFunction<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    parameters: &'a serde_json::Map<String, Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    strict: bool,
}

/// Puts a request into OpenAI's words.
pub(in crate::upstream) fn prepare(
    model: &str,
    request: &Request,
    (max_tokens, bound): (u32, OpenAiBound),
) -> Result<Prepared, Failure> {
    refuse(PROTOCOL, local_only(request))?;
    let sampling = &request.sampling;
    refuse(
        PROTOCOL,
        [
            ("top_k", sampling.top_k.is_some_and(|top_k| top_k > 0)),
            ("seed", sampling.seed.is_some_and(|seed| seed > LARGEST_SEED)),
        ],
    )?;
    let (call, input) = match &request.input {
        Input::Chat(chat) => (Call::Chat, InputBody::Chat(chat_body(&chat.messages, request)?)),
        Input::Text(text) => (Call::Text, text_body(text, request)?),
        Input::Tokens(_) => return Err(refusal(PROTOCOL, "prompt")),
    };
    let newer = call == Call::Chat && bound == OpenAiBound::MaxCompletionTokens;
    let Sampling { temperature, top_p, presence_penalty, frequency_penalty, seed, .. } = *sampling;
    let body = Body {
        model,
        input,
        temperature,
        top_p,
        presence_penalty,
        frequency_penalty,
        seed,
        stop: &request.stop.texts,
        max_completion_tokens: newer.then_some(max_tokens),
        max_tokens: (!newer).then_some(max_tokens),
        stream: true,
        stream_options: StreamOptions { include_usage: true },
    };
    let body: Bytes = serde_json::to_vec(&body).expect("texts, numbers and maps of texts are JSON").into();
    Ok(Prepared::new(call.path(), body, AnyReader::OpenAi(Reader::new(call)), (request, max_tokens)))
}

fn text_body<'a>(prompt: &'a str, request: &Request) -> Result<InputBody<'a>, Failure> {
    refuse(
        PROTOCOL,
        [
            ("tools", !request.tools.definitions.is_empty()),
            ("response_format", request.constraint.is_some()),
            // Completions tell other things of a token, and less of them.
            ("logprobs", request.sampling.top_logprobs.is_some()),
        ],
    )?;
    Ok(InputBody::Text { prompt })
}

fn chat_body<'a>(messages: &'a [Message], request: &'a Request) -> Result<ChatBody<'a>, Failure> {
    let tools = &request.tools;
    let offered = !tools.definitions.is_empty();
    let top_logprobs = request.sampling.top_logprobs;
    Ok(ChatBody {
        messages: messages.iter().map(message).collect(),
        tools: tools.definitions.iter().map(tool).collect(),
        tool_choice: offered.then(|| choice(tools)),
        parallel_tool_calls: offered.then_some(tools.parallel),
        response_format: schema(request)?.map(response_format),
        logprobs: top_logprobs.map(|_| true),
        top_logprobs,
    })
}

fn message(message: &Message) -> MessageBody<'_> {
    let silent = message.role == Role::Assistant && message.content.is_empty() && !message.tool_calls.is_empty();
    MessageBody {
        role: message.role.as_str(),
        name: message.name.as_deref(),
        content: (!silent).then_some(message.content.as_str()),
        tool_calls: message.tool_calls.iter().map(call).collect(),
        tool_call_id: message.tool_call_id.as_deref(),
    }
}

fn call(call: &ToolCall) -> CallBody<'_> {
    let function = CallFunction { name: &call.name, arguments: &call.arguments };
    CallBody { id: &call.id, kind: "function", function }
}

fn tool(tool: &Tool) -> ToolBody<'_> {
    let function = ToolFunction {
        name: &tool.name,
        description: tool.description.as_deref(),
        parameters: &tool.parameters,
        strict: tool.strict,
    };
    ToolBody { kind: "function", function }
}

fn choice(tools: &Tools) -> Value {
    match &tools.choice {
        ToolChoice::Auto => json!("auto"),
        ToolChoice::None => json!("none"),
        ToolChoice::Required => json!("required"),
        ToolChoice::Named(name) => json!({"type": "function", "function": {"name": name}}),
    }
}

/// A constraint is a promise, so the schema is strict; the one that any object satisfies has a word of its own.
fn response_format(schema: Value) -> Value {
    if is_any_object(&schema) {
        return json!({"type": "json_object"});
    }
    json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": true}})
}
