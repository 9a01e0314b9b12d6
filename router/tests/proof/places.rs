//! Where in a body a canary may stand: every field of every face.

use serde_json::{Value, json};

/// What may stand at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    /// Letters, digits, `_` and `-`.
    Name,
    /// A whole number.
    Number,
    /// Two texts, with [`SEAM`] between them.
    Parts,
}

/// Between the two texts of [`Form::Parts`].
pub(crate) const SEAM: char = '\u{1}';

/// A place in a body.
pub(crate) struct Place {
    pub(crate) name: &'static str,
    pub(crate) form: Form,
    /// Puts something there.
    pub(crate) plant: fn(&mut Value, &str),
}

const fn text(name: &'static str, plant: fn(&mut Value, &str)) -> Place {
    Place { name, form: Form::Text, plant }
}

const fn word(name: &'static str, plant: fn(&mut Value, &str)) -> Place {
    Place { name, form: Form::Name, plant }
}

const fn number(name: &'static str, plant: fn(&mut Value, &str)) -> Place {
    Place { name, form: Form::Number, plant }
}

const fn parts(name: &'static str, plant: fn(&mut Value, &str)) -> Place {
    Place { name, form: Form::Parts, plant }
}

fn digits(text: &str) -> Value {
    text.parse::<u64>().unwrap().into()
}

/// Adds to a string.
fn add(value: &mut Value, more: &str) {
    *value = format!("{} {more}", value.as_str().unwrap()).into();
}

/// A string becomes parts of the kind, with others after it.
fn split(value: &mut Value, kind: &str, more: &str) {
    let first = value.take();
    let texts = std::iter::once(first).chain(more.split(SEAM).map(Value::from));
    *value = texts.map(|text| json!({"type": kind, "text": text})).collect::<Vec<_>>().into();
}

/// Puts turns before the last one.
fn before_last(turns: &mut Value, more: Vec<Value>) {
    let turns = turns.as_array_mut().unwrap();
    let last = turns.pop();
    turns.extend(more);
    turns.extend(last);
}

fn schema(change: impl FnOnce(&mut Value)) -> Value {
    let mut schema = json!({"type": "object", "properties": {"q": {"type": "string"}}});
    change(&mut schema);
    schema
}

fn schema_key(t: &str) -> Value {
    schema(|it| it["properties"][t] = json!({"type": "string"}))
}

fn schema_enum(t: &str) -> Value {
    schema(|it| it["properties"]["q"]["enum"] = json!(["a", t]))
}

fn schema_number(t: &str) -> Value {
    schema(|it| it["properties"]["n"] = json!({"type": "array", "items": {"const": digits(t)}}))
}

/// What the faces that take anything leave aside.
static ASIDE: [Place; 8] = [
    text("metadata.value", |b, t| b["metadata"]["note"] = t.into()),
    text("metadata.key", |b, t| b["metadata"][t] = "x".into()),
    text("user", |b, t| b["user"] = t.into()),
    text("safety_identifier", |b, t| b["safety_identifier"] = t.into()),
    text("unknown", |b, t| b["mood"] = json!({"of": [1, t]})),
    text("unknown.key", |b, t| b[t] = 1.into()),
    text("unknown.nested_key", |b, t| b["mood"] = json!([{t: null}])),
    number("unknown.number", |b, t| b["mood"] = digits(t)),
];

fn called(body: &mut Value, (id, name, arguments, result): (&str, &str, &str, Value)) {
    let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let turns = vec![
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": id, "content": result}),
    ];
    before_last(&mut body["messages"], turns);
}

fn tool(body: &mut Value, name: &str, description: &str, parameters: Value) {
    let function = json!({"name": name, "description": description, "parameters": parameters});
    body["tools"] = json!([{"type": "function", "function": function}]);
}

fn format(body: &mut Value, schema: Value) {
    body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
}

/// Of a chat completion that the gRPC face knows too.
static CHAT: [Place; 22] = [
    text("system.content", |b, t| b["messages"][0]["content"] = t.into()),
    text("user.content", |b, t| add(&mut b["messages"][1]["content"], t)),
    text("user.name", |b, t| b["messages"][1]["name"] = t.into()),
    text("assistant.content", |b, t| {
        before_last(
            &mut b["messages"],
            vec![json!({"role": "user", "content": "go"}), json!({"role": "assistant", "content": t})],
        );
    }),
    text("call.id", |b, t| called(b, (t, "look", "{}", "ok".into()))),
    word("call.name", |b, t| called(b, ("c", t, "{}", "ok".into()))),
    text("call.arguments", |b, t| called(b, ("c", "look", &json!({"q": t}).to_string(), "ok".into()))),
    text("call.arguments.key", |b, t| called(b, ("c", "look", &json!({"q": [{t: 1}]}).to_string(), "ok".into()))),
    number("call.arguments.number", |b, t| called(b, ("c", "look", &json!({"q": digits(t)}).to_string(), "ok".into()))),
    text("call.arguments.raw", |b, t| called(b, ("c", "look", t, "ok".into()))),
    text("tool.content", |b, t| called(b, ("c", "look", "{}", t.into()))),
    word("tools.name", |b, t| tool(b, t, "looks", schema(|_| {}))),
    text("tools.description", |b, t| tool(b, "look", t, schema(|_| {}))),
    text("tools.parameters.key", |b, t| tool(b, "look", "looks", schema_key(t))),
    text("tools.parameters.enum", |b, t| tool(b, "look", "looks", schema_enum(t))),
    number("tools.parameters.number", |b, t| tool(b, "look", "looks", schema_number(t))),
    word("tool_choice", |b, t| {
        tool(b, t, "looks", schema(|_| {}));
        b["tool_choice"] = json!({"type": "function", "function": {"name": t}});
    }),
    text("stop", |b, t| b["stop"] = json!(["never", t])),
    text("response_format.key", |b, t| format(b, schema_key(t))),
    text("response_format.enum", |b, t| format(b, schema_enum(t))),
    number("response_format.number", |b, t| format(b, schema_number(t))),
    text("chat_template_kwargs", |b, t| b["chat_template_kwargs"] = json!({"a": [t]})),
];

/// Of a chat completion alone.
static CHAT_ONLY: [Place; 15] = [
    text("developer.content", |b, t| b["messages"][0] = json!({"role": "developer", "content": t})),
    text("user.part", |b, t| split(&mut b["messages"][1]["content"], "text", t)),
    parts("user.parts", |b, t| split(&mut b["messages"][1]["content"], "text", t)),
    parts("tool.parts", |b, t| {
        let mut content = Value::from("so");
        split(&mut content, "text", t);
        called(b, ("c", "look", "{}", content));
    }),
    text("message.unknown", |b, t| b["messages"][1]["mood"] = t.into()),
    text("part.unknown", |b, t| {
        split(&mut b["messages"][1]["content"], "text", "so");
        b["messages"][1]["content"][1]["mood"] = t.into();
    }),
    text("tool.unknown", |b, t| {
        tool(b, "look", "looks", schema(|_| {}));
        b["tools"][0]["function"]["mood"] = t.into();
    }),
    word("response_format.name", |b, t| {
        format(b, schema(|_| {}));
        b["response_format"]["json_schema"]["name"] = t.into();
    }),
    text("response_format.description", |b, t| {
        format(b, schema(|_| {}));
        b["response_format"]["json_schema"]["description"] = t.into();
    }),
    text("guided_regex", |b, t| b["guided_regex"] = t.into()),
    text("guided_grammar", |b, t| b["guided_grammar"] = t.into()),
    text("guided_choice", |b, t| b["guided_choice"] = json!(["a", t])),
    text("guided_json", |b, t| b["guided_json"] = schema_enum(t).to_string().into()),
    text("prompt_cache_key", |b, t| b["prompt_cache_key"] = t.into()),
    text("chat_template_kwargs.key", |b, t| b["chat_template_kwargs"] = json!({t: true})),
];

static COMPLETION: [Place; 6] = [
    text("prompt", |b, t| add(&mut b["prompt"], t)),
    text("prompts", |b, t| {
        let first = b["prompt"].clone();
        let mut second = first.clone();
        add(&mut second, t);
        b["prompt"] = json!([first, second]);
    }),
    text("stop", |b, t| b["stop"] = t.into()),
    text("guided_regex", |b, t| b["guided_regex"] = t.into()),
    text("guided_json", |b, t| b["guided_json"] = schema_key(t)),
    text("message.unknown", |b, t| b["mood"] = t.into()),
];

/// Of a prompt of token ids, before it is one.
static TOKENS: [Place; 1] = [text("prompt", |b, t| add(&mut b["prompt"], t))];

fn item_called(body: &mut Value, (id, name, arguments, output): (&str, &str, &str, Value)) {
    let items = vec![
        json!({"type": "function_call", "call_id": id, "name": name, "arguments": arguments}),
        json!({"type": "function_call_output", "call_id": id, "output": output}),
    ];
    before_last(&mut body["input"], items);
}

fn flat_tool(body: &mut Value, name: &str, description: &str, parameters: Value) {
    body["tools"] = json!([{"type": "function", "name": name, "description": description, "parameters": parameters}]);
}

fn text_format(body: &mut Value, schema: Value) {
    body["text"] = json!({"format": {"type": "json_schema", "name": "a", "schema": schema}});
}

static RESPONSES: [Place; 22] = [
    text("instructions", |b, t| b["instructions"] = t.into()),
    text("input", |b, t| {
        let mut said = b["input"][0]["content"].take();
        add(&mut said, t);
        b["input"] = said;
    }),
    text("input.content", |b, t| add(&mut b["input"][0]["content"], t)),
    text("input.part", |b, t| split(&mut b["input"][0]["content"], "input_text", t)),
    parts("input.parts", |b, t| split(&mut b["input"][0]["content"], "input_text", t)),
    text("output.part", |b, t| {
        let part = json!({"type": "output_text", "text": t, "annotations": []});
        before_last(
            &mut b["input"],
            vec![json!({"role": "user", "content": "go"}), json!({"role": "assistant", "content": [part]})],
        );
    }),
    text("call.id", |b, t| item_called(b, (t, "look", "{}", "ok".into()))),
    word("call.name", |b, t| item_called(b, ("c", t, "{}", "ok".into()))),
    text("call.arguments", |b, t| item_called(b, ("c", "look", &json!({"q": t}).to_string(), "ok".into()))),
    number("call.arguments.number", |b, t| {
        item_called(b, ("c", "look", &json!({"q": digits(t)}).to_string(), "ok".into()));
    }),
    text("call.output", |b, t| item_called(b, ("c", "look", "{}", t.into()))),
    text("call.output.part", |b, t| {
        item_called(b, ("c", "look", "{}", json!([{"type": "input_text", "text": t}])));
    }),
    word("tools.name", |b, t| flat_tool(b, t, "looks", schema(|_| {}))),
    text("tools.description", |b, t| flat_tool(b, "look", t, schema(|_| {}))),
    text("tools.parameters.key", |b, t| flat_tool(b, "look", "looks", schema_key(t))),
    text("tools.parameters.enum", |b, t| flat_tool(b, "look", "looks", schema_enum(t))),
    number("tools.parameters.number", |b, t| flat_tool(b, "look", "looks", schema_number(t))),
    text("text.format.key", |b, t| text_format(b, schema_key(t))),
    text("text.format.enum", |b, t| text_format(b, schema_enum(t))),
    number("text.format.number", |b, t| text_format(b, schema_number(t))),
    text("text.format.description", |b, t| {
        text_format(b, schema(|_| {}));
        b["text"]["format"]["description"] = t.into();
    }),
    text("item.unknown", |b, t| b["input"][0]["mood"] = t.into()),
];

fn used(body: &mut Value, (id, name, input, result): (&str, &str, Value, Value)) {
    let turns = vec![
        json!({"role": "user", "content": "go"}),
        json!({"role": "assistant", "content": [{"type": "tool_use", "id": id, "name": name, "input": input}]}),
        json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": result}]}),
    ];
    before_last(&mut body["messages"], turns);
}

fn offered(body: &mut Value, name: &str, description: &str, schema: Value) {
    body["tools"] = json!([{"name": name, "description": description, "input_schema": schema}]);
}

static MESSAGES: [Place; 21] = [
    text("system", |b, t| b["system"] = t.into()),
    text("system.block", |b, t| split(&mut b["system"], "text", t)),
    parts("system.blocks", |b, t| split(&mut b["system"], "text", t)),
    text("user.content", |b, t| add(&mut b["messages"][0]["content"], t)),
    text("user.block", |b, t| split(&mut b["messages"][0]["content"], "text", t)),
    parts("user.blocks", |b, t| split(&mut b["messages"][0]["content"], "text", t)),
    text("assistant.content", |b, t| {
        before_last(
            &mut b["messages"],
            vec![json!({"role": "user", "content": "go"}), json!({"role": "assistant", "content": t})],
        );
    }),
    text("tool_use.id", |b, t| used(b, (t, "look", json!({}), "ok".into()))),
    word("tool_use.name", |b, t| used(b, ("c", t, json!({}), "ok".into()))),
    text("tool_use.input", |b, t| used(b, ("c", "look", json!({"q": t}), "ok".into()))),
    text("tool_use.input.key", |b, t| used(b, ("c", "look", json!({"q": {t: 1}}), "ok".into()))),
    number("tool_use.input.number", |b, t| used(b, ("c", "look", json!({"q": digits(t)}), "ok".into()))),
    text("tool_result", |b, t| used(b, ("c", "look", json!({}), t.into()))),
    text("tool_result.block", |b, t| used(b, ("c", "look", json!({}), json!([{"type": "text", "text": t}])))),
    word("tools.name", |b, t| offered(b, t, "looks", schema(|_| {}))),
    text("tools.description", |b, t| offered(b, "look", t, schema(|_| {}))),
    text("tools.input_schema.key", |b, t| offered(b, "look", "looks", schema_key(t))),
    text("tools.input_schema.enum", |b, t| offered(b, "look", "looks", schema_enum(t))),
    number("tools.input_schema.number", |b, t| offered(b, "look", "looks", schema_number(t))),
    text("stop_sequences", |b, t| b["stop_sequences"] = json!([t])),
    text("message.unknown", |b, t| b["messages"][0]["mood"] = t.into()),
];

/// Of the gRPC face, in the shape of a chat completion.
static GRPC: [Place; 3] = [
    text("guided_regex", |b, t| b["guided_regex"] = t.into()),
    text("guided_grammar", |b, t| b["guided_grammar"] = t.into()),
    text("text", |b, t| {
        let mut said = b["messages"][1]["content"].take();
        add(&mut said, t);
        b["prompt"] = said;
    }),
];

/// What clients speak to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Face {
    Chat,
    Completion,
    /// The same with token ids.
    Tokens,
    Responses,
    Messages,
    Grpc,
}

impl Face {
    pub(crate) const ALL: [Self; 6] =
        [Self::Chat, Self::Completion, Self::Tokens, Self::Responses, Self::Messages, Self::Grpc];

    pub(crate) fn places(self) -> Vec<&'static Place> {
        let lists: &[&'static [Place]] = match self {
            Self::Chat => &[&CHAT, &CHAT_ONLY, &ASIDE],
            Self::Completion => &[&COMPLETION, &ASIDE],
            Self::Tokens => &[&TOKENS],
            Self::Responses => &[&RESPONSES, &ASIDE],
            Self::Messages => &[&MESSAGES, &ASIDE],
            Self::Grpc => &[&CHAT, &GRPC],
        };
        lists.iter().copied().flatten().collect()
    }
}
